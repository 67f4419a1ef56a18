/* The process has stopped itself by job control (argument: STOP, TSTP, TTIN, TTOU); it stays stopped until it is continued.
   A second thread counts, a third sleeps in a system call. */
#include "probe.h"

static volatile int stop, slept;
static volatile unsigned long beats;
static pthread_barrier_t barrier;

static void *count(void *nothing) {
    pthread_barrier_wait(&barrier);
    while (!stop) beats++;
    return nothing;
}

static void *sleeper(void *nothing) {
    pthread_barrier_wait(&barrier);
    /* It may be stopped before it sleeps for the first time, and be told to end right after. */
    do {
        struct timespec time = {0, 300000000};
        CHECK(nanosleep(&time, NULL) == 0, "nanosleep: %s", strerror(errno));
        slept++;
    } while (!stop);
    return nothing;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "STOP";
    int signal = !strcmp(kind, "TSTP") ? SIGTSTP : !strcmp(kind, "TTIN") ? SIGTTIN : !strcmp(kind, "TTOU") ? SIGTTOU : SIGSTOP;
    /* In a group of its own it is no orphan of its session: only then these signals stop anything. */
    TRY(setpgid(0, 0));
    PTRY(pthread_barrier_init(&barrier, NULL, 3));
    pthread_t threads[2];
    PTRY(pthread_create(&threads[0], NULL, count, NULL));
    PTRY(pthread_create(&threads[1], NULL, sleeper, NULL));
    pthread_barrier_wait(&barrier);
    sigset_t pending, blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    PTRY(pthread_sigmask(SIG_BLOCK, &blocked, NULL));
    TRY(raise(SIGUSR1));
    probe_ready();
    TRY(raise(signal));
    probe_wait();
    TRY(sigpending(&pending));
    CHECK(sigismember(&pending, SIGUSR1), "a blocked signal is gone");
    unsigned long before = beats;
    double begun = probe_now();
    while (beats == before && probe_now() - begun < 10) { }
    CHECK(beats != before, "the second thread stands still");
    stop = 1;
    for (int i = 0; i < 2; i++) PTRY(pthread_join(threads[i], NULL));
    CHECK(slept > 0, "the third thread never woke");
    return probe_pass();
}
