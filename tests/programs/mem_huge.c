/* Huge pages of hugetlb: content, page size and protection as they were.
   argument: private, reserve (MAP_NORESERVE), shared (with the middle made read-only), file (of hugetlbfs, shared and private) */
#include "probe.h"
#include <sys/wait.h>

#define HUGE (2UL << 20)

static char *map(size_t pages, int flags, int file) {
    void *memory = mmap(NULL, pages * HUGE, PROT_READ | PROT_WRITE, flags, file, 0);
    if (memory == MAP_FAILED) skip("no %zu huge pages: %s (see /proc/sys/vm/nr_hugepages)", pages, strerror(errno));
    return memory;
}

/* Kilobytes of a page of the mapping at this address. */
static long page_size(const char *memory) {
    FILE *smaps = fopen("/proc/self/smaps", "re");
    CHECK(smaps != NULL, "smaps: %s", strerror(errno));
    char text[4096];
    unsigned long start, end;
    long size = 0;
    int inside = 0;
    while (fgets(text, sizeof text, smaps)) {
        if (sscanf(text, "%lx-%lx ", &start, &end) == 2) inside = start <= (uintptr_t)memory && (uintptr_t)memory < end;
        if (inside && sscanf(text, "KernelPageSize: %ld", &size) == 1) break;
    }
    fclose(smaps);
    return size;
}

static void check_shared(char *memory) {
    pid_t child = TRY(fork());
    if (child == 0) {
        memory[0] = 'c';
        memory[2 * HUGE] = 'd';
        _exit(0);
    }
    CHECK(waitpid(child, NULL, 0) == child, "waitpid");
    CHECK(memory[0] == 'c' && memory[2 * HUGE] == 'd', "what a child writes is not seen");
    CHECK(probe_faults(memory + HUGE, 1), "read-only part can be written");
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "private";
    int anonymous = MAP_ANONYMOUS | MAP_HUGETLB | 21 << MAP_HUGE_SHIFT, file = -1;
    char *memory, *copy = NULL;
    size_t filled = HUGE;
    if (!strcmp(kind, "file")) {
        file = open("huge/file", O_RDWR | O_CREAT, 0600);
        if (file < 0) skip("no hugetlbfs at ./huge: %s", strerror(errno));
        TRY(ftruncate(file, 3 * (off_t)HUGE));
        memory = map(3, MAP_SHARED, file);
        copy = map(3, MAP_PRIVATE, file);
        TRY(close(file));
    } else {
        int sharing = strcmp(kind, "shared") ? MAP_PRIVATE : MAP_SHARED;
        memory = map(3, sharing | anonymous | (strcmp(kind, "reserve") ? 0 : MAP_NORESERVE), -1);
    }
    probe_fill(memory, filled, 1);
    if (!strcmp(kind, "reserve")) filled = HUGE;
    else probe_fill(memory + HUGE, filled, 2);
    if (copy) probe_fill(copy, HUGE, 3);
    if (!strcmp(kind, "shared") || !strcmp(kind, "private")) TRY(mprotect(memory + HUGE, HUGE, PROT_READ));
    CHECK(page_size(memory) == 2048, "pages of %ld kB before", page_size(memory));
    probe_ready();
    probe_wait();
    CHECK(page_size(memory) == 2048, "pages of %ld kB", page_size(memory));
    probe_same(memory, HUGE, 1, "first page");
    if (strcmp(kind, "reserve")) probe_same(memory + HUGE, HUGE, 2, "second page");
    probe_zero(memory + 2 * HUGE, HUGE, "page never touched");
    if (copy) {
        probe_same(copy, HUGE, 3, "private page");
        probe_same(copy + HUGE, HUGE, 2, "page of the file seen through the private mapping");
        memory[HUGE] = 's';
        CHECK(copy[HUGE] == 's', "the private mapping is not one of the file");
        CHECK(copy[0] != 's' && page_size(copy) == 2048, "private mapping");
    }
    if (!strcmp(kind, "shared")) check_shared(memory);
    if (!strcmp(kind, "private")) CHECK(probe_faults(memory + HUGE, 1), "read-only page can be written");
    memory[2 * HUGE + 5] = 'z';
    return probe_pass();
}
