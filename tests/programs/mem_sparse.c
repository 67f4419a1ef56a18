/* A terabyte reserved, a few pages of it used: the image stays small and the rest reads zero. */
#include "probe.h"

int main(int argc, char **argv) {
    probe_start(argc, argv);
    size_t whole = 1UL << 40, step = whole / 16;
    char *space = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED) skip("no address space of a terabyte: %s", strerror(errno));
    char *open = TRY((char *)mmap(NULL, 1UL << 34, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (size_t i = 0; i < 16; i++) {
        TRY(mprotect(space + i * step, 4 * PAGE, PROT_READ | PROT_WRITE));
        probe_fill(space + i * step + PAGE, PAGE, i);
        probe_fill(open + i * (1UL << 30), PAGE, 50 + i);
    }
    probe_ready();
    probe_wait();
    for (size_t i = 0; i < 16; i++) {
        probe_zero(space + i * step, PAGE, "unused page");
        probe_same(space + i * step + PAGE, PAGE, i, "used page");
        CHECK(probe_faults(space + i * step + 8 * PAGE, 0), "reserved page can be read");
        probe_same(open + i * (1UL << 30), PAGE, 50 + i, "page of the open reservation");
        probe_zero(open + i * (1UL << 30) + PAGE, PAGE, "hole of the open reservation");
    }
    return probe_pass();
}
