/* Restartable sequences: still registered for each thread, the kernel goes on writing the processor's number. */
#include "probe.h"
#include <sched.h>
#include <sys/rseq.h>

static volatile int stop;
static pthread_barrier_t barrier;

static struct rseq *area(void) { return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset); }

static void check(void) {
    unsigned size = __rseq_size < 32 ? 32 : __rseq_size;
    int result = (int)syscall(SYS_rseq, area(), size, 0, RSEQ_SIG);
    CHECK(result == -1 && errno == EBUSY, "rseq is not registered as before (%s)", result ? strerror(errno) : "it was free");
    cpu_set_t all, one;
    TRY(sched_getaffinity(0, sizeof all, &all));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &all)) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        TRY(sched_setaffinity(0, sizeof one, &one));
        CHECK(sched_getcpu() == cpu, "sched_getcpu says %d on processor %d", sched_getcpu(), cpu);
        CHECK((int)((volatile struct rseq *)area())->cpu_id == cpu, "rseq says processor %d on %d", (int)area()->cpu_id, cpu);
    }
}

static void *body(void *nothing) {
    pthread_barrier_wait(&barrier);
    while (!stop) { }
    check();
    return nothing;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    if (__rseq_size == 0) skip("this C library registers no restartable sequences");
    pthread_t thread;
    PTRY(pthread_barrier_init(&barrier, NULL, 2));
    PTRY(pthread_create(&thread, NULL, body, NULL));
    pthread_barrier_wait(&barrier);
    probe_ready();
    probe_wait();
    check();
    stop = 1;
    PTRY(pthread_join(thread, NULL));
    return probe_pass();
}
