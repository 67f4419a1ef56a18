/*
 * Children that check themselves: each says that it is ready through a pipe that is gone by then, waits for the flag file on its own,
 * and ends with 0 when all is well. Whoever made it waits for it and looks at how it ended.
 */
#ifndef TREE_H
#define TREE_H
#include "probe.h"
#include <sys/wait.h>

static int tree_pipe[2] = {-1, -1};

/* Before the first child. */
static inline void tree_begin(void) {
    TRY(pipe(tree_pipe));
    for (int end = 0; end < 2; end++) {
        int high = TRY(fcntl(tree_pipe[end], F_DUPFD_CLOEXEC, 900 + end));
        TRY(close(tree_pipe[end]));
        tree_pipe[end] = high;
    }
}

/* In a child: it is ready. It must not use the pipe any more. */
static inline void tree_set_up(void) {
    CHECK(write(tree_pipe[1], "x", 1) == 1, "telling the parent");
    TRY(close(tree_pipe[0]));
    TRY(close(tree_pipe[1]));
}

/* In a child: waits for the flag file. */
static inline void tree_wait(pid_t pid, pid_t parent) {
    while (!probe_resumed()) usleep(20000);
    CHECK(getpid() == pid, "a child's pid was %d, is %d", pid, getpid());
    CHECK(getppid() == parent, "the parent of %d was %d, is %d", pid, parent, getppid());
}

/* In a child that has nothing else to show. */
__attribute__((noreturn)) static inline void tree_live(void) {
    pid_t pid = getpid(), parent = getppid();
    tree_set_up();
    tree_wait(pid, parent);
    _exit(0);
}

/* When so many are ready. */
static inline void tree_ready(int children) {
    char byte;
    for (int i = 0; i < children; i++) CHECK(read(tree_pipe[0], &byte, 1) == 1, "waiting for the children");
    TRY(close(tree_pipe[0]));
    TRY(close(tree_pipe[1]));
    probe_ready();
}

static inline pid_t tree_fork(void) { return (pid_t)TRY(fork()); }

/* Waits for a child's end, which must be this. */
static inline void tree_ends(pid_t child, int status) {
    int ended = -1;
    pid_t got;
    do got = waitpid(child, &ended, 0); while (got == -1 && errno == EINTR);
    CHECK(got == child, "waiting for %d: %d, %s", child, got, strerror(errno));
    CHECK(ended == status, "%d ended with status %#x, not %#x", child, ended, status);
}

static inline void tree_no_child(void) {
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "there is a child more");
}
#endif
