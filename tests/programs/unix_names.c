/* Unix sockets with addresses: listening, connected through them, waiting to be accepted, for datagrams. argument: what. */
#include "unix.h"

static char here[80], abstract[80];

static int bound(int type, const char *text) {
    int socket_ = TRY(socket(AF_UNIX, type, 0));
    if (text[0] != '@') unlink(text);
    unix_bind(socket_, text);
    return socket_;
}

static int listening(int type, const char *text, int backlog) {
    int listener = bound(type, text);
    TRY(listen(listener, backlog));
    return listener;
}

static int connected(int type, const char *text) {
    int client = TRY(socket(AF_UNIX, type, 0));
    unix_connect(client, text);
    return client;
}

static int accepted(int listener) {
    TRY(fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) | O_NONBLOCK));
    int server = accept(listener, NULL, NULL);
    CHECK(server >= 0, "accept: %s", strerror(errno));
    return server;
}

static void talk(int one, int other, const char *what) {
    unix_put(one, "to and");
    unix_put(other, "fro");
    unix_got(other, "to and", what);
    unix_got(one, "fro", what);
}

/* Listeners of all kinds of names, with connections through them. */
static void listeners(int type) {
    char absolute[200];
    size_t room = sizeof(((struct sockaddr_un *)0)->sun_path) - sizeof "/unix-absolute";
    if (!getcwd(absolute, room)) skip("the path of this folder is too long for a socket");
    strcat(absolute, "/unix-absolute");
    TRY(mkdir("unix-folder", 0700) == -1 && errno != EEXIST ? -1 : 0);
    const char *names[] = {"unix-plain", absolute, abstract, "unix-folder/../unix-folder/inside", NULL};
    char automatic[20];
    int sockets[5], clients[5], servers[5];
    umask(0077);
    for (int i = 0; i < 5; i++) {
        if (names[i]) sockets[i] = bound(type, names[i]);
        else {
            sockets[i] = TRY(socket(AF_UNIX, type, 0));
            sa_family_t family = AF_UNIX;
            TRY(bind(sockets[i], (struct sockaddr *)&family, sizeof family));
            struct sockaddr_un address;
            socklen_t length = sizeof address;
            TRY(getsockname(sockets[i], (struct sockaddr *)&address, &length));
            CHECK(length == TEXT + 6 && address.sun_path[0] == 0, "autobind");
            automatic[0] = '@';
            memcpy(automatic + 1, address.sun_path + 1, 5);
            automatic[6] = 0;
            names[i] = automatic;
        }
        TRY(listen(sockets[i], 3 + i));
        clients[i] = connected(type, names[i]);
        servers[i] = accepted(sockets[i]);
        unix_put(clients[i], "there");
        unix_put(servers[i], "back");
    }
    umask(022);
    TRY(chmod("unix-plain", 0642));
    struct stat file;
    probe_ready();
    probe_wait();
    CHECK(stat("unix-plain", &file) == 0 && file.st_mode == (S_IFSOCK | 0642) && file.st_uid == geteuid(), "the file is not what it was");
    CHECK(stat("unix-absolute", &file) == 0 && file.st_mode == (S_IFSOCK | 0700), "the other file is not what it was: %o", file.st_mode);
    for (int i = 0; i < 5; i++) {
        CHECK(unix_option(sockets[i], SO_ACCEPTCONN) == 1, "%s does not listen", names[i]);
        unix_names(sockets[i], names[i], "-", "listener");
        unix_names(clients[i], NULL, names[i], "client");
        unix_names(servers[i], names[i], NULL, "server");
        unix_peer_is(clients[i], getpid(), "client");
        unix_peer_is(servers[i], getpid(), "server");
        unix_peer_is(sockets[i], getpid(), "listener");
        unix_got(servers[i], "there", "server");
        unix_got(clients[i], "back", "client");
        talk(clients[i], servers[i], "an old connection");
        int client = connected(type, names[i]);
        talk(client, accepted(sockets[i]), "a new connection");
        CHECK(accept(sockets[i], NULL, NULL) == -1 && errno == EAGAIN, "somebody waits");
        int full = 0;
        for (;; full++) {
            int more = TRY(socket(AF_UNIX, type | SOCK_NONBLOCK, 0));
            if (unix_try_connect(more, names[i])) break;
        }
        CHECK(errno == EAGAIN && full == 3 + i + 1, "%d may wait at %s, not %d: %s", full, names[i], 3 + i + 1, strerror(errno));
    }
}

/* Connections that wait to be accepted, in their order, of this process and of a child's. */
static void waiting(void) {
    int listener = listening(SOCK_STREAM, "unix-waiting", 10), first, second, byte;
    unix_set(listener, SO_PASSCRED, 1);
    tree_begin();
    first = connected(SOCK_STREAM, "unix-waiting");
    int carrier[2];
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, carrier));
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        TRY(close(listener));
        TRY(close(first));
        int own = connected(SOCK_STREAM, "unix-waiting");
        TRY(write(carrier[1], "x", 1));
        tree_set_up();
        tree_wait(pid, parent);
        unix_put(own, "child");
        char text[10];
        CHECK(recv(own, text, sizeof text, 0) == 6, "waiting for an answer");
        unix_names(own, NULL, "unix-waiting", "the child's");
        unix_peer_is(own, parent, "the child's");
        _exit(0);
    }
    CHECK(read(carrier[0], &byte, 1) == 1, "waiting for the child");
    second = connected(SOCK_STREAM, "unix-waiting");
    TRY(shutdown(second, SHUT_WR));
    int third = bound(SOCK_STREAM, "unix-client");
    unix_connect(third, "unix-waiting");
    tree_ready(1);
    probe_wait();
    unix_put(first, "first");
    unix_put(third, "third");
    int server = accepted(listener);
    unix_names(server, "unix-waiting", NULL, "first");
    unix_peer_is(server, getpid(), "first");
    CHECK(unix_option(server, SO_PASSCRED) == 1, "an accepted one has what its listener had");
    unix_got(server, "first", "first");
    unix_names(first, NULL, "unix-waiting", "first");
    server = accepted(listener);
    unix_peer_is(server, child, "the child's");
    struct pollfd wait = {.fd = server, .events = POLLIN};
    CHECK(poll(&wait, 1, 10000) == 1, "waiting for the child");
    unix_got(server, "child", "the child's");
    unix_put(server, "answer");
    server = accepted(listener);
    unix_ended(server, "second");
    unix_put(server, "back");
    unix_got(second, "back", "second");
    CHECK(send(second, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "second is no longer shut down");
    server = accepted(listener);
    unix_names(server, "unix-waiting", "unix-client", "third");
    unix_got(server, "third", "third");
    CHECK(accept(listener, NULL, NULL) == -1 && errno == EAGAIN, "one more waits");
    tree_ends(child, 0);
}

/* Names whose files are gone, replaced or renamed; listeners that were closed. */
static void gone(void) {
    int deleted = listening(SOCK_STREAM, "unix-again", 5);
    int client = connected(SOCK_STREAM, "unix-again"), server = accepted(deleted);
    int again = listening(SOCK_STREAM, "unix-again", 5);
    int other = connected(SOCK_STREAM, "unix-again"), others = accepted(again);
    TRY(mkdir("unix-gone", 0700) == -1 && errno != EEXIST ? -1 : 0);
    int homeless = listening(SOCK_SEQPACKET, "unix-gone/socket", 5);
    int packet = connected(SOCK_SEQPACKET, "unix-gone/socket"), packets = accepted(homeless);
    TRY(unlink("unix-gone/socket"));
    TRY(rmdir("unix-gone"));
    int moved = listening(SOCK_STREAM, "unix-before", 5);
    TRY(rename("unix-before", "unix-after"));
    int through = connected(SOCK_STREAM, "unix-after"), to = accepted(moved);
    int closed = listening(SOCK_STREAM, "unix-closed", 5);
    int left = connected(SOCK_STREAM, "unix-closed"), lefts = accepted(closed);
    int widow = connected(SOCK_STREAM, "unix-closed"), dead = accepted(closed);
    TRY(close(closed));
    unix_put(dead, "testament");
    TRY(close(dead));
    unix_put(client, "queued");
    probe_ready();
    probe_wait();
    unix_names(deleted, "unix-again", "-", "deleted");
    unix_names(client, NULL, "unix-again", "client of the deleted");
    unix_names(server, "unix-again", NULL, "server of the deleted");
    unix_got(server, "queued", "server of the deleted");
    talk(client, server, "deleted");
    talk(other, others, "again");
    int fresh = connected(SOCK_STREAM, "unix-again");
    talk(fresh, accepted(again), "the file leads to the second one");
    CHECK(accept(deleted, NULL, NULL) == -1, "somebody came to the deleted one");
    unix_names(packet, NULL, "unix-gone/socket", "packets");
    unix_names(homeless, "unix-gone/socket", "-", "packets");
    talk(packet, packets, "packets");
    CHECK(access("unix-gone", F_OK) == -1 && errno == ENOENT, "the folder is there again");
    CHECK(access("unix-before", F_OK) == -1 && errno == ENOENT, "the old name is there again");
    unix_names(moved, "unix-before", "-", "moved");
    talk(through, to, "moved");
    fresh = connected(SOCK_STREAM, "unix-after");
    talk(fresh, accepted(moved), "the new name");
    unix_names(left, NULL, "unix-closed", "closed");
    talk(left, lefts, "closed");
    int nobody = TRY(socket(AF_UNIX, SOCK_STREAM, 0));
    CHECK(unix_try_connect(nobody, "unix-closed") == -1 && errno == ECONNREFUSED, "somebody listens: %s", strerror(errno));
    unix_got(widow, "testament", "widow");
    unix_ended(widow, "widow");
    unix_names(widow, NULL, "unix-closed", "widow");
    CHECK(listen(deleted, 5) == 0 && listen(homeless, 1) == 0, "they can listen on");
}

/* Sockets that are not connected (yet). */
static void states(void) {
    static const int types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
    int plain[3], named[3];
    char names[3][30];
    for (int i = 0; i < 3; i++) {
        plain[i] = TRY(socket(AF_UNIX, types[i], 0));
        snprintf(names[i], sizeof names[i], "unix-state-%d", i);
        named[i] = bound(types[i], names[i]);
    }
    probe_ready();
    probe_wait();
    for (int i = 0; i < 3; i++) {
        unix_names(plain[i], NULL, "-", "plain");
        unix_names(named[i], names[i], "-", "named");
        CHECK(unix_option(plain[i], SO_TYPE) == types[i] && unix_peer(plain[i]).pid == 0, "plain: type or peer");
        if (types[i] != SOCK_DGRAM) {
            CHECK(unix_try_connect(plain[i], names[i]) == -1 && errno == ECONNREFUSED, "it listens");
            TRY(listen(named[i], 5));
        }
        unix_connect(plain[i], names[i]);
        if (types[i] != SOCK_DGRAM) named[i] = accepted(named[i]);
        unix_put(plain[i], "hello");
        unix_got(named[i], "hello", "connected after the resume");
        CHECK(bind(named[i], (struct sockaddr *)&(struct sockaddr_un){.sun_family = AF_UNIX, .sun_path = "unix-twice"}, sizeof(struct sockaddr_un)) == -1 && errno == EINVAL, "it can be bound twice");
    }
}

/* From whom a datagram came; the answer goes there. */
static void datagram(int socket, const char *text, const char *from, const char *answer) {
    char buffer[100];
    struct sockaddr_un address;
    socklen_t length = sizeof address;
    ssize_t got = recvfrom(socket, buffer, sizeof buffer, MSG_DONTWAIT, (struct sockaddr *)&address, &length);
    CHECK(got == (ssize_t)strlen(text) && !memcmp(buffer, text, (size_t)got), "not the datagram \"%s\": %zd, %s", text, got, strerror(errno));
    unix_same_name(&address, length, from, text);
    if (answer) CHECK(sendto(socket, answer, strlen(answer), 0, (struct sockaddr *)&address, length) == (ssize_t)strlen(answer), "answer to %s: %s", from, strerror(errno));
}

static void to(int socket, const char *name, const char *text) {
    struct sockaddr_un address;
    socklen_t length = unix_address(&address, name);
    CHECK(sendto(socket, text, strlen(text), 0, (struct sockaddr *)&address, length) == (ssize_t)strlen(text), "sendto %s: %s", name, strerror(errno));
}

static void datagrams(void) {
    int server = bound(SOCK_DGRAM, "unix-log"), second = bound(SOCK_DGRAM, abstract);
    int client = connected(SOCK_DGRAM, "unix-log");
    int named = bound(SOCK_DGRAM, "unix-named"), hidden = bound(SOCK_DGRAM, "unix-hidden"), brief = bound(SOCK_DGRAM, "unix-brief");
    int nameless = TRY(socket(AF_UNIX, SOCK_DGRAM, 0)), shortest = TRY(socket(AF_UNIX, SOCK_DGRAM, 0));
    unix_connect(named, abstract);
    unix_put(client, "one");
    to(named, "unix-log", "two");
    to(hidden, "unix-log", "three");
    to(brief, "unix-log", "four");
    to(nameless, "unix-log", "five");
    to(shortest, "unix-log", "six");
    unix_put(client, "seven");
    unix_put(named, "other one");
    TRY(unlink("unix-hidden"));
    TRY(close(brief));
    TRY(close(shortest));
    /* To oneself; a pair of which one has gone on to somebody else; and to one that is gone. */
    int self = bound(SOCK_DGRAM, "unix-self"), pair[2], orphan = TRY(socket(AF_UNIX, SOCK_DGRAM, 0)), dead = bound(SOCK_DGRAM, "unix-dead");
    unix_connect(self, "unix-self");
    unix_put(self, "to myself");
    TRY(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    unix_connect(pair[1], "unix-log");
    unix_put(pair[1], "eight");
    unix_connect(orphan, "unix-dead");
    TRY(close(dead));
    probe_ready();
    probe_wait();
    datagram(server, "one", NULL, NULL);
    datagram(server, "two", "unix-named", NULL);
    datagram(server, "three", "unix-hidden", NULL);
    datagram(server, "four", "unix-brief", NULL);
    datagram(server, "five", NULL, NULL);
    datagram(server, "six", NULL, NULL);
    datagram(server, "seven", NULL, NULL);
    datagram(server, "eight", NULL, NULL);
    unix_empty(server, "server");
    datagram(second, "other one", "unix-named", "answer");
    unix_got(named, "answer", "the answer");
    unix_names(client, NULL, "unix-log", "client");
    unix_names(named, "unix-named", abstract, "named");
    unix_names(hidden, "unix-hidden", "-", "hidden");
    unix_names(nameless, NULL, "-", "nameless");
    CHECK(access("unix-hidden", F_OK) == -1 && access("unix-brief", F_OK) == 0, "files of those who are gone");
    unix_put(client, "once more");
    datagram(server, "once more", NULL, NULL);
    unix_got(self, "to myself", "self");
    unix_put(self, "again");
    unix_got(self, "again", "self");
    unix_names(pair[1], NULL, "unix-log", "pair");
    unix_names(pair[0], NULL, NULL, "pair");
    CHECK(send(pair[0], "x", 1, 0) == -1 && errno == EPERM, "the one left behind: %s", strerror(errno));
    unix_put(pair[1], "to the log");
    datagram(server, "to the log", NULL, NULL);
    unix_names(orphan, NULL, "unix-dead", "orphan");
    CHECK(send(orphan, "x", 1, 0) == -1 && errno == ECONNREFUSED, "a datagram to nobody: %s", strerror(errno));
}

/* accept(2) and connect(2) that wait. */
static void *accepts(void *listener) {
    long server = accept(*(int *)listener, NULL, NULL);
    return server >= 0 ? (void *)server : NULL;
}

static void *connects(void *name) {
    long client = socket(AF_UNIX, SOCK_STREAM, 0);
    return unix_try_connect((int)client, name) == 0 ? (void *)client : NULL;
}

static void blocked(void) {
    int listener = listening(SOCK_STREAM, "unix-blocked", 5), full = listening(SOCK_STREAM, abstract, 0);
    int first = connected(SOCK_STREAM, abstract);
    pthread_t accepter, connecter;
    PTRY(pthread_create(&accepter, NULL, accepts, &listener));
    PTRY(pthread_create(&connecter, NULL, connects, abstract));
    usleep(50000);
    probe_ready();
    probe_wait();
    void *result;
    int client = connected(SOCK_STREAM, "unix-blocked");
    PTRY(pthread_join(accepter, &result));
    CHECK(result, "accept");
    talk(client, (int)(long)result, "accepted");
    int server = accepted(full);
    talk(first, server, "first");
    PTRY(pthread_join(connecter, &result));
    CHECK(result, "connect");
    talk((int)(long)result, accepted(full), "connected");
}

/* A server and its clients, each a process. */
static void family(int type) {
    enum { CLIENTS = 5 };
    pid_t clients[CLIENTS];
    int listener = listening(type, "unix-family", 20), servers[CLIENTS];
    tree_begin();
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = tree_fork();
        if (clients[i] == 0) {
            pid_t pid = getpid(), parent = getppid();
            char text[100], wanted[100];
            TRY(close(listener));
            int own = connected(type, "unix-family");
            snprintf(text, sizeof text, "I am %d", pid);
            unix_put(own, text);
            CHECK(recv(own, text, 2, 0) == 2, "the first answer");
            tree_set_up();
            tree_wait(pid, parent);
            unix_peer_is(own, parent, "client");
            snprintf(wanted, sizeof wanted, "you are %d", pid);
            unix_got(own, wanted, "what waited for the client");
            unix_put(own, "done");
            CHECK(recv(own, text, sizeof text, 0) == 0, "the end");
            _exit(0);
        }
    }
    for (int i = 0; i < CLIENTS; i++) {
        char text[100];
        servers[i] = TRY(accept(listener, NULL, NULL));
        pid_t peer = unix_peer(servers[i]).pid;
        snprintf(text, sizeof text, "you are %d", peer);
        unix_put(servers[i], "ok");
        unix_put(servers[i], text);
    }
    tree_ready(CLIENTS);
    probe_wait();
    for (int i = 0; i < CLIENTS; i++) {
        char text[100];
        pid_t peer = unix_peer(servers[i]).pid;
        snprintf(text, sizeof text, "I am %d", peer);
        if (type == SOCK_STREAM) {
            char all[200];
            size_t wanted = strlen(text) + 4, got = 0;
            while (got < wanted) {
                ssize_t part = TRY(recv(servers[i], all + got, wanted - got, 0));
                CHECK(part > 0, "end of %s", text);
                got += (size_t)part;
            }
            CHECK(!memcmp(all, text, strlen(text)) && !memcmp(all + strlen(text), "done", 4), "what %d had sent", peer);
        } else {
            unix_got(servers[i], text, "what it had sent");
            CHECK(recv(servers[i], text, sizeof text, 0) == 4, "what it sends");
        }
        TRY(close(servers[i]));
    }
    for (int i = 0; i < CLIENTS; i++) tree_ends(clients[i], 0);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "listeners";
    snprintf(here, sizeof here, "%d", getpid());
    snprintf(abstract, sizeof abstract, "@rewake test %d", getpid());
    if (!strcmp(what, "listeners")) listeners(argc > 3 ? SOCK_SEQPACKET : SOCK_STREAM);
    else if (!strcmp(what, "waiting")) waiting();
    else if (!strcmp(what, "gone")) gone();
    else if (!strcmp(what, "states")) states();
    else if (!strcmp(what, "datagrams")) datagrams();
    else if (!strcmp(what, "blocked")) blocked();
    else if (!strcmp(what, "family")) family(argc > 3 ? SOCK_SEQPACKET : SOCK_STREAM);
    else fail("no such variant");
    return probe_pass();
}
