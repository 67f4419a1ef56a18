/* Pending signals: standard ones and queued real-time ones with their values, of the process and of each thread. */
#include "probe.h"

static volatile int stop;
static pthread_barrier_t barrier;
static sigset_t wanted;

static siginfo_t take(const char *what, int signal) {
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, signal);
    siginfo_t info;
    memset(&info, 0, sizeof info);
    struct timespec nothing = {0, 0};
    /* The system call itself: the C library shows SI_TKILL as SI_USER. */
    CHECK(syscall(SYS_rt_sigtimedwait, &one, &info, &nothing, 8) == signal, "%s: signal %d is not pending", what, signal);
    return info;
}

static void expect(const char *what, int signal, int code, int value) {
    siginfo_t info = take(what, signal);
    CHECK(info.si_code == code, "%s: code of signal %d is %d, not %d", what, signal, info.si_code, code);
    CHECK(info.si_pid == getpid() && info.si_uid == getuid(), "%s: sender of signal %d is %d", what, signal, info.si_pid);
    if (code == SI_QUEUE) CHECK(info.si_value.sival_int == value, "%s: value with signal %d is %d, not %d", what, signal, info.si_value.sival_int, value);
}

static void nothing_left(const char *what) {
    struct timespec nothing = {0, 0};
    siginfo_t info;
    int signal = sigtimedwait(&wanted, &info, &nothing);
    CHECK(signal == -1 && errno == EAGAIN, "%s: one signal too many: %d", what, signal);
}

static void *second(void *nothing) {
    pthread_barrier_wait(&barrier);
    while (!stop) { }
    expect("second thread", SIGUSR2, SI_TKILL, 0);
    for (int i = 0; i < 3; i++) expect("second thread", SIGRTMIN + 5, SI_QUEUE, 200 + i);
    return nothing;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    sigemptyset(&wanted);
    for (int signal = SIGRTMIN; signal <= SIGRTMAX; signal++) sigaddset(&wanted, signal);
    sigaddset(&wanted, SIGUSR1);
    sigaddset(&wanted, SIGUSR2);
    sigaddset(&wanted, SIGTERM);
    PTRY(pthread_sigmask(SIG_BLOCK, &wanted, NULL));
    PTRY(pthread_barrier_init(&barrier, NULL, 2));
    pthread_t thread;
    PTRY(pthread_create(&thread, NULL, second, NULL));
    pthread_barrier_wait(&barrier);
    union sigval value;
    TRY(kill(getpid(), SIGTERM));
    for (int i = 0; i < 5; i++) {
        value.sival_int = 100 + i;
        TRY(sigqueue(getpid(), SIGRTMIN + 3, value));
    }
    value.sival_int = 9;
    TRY(sigqueue(getpid(), SIGRTMAX, value));
    /* One of each: the thread's own is taken first. */
    TRY(kill(getpid(), SIGUSR1));
    PTRY(pthread_kill(pthread_self(), SIGUSR1));
    value.sival_int = 300;
    PTRY(pthread_sigqueue(pthread_self(), SIGRTMIN + 4, value));
    PTRY(pthread_kill(thread, SIGUSR2));
    for (int i = 0; i < 3; i++) {
        value.sival_int = 200 + i;
        PTRY(pthread_sigqueue(thread, SIGRTMIN + 5, value));
    }
    probe_ready();
    probe_wait();
    expect("process", SIGTERM, SI_USER, 0);
    for (int i = 0; i < 5; i++) expect("process", SIGRTMIN + 3, SI_QUEUE, 100 + i);
    expect("process", SIGRTMAX, SI_QUEUE, 9);
    expect("main thread", SIGUSR1, SI_TKILL, 0);
    expect("process", SIGUSR1, SI_USER, 0);
    expect("main thread", SIGRTMIN + 4, SI_QUEUE, 300);
    stop = 1;
    PTRY(pthread_join(thread, NULL));
    nothing_left("process");
    return probe_pass();
}
