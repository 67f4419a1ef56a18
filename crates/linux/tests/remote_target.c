// A target that notices whatever is done to it: threads that compute, sleep, wait and handle signals, each checking itself.
// Says READY, counts the rounds of each thread in the file named by argv[1], ends at the end of its input with PASS.
// With a further argument it bears EINTR, as programs must that are stopped by SIGSTOP or lose their tracer (signal(7)).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static _Atomic int stop;
static int tolerant;
static _Atomic uint64_t *rounds;
static int pipes[2], event, epoll, sockets[2];

#define CHECK(what) do { if (!(what)) { printf("FAIL line %d: %s (errno %d)\n", __LINE__, #what, errno); fflush(stdout); _exit(1); } } while (0)

static int interrupted(long result) { return tolerant && result == -1 && errno == EINTR; }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

// Keeps values in as many general and vector registers as the compiler has.
static double checksum(void) {
    uint64_t a = 1, b = 2, c = 3, d = 4, e = 5, f = 6;
    double x = 1, y = 2, z = 3, v = 4, w = 5, u = 6, s = 7, t = 8;
    for (int i = 0; i < 200000; i++) {
        a = a * 6364136223846793005u + b; b ^= a >> 7; c += b * 3; d = d * c + 1; e ^= d << 3; f += e;
        x = x * 1.0000001 + y * 1e-9; y += z * 1e-9; z = z * 0.9999999 + v * 1e-9; v += w * 1e-9;
        w += u * 1e-9; u = u * 1.0000001; s += x * y * 1e-9; t = t * 0.9999999 + s * 1e-9;
    }
    return x + y + z + v + w + u + s + t + (double)((a ^ b ^ c ^ d ^ e ^ f) >> 11);
}

typedef float wide __attribute__((vector_size(32)));
static void wide_checksum(wide *sum) {
    wide a = {1, 2, 3, 4, 5, 6, 7, 8}, b = a * 0.5f, c = a + b, d = c - 3;
    for (int i = 0; i < 200000; i++) { a = a * 0.999f + b * 0.001f; b = b * 0.998f + c * 0.002f; c = c * 0.997f + d * 0.003f; d = d * 0.996f + a * 0.004f; }
    *sum = a + b + c + d;
}

static void compute(void) { static _Thread_local double first; double sum = checksum(); if (first == 0) first = sum; CHECK(sum == first); }
static void compute_wide(void) {
    static _Thread_local wide first; static _Thread_local int known;
    wide sum;
    wide_checksum(&sum);
    if (!known) { known = 1; first = sum; }
    CHECK(!memcmp(&sum, &first, sizeof sum));
}
static void sleeper(void) {
    double start = now();
    struct timespec t = {0, 20000000};
    int result;
    while (interrupted(result = nanosleep(&t, &t))) {}
    CHECK(result == 0);
    CHECK(now() - start >= 0.02);
}
static void pipe_reader(void) { char c; CHECK(read(pipes[0], &c, 1) == 1); }
static void epoll_waiter(void) {
    struct epoll_event e;
    uint64_t n;
    int result;
    while (interrupted(result = epoll_wait(epoll, &e, 1, 5000))) {}
    CHECK(result == 1);
    CHECK(read(event, &n, 8) == 8);
}
static void all_blocked(void) {
    sigset_t all, is;
    sigfillset(&all);
    CHECK(pthread_sigmask(SIG_BLOCK, &all, NULL) == 0);
    usleep(500);
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &is) == 0);
    for (int s = 1; s <= 31; s++) CHECK(s == SIGKILL || s == SIGSTOP || sigismember(&is, s));
}
static void poller(void) {
    double start = now();
    sigset_t other, is;
    sigemptyset(&other);
    sigaddset(&other, SIGALRM);
    struct timespec t = {0, 15000000};
    int result = ppoll(NULL, 0, &t, &other);
    CHECK(result == 0 || interrupted(result));
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &is) == 0 && sigismember(&is, SIGUSR2));
    if (result) return;
    CHECK(now() - start >= 0.015);
}
static void timed_sem(void) {
    sem_t s;
    sem_init(&s, 0, 0);
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += 10000000;
    if (t.tv_nsec >= 1000000000) { t.tv_nsec -= 1000000000; t.tv_sec++; }
    int result;
    while (interrupted(result = sem_timedwait(&s, &t))) {}
    CHECK(result == -1 && errno == ETIMEDOUT);
}
static void socket_reader(void) {
    char c;
    ssize_t result;
    while (interrupted(result = recv(sockets[0], &c, 1, 0))) {}
    CHECK(result == 1);
}

static _Thread_local char *alt_low;
static _Thread_local volatile int handled;
static void on_usr1(int signal) { (void)signal; char here; CHECK(&here >= alt_low && &here < alt_low + 32768); handled++; }
static void alt_stack(void) {
    if (!alt_low) {
        alt_low = malloc(32768);
        stack_t s = {.ss_sp = alt_low, .ss_size = 32768};
        CHECK(sigaltstack(&s, NULL) == 0);
    }
    int before = handled;
    CHECK(pthread_kill(pthread_self(), SIGUSR1) == 0);
    CHECK(handled == before + 1);
    stack_t is;
    CHECK(sigaltstack(NULL, &is) == 0 && is.ss_sp == alt_low && is.ss_flags == 0);
    usleep(200);
}
static void feeder(void) {
    uint64_t one = 1;
    usleep(3000);
    CHECK(write(pipes[1], "x", 1) == 1 && write(sockets[1], "x", 1) == 1 && write(event, &one, 8) == 8);
}

static void (*const jobs[])(void) = {compute, compute_wide, sleeper, pipe_reader, epoll_waiter, all_blocked, poller, timed_sem, socket_reader, alt_stack, feeder};
enum { JOBS = sizeof jobs / sizeof *jobs };
static volatile int alarms;
static void on_alarm(int signal) { (void)signal; alarms++; }

static void *worker(void *arg) {
    intptr_t i = (intptr_t)arg;
    if (jobs[i] != compute) { sigset_t s; sigemptyset(&s); sigaddset(&s, SIGALRM); sigaddset(&s, SIGUSR2); pthread_sigmask(SIG_BLOCK, &s, NULL); }
    while (!stop || i == JOBS - 1) {
        jobs[i]();
        rounds[i]++;
        if (i == JOBS - 1 && stop == 2) break;
    }
    return NULL;
}

int main(int argc, char **argv) {
    tolerant = argc > 2;
    int file = argc > 1 ? open(argv[1], O_RDWR | O_CREAT, 0600) : -1;
    CHECK(file >= 0 && ftruncate(file, 4096) == 0);
    rounds = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(rounds != MAP_FAILED && pipe(pipes) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    struct timeval five = {5, 0};
    CHECK(setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &five, sizeof five) == 0);
    event = eventfd(0, 0);
    epoll = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN};
    CHECK(event >= 0 && epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, event, &e) == 0);
    struct sigaction usr1 = {.sa_handler = on_usr1, .sa_flags = SA_ONSTACK}, alarm = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGUSR1, &usr1, NULL) == 0 && sigaction(SIGALRM, &alarm, NULL) == 0);
    pthread_t threads[JOBS];
    for (intptr_t i = 0; i < JOBS; i++) CHECK(pthread_create(&threads[i], NULL, worker, (void *)i) == 0);
    struct itimerval every = {{0, 7000}, {0, 7000}};
    CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0);
    printf("READY\n");
    fflush(stdout);
    char c;
    ssize_t n;
    while ((n = read(0, &c, 1)) == 1) {}
    CHECK(n == 0);
    stop = 1;
    for (int i = 0; i < JOBS - 1; i++) pthread_join(threads[i], NULL);
    stop = 2;
    pthread_join(threads[JOBS - 1], NULL);
    CHECK(alarms > 0);
    printf("PASS\n");
    return 0;
}
