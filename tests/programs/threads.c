/* Threads (argument: how many) that compute in rounds under a mutex, a condition variable and a barrier. */
#include "probe.h"

static int count;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t everyone = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static uint64_t total, generation;
static int arrived, finished;

struct worker { pthread_t thread; pid_t tid; uint64_t rounds; double sum; };

/* A barrier made of the mutex and the condition variable; the last to arrive decides whether all is done. */
static void meet(void) {
    PTRY(pthread_mutex_lock(&mutex));
    uint64_t mine = generation;
    if (++arrived == count) {
        arrived = 0;
        generation++;
        finished = probe_resumed();
        PTRY(pthread_cond_broadcast(&everyone));
    } else {
        while (mine == generation) PTRY(pthread_cond_wait(&everyone, &mutex));
    }
    PTRY(pthread_mutex_unlock(&mutex));
}

static void *work(void *argument) {
    struct worker *me = argument;
    me->tid = probe_gettid();
    int more = 1;
    while (more) {
        for (int i = 1; i < 2000; i++) me->sum += 1.0 / (double)((uint64_t)i + me->rounds);
        me->rounds++;
        PTRY(pthread_mutex_lock(&mutex));
        total++;
        PTRY(pthread_mutex_unlock(&mutex));
        meet();
        more = !finished;
        pthread_barrier_wait(&barrier);
    }
    CHECK(probe_other_ids || probe_gettid() == me->tid, "thread id was %d, is %d", me->tid, probe_gettid());
    return NULL;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    count = argc > 2 ? atoi(argv[2]) : 1;
    struct worker *workers = calloc((size_t)count, sizeof *workers);
    pthread_attr_t attributes;
    PTRY(pthread_attr_init(&attributes));
    if (count > 100) PTRY(pthread_attr_setstacksize(&attributes, 128 * 1024));
    PTRY(pthread_barrier_init(&barrier, NULL, (unsigned)count));
    /* The main thread is one of them. */
    for (int i = 1; i < count; i++) PTRY(pthread_create(&workers[i].thread, &attributes, work, &workers[i]));
    probe_ready();
    work(&workers[0]);
    for (int i = 1; i < count; i++) PTRY(pthread_join(workers[i].thread, NULL));
    for (int i = 0; i < count; i++) {
        CHECK(workers[i].rounds == workers[0].rounds, "thread %d did %lu rounds, not %lu", i, workers[i].rounds, workers[0].rounds);
        CHECK(workers[i].sum == workers[0].sum, "thread %d computed another sum", i);
    }
    CHECK(total == workers[0].rounds * (uint64_t)count, "%lu rounds counted, not %lu", total, workers[0].rounds * (uint64_t)count);
    CHECK(probe_other_ids || getpid() == probe_pid, "pid was %d, is %d", probe_pid, getpid());
    return probe_pass();
}
