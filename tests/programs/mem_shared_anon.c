/* Shared anonymous memory: several mappings of one object, other protections and offsets, still one object. */
#include "probe.h"

int main(int argc, char **argv) {
    probe_start(argc, argv);
    size_t bytes = 16 * PAGE;
    char *first = probe_map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED);
    char *other = probe_map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED);
    probe_fill(first, 8 * PAGE, 1);
    probe_fill(other, bytes, 2);
    /* An old size of 0 makes mremap map the same shared object a second time. */
    char *reader = TRY((char *)mremap(first, 0, bytes, MREMAP_MAYMOVE));
    TRY(mprotect(reader, bytes, PROT_READ));
    char *part = TRY((char *)mremap(first + 4 * PAGE, 0, 4 * PAGE, MREMAP_MAYMOVE));
    char *gone = probe_map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED);
    probe_fill(gone, bytes, 3);
    char *rest = TRY((char *)mremap(gone + 8 * PAGE, 0, 8 * PAGE, MREMAP_MAYMOVE));
    TRY(munmap(gone, bytes));
    probe_ready();
    probe_wait();
    probe_same(first, 8 * PAGE, 1, "shared memory");
    probe_zero(first + 8 * PAGE, 8 * PAGE, "untouched shared memory");
    probe_same(other, bytes, 2, "the other shared object");
    probe_same(reader, 8 * PAGE, 1, "second mapping");
    CHECK(memcmp(part, first + 4 * PAGE, 4 * PAGE) == 0, "mapping at an offset differs");
    CHECK(probe_faults(reader, 1), "read-only mapping of shared memory can be written");
    uint64_t expected = probe_mix(3 * 1000003 + 8 * PAGE / 8);
    CHECK(*(uint64_t *)rest == expected, "object whose beginning is unmapped");
    first[5 * PAGE + 7] = 'x';
    CHECK(part[PAGE + 7] == 'x' && reader[5 * PAGE + 7] == 'x', "mappings are no longer one object");
    part[2 * PAGE] = 'y';
    CHECK(first[6 * PAGE] == 'y', "mappings are no longer one object (backwards)");
    other[0] = 'z';
    CHECK(first[0] != 'z' || reader[0] != 'z', "two objects became one");
    TRY(madvise(first, bytes, MADV_DONTNEED));
    CHECK(first[6 * PAGE] == 'y', "shared memory forgot its content at MADV_DONTNEED");
    return probe_pass();
}
