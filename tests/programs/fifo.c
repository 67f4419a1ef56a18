/* Named pipes that the program has for itself.
   plain: reader, writer and both at once, data, size, flags, dup'd, O_PATH; hangup: a reader that saw its writers go, one that never
   had any; writer: nobody reads, with data left; packets: packet mode; removed: without a name, in a folder without a name. */
#include "probe.h"
#include <poll.h>
#include <sys/ioctl.h>

static char data[200000], back[200000];

static int events(int fd) {
    struct pollfd polled = {fd, POLLIN | POLLOUT, 0};
    TRY(poll(&polled, 1, 0));
    return polled.revents;
}

static int status(int fd) { return TRY(fcntl(fd, F_GETFL)) & (O_ACCMODE | O_NONBLOCK | O_DIRECT | O_PATH); }

static ino_t inode(int fd) {
    struct stat now;
    TRY(fstat(fd, &now));
    CHECK(S_ISFIFO(now.st_mode) && (now.st_mode & 07777) == 0640, "mode is %o", now.st_mode);
    return now.st_ino;
}

static void leads(int fd, const char *end) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = TRY(readlink(link, path, sizeof path - 1));
    path[length] = 0;
    CHECK((size_t)length > strlen(end) && !strcmp(path + length - strlen(end), end), "it leads to %s, not to %s", path, end);
}

static void get(int fd, size_t bytes) {
    for (size_t got = 0; got < bytes;) {
        ssize_t part = TRY(read(fd, back + got, bytes - got));
        CHECK(part > 0, "end of file after %zu bytes", got);
        got += (size_t)part;
    }
    CHECK(!memcmp(back, data, bytes), "data in the fifo");
}

static void plain(const char *path, const char *name) {
    int both = TRY(open(path, O_RDWR)), other = TRY(open(path, O_RDWR | O_NONBLOCK)), reader = TRY(open(path, O_RDONLY));
    int writer = TRY(open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC)), second = TRY(open(path, O_WRONLY)), file = TRY(open(path, O_PATH));
    int copy = TRY(dup2(reader, 70)), size = TRY(fcntl(writer, F_SETPIPE_SZ, 262144));
    if (strchr(path, '/')) {
        TRY(unlink(path));
        TRY(rmdir("folder"));
    }
    int fds[] = {both, other, reader, writer, second, file, copy}, flags[7];
    CHECK(write(writer, data, sizeof data) == sizeof data, "write");
    for (int i = 0; i < 7; i++) flags[i] = status(fds[i]);
    probe_ready();
    probe_wait();
    for (int i = 0; i < 7; i++) {
        CHECK(status(fds[i]) == flags[i], "flags of %d are %x, were %x", i, status(fds[i]), flags[i]);
        CHECK(inode(fds[i]) == inode(both), "descriptor %d leads to another fifo", i);
        leads(fds[i], name);
    }
    CHECK(fcntl(both, F_GETPIPE_SZ) == size, "size is %d, was %d", fcntl(both, F_GETPIPE_SZ), size);
    CHECK(fcntl(writer, F_GETFD) == FD_CLOEXEC && fcntl(reader, F_GETFD) == 0, "close-on-exec");
    get(reader, sizeof data);
    CHECK(read(other, back, 1) == -1 && errno == EAGAIN, "it is not empty");
    TRY(fcntl(copy, F_SETFL, O_NONBLOCK));
    CHECK(status(reader) & O_NONBLOCK, "the dup'd descriptor is another one");
    for (int i = 0; i < 2; i++) {
        int end = i ? second : both;
        CHECK(write(end, "x", 1) == 1 && read(copy, back, 2) == 1, "written after the resume");
    }
    CHECK(!(events(copy) & POLLHUP) && !(events(writer) & POLLERR), "a hang-up with all ends open");
    TRY(close(both)), TRY(close(other)), TRY(close(writer));
    CHECK(!(events(copy) & POLLHUP), "a hang-up with one writer left");
    TRY(close(second));
    CHECK(events(copy) == POLLHUP, "no hang-up without writers");
    if (!strchr(path, '/')) {
        struct stat now;
        TRY(stat(path, &now));
        CHECK(now.st_ino == inode(reader), "its name leads to another fifo");
    }
}

static void hangup(const char *path) {
    int writer = TRY(open(path, O_RDWR)), seen = TRY(open(path, O_RDONLY)), keeper = TRY(open(path, O_RDONLY | O_NONBLOCK));
    CHECK(write(writer, data, 1000) == 1000, "write");
    TRY(close(writer));
    int waits = TRY(open(path, O_RDONLY | O_NONBLOCK)), slow = TRY(open(path, O_RDONLY | O_NONBLOCK));
    TRY(fcntl(slow, F_SETFL, 0));
    CHECK(events(seen) == (POLLIN | POLLHUP) && events(keeper) == (POLLIN | POLLHUP) && events(waits) == POLLIN && events(slow) == POLLIN, "events before");
    probe_ready();
    probe_wait();
    CHECK(status(slow) == O_RDONLY && status(waits) == O_NONBLOCK && status(seen) == O_RDONLY, "flags");
    CHECK(events(seen) == (POLLIN | POLLHUP) && events(keeper) == (POLLIN | POLLHUP), "no hang-up: %x, %x", events(seen), events(keeper));
    CHECK(events(waits) == POLLIN && events(slow) == POLLIN, "a hang-up nobody saw: %x, %x", events(waits), events(slow));
    get(seen, 1000);
    CHECK(read(slow, back, 1) == 0 && events(waits) == 0, "it is not empty");
    writer = TRY(open(path, O_WRONLY | O_NONBLOCK));
    CHECK(events(waits) == 0 && events(seen) == 0, "a hang-up with a writer");
    CHECK(write(writer, data, 10) == 10, "write");
    get(slow, 10);
    TRY(close(writer));
    CHECK(events(waits) == POLLHUP && events(slow) == POLLHUP && events(seen) == POLLHUP, "no hang-up at last");
}

static void nobody_reads(const char *path) {
    int reader = TRY(open(path, O_RDONLY | O_NONBLOCK)), writer = TRY(open(path, O_WRONLY)), second = TRY(open(path, O_WRONLY | O_NONBLOCK));
    CHECK(write(writer, data, 3000) == 3000, "write");
    TRY(close(reader));
    signal(SIGPIPE, SIG_IGN);
    CHECK((events(writer) & POLLERR) && (events(second) & POLLERR), "events before");
    probe_ready();
    probe_wait();
    CHECK((events(writer) & POLLERR) && (events(second) & POLLERR), "it has a reader");
    CHECK(write(second, "x", 1) == -1 && errno == EPIPE, "it can be written");
    CHECK(status(writer) == O_WRONLY && status(second) == (O_WRONLY | O_NONBLOCK), "flags");
    reader = TRY(open(path, O_RDONLY | O_NONBLOCK));
    CHECK(!(events(writer) & POLLERR), "the reader is none");
    get(reader, 3000);
    CHECK(write(writer, "more", 4) == 4 && read(reader, back, 10) == 4, "written after the resume");
}

static void packets(const char *path) {
    int reader = TRY(open(path, O_RDONLY | O_NONBLOCK)), writer = TRY(open(path, O_WRONLY));
    TRY(fcntl(writer, F_SETFL, O_DIRECT));
    CHECK(write(writer, "first", 5) == 5 && write(writer, "second one", 10) == 10, "write");
    probe_ready();
    probe_wait();
    CHECK(status(writer) == (O_WRONLY | O_DIRECT), "flags");
    CHECK(read(reader, back, 100) == 5 && !memcmp(back, "first", 5), "first packet");
    CHECK(write(writer, "third", 5) == 5, "write");
    CHECK(read(reader, back, 100) == 10 && !memcmp(back, "second one", 10) && read(reader, back, 100) == 5, "packets");
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "plain";
    probe_fill(data, sizeof data, 7);
    TRY(umask(0));
    TRY(mkdir("folder", 0755));
    TRY(mkfifo("fifo", 0640));
    TRY(mkfifo("folder/fifo", 0640));
    if (!strcmp(kind, "hangup")) hangup("fifo");
    else if (!strcmp(kind, "writer")) nobody_reads("fifo");
    else if (!strcmp(kind, "packets")) packets("fifo");
    else if (!strcmp(kind, "removed")) plain("folder/fifo", "/folder/fifo (deleted)");
    else plain("fifo", "/fifo");
    return probe_pass();
}
