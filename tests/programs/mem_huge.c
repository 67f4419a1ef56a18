/* Huge pages of hugetlb: content, page size and protection as they were.
   argument: private, reserve (MAP_NORESERVE), shared (with the middle made read-only), file (of hugetlbfs, shared and private),
   memfd-open, memfd-mapped, named, unlinked (files that stay open), memfd-gib (of a page of 1 GiB) */
#include "probe.h"
#include <linux/magic.h>
#include <sys/vfs.h>
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

/* A memory file of huge pages: sealed, with a hole, open twice, mapped shared and private or not at all. */
static int memory_file(const char *kind, int shift) {
    int file = memfd_create("huge name", MFD_HUGETLB | MFD_ALLOW_SEALING | (unsigned)shift << 26);
    if (file < 0) skip("no memory files of such pages: %s", strerror(errno));
    off_t size = !strcmp(kind, "memfd-gib") ? 1 << 30 : 3 * (off_t)HUGE;
    TRY(ftruncate(file, size));
    TRY(fcntl(file, F_ADD_SEALS, F_SEAL_GROW));
    return file;
}

/* What all open files of huge pages must have after the resume as before. */
static void check_file(const char *kind, int file, int reader) {
    struct statfs system;
    TRY(fstatfs(file, &system));
    CHECK(system.f_type == HUGETLBFS_MAGIC && system.f_bsize == 2 << 20, "the file's pages are of %ld bytes", (long)system.f_bsize);
    struct stat facts;
    TRY(fstat(file, &facts));
    CHECK(facts.st_size == 3 * (off_t)HUGE && (facts.st_mode & 07777) == 0640, "%ld bytes, mode %o", facts.st_size, facts.st_mode);
    CHECK(lseek(reader, 0, SEEK_CUR) == (off_t)PAGE + 5, "position");
    CHECK((fcntl(reader, F_GETFL) & O_ACCMODE) == O_RDONLY, "flags");
    char *content = malloc(HUGE);
    CHECK(pread(reader, content, HUGE, 2 * (off_t)HUGE) == (ssize_t)HUGE, "pread");
    probe_same(content, HUGE, 5, "third page of the file");
    char path[64], shown[4096] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    TRY(readlink(path, shown, sizeof shown - 1));
    if (!strncmp(kind, "memfd", 5)) {
        CHECK(!strcmp(shown, "/memfd:huge name (deleted)"), "name %s", shown);
        CHECK(fcntl(file, F_GET_SEALS) == F_SEAL_GROW, "seals %x", fcntl(file, F_GET_SEALS));
    } else {
        CHECK(facts.st_nlink == (strcmp(kind, "unlinked") ? 1 : 0), "%s has %lu names", shown, facts.st_nlink);
    }
    free(content);
}

/* A huge page of a file, written through a mapping: there is no other way. */
static void write_page(int file, off_t page, uint64_t seed) {
    char *place = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, page * (off_t)HUGE);
    if (place == MAP_FAILED) skip("no huge page: %s (see /proc/sys/vm/nr_hugepages)", strerror(errno));
    probe_fill(place, HUGE, seed);
    TRY(munmap(place, HUGE));
}

/* Files that stay open, with a hole in the middle. */
static int open_files(const char *kind) {
    int memory = !strncmp(kind, "memfd", 5);
    int file = memory ? memory_file(kind, 21) : open("huge/file", O_RDWR | O_CREAT | O_EXCL, 0600);
    if (file < 0) skip("no hugetlbfs at ./huge: %s", strerror(errno));
    if (!memory) TRY(ftruncate(file, 3 * (off_t)HUGE));
    TRY(fchmod(file, 0640));
    write_page(file, 0, 4);
    write_page(file, 2, 5);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    int reader = TRY(open(path, O_RDONLY));
    TRY(lseek(reader, PAGE + 5, SEEK_SET));
    if (!strcmp(kind, "unlinked")) TRY(unlink("huge/file"));
    int mapped = !strcmp(kind, "unlinked") || !strcmp(kind, "memfd-mapped");
    char *shared = mapped ? map(1, MAP_SHARED, file) : NULL, *copy = mapped ? map(1, MAP_PRIVATE, file) : NULL;
    if (mapped) probe_fill(copy, HUGE / 2, 6);
    check_file(kind, file, reader);
    probe_ready();
    probe_wait();
    check_file(kind, file, reader);
    char *content = malloc(HUGE);
    CHECK(pread(reader, content, HUGE, 0) == (ssize_t)HUGE, "pread");
    probe_same(content, HUGE, 4, "first page of the file");
    CHECK(pread(reader, content, HUGE, HUGE) == (ssize_t)HUGE, "pread");
    probe_zero(content, HUGE, "hole in the file");
    if (mapped) {
        probe_same(shared, HUGE, 4, "shared mapping");
        probe_same(copy, HUGE / 2, 6, "private mapping");
        CHECK(page_size(shared) == 2048 && page_size(copy) == 2048, "pages of %ld and %ld kB", page_size(shared), page_size(copy));
        shared[7] = '!';
        CHECK(pread(reader, content, 8, 0) == 8 && content[7] == '!' && copy[7] != '!', "the mapping is of another file");
    }
    write_page(file, 1, 7);
    return probe_pass();
}

static int gibibyte(void) {
    int file = memory_file("memfd-gib", 30);
    char *memory = mmap(NULL, 1 << 30, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) skip("no huge page of 1 GiB: %s (see /sys/kernel/mm/hugepages/hugepages-1048576kB)", strerror(errno));
    probe_fill(memory, 4 * HUGE, 8);
    probe_ready();
    probe_wait();
    CHECK(page_size(memory) == 1 << 20, "pages of %ld kB", page_size(memory));
    probe_same(memory, 4 * HUGE, 8, "the page");
    probe_zero(memory + 4 * HUGE, HUGE, "the rest of the page");
    memory[(1 << 30) - 1] = 'x';
    return probe_pass();
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "private";
    if (!strcmp(kind, "memfd-gib")) return gibibyte();
    if (!strncmp(kind, "memfd", 5) || !strcmp(kind, "unlinked") || !strcmp(kind, "named")) return open_files(kind);
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
