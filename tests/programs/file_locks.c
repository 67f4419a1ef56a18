/* Locks: flock and POSIX record locks are held after the resume, seen by another process. */
#include "probe.h"
#include <sys/file.h>
#include <sys/wait.h>

static int conflicts(int fd, short type, off_t start, off_t length) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    TRY(fcntl(fd, F_GETLK, &lock));
    return lock.l_type != F_UNLCK;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    int whole = TRY(open("flocked", O_RDWR | O_CREAT | O_TRUNC, 0600));
    int shared = TRY(open("flocked-shared", O_RDWR | O_CREAT | O_TRUNC, 0600));
    int records = TRY(open("records", O_RDWR | O_CREAT | O_TRUNC, 0600));
    TRY(ftruncate(records, 100));
    TRY(flock(whole, LOCK_EX));
    TRY(flock(shared, LOCK_SH));
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 20};
    TRY(fcntl(records, F_SETLK, &lock));
    lock = (struct flock){.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 50, .l_len = 0};
    TRY(fcntl(records, F_SETLK, &lock));
    probe_ready();
    probe_wait();
    pid_t child = TRY(fork());
    if (child == 0) {
        int again = TRY(open("flocked", O_RDWR));
        CHECK(flock(again, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the exclusive flock is not held");
        again = TRY(open("flocked-shared", O_RDWR));
        CHECK(flock(again, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the shared flock is not held");
        CHECK(flock(again, LOCK_SH | LOCK_NB) == 0, "the shared flock became exclusive");
        CHECK(conflicts(records, F_RDLCK, 10, 20), "the write lock is not held");
        CHECK(!conflicts(records, F_WRLCK, 0, 10) && !conflicts(records, F_WRLCK, 30, 20), "a lock where none was");
        CHECK(conflicts(records, F_WRLCK, 60, 1) && !conflicts(records, F_RDLCK, 60, 1), "the read lock");
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the other process found a lock missing");
    return probe_pass();
}
