/* A symbolic link opened as such (O_PATH | O_NOFOLLOW). */
#include "probe.h"

int main(int argc, char **argv) {
    probe_start(argc, argv);
    char target[64] = {0};
    unlink("a link");
    TRY(symlink("nowhere/at all", "a link"));
    int fd = TRY(open("a link", O_PATH | O_NOFOLLOW | O_CLOEXEC));
    struct stat before, now;
    TRY(fstat(fd, &before));
    probe_ready();
    probe_wait();
    TRY(fstat(fd, &now));
    CHECK(S_ISLNK(now.st_mode) && now.st_ino == before.st_ino, "it is no longer that link");
    CHECK(readlinkat(fd, "", target, sizeof target) == 14 && !strcmp(target, "nowhere/at all"), "it leads to %s", target);
    CHECK(fcntl(fd, F_GETFL) & O_PATH && fcntl(fd, F_GETFD) == FD_CLOEXEC, "flags");
    return probe_pass();
}
