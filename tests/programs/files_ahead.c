/* A program with a large file (`ballast`), which it only reads and which takes long to copy, and with a file that it changes while that is
   copied, once for each file `change` (with the milliseconds to wait before that), or all the time. It knows what is in it, and compares
   when it is resumed. Arguments: how it changes it, and of how many processes the tree is, each with a file of its own. */
#include "probe.h"
#include <sys/wait.h>

#define MIB (1UL << 20)
#define BALLAST (300 * MIB)
#define STATE (12 * MIB)
#define MOST (64 * MIB)
#define LINE 1024UL

static char *memory, *before; /* what the file is; a mapping of it made before */
static unsigned long known;   /* bytes of it */
static int fd, number;
static const char *way;

static int is(const char *other) { return strcmp(way, other) == 0; }

static void write_at(int to, size_t at, size_t bytes) {
    while (bytes > 0) {
        size_t part = bytes < MIB / 4 ? bytes : MIB / 4;
        CHECK(pwrite(to, memory + at, part, (off_t)at) == (ssize_t)part, "write: %s", strerror(errno));
        at += part, bytes -= part;
    }
}

/* One with O_APPEND: pwrite(2) would add to its end as well. */
static void append(size_t at, size_t bytes) {
    CHECK(known + bytes <= MOST, "it became too large");
    CHECK(write(fd, memory + at, bytes) == (ssize_t)bytes, "append: %s", strerror(errno));
    known += bytes;
}

static void append_line(void) {
    probe_fill(memory + known, LINE, (uint64_t)known);
    append(known, LINE);
}

static void change(void) {
    size_t page = (number++ * 977UL + 1500) % (STATE / PAGE) * PAGE;
    if (is("pwrite")) {
        probe_fill(memory + page, PAGE, (uint64_t)number);
        write_at(fd, page, PAGE);
    } else if (is("mapped-before") || is("protected")) {
        if (is("protected")) TRY(mprotect(before, STATE, PROT_READ | PROT_WRITE));
        probe_fill(memory + page, PAGE, (uint64_t)number);
        memcpy(before + page, memory + page, PAGE);
        if (is("protected")) TRY(mprotect(before, STATE, PROT_READ));
    } else if (is("mapped-after")) {
        char *mapped = TRY(mmap(NULL, STATE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
        probe_fill(memory + page, PAGE, (uint64_t)number);
        memcpy(mapped + page, memory + page, PAGE);
        TRY(munmap(mapped, STATE));
    } else if (is("truncated")) {
        probe_fill(memory, STATE, (uint64_t)number);
        TRY(ftruncate(fd, 0));
        write_at(fd, 0, STATE);
    } else if (is("rewritten")) {
        size_t bytes = known;
        probe_fill(memory, bytes, (uint64_t)number);
        known = 0;
        TRY(ftruncate(fd, 0));
        for (size_t at = 0; at < bytes; at += LINE) append(at, LINE);
    }
}

static void compare(void) {
    struct stat facts;
    TRY(fstat(fd, &facts));
    CHECK((size_t)facts.st_size == known, "%s: %ld bytes, not %lu", way, (long)facts.st_size, known);
    char *found = TRY(mmap(NULL, known, PROT_READ, MAP_SHARED, fd, 0));
    for (size_t at = 0; at < known; at += LINE)
        CHECK(memcmp(found + at, memory + at, LINE) == 0, "%s: other from %zu of %lu on, %d changes", way, at, known, number);
    TRY(munmap(found, known));
}

static int live(int which) {
    char name[32];
    snprintf(name, sizeof name, "change-%d", which);
    while (!probe_resumed()) {
        usleep(1000);
        if (is("appended")) append_line();
        FILE *file = fopen(name, "r");
        int wait = 0;
        if (!file) continue;
        CHECK(fscanf(file, "%d", &wait) == 1, "%s: no number", name);
        fclose(file);
        TRY(unlink(name));
        usleep((unsigned)wait * 1000);
        change();
    }
    compare();
    return 0;
}

static void make_ballast(void) {
    int ballast = TRY(open("ballast", O_RDWR | O_CREAT | O_TRUNC, 0644));
    static char part[MIB];
    probe_fill(part, MIB, 99);
    for (size_t at = 0; at < BALLAST; at += MIB) TRY(pwrite(ballast, part, MIB, (off_t)at));
    /* So that writing it back is over, and does not make the saves slow. */
    TRY(fsync(ballast));
    if (is("busy")) { fd = ballast; return; }
    TRY(close(ballast));
    TRY(open("ballast", is("quiet") ? O_RDWR : O_RDONLY));
}

static void make_state(int which) {
    char name[32];
    snprintf(name, sizeof name, "state-%d", which);
    int adds = is("appended") || is("rewritten");
    fd = TRY(open(name, O_RDWR | O_CREAT | O_TRUNC | (adds ? O_APPEND : 0), 0644));
    probe_fill(memory, STATE, (uint64_t)which);
    if (adds) append(0, STATE); else write_at(fd, 0, STATE), known = STATE;
    if (is("mapped-before") || is("protected")) {
        before = TRY(mmap(NULL, STATE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
        for (size_t at = 0; at < STATE; at += PAGE) ((volatile char *)before)[at] = memory[at];
    }
    if (is("protected")) TRY(mprotect(before, STATE, PROT_READ));
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    CHECK(argc == 4, "usage: %s GO WAY PROCESSES", argv[0]);
    way = argv[2];
    int last = atoi(argv[3]) - 1, which = 0, status = 0;
    memory = TRY(mmap(NULL, MOST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    /* Before the other, and so copied before it. */
    if (!is("busy") && !is("quiet")) make_state(0);
    int others[2];
    TRY(pipe(others));
    pid_t child = 0;
    char done = 1;
    while (which < last && (child = TRY(fork())) == 0) make_state(++which);
    if (which > 0) CHECK(write(others[1], &done, 1) == 1, "pipe: %s", strerror(errno));
    for (int ready = 0; which == 0 && ready < last; ready++) CHECK(read(others[0], &done, 1) == 1, "no child is ready");
    if (which == 0) {
        int state = fd;
        make_ballast();
        if (!is("busy")) fd = state;
        sleep(2);
        probe_ready();
    }
    if (is("quiet") || is("busy")) {
        while (!probe_resumed()) {
            usleep(1000);
            if (is("busy")) TRY(pwrite(fd, &done, 1, (off_t)(number++ % 1000 * PAGE)));
        }
        return probe_pass();
    }
    live(which);
    if (which < last) {
        TRY(waitpid(child, &status, 0));
        CHECK(status == 0, "process %d ended with %#x", which + 1, status);
    }
    return which == 0 ? probe_pass() : 0;
}
