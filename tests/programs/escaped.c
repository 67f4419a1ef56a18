/* A process that leaves the tree, because its parent ends, and stays in its group. It ends when the file "over" is there. */
#include "tree.h"

int main(int argc, char **argv) {
    probe_start(argc, argv);
    if (getpgrp() != getpid()) TRY(setpgid(0, 0));
    pid_t between = TRY(fork());
    if (between == 0) {
        struct stat file;
        if (TRY(fork()) != 0) _exit(0);
        for (int i = 0; i < 6000 && stat("over", &file) != 0; i++) usleep(10000);
        _exit(0);
    }
    tree_ends(between, 0);
    probe_ready();
    probe_wait();
    CHECK(getpgrp() == getpid(), "group %d", getpgrp());
    return probe_pass();
}
