/* Under seccomp (argument: which), where nearly every system call kills.
   shared: filters that all threads have (TSYNC); more: and one more of the second thread; own: each thread has another one;
   strict: the second thread may read, write and exit, nothing else; dropped: installed with rights that were then given up. */
#include "probe.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

#ifndef SECCOMP_RET_KILL_PROCESS
#define SECCOMP_RET_KILL_PROCESS 0x80000000U
#endif

static volatile int stop, seen, second_done;
static volatile pid_t second_tid;
static int ends[2];
static const char *kind;

static int is(const char *name) { return !strcmp(kind, name); }

/* errno by a filter, or 0 when the call is made. */
static int answer(long call) { return syscall(call, 0, 0, 0) == -1 ? errno : 0; }

static int install(struct sock_filter *code, unsigned short length, unsigned flags) {
    struct sock_fprog program = {length, code};
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

#define LOAD BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))
#define ALLOW(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define REFUSE(call, error) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))

/* Only this call gets this error. */
static int refuse(long call, int error, unsigned flags) {
    struct sock_filter code[] = {LOAD, REFUSE((unsigned)call, (unsigned)error), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    return install(code, sizeof code / sizeof *code, flags);
}

/* All but these kill. */
static int kill_nearly_all(unsigned flags) {
    struct sock_filter code[] = {
        LOAD, ALLOW(SYS_read), ALLOW(SYS_write), ALLOW(SYS_newfstatat), ALLOW(SYS_stat), ALLOW(SYS_getpid), ALLOW(SYS_clock_gettime),
        ALLOW(SYS_seccomp), ALLOW(SYS_getppid), ALLOW(SYS_getuid), ALLOW(SYS_getgid), ALLOW(SYS_exit_group),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    return install(code, sizeof code / sizeof *code, flags);
}

static void *second(void *nothing) {
    second_tid = probe_gettid();
    if (is("strict")) {
        TRY(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0));
        seen = 1;
        char byte;
        /* Blocked in a call that it may make. */
        if (syscall(SYS_read, ends[0], &byte, 1) == 1) second_done = 1;
        syscall(SYS_exit, 0);
    }
    if (is("own")) {
        TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        TRY(refuse(SYS_getuid, 72, 0));
    }
    seen = 1;
    while (seen != 2) { }
    if (is("more")) CHECK(refuse(SYS_getuid, 71, 0) == 0, "second thread's filter: %s", strerror(errno));
    seen = 3;
    while (!stop) { }
    if (is("shared") || is("more")) CHECK(answer(SYS_getppid) == 70 && answer(SYS_getuid) == (is("more") ? 71 : 0), "filters of the second thread: %d %d", answer(SYS_getppid), answer(SYS_getuid));
    if (is("own")) CHECK(answer(SYS_getuid) == 72 && answer(SYS_getgid) == 0, "filters of the second thread: %d %d", answer(SYS_getuid), answer(SYS_getgid));
    second_done = 1;
    while (stop != 2) { }
    if (is("shared")) CHECK(answer(SYS_getgid) == 74, "the second thread does not take part in what comes: %d", answer(SYS_getgid));
    second_done = 2;
    for (;;) { }
    return nothing;
}

static int mode_of(pid_t tid) {
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
    int fd = TRY(open(path, O_RDONLY));
    ssize_t length = TRY(read(fd, text, sizeof text - 1));
    TRY(close(fd));
    text[length] = 0;
    char *line = strstr(text, "Seccomp:\t");
    return line ? atoi(line + 9) : -1;
}

static void set_up(void) {
    if (is("shared") || is("more")) {
        TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        CHECK(refuse(SYS_getppid, 70, SECCOMP_FILTER_FLAG_TSYNC) == 0, "filter of all: %s", strerror(errno));
        CHECK(kill_nearly_all(SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_LOG) == 0, "filter of all: %s", strerror(errno));
    }
    if (is("own")) {
        TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        TRY(refuse(SYS_getgid, 73, 0));
        TRY(kill_nearly_all(0));
    }
    if (is("dropped")) {
        if (refuse(SYS_getppid, 70, 0) == -1) skip("installing filters without no_new_privs is not permitted here");
        /* The thread alone, and the flag file must be found. */
        if (syscall(SYS_setresuid, 65534, 65534, 65534) == -1) skip("becoming another user is not permitted here");
        if (access(probe_go, F_OK) == -1 && errno == EACCES) skip("user 65534 cannot see the folder of the test");
    }
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    kind = argc > 2 ? argv[2] : "shared";
    TRY(pipe(ends));
    pthread_t thread;
    PTRY(pthread_create(&thread, NULL, second, NULL));
    while (seen != 1) { }
    set_up();
    if (!is("strict")) {
        seen = 2;
        while (seen != 3) { }
    } else {
        CHECK(mode_of(second_tid) == 1 && mode_of(probe_tid) == 0, "modes are %d and %d", mode_of(second_tid), mode_of(probe_tid));
    }
    probe_ready();
    probe_wait();
    if (is("strict")) {
        CHECK(mode_of(second_tid) == 1 && mode_of(probe_tid) == 0, "modes are %d and %d", mode_of(second_tid), mode_of(probe_tid));
        CHECK(!second_done && write(ends[1], "x", 1) == 1, "write");
        while (!second_done) { }
        PTRY(pthread_join(thread, NULL));
        return probe_pass();
    }
    if (is("shared") || is("more")) CHECK(answer(SYS_getppid) == 70 && answer(SYS_getuid) == 0, "filters: %d %d", answer(SYS_getppid), answer(SYS_getuid));
    if (is("own")) CHECK(answer(SYS_getgid) == 73 && answer(SYS_getuid) == 0, "filters: %d %d", answer(SYS_getgid), answer(SYS_getuid));
    if (is("dropped")) {
        CHECK(answer(SYS_getppid) == 70 && getuid() == 65534, "filter: %d, user %d", answer(SYS_getppid), getuid());
        CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0, "no_new_privs");
    }
    stop = 1;
    while (second_done != 1) { }
    /* Only threads whose filters have one origin take part in what comes. */
    if (is("shared")) CHECK(refuse(SYS_getgid, 74, SECCOMP_FILTER_FLAG_TSYNC) == 0, "one more filter for all: %s", strerror(errno));
    if (is("shared")) CHECK(answer(SYS_getgid) == 74, "one more filter does nothing");
    stop = 2;
    while (second_done != 2) { }
    _exit(probe_pass());
}
