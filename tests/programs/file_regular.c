/* Regular files: positions, reading, writing, appending, a position beyond the end, flags, a high number. */
#include "probe.h"

static void expect_read(int fd, const char *text) {
    char buffer[64] = {0};
    size_t length = strlen(text);
    CHECK(read(fd, buffer, length) == (ssize_t)length && !memcmp(buffer, text, length), "descriptor %d reads '%s', not '%s'", fd, buffer, text);
}

static void expect_file(const char *path, const char *text) {
    int fd = TRY(open(path, O_RDONLY));
    char buffer[256] = {0};
    ssize_t length = TRY(read(fd, buffer, sizeof buffer - 1));
    CHECK(length == (ssize_t)strlen(text) && !memcmp(buffer, text, (size_t)length), "%s holds '%s', not '%s'", path, buffer, text);
    TRY(close(fd));
}

static void put(int fd, const char *text) { CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text), "write to %d: %s", fd, strerror(errno)); }

int main(int argc, char **argv) {
    probe_start(argc, argv);
    char inherited[1000];
    for (int fd = 3; fd < 1000; fd++) inherited[fd] = fcntl(fd, F_GETFD) != -1;
    int made = TRY(open("input", O_RDWR | O_CREAT | O_TRUNC, 0600));
    put(made, "abcdefghijklmnopqrstuvwxyz");
    TRY(close(made));
    int reading = TRY(open("input", O_RDONLY));
    expect_read(reading, "abcde");
    int both = TRY(open("both", O_RDWR | O_CREAT | O_TRUNC, 0640));
    put(both, "0123456789");
    TRY(lseek(both, 4, SEEK_SET));
    int appending = TRY(open("appended", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600));
    put(appending, "one,");
    int beyond = TRY(open("beyond", O_RDWR | O_CREAT | O_TRUNC, 0600));
    TRY(lseek(beyond, 10, SEEK_SET));
    int high = TRY(fcntl(reading, F_DUPFD, 900));
    int nonblocking = TRY(open("input", O_RDONLY | O_NONBLOCK | O_NOATIME));
    int path_only = TRY(open("input", O_PATH | O_CLOEXEC));
    int flags[1024];
    int all[] = {reading, both, appending, beyond, high, nonblocking, path_only};
    for (unsigned i = 0; i < 7; i++) flags[i] = TRY(fcntl(all[i], F_GETFL));
    probe_ready();
    probe_wait();
    for (unsigned i = 0; i < 7; i++) CHECK(TRY(fcntl(all[i], F_GETFL)) == flags[i], "flags of descriptor %d are %x, were %x", all[i], fcntl(all[i], F_GETFL), flags[i]);
    for (unsigned i = 0; i < 7; i++)
        CHECK(TRY(fcntl(all[i], F_GETFD)) == (all[i] == appending || all[i] == path_only ? FD_CLOEXEC : 0), "close-on-exec of descriptor %d", all[i]);
    for (int fd = 3; fd < 1000; fd++) {
        int known = inherited[fd];
        for (unsigned i = 0; i < 7; i++) known |= all[i] == fd;
        CHECK(known || fcntl(fd, F_GETFD) == -1, "descriptor %d is open, nobody opened it", fd);
    }
    expect_read(reading, "fghij");
    expect_read(high, "klmno");
    expect_read(nonblocking, "abc");
    expect_read(both, "45");
    put(both, "XY");
    expect_read(both, "89");
    expect_file("both", "012345XY89");
    put(appending, "two,");
    int other = TRY(open("appended", O_WRONLY | O_APPEND));
    put(other, "three,");
    put(appending, "four");
    expect_file("appended", "one,two,three,four");
    put(beyond, "end");
    struct stat status;
    TRY(fstat(beyond, &status));
    CHECK(status.st_size == 13, "file written beyond its end has %ld bytes", (long)status.st_size);
    struct stat named;
    TRY(fstat(path_only, &status));
    TRY(stat("input", &named));
    CHECK(status.st_ino == named.st_ino, "O_PATH descriptor leads elsewhere");
    return probe_pass();
}
