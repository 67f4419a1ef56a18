/* Sockets for datagrams that are connected to another program's, as to that of a system log: whoever has that name when the program is
 * resumed gets what it sends then. The other program is in no tree: it ends when it is told to.
 * argument: absolute, relative (to the other program's folder), abstract; nowhere (nobody has the name any more, and a send says so),
 * other (somebody else has it: nothing is checked here but that a send works), stranger (abstract, and an answer waits: refused). */
#include "unix.h"

static char name[200];

static void note(int folder, const char *text, size_t length) {
    int file = openat(folder, "received", O_CREAT | O_WRONLY | O_APPEND, 0600);
    if (file < 0 || write(file, text, length) != (ssize_t)length || write(file, "\n", 1) != 1) _exit(2);
    close(file);
}

/* Bound in the folder "outside", which is that of a relative name; notes what comes where the program is. */
static void serve(int ready) {
    alarm(60);
    setsid();
    int server = TRY(socket(AF_UNIX, SOCK_DGRAM, 0)), above = TRY(open(".", O_RDONLY | O_DIRECTORY));
    if (mkdir("outside", 0700) == -1) CHECK(errno == EEXIST, "mkdir");
    TRY(chdir("outside"));
    unix_bind(server, name);
    for (int fd = 0; fd < 3; fd++) TRY(dup2(TRY(open("/dev/null", O_RDWR)), fd));
    if (write(ready, "x", 1) != 1) _exit(2);
    for (int fd = 3; fd < 1000; fd++) if (fd != server && fd != above) close(fd);
    for (;;) {
        char text[100];
        struct sockaddr_un from;
        socklen_t length = sizeof from;
        ssize_t got = recvfrom(server, text, sizeof text, 0, (struct sockaddr *)&from, &length);
        if (got < 0) _exit(3);
        if (got == 4 && !memcmp(text, "quit", 4)) _exit(0);
        if (got > 1 && text[0] == '?') {
            text[0] = '!';
            /* The program's name is one of its own folder. */
            if (fchdir(above)) _exit(2);
            sendto(server, text, (size_t)got, 0, (struct sockaddr *)&from, length);
            if (chdir("outside")) _exit(2);
        } else {
            note(above, text, (size_t)got);
        }
    }
}

static void go_afar(void) {
    int ready[2];
    TRY(pipe(ready));
    pid_t between = TRY(fork());
    if (between == 0) {
        if (TRY(fork()) == 0) serve(ready[1]);
        _exit(0);
    }
    CHECK(waitpid(between, NULL, 0) == between, "waitpid");
    TRY(close(ready[1]));
    char byte;
    CHECK(read(ready[0], &byte, 1) == 1, "the other program failed");
    TRY(close(ready[0]));
}

static void sent(int socket, const char *text) {
    CHECK(send(socket, text, strlen(text), 0) == (ssize_t)strlen(text), "sending %s: %s", text, strerror(errno));
}

static void has_noted(const char *all) {
    char text[200] = "";
    for (int i = 0; i < 300; i++) {
        int file = open("received", O_RDONLY);
        ssize_t got = file < 0 ? 0 : read(file, text, sizeof text - 1);
        if (file >= 0) close(file);
        text[got > 0 ? got : 0] = 0;
        if (!strcmp(text, all)) return;
        usleep(10000);
    }
    fail("the other program has '%s', not '%s'", text, all);
}

/* An answer, and the name it comes from. */
static void answered(int socket, const char *expected) {
    struct pollfd polled = {.fd = socket, .events = POLLIN};
    CHECK(TRY(poll(&polled, 1, 3000)) == 1, "no answer %s", expected);
    char text[100];
    struct sockaddr_un from;
    socklen_t length = sizeof from;
    ssize_t got = TRY(recvfrom(socket, text, sizeof text, MSG_DONTWAIT, (struct sockaddr *)&from, &length));
    CHECK(got == (ssize_t)strlen(expected) && !memcmp(text, expected, (size_t)got), "%.*s, not %s", (int)got, text, expected);
    unix_same_name(&from, length, name, "whose answer it is");
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "absolute";
    int abstract = !strcmp(what, "abstract") || !strcmp(what, "stranger"), relative = !strcmp(what, "relative");
    char folder[100];
    if (abstract) snprintf(name, sizeof name, "@rewake-outside-%d", getpid());
    else if (relative) snprintf(name, sizeof name, "log");
    else {
        if (!getcwd(folder, sizeof folder - 12)) skip("the path of this folder is too long for a socket");
        snprintf(name, sizeof name, "%s/log", folder);
    }
    go_afar();
    int plain = TRY(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)), bound = TRY(socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0));
    unix_bind(bound, "client");
    const char *there = relative ? "outside/log" : name;
    unix_connect(plain, there);
    unix_connect(bound, there);
    sent(plain, "before");
    has_noted("before\n");
    unix_names(plain, NULL, name, "before");
    sent(bound, "?one");
    sent(bound, "?two");
    answered(bound, "!one");
    int waits = !abstract || !strcmp(what, "stranger");
    struct pollfd polled = {.fd = bound, .events = POLLIN};
    CHECK(TRY(poll(&polled, 1, 3000)) == 1, "no second answer");
    if (!waits) answered(bound, "!two");
    probe_ready();
    probe_wait();
    if (!strcmp(what, "nowhere")) {
        for (int i = 0; i < 2; i++) {
            int socket = i ? bound : plain;
            CHECK(send(socket, "x", 1, 0) == -1 && errno == ECONNREFUSED, "a send: %s", strerror(errno));
        }
        CHECK(unix_try_connect(plain, name) == -1 && errno == ECONNREFUSED, "connecting again: %s", strerror(errno));
        return probe_pass();
    }
    if (waits) answered(bound, "!two");
    unix_names(plain, NULL, name, "peer of the first");
    unix_names(bound, "client", name, "peer of the second");
    CHECK(fcntl(plain, F_GETFD) == FD_CLOEXEC && (fcntl(bound, F_GETFL) & O_NONBLOCK), "flags");
    sent(plain, "after");
    if (!strcmp(what, "other")) return probe_pass();
    sent(bound, "?three");
    answered(bound, "!three");
    sent(plain, "more");
    has_noted("before\nafter\nmore\n");
    sent(plain, "quit");
    return probe_pass();
}
