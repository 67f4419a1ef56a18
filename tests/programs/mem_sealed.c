/* Sealed mappings (mseal): content and protection as they were, and nothing can change them any more. */
#include "probe.h"

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

static int seal(void *memory, size_t bytes) { return (int)syscall(SYS_mseal, memory, bytes, 0UL); }

/* Every one of these must be refused. */
static void check(char *memory, const char *what) {
    CHECK(mprotect(memory, PAGE, PROT_NONE) == -1 && errno == EPERM, "%s: protection can be changed", what);
    CHECK(munmap(memory, PAGE) == -1 && errno == EPERM, "%s: can be unmapped", what);
    void *over = mmap(memory, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(over == MAP_FAILED && errno == EPERM, "%s: can be mapped over", what);
    CHECK(mremap(memory, PAGE, 2 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EPERM, "%s: can be moved", what);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    char *data = probe_map(8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    char *constants = probe_map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    char *shared = probe_map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
    int file = TRY(open("sealed.dat", O_RDWR | O_CREAT | O_TRUNC, 0600));
    TRY(ftruncate(file, 4 * (off_t)PAGE));
    char *mapped = TRY((char *)mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0));
    TRY(close(file));
    probe_fill(data, 8 * PAGE, 1);
    probe_fill(constants, 4 * PAGE, 2);
    probe_fill(shared, 4 * PAGE, 3);
    probe_fill(mapped, 2 * PAGE, 4);
    TRY(mprotect(constants, 4 * PAGE, PROT_READ));
    /* Only the middle of this one. */
    if (seal(data + 2 * PAGE, 4 * PAGE)) skip("mseal: %s", strerror(errno));
    CHECK(!seal(constants, 4 * PAGE) && !seal(shared, 4 * PAGE) && !seal(mapped, 4 * PAGE), "mseal: %s", strerror(errno));
    check(constants, "before");
    probe_ready();
    probe_wait();
    probe_same(data, 8 * PAGE, 1, "data");
    probe_same(constants, 4 * PAGE, 2, "constants");
    probe_same(shared, 4 * PAGE, 3, "shared memory");
    probe_same(mapped, 2 * PAGE, 4, "file");
    check(data + 2 * PAGE, "data");
    check(data + 5 * PAGE, "data's last page");
    check(constants, "constants");
    check(shared, "shared memory");
    check(mapped, "file");
    CHECK(madvise(constants, PAGE, MADV_DONTNEED) == -1 && errno == EPERM, "content of constants can be dropped");
    CHECK(probe_faults(constants, 1), "constants can be written");
    data[3 * PAGE] = 'w';
    CHECK(mprotect(data, 2 * PAGE, PROT_NONE) == 0 && munmap(data + 6 * PAGE, 2 * PAGE) == 0, "more than was sealed is sealed");
    return probe_pass();
}
