/* Very many mappings: neighbours of one page that differ in protection, or so many shared objects.
   arguments: how many, and "shared" for objects */
#include "probe.h"

static unsigned long mappings(void) {
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(maps != NULL, "maps: %s", strerror(errno));
    unsigned long count = 0;
    int byte;
    while ((byte = getc_unlocked(maps)) != EOF) count += byte == '\n';
    fclose(maps);
    return count;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    size_t count = argc > 2 ? strtoul(argv[2], NULL, 10) : 60000;
    int shared = argc > 3;
    int protection = PROT_READ | PROT_WRITE;
    char *memory = probe_map(count * PAGE, shared ? PROT_NONE : protection, MAP_PRIVATE);
    for (size_t i = 0; i < count; i++) {
        uint64_t *page = (uint64_t *)(memory + i * PAGE);
        if (shared && mmap(page, PAGE, protection, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != page)
            skip("only %zu mappings: %s", i, strerror(errno));
        if (i % 7 != 3) *page = probe_mix(i);
        if (!shared && i % 2 && mprotect(page, PAGE, PROT_READ)) skip("only %zu mappings: %s", i, strerror(errno));
    }
    unsigned long before = mappings();
    CHECK(before > count, "only %lu mappings", before);
    probe_ready();
    probe_wait();
    unsigned long now = mappings();
    CHECK(now + 2 >= before && now <= before + 2, "%lu mappings were %lu", now, before);
    for (size_t i = 0; i < count; i++) {
        uint64_t word = *(uint64_t *)(memory + i * PAGE);
        CHECK(word == (i % 7 == 3 ? 0 : probe_mix(i)), "page %zu differs", i);
    }
    if (!shared) CHECK(probe_faults(memory + PAGE, 1) && !probe_faults(memory + 2 * PAGE, 1), "protection");
    TRY(munmap(memory, count * PAGE));
    return probe_pass();
}
