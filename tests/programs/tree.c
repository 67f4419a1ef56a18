/* A process and those below it. argument: what they are like. */
#include "tree.h"
#include <poll.h>
#include <sys/prctl.h>

static int number(int argc, char **argv, int otherwise) { return argc > 3 ? atoi(argv[3]) : otherwise; }

/* Children with memory of their own, each of them a little different. */
static void children(int count) {
    size_t bytes = 1 << 20;
    char *memory = probe_map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    pid_t all[512];
    CHECK(count <= 512, "too many");
    probe_fill(memory, bytes, 1);
    tree_begin();
    for (int i = 0; i < count; i++) {
        all[i] = tree_fork();
        if (all[i]) continue;
        pid_t pid = getpid(), parent = getppid();
        probe_fill(memory + PAGE * (size_t)(i % 200), PAGE, 1000 + (uint64_t)i);
        char *own = probe_map(64 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE);
        probe_fill(own, 64 << 10, 2000 + (uint64_t)i);
        tree_set_up();
        tree_wait(pid, parent);
        probe_same(memory + PAGE * (size_t)(i % 200), PAGE, 1000 + (uint64_t)i, "what a child changed");
        probe_same(own, 64 << 10, 2000 + (uint64_t)i, "memory of a child");
        for (size_t page = 0; page < bytes / PAGE; page++)
            if (page != (size_t)(i % 200)) {
                const uint64_t *word = (uint64_t *)(memory + page * PAGE);
                CHECK(word[7] == probe_mix(1 * 1000003 + page * (PAGE / 8) + 7), "page %zu from the parent", page);
            }
        _exit(i % 7);
    }
    tree_ready(count);
    probe_wait();
    probe_same(memory, bytes, 1, "memory of the parent");
    for (int i = 0; i < count; i++) tree_ends(all[i], (i % 7) << 8);
    tree_no_child();
}

/* A child of a child of a child. */
static void deep(int levels) {
    tree_begin();
    pid_t me = getpid();
    for (int level = 1; level <= levels; level++) {
        pid_t child = tree_fork();
        if (child == 0) {
            me = getpid();
            if (level == levels) tree_live();
            continue;
        }
        if (level == 1) {
            tree_ready(levels);
            probe_wait();
        } else {
            pid_t parent = getppid();
            tree_set_up();
            tree_wait(me, parent);
        }
        tree_ends(child, 0);
        if (level > 1) _exit(0);
        return;
    }
}

/* Other programs. */
static void other_programs(char **argv) {
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        char ready[16];
        int end = TRY(dup(tree_pipe[1]));
        snprintf(ready, sizeof ready, "%d", end);
        execl("/proc/self/exe", "another", argv[1], "child", ready, NULL);
        fail("exec: %s", strerror(errno));
    }
    pid_t shell = tree_fork();
    if (shell == 0) {
        char script[1024];
        int end = TRY(dup2(tree_pipe[1], 9));
        TRY(fcntl(end, F_SETFD, 0));
        snprintf(script, sizeof script, "n=0; while [ $n -lt 100 ]; do n=$((n+1)); done; printf x >&9; exec 9>&-; "
                 "while [ ! -e '%s' ]; do sleep 0.01; done; [ $n = 100 ] && exit 5", argv[1]);
        execl("/bin/sh", "sh", "-c", script, NULL);
        fail("exec: %s", strerror(errno));
    }
    tree_ready(2);
    probe_wait();
    tree_ends(child, 0);
    tree_ends(shell, 5 << 8);
}

static void other_program(int argc, char **argv) {
    pid_t parent = getppid(), pid = getpid();
    CHECK(write(number(argc, argv, 1), "x", 1) == 1, "telling the parent");
    TRY(close(number(argc, argv, 1)));
    tree_wait(pid, parent);
}

static volatile sig_atomic_t told;
static void tell(int signal) { (void)signal; told++; }

/* Children that ended and that nobody has waited for yet. */
static void zombies(void) {
    struct sigaction action = {.sa_handler = tell};
    TRY(sigaction(SIGCHLD, &action, NULL));
    pid_t zero = tree_fork();
    if (zero == 0) _exit(0);
    pid_t code = tree_fork();
    if (code == 0) _exit(77);
    pid_t killed = tree_fork();
    if (killed == 0) {
        kill(getpid(), SIGKILL);
        _exit(1);
    }
    pid_t term = tree_fork();
    if (term == 0) {
        kill(getpid(), SIGTERM);
        _exit(1);
    }
    siginfo_t info;
    pid_t all[] = {zero, code, killed, term};
    for (int i = 0; i < 4; i++) {
        int got;
        do got = waitid(P_PID, (id_t)all[i], &info, WEXITED | WNOWAIT); while (got == -1 && errno == EINTR);
        CHECK(got == 0, "waitid: %s", strerror(errno));
    }
    sig_atomic_t before = told;
    probe_ready();
    probe_wait();
    CHECK(told == before, "told of %d more ends", told - before);
    CHECK(waitid(P_PID, (id_t)code, &info, WEXITED | WNOWAIT) == 0 && info.si_status == 77 && info.si_code == CLD_EXITED, "waitid");
    tree_ends(zero, 0);
    tree_ends(term, SIGTERM);
    tree_ends(killed, SIGKILL);
    tree_ends(code, 77 << 8);
    tree_no_child();
    pid_t another = tree_fork();
    if (another == 0) _exit(3);
    tree_ends(another, 3 << 8);
    CHECK(told == before + 1, "told of %d ends since", told - before);
}

/* Whoever waits goes on waiting. argument: the call. */
static void waiting(void) {
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        tree_set_up();
        tree_wait(pid, parent);
        usleep(100000);
        _exit(9);
    }
    pid_t waiter = tree_fork();
    if (waiter == 0) {
        pid_t grandchild = tree_fork();
        if (grandchild == 0) tree_live();
        tree_set_up();
        siginfo_t info;
        CHECK(waitid(P_ALL, 0, &info, WEXITED) == 0 && info.si_pid == grandchild && info.si_status == 0, "waitid");
        _exit(4);
    }
    tree_ready(3);
    int status;
    CHECK(wait4(child, &status, 0, NULL) == child && status == 9 << 8, "wait4 tells %#x", status);
    tree_ends(waiter, 4 << 8);
    tree_no_child();
}

/* A child that is stopped, and one that is continued meanwhile. */
static void stopped(void) {
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        tree_set_up();
        tree_wait(pid, parent);
        /* The parent must see that it goes on before it ends. */
        usleep(300000);
        _exit(0);
    }
    tree_ready(1);
    TRY(kill(child, SIGTSTP));
    int status;
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status), "it does not stop");
    probe_wait();
    CHECK(waitpid(child, &status, WNOHANG) == 0, "the stopped child has ended");
    TRY(kill(child, SIGCONT));
    CHECK(waitpid(child, &status, WCONTINUED) == child && WIFCONTINUED(status), "it does not go on: %#x", status);
    tree_ends(child, 0);
}

/* Each child has threads. */
static volatile int stop_threads;
static void *spin(void *argument) {
    uint64_t *count = argument;
    while (!stop_threads) *count = probe_mix(*count);
    return (void *)(intptr_t)probe_gettid();
}

static void threads(int count) {
    pid_t all[64];
    tree_begin();
    for (int i = 0; i < count; i++) {
        all[i] = tree_fork();
        if (all[i]) continue;
        pid_t pid = getpid(), parent = getppid();
        pthread_t some[4];
        uint64_t counts[4] = {1, 2, 3, 4};
        for (int j = 0; j < 4; j++) PTRY(pthread_create(&some[j], NULL, spin, &counts[j]));
        tree_set_up();
        tree_wait(pid, parent);
        stop_threads = 1;
        void *tid;
        for (int j = 0; j < 4; j++) PTRY(pthread_join(some[j], &tid));
        _exit(0);
    }
    tree_ready(count);
    probe_wait();
    for (int i = 0; i < count; i++) tree_ends(all[i], 0);
}

/* A signal to a child when its parent ends. */
static void death(void) {
    TRY(prctl(PR_SET_CHILD_SUBREAPER, 1));
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t grandchild = tree_fork();
        if (grandchild == 0) {
            TRY(prctl(PR_SET_PDEATHSIG, SIGUSR1));
            tree_set_up();
            pause();
            _exit(1);
        }
        tree_live();
    }
    tree_ready(2);
    probe_wait();
    tree_ends(child, 0);
    int status;
    CHECK(wait(&status) > 0 && WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1, "the orphan ended with %#x", status);
    tree_no_child();
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "children";
    if (!strcmp(what, "child")) {
        other_program(argc, argv);
        return 0;
    }
    if (!strcmp(what, "children")) children(number(argc, argv, 3));
    else if (!strcmp(what, "deep")) deep(number(argc, argv, 5));
    else if (!strcmp(what, "programs")) other_programs(argv);
    else if (!strcmp(what, "zombies")) zombies();
    else if (!strcmp(what, "waiting")) waiting();
    else if (!strcmp(what, "stopped")) stopped();
    else if (!strcmp(what, "threads")) threads(number(argc, argv, 8));
    else if (!strcmp(what, "death")) death();
    else fail("unknown variant %s", what);
    return probe_pass();
}
