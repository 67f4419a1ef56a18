/* Private anonymous memory: patterns, read-only, no access with content, holes, MADV_DONTNEED afterwards. */
#include "probe.h"

int main(int argc, char **argv) {
    probe_start(argc, argv);
    size_t bytes = 64 * PAGE;
    char *plain = probe_map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    char *fixed = probe_map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    char *closed = probe_map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    char *holes = probe_map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    char *dropped = probe_map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    char *reserved = probe_map(bytes, PROT_NONE, MAP_PRIVATE);
    probe_fill(plain, bytes, 1);
    probe_fill(fixed, bytes, 2);
    probe_fill(closed, bytes, 3);
    for (size_t page = 0; page < 64; page += 7) probe_fill(holes + page * PAGE, PAGE, 4 + page);
    memset(holes + 5 * PAGE, 0, PAGE);
    probe_fill(dropped, bytes, 100);
    TRY(mprotect(fixed, bytes, PROT_READ));
    TRY(mprotect(closed, bytes, PROT_NONE));
    probe_ready();
    probe_wait();
    probe_same(plain, bytes, 1, "read-write memory");
    probe_fill(plain, bytes, 11);
    probe_same(plain, bytes, 11, "read-write memory written again");
    probe_same(fixed, bytes, 2, "read-only memory");
    CHECK(probe_faults(fixed, 1), "read-only memory can be written");
    CHECK(probe_faults(closed, 0), "PROT_NONE memory can be read");
    CHECK(probe_faults(reserved, 0), "reserved memory can be read");
    TRY(mprotect(closed, bytes, PROT_READ));
    probe_same(closed, bytes, 3, "PROT_NONE memory opened again");
    TRY(mprotect(reserved, bytes, PROT_READ | PROT_WRITE));
    probe_zero(reserved, bytes, "reserved memory opened");
    for (size_t page = 0; page < 64; page++) {
        if (page % 7 == 0) probe_same(holes + page * PAGE, PAGE, 4 + page, "page between holes");
        else probe_zero(holes + page * PAGE, PAGE, "hole");
    }
    probe_same(dropped, bytes, 100, "memory to be dropped");
    TRY(madvise(dropped, bytes, MADV_DONTNEED));
    probe_zero(dropped, bytes, "memory after MADV_DONTNEED");
    TRY(madvise(holes, bytes, MADV_DONTNEED));
    probe_zero(holes, bytes, "holes after MADV_DONTNEED");
    return probe_pass();
}
