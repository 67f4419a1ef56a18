/* Pidfds, and files of /proc, of other processes of the tree. argument: which. */
#include "tree.h"
#include <dirent.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

static int open_pidfd(pid_t pid, unsigned flags) {
    int file = (int)syscall(SYS_pidfd_open, pid, flags);
    if (file == -1 && errno == EINVAL && (flags & PIDFD_THREAD)) skip("no pidfds of threads here (Linux 6.9)");
    CHECK(file >= 0, "pidfd_open of %d: %s", pid, strerror(errno));
    return file;
}

static int is_of(int file) {
    char name[64], line[128];
    snprintf(name, sizeof name, "/proc/self/fdinfo/%d", file);
    FILE *info = fopen(name, "r");
    CHECK(info, "%s: %s", name, strerror(errno));
    int pid = -2;
    while (fgets(line, sizeof line, info)) if (sscanf(line, "Pid: %d", &pid) == 1) break;
    fclose(info);
    return pid;
}

static int tells(int file) {
    struct pollfd polled = {.fd = file, .events = POLLIN};
    TRY(poll(&polled, 1, 0));
    return polled.revents;
}

static int asks(int file) { return (int)syscall(SYS_pidfd_send_signal, file, 0, NULL, 0); }

static pid_t ended(int status, int wait_too) {
    pid_t child = tree_fork();
    if (child == 0) {
        if (status & 0x7f) {
            prctl(PR_SET_DUMPABLE, 0);
            kill(getpid(), status & 0x7f);
            pause();
        }
        _exit(status >> 8);
    }
    siginfo_t info;
    TRY(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT));
    if (wait_too) tree_ends(child, status);
    return child;
}

struct info { uint64_t mask, cgroup; uint32_t ids[11]; int32_t exit_code; };
static int exit_told(int file) {
    struct info info = {.mask = 8};
    if (ioctl(file, 0xc040ff0b, &info) == -1 || !(info.mask & 8)) return -1;
    return info.exit_code;
}

static void *idle(void *argument) {
    *(volatile pid_t *)argument = probe_gettid();
    while (!probe_resumed()) usleep(2000);
    return NULL;
}

static volatile int *turn;
static void await(int number) {
    for (int i = 0; *turn < number; i++) { CHECK(i < 10000, "turn %d never comes", number); usleep(1000); }
}

/* To all kinds of processes. */
static void all_kinds(void) {
    turn = probe_map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
    int self = open_pidfd(getpid(), 0);
    pid_t zombie = ended(7 << 8, 0);
    int of_zombie = open_pidfd(zombie, 0);
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        int of_parent = open_pidfd(parent, 0), own = open_pidfd(pid, O_NONBLOCK);
        tree_set_up();
        tree_wait(pid, parent);
        CHECK(is_of(self) == parent && is_of(of_parent) == parent && is_of(own) == pid, "of whom the child's are: %d %d %d", is_of(self), is_of(of_parent), is_of(own));
        CHECK(fcntl(own, F_GETFL) & O_NONBLOCK, "flags");
        /* What was opened before the fork is in common: its flags, too. */
        TRY(fcntl(self, F_SETFL, O_NONBLOCK));
        CHECK(!(fcntl(of_parent, F_GETFL) & O_NONBLOCK), "flags of the other one");
        *turn = 1;
        await(2);
        _exit(4);
    }
    int of_child = open_pidfd(child, O_NONBLOCK);
    pid_t gone = ended(9 << 8, 0), killed = ended(SIGKILL, 0);
    int of_gone = open_pidfd(gone, 0), again = open_pidfd(gone, O_NONBLOCK), of_killed = open_pidfd(killed, 0);
    tree_ends(gone, 9 << 8);
    tree_ends(killed, SIGKILL);
    int told = exit_told(of_gone);
    struct stat first, second, third;
    TRY(fstat(of_gone, &first)), TRY(fstat(again, &second)), TRY(fstat(of_killed, &third));
    int places = first.st_ino != third.st_ino;
    tree_ready(1);
    probe_wait();
    CHECK(is_of(self) == getpid() && is_of(of_zombie) == zombie && is_of(of_child) == child, "of whom they are: %d %d %d", is_of(self), is_of(of_zombie), is_of(of_child));
    CHECK(is_of(of_gone) == -1 && is_of(again) == -1 && is_of(of_killed) == -1, "those of processes that are gone: %d", is_of(of_gone));
    CHECK(tells(self) == 0 && tells(of_child) == 0 && tells(of_zombie) == POLLIN, "what poll tells: %x %x %x", tells(self), tells(of_child), tells(of_zombie));
    CHECK(tells(of_gone) & POLLIN, "of one that is gone: %x", tells(of_gone));
    CHECK(asks(self) == 0 && asks(of_child) == 0, "signals to the living");
    CHECK(asks(of_gone) == -1 && errno == ESRCH, "a signal to the dead: %s", strerror(errno));
    CHECK(exit_told(of_gone) == told && (told == -1 || exit_told(of_killed) == SIGKILL), "how it ended: %d, %d", exit_told(of_gone), exit_told(of_killed));
    TRY(fstat(of_gone, &first)), TRY(fstat(again, &second)), TRY(fstat(of_killed, &third));
    CHECK(first.st_ino == second.st_ino && (first.st_ino != third.st_ino) == places, "which of them are of the same process");
    CHECK(fcntl(again, F_GETFL) & O_NONBLOCK && !(fcntl(of_gone, F_GETFL) & O_NONBLOCK), "flags");
    siginfo_t info = {0};
    CHECK(waitid(P_PIDFD, (id_t)of_gone, &info, WEXITED) == -1 && errno == ECHILD, "waiting for one that is gone");
    CHECK(waitid(P_PIDFD, (id_t)of_zombie, &info, WEXITED) == 0 && info.si_pid == zombie && info.si_status == 7, "waiting for a zombie");
    CHECK(is_of(of_zombie) == -1, "it is gone then");
    CHECK(waitid(P_PIDFD, (id_t)of_child, &info, WEXITED) == -1 && errno == EAGAIN, "waiting without blocking: %s", strerror(errno));
    await(1);
    CHECK(fcntl(self, F_GETFL) & O_NONBLOCK, "what the child did to what is in common");
    *turn = 2;
    struct pollfd polled = {.fd = of_child, .events = POLLIN};
    CHECK(poll(&polled, 1, 5000) == 1 && polled.revents & POLLIN, "the child's end is not told");
    CHECK(waitid(P_PIDFD, (id_t)of_child, &info, WEXITED) == 0 && info.si_pid == child && info.si_status == 4, "waiting for the child");
    tree_no_child();
}

/* Of threads: alive, in another process, the first one, and gone. */
static void of_threads(void) {
    volatile pid_t *ids = probe_map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
    pthread_t thread;
    PTRY(pthread_create(&thread, NULL, idle, (void *)&ids[0]));
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        PTRY(pthread_create(&thread, NULL, idle, (void *)&ids[1]));
        while (!ids[1]) usleep(1000);
        tree_set_up();
        tree_wait(pid, parent);
        PTRY(pthread_join(thread, NULL));
        while (!ids[2]) usleep(1000);
        _exit(0);
    }
    while (!ids[0] || !ids[1]) usleep(1000);
    int own = open_pidfd(ids[0], PIDFD_THREAD), theirs = open_pidfd(ids[1], PIDFD_THREAD | O_NONBLOCK), first = open_pidfd(getpid(), PIDFD_THREAD);
    tree_ready(1);
    pid_t tids[] = {ids[0], ids[1]};
    probe_wait();
    CHECK((is_of(own) == tids[0] || is_of(own) == -1) && is_of(first) == getpid(), "of which threads: %d %d", is_of(own), is_of(first));
    CHECK(is_of(theirs) == tids[1] || is_of(theirs) == -1, "of which thread of the child: %d", is_of(theirs));
    CHECK(fcntl(own, F_GETFL) & PIDFD_THREAD && fcntl(theirs, F_GETFL) & O_NONBLOCK, "flags");
    CHECK(asks(first) == 0, "a signal to the first thread");
    PTRY(pthread_join(thread, NULL));
    struct pollfd polled = {.fd = own, .events = POLLIN};
    CHECK(poll(&polled, 1, 5000) == 1, "the thread's end is not told");
    polled.fd = theirs;
    CHECK(poll(&polled, 1, 5000) == 1, "the end of the child's thread is not told");
    CHECK(tells(first) == 0, "the first thread's end is told");
    ids[2] = 1;
    tree_ends(child, 0);
}

/* In an epoll set, that of the parent and one of the child; under numbers that are another file's since. */
static void watched(void) {
    turn = probe_map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
    tree_begin();
    int epoll = TRY(epoll_create1(0));
    pid_t all[3];
    for (int i = 0; i < 3; i++) {
        all[i] = tree_fork();
        if (all[i]) continue;
        pid_t pid = getpid(), parent = getppid();
        if (i == 2) {
            int of_sibling = open_pidfd(all[0], 0);
            struct epoll_event event = {.events = EPOLLIN, .data.u64 = 77};
            TRY(epoll_ctl(epoll, EPOLL_CTL_ADD, of_sibling, &event));
        }
        tree_set_up();
        tree_wait(pid, parent);
        await(i + 1);
        _exit(i);
    }
    int pidfds[2];
    for (int i = 0; i < 2; i++) {
        pidfds[i] = open_pidfd(all[i], 0);
        struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = (uint64_t)i};
        TRY(epoll_ctl(epoll, EPOLL_CTL_ADD, pidfds[i], &event));
    }
    int moved = TRY(dup(pidfds[1]));
    TRY(dup2(TRY(open("/dev/null", O_RDONLY)), pidfds[1]));
    tree_ready(3);
    probe_wait();
    struct epoll_event got[4];
    CHECK(epoll_wait(epoll, got, 4, 0) == 0, "an end is told already");
    *turn = 1;
    tree_ends(all[0], 0);
    int sum = 0;
    for (int i = 0; i < 2;) {
        int count = epoll_wait(epoll, got, 4, 3000);
        CHECK(count > 0, "the end of the first one is told %d times", i);
        for (int j = 0; j < count; j++, i++) {
            sum += (int)got[j].data.u64;
            if (got[j].data.u64 == 77) *turn = 1;
        }
        if (i == 1 && got[0].data.u64 == 77) usleep(1000);
        if (sum == 77) break;
    }
    CHECK(sum == 77, "told of %d", sum);
    *turn = 2;
    tree_ends(all[1], 1 << 8);
    int found = 0;
    for (int i = 0; i < 10 && !found; i++) {
        int count = epoll_wait(epoll, got, 4, 1000);
        for (int j = 0; j < count; j++) found |= got[j].data.u64 == 1;
    }
    CHECK(found, "the end of the second one is not told");
    CHECK(is_of(moved) == -1, "it is gone");
    *turn = 3;
    tree_ends(all[2], 2 << 8);
}

static void reads(int file, const char *word, const char *what) {
    char text[4096];
    ssize_t length = pread(file, text, sizeof text - 1, 0);
    CHECK(length > 0, "%s: %s", what, strerror(errno));
    text[length] = 0;
    CHECK(strstr(text, word), "%s: %s is not in %s", what, word, text);
}

static int open_proc(pid_t pid, const char *name, int flags) {
    char path[128];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    int file = open(path, flags);
    CHECK(file >= 0, "%s: %s", path, strerror(errno));
    return file;
}

/* Files and folders of /proc, of the parent, the child, a thread of the child, one that has ended; also in common. */
static void proc_files(void) {
    volatile pid_t *ids = probe_map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
    turn = ids + 8;
    char own_name[32], name[64];
    TRY(prctl(PR_SET_NAME, "the parent"));
    int own_folder = open_proc(getpid(), ".", O_RDONLY | O_DIRECTORY), own_status = open_proc(getpid(), "status", O_RDONLY);
    char head[20];
    CHECK(read(own_status, head, 10) == 10, "read");
    pid_t zombie = ended(5 << 8, 0);
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        pthread_t thread;
        TRY(prctl(PR_SET_NAME, "the child"));
        PTRY(pthread_create(&thread, NULL, idle, (void *)&ids[0]));
        while (!ids[0]) usleep(1000);
        int comm = open_proc(parent, "comm", O_RDONLY), own = open_proc(pid, "status", O_RDONLY), descriptors = open_proc(pid, "fd", O_RDONLY | O_DIRECTORY);
        tree_set_up();
        tree_wait(pid, parent);
        reads(comm, "the parent", "the parent's name");
        snprintf(own_name, sizeof own_name, "Pid:\t%d\n", pid);
        reads(own, own_name, "the child's own status");
        CHECK(faccessat(descriptors, "1", F_OK, AT_SYMLINK_NOFOLLOW) == 0, "the child's descriptors");
        CHECK(lseek(own_status, 0, SEEK_CUR) == 10, "the position in common is %ld", (long)lseek(own_status, 0, SEEK_CUR));
        CHECK(lseek(own_status, 3, SEEK_SET) == 3, "lseek");
        *turn = 1;
        PTRY(pthread_join(thread, NULL));
        await(2);
        _exit(0);
    }
    while (!ids[0]) usleep(1000);
    snprintf(name, sizeof name, "task/%d/stat", ids[0]);
    int status = open_proc(child, "status", O_RDONLY), folder = open_proc(child, ".", O_RDONLY | O_DIRECTORY), path = open_proc(child, ".", O_PATH | O_DIRECTORY);
    int thread = open_proc(child, name, O_RDONLY), of_zombie = open_proc(zombie, "stat", O_RDONLY), maps = open_proc(child, "maps", O_RDONLY);
    tree_ready(1);
    probe_wait();
    reads(own_status, "the parent", "the own status");
    reads(status, "the child", "the child's status");
    snprintf(own_name, sizeof own_name, "%d (", zombie);
    reads(of_zombie, own_name, "stat of the zombie");
    snprintf(own_name, sizeof own_name, "%d (", ids[0]);
    char text[512];
    ssize_t length = pread(thread, text, sizeof text, 0);
    CHECK(length == -1 || !strncmp(text, own_name, strlen(own_name)), "stat of the thread");
    reads(maps, "r-xp", "mappings of the child");
    CHECK(faccessat(folder, "status", F_OK, 0) == 0 && faccessat(path, "status", F_OK, 0) == 0 && faccessat(own_folder, "comm", F_OK, 0) == 0, "folders");
    await(1);
    CHECK(lseek(own_status, 0, SEEK_CUR) == 3, "the position in common is %ld", (long)lseek(own_status, 0, SEEK_CUR));
    *turn = 2;
    tree_ends(child, 0);
    CHECK(pread(status, text, sizeof text, 0) == -1 && errno == ESRCH, "status of one that is gone");
    tree_ends(zombie, 5 << 8);
}

/* One that is of somebody outside. */
static void outside(void) {
    int file = open_pidfd(getppid(), 0);
    probe_ready();
    probe_wait();
    CHECK(asks(file) == 0 || errno == EPERM, "the parent is another one");
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "all";
    if (!strcmp(what, "all")) all_kinds();
    else if (!strcmp(what, "threads")) of_threads();
    else if (!strcmp(what, "watched")) watched();
    else if (!strcmp(what, "proc")) proc_files();
    else if (!strcmp(what, "outside")) outside();
    else fail("unknown variant %s", what);
    return probe_pass();
}
