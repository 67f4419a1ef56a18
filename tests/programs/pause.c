/* Looks at the clock without rest and remembers when it stood still longest. argument: megabytes of random data
   to hold besides. When the flag file appears it prints the beginning and the end of that gap, in nanoseconds of
   CLOCK_MONOTONIC, as "GAP begin end". */
#include "probe.h"

static volatile int stop;
static uint64_t gap_begin, gap_end;

static uint64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void *watch(void *nothing) {
    uint64_t last = nanoseconds();
    while (!stop) {
        uint64_t now = nanoseconds();
        if (now - last > gap_end - gap_begin) {
            gap_begin = last;
            gap_end = now;
        }
        last = now;
    }
    return nothing;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    size_t bytes = (argc > 2 ? (size_t)atoi(argv[2]) : 1) << 20;
    char *memory = probe_map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    probe_fill(memory, bytes, 1);
    pthread_t watcher;
    PTRY(pthread_create(&watcher, NULL, watch, NULL));
    probe_ready();
    while (!probe_resumed()) usleep(5000);
    stop = 1;
    PTRY(pthread_join(watcher, NULL));
    char line[128];
    int length = snprintf(line, sizeof line, "GAP %lu %lu\n", gap_begin, gap_end);
    if (write(1, line, (size_t)length) != length) return 3;
    probe_same(memory, bytes, 1, "memory");
    return probe_pass();
}
