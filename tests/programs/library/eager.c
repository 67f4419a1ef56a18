/*
 * A library that does much before the program's main function, as some do that compute: threads, files, timers, handlers, memory that is
 * locked. Preloaded into a program, and into the process that becomes the program again, it must disturb neither.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static volatile unsigned long turns;

static void *computes(void *argument) {
    for (;;) {
        free(malloc(turns++ % 5000));
        if (argument) usleep(100);
        if (turns == 0) return NULL;
    }
}

static void *blocks_all(void *argument) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    pthread_mutex_lock(&held);
    for (;;) pause();
    return argument;
}

static void nothing(int signal) { (void)signal; }

__attribute__((constructor)) static void begin(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, computes, NULL);
    pthread_create(&thread, NULL, computes, &held);
    pthread_create(&thread, NULL, blocks_all, NULL);
    for (int i = 0; i < 10; i++) if (open("/dev/null", O_RDWR) < 0) abort();
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGURG};
    struct itimerspec every = {{0, 1000000}, {0, 1000000}};
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &every, NULL)) abort();
    struct itimerval often = {{0, 1000}, {0, 1000}};
    signal(SIGVTALRM, nothing);
    setitimer(ITIMER_VIRTUAL, &often, NULL);
    void *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mlock(memory, 65536);
    stack_t stack = {.ss_sp = memory, .ss_size = 65536};
    sigaltstack(&stack, NULL);
    while (turns < 10) usleep(100);
}
