/* Timers of timer_create: ids, values, intervals, how they tell, and signals that wait.
   argument: running, pending (the signals are blocked at the checkpoint). */
#include "probe.h"
#include <signal.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

/* The signal before it is libckpt's. */
#define FIRST (SIGRTMIN + 1)

static volatile int stop, counts[65], last_value[65], last_overrun[65];
static volatile pid_t last_thread[65];
/* Whether the first thread was told. */
static volatile int told_first[65];
static pthread_barrier_t barrier;
static volatile pid_t second_tid;

static void on_timer(int signal, siginfo_t *info, void *context) {
    (void)context;
    last_value[signal] = info->si_value.sival_int;
    last_overrun[signal] = info->si_overrun;
    last_thread[signal] = probe_gettid();
    told_first[signal] = probe_gettid() == getpid();
    if (info->si_code != SI_TIMER) last_value[signal] = -1;
    /* Last: who waits for the count, in another thread, finds the rest there. */
    counts[signal]++;
}

static int make(clockid_t clock, int notify, int signal, int value, pid_t thread) {
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = notify;
    event.sigev_signo = signal;
    event.sigev_value.sival_int = value;
    event.sigev_notify_thread_id = thread;
    int id = -1;
    TRY(syscall(SYS_timer_create, clock, &event, &id));
    return id;
}

static void set(int id, double value, double interval) {
    struct itimerspec time = {{(time_t)interval, (long)((interval - (double)(time_t)interval) * 1e9)}, {(time_t)value, (long)((value - (double)(time_t)value) * 1e9)}};
    TRY(syscall(SYS_timer_settime, id, 0, &time, NULL));
}

static struct itimerspec get(int id) {
    struct itimerspec time;
    TRY(syscall(SYS_timer_gettime, id, &time));
    return time;
}

static double seconds(struct timespec time) { return (double)time.tv_sec + (double)time.tv_nsec / 1e9; }

static void *second(void *nothing) {
    second_tid = probe_gettid();
    pthread_barrier_wait(&barrier);
    while (!stop) { }
    return nothing;
}

static void expect(int id, double value, double interval) {
    struct itimerspec now = get(id);
    CHECK(seconds(now.it_interval) == interval, "interval of timer %d is %.3f s", id, seconds(now.it_interval));
    CHECK(seconds(now.it_value) <= value && seconds(now.it_value) > value - 30, "timer %d has %.3f s left", id, seconds(now.it_value));
}

static int pending;
static sigset_t blocked;
/* Ids with gaps. */
static int gone[3], far, none, disarmed, cpu, thread_cpu, to_thread, often, soon;

static void take_signals(void) {
    struct sigaction action = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigemptyset(&blocked);
    for (int i = 0; i < 6; i++) {
        TRY(sigaction(FIRST + i, &action, NULL));
        sigaddset(&blocked, FIRST + i);
    }
    TRY(sigaction(SIGALRM, &action, NULL));
}

static void make_timers(pthread_t thread) {
    for (int i = 0; i < 3; i++) gone[i] = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGALRM, 0, 0);
    far = make(CLOCK_REALTIME, SIGEV_SIGNAL, SIGALRM, 41, 0);
    none = make(CLOCK_BOOTTIME, SIGEV_NONE, 0, 0, 0);
    for (int i = 0; i < 3; i++) TRY(syscall(SYS_timer_delete, gone[i]));
    disarmed = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGALRM, 42, 0);
    clockid_t of_second;
    PTRY(pthread_getcpuclockid(thread, &of_second));
    cpu = make(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, FIRST + 2, 43, 0);
    thread_cpu = make(of_second, SIGEV_SIGNAL, FIRST + 3, 44, 0);
    to_thread = make(CLOCK_MONOTONIC, SIGEV_SIGNAL | SIGEV_THREAD_ID, FIRST + 1, 45, second_tid);
    often = make(CLOCK_MONOTONIC, SIGEV_SIGNAL | SIGEV_THREAD_ID, FIRST, 46, probe_tid);
    soon = make(CLOCK_MONOTONIC, SIGEV_SIGNAL | SIGEV_THREAD_ID, FIRST + 4, 47, probe_tid);
    set(far, 1000, 0.5);
    set(none, 2000, 0);
    set(cpu, 500, 7.25);
    set(thread_cpu, 600, 0);
    set(to_thread, pending ? 0.005 : 0.7, 0);
    set(soon, pending ? 0.005 : 0.6, 0);
    set(often, pending ? 0.005 : 0.02, 0.02);
}

static void check_timers(double started) {
    int ids[] = {far, none, disarmed, cpu, thread_cpu, to_thread, often, soon};
    for (int i = 0; i < 8; i++) get(ids[i]);
    for (int i = 0; i < 3; i++)
        CHECK(syscall(SYS_timer_gettime, gone[i], &(struct itimerspec){0}) == -1 && errno == EINVAL, "timer %d is there again", gone[i]);
    expect(far, 1000, 0.5);
    expect(none, 2000, 0);
    expect(cpu, 500, 7.25);
    expect(thread_cpu, 600, 0);
    CHECK(get(disarmed).it_value.tv_sec == 0 && get(disarmed).it_value.tv_nsec == 0, "timer %d is armed", disarmed);
    set(disarmed, 0.01, 0);
    while (counts[SIGALRM] == 0 && probe_now() - started < 60) { }
    CHECK(counts[SIGALRM] == 1 && last_value[SIGALRM] == 42, "timer %d: %d signals, value %d", disarmed, counts[SIGALRM], last_value[SIGALRM]);
}

/* It is the second thread's time that is counted, while this one sleeps. */
static void check_processor_time(void) {
    double before = seconds(get(thread_cpu).it_value), spent = 0;
    for (int i = 0; i < 200 && spent < 0.01; i++) {
        usleep(50000);
        spent = before - seconds(get(thread_cpu).it_value);
    }
    CHECK(spent >= 0.01, "timer %d counted %.3f s of a thread that computes", thread_cpu, spent);
}

static void check_pending(void) {
    CHECK(counts[FIRST] == 0 && counts[FIRST + 4] == 0, "signals came while blocked");
    PTRY(pthread_sigmask(SIG_UNBLOCK, &blocked, NULL));
    CHECK(counts[FIRST] >= 1 && last_value[FIRST] == 46, "the pending signal of timer %d is gone (%d, value %d)", often, counts[FIRST], last_value[FIRST]);
    CHECK(counts[FIRST + 4] == 1 && last_value[FIRST + 4] == 47, "the pending signal of timer %d came %d times", soon, counts[FIRST + 4]);
}

static void check_signals(double started) {
    while ((counts[FIRST + 1] == 0 || counts[FIRST + 4] == 0) && probe_now() - started - probe_gap < 5) { }
    double awake = probe_now() - started - probe_gap;
    CHECK(counts[FIRST + 1] == 1 && last_value[FIRST + 1] == 45, "timer %d: %d signals, value %d", to_thread, counts[FIRST + 1], last_value[FIRST + 1]);
    CHECK(!told_first[FIRST + 1] && (probe_other_ids || last_thread[FIRST + 1] == second_tid), "timer %d told thread %d", to_thread, last_thread[FIRST + 1]);
    CHECK(counts[FIRST + 4] == 1 && told_first[FIRST + 4] && (probe_other_ids || last_thread[FIRST + 4] == probe_tid), "timer %d: %d signals", soon, counts[FIRST + 4]);
    if (!pending) CHECK(awake > 0.7 - probe_gap - 0.05 && awake < 1.2, "0.7 s were %.3f s (stood still %.3f s)", awake, probe_gap);
    int before = counts[FIRST];
    double begun = probe_now();
    while (probe_now() - begun < 0.2) { }
    int more = counts[FIRST] - before;
    CHECK(more >= 2 && more <= 12, "%d signals of 10", more);
    CHECK(last_overrun[FIRST] < 30, "overrun of %d", last_overrun[FIRST]);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    pending = argc > 2 && !strcmp(argv[2], "pending");
    take_signals();
    PTRY(pthread_barrier_init(&barrier, NULL, 2));
    pthread_t thread;
    PTRY(pthread_create(&thread, NULL, second, NULL));
    pthread_barrier_wait(&barrier);
    if (pending) PTRY(pthread_sigmask(SIG_BLOCK, &blocked, NULL));
    make_timers(thread);
    if (pending) {
        double begun = probe_now();
        while (probe_now() - begun < 0.06) { }
        CHECK(counts[FIRST] == 0, "the signal was not blocked");
    }
    double started = probe_now();
    probe_ready();
    probe_wait();
    check_timers(started);
    if (pending) check_pending();
    check_signals(started);
    check_processor_time();
    stop = 1;
    PTRY(pthread_join(thread, NULL));
    return probe_pass();
}
