/* POSIX named semaphores and shared memory, in a tree. argument: what. */
#include "tree.h"
#include <semaphore.h>

static char name[64];

static const char *name_of(const char *kind) {
    snprintf(name, sizeof name, "/rewake-test-%s-%d", kind, (int)getpid());
    return name;
}

/* A named semaphore, with a name still or without: a child waits at it, another takes turns. */
static void semaphore(int unlinked) {
    char own[64];
    snprintf(own, sizeof own, "%s", name_of("sem"));
    sem_t *one = sem_open(own, O_CREAT | O_EXCL, 0600, 3);
    CHECK(one != SEM_FAILED, "sem_open: %s", strerror(errno));
    if (unlinked) TRY(sem_unlink(own));
    for (int i = 0; i < 3; i++) TRY(sem_wait(one));
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        tree_set_up();
        TRY(sem_wait(one));
        CHECK(probe_resumed(), "it waited for nothing");
        TRY(sem_post(one));
        TRY(sem_post(one));
        _exit(0);
    }
    tree_ready(1);
    int value;
    TRY(sem_getvalue(one, &value));
    CHECK(value == 0, "value %d", value);
    probe_wait();
    TRY(sem_getvalue(one, &value));
    CHECK(value == 0, "value %d", value);
    TRY(sem_post(one));
    tree_ends(child, 0);
    TRY(sem_getvalue(one, &value));
    CHECK(value == 2, "value %d", value);
    if (unlinked) return;
    sem_t *again = sem_open(own, 0);
    CHECK(again != SEM_FAILED, "sem_open: %s", strerror(errno));
    TRY(sem_post(again));
    TRY(sem_getvalue(one, &value));
    CHECK(value == 3, "its name leads to another one");
    TRY(sem_unlink(own));
}

/* Shared memory with a name, or without: parent and child have it, at different places. */
static void memory(int unlinked) {
    size_t bytes = 8 * PAGE;
    char own[64];
    snprintf(own, sizeof own, "%s", name_of("shm"));
    int file = TRY(shm_open(own, O_RDWR | O_CREAT | O_EXCL, 0600));
    TRY(ftruncate(file, (off_t)bytes));
    volatile uint64_t *words = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(words != MAP_FAILED, "mmap: %s", strerror(errno));
    if (unlinked) TRY(shm_unlink(own));
    probe_fill((char *)words + PAGE, PAGE, 4);
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        volatile uint64_t *other = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, (off_t)PAGE);
        CHECK(other != MAP_FAILED, "mmap: %s", strerror(errno));
        TRY(munmap((void *)words, bytes));
        other[512] = 5;
        tree_set_up();
        tree_wait(pid, parent);
        CHECK(other[512] == 5, "what the child wrote");
        other[513] = 6;
        while (other[514] != 7) usleep(1000);
        _exit(0);
    }
    tree_ready(1);
    probe_wait();
    probe_same((char *)words + PAGE, PAGE, 4, "content");
    while (words[1024 + 1] != 6) usleep(1000);
    CHECK(words[1024] == 5, "what the child wrote");
    words[1024 + 2] = 7;
    tree_ends(child, 0);
    struct stat state;
    TRY(fstat(file, &state));
    CHECK((size_t)state.st_size == bytes && (state.st_nlink == 0) == unlinked, "size %ld, links %lu", (long)state.st_size, (unsigned long)state.st_nlink);
    if (!unlinked) TRY(shm_unlink(own));
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "";
    if (!strcmp(what, "sem")) semaphore(0);
    else if (!strcmp(what, "sem-unlinked")) semaphore(1);
    else if (!strcmp(what, "shm")) memory(0);
    else if (!strcmp(what, "shm-unlinked")) memory(1);
    else fail("no such test");
    return probe_pass();
}
