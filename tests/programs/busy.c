/* Four threads that compute under a mutex and count their rounds in the file "progress", mapped shared, so that
   anybody can see whether each of them goes on. arguments: megabytes of memory to hold
   besides; "leaderless": the first thread ends, and another takes its part; "tree": processes instead of threads, each with the next
   as its child, and an ended one that nobody waited for. */
#include "probe.h"
#include <sys/wait.h>

#define THREADS 4
static volatile uint64_t *progress;

struct worker { pthread_t thread; uint64_t rounds, state; int number; };
static struct shared {
    volatile int stop;
    pthread_mutex_t mutex;
    uint64_t total;
    struct worker workers[THREADS];
} *shared;

static void *work(void *argument) {
    struct worker *me = argument;
    pid_t tid = probe_gettid();
    double sum = 0;
    while (!shared->stop) {
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
        PTRY(pthread_mutex_lock(&shared->mutex));
        shared->total++;
        PTRY(pthread_mutex_unlock(&shared->mutex));
        me->rounds++;
        progress[me->number]++;
        if (me->rounds % 4 == 0) {
            struct timespec moment = {0, 1000000};
            CHECK(nanosleep(&moment, NULL) == 0, "nanosleep was interrupted: %s", strerror(errno));
        }
    }
    CHECK(probe_other_ids || probe_gettid() == tid, "thread id was %d, is %d", tid, probe_gettid());
    return NULL;
}

static char *memory;
static size_t bytes;
static pid_t child, ended;

static void wait_for_child(void) {
    int status = -1;
    pid_t got;
    do got = waitpid(child, &status, 0); while (got == -1 && errno == EINTR);
    CHECK(got == child && status == 0, "process %d ended as %#x (%d: %s)", child, status, got, strerror(errno));
}

/* One process for each worker from this on, and one that ends at once. */
static pid_t descend(int number) {
    if (number == THREADS) {
        ended = TRY(fork());
        if (ended == 0) _exit(7);
        siginfo_t info;
        TRY(waitid(P_PID, (id_t)ended, &info, WEXITED | WNOWAIT));
        return 0;
    }
    pid_t parent = getpid(), born = TRY(fork());
    if (born != 0) return born;
    probe_pid = getpid();
    child = descend(number + 1);
    work(&shared->workers[number]);
    CHECK(getppid() == parent, "the parent of worker %d was %d, is %d", number, parent, getppid());
    if (child) wait_for_child();
    if (ended) {
        int status;
        CHECK(waitpid(ended, &status, 0) == ended && WEXITSTATUS(status) == 7, "the ended one: %#x", status);
    }
    _exit(0);
}

static void *watch(void *first) {
    if (first) PTRY(pthread_join(*(pthread_t *)first, NULL));
    probe_ready();
    while (!probe_resumed()) CHECK(usleep(2000) == 0, "usleep was interrupted: %s", strerror(errno));
    CHECK(probe_other_ids || getpid() == probe_pid, "pid was %d, is %d", probe_pid, getpid());
    shared->stop = 1;
    uint64_t rounds = 0;
    for (int i = 0; i < THREADS; i++) {
        if (!child) PTRY(pthread_join(shared->workers[i].thread, NULL));
        if (child && i == 0) wait_for_child();
        rounds += shared->workers[i].rounds;
    }
    CHECK(rounds == shared->total, "%lu rounds counted, %lu done", shared->total, rounds);
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
    shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "mmap: %s", strerror(errno));
    pthread_mutexattr_t kind;
    PTRY(pthread_mutexattr_init(&kind));
    PTRY(pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED));
    PTRY(pthread_mutex_init(&shared->mutex, &kind));
    for (int i = 0; i < THREADS; i++) shared->workers[i] = (struct worker){.state = (uint64_t)i, .number = i};
    if (argc > 3 && !strcmp(argv[3], "tree")) {
        child = descend(0);
        watch(NULL);
    }
    for (int i = 0; i < THREADS; i++) {
        PTRY(pthread_create(&shared->workers[i].thread, NULL, work, &shared->workers[i]));
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
