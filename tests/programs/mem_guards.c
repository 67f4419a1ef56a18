/* Guard regions (MADV_GUARD_INSTALL): touching them is a fault, before and after; taking them away gives zeros or what the file has.
   argument: anonymous, file (private and shared mappings of a file), shared (anonymous), locked (then mlock'ed) */
#include "probe.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#define PAGES 16

static void check(char *memory, const char *what, int writing) {
    for (int page = 0; page < PAGES; page++) {
        int guarded = page == 0 || page == 5 || page == 6 || page == PAGES - 1;
        CHECK(probe_faults(memory + page * PAGE + 8, 0) == guarded, "%s: page %d %s", what, page, guarded ? "can be read" : "faults");
        if (writing) CHECK(probe_faults(memory + page * PAGE + 8, 1) == guarded, "%s: page %d, writing", what, page);
        if (!guarded && page % 2) probe_same(memory + page * PAGE, PAGE, (uint64_t)page + 1, what);
    }
}

static void set_up(char *memory, int fill) {
    if (fill) for (int page = 0; page < PAGES; page++) if (page % 2) probe_fill(memory + page * PAGE, PAGE, (uint64_t)page + 1);
    if (madvise(memory, PAGE, MADV_GUARD_INSTALL)) skip("madvise(MADV_GUARD_INSTALL): %s", strerror(errno));
    TRY(madvise(memory + 5 * PAGE, 2 * PAGE, MADV_GUARD_INSTALL));
    TRY(madvise(memory + (PAGES - 1) * PAGE, PAGE, MADV_GUARD_INSTALL));
}

static char *map_file(const char *name, int sharing) {
    int file = TRY(open(name, O_RDWR | O_CREAT | O_TRUNC, 0600));
    char *content = probe_map(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    for (int page = 0; page < PAGES; page++) probe_fill(content + page * PAGE, PAGE, (uint64_t)page + 1);
    CHECK(write(file, content, PAGES * PAGE) == (ssize_t)(PAGES * PAGE), "write");
    TRY(munmap(content, PAGES * PAGE));
    char *memory = TRY((char *)mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, sharing, file, 0));
    TRY(close(file));
    return memory;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "anonymous";
    char *memory, *other = NULL;
    if (!strcmp(kind, "file")) {
        memory = map_file("private.dat", MAP_PRIVATE);
        other = map_file("shared.dat", MAP_SHARED);
        probe_fill(memory + 3 * PAGE, PAGE, 4);
        set_up(other, 0);
    } else {
        memory = probe_map(PAGES * PAGE, PROT_READ | PROT_WRITE, strcmp(kind, "shared") ? MAP_PRIVATE : MAP_SHARED);
    }
    set_up(memory, !other);
    if (!strcmp(kind, "locked")) {
        if (mlock(memory, PAGES * PAGE) && errno != ENOMEM && errno != EFAULT) skip("mlock: %s", strerror(errno));
    }
    char *read_only = probe_map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    read_only[0] = 'r';
    TRY(madvise(read_only + PAGE, PAGE, MADV_GUARD_INSTALL));
    TRY(mprotect(read_only, 2 * PAGE, PROT_READ));
    check(memory, "before", 1);
    probe_ready();
    probe_wait();
    check(memory, "memory", 1);
    if (other) check(other, "shared file", 1);
    CHECK(read_only[0] == 'r' && probe_faults(read_only + PAGE, 0) && probe_faults(read_only, 1), "guard in a read-only mapping");
    TRY(madvise(memory + 5 * PAGE, 2 * PAGE, MADV_GUARD_REMOVE));
    if (other || !strcmp(kind, "shared")) {
        /* Shared memory and files keep what they had below the guard. */
        probe_same(memory + 5 * PAGE, PAGE, 6, "page below a guard taken away");
    } else {
        probe_zero(memory + 5 * PAGE, 2 * PAGE, "guard taken away");
    }
    return probe_pass();
}
