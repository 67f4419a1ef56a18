/* eventfds: count, semaphore mode, O_NONBLOCK, a full one, dup'd, close-on-exec. */
#include "probe.h"
#include <poll.h>
#include <sys/eventfd.h>

static uint64_t take(int fd) {
    uint64_t value = 0;
    ssize_t got = read(fd, &value, 8);
    return got == 8 ? value : got == -1 && errno == EAGAIN ? 0 : 999999;
}

static int ready(int fd, short events) {
    struct pollfd one = {.fd = fd, .events = events};
    return poll(&one, 1, 0) == 1 ? one.revents : 0;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    int empty = TRY(eventfd(0, EFD_NONBLOCK)), plain = TRY(eventfd(7, EFD_NONBLOCK | EFD_CLOEXEC));
    int semaphore = TRY(eventfd(3, EFD_NONBLOCK | EFD_SEMAPHORE)), full = TRY(eventfd(0, EFD_NONBLOCK));
    int blocking = TRY(eventfd(1, 0)), none = TRY(eventfd(0, EFD_NONBLOCK | EFD_SEMAPHORE));
    uint64_t most = UINT64_MAX - 1, add = 5000000000, one = 1;
    CHECK(write(full, &most, 8) == 8 && write(plain, &add, 8) == 8 && take(semaphore) == 1, "set-up");
    int twin = TRY(dup2(plain, 99));
    probe_ready();
    probe_wait();
    CHECK(take(empty) == 0 && ready(empty, POLLOUT) == POLLOUT, "the empty one");
    CHECK(take(twin) == add + 7 && take(plain) == 0, "the plain one and its duplicate");
    CHECK(take(semaphore) == 1 && take(semaphore) == 1 && take(semaphore) == 0, "the semaphore");
    CHECK(ready(full, POLLOUT | POLLIN) == POLLIN && write(full, &one, 8) == -1 && errno == EAGAIN, "the full one takes more");
    CHECK(take(full) == most, "the full one");
    CHECK((fcntl(blocking, F_GETFL) & O_NONBLOCK) == 0 && (fcntl(plain, F_GETFL) & O_NONBLOCK), "O_NONBLOCK");
    CHECK(fcntl(plain, F_GETFD) == FD_CLOEXEC && fcntl(twin, F_GETFD) == 0, "close-on-exec");
    CHECK(take(blocking) == 1, "the blocking one");
    add = 2;
    CHECK(write(none, &add, 8) == 8 && take(none) == 1 && take(none) == 1 && take(none) == 0, "the semaphore that was empty");
    return probe_pass();
}
