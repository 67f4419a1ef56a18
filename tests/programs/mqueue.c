/* POSIX message queues of one process and of a tree. argument: what. Names are taken away again at the end. */
#include "tree.h"
#include <mqueue.h>
#include <semaphore.h>
#include <sys/socket.h>

static char name[64];

static mqd_t make(const char *kind, long most, long size, int flags, mode_t mode) {
    snprintf(name, sizeof name, "/rewake-test-%s-%d", kind, (int)getpid());
    struct mq_attr attributes = {.mq_maxmsg = most, .mq_msgsize = size};
    mqd_t queue = mq_open(name, flags | O_CREAT | O_EXCL, mode, &attributes);
    CHECK(queue != -1, "mq_open: %s", strerror(errno));
    return queue;
}

static void post(mqd_t queue, unsigned priority, const char *text) { TRY(mq_send(queue, text, strlen(text), priority)); }

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
    post(queue, 1, "one");
    post(queue, 32767, "the highest");
    post(queue, 0, "");
    post(writes, 1, "one again");
    post(writes, 7, "seven");
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
    post(again, 1, "late");
    receive(queue, 1, "one again");
    receive(queue, 1, "late");
    receive(queue, 0, "");
    char rest[100];
    CHECK(mq_receive(reads, rest, sizeof rest, NULL) == -1 && errno == EAGAIN, "more came");
    if (!unlinked) {
        mqd_t same = TRY(mq_open(name, O_WRONLY));
        post(same, 2, "by name");
        receive(reads, 2, "by name");
        TRY(mq_unlink(name));
    }
}

/* A child waits for a message, another, by the time of day, for room. */
static void waiters(void) {
    mqd_t in = make("in", 4, 64, O_RDWR, 0600);
    TRY(mq_unlink(name));
    mqd_t out = make("out", 2, 64, O_RDWR, 0600);
    post(out, 3, "a");
    post(out, 5, "b");
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
    post(in, 9, "at last");
    tree_ends(all[0], 0);
    receive(out, 5, "b");
    tree_ends(all[1], 0);
    receive(out, 9, "late");
    receive(out, 3, "a");
    TRY(mq_unlink(name));
}

static volatile int news, news_pid;
static void *volatile news_value;
static void hear(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    news++;
    CHECK(info->si_code == SI_MESGQ, "news of another kind: %d", info->si_code);
    news_value = info->si_value.sival_ptr;
    news_pid = info->si_pid;
}

/* What the queue's file says: who is told, by what. A close by who is told would take it back. */
static void told(mqd_t queue, int kind, int signal, pid_t pid) {
    char path[64], text[128] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", queue);
    pid_t reader = TRY(fork());
    if (reader == 0) {
        int file = TRY(open(path, O_RDONLY | O_NONBLOCK)), found[3] = {-1, -1, -1};
        CHECK(pread(file, text, sizeof text - 1, 0) > 0, "nothing to read");
        CHECK(sscanf(text, "QSIZE:%*s NOTIFY:%d SIGNO:%d NOTIFY_PID:%d", &found[0], &found[1], &found[2]) == 3, "it says %s", text);
        CHECK(found[0] == kind && found[1] == signal && found[2] == pid, "it says %s, expected %d, %d, %d", text, kind, signal, pid);
        _exit(0);
    }
    tree_ends(reader, 0);
}

static void ask(mqd_t queue, int kind, int signal, void *value) {
    struct sigevent event = {.sigev_notify = kind, .sigev_signo = signal, .sigev_value.sival_ptr = value};
    TRY(mq_notify(queue, &event));
}

static void *const VALUE = (void *)0x123456789abcdef0;
static char names[3][64];

/* News by signal: of an empty queue that can only be read, of one with messages; by none. */
static void notify(void) {
    struct sigaction action = {.sa_sigaction = hear, .sa_flags = SA_SIGINFO | SA_RESTART};
    TRY(sigaction(SIGRTMIN + 3, &action, NULL));
    TRY(sigaction(SIGUSR1, &action, NULL));
    mqd_t empty = make("empty", 4, 64, O_RDONLY, 0600);
    strcpy(names[0], name);
    mqd_t full = make("full", 4, 64, O_RDWR, 0600);
    strcpy(names[1], name);
    mqd_t none = make("none", 4, 64, O_RDWR, 0600);
    strcpy(names[2], name);
    post(full, 1, "one");
    post(full, 9, "");
    post(full, 1, "one again");
    post(full, 3, "three");
    ask(empty, SIGEV_SIGNAL, SIGRTMIN + 3, VALUE);
    ask(full, SIGEV_SIGNAL, SIGUSR1, (void *)7);
    ask(none, SIGEV_NONE, 0, NULL);
    told(empty, SIGEV_SIGNAL, SIGRTMIN + 3, getpid());
    told(full, SIGEV_SIGNAL, SIGUSR1, getpid());
    told(none, SIGEV_NONE, 0, getpid());
    probe_ready();
    probe_wait();
    CHECK(news == 0, "news of nothing");
    told(empty, SIGEV_SIGNAL, SIGRTMIN + 3, getpid());
    told(full, SIGEV_SIGNAL, SIGUSR1, getpid());
    told(none, SIGEV_NONE, 0, getpid());
    struct sigevent another = {.sigev_notify = SIGEV_NONE};
    CHECK(mq_notify(none, &another) == -1 && errno == EBUSY, "somebody else can be told");
    CHECK(state(empty).mq_curmsgs == 0 && state(none).mq_curmsgs == 0 && state(full).mq_curmsgs == 4, "messages");
    pid_t sender = TRY(fork());
    if (sender == 0) {
        post(TRY(mq_open(names[0], O_WRONLY)), 5, "news");
        _exit(0);
    }
    tree_ends(sender, 0);
    while (!news) usleep(1000);
    CHECK(news == 1 && news_value == VALUE && news_pid == sender, "told %d times, %p, of %d", news, news_value, news_pid);
    receive(empty, 5, "news");
    receive(full, 9, "");
    receive(full, 3, "three");
    receive(full, 1, "one");
    receive(full, 1, "one again");
    CHECK(news == 1, "told too soon");
    post(full, 2, "next");
    while (news < 2) usleep(1000);
    CHECK(news == 2 && news_value == (void *)7 && news_pid == getpid(), "told %d times, %p, of %d", news, news_value, news_pid);
    post(full, 2, "after");
    post(none, 1, "taken");
    TRY(mq_notify(none, &another));
    ask(empty, SIGEV_SIGNAL, SIGUSR1, NULL);
    CHECK(news == 2, "told again");
    for (int i = 0; i < 3; i++) TRY(mq_unlink(names[i]));
}

static sem_t *heard;
static void by_thread(union sigval value) {
    news_value = value.sival_ptr;
    news++;
    TRY(sem_post(heard));
}

/* News by a thread, as the C library makes it. argument: messages that are there already. */
static void notify_thread(int there) {
    heard = probe_map(sizeof *heard, PROT_READ | PROT_WRITE, MAP_SHARED);
    TRY(sem_init(heard, 0, 0));
    mqd_t queue = make("thread", 4, 64, O_RDWR | O_NONBLOCK, 0600);
    strcpy(names[0], name);
    for (int i = 0; i < there; i++) post(queue, (unsigned)i, "there");
    struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = by_thread, .sigev_value.sival_ptr = VALUE};
    TRY(mq_notify(queue, &event));
    told(queue, SIGEV_THREAD, 0, getpid());
    probe_ready();
    probe_wait();
    CHECK(news == 0, "news of nothing");
    told(queue, SIGEV_THREAD, 0, getpid());
    for (int i = there; i-- > 0;) receive(queue, (unsigned)i, "there");
    for (int i = 1; i <= 2; i++) {
        post(queue, 4, "news");
        TRY(sem_wait(heard));
        CHECK(news == i && news_value == VALUE, "told %d times, %p", news, news_value);
        receive(queue, 4, "news");
        if (i == 1) TRY(mq_notify(queue, &event));
    }
    TRY(mq_unlink(name));
}

/* Children that wait to be told, one of two threads; whoever asked has ended, of another one. */
static void notify_tree(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    TRY(sigprocmask(SIG_BLOCK, &set, NULL));
    mqd_t queues[2];
    for (int i = 0; i < 2; i++) {
        queues[i] = make(i ? "b" : "a", 4, 64, O_RDWR, 0600);
        strcpy(names[i], name);
    }
    tree_begin();
    pid_t all[2];
    for (int i = 0; i < 2; i++) {
        all[i] = tree_fork();
        if (all[i]) continue;
        ask(queues[i], SIGEV_SIGNAL, SIGRTMIN + 5, (char *)VALUE + i);
        tree_set_up();
        siginfo_t info;
        int got;
        do got = sigwaitinfo(&set, &info); while (got == -1 && errno == EINTR);
        CHECK(probe_resumed() && got == SIGRTMIN + 5 && info.si_code == SI_MESGQ && info.si_value.sival_ptr == (char *)VALUE + i,
              "child %d: signal %d, value %p", i, got, info.si_value.sival_ptr);
        CHECK(info.si_pid == getppid(), "news of %d", info.si_pid);
        receive(queues[i], 8, "news");
        _exit(i);
    }
    tree_ready(2);
    probe_wait();
    for (int i = 0; i < 2; i++) {
        told(queues[i], SIGEV_SIGNAL, SIGRTMIN + 5, all[i]);
        post(queues[i], 8, "news");
        tree_ends(all[i], i << 8);
        TRY(mq_unlink(names[i]));
    }
}

/* Many queues, most full, every second one watched by signal; whoever is told without cause fails. */
static void many(int count) {
    char texts[10][8];
    struct sigaction action = {.sa_sigaction = hear, .sa_flags = SA_SIGINFO | SA_RESTART};
    TRY(sigaction(SIGRTMIN + 3, &action, NULL));
    mqd_t all[64];
    CHECK(count <= 64, "too many");
    for (int i = 0; i < 10; i++) snprintf(texts[i], sizeof texts[i], "text %d", i);
    for (int i = 0; i < count; i++) {
        char kind[16];
        snprintf(kind, sizeof kind, "many%d", i);
        all[i] = make(kind, 10, 8, O_RDWR | O_NONBLOCK, 0600);
        TRY(mq_unlink(name));
        for (int j = 0; i % 3 && j < 10; j++) post(all[i], (unsigned)(j * 7 % 4), texts[j]);
        if (i % 2) ask(all[i], SIGEV_SIGNAL, SIGRTMIN + 3, (char *)VALUE + i);
    }
    probe_ready();
    probe_wait();
    CHECK(news == 0, "news of nothing");
    for (int i = 0; i < count; i++) {
        told(all[i], SIGEV_SIGNAL, i % 2 ? SIGRTMIN + 3 : 0, i % 2 ? getpid() : 0);
        CHECK(state(all[i]).mq_curmsgs == (i % 3 ? 10 : 0), "queue %d has %ld messages", i, state(all[i]).mq_curmsgs);
        for (int priority = 3; i % 3 && priority >= 0; priority--)
            for (int j = 0; j < 10; j++)
                if (j * 7 % 4 == priority) receive(all[i], (unsigned)priority, texts[j]);
        post(all[i], 1, "next");
        CHECK(news == (i + 1) / 2, "told %d times of %d", news, i);
        if (i % 2) CHECK(news_value == (char *)VALUE + i, "told of another queue than %d", i);
    }
}

/* To be told in a way that cannot be captured. argument: by which signal; 0: of a netlink socket that is not alone. */
static void notify_refused(int signal) {
    mqd_t queue = make("refused", 4, 64, O_RDWR, 0600);
    TRY(mq_unlink(name));
    if (signal) {
        ask(queue, SIGEV_SIGNAL, signal, VALUE);
    } else {
        struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = by_thread};
        TRY(mq_notify(queue, &event));
        TRY(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0));
    }
    probe_ready();
    probe_wait();
    told(queue, signal ? SIGEV_SIGNAL : SIGEV_THREAD, signal, getpid());
}

/* A signal of the same number waits: what comes with the next one is not known. */
static void notify_waits(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    TRY(sigprocmask(SIG_BLOCK, &set, NULL));
    mqd_t queue = make("waits", 4, 64, O_RDWR, 0600);
    TRY(mq_unlink(name));
    ask(queue, SIGEV_SIGNAL, SIGUSR1, VALUE);
    TRY(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 5}));
    probe_ready();
    probe_wait();
    told(queue, SIGEV_SIGNAL, SIGUSR1, getpid());
    siginfo_t info;
    CHECK(TRY(sigwaitinfo(&set, &info)) == SIGUSR1 && info.si_value.sival_int == 5, "another signal");
    post(queue, 1, "news");
    CHECK(TRY(sigwaitinfo(&set, &info)) == SIGUSR1 && info.si_value.sival_ptr == VALUE, "other news");
}

/* A descriptor on its way through a socket; with the one that it was made of, or without. */
static void in_flight(int kept) {
    mqd_t queue = make("flight", 4, 64, O_RDWR, 0600);
    TRY(mq_unlink(name));
    post(queue, 3, "three");
    post(queue, 5, "five");
    int pair[2];
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    union {
        char bytes[CMSG_SPACE(sizeof queue)];
        struct cmsghdr aligned;
    } control = {0};
    char byte = 'x';
    struct iovec part = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof queue), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(head), &queue, sizeof queue);
    TRY(sendmsg(pair[0], &message, 0));
    if (!kept) TRY(mq_close(queue));
    probe_ready();
    probe_wait();
    mqd_t received;
    TRY(recvmsg(pair[1], &message, 0));
    head = CMSG_FIRSTHDR(&message);
    CHECK(head && head->cmsg_type == SCM_RIGHTS, "no descriptor");
    memcpy(&received, CMSG_DATA(head), sizeof received);
    receive(received, 5, "five");
    if (kept) post(queue, 7, "seven");
    if (kept) receive(received, 7, "seven");
    receive(received, 3, "three");
    CHECK(state(received).mq_curmsgs == 0, "more messages");
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "";
    if (!strcmp(what, "messages")) messages(0);
    else if (!strcmp(what, "unlinked")) messages(1);
    else if (!strcmp(what, "waiters")) waiters();
    else if (!strcmp(what, "notify")) notify();
    else if (!strcmp(what, "notify-thread")) notify_thread(argc > 3 ? atoi(argv[3]) : 0);
    else if (!strcmp(what, "notify-tree")) notify_tree();
    else if (!strcmp(what, "in-flight")) in_flight(argc < 4);
    else if (!strcmp(what, "many")) many(argc > 3 ? atoi(argv[3]) : 8);
    else if (!strcmp(what, "notify-refused")) notify_refused(argc > 3 ? atoi(argv[3]) : 0);
    else if (!strcmp(what, "notify-waits")) notify_waits();
    else fail("no such test");
    return probe_pass();
}
