/* signalfds: signals queued before the checkpoint are read after it, with their values; the mask holds for what comes later. */
#include "probe.h"
#include <poll.h>
#include <sys/signalfd.h>

int main(int argc, char **argv) {
    probe_start(argc, argv);
    sigset_t both, one;
    sigemptyset(&one);
    sigaddset(&one, SIGUSR2);
    both = one;
    sigaddset(&both, SIGRTMIN + 3);
    sigset_t all = both;
    sigaddset(&all, SIGUSR1);
    TRY(sigprocmask(SIG_BLOCK, &all, NULL));
    int fd = TRY(signalfd(-1, &both, SFD_NONBLOCK | SFD_CLOEXEC)), other = TRY(signalfd(-1, &one, SFD_NONBLOCK));
    for (int i = 0; i < 3; i++) TRY(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 100 + i}));
    TRY(kill(getpid(), SIGUSR1));
    struct signalfd_siginfo info;
    CHECK(read(fd, &info, sizeof info) == sizeof info && info.ssi_int == 100, "set-up");
    probe_ready();
    probe_wait();
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    CHECK(poll(&polled, 1, 0) == 1, "nothing to read");
    for (int i = 1; i < 3; i++) {
        CHECK(read(fd, &info, sizeof info) == sizeof info, "read: %s", strerror(errno));
        CHECK(info.ssi_signo == (uint32_t)SIGRTMIN + 3 && info.ssi_int == 100 + i && info.ssi_pid == (uint32_t)getpid(), "signal %u with %d", info.ssi_signo, info.ssi_int);
    }
    CHECK(read(fd, &info, sizeof info) == -1 && errno == EAGAIN, "a signal too many: %u", info.ssi_signo);
    CHECK(read(other, &info, sizeof info) == -1 && errno == EAGAIN, "a signal of the other mask");
    TRY(kill(getpid(), SIGUSR2));
    CHECK(read(other, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR2, "the other one's signal");
    sigset_t pending;
    TRY(sigpending(&pending));
    CHECK(sigismember(&pending, SIGUSR1) && !sigismember(&pending, SIGUSR2), "pending signals");
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(other, F_GETFD) == 0, "close-on-exec");
    return probe_pass();
}
