/* Memory policies of mappings (mbind), on node 0: mode, flags and nodes as they were, and none where there was none. */
#include "probe.h"

#define BIND 2
#define INTERLEAVE 3
#define LOCAL 4
#define PREFERRED 1
#define PREFERRED_MANY 5
#define STATIC_NODES (1 << 15)
#define OF_ADDRESS 2

static const int MODES[] = {BIND, INTERLEAVE, PREFERRED, LOCAL, PREFERRED_MANY, BIND | STATIC_NODES};
#define COUNT (sizeof MODES / sizeof *MODES)

static void check(char *memory, int mode, const char *what) {
    int now = -1;
    unsigned long nodes[16] = {0};
    TRY(syscall(SYS_get_mempolicy, &now, nodes, 1024UL, memory, (unsigned long)OF_ADDRESS));
    CHECK(now == mode, "%s: mode %#x was %#x", what, now, mode);
    unsigned long wanted = mode == 0 || mode == LOCAL ? 0 : 1;
    CHECK(nodes[0] == wanted && nodes[1] == 0, "%s: nodes %#lx were %#lx (mode %#x)", what, nodes[0], wanted, mode);
}

static void check_all(char *memory, char *shared, const char *when) {
    for (size_t i = 0; i < COUNT; i++) {
        check(memory + (2 * i + 1) * PAGE, MODES[i], when);
        check(memory + 2 * i * PAGE, 0, when);
    }
    check(shared, INTERLEAVE, when);
    check(shared + PAGE, 0, when);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    char *memory = probe_map((2 * COUNT + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    char *shared = probe_map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
    for (size_t i = 0; i <= COUNT; i++) {
        unsigned long node = 1;
        int mode = i == COUNT ? INTERLEAVE : MODES[i];
        char *place = i == COUNT ? shared : memory + (2 * i + 1) * PAGE;
        if (syscall(SYS_mbind, place, PAGE, mode, mode == LOCAL ? NULL : &node, mode == LOCAL ? 0UL : 64UL, 0U))
            skip("mbind of mode %#x: %s", mode, strerror(errno));
    }
    probe_fill(memory, (2 * COUNT + 1) * PAGE, 1);
    probe_fill(shared, 2 * PAGE, 2);
    check_all(memory, shared, "before");
    probe_ready();
    probe_wait();
    check_all(memory, shared, "after");
    probe_same(memory, (2 * COUNT + 1) * PAGE, 1, "content");
    probe_same(shared, 2 * PAGE, 2, "shared content");
    return probe_pass();
}
