/* The heap's end: content kept, grows with zeros and shrinks after the resume, malloc goes on. */
#include "probe.h"

int main(int argc, char **argv) {
    probe_start(argc, argv);
    char *block = malloc(100000);
    probe_fill(block, 100000, 7);
    char *end = TRY((char *)sbrk(0));
    TRY(sbrk(64 * PAGE));
    uintptr_t start = ((uintptr_t)end + 7) & ~7UL;
    size_t bytes = 64 * PAGE - 8;
    probe_fill((void *)start, bytes, 1);
    probe_ready();
    probe_wait();
    CHECK(sbrk(0) == end + 64 * PAGE, "the heap's end moved");
    probe_same((void *)start, bytes, 1, "heap");
    probe_same(block, 100000, 7, "malloc'd block");
    TRY(sbrk(256 * PAGE));
    probe_zero((void *)(((uintptr_t)end + 64 * PAGE + PAGE - 1) & ~(PAGE - 1)), 255 * PAGE, "grown heap");
    TRY(sbrk(-(intptr_t)(320 * PAGE)));
    CHECK(sbrk(0) == end, "the heap did not shrink");
    CHECK(probe_faults(end + 10 * PAGE, 0), "memory behind the shrunk heap is still there");
    TRY(sbrk(32 * PAGE));
    probe_zero((void *)(((uintptr_t)end + PAGE - 1) & ~(PAGE - 1)), 30 * PAGE, "heap grown again");
    for (int i = 0; i < 1000; i++) {
        char *piece = malloc(1000 + (size_t)i * 16);
        CHECK(piece != NULL, "malloc");
        memset(piece, i, 1000);
        if (i % 3) free(piece);
    }
    probe_same(block, 100000, 7, "malloc'd block at the end");
    return probe_pass();
}
