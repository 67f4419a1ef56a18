/* Mappings of a megabyte each with holes between them, which whoever maps memory anew is given first. */
#include "probe.h"

enum { MAPPINGS = 24, SIZE = 1 << 20 };

int main(int argc, char **argv) {
    probe_start(argc, argv);
    char *all[MAPPINGS];
    for (int i = 0; i < MAPPINGS; i++) {
        all[i] = probe_map(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
        probe_fill(all[i], SIZE, 1 + i);
    }
    for (int i = 0; i < MAPPINGS; i += 2) TRY(munmap(all[i], SIZE));
    probe_ready();
    probe_wait();
    for (int i = 1; i < MAPPINGS; i += 2) probe_same(all[i], SIZE, 1 + i, "memory between holes");
    return probe_pass();
}
