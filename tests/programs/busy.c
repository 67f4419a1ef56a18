/* Four threads that compute under a mutex and count their rounds in the file "progress", mapped shared, so that
   anybody can see whether each of them goes on. arguments: megabytes of memory to hold
   besides; "leaderless": the first thread ends, and another takes its part. */
#include "probe.h"

#define THREADS 4
static volatile uint64_t *progress;
static volatile int stop;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t total;

struct worker { pthread_t thread; uint64_t rounds, state; int number; };

static void *work(void *argument) {
    struct worker *me = argument;
    pid_t tid = probe_gettid();
    double sum = 0;
    while (!stop) {
        uint64_t before = me->state;
        sum = 0;
        for (int i = 1; i < 5000; i++) {
            me->state = probe_mix(me->state);
            sum += 1.0 / i;
        }
        uint64_t again = before;
        for (int i = 1; i < 5000; i++) again = probe_mix(again);
        CHECK(again == me->state, "thread %d computed something else", me->number);
        CHECK(sum > 9.0943 && sum < 9.0945, "thread %d summed up to %f", me->number, sum);
        PTRY(pthread_mutex_lock(&mutex));
        total++;
        PTRY(pthread_mutex_unlock(&mutex));
        me->rounds++;
        progress[me->number]++;
        if (me->rounds % 4 == 0) {
            struct timespec moment = {0, 1000000};
            CHECK(nanosleep(&moment, NULL) == 0, "nanosleep was interrupted: %s", strerror(errno));
        }
    }
    CHECK(probe_gettid() == tid, "thread id was %d, is %d", tid, probe_gettid());
    return NULL;
}

static char *memory;
static size_t bytes;
static struct worker workers[THREADS];

static void *watch(void *first) {
    if (first) PTRY(pthread_join(*(pthread_t *)first, NULL));
    probe_ready();
    while (!probe_resumed()) CHECK(usleep(2000) == 0, "usleep was interrupted: %s", strerror(errno));
    CHECK(getpid() == probe_pid, "pid was %d, is %d", probe_pid, getpid());
    stop = 1;
    uint64_t rounds = 0;
    for (int i = 0; i < THREADS; i++) {
        PTRY(pthread_join(workers[i].thread, NULL));
        rounds += workers[i].rounds;
    }
    CHECK(rounds == total, "%lu rounds counted, %lu done", total, rounds);
    probe_same(memory, bytes, 42, "memory");
    exit(probe_pass());
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    bytes = (argc > 2 ? (size_t)atoi(argv[2]) : 1) << 20;
    memory = probe_map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    probe_fill(memory, bytes, 42);
    int file = TRY(open("progress", O_RDWR | O_CREAT | O_TRUNC, 0600));
    TRY(ftruncate(file, PAGE));
    progress = TRY((volatile uint64_t *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    TRY(close(file));
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.state = (uint64_t)i, .number = i};
        PTRY(pthread_create(&workers[i].thread, NULL, work, &workers[i]));
    }
    if (argc > 3) {
        static pthread_t first;
        pthread_t watcher;
        first = pthread_self();
        PTRY(pthread_create(&watcher, NULL, watch, &first));
        pthread_exit(NULL);
    }
    watch(NULL);
}
