/* Pipes to itself: data, size, O_NONBLOCK, close-on-exec, an end closed; argument packets: packet mode; both: opened for
   reading and writing at once. */
#include "probe.h"

static void packets(void) {
    int ends[2];
    TRY(pipe2(ends, O_DIRECT | O_NONBLOCK));
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", ends[1]);
    int other = TRY(open(path, O_WRONLY)), file = TRY(open(path, O_PATH));
    TRY(fcntl(other, F_SETFL, O_DIRECT));
    CHECK(write(ends[1], "first", 5) == 5 && write(ends[1], "second one", 10) == 10, "write");
    probe_ready();
    probe_wait();
    char buffer[64];
    CHECK(read(ends[0], buffer, sizeof buffer) == 5 && !memcmp(buffer, "first", 5), "first packet");
    CHECK(write(ends[1], "third", 5) == 5, "write after the resume");
    CHECK(read(ends[0], buffer, sizeof buffer) == 10 && !memcmp(buffer, "second one", 10), "second packet");
    CHECK(read(ends[0], buffer, sizeof buffer) == 5, "third packet");
    CHECK((fcntl(other, F_GETFL) & (O_ACCMODE | O_DIRECT | O_NONBLOCK)) == (O_WRONLY | O_DIRECT), "flags of the other one");
    CHECK(write(other, "4", 1) == 1 && write(ends[1], "five", 4) == 4, "packets of both");
    CHECK(read(ends[0], buffer, sizeof buffer) == 1 && read(ends[0], buffer, sizeof buffer) == 4, "packets of both");
    CHECK((fcntl(file, F_GETFL) & O_PATH) && read(file, buffer, 1) == -1 && errno == EBADF, "O_PATH");
    TRY(close(ends[0]));
    signal(SIGPIPE, SIG_IGN);
    CHECK(write(other, "6", 1) == -1 && errno == EPIPE, "a reader is left");
}

static void both(void) {
    int ends[2];
    char path[64], buffer[64];
    TRY(pipe(ends));
    snprintf(path, sizeof path, "/proc/self/fd/%d", ends[0]);
    int one = TRY(open(path, O_RDWR | O_NONBLOCK)), other = TRY(open(path, O_RDWR));
    CHECK(write(one, "data", 4) == 4, "write");
    TRY(close(ends[0]));
    probe_ready();
    probe_wait();
    CHECK((fcntl(one, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDWR | O_NONBLOCK) && (fcntl(other, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == O_RDWR, "flags");
    CHECK(read(other, buffer, 64) == 4 && !memcmp(buffer, "data", 4), "data");
    CHECK(read(one, buffer, 64) == -1 && errno == EAGAIN, "it is not empty");
    CHECK(write(ends[1], "more", 4) == 4 && read(one, buffer, 64) == 4, "written after the resume");
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    if (argc > 2) {
        if (!strcmp(argv[2], "both")) both();
        else packets();
        return probe_pass();
    }
    static char data[200000], back[200000];
    int plain[2], large[2], ended[2], empty[2];
    probe_fill(data, sizeof data, 3);
    TRY(pipe(plain));
    TRY(pipe2(large, O_NONBLOCK | O_CLOEXEC));
    TRY(pipe(ended));
    TRY(pipe(empty));
    int size = TRY(fcntl(large[1], F_SETPIPE_SZ, 262144));
    int copy = TRY(dup2(plain[1], 77));
    CHECK(write(plain[1], data, 10001) == 10001, "write");
    CHECK(write(large[1], data, sizeof data) == sizeof data, "write");
    CHECK(write(ended[1], "last words", 10) == 10, "write");
    TRY(close(ended[1]));
    struct stat before[2], after[2];
    TRY(fstat(plain[0], &before[0]));
    TRY(fstat(plain[1], &before[1]));
    probe_ready();
    probe_wait();
    TRY(fstat(plain[0], &after[0]));
    TRY(fstat(plain[1], &after[1]));
    CHECK(after[0].st_ino == after[1].st_ino, "the two ends are no longer one pipe");
    CHECK(fcntl(large[1], F_GETPIPE_SZ) == size, "size of the pipe is %d, was %d", fcntl(large[1], F_GETPIPE_SZ), size);
    CHECK((fcntl(large[0], F_GETFL) & O_NONBLOCK) && !(fcntl(plain[0], F_GETFL) & O_NONBLOCK), "O_NONBLOCK");
    CHECK(fcntl(large[0], F_GETFD) == FD_CLOEXEC && fcntl(plain[0], F_GETFD) == 0, "close-on-exec");
    CHECK(write(copy, "more", 4) == 4, "write to the dup'd end");
    CHECK(read(plain[0], back, 10001) == 10001 && !memcmp(back, data, 10001), "data in the pipe");
    CHECK(read(plain[0], back, 100) == 4 && !memcmp(back, "more", 4), "data written after the resume");
    for (size_t got = 0; got < sizeof data;) {
        ssize_t part = TRY(read(large[0], back + got, sizeof data - got));
        CHECK(part > 0, "end of file in the large pipe");
        got += (size_t)part;
    }
    CHECK(!memcmp(back, data, sizeof data), "data in the large pipe");
    CHECK(read(large[0], back, 1) == -1 && errno == EAGAIN, "the large pipe is not empty");
    CHECK(read(ended[0], back, 100) == 10 && read(ended[0], back, 100) == 0, "pipe whose writing end is closed");
    CHECK(write(empty[1], "x", 1) == 1 && read(empty[0], back, 1) == 1, "pipe that was empty");
    return probe_pass();
}
