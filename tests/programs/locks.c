/* Locks that look at who holds them: recursive and error-checking mutexes, one for many readers held by a writer and waited for; beside
   them numbers that are a thread's id, and no lock: they stay what they are. */
#include "probe.h"

#define TABLE 20000

static pthread_mutex_t recursive, checking, plain = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static volatile int held, stop, got;
struct entry { int kind, flags, id, references, type, more; };
static struct entry table[TABLE];
static int numbers[TABLE];
static pid_t id;

static void make(pthread_mutex_t *mutex, int type) {
    pthread_mutexattr_t attributes;
    PTRY(pthread_mutexattr_init(&attributes));
    PTRY(pthread_mutexattr_settype(&attributes, type));
    PTRY(pthread_mutex_init(mutex, &attributes));
}

static void *owner(void *nothing) {
    id = probe_gettid();
    PTRY(pthread_mutex_lock(&plain));
    PTRY(pthread_mutex_lock(&recursive));
    PTRY(pthread_mutex_lock(&recursive));
    PTRY(pthread_mutex_lock(&checking));
    PTRY(pthread_rwlock_wrlock(&lock));
    held = 1;
    while (!stop) { }
    CHECK(pthread_mutex_lock(&checking) == EDEADLK, "the checking mutex does not know its owner");
    PTRY(pthread_mutex_unlock(&checking));
    PTRY(pthread_mutex_lock(&recursive));
    for (int i = 0; i < 3; i++) PTRY(pthread_mutex_unlock(&recursive));
    CHECK(pthread_rwlock_wrlock(&lock) == EDEADLK, "the lock does not know its writer");
    PTRY(pthread_rwlock_unlock(&lock));
    PTRY(pthread_mutex_unlock(&plain));
    return nothing;
}

static void *reader(void *nothing) {
    while (!held) { }
    PTRY(pthread_rwlock_rdlock(&lock));
    got++;
    PTRY(pthread_rwlock_unlock(&lock));
    return nothing;
}

static struct entry entry(int i) {
    return (struct entry){.kind = 1 + i % 2, .flags = i % 3, .id = id, .references = 1 + i % 4, .type = i % 2 ? 4 : 1, .more = 1};
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    make(&recursive, PTHREAD_MUTEX_RECURSIVE);
    make(&checking, PTHREAD_MUTEX_ERRORCHECK);
    pthread_t first, second;
    PTRY(pthread_create(&first, NULL, owner, NULL));
    PTRY(pthread_create(&second, NULL, reader, NULL));
    while (!held) { }
    for (int i = 0; i < TABLE; i++) {
        table[i] = entry(i);
        numbers[i] = i % 7 ? id : 1;
    }
    usleep(50000);
    probe_ready();
    probe_wait();
    for (int i = 0; i < TABLE; i++) {
        struct entry expected = entry(i);
        CHECK(!memcmp(&table[i], &expected, sizeof expected), "entry %d of the table has id %d", i, table[i].id);
        CHECK(numbers[i] == (i % 7 ? id : 1), "number %d is %d", i, numbers[i]);
    }
    CHECK(!got, "the reader got a lock that a writer holds");
    CHECK(pthread_mutex_unlock(&checking) == EPERM, "somebody else may unlock the checking mutex");
    stop = 1;
    PTRY(pthread_join(first, NULL));
    PTRY(pthread_join(second, NULL));
    CHECK(got == 1, "the reader never got the lock");
    PTRY(pthread_mutex_lock(&recursive));
    PTRY(pthread_mutex_lock(&checking));
    PTRY(pthread_rwlock_wrlock(&lock));
    return probe_pass();
}
