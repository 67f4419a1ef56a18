/* POSIX message queues of one process and of a tree. argument: what. Names are taken away again at the end. */
#include "tree.h"
#include <mqueue.h>

static char name[64];

static mqd_t make(const char *kind, long most, long size, int flags, mode_t mode) {
    snprintf(name, sizeof name, "/rewake-test-%s-%d", kind, (int)getpid());
    struct mq_attr attributes = {.mq_maxmsg = most, .mq_msgsize = size};
    mqd_t queue = mq_open(name, flags | O_CREAT | O_EXCL, mode, &attributes);
    CHECK(queue != -1, "mq_open: %s", strerror(errno));
    return queue;
}

static void send(mqd_t queue, unsigned priority, const char *text) { TRY(mq_send(queue, text, strlen(text), priority)); }

static void receive(mqd_t queue, unsigned priority, const char *text) {
    char buffer[128];
    unsigned found;
    ssize_t length = TRY(mq_receive(queue, buffer, sizeof buffer, &found));
    CHECK(found == priority && (size_t)length == strlen(text) && !memcmp(buffer, text, (size_t)length),
          "priority %u, %zd bytes, expected %u, %s", found, length, priority, text);
}

static struct mq_attr state(mqd_t queue) {
    struct mq_attr attributes;
    TRY(mq_getattr(queue, &attributes));
    return attributes;
}

/* Messages with their priorities in order; attributes, flags, permissions; several descriptions, with a name or without. */
static void messages(int unlinked) {
    mqd_t queue = make("queue", 8, 100, O_RDWR, 0620);
    mqd_t reads = TRY(mq_open(name, O_RDONLY | O_NONBLOCK)), writes = TRY(mq_open(name, O_WRONLY));
    int again = TRY(fcntl(writes, F_DUPFD, 50));
    if (unlinked) TRY(mq_unlink(name));
    send(queue, 1, "one");
    send(queue, 32767, "the highest");
    send(queue, 0, "");
    send(writes, 1, "one again");
    send(writes, 7, "seven");
    struct stat before, after;
    TRY(fstat(queue, &before));
    probe_ready();
    probe_wait();
    struct mq_attr found = state(queue);
    CHECK(found.mq_maxmsg == 8 && found.mq_msgsize == 100 && found.mq_curmsgs == 5 && found.mq_flags == 0,
          "most %ld, size %ld, %ld messages, flags %lo", found.mq_maxmsg, found.mq_msgsize, found.mq_curmsgs, found.mq_flags);
    TRY(fstat(queue, &after));
    CHECK(before.st_mode == after.st_mode && before.st_uid == after.st_uid && before.st_gid == after.st_gid, "mode %o, owner %u", after.st_mode, after.st_uid);
    CHECK((after.st_nlink == 0) == unlinked, "%lu names", (unsigned long)after.st_nlink);
    CHECK(fcntl(writes, F_GETFD) == FD_CLOEXEC && fcntl(again, F_GETFD) == 0, "close on exec");
    CHECK(state(reads).mq_flags == O_NONBLOCK && state(writes).mq_flags == 0, "flags of the descriptions");
    CHECK(mq_send(reads, "x", 1, 0) == -1 && errno == EBADF, "the reading one writes");
    struct mq_attr block = {.mq_flags = O_NONBLOCK};
    TRY(mq_setattr(again, &block, NULL));
    CHECK(state(writes).mq_flags == O_NONBLOCK && state(queue).mq_flags == 0, "a duplicate is another description");
    receive(reads, 32767, "the highest");
    receive(queue, 7, "seven");
    receive(reads, 1, "one");
    send(again, 1, "late");
    receive(queue, 1, "one again");
    receive(queue, 1, "late");
    receive(queue, 0, "");
    char rest[100];
    CHECK(mq_receive(reads, rest, sizeof rest, NULL) == -1 && errno == EAGAIN, "more came");
    if (!unlinked) {
        mqd_t same = TRY(mq_open(name, O_WRONLY));
        send(same, 2, "by name");
        receive(reads, 2, "by name");
        TRY(mq_unlink(name));
    }
}

/* A child waits for a message, another, by the time of day, for room. */
static void waiters(void) {
    mqd_t in = make("in", 4, 64, O_RDWR, 0600);
    TRY(mq_unlink(name));
    mqd_t out = make("out", 2, 64, O_RDWR, 0600);
    send(out, 3, "a");
    send(out, 5, "b");
    tree_begin();
    pid_t all[2];
    for (int i = 0; i < 2; i++) {
        all[i] = tree_fork();
        if (all[i]) continue;
        tree_set_up();
        if (i == 0) {
            receive(in, 9, "at last");
        } else {
            struct timespec limit;
            clock_gettime(CLOCK_REALTIME, &limit);
            limit.tv_sec += 600;
            TRY(mq_timedsend(out, "late", 4, 9, &limit));
        }
        CHECK(probe_resumed(), "it waited for nothing");
        _exit(0);
    }
    tree_ready(2);
    probe_wait();
    CHECK(state(in).mq_curmsgs == 0 && state(out).mq_curmsgs == 2, "messages");
    send(in, 9, "at last");
    tree_ends(all[0], 0);
    receive(out, 5, "b");
    tree_ends(all[1], 0);
    receive(out, 9, "late");
    receive(out, 3, "a");
    TRY(mq_unlink(name));
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "";
    if (!strcmp(what, "messages")) messages(0);
    else if (!strcmp(what, "unlinked")) messages(1);
    else if (!strcmp(what, "waiters")) waiters();
    else fail("no such test");
    return probe_pass();
}
