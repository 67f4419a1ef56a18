/* Much memory, all of it there, in one mapping and in pieces of every size: each byte is what it was.
   argument: megabytes */
#include "probe.h"

#define PIECES 200

int main(int argc, char **argv) {
    probe_start(argc, argv);
    size_t bytes = (argc > 2 ? (size_t)atol(argv[2]) : 64) << 20;
    char *whole = TRY(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    probe_fill(whole, bytes, 1);
    /* Every second page is not there, or the rest of it: runs that begin and end anywhere. */
    char *piece[PIECES];
    for (size_t i = 0; i < PIECES; i++) {
        size_t pages = 1 + i * 3;
        piece[i] = TRY(mmap(NULL, 2 * pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        probe_fill(piece[i] + pages * PAGE, pages * PAGE, i + 2);
    }
    TRY(mprotect(whole, bytes, PROT_READ));
    probe_ready();
    probe_wait();
    probe_same(whole, bytes, 1, "the large mapping");
    CHECK(probe_faults(whole + bytes / 2, 1), "it can be written to");
    for (size_t i = 0; i < PIECES; i++) {
        size_t pages = 1 + i * 3;
        probe_zero(piece[i], pages * PAGE, "what was never written");
        probe_same(piece[i] + pages * PAGE, pages * PAGE, i + 2, "a piece");
    }
    return probe_pass();
}
