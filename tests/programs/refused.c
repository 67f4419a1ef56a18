/* Things that must be refused by name before anything is frozen.
   argument: child, socket, reading (a regular file held open for reading: not refused), zombie. */
#include "probe.h"
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "";
    pid_t child = 0;
    int fd = -1;
    if (!strcmp(kind, "child")) {
        child = TRY(fork());
        if (child == 0) {
            TRY(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0));
            for (;;) pause();
        }
    }
    if (!strcmp(kind, "socket")) {
        TRY(fd = socket(AF_INET, SOCK_STREAM, 0));
        struct sockaddr none = {.sa_family = AF_UNSPEC};
        (void)connect(fd, &none, sizeof none);
    }
    if (!strcmp(kind, "zombie")) {
        child = TRY(fork());
        if (child == 0) _exit(7);
        usleep(20000);
    }
    if (!strcmp(kind, "reading")) {
        fd = TRY(open("input", O_RDONLY));
        char byte;
        CHECK(read(fd, &byte, 1) == 1, "read");
    }
    probe_ready();
    while (!probe_resumed()) usleep(5000);
    if (child && !strcmp(kind, "child")) TRY(kill(child, SIGKILL));
    if (child) CHECK(waitpid(child, NULL, 0) == child, "waitpid: %s", strerror(errno));
    return probe_pass();
}
