/* Descriptors made by dup share one position and flags; two opens of the same file do not. */
#include "probe.h"

static off_t at(int fd) { return TRY(lseek(fd, 0, SEEK_CUR)); }

int main(int argc, char **argv) {
    probe_start(argc, argv);
    int first = TRY(open("positions", O_RDWR | O_CREAT | O_TRUNC, 0600));
    CHECK(write(first, "0123456789", 10) == 10, "write");
    int copy = TRY(dup(first));
    int far = TRY(dup2(first, 500));
    int close_on_exec = TRY(fcntl(first, F_DUPFD_CLOEXEC, 20));
    int other = TRY(open("positions", O_RDWR));
    int other_copy = TRY(dup(other));
    TRY(lseek(first, 3, SEEK_SET));
    TRY(lseek(other, 7, SEEK_SET));
    probe_ready();
    probe_wait();
    CHECK(at(first) == 3 && at(copy) == 3 && at(far) == 3 && at(close_on_exec) == 3, "position of the first is %ld", (long)at(first));
    CHECK(at(other) == 7 && at(other_copy) == 7, "position of the other is %ld", (long)at(other));
    TRY(lseek(copy, 5, SEEK_SET));
    CHECK(at(first) == 5 && at(far) == 5 && at(close_on_exec) == 5, "dup'd descriptors no longer share their position");
    CHECK(at(other) == 7, "two opens now share their position");
    TRY(lseek(other, 1, SEEK_SET));
    CHECK(at(other_copy) == 1 && at(first) == 5, "the second pair");
    TRY(fcntl(far, F_SETFL, O_APPEND));
    CHECK(fcntl(first, F_GETFL) & O_APPEND, "dup'd descriptors no longer share their flags");
    CHECK(!(fcntl(other, F_GETFL) & O_APPEND), "two opens now share their flags");
    CHECK(fcntl(close_on_exec, F_GETFD) == FD_CLOEXEC && fcntl(copy, F_GETFD) == 0, "close-on-exec");
    return probe_pass();
}
