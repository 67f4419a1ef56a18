/* Many processes born of one that has much memory, each of which has changed a little of it.
   arguments: how many, megabytes (of 10^6 bytes). */
#include "tree.h"
#include <sys/mman.h>

#define CHANGED 8

static char *memory;
static size_t bytes;

static size_t place(int child, int change) {
    return (size_t)(probe_mix((uint64_t)(child * 1000 + change)) % (bytes / PAGE)) * PAGE;
}

/* What is not changed is looked at in samples: reading all of it two hundred times takes long. */
static void check(int child) {
    for (int change = 0; change < CHANGED && child >= 0; change++)
        CHECK(memory[place(child, change) + 7] == (char)child, "what process %d changed is not there", child);
    for (int sample = 0; sample < 200; sample++) {
        size_t at = place(12345, sample);
        int own = 0;
        for (int change = 0; change < CHANGED && child >= 0; change++) own |= place(child, change) == at;
        uint64_t *word = (uint64_t *)(memory + at);
        for (size_t i = 0; i < PAGE / 8 && !own; i++)
            CHECK(word[i] == probe_mix(42 * 1000003 + at / 8 + i), "byte %zu differs", at + i * 8);
    }
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    int children = argc > 2 ? atoi(argv[2]) : 10;
    bytes = (argc > 3 ? (size_t)atoi(argv[3]) : 10) * 1000000 / PAGE * PAGE;
    memory = probe_map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    probe_fill(memory, bytes, 42);
    tree_begin();
    pid_t *born = calloc((size_t)children, sizeof *born);
    for (int child = 0; child < children; child++) {
        born[child] = tree_fork();
        if (born[child] == 0) {
            pid_t pid = getpid(), parent = getppid();
            for (int change = 0; change < CHANGED; change++) memory[place(child, change) + 7] = (char)child;
            tree_set_up();
            while (!probe_resumed()) usleep(20000);
            CHECK(getpid() == pid && getppid() == parent, "ids of process %d", pid);
            check(child);
            _exit(0);
        }
    }
    tree_ready(children);
    while (!probe_resumed()) usleep(20000);
    check(-1);
    probe_same(memory, bytes, 42, "memory");
    for (int child = 0; child < children; child++) tree_ends(born[child], 0);
    return probe_pass();
}
