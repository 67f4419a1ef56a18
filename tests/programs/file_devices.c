/* Devices that need nothing but to be opened again: null, zero, full, urandom; and a directory. */
#include "probe.h"

int main(int argc, char **argv) {
    probe_start(argc, argv);
    int null = TRY(open("/dev/null", O_RDWR));
    int zero = TRY(open("/dev/zero", O_RDONLY | O_CLOEXEC));
    int full = TRY(open("/dev/full", O_WRONLY));
    int random = TRY(open("/dev/urandom", O_RDONLY));
    int directory = TRY(open(".", O_RDONLY | O_DIRECTORY));
    probe_ready();
    probe_wait();
    char bytes[16] = "something", none[16] = {0};
    CHECK(read(null, bytes, 16) == 0 && write(null, bytes, 16) == 16, "/dev/null");
    CHECK(read(zero, bytes, 16) == 16 && !memcmp(bytes, none, 16), "/dev/zero");
    CHECK(fcntl(zero, F_GETFD) == FD_CLOEXEC, "close-on-exec of /dev/zero");
    CHECK(write(full, bytes, 16) == -1 && errno == ENOSPC, "/dev/full");
    CHECK(read(random, bytes, 16) == 16 && memcmp(bytes, none, 16), "/dev/urandom");
    CHECK(openat(directory, "through-directory", O_CREAT | O_WRONLY, 0600) >= 0, "openat: %s", strerror(errno));
    CHECK(access("through-directory", F_OK) == 0, "the directory's descriptor leads elsewhere");
    return probe_pass();
}
