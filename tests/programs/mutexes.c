/* Mutexes held at the checkpoint. argument: robust (the owner dies after the resume), pi (another one waits). */
#include "probe.h"

static pthread_mutex_t mutex;
static volatile int held, stop, got;

static void *owner(void *robust) {
    PTRY(pthread_mutex_lock(&mutex));
    held = 1;
    while (!stop) { }
    if (!robust) PTRY(pthread_mutex_unlock(&mutex));
    return NULL;
}

static void *waiter(void *nothing) {
    while (!held) { }
    PTRY(pthread_mutex_lock(&mutex));
    got = 1;
    PTRY(pthread_mutex_unlock(&mutex));
    return nothing;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    int robust = argc > 2 && !strcmp(argv[2], "robust");
    pthread_mutexattr_t attributes;
    PTRY(pthread_mutexattr_init(&attributes));
    if (robust) PTRY(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST));
    else PTRY(pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT));
    PTRY(pthread_mutex_init(&mutex, &attributes));
    pthread_t first, second;
    PTRY(pthread_create(&first, NULL, owner, robust ? (void *)1 : NULL));
    if (!robust) PTRY(pthread_create(&second, NULL, waiter, NULL));
    while (!held) { }
    usleep(50000);
    probe_ready();
    probe_wait();
    CHECK(pthread_mutex_trylock(&mutex) == EBUSY, "the mutex is no longer held");
    CHECK(!got, "the waiter got a mutex that is held");
    stop = 1;
    PTRY(pthread_join(first, NULL));
    if (robust) {
        CHECK(pthread_mutex_lock(&mutex) == EOWNERDEAD, "the death of the robust mutex's owner goes unnoticed");
        PTRY(pthread_mutex_consistent(&mutex));
        PTRY(pthread_mutex_unlock(&mutex));
    } else {
        PTRY(pthread_join(second, NULL));
        CHECK(got, "the waiter never got the mutex");
        CHECK(pthread_mutex_lock(&mutex) == 0, "the mutex cannot be taken again");
    }
    return probe_pass();
}
