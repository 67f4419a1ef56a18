/* Who waits for children goes on to, and is told of each what he was not told yet, once. argument: how. */
#include "tree.h"
#include <poll.h>
#include <sys/resource.h>

static volatile int told;
static volatile int last_code, last_pid;
static void tell(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    told++;
    last_code = info->si_code;
    last_pid = info->si_pid;
}
static void listen(int flags) {
    struct sigaction action = {.sa_sigaction = tell, .sa_flags = SA_SIGINFO | flags};
    TRY(sigaction(SIGCHLD, &action, NULL));
}

/* A process that waits in a call of its own for its child. */
static pid_t waiter(int how) {
    pid_t pid = tree_fork();
    if (pid) return pid;
    pid_t child = tree_fork();
    if (child == 0) {
        if (how == 2) TRY(setpgid(0, 0));
        tree_set_up();
        while (!probe_resumed()) usleep(2000);
        usleep(100000);
        _exit(20 + how);
    }
    if (how == 2) (void)setpgid(child, child);
    tree_set_up();
    int status = -1;
    siginfo_t info = {0};
    struct rusage usage;
    memset(&usage, 0xee, sizeof usage);
    switch (how) {
    case 0: CHECK(wait4(child, &status, 0, &usage) == child, "wait4: %s", strerror(errno)); break;
    case 1: CHECK(waitpid(-1, &status, 0) == child, "waitpid: %s", strerror(errno)); break;
    case 2: CHECK(waitid(P_PGID, (id_t)child, &info, WEXITED) == 0, "waitid: %s", strerror(errno)); break;
    case 3: CHECK(waitid(P_ALL, 0, &info, WEXITED | WNOWAIT) == 0, "waitid: %s", strerror(errno)); break;
    case 4: CHECK(waitpid(0, &status, WUNTRACED) == child, "waitpid of the group: %s", strerror(errno)); break;
    }
    CHECK(probe_resumed(), "it was told before");
    if (how == 2 || how == 3) CHECK(info.si_pid == child && info.si_status == 20 + how && info.si_code == CLD_EXITED, "told of %d, %d", info.si_pid, info.si_status);
    else CHECK(status == (20 + how) << 8, "told %#x", status);
    if (how == 0) CHECK(usage.ru_utime.tv_sec >= 0 && usage.ru_utime.tv_sec < 100 && usage.ru_maxrss > 0, "usage");
    if (how == 3) tree_ends(child, 23 << 8);
    tree_no_child();
    _exit(how);
}

static void blocked(void) {
    tree_begin();
    pid_t all[5];
    for (int i = 0; i < 5; i++) all[i] = waiter(i);
    tree_ready(10);
    for (int i = 0; i < 5; i++) tree_ends(all[i], i << 8);
    tree_no_child();
}

static pid_t endless(int threads);
static void *idle(void *argument) {
    (void)argument;
    for (;;) pause();
    return NULL;
}
static pid_t endless(int threads) {
    pid_t child = tree_fork();
    if (child) return child;
    pthread_t all[4];
    for (int i = 0; i < threads; i++) PTRY(pthread_create(&all[i], NULL, idle, NULL));
    tree_set_up();
    for (;;) pause();
}

static int nothing(pid_t child, int flags) {
    siginfo_t info = {0};
    TRY(waitid(P_PID, (id_t)child, &info, flags | WNOHANG));
    return info.si_pid == 0;
}

/* Stopped children of which the parent was told, and of which it was not. argument: their threads. */
static void stops(int threads) {
    listen(0);
    tree_begin();
    pid_t known = endless(threads), unknown = endless(threads);
    char byte;
    for (int i = 0; i < 2; i++) CHECK(read(tree_pipe[0], &byte, 1) == 1, "waiting for the children");
    TRY(close(tree_pipe[0]));
    TRY(close(tree_pipe[1]));
    siginfo_t info;
    int got;
    TRY(kill(known, SIGSTOP));
    do got = waitid(P_PID, (id_t)known, &info, WSTOPPED); while (got == -1 && errno == EINTR);
    CHECK(got == 0 && info.si_code == CLD_STOPPED, "it does not stop");
    TRY(kill(unknown, SIGTTIN));
    do got = waitid(P_PID, (id_t)unknown, &info, WSTOPPED | WNOWAIT); while (got == -1 && errno == EINTR);
    CHECK(got == 0 && info.si_status == SIGTTIN, "the other does not stop");
    usleep(20000);
    int before = told;
    CHECK(before == 2, "told of %d stops", before);
    probe_ready();
    probe_wait();
    CHECK(told == before, "told of %d stops more, the last %d of %d", told - before, last_code, last_pid);
    CHECK(nothing(known, WSTOPPED), "told again of the one that was known");
    memset(&info, 0, sizeof info);
    TRY(waitid(P_PID, (id_t)unknown, &info, WSTOPPED | WNOHANG));
    CHECK(info.si_pid == unknown && info.si_code == CLD_STOPPED && info.si_status == SIGTTIN, "the other one: %d, %d", info.si_pid, info.si_status);
    CHECK(nothing(unknown, WSTOPPED), "the other one twice");
    CHECK(nothing(known, WCONTINUED | WEXITED) && nothing(unknown, WCONTINUED | WEXITED), "they go on");
    TRY(kill(known, SIGCONT));
    do got = waitid(P_PID, (id_t)known, &info, WCONTINUED); while (got == -1 && errno == EINTR);
    CHECK(got == 0 && info.si_code == CLD_CONTINUED, "it does not go on");
    TRY(kill(known, SIGTERM));
    tree_ends(known, SIGTERM);
    TRY(kill(unknown, SIGKILL));
    tree_ends(unknown, SIGKILL);
    tree_no_child();
}

/* A child that goes on, of which the parent was told. */
static void continued(void) {
    listen(0);
    tree_begin();
    pid_t child = endless(0);
    char byte;
    CHECK(read(tree_pipe[0], &byte, 1) == 1, "waiting for the child");
    TRY(close(tree_pipe[0]));
    TRY(close(tree_pipe[1]));
    siginfo_t info;
    int got;
    TRY(kill(child, SIGSTOP));
    do got = waitid(P_PID, (id_t)child, &info, WSTOPPED); while (got == -1 && errno == EINTR);
    TRY(kill(child, SIGCONT));
    do got = waitid(P_PID, (id_t)child, &info, WCONTINUED); while (got == -1 && errno == EINTR);
    CHECK(got == 0 && info.si_code == CLD_CONTINUED, "it does not go on");
    usleep(20000);
    int before = told;
    CHECK(before == 2, "told of %d changes", before);
    probe_ready();
    probe_wait();
    CHECK(told == before, "told of %d changes more", told - before);
    CHECK(nothing(child, WSTOPPED | WCONTINUED | WEXITED), "told again");
    TRY(kill(child, SIGTERM));
    tree_ends(child, SIGTERM);
}

/* The news of an end waits, as it came; that of another one's end came while it waited, and is lost as ever. */
static void pending(void) {
    sigset_t set, now;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    TRY(sigprocmask(SIG_BLOCK, &set, NULL));
    listen(0);
    pid_t first = tree_fork();
    if (first == 0) _exit(11);
    siginfo_t info;
    TRY(waitid(P_PID, (id_t)first, &info, WEXITED | WNOWAIT));
    pid_t second = tree_fork();
    if (second == 0) _exit(12);
    TRY(waitid(P_PID, (id_t)second, &info, WEXITED | WNOWAIT));
    pid_t third = tree_fork();
    if (third == 0) _exit(13);
    tree_ends(third, 13 << 8);
    probe_ready();
    probe_wait();
    TRY(sigpending(&now));
    CHECK(sigismember(&now, SIGCHLD) && !told, "it is not pending");
    struct timespec none = {0};
    CHECK(sigtimedwait(&set, &info, &none) == SIGCHLD && info.si_pid == first && info.si_status == 11 && info.si_code == CLD_EXITED,
          "told of %d, %d", info.si_pid, info.si_status);
    CHECK(sigtimedwait(&set, &info, &none) == -1 && errno == EAGAIN, "told twice");
    tree_ends(second, 12 << 8);
    tree_ends(first, 11 << 8);
    tree_no_child();
}

/* Whoever ignores its children's ends is not left with zombies. argument: by SA_NOCLDWAIT, or SIG_IGN. */
static void ignored(int flags) {
    struct sigaction action = {.sa_handler = flags ? SIG_DFL : SIG_IGN, .sa_flags = flags};
    TRY(sigaction(SIGCHLD, &action, NULL));
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) tree_live();
    tree_ready(1);
    probe_wait();
    CHECK(waitpid(child, NULL, 0) == -1 && errno == ECHILD, "the child was waited for");
    struct sigaction now;
    TRY(sigaction(SIGCHLD, NULL, &now));
    CHECK(flags ? now.sa_flags & SA_NOCLDWAIT : now.sa_handler == SIG_IGN, "how it is ignored");
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "blocked";
    if (!strcmp(what, "blocked")) blocked();
    else if (!strcmp(what, "stops")) stops(0);
    else if (!strcmp(what, "stopped-threads")) stops(4);
    else if (!strcmp(what, "continued")) continued();
    else if (!strcmp(what, "pending")) pending();
    else if (!strcmp(what, "ignored")) ignored(0);
    else if (!strcmp(what, "no-wait")) ignored(SA_NOCLDWAIT);
    else fail("unknown variant %s", what);
    return probe_pass();
}
