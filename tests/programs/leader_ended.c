/* The first thread has ended, alone; others go on. */
#include "probe.h"
#include <sys/prctl.h>

static char folder[4096];

static char state_of(pid_t tid) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    int fd = TRY(open(path, O_RDONLY));
    ssize_t length = TRY(read(fd, text, sizeof text - 1));
    TRY(close(fd));
    text[length] = 0;
    return strrchr(text, ')')[2];
}

static void *rest(void *argument) {
    pid_t *tids = argument, tid = probe_gettid();
    double begun = probe_now();
    while (state_of(probe_pid) != 'Z' && probe_now() - begun < 10) { }
    CHECK(state_of(probe_pid) == 'Z', "the first thread does not end");
    int ends[2];
    char *memory = probe_map(64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE), now[4096], byte = 0;
    probe_fill(memory, 64 * PAGE, 5);
    TRY(pipe(ends));
    CHECK(write(ends[1], "x", 1) == 1, "write");
    TRY(prctl(PR_SET_NAME, "the rest", 0, 0, 0));
    probe_ready();
    probe_wait();
    CHECK(state_of(probe_pid) == 'Z', "the first thread is in state %c", state_of(probe_pid));
    CHECK(probe_gettid() == tid && tid != probe_pid && getpid() == probe_pid, "ids are %d and %d", getpid(), probe_gettid());
    CHECK(tids[0] != 0 && kill(probe_pid, 0) == 0, "the process cannot be signalled");
    probe_same(memory, 64 * PAGE, 5, "memory");
    CHECK(read(ends[0], &byte, 1) == 1 && byte == 'x', "the pipe's content is gone");
    CHECK(getcwd(now, sizeof now) && !strcmp(now, folder), "working folder is %s", now);
    TRY(prctl(PR_GET_NAME, now, 0, 0, 0));
    CHECK(!strcmp(now, "the rest"), "name is %s", now);
    _exit(probe_pass());
}

int main(int argc, char **argv) {
    static pid_t tids[1];
    probe_start(argc, argv);
    tids[0] = probe_tid;
    CHECK(getcwd(folder, sizeof folder), "getcwd");
    pthread_t thread;
    PTRY(pthread_create(&thread, NULL, rest, tids));
    syscall(SYS_exit, 9);
    return 3;
}
