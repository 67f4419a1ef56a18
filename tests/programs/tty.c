/* The controlling terminal opened as /dev/tty, twice. Its streams lead elsewhere. */
#include "probe.h"
#include <sys/ioctl.h>

static void look(int tty, int other) {
    struct stat now;
    char path[64], link[64];
    struct winsize size;
    TRY(fstat(tty, &now));
    snprintf(path, sizeof path, "/proc/self/fd/%d", tty);
    ssize_t length = TRY(readlink(path, link, sizeof link - 1));
    link[length] = 0;
    CHECK(S_ISCHR(now.st_mode) && now.st_rdev == (5 << 8) && !strcmp(link, "/dev/tty"), "it is %s", link);
    CHECK(isatty(tty) && isatty(other), "it is no terminal");
    TRY(ioctl(other, TIOCGWINSZ, &size));
    CHECK((fcntl(tty, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDWR | O_NONBLOCK) && fcntl(tty, F_GETFD) == FD_CLOEXEC, "flags");
    CHECK((fcntl(other, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == O_RDONLY && fcntl(other, F_GETFD) == 0, "flags of the other one");
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    int tty = open("/dev/tty", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (tty == -1) skip("no terminal: %s", strerror(errno));
    int other = TRY(open("/dev/tty", O_RDONLY | O_NOCTTY));
    FILE *file = fopen("pid", "w");
    CHECK(file && fprintf(file, "%d\n", getpid()) > 0 && fclose(file) == 0, "writing the pid");
    look(tty, other);
    CHECK(write(tty, "before\n", 7) == 7, "write");
    probe_ready();
    probe_wait();
    look(tty, other);
    CHECK(write(tty, "after\n", 6) == 6, "write: %s", strerror(errno));
    /* Who leads a session of its own leads one without a terminal now. */
    if (getsid(0) != getpid()) {
        int again = TRY(open("/dev/tty", O_RDWR));
        CHECK(write(again, "again\n", 6) == 6, "write");
    }
    return probe_pass();
}
