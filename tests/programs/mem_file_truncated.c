/* Mapped files that were truncated since, deleted and truncated, or lie in /dev/shm.
   Pages behind the end give SIGBUS, before and after; private pages that were written before stay as they are.
   argument: named, deleted, shm; private: deleted, and mapped privately only, twice, the end of it by neither. */
#include "probe.h"

static int only_private(int fd, const char *name, const char *content) {
    char *first = mmap(NULL, 6 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    char *second = mmap(NULL, 3 * PAGE, PROT_READ, MAP_PRIVATE, fd, PAGE);
    CHECK(first != MAP_FAILED && second != MAP_FAILED, "mmap");
    probe_fill(first + PAGE, PAGE, 2);
    probe_fill(first + 4 * PAGE, PAGE, 3);
    TRY(ftruncate(fd, 5 * PAGE));
    TRY(unlink(name));
    TRY(close(fd));
    TRY(mprotect(second, PAGE, PROT_NONE));
    CHECK(probe_faults(first + 5 * PAGE, 0), "no fault behind the end");

    probe_ready();
    probe_wait();

    CHECK(!memcmp(first, content, PAGE) && !memcmp(first + 2 * PAGE, content + 2 * PAGE, 2 * PAGE), "pages that are the file's");
    probe_same(first + PAGE, PAGE, 2, "a page written privately");
    probe_same(first + 4 * PAGE, PAGE, 3, "another one");
    CHECK(probe_faults(second, 0), "no fault where nothing may be read");
    TRY(mprotect(second, PAGE, PROT_READ));
    CHECK(!memcmp(second, content + PAGE, 3 * PAGE), "the second mapping");
    CHECK(probe_faults(first + 5 * PAGE, 0), "no fault behind the end any more");
    /* What was written privately gives way to what the file has, of which the second mapping still knew. */
    TRY(madvise(first, 4 * PAGE, MADV_DONTNEED));
    CHECK(!memcmp(first, content, 4 * PAGE), "the file behind private pages");
    return probe_pass();
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "named";
    int shm = !strcmp(kind, "shm"), deleted = !strcmp(kind, "deleted");
    char name[64] = "truncated";
    if (shm) snprintf(name, sizeof name, "/dev/shm/rewake-test-%d", getpid());
    int fd = TRY(open(name, O_RDWR | O_CREAT | O_TRUNC, 0600));
    size_t size = 8 * PAGE;
    char *content = malloc(size);
    probe_fill(content, size, 1);
    CHECK(write(fd, content, size) == (ssize_t)size, "write");
    if (!strcmp(kind, "private")) return only_private(fd, name, content);
    char *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *private = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(shared != MAP_FAILED && private != MAP_FAILED, "mmap");
    probe_fill(private + PAGE, PAGE, 2);
    TRY(ftruncate(fd, 4 * PAGE));
    /* Private pages behind the new end go with it; the ones before it stay. */
    if (deleted) TRY(unlink(name));
    TRY(close(fd));
    CHECK(probe_faults(shared + 5 * PAGE, 0) && probe_faults(private + 5 * PAGE, 0), "no fault behind the end");

    probe_ready();
    probe_wait();

    CHECK(!memcmp(shared, content, 4 * PAGE), "the shared mapping differs");
    CHECK(!memcmp(private, content, PAGE), "the private mapping differs");
    probe_same(private + PAGE, PAGE, 2, "the page written privately");
    CHECK(probe_faults(shared + 5 * PAGE, 0) && probe_faults(private + 5 * PAGE, 1), "no fault behind the end any more");
    shared[2 * PAGE] ^= 1;
    CHECK(private[2 * PAGE] == shared[2 * PAGE], "the two mappings are of different files");
    if (shm) {
        struct stat now;
        TRY(stat(name, &now));
        CHECK(now.st_size == (off_t)(4 * PAGE), "size");
        TRY(unlink(name));
    }
    return probe_pass();
}
