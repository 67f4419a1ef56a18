/* Pairs of unix sockets (socketpair). argument: what. */
#include "unix.h"

static char data[60000], back[60000];

/* Data on its way in both directions. */
static void stream(void) {
    int ends[2], quiet[2];
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    TRY(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, quiet));
    probe_fill(data, sizeof data, 5);
    for (size_t at = 0; at < sizeof data; at += 7500) CHECK(write(ends[0], data + at, 7500) == 7500, "write");
    unix_put(ends[1], "one");
    unix_put(ends[1], "two");
    int copy = TRY(dup2(ends[1], 77));
    TRY(fcntl(ends[1], F_SETFL, O_NONBLOCK));
    probe_ready();
    probe_wait();
    CHECK((fcntl(ends[1], F_GETFL) & O_NONBLOCK) && !(fcntl(ends[0], F_GETFL) & O_NONBLOCK), "O_NONBLOCK");
    CHECK(fcntl(quiet[0], F_GETFD) == FD_CLOEXEC && fcntl(ends[0], F_GETFD) == 0, "close-on-exec");
    unix_names(ends[0], NULL, NULL, "pair");
    unix_peer_is(ends[0], getpid(), "pair");
    unix_put(ends[0], "behind");
    for (size_t got = 0; got < sizeof data;) {
        ssize_t part = TRY(read(copy, back + got, sizeof data - got));
        CHECK(part > 0, "end of the stream");
        got += (size_t)part;
    }
    CHECK(!memcmp(back, data, sizeof data), "data in the stream");
    unix_got(ends[1], "behind", "after the data");
    unix_got(ends[0], "onetwo", "other direction");
    unix_empty(ends[0], "ends[0]");
    unix_empty(quiet[0], "quiet");
    unix_put(quiet[1], "x");
    unix_got(quiet[0], "x", "quiet");
    TRY(close(ends[1]));
    TRY(write(ends[0], "y", 1));
    TRY(close(copy));
    signal(SIGPIPE, SIG_IGN);
    CHECK(write(ends[0], "x", 1) == -1 && errno == EPIPE, "a reader is left");
}

/* Messages keep their borders, empty ones too; argument: of what type. */
static void messages(int type) {
    int ends[2];
    TRY(socketpair(AF_UNIX, type, 0, ends));
    probe_fill(data, sizeof data, 6);
    unix_put(ends[0], "first");
    CHECK(send(ends[0], "", 0, 0) == 0, "an empty one");
    CHECK(send(ends[0], data, sizeof data, 0) == sizeof data, "a long one");
    unix_put(ends[0], "last");
    unix_put(ends[1], "to and fro");
    int queued = unix_option(ends[0], SO_SNDBUF), outgoing = 0, after = 0;
    TRY(ioctl(ends[0], SIOCOUTQ, &outgoing));
    probe_ready();
    probe_wait();
    CHECK(unix_option(ends[0], SO_SNDBUF) == queued, "size of the buffer");
    TRY(ioctl(ends[0], SIOCOUTQ, &after));
    CHECK(after == outgoing, "%d bytes of memory are on their way, were %d", after, outgoing);
    unix_got(ends[1], "first", "first");
    CHECK(recv(ends[1], back, 10, MSG_DONTWAIT) == 0, "the empty one");
    CHECK(recv(ends[1], back, sizeof back, MSG_DONTWAIT) == sizeof data && !memcmp(back, data, sizeof data), "the long one");
    unix_got(ends[1], "last", "last");
    unix_empty(ends[1], "after the last");
    unix_got(ends[0], "to and fro", "other direction");
    unix_put(ends[0], "more");
    unix_put(ends[0], "and more");
    unix_got(ends[1], "more", "after the resume");
    unix_got(ends[1], "and more", "after the resume");
    CHECK(unix_option(ends[0], SO_TYPE) == type, "type");
    unix_peer_is(ends[1], getpid(), "pair");
}

/* Each half that can be shut down, with data before. */
static void halves(void) {
    static const int types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
    int ends[3][3][2];
    for (int type = 0; type < 3; type++)
        for (int how = SHUT_RD; how <= SHUT_RDWR; how++) {
            int *pair = ends[type][how];
            TRY(socketpair(AF_UNIX, types[type], 0, pair));
            unix_put(pair[0], "there");
            unix_put(pair[1], "back");
            TRY(shutdown(pair[0], how));
        }
    probe_ready();
    probe_wait();
    signal(SIGPIPE, SIG_IGN);
    for (int type = 0; type < 3; type++)
        for (int how = SHUT_RD; how <= SHUT_RDWR; how++) {
            int *pair = ends[type][how], mutual = types[type] != SOCK_DGRAM;
            int reads = how == SHUT_WR, writes = how == SHUT_RD;
            unix_got(pair[0], "back", "before the end");
            unix_got(pair[1], "there", "before the end");
            if (reads || types[type] == SOCK_DGRAM) unix_empty(pair[0], "it can still be read");
            else unix_ended(pair[0], "shut down for reading");
            CHECK((send(pair[0], "x", 1, MSG_NOSIGNAL) == 1) == writes, "writing, type %d how %d: %s", type, how, strerror(errno));
            if (writes) unix_got(pair[1], "x", "the other side");
            else if (mutual) unix_ended(pair[1], "the other side, for reading");
            if (types[type] == SOCK_DGRAM) {
                CHECK((send(pair[1], "y", 1, MSG_NOSIGNAL) == 1) == reads, "datagrams to one that is shut down, how %d", how);
            } else {
                CHECK((send(pair[1], "y", 1, MSG_NOSIGNAL) == 1) == reads, "the other side, for writing");
            }
        }
}

/* The other side is closed, with data left or unread. */
static void closed(void) {
    int left[2], reset[2], packets[2], datagrams[2], tail[2];
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, left));
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, reset));
    TRY(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
    TRY(socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams));
    TRY(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, tail));
    unix_put(left[1], "last words");
    unix_put(reset[1], "before");
    unix_put(reset[0], "never read");
    unix_put(packets[1], "one");
    unix_put(packets[1], "two");
    unix_put(datagrams[1], "datagram");
    unix_put(tail[0], "never read");
    TRY(close(left[1]));
    TRY(close(reset[1]));
    TRY(close(packets[1]));
    TRY(close(datagrams[1]));
    TRY(close(tail[1]));
    struct pollfd now = {.fd = reset[0], .events = POLLIN};
    CHECK(poll(&now, 1, 0) == 1 && (now.revents & POLLERR), "no error waits");
    probe_ready();
    probe_wait();
    signal(SIGPIPE, SIG_IGN);
    char byte;
    unix_got(left[0], "last words", "left");
    unix_ended(left[0], "left");
    CHECK(write(left[0], "x", 1) == -1 && errno == EPIPE, "writing to nobody");
    now.revents = 0;
    CHECK(poll(&now, 1, 0) == 1 && (now.revents & POLLERR) && (now.revents & POLLHUP), "the error is gone");
    unix_got(reset[0], "before", "reset");
    CHECK(read(reset[0], &byte, 1) == -1 && errno == ECONNRESET, "reset: %s", strerror(errno));
    CHECK(read(reset[0], &byte, 1) == 0, "the error is told twice");
    unix_got(packets[0], "one", "packets");
    unix_got(packets[0], "two", "packets");
    unix_ended(packets[0], "packets");
    CHECK(unix_option(tail[0], SO_ERROR) == ECONNRESET && unix_option(tail[0], SO_ERROR) == 0, "error of packets");
    unix_ended(tail[0], "packets reset");
    unix_got(datagrams[0], "datagram", "datagrams");
    unix_empty(datagrams[0], "datagrams");
    CHECK(send(datagrams[0], "x", 1, 0) == -1 && errno == ECONNREFUSED, "a datagram to nobody: %s", strerror(errno));
    CHECK(send(datagrams[0], "x", 1, 0) == -1 && errno == ENOTCONN, "and no longer connected: %s", strerror(errno));
    unix_peer_is(left[0], getpid(), "left");
}

/* Filled to the brim: whoever sends has to wait until something is read. */
static void full(int type) {
    int ends[2], small[2];
    TRY(socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, ends));
    TRY(socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, small));
    unix_set(small[0], SO_SNDBUF, 5000);
    memset(data, 'f', sizeof data);
    long sent[2] = {0, 0}, count[2] = {0, 0};
    int *all[2] = {ends, small};
    for (int i = 0; i < 2; i++)
        for (;;) {
            ssize_t part = send(all[i][0], data, 1000, 0);
            if (part < 0) break;
            sent[i] += part;
            count[i]++;
        }
    CHECK(errno == EAGAIN && count[0] > count[1] && count[1] > 0, "full: %ld and %ld, %s", count[0], count[1], strerror(errno));
    unix_set(ends[0], SO_SNDBUF, 3000);
    int size = unix_option(ends[0], SO_SNDBUF);
    probe_ready();
    probe_wait();
    CHECK(unix_option(ends[0], SO_SNDBUF) == size, "size of the buffer");
    if (type != SOCK_STREAM) CHECK(send(small[0], data, 1000, 0) == -1 && errno == EAGAIN, "the small one is not full");
    CHECK(send(ends[0], data, 1000, 0) == -1 && errno == EAGAIN, "it is not full");
    for (int i = 0; i < 2; i++) {
        long got = 0, times = 0;
        for (ssize_t part; (part = recv(all[i][1], back, sizeof back, 0)) > 0; times++) got += part;
        CHECK(got == sent[i] && (type == SOCK_STREAM || times == count[i]), "%ld bytes in %ld messages, were %ld in %ld", got, times, sent[i], count[i]);
        CHECK(send(all[i][0], data, 1000, 0) == 1000, "it is still full");
    }
}

/* Options, and looks that do not begin at the first byte. */
static void options(void) {
    int ends[2], datagrams[2];
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    TRY(socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams));
    struct timeval in = {7, 200000}, out = {0, 500000};
    struct linger linger = {1, 20};
    TRY(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &in, sizeof in));
    TRY(setsockopt(ends[1], SOL_SOCKET, SO_SNDTIMEO, &out, sizeof out));
    TRY(setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    static const int numbers[][2] = {{SO_KEEPALIVE, 1}, {SO_REUSEADDR, 1}, {SO_BROADCAST, 1}, {SO_OOBINLINE, 1}, {SO_PRIORITY, 5}, {SO_PASSCRED, 1}, {SO_RCVLOWAT, 10}, {SO_TIMESTAMP, 1}, {SO_DONTROUTE, 1}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) unix_set(ends[0], numbers[i][0], numbers[i][1]);
    unix_set(ends[1], SO_SNDBUF, 30000);
    unix_set(ends[1], SO_RCVBUF, 20000);
    if (geteuid() == 0) unix_set(ends[1], SO_MARK, 77);
    int pidfd = setsockopt(datagrams[0], SOL_SOCKET, 76, &(int){1}, sizeof(int)) == 0;
    unix_set(datagrams[1], SO_PASSCRED, 1);
    /* The kernel counts in ticks. */
    socklen_t length = sizeof in;
    TRY(getsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &in, &length));
    TRY(getsockopt(ends[1], SOL_SOCKET, SO_SNDTIMEO, &out, &length));
    CHECK(in.tv_sec == 7 && out.tv_usec > 400000, "times");
    int sizes[2] = {unix_option(ends[1], SO_SNDBUF), unix_option(ends[1], SO_RCVBUF)};
    unix_put(ends[0], "abcdef");
    unix_set(ends[1], SO_PEEK_OFF, 2);
    char byte;
    CHECK(recv(ends[1], &byte, 1, MSG_PEEK) == 1 && byte == 'c', "a look");
    probe_ready();
    probe_wait();
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        CHECK(unix_option(ends[0], numbers[i][0]) == numbers[i][1], "option %d is %d", numbers[i][0], unix_option(ends[0], numbers[i][0]));
    CHECK(unix_option(ends[1], SO_SNDBUF) == sizes[0] && unix_option(ends[1], SO_RCVBUF) == sizes[1], "sizes of buffers");
    struct timeval time;
    struct linger after;
    length = sizeof time;
    TRY(getsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &time, &length));
    CHECK(!memcmp(&time, &in, sizeof in), "time to receive");
    TRY(getsockopt(ends[1], SOL_SOCKET, SO_SNDTIMEO, &time, &length));
    CHECK(!memcmp(&time, &out, sizeof out), "time to send");
    length = sizeof after;
    TRY(getsockopt(ends[0], SOL_SOCKET, SO_LINGER, &after, &length));
    CHECK(!memcmp(&after, &linger, sizeof linger), "linger");
    if (geteuid() == 0) CHECK(unix_option(ends[1], SO_MARK) == 77, "mark");
    if (pidfd) CHECK(unix_option(datagrams[0], 76) == 1, "pass pidfds");
    CHECK(unix_option(datagrams[1], SO_PASSCRED) == 1 && unix_option(ends[1], SO_PASSCRED) == 0, "pass credentials");
    CHECK(unix_option(ends[1], SO_PEEK_OFF) == 3, "where looks begin: %d", unix_option(ends[1], SO_PEEK_OFF));
    CHECK(recv(ends[1], &byte, 1, MSG_PEEK) == 1 && byte == 'd', "the next look");
    unix_got(ends[1], "abcdef", "data");
    unix_names(ends[0], NULL, NULL, "no name came to it");
}

/* A parent and its children, each with its end of a pair that one of them made; and some of which only the numbers of who made them are left. */
static void family(void) {
    int ours[2], theirs[2], gone[2];
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, ours));
    tree_begin();
    int carrier[2];
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, carrier));
    pid_t maker = tree_fork();
    if (maker == 0) {
        TRY(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, gone));
        unix_send_files(carrier[1], "x", gone, 2, NULL);
        _exit(0);
    }
    tree_ends(maker, 0);
    CHECK(unix_get_files(carrier[0], 10, "x", gone, NULL, "from the one who ends") == 2, "two ends");
    unix_peer_is(gone[0], maker, "made by one who ended");
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        TRY(close(ours[0]));
        TRY(close(gone[0]));
        TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, theirs));
        unix_send_files(carrier[1], "y", &theirs[0], 1, NULL);
        TRY(close(theirs[0]));
        TRY(close(carrier[0]));
        unix_put(ours[1], "from the child");
        unix_put(theirs[1], "second");
        tree_set_up();
        tree_wait(pid, parent);
        unix_peer_is(ours[1], parent, "the parent's pair");
        unix_peer_is(theirs[1], pid, "the child's pair");
        unix_got(ours[1], "from the parent", "child");
        char text[20];
        CHECK(recv(theirs[1], text, sizeof text, 0) == 2, "waiting for the parent");
        unix_put(gone[1], "done");
        _exit(0);
    }
    TRY(close(ours[1]));
    TRY(close(gone[1]));
    TRY(close(carrier[1]));
    struct pollfd wait = {.fd = carrier[0], .events = POLLIN};
    CHECK(poll(&wait, 1, 10000) == 1, "waiting for the child");
    CHECK(unix_get_files(carrier[0], 10, "y", theirs, NULL, "from the child") == 1, "one end");
    unix_put(ours[0], "from the parent");
    tree_ready(1);
    probe_wait();
    unix_peer_is(ours[0], getpid(), "the parent's pair");
    unix_peer_is(theirs[0], child, "the child's pair");
    unix_peer_is(gone[0], maker, "made by one who ended");
    unix_got(ours[0], "from the child", "parent");
    unix_got(theirs[0], "second", "parent");
    unix_put(theirs[0], "go");
    tree_ends(child, 0);
    unix_got(gone[0], "done", "last");
    unix_ended(ours[0], "the child's end");
}

/* Whose wait in receiving and sending is interrupted and goes on. */
static void *receives(void *end) {
    static char text[10];
    ssize_t length = recv(*(int *)end, text, sizeof text, 0);
    return length == 5 && !memcmp(text, "hello", 5) ? text : NULL;
}

static void *sends(void *end) {
    return send(*(int *)end, data, 30000, 0) == 30000 ? data : NULL;
}

static void blocked(void) {
    int ends[2], filled[2];
    TRY(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends));
    TRY(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, filled));
    long count = 0, got = 0;
    while (send(filled[0], data, 30000, MSG_DONTWAIT) == 30000) count++;
    CHECK(errno == EAGAIN, "filling it: %s", strerror(errno));
    pthread_t receiver, sender;
    PTRY(pthread_create(&receiver, NULL, receives, &ends[0]));
    PTRY(pthread_create(&sender, NULL, sends, &filled[0]));
    usleep(50000);
    probe_ready();
    probe_wait();
    unix_put(ends[1], "hello");
    void *result;
    PTRY(pthread_join(receiver, &result));
    CHECK(result, "recv");
    while (recv(filled[1], back, sizeof back, 0) == 30000 && ++got <= count) { }
    CHECK(got == count + 1, "%ld messages, %ld were sent", got, count);
    PTRY(pthread_join(sender, &result));
    CHECK(result, "send");
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "stream";
    if (!strcmp(what, "stream")) stream();
    else if (!strcmp(what, "packets")) messages(SOCK_SEQPACKET);
    else if (!strcmp(what, "datagrams")) messages(SOCK_DGRAM);
    else if (!strcmp(what, "halves")) halves();
    else if (!strcmp(what, "closed")) closed();
    else if (!strcmp(what, "full")) full(argc > 3 ? SOCK_DGRAM : SOCK_STREAM);
    else if (!strcmp(what, "options")) options();
    else if (!strcmp(what, "family")) family();
    else if (!strcmp(what, "blocked")) blocked();
    else fail("no such variant");
    return probe_pass();
}
