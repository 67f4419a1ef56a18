/* Thread-local storage: variables, errno, the thread pointer and a gs base of one's own, in eight threads. */
#include "probe.h"
#include <asm/prctl.h>

static __thread uint64_t numbers[64];
static __thread uint64_t *self;
static volatile int stop;
static pthread_barrier_t barrier;

static void *body(void *argument) {
    uint64_t seed = (uint64_t)(uintptr_t)argument;
    uint64_t area[4] = {seed * 77, 0, 0, 0};
    self = numbers;
    probe_fill(numbers, sizeof numbers, seed);
    void *pointer = __builtin_thread_pointer();
    TRY(syscall(SYS_arch_prctl, ARCH_SET_GS, area));
    pid_t tid = probe_gettid();
    errno = 1000 + (int)seed;
    pthread_barrier_wait(&barrier);
    while (!stop) { }
    CHECK(errno == 1000 + (int)seed, "errno of thread %lu is %d", seed, errno);
    CHECK(self == numbers && __builtin_thread_pointer() == pointer, "thread pointer moved");
    CHECK(probe_other_ids || probe_gettid() == tid, "thread id was %d, is %d", tid, probe_gettid());
    probe_same(numbers, sizeof numbers, seed, "thread-local numbers");
    uint64_t value;
    __asm__ volatile("mov %%gs:0, %0" : "=r"(value));
    CHECK(value == seed * 77, "gs base of thread %lu", seed);
    return NULL;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    pthread_t threads[8];
    PTRY(pthread_barrier_init(&barrier, NULL, 9));
    for (uintptr_t i = 0; i < 8; i++) PTRY(pthread_create(&threads[i], NULL, body, (void *)(i + 1)));
    pthread_barrier_wait(&barrier);
    probe_ready();
    probe_wait();
    stop = 1;
    for (int i = 0; i < 8; i++) PTRY(pthread_join(threads[i], NULL));
    return probe_pass();
}
