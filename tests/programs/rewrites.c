/* Writes all of its memory (argv: megabytes) again and again, the same number into every page. */
#include "probe.h"

int main(int argc, char **argv) {
    probe_start(argc, argv);
    CHECK(argc > 2, "no size");
    size_t pages = (size_t)atoi(argv[2]) << 8;
    char *memory = probe_map(pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    unsigned long round = 0;
    for (size_t page = 0; page < pages; page++) memcpy(memory + page * PAGE, &round, sizeof round);
    probe_ready();
    while (access(probe_go, F_OK) != 0) {
        round++;
        for (size_t page = 0; page < pages; page++) {
            unsigned long seen;
            memcpy(&seen, memory + page * PAGE, sizeof seen);
            CHECK(seen == round - 1, "page %zu is of round %lu, not %lu", page, seen, round - 1);
            memcpy(memory + page * PAGE, &round, sizeof round);
        }
    }
    return probe_pass();
}
