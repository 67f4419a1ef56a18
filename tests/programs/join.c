/* Threads alive at the checkpoint are joined after it: the kernel clears their id and wakes the joiner. */
#include "probe.h"

static volatile int stop;

static void *body(void *argument) {
    while (!stop) { }
    return (void *)((intptr_t)argument * 3);
}

static void *joiner(void *argument) {
    void *result;
    PTRY(pthread_join(*(pthread_t *)argument, &result));
    return result;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    pthread_t threads[3], waiting;
    for (intptr_t i = 0; i < 3; i++) PTRY(pthread_create(&threads[i], NULL, body, (void *)(i + 5)));
    /* This one is blocked in pthread_join at the checkpoint. */
    PTRY(pthread_create(&waiting, NULL, joiner, &threads[2]));
    usleep(50000);
    probe_ready();
    probe_wait();
    stop = 1;
    void *result;
    for (intptr_t i = 0; i < 2; i++) {
        PTRY(pthread_join(threads[i], &result));
        CHECK((intptr_t)result == (i + 5) * 3, "thread %ld returned another value", (long)i);
    }
    PTRY(pthread_join(waiting, &result));
    CHECK((intptr_t)result == 21, "the blocked joiner got another value");
    pthread_t fresh;
    PTRY(pthread_create(&fresh, NULL, body, (void *)1));
    PTRY(pthread_join(fresh, NULL));
    return probe_pass();
}
