/* Works while it is saved, and tells in the file "progress" how well. arguments: megabytes of random data; how many random pages of them
   are written to in a second; calls (another thread maps, unmaps and moves memory without rest). */
#include "probe.h"

/* What the runner reads and, to begin anew with the longest times, clears. */
struct progress {
    volatile uint64_t work, longest, pages, calls, longest_call;
};
static struct progress *progress;

static char *memory;
static size_t bytes;
static unsigned long rate;
static volatile int stop;

static uint64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t chance(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

/* Computes, and looks at the clock. */
static void *work(void *nothing) {
    uint64_t last = nanoseconds();
    while (!stop) {
        for (volatile int i = 0; i < 500; i++) { }
        progress->work++;
        uint64_t now = nanoseconds();
        if (now - last > progress->longest) progress->longest = now - last;
        last = now;
    }
    return nothing;
}

static void *dirty(void *nothing) {
    uint64_t state = 88172645463325252u, begin = nanoseconds(), done = 0;
    while (!stop) {
        for (uint64_t due = (nanoseconds() - begin) / 1000 * rate / 1000000; done < due; done++) {
            memory[chance(&state) % (bytes / PAGE) * PAGE]++;
            progress->pages++;
        }
        usleep(500);
    }
    return nothing;
}

/* Parts of a mapping are mapped anew, and all of it moved, which takes that it is one; others are unmapped and mapped again. */
static void *call(void *nothing) {
    size_t size = 512 * PAGE;
    uint64_t state = 88172645463325252u;
    char *here = probe_map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE), *there = probe_map(size, PROT_NONE, MAP_PRIVATE);
    char *other = probe_map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    memset(here, 1, size);
    memset(other, 1, size);
    while (!stop) {
        uint64_t begin = nanoseconds();
        size_t part = chance(&state) % 500 * PAGE;
        CHECK(mmap(here + part, 8 * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == here + part, "mmap: %s", strerror(errno));
        here[part] = 1;
        CHECK(mremap(here, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, there) == there, "mremap: %s", strerror(errno));
        CHECK(mremap(there, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, here) == here, "mremap: %s", strerror(errno));
        CHECK(mmap(there, size, PROT_NONE, flags, -1, 0) == there, "mmap: %s", strerror(errno));
        TRY(munmap(other + part, 8 * PAGE));
        CHECK(mmap(other + part, 8 * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == other + part, "mmap: %s", strerror(errno));
        other[part] = 1;
        uint64_t took = nanoseconds() - begin;
        if (took > progress->longest_call) progress->longest_call = took;
        progress->calls++;
    }
    return nothing;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    bytes = (argc > 2 ? (size_t)atoi(argv[2]) : 1) << 20;
    rate = argc > 3 ? (unsigned long)atol(argv[3]) : 0;
    int fd = TRY(open("progress", O_RDWR | O_CREAT | O_TRUNC, 0600));
    TRY(ftruncate(fd, (off_t)PAGE));
    progress = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(progress != MAP_FAILED, "mmap: %s", strerror(errno));
    close(fd);
    memory = probe_map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    probe_fill(memory, bytes, 1);
    pthread_t threads[3];
    int count = 0;
    PTRY(pthread_create(&threads[count++], NULL, work, NULL));
    if (rate) PTRY(pthread_create(&threads[count++], NULL, dirty, NULL));
    if (argc > 4) PTRY(pthread_create(&threads[count++], NULL, call, NULL));
    probe_ready();
    while (!probe_resumed()) usleep(5000);
    stop = 1;
    while (count) PTRY(pthread_join(threads[--count], NULL));
    return probe_pass();
}
