/* A thread blocked in a system call (argument: which) goes on after the resume as if nothing had been:
   sleeps last the time that was left, all else waits on until it is woken; nothing ever returns EINTR. */
#include "probe.h"
#include <linux/futex.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/select.h>
#include <sys/time.h>

static const double LASTS = 1.25;
static int pipe_ends[2];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static sem_t semaphore;
static int turn;
static uint32_t word;
static pthread_t blocked_thread;
static volatile sig_atomic_t handled;

static void on_signal(int signal) { handled = signal; }

static struct timespec later(double seconds, clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    time.tv_sec += (time_t)seconds;
    time.tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
    if (time.tv_nsec >= 1000000000) { time.tv_nsec -= 1000000000; time.tv_sec++; }
    return time;
}

static void slept(double started) {
    double awake = probe_now() - started - probe_gap;
    /* The checkpoint comes when about 0.6 s have passed: a sleep that begins anew lasts that much longer. */
    CHECK(awake > LASTS - 0.1 && awake < LASTS + 0.4, "slept %.3f s of %.1f s (stood still %.3f s)", awake, LASTS, probe_gap);
}

static void do_sleep(const char *kind) {
    struct timespec whole = {(time_t)LASTS, (long)((LASTS - (time_t)LASTS) * 1e9)}, rest = {77, 77};
    double started = probe_now();
    if (!strcmp(kind, "nanosleep")) CHECK(nanosleep(&whole, &rest) == 0, "nanosleep: %s", strerror(errno));
    if (!strcmp(kind, "nanosleep_null")) CHECK(syscall(SYS_nanosleep, &whole, NULL) == 0, "nanosleep: %s", strerror(errno));
    if (!strcmp(kind, "clock_nanosleep")) CHECK(clock_nanosleep(CLOCK_MONOTONIC, 0, &whole, NULL) == 0, "clock_nanosleep failed");
    if (!strcmp(kind, "poll_timeout")) CHECK(poll(NULL, 0, (int)(LASTS * 1000)) == 0, "poll: %s", strerror(errno));
    if (!strcmp(kind, "select_timeout")) {
        struct timeval time = {(time_t)LASTS, (suseconds_t)((LASTS - (time_t)LASTS) * 1e6)};
        CHECK(select(0, NULL, NULL, NULL, &time) == 0, "select: %s", strerror(errno));
    }
    if (!strcmp(kind, "futex_timeout"))
        CHECK(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &whole, NULL, 0) == -1 && errno == ETIMEDOUT, "futex: %s", strerror(errno));
    slept(started);
}

/* Absolute times pass while the program stands still: the sleep is over at that time or at once. */
static void do_absolute(const char *kind) {
    struct timespec end = later(LASTS, CLOCK_MONOTONIC);
    double started = probe_now();
    if (!strcmp(kind, "clock_abstime")) {
        CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL) == 0, "clock_nanosleep failed");
    } else {
        end = later(LASTS, CLOCK_REALTIME);
        PTRY(pthread_mutex_lock(&mutex));
        int result = 0;
        while (result == 0) result = pthread_cond_timedwait(&condition, &mutex, &end);
        CHECK(result == ETIMEDOUT, "pthread_cond_timedwait: %s", strerror(result));
        PTRY(pthread_mutex_unlock(&mutex));
    }
    double lasted = probe_now() - started;
    CHECK(lasted > LASTS - 0.01, "woken after %.3f s already", lasted);
    CHECK(lasted < LASTS + probe_gap + 0.4, "woken only after %.3f s", lasted);
}

static void do_wait(const char *kind) {
    char byte[4] = {0};
    if (!strcmp(kind, "read")) CHECK(read(pipe_ends[0], byte, 4) == 4, "read: %s", strerror(errno));
    if (!strcmp(kind, "write")) CHECK(write(pipe_ends[1], byte, 4) == 4, "write: %s", strerror(errno));
    if (!strcmp(kind, "poll")) {
        struct pollfd entry = {.fd = pipe_ends[0], .events = POLLIN};
        CHECK(poll(&entry, 1, -1) == 1, "poll: %s", strerror(errno));
    }
    if (!strcmp(kind, "ppoll")) {
        struct pollfd entry = {.fd = pipe_ends[0], .events = POLLIN};
        struct timespec long_time = {1000, 0};
        CHECK(ppoll(&entry, 1, &long_time, NULL) == 1, "ppoll: %s", strerror(errno));
    }
    if (!strcmp(kind, "select")) {
        fd_set readable;
        FD_ZERO(&readable);
        FD_SET(pipe_ends[0], &readable);
        CHECK(select(pipe_ends[0] + 1, &readable, NULL, NULL, NULL) == 1, "select: %s", strerror(errno));
    }
    if (!strcmp(kind, "cond") || !strcmp(kind, "cond_timed")) {
        struct timespec end = later(1000, CLOCK_REALTIME);
        PTRY(pthread_mutex_lock(&mutex));
        while (!turn) {
            if (!strcmp(kind, "cond")) PTRY(pthread_cond_wait(&condition, &mutex));
            else PTRY(pthread_cond_timedwait(&condition, &mutex, &end));
        }
        PTRY(pthread_mutex_unlock(&mutex));
    }
    if (!strcmp(kind, "futex")) CHECK(syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL, NULL, 0) == 0, "futex: %s", strerror(errno));
    if (!strcmp(kind, "semaphore")) CHECK(sem_wait(&semaphore) == 0, "sem_wait: %s", strerror(errno));
    if (!strcmp(kind, "pause")) CHECK(pause() == -1 && errno == EINTR && handled == SIGUSR1, "pause came back without a signal");
    if (!strcmp(kind, "sigsuspend")) {
        sigset_t none;
        sigemptyset(&none);
        CHECK(sigsuspend(&none) == -1 && handled == SIGUSR2, "sigsuspend came back without its signal");
        sigset_t now;
        PTRY(pthread_sigmask(SIG_SETMASK, NULL, &now));
        CHECK(sigismember(&now, SIGUSR2), "sigsuspend did not put the mask back");
    }
    if (!strcmp(kind, "sigwait") || !strcmp(kind, "sigtimedwait")) {
        sigset_t wanted;
        sigemptyset(&wanted);
        sigaddset(&wanted, SIGUSR2);
        struct timespec long_time = {1000, 0};
        int signal = 0;
        if (!strcmp(kind, "sigwait")) PTRY(sigwait(&wanted, &signal));
        else signal = sigtimedwait(&wanted, NULL, &long_time);
        CHECK(signal == SIGUSR2, "%s gave %d: %s", kind, signal, strerror(errno));
    }
}

static void *blocked(void *argument) {
    const char *kind = argument;
    if (strstr(kind, "abstime")) do_absolute(kind);
    else if (strstr(kind, "sleep") || strstr(kind, "timeout")) do_sleep(kind);
    else do_wait(kind);
    turn = 2;
    return NULL;
}

static void wake(const char *kind) {
    if (!strcmp(kind, "write")) {
        static char drain[65536];
        CHECK(read(pipe_ends[0], drain, sizeof drain) == sizeof drain, "drain");
    } else {
        CHECK(write(pipe_ends[1], "four", 4) == 4, "write to the pipe");
    }
    if (strstr(kind, "abstime") || strstr(kind, "sleep") || strstr(kind, "timeout")) return;
    PTRY(pthread_mutex_lock(&mutex));
    if (!turn) turn = 1;
    PTRY(pthread_cond_broadcast(&condition));
    PTRY(pthread_mutex_unlock(&mutex));
    sem_post(&semaphore);
    __atomic_store_n(&word, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &word, FUTEX_WAKE, 10, NULL, NULL, 0);
    if (!strcmp(kind, "pause")) PTRY(pthread_kill(blocked_thread, SIGUSR1));
    if (!strncmp(kind, "sig", 3)) PTRY(pthread_kill(blocked_thread, SIGUSR2));
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    char *kind = argc > 2 ? argv[2] : "read";
    struct sigaction action = {.sa_handler = on_signal};
    TRY(sigaction(SIGUSR1, &action, NULL));
    TRY(sigaction(SIGUSR2, &action, NULL));
    sigset_t second;
    sigemptyset(&second);
    sigaddset(&second, SIGUSR2);
    PTRY(pthread_sigmask(SIG_BLOCK, &second, NULL));
    TRY(pipe(pipe_ends));
    if (!strcmp(kind, "write")) {
        static char full[65536];
        CHECK(write(pipe_ends[1], full, sizeof full) == sizeof full, "filling the pipe");
    }
    TRY(sem_init(&semaphore, 0, 0));
    PTRY(pthread_create(&blocked_thread, NULL, blocked, kind));
    usleep(50000);
    probe_ready();
    probe_wait();
    if (!strstr(kind, "abstime") && !strstr(kind, "sleep") && !strstr(kind, "timeout"))
        CHECK(turn == 0, "%s came back before it was woken", kind);
    wake(kind);
    PTRY(pthread_join(blocked_thread, NULL));
    return probe_pass();
}
