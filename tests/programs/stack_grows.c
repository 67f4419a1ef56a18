/* Stacks: deep in a recursion at the checkpoint, six megabytes deeper after it, every frame intact.
   argument: main, thread, or growsdown (a MAP_GROWSDOWN region that goes on growing). */
#include "probe.h"

static int deepest;

static void descend(int level) {
    volatile char frame[PAGE];
    for (unsigned i = 0; i < PAGE; i += 64) frame[i] = (char)(level + (int)i);
    if (level == 50) {
        probe_ready();
        probe_wait();
    }
    if (level < deepest) descend(level + 1);
    for (unsigned i = 0; i < PAGE; i += 64)
        CHECK(frame[i] == (char)(level + (int)i), "frame %d of the stack differs", level);
}

static void *in_thread(void *nothing) {
    descend(0);
    return nothing;
}

static void growsdown(void) {
    size_t room = 4096 * PAGE;
    char *base = probe_map(room, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE);
    TRY(munmap(base, room));
    char *top = base + room - PAGE;
    CHECK(mmap(top, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0) == top, "mmap");
    size_t page = 0;
    for (; page < 64; page++) probe_fill(top - page * PAGE, PAGE, page);
    probe_ready();
    probe_wait();
    for (size_t i = 0; i < page; i++) probe_same(top - i * PAGE, PAGE, i, "grown region");
    for (; page < 400; page++) {
        CHECK(!probe_faults(top - page * PAGE, 1), "region no longer grows at page %zu", page);
        probe_fill(top - page * PAGE, PAGE, page);
    }
    for (size_t i = 0; i < page; i++) probe_same(top - i * PAGE, PAGE, i, "region grown after the resume");
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "main";
    deepest = 1500;
    if (!strcmp(kind, "growsdown")) {
        growsdown();
    } else if (!strcmp(kind, "thread")) {
        pthread_t thread;
        PTRY(pthread_create(&thread, NULL, in_thread, NULL));
        PTRY(pthread_join(thread, NULL));
    } else {
        descend(0);
    }
    return probe_pass();
}
