/* A thread blocked in a system call (argument: which) goes on after the resume as if nothing had been:
   sleeps last the time that was left, all else waits on until it is woken; nothing ever returns EINTR. What is called ..._anew has a
   time-out that may begin anew, as docs/limits.md tells. How long a sleep lasted is left in the file "measured". */
#include "probe.h"
#include <linux/futex.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/time.h>
#include <sys/uio.h>

static const double LASTS = 1.25;
static int pipe_ends[2];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static sem_t semaphore;
static int semaphores;
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

static void measured(double lasted) {
    char line[128];
    int length = snprintf(line, sizeof line, "%.0f ms asked for, %+.0f ms", LASTS * 1e3, (lasted - LASTS) * 1e3);
    int file = TRY(open("measured", O_WRONLY | O_CREAT | O_TRUNC, 0644));
    CHECK(write(file, line, (size_t)length) == length, "measured");
    TRY(close(file));
}

/* Seconds that this thread ran, and had to wait for a processor: nobody's fault but the machine's. A resumed thread begins at 0. */
static double ran_and_waited(double *waited) {
    char text[128] = "";
    unsigned long long ran = 0, delayed = 0;
    int file = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    if (file == -1) return 0;
    if (read(file, text, sizeof text - 1) > 0) (void)sscanf(text, "%llu %llu", &ran, &delayed);
    close(file);
    if (waited) *waited = (double)delayed / 1e9;
    return (double)(ran + delayed) / 1e9;
}

static double waited_since(double before) {
    double now = 0;
    ran_and_waited(&now);
    return now >= before ? now - before : now;
}

/* When this process began, which is another time once it is resumed. */
static unsigned long long began(void) {
    char text[1024] = "", *behind;
    unsigned long long start = 0;
    int file = TRY(open("/proc/self/stat", O_RDONLY | O_CLOEXEC));
    CHECK(read(file, text, sizeof text - 1) > 0 && (behind = strrchr(text, ')')), "/proc/self/stat");
    TRY(close(file));
    CHECK(sscanf(behind, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &start) == 1, "/proc/self/stat");
    return start;
}

/* How long the sleep was, when it was over, and how long it took the thread to come to itself. */
static double slept, late;
static volatile double woke;
/* How long the program stood still until then: it neither ran nor waited for a processor. */
static double still;

/* Computes until the flag file is there. The kernel counts in steps of some milliseconds, which even out. */
static void wait_measuring(void) {
    unsigned long long start = began();
    double last = probe_now(), busy = ran_and_waited(NULL);
    while (!probe_resumed()) {
        for (volatile int i = 0; i < 20000; i++) { }
        double busy_now = ran_and_waited(NULL), now = probe_now(), gap = now - last - (busy_now - busy);
        if (gap > 0.003) {
            unsigned long long start_now = began();
            if (start_now != start) {
                gap = now - last;
                /* What was read just before the checkpoint is of the process that was. */
                busy_now = ran_and_waited(NULL);
            }
            start = start_now;
        }
        if (woke == 0 || last < woke) still += gap;
        last = now;
        busy = busy_now;
    }
    CHECK(probe_other_ids || getpid() == probe_pid, "pid was %d, is %d", probe_pid, getpid());
}

static void check_sleep(int anew) {
    double awake = slept - still;
    /* The checkpoint comes when about 0.6 s have passed: a sleep that begins anew lasts that much longer. Time that a hypervisor took looks
       like standing still. */
    CHECK(slept > LASTS - 0.1 && awake > LASTS - 0.4 && awake < LASTS + late + (anew ? 2.5 : 0.4), "slept %.3f s of %.2f s (stood still %.3f s, late %.3f s)",
        awake, LASTS, still, late);
    measured(awake);
}

static void check_absolute(void) {
    CHECK(slept > LASTS - 0.01, "woken after %.3f s already", slept);
    CHECK(slept < LASTS + still + late + 0.4, "woken only after %.3f s (stood still %.3f s, late %.3f s)", slept, still, late);
    measured(slept);
}

/* A program may count on registers being as they were when it made the call itself. */
static int epoll_register(int epoll, struct epoll_event *event, int timeout) {
    register long fourth asm("r10") = timeout;
    long result = SYS_epoll_wait, after;
    asm volatile("syscall\n\tmov %%r10, %1" : "+a"(result), "=&r"(after) : "D"(epoll), "S"(event), "d"(1), "r"(fourth) : "rcx", "r11", "memory");
    CHECK(after == timeout, "the fourth argument was %d, is %ld", timeout, after);
    return (int)result;
}

static void do_epoll(const char *kind, const struct timespec *whole) {
    struct epoll_event event;
    int epoll = TRY(epoll_create1(0)), timeout = (int)(LASTS * 1000), result = -1;
    if (!strcmp(kind, "epoll_timeout")) result = epoll_wait(epoll, &event, 1, timeout);
    if (!strcmp(kind, "epoll_pwait_timeout")) result = epoll_pwait(epoll, &event, 1, timeout, NULL);
    if (!strcmp(kind, "epoll_pwait2_timeout_anew")) result = (int)syscall(SYS_epoll_pwait2, epoll, &event, 1, whole, NULL, 0);
    if (!strcmp(kind, "epoll_register_timeout_anew")) result = epoll_register(epoll, &event, timeout);
    CHECK(result == 0, "%s: %d, %s", kind, result, strerror(errno));
}

static void do_sleep(const char *kind) {
    struct timespec whole = {(time_t)LASTS, (long)((LASTS - (time_t)LASTS) * 1e9)}, rest = {77, 77};
    double delayed = 0, started;
    ran_and_waited(&delayed);
    started = probe_now();
    if (!strcmp(kind, "nanosleep")) CHECK(nanosleep(&whole, &rest) == 0, "nanosleep: %s", strerror(errno));
    if (!strcmp(kind, "nanosleep_null")) CHECK(syscall(SYS_nanosleep, &whole, NULL) == 0, "nanosleep: %s", strerror(errno));
    if (!strcmp(kind, "clock_nanosleep")) CHECK(clock_nanosleep(CLOCK_MONOTONIC, 0, &whole, NULL) == 0, "clock_nanosleep failed");
    if (!strcmp(kind, "poll_timeout")) CHECK(poll(NULL, 0, (int)(LASTS * 1000)) == 0, "poll: %s", strerror(errno));
    if (!strcmp(kind, "select_timeout")) {
        struct timeval time = {(time_t)LASTS, (suseconds_t)((LASTS - (time_t)LASTS) * 1e6)};
        CHECK(select(0, NULL, NULL, NULL, &time) == 0, "select: %s", strerror(errno));
    }
    if (!strcmp(kind, "pselect_timeout")) CHECK(pselect(0, NULL, NULL, NULL, &whole, NULL) == 0, "pselect: %s", strerror(errno));
    if (!strcmp(kind, "ppoll_timeout")) CHECK(ppoll(NULL, 0, &whole, NULL) == 0, "ppoll: %s", strerror(errno));
    if (!strncmp(kind, "epoll", 5)) do_epoll(kind, &whole);
    if (!strcmp(kind, "sigtimedwait_timeout_anew")) {
        sigset_t wanted;
        sigemptyset(&wanted);
        sigaddset(&wanted, SIGUSR2);
        CHECK(sigtimedwait(&wanted, NULL, &whole) == -1 && errno == EAGAIN, "sigtimedwait: %s", strerror(errno));
    }
    if (!strcmp(kind, "semtimedop_timeout_anew")) {
        struct sembuf down = {0, -1, 0};
        CHECK(semtimedop(semaphores, &down, 1, &whole) == -1 && errno == EAGAIN, "semtimedop: %s", strerror(errno));
        TRY(semctl(semaphores, 0, IPC_RMID));
    }
    if (!strcmp(kind, "futex_timeout"))
        CHECK(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &whole, NULL, 0) == -1 && errno == ETIMEDOUT, "futex: %s", strerror(errno));
    woke = probe_now();
    slept = woke - started;
    late = waited_since(delayed);
}

/* Absolute times pass while the program stands still: the sleep is over at that time or at once. */
static void do_absolute(const char *kind) {
    struct timespec end = later(LASTS, CLOCK_MONOTONIC);
    double delayed = 0, started;
    ran_and_waited(&delayed);
    started = probe_now();
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
    woke = probe_now();
    slept = woke - started;
    late = waited_since(delayed);
}

/* Linux 6.7. */
static long futex2_wait(unsigned long value) {
    const long futex_wait = 455;
    return syscall(futex_wait, &word, value, 0xffffffffUL, FUTEX_32, NULL, 0);
}

static void do_wait(const char *kind) {
    char byte[4] = {0};
    if (!strcmp(kind, "read")) CHECK(read(pipe_ends[0], byte, 4) == 4, "read: %s", strerror(errno));
    if (!strcmp(kind, "write")) CHECK(write(pipe_ends[1], byte, 4) == 4, "write: %s", strerror(errno));
    struct iovec halves[] = {{byte, 2}, {byte + 2, 2}};
    if (!strcmp(kind, "readv")) CHECK(readv(pipe_ends[0], halves, 2) == 4, "readv: %s", strerror(errno));
    if (!strcmp(kind, "writev")) CHECK(writev(pipe_ends[1], halves, 2) == 4, "writev: %s", strerror(errno));
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
    if (!strcmp(kind, "futex2_one")) CHECK(futex2_wait(0) == 0, "futex_wait: %s", strerror(errno));
    if (!strcmp(kind, "futex2_many")) {
        struct futex_waitv waits[] = {{.uaddr = (uintptr_t)&word, .flags = FUTEX_32}};
        CHECK(syscall(SYS_futex_waitv, waits, 1, 0, NULL, 0) == 0, "futex_waitv: %s", strerror(errno));
    }
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
    if (!strncmp(kind, "write", 5)) {
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
    if (!strncmp(kind, "write", 5)) {
        static char full[65536];
        CHECK(write(pipe_ends[1], full, sizeof full) == sizeof full, "filling the pipe");
    }
    if (!strcmp(kind, "futex2_one") && futex2_wait(1) == -1 && errno == ENOSYS) skip("this kernel has no futex_wait");
    TRY(sem_init(&semaphore, 0, 0));
    if (!strncmp(kind, "semtimedop", 10)) TRY(semaphores = semget(IPC_PRIVATE, 1, 0600));
    PTRY(pthread_create(&blocked_thread, NULL, blocked, kind));
    usleep(50000);
    probe_ready();
    wait_measuring();
    if (!strstr(kind, "abstime") && !strstr(kind, "sleep") && !strstr(kind, "timeout"))
        CHECK(turn == 0, "%s came back before it was woken", kind);
    wake(kind);
    PTRY(pthread_join(blocked_thread, NULL));
    if (strstr(kind, "abstime")) check_absolute();
    else if (strstr(kind, "sleep") || strstr(kind, "timeout")) check_sleep(strstr(kind, "anew") != NULL);
    return probe_pass();
}
