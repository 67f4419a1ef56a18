/* What belongs to each thread: name, signal mask, alternate stack, nice, affinity, policy, timer slack. */
#include "probe.h"
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define THREADS 4
static volatile int stop;
static pthread_barrier_t barrier;

static void *body(void *argument) {
    int me = (int)(intptr_t)argument;
    char name[16], now[16], stack[4 * 4096];
    pid_t tid = probe_gettid();
    snprintf(name, sizeof name, "worker %d )(", me);
    PTRY(pthread_setname_np(pthread_self(), name));
    sigset_t mask, mask_now;
    sigemptyset(&mask);
    sigaddset(&mask, SIGRTMIN + me);
    if (me % 2) sigaddset(&mask, SIGTERM);
    PTRY(pthread_sigmask(SIG_SETMASK, &mask, NULL));
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack}, alternate_now;
    if (me != 2) TRY(sigaltstack(&alternate, NULL));
    cpu_set_t cpus, cpus_now;
    TRY(sched_getaffinity(0, sizeof cpus, &cpus));
    if (me == 3) {
        int first = 0;
        while (!CPU_ISSET(first, &cpus)) first++;
        CPU_ZERO(&cpus);
        CPU_SET(first, &cpus);
        TRY(sched_setaffinity(0, sizeof cpus, &cpus));
    }
    struct sched_param parameter = {0};
    int policy = me == 1 ? SCHED_BATCH : me == 2 ? SCHED_IDLE : SCHED_OTHER;
    TRY(sched_setscheduler(0, policy, &parameter));
    TRY(setpriority(PRIO_PROCESS, (id_t)tid, me * 3));
    TRY(prctl(PR_SET_TIMERSLACK, 70000 + me, 0, 0, 0));
    pthread_barrier_wait(&barrier);
    while (!stop) sched_yield();
    CHECK(probe_other_ids || probe_gettid() == tid, "thread id was %d, is %d", tid, probe_gettid());
    PTRY(pthread_getname_np(pthread_self(), now, sizeof now));
    CHECK(!strcmp(name, now), "thread name is %s", now);
    PTRY(pthread_sigmask(SIG_SETMASK, NULL, &mask_now));
    for (int i = 1; i <= 64; i++)
        CHECK(sigismember(&mask, i) == sigismember(&mask_now, i), "signal mask of thread %d differs at signal %d", me, i);
    TRY(sigaltstack(NULL, &alternate_now));
    if (me != 2) CHECK(alternate_now.ss_sp == (void *)stack && alternate_now.ss_size == sizeof stack && alternate_now.ss_flags == 0, "alternate stack of thread %d", me);
    else CHECK(alternate_now.ss_flags == SS_DISABLE, "thread %d got an alternate stack", me);
    TRY(sched_getaffinity(0, sizeof cpus_now, &cpus_now));
    CHECK(CPU_EQUAL(&cpus, &cpus_now), "affinity of thread %d", me);
    CHECK(sched_getscheduler(0) == policy, "scheduling policy of thread %d is %d", me, sched_getscheduler(0));
    errno = 0;
    CHECK(getpriority(PRIO_PROCESS, 0) == me * 3, "nice of thread %d is %d", me, getpriority(PRIO_PROCESS, 0));
    CHECK(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0) == 70000 + me, "timer slack of thread %d is %d", me, prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0));
    return NULL;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    pthread_t threads[THREADS];
    PTRY(pthread_barrier_init(&barrier, NULL, THREADS + 1));
    for (intptr_t i = 0; i < THREADS; i++) PTRY(pthread_create(&threads[i], NULL, body, (void *)i));
    pthread_barrier_wait(&barrier);
    probe_ready();
    probe_wait();
    stop = 1;
    for (int i = 0; i < THREADS; i++) PTRY(pthread_join(threads[i], NULL));
    return probe_pass();
}
