/*
 * Checkpoints at bad moments, of a program with the library inside: while it ends, in a handler on a small stack, while it makes children
 * in every way, while it becomes another program.
 */
#include "probe.h"
#include <dlfcn.h>
#include <execinfo.h>
#include <poll.h>
#include <sys/auxv.h>
#include <sys/wait.h>

extern int ckpt_here(void) __attribute__((weak));
extern int ckpt_disable(void) __attribute__((weak));
extern int ckpt_enable(void) __attribute__((weak));
extern const char *ckpt_error(void) __attribute__((weak));

static _Atomic int over;
static _Atomic unsigned long made, woken;

/* Until somebody says so; as the whole check of a program that waits in an odd place. */
static void wait_here(void) {
    probe_ready();
    while (!probe_resumed()) usleep(2000);
    probe_pass();
    fflush(stdout);
}

static const char *ends_in;

static void at_exit(void) { if (!strcmp(ends_in, "exit")) wait_here(); }

__attribute__((destructor)) static void at_unload(void) { if (ends_in && !strcmp(ends_in, "destructor")) wait_here(); }

static void on_small_stack(int signal) {
    (void)signal;
    wait_here();
}

/* Two frames of signals, ours and that of the library, and as much more as it says that it takes. */
static void small_stack(void) {
    size_t frame = getauxval(51 /* AT_MINSIGSTKSZ */);
    size_t size = 2 * (frame ? frame : 4096) + 2048;
    char *memory = probe_map(PAGE + 65536, PROT_NONE, MAP_PRIVATE);
    char *start = memory + PAGE + 65536 - (size + PAGE - 1) / PAGE * PAGE;
    TRY(mprotect(start, (size + PAGE - 1) / PAGE * PAGE, PROT_READ | PROT_WRITE));
    /* It ends where the memory does not begin: below it is a word that nobody may touch. */
    char *low = start + (PAGE - size % PAGE) % PAGE;
    memset(start, 0x5a, (size_t)(low - start));
    stack_t stack = {.ss_sp = low, .ss_size = size};
    TRY(sigaltstack(&stack, NULL));
    struct sigaction action = {.sa_handler = on_small_stack, .sa_flags = SA_ONSTACK};
    TRY(sigaction(SIGUSR1, &action, NULL));
    TRY(raise(SIGUSR1));
    for (char *at = start; at < low; at++) CHECK(*at == 0x5a, "%zu bytes below the stack were written to", (size_t)(low - at));
}

/* By the signal, as others ask, and seen by the link to the latest image; or by the call. */
static int by_signal;

static int asks(void) {
    static char last[64];
    char path[4096], now[64] = "";
    snprintf(path, sizeof path, "%s/latest", getenv("CKPT_DIRECTORY"));
    TRY(kill(getpid(), 34));
    if (readlink(path, now, sizeof now - 1) <= 0 || !strcmp(now, last)) return -EBUSY;
    strcpy(last, now);
    return 0;
}

static void *makes(void *argument) {
    while (!over) {
        int result = by_signal ? asks() : ckpt_here();
        if (result == 0) made++;
        if (result == 1) woken++;
        usleep(200);
    }
    return argument;
}

static pthread_t maker;

static void start(void) {
    CHECK(ckpt_here, "there is no library inside");
    PTRY(pthread_create(&maker, NULL, makes, NULL));
}

static void stop(void) {
    over = 1;
    PTRY(pthread_join(maker, NULL));
    over = 0;
}

/* A child that was made in the midst of a checkpoint is not in the midst of one. */
static int child(int by_fork) {
    alarm(20);
    if (!by_fork) {
        int result = ckpt_here();
        return result == -ECHILD && strstr(ckpt_error(), "vfork") ? 0 : 2;
    }
    if (ckpt_disable() || ckpt_enable()) return 3;
    return 0;
}

static pid_t _Fork_there(void) {
    static pid_t (*function)(void);
    if (!function) function = (pid_t (*)(void))dlsym(RTLD_DEFAULT, "_Fork");
    return function ? function() : (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static void forks(void) {
    by_signal = 1;
    /* While there is a child, the library says so each time. */
    int errors = TRY(dup(2)), nothing = TRY(open("/dev/null", O_WRONLY));
    TRY(dup2(nothing, 2));
    start();
    for (int i = 0; i < 150 || made < 3; i++) {
        /* With one there, no checkpoint is made. */
        usleep((useconds_t)(probe_mix((uint64_t)i) % 3000));
        pid_t pid;
        if (i % 3 == 0) pid = fork();
        else if (i % 3 == 1) pid = _Fork_there();
        else pid = vfork();
        if (pid == 0) _exit(child(i % 3 == 0));
        int status;
        CHECK(TRY(waitpid(pid, &status, 0)) == pid && status == 0, "child %d (way %d) ended with %#x", i, i % 3, status);
        if (i % 50 == 0) CHECK(system("exit 3") == 3 << 8, "system");
        CHECK(i < 100000, "not one checkpoint was made");
    }
    stop();
    TRY(dup2(errors, 2));
    close(errors);
    close(nothing);
}

/* The next life of this program, by each function in turn. They say how many are left. */
static void next(char **argv, int left) {
    char number[16], *list[] = {argv[0], argv[1], argv[2], number, "a", "b", "c", "d", "e", NULL};
    char *environment[512];
    const char *own = "/proc/self/exe";
    int count = 0;
    for (; environ[count] && count < 510; count++) environment[count] = environ[count];
    environment[count] = NULL;
    snprintf(number, sizeof number, "%d", left - 1);
    switch (left % 9) {
    case 0: execv(own, list); break;
    case 1: execve(own, list, environment); break;
    case 2: execvp(own, list); break;
    case 3: execvpe(own, list, environment); break;
    case 4: execl(own, argv[0], argv[1], argv[2], number, "a", "b", "c", "d", "e", (char *)NULL); break;
    case 5: execlp(own, argv[0], argv[1], argv[2], number, "a", "b", "c", "d", "e", (char *)NULL); break;
    case 6: execle(own, argv[0], argv[1], argv[2], number, "a", "b", "c", "d", "e", (char *)NULL, environment); break;
    case 7: fexecve(open(own, O_RDONLY | O_CLOEXEC), list, environment); break;
    default: execveat(AT_FDCWD, own, list, environment, 0); break;
    }
    fail("no exec, way %d: %s", left % 9, strerror(errno));
}

/* What is no program is none, however it is called; checkpoints go on. */
static void nowhere(void) {
    const char *none = "./there-is-no-such-program";
    char *list[] = {"x", NULL};
    for (int i = 0; i < 40; i++) {
        errno = 0;
        int result = i % 4 == 0 ? execv(none, list) : i % 4 == 1 ? execvp(none, list) : i % 4 == 2 ? execl(none, "x", (char *)NULL) : execle(none, "x", (char *)NULL, environ);
        CHECK(result == -1 && errno == ENOENT, "exec of nothing returned %d: %s", result, strerror(errno));
        usleep(500);
    }
    unsigned long before = made;
    while (made == before) usleep(500);
}

static void execs(int argc, char **argv) {
    int left = argc > 3 ? atoi(argv[3]) : 150;
    if (argc > 4) CHECK(argc == 9 && !strcmp(argv[4], "a") && !strcmp(argv[8], "e") && getenv("LD_PRELOAD"), "arguments were lost");
    start();
    usleep((useconds_t)(probe_mix((uint64_t)left) % 3000));
    if (left) next(argv, left);
    nowhere();
    stop();
}

static void say_id(const char *name) {
    char new[64];
    snprintf(new, sizeof new, "%s.new", name);
    FILE *file = fopen(new, "w");
    CHECK(file && fprintf(file, "%d\n", getpid()) > 0 && !fclose(file) && !rename(new, name), "%s: %s", name, strerror(errno));
}

/* Twice a child, as daemons are. */
static void becomes_daemon(void) {
    if (TRY(fork())) _exit(0);
    TRY(setsid());
    if (TRY(fork())) _exit(0);
    say_id("pid");
}

/* A child with the library, while its parent lives. */
static void has_child(void) {
    pid_t child = TRY(fork());
    if (!child) {
        say_id("pid");
        while (!probe_resumed()) usleep(2000);
        _exit(0);
    }
    int status;
    CHECK(TRY(waitpid(child, &status, 0)) == child && status == 0, "the child ended with %#x", status);
}

/* What cannot be captured for want of something is said, and nobody stands still. */
static void lacks(const char *what) {
    int most = 0;
    if (!strcmp(what, "descriptors")) while (dup(0) >= 0) most++;
    int result = ckpt_here();
    CHECK(result < 0, "ckpt_here returned %d", result);
    char text[256];
    snprintf(text, sizeof text, "%s", ckpt_error());
    if (!strcmp(what, "descriptors")) for (int fd = 3; fd < 3 + most; fd++) close(fd);
    CHECK(strstr(text, what), "it said '%s'", text);
    puts("PASS");
    exit(0);
}

static _Atomic int rounds, handled;
static pthread_t waits;
static int nothing_comes[2];
/* Who called the function that waits: he is found from within a handler. */
static void *caller;

static void on_signal(int signal) {
    (void)signal;
    handled++;
    void *frames[32];
    int count = backtrace(frames, 32), at = 0;
    while (at < count && frames[at] != caller) at++;
    CHECK(at < count, "nobody finds the caller in %d frames", count);
}

/* Of the four ways to wait, that of this round; two of them can be left only by a signal that comes when they have begun. */
enum { SUSPEND, PPOLL, PAUSE, READ };

static int way(int round) { return round % 4; }

/* The first thread is in the call of this round; the library reads something else. */
static int has_begun(int round) {
    char text[256] = "", pauses[32], reads[32];
    snprintf(pauses, sizeof pauses, "%d ", SYS_pause);
    snprintf(reads, sizeof reads, "%d %#x ", SYS_read, nothing_comes[0]);
    const char *call = way(round) == PAUSE ? pauses : reads;
    int file = TRY(open("/proc/self/syscall", O_RDONLY | O_CLOEXEC));
    TRY(read(file, text, sizeof text - 1));
    close(file);
    return !strncmp(text, call, strlen(call));
}

static void *sends(void *argument) {
    for (int sent = 0; sent < rounds || !over; usleep(50)) {
        int now = rounds;
        if (sent >= now) continue;
        if (way(now - 1) >= PAUSE) while (!has_begun(now - 1)) usleep(20);
        usleep((useconds_t)(probe_mix((uint64_t)sent) % 400));
        PTRY(pthread_kill(waits, way(now - 1) == READ ? SIGUSR2 : SIGUSR1));
        sent = now;
    }
    return argument;
}

static int waits_in(int round, const sigset_t *blocked, const sigset_t *before) {
    char byte;
    int result;
    switch (way(round)) {
    case SUSPEND: return sigsuspend(before);
    case PPOLL: return ppoll(NULL, 0, NULL, before);
    case PAUSE:
        PTRY(pthread_sigmask(SIG_UNBLOCK, blocked, NULL));
        result = pause();
        PTRY(pthread_sigmask(SIG_BLOCK, blocked, NULL));
        return result;
    default: return (int)read(nothing_comes[0], &byte, 1);
    }
}

/* A signal ends a wait, also when it comes in the midst of a checkpoint. */
__attribute__((noinline)) static void waits_end(void) {
    caller = __builtin_return_address(0);
    void *first[1];
    backtrace(first, 1);
    TRY(pipe(nothing_comes));
    sigset_t blocked, before;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    PTRY(pthread_sigmask(SIG_BLOCK, &blocked, &before));
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    TRY(sigaction(SIGUSR1, &action, NULL));
    action.sa_flags = 0;
    TRY(sigaction(SIGUSR2, &action, NULL));
    /* Set in pieces, it is what it was. */
    CHECK(signal(SIGUSR2, on_signal) == on_signal, "another handler than that which was set");
    TRY(siginterrupt(SIGUSR2, 1));
    struct sigaction found;
    TRY(sigaction(SIGUSR2, NULL, &found));
    CHECK(found.sa_handler == on_signal && !(found.sa_flags & (SA_RESTART | SA_SIGINFO)), "the flags are %#x", found.sa_flags);
    waits = pthread_self();
    pthread_t sender;
    PTRY(pthread_create(&sender, NULL, sends, NULL));
    start();
    alarm(60);
    for (int i = 0; i < 200 || made < 20; i++) {
        rounds = i + 1;
        int result = waits_in(i, &blocked, &before);
        CHECK(result == -1 && errno == EINTR, "wait %d returned %d: %s", i, result, strerror(errno));
        CHECK(handled == i + 1, "%d signals of %d", handled, i + 1);
    }
    stop();
    over = 1;
    PTRY(pthread_join(sender, NULL));
    puts("PASS");
    exit(0);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "";
    if (!strcmp(what, "exit") || !strcmp(what, "destructor")) {
        ends_in = what;
        atexit(at_exit);
        return 0;
    }
    if (!strcmp(what, "small")) {
        small_stack();
        return 0;
    }
    if (!strcmp(what, "forks")) forks();
    else if (!strcmp(what, "execs")) execs(argc, argv);
    else if (!strcmp(what, "daemon")) becomes_daemon();
    else if (!strcmp(what, "child")) has_child();
    else if (!strcmp(what, "lacks")) lacks(argv[3]);
    else if (!strcmp(what, "waits")) waits_end();
    else if (!strcmp(what, "here")) start();
    else if (!strcmp(what, "section")) {
        /* No checkpoint is made, and then there is another program, for some time. */
        CHECK(ckpt_disable && ckpt_disable() == 0, "no section");
        probe_ready();
        while (!probe_resumed()) usleep(2000);
        /* Without what says that the library is to be loaded. */
        execle("/bin/sleep", "sleep", "3", (char *)NULL, (char *[]){NULL});
        fail("no exec: %s", strerror(errno));
    }
    else if (strcmp(what, "early")) fail("what is '%s'?", what);
    probe_ready();
    while (!probe_resumed()) usleep(2000);
    if (!strcmp(what, "here")) {
        unsigned long before = made;
        while (made == before) usleep(500);
        stop();
    }
    return probe_pass();
}
