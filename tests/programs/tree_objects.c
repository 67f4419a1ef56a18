/* Things of the kernel that several processes have in common: each sees what the other one does to them. argument: which. */
#include "tree.h"
#include <poll.h>
#include <sys/fanotify.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

static void is_ready(int file, int expected, const char *what) {
    struct pollfd polled = {.fd = file, .events = POLLIN};
    int got = TRY(poll(&polled, 1, expected ? 3000 : 0));
    CHECK(got == expected, "%s is %sready", what, got ? "" : "not ");
}

/* A page that parent and children share, to talk over without any descriptor. */
static volatile int *turn;
static void begin(void) {
    turn = probe_map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
    tree_begin();
}
static void await(int number) {
    for (int i = 0; *turn < number; i++) {
        CHECK(i < 10000, "turn %d never comes, it is %d", number, *turn);
        usleep(1000);
    }
}

/* Number 50 is another file in each of them. */
static void at_number(int file, int number) {
    TRY(dup3(file, number, 0));
    TRY(close(file));
}

static void eventfds(void) {
    begin();
    int counter = TRY(eventfd(5, EFD_NONBLOCK)), semaphore = TRY(eventfd(3, EFD_SEMAPHORE));
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        uint64_t add = 37, one = 0;
        at_number(counter, 60);
        tree_set_up();
        tree_wait(pid, parent);
        CHECK(write(60, &add, 8) == 8, "write");
        CHECK(read(semaphore, &one, 8) == 8 && one == 1, "the semaphore tells %lu", one);
        *turn = 1;
        await(2);
        CHECK(read(60, &one, 8) == -1 && errno == EAGAIN, "it was not read");
        _exit(0);
    }
    tree_ready(1);
    probe_wait();
    await(1);
    uint64_t sum = 0, left = 0;
    CHECK(read(counter, &sum, 8) == 8 && sum == 42, "the counter is %lu", sum);
    CHECK(read(semaphore, &left, 8) == 8 && left == 1 && read(semaphore, &left, 8) == 8, "semaphore");
    is_ready(semaphore, 0, "an empty semaphore");
    *turn = 2;
    tree_ends(child, 0);
}

/* An epoll instance in common, to which the child added files that only it has. */
static void epolls(void) {
    begin();
    int epoll = TRY(epoll_create1(0)), mine[2];
    TRY(pipe(mine));
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 1};
    at_number(mine[0], 50);
    TRY(epoll_ctl(epoll, EPOLL_CTL_ADD, 50, &event));
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        int own[2], more[2];
        TRY(pipe(own));
        TRY(pipe(more));
        /* The same number, another file. */
        at_number(own[0], 50);
        event.data.u64 = 2;
        TRY(epoll_ctl(epoll, EPOLL_CTL_ADD, 50, &event));
        at_number(more[0], 51);
        event.data.u64 = 3;
        TRY(epoll_ctl(epoll, EPOLL_CTL_ADD, 51, &event));
        tree_set_up();
        tree_wait(pid, parent);
        await(1);
        CHECK(write(own[1], "y", 1) == 1, "write");
        *turn = 2;
        await(3);
        CHECK(write(more[1], "z", 1) == 1, "write");
        *turn = 4;
        await(5);
        event.data.u64 = 9;
        TRY(epoll_ctl(epoll, EPOLL_CTL_MOD, 51, &event));
        TRY(epoll_ctl(epoll, EPOLL_CTL_DEL, 50, NULL));
        *turn = 6;
        await(7);
        _exit(0);
    }
    tree_ready(1);
    probe_wait();
    struct epoll_event got[8];
    char byte;
    CHECK(epoll_wait(epoll, got, 8, 0) == 0, "there is an event already");
    CHECK(write(mine[1], "x", 1) == 1, "write");
    CHECK(epoll_wait(epoll, got, 8, 2000) == 1 && got[0].data.u64 == 1, "the parent's own file");
    CHECK(read(50, &byte, 1) == 1 && byte == 'x', "what is in it");
    *turn = 1;
    await(2);
    CHECK(epoll_wait(epoll, got, 8, 2000) == 1 && got[0].data.u64 == 2, "the child's file of the same number: %lu", got[0].data.u64);
    *turn = 3;
    await(4);
    CHECK(epoll_wait(epoll, got, 8, 2000) == 2 && got[0].data.u64 + got[1].data.u64 == 5, "both files of the child");
    *turn = 5;
    await(6);
    CHECK(epoll_wait(epoll, got, 8, 2000) == 1 && got[0].data.u64 == 9, "one of them");
    TRY(epoll_ctl(epoll, EPOLL_CTL_DEL, 50, NULL));
    *turn = 7;
    tree_ends(child, 0);
}

/* Each reads its own signals through the same descriptor. */
static void signalfds(void) {
    begin();
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 2);
    TRY(sigprocmask(SIG_BLOCK, &set, NULL));
    int file = TRY(signalfd(-1, &set, SFD_NONBLOCK));
    struct signalfd_siginfo info;
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        union sigval value = {.sival_int = 77};
        TRY(sigqueue(pid, SIGRTMIN + 2, value));
        value.sival_int = 78;
        TRY(sigqueue(pid, SIGRTMIN + 2, value));
        tree_set_up();
        tree_wait(pid, parent);
        CHECK(read(file, &info, sizeof info) == sizeof info && (int)info.ssi_signo == SIGRTMIN + 2 && info.ssi_int == 77, "the child's signal");
        CHECK(read(file, &info, sizeof info) == sizeof info && info.ssi_int == 78, "the child's second signal");
        CHECK(read(file, &info, sizeof info) == -1 && errno == EAGAIN, "one signal more");
        TRY(kill(parent, SIGUSR1));
        _exit(0);
    }
    tree_ready(1);
    is_ready(file, 0, "the parent's signalfd");
    probe_wait();
    is_ready(file, 1, "the parent's signalfd");
    CHECK(read(file, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1 && (pid_t)info.ssi_pid == child, "signal %u of %u", info.ssi_signo, info.ssi_pid);
    tree_ends(child, 0);
}

/* Each waits by epoll for its own signals, as servers do that wake each other: nothing else tells of one. The second child's watch has a
 * number that leads elsewhere by now, and it waits by an instance that watches another one. */
static void watched_signals(void) {
    begin();
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGURG);
    TRY(sigprocmask(SIG_BLOCK, &set, NULL));
    pid_t all[3];
    for (int i = 0; i < 3; i++) {
        all[i] = tree_fork();
        if (all[i]) continue;
        pid_t pid = getpid(), parent = getppid();
        int epoll = TRY(epoll_create1(0)), outer = TRY(epoll_create1(0)), file = TRY(signalfd(-1, &set, SFD_NONBLOCK));
        struct epoll_event event = {.events = EPOLLIN | (i == 2 ? EPOLLONESHOT : 0), .data.u64 = 40};
        if (i == 1) {
            int other = TRY(fcntl(file, F_DUPFD, 40));
            TRY(epoll_ctl(epoll, EPOLL_CTL_ADD, other, &event));
            TRY(dup3(2, other, 0));
            event.data.u64 = 41;
            TRY(epoll_ctl(outer, EPOLL_CTL_ADD, epoll, &event));
        } else {
            TRY(epoll_ctl(epoll, EPOLL_CTL_ADD, file, &event));
            TRY(close(outer));
            outer = epoll;
        }
        tree_set_up();
        struct epoll_event got;
        int count;
        /* The signal comes long after the wait began. */
        do count = epoll_wait(outer, &got, 1, 20000); while (count == -1 && errno == EINTR);
        CHECK(count == 1 && got.data.u64 == (i == 1 ? 41 : 40), "child %d: %d events", i, count);
        struct signalfd_siginfo info;
        CHECK(read(file, &info, sizeof info) == sizeof info && info.ssi_signo == SIGURG && (pid_t)info.ssi_pid == parent, "signal");
        CHECK(probe_resumed() && getpid() == pid, "it was told before");
        _exit(0);
    }
    tree_ready(3);
    probe_wait();
    usleep(300000);
    for (int i = 0; i < 3; i++) CHECK(waitpid(all[i], NULL, WNOHANG) == 0, "child %d did not wait any more", i);
    double began = probe_now();
    for (int i = 0; i < 3; i++) TRY(kill(all[i], SIGURG));
    for (int i = 0; i < 3; i++) tree_ends(all[i], 0);
    CHECK(probe_now() - began < 10, "they were told after %.1f s", probe_now() - began);
}

static void timerfds(void) {
    begin();
    int file = TRY(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), past = TRY(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    struct itimerspec far = {.it_value = {.tv_sec = 1000}}, soon = {.it_value = {.tv_nsec = 1}};
    TRY(timerfd_settime(file, 0, &far, NULL));
    TRY(timerfd_settime(past, 0, &soon, NULL));
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        tree_set_up();
        tree_wait(pid, parent);
        struct itimerspec now;
        TRY(timerfd_gettime(file, &now));
        CHECK(now.it_value.tv_sec > 900 && now.it_value.tv_sec < 1000, "%ld s left", (long)now.it_value.tv_sec);
        TRY(timerfd_settime(file, 0, &soon, NULL));
        uint64_t ticks;
        CHECK(read(past, &ticks, 8) == 8 && ticks == 1, "ticks");
        *turn = 1;
        _exit(0);
    }
    tree_ready(1);
    probe_wait();
    await(1);
    uint64_t ticks;
    is_ready(file, 1, "the timer that the child set");
    CHECK(read(file, &ticks, 8) == 8 && ticks == 1, "ticks");
    CHECK(read(past, &ticks, 8) == -1 && errno == EAGAIN, "the expiration that the child has read");
    tree_ends(child, 0);
}

static void inotifies(void) {
    begin();
    TRY(mkdir("watched", 0755));
    int file = TRY(inotify_init1(IN_NONBLOCK));
    int folder = TRY(inotify_add_watch(file, "watched", IN_CREATE));
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        tree_set_up();
        tree_wait(pid, parent);
        TRY(close(TRY(open("watched/new", O_CREAT | O_RDWR, 0600))));
        TRY(inotify_rm_watch(file, folder));
        *turn = 1;
        _exit(0);
    }
    tree_ready(1);
    probe_wait();
    await(1);
    char bytes[4096] __attribute__((aligned(8)));
    ssize_t length = read(file, bytes, sizeof bytes);
    struct inotify_event *event = (void *)bytes;
    CHECK(length > 0 && event->wd == folder && event->mask == IN_CREATE && !strcmp(event->name, "new"), "the event");
    tree_ends(child, 0);
    TRY(unlink("watched/new"));
    TRY(rmdir("watched"));
}

/* A group in common: the child makes what the parent is told of, and marks something more. */
static void fanotifies(void) {
    begin();
    TRY(mkdir("marked", 0755));
    TRY(mkdir("more", 0755));
    int file = fanotify_init(FAN_REPORT_DFID_NAME | FAN_CLOEXEC | FAN_NONBLOCK, 0);
    if (file == -1 && errno == EPERM) skip("fanotify_init: %s", strerror(errno));
    CHECK(file != -1, "fanotify_init: %s", strerror(errno));
    TRY(fanotify_mark(file, FAN_MARK_ADD, FAN_CREATE | FAN_ONDIR, AT_FDCWD, "marked"));
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        tree_set_up();
        tree_wait(pid, parent);
        TRY(fanotify_mark(file, FAN_MARK_ADD, FAN_CREATE | FAN_ONDIR, AT_FDCWD, "more"));
        TRY(mkdir("marked/new", 0700));
        TRY(mkdir("more/new", 0700));
        *turn = 1;
        _exit(0);
    }
    tree_ready(1);
    probe_wait();
    await(1);
    char bytes[4096] __attribute__((aligned(8)));
    ssize_t length = read(file, bytes, sizeof bytes);
    struct fanotify_event_metadata *event = (void *)bytes;
    int events = 0;
    for (; FAN_EVENT_OK(event, length); event = FAN_EVENT_NEXT(event, length), events++)
        CHECK(event->mask == (FAN_CREATE | FAN_ONDIR) && (event->pid == child || event->pid == 0), "event %#llx of %d", (unsigned long long)event->mask, event->pid);
    CHECK(events == 2, "%d events", events);
    CHECK(read(file, bytes, sizeof bytes) == -1 && errno == EAGAIN, "more events");
    tree_ends(child, 0);
    for (int i = 0; i < 2; i++) {
        TRY(rmdir(i ? "more/new" : "marked/new"));
        TRY(rmdir(i ? "more" : "marked"));
    }
}

static int other_pid(int file, short type, off_t start, off_t length) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    TRY(fcntl(file, F_GETLK, &lock));
    return lock.l_type == F_UNLCK ? 0 : lock.l_pid;
}

static void put_lock(int file, int command, short type, off_t start, off_t length) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    TRY(fcntl(file, command, &lock));
}

static int free_for(int file, int operation) { return flock(file, operation | LOCK_NB) == 0; }

/* Locks of all kinds, in common and each one's own. */
static void locks(void) {
    begin();
    int shared = TRY(open("shared", O_CREAT | O_RDWR, 0600)), ranges = TRY(open("ranges", O_CREAT | O_RDWR, 0600));
    int ofd = TRY(open("ofd", O_CREAT | O_RDWR, 0600));
    TRY(flock(shared, LOCK_EX));
    put_lock(ofd, F_OFD_SETLK, F_WRLCK, 5, 10);
    put_lock(ranges, F_SETLK, F_WRLCK, 0, 10);
    pid_t me = getpid(), child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        int own = TRY(open("own", O_CREAT | O_RDWR, 0600));
        TRY(flock(own, LOCK_SH));
        put_lock(ranges, F_SETLK, F_WRLCK, 10, 10);
        put_lock(ranges, F_SETLK, F_RDLCK, 100, 0);
        tree_set_up();
        tree_wait(pid, parent);
        CHECK(other_pid(ranges, F_WRLCK, 0, 15) == parent, "the parent's range");
        CHECK(other_pid(ranges, F_WRLCK, 10, 1) == 0, "its own range is somebody else's");
        await(1);
        TRY(close(shared));
        TRY(close(ofd));
        *turn = 2;
        await(3);
        _exit(0);
    }
    tree_ready(1);
    probe_wait();
    CHECK(other_pid(ranges, F_RDLCK, 10, 5) == child, "the child's range is that of %d", other_pid(ranges, F_RDLCK, 10, 5));
    CHECK(other_pid(ranges, F_WRLCK, 500, 5) == child && other_pid(ranges, F_RDLCK, 500, 5) == 0, "the child's range for reading");
    CHECK(other_pid(ranges, F_WRLCK, 20, 80) == 0, "more than the ranges");
    int again = TRY(open("shared", O_RDWR)), own = TRY(open("own", O_RDWR)), ofd_again = TRY(open("ofd", O_RDWR));
    CHECK(!free_for(again, LOCK_SH), "the shared lock is gone");
    CHECK(!free_for(own, LOCK_EX) && free_for(own, LOCK_SH), "the child's own lock");
    struct flock look = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 6};
    TRY(fcntl(ofd_again, F_OFD_GETLK, &look));
    CHECK(look.l_type == F_WRLCK && look.l_pid == -1 && look.l_start == 5 && look.l_len == 10, "the lock of the open file");
    *turn = 1;
    await(2);
    CHECK(!free_for(again, LOCK_SH), "the lock went with the child's descriptor");
    TRY(close(shared));
    CHECK(free_for(again, LOCK_EX), "the lock stays without its open file");
    look = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 6};
    TRY(fcntl(ofd_again, F_OFD_GETLK, &look));
    CHECK(look.l_type == F_WRLCK, "the lock went with the child's descriptor");
    *turn = 3;
    tree_ends(child, 0);
    CHECK(other_pid(ranges, F_WRLCK, 10, 100) == 0, "ranges of a process that has ended");
    CHECK(me == getpid(), "pid");
}

/* Each child waits for a lock that the parent has. */
static pid_t waits_for(const char *name, int kind, int number) {
    pid_t child = tree_fork();
    if (child) return child;
    int file = TRY(open(name, O_RDWR));
    tree_set_up();
    if (kind == 0) {
        int got;
        do got = flock(file, LOCK_EX); while (got == -1 && errno == EINTR);
        CHECK(got == 0, "flock: %s", strerror(errno));
    } else {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 3, .l_len = 4};
        CHECK(fcntl(file, kind == 1 ? F_SETLKW : F_OFD_SETLKW, &lock) == 0, "waiting for a lock: %s", strerror(errno));
    }
    CHECK(probe_resumed(), "it had the lock before");
    _exit(number);
}

static void lock_waiters(void) {
    begin();
    int flocked = TRY(open("a", O_CREAT | O_RDWR, 0600)), posix = TRY(open("b", O_CREAT | O_RDWR, 0600)), ofd = TRY(open("c", O_CREAT | O_RDWR, 0600));
    TRY(flock(flocked, LOCK_EX));
    TRY(fcntl(flocked, F_SETFD, FD_CLOEXEC));
    put_lock(posix, F_SETLK, F_WRLCK, 0, 0);
    put_lock(ofd, F_OFD_SETLK, F_WRLCK, 0, 0);
    pid_t all[] = {waits_for("a", 0, 1), waits_for("b", 1, 2), waits_for("c", 2, 3)};
    tree_ready(3);
    probe_wait();
    for (int i = 0; i < 3; i++) CHECK(waitpid(all[i], NULL, WNOHANG) == 0, "child %d did not wait any more", i);
    TRY(flock(flocked, LOCK_UN));
    tree_ends(all[0], 1 << 8);
    CHECK(other_pid(posix, F_WRLCK, 0, 0) == 0, "it had the lock already");
    put_lock(posix, F_SETLK, F_UNLCK, 0, 0);
    tree_ends(all[1], 2 << 8);
    CHECK(waitpid(all[2], NULL, WNOHANG) == 0, "the last one did not wait any more");
    put_lock(ofd, F_OFD_SETLK, F_UNLCK, 0, 0);
    tree_ends(all[2], 3 << 8);
}

static volatile sig_atomic_t told, told_fd;
static void tell(int signal, siginfo_t *info, void *context) {
    (void)context;
    told = signal;
    told_fd = info->si_fd;
}

/* The child has a lease: it is told when the parent opens the file. */
static void leases(void) {
    begin();
    TRY(close(TRY(open("leased", O_CREAT | O_RDWR, 0600))));
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        struct sigaction action = {.sa_sigaction = tell, .sa_flags = SA_SIGINFO};
        TRY(sigaction(SIGRTMIN + 1, &action, NULL));
        int file = TRY(open("leased", O_RDWR));
        TRY(fcntl(file, F_SETSIG, SIGRTMIN + 1));
        TRY(fcntl(file, F_SETLEASE, F_WRLCK));
        tree_set_up();
        tree_wait(pid, parent);
        CHECK(fcntl(file, F_GETLEASE) == F_WRLCK && !told, "the lease is gone");
        *turn = 1;
        for (int i = 0; !told; i++) { CHECK(i < 5000, "never told"); usleep(1000); }
        CHECK(told == SIGRTMIN + 1 && told_fd == file, "told by signal %d of descriptor %d", told, told_fd);
        TRY(fcntl(file, F_SETLEASE, F_UNLCK));
        _exit(0);
    }
    tree_ready(1);
    probe_wait();
    await(1);
    TRY(close(TRY(open("leased", O_RDONLY))));
    tree_ends(child, 0);
}

/* Signals about a pipe go to another member, and to a group of the tree. */
static void owners(void) {
    begin();
    int one[2], group[2];
    TRY(pipe(one));
    TRY(pipe(group));
    struct sigaction action = {.sa_sigaction = tell, .sa_flags = SA_SIGINFO};
    TRY(sigaction(SIGRTMIN + 4, &action, NULL));
    TRY(sigaction(SIGIO, &action, NULL));
    pid_t all[3];
    for (int i = 0; i < 3; i++) {
        all[i] = tree_fork();
        if (all[i]) {
            if (i) TRY(setpgid(all[i], all[1]));
            continue;
        }
        pid_t pid = getpid(), parent = getppid();
        tree_set_up();
        tree_wait(pid, parent);
        await(1);
        for (int j = 0; !told; j++) { CHECK(j < 5000, "child %d: never told", i); usleep(1000); }
        CHECK(told == (i ? SIGIO : SIGRTMIN + 4), "child %d: told by signal %d", i, told);
        CHECK(i || told_fd == one[0], "of descriptor %d", told_fd);
        _exit(0);
    }
    TRY(fcntl(one[0], F_SETOWN, all[0]));
    TRY(fcntl(one[0], F_SETSIG, SIGRTMIN + 4));
    TRY(fcntl(one[0], F_SETFL, O_ASYNC));
    TRY(fcntl(group[0], F_SETOWN, -all[1]));
    TRY(fcntl(group[0], F_SETFL, O_ASYNC));
    tree_ready(3);
    probe_wait();
    CHECK(fcntl(one[0], F_GETOWN) == all[0] && fcntl(group[0], F_GETOWN) == -all[1], "owners");
    *turn = 1;
    CHECK(write(one[1], "x", 1) == 1 && write(group[1], "x", 1) == 1, "write");
    for (int i = 0; i < 3; i++) tree_ends(all[i], 0);
    CHECK(!told, "the parent was told by %d", told);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "eventfds";
    static const struct { const char *name; void (*run)(void); } variants[] = {
        {"eventfds", eventfds}, {"epolls", epolls}, {"signalfds", signalfds}, {"watched-signals", watched_signals}, {"timerfds", timerfds}, {"inotifies", inotifies}, {"fanotifies", fanotifies},
        {"locks", locks}, {"lock-waiters", lock_waiters}, {"leases", leases}, {"owners", owners},
    };
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
        if (!strcmp(what, variants[i].name)) {
            variants[i].run();
            return probe_pass();
        }
    fail("unknown variant %s", what);
}
