/* Traces the process of the id that is its argument until the flag file appears, and passes its signals on. */
#include "probe.h"
#include <sys/ptrace.h>
#include <sys/wait.h>

int main(int argc, char **argv) {
    probe_start(argc, argv);
    if (argc < 3) return 2;
    pid_t pid = atoi(argv[2]);
    if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) == -1) skip("tracing is not permitted: %s", strerror(errno));
    probe_ready();
    while (!probe_resumed()) {
        int status;
        if (waitpid(pid, &status, __WALL | WNOHANG) == pid && WIFSTOPPED(status))
            TRY(ptrace(PTRACE_CONT, pid, NULL, (void *)(long)WSTOPSIG(status)));
        usleep(2000);
    }
    return probe_pass();
}
