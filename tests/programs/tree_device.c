/* Processes one of which waits in the kernel for a device that does not answer (state D), so that it cannot be stopped. The others count.
   argument: a file that nobody answers for. */
#include "tree.h"
#include <stdatomic.h>

#define OTHERS 3

static char state_of(pid_t pid) {
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int file = TRY(open(path, O_RDONLY | O_CLOEXEC));
    CHECK(read(file, text, sizeof text - 1) > 0, "stat");
    TRY(close(file));
    char *name = strrchr(text, ')');
    return name ? name[2] : '?';
}

static void all_count(atomic_long *counters, const char *when) {
    for (int i = 0; i < OTHERS; i++) {
        long before = atomic_load(&counters[i]);
        for (int wait = 0; atomic_load(&counters[i]) == before; wait++) {
            /* They end when the flag file is there, before or after they have counted once more. */
            if (probe_resumed()) return;
            CHECK(wait < 5000, "process %d does not go on %s", i, when);
            usleep(1000);
        }
    }
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    CHECK(argc > 2, "usage");
    atomic_long *counters = probe_map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
    pid_t parent = getpid(), children[OTHERS + 1];
    for (int i = 0; i <= OTHERS; i++) {
        children[i] = tree_fork();
        if (children[i] != 0) continue;
        struct stat status;
        if (i == OTHERS) CHECK(stat(argv[2], &status) == -1 && errno == ENOTCONN, "an answer: %s", strerror(errno));
        while (!probe_resumed() && getppid() == parent) {
            atomic_fetch_add(&counters[i], 1);
            usleep(1000);
        }
        _exit(0);
    }
    for (int wait = 0; state_of(children[OTHERS]) != 'D'; wait++) {
        CHECK(wait < 5000, "it does not wait for the device, but is in state %c", state_of(children[OTHERS]));
        usleep(1000);
    }
    all_count(counters, "before");
    probe_ready();
    while (!probe_resumed()) {
        all_count(counters, "after the capture");
        usleep(10000);
    }
    for (int i = 0; i <= OTHERS; i++) tree_ends(children[i], 0);
    return probe_pass();
}
