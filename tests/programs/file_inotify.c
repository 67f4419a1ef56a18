/* inotify: watch numbers with gaps, masks, a target that was moved, IN_ONESHOT, a file open elsewhere. Argument: deleted, targets that
   have no name any more, or not the one they were watched by. */
#include "probe.h"
#include <sys/inotify.h>

static struct { struct inotify_event event; char name[256]; } got;
/* With room for a short name, or for none: then it is one event that is read. */
static size_t room = 16;
static int next(int fd) {
    memset(&got, 0, sizeof got);
    ssize_t length = read(fd, &got, sizeof got.event + room);
    if (length == -1 && errno == EAGAIN) return 0;
    CHECK(length >= (ssize_t)sizeof got.event, "read: %s", strerror(errno));
    return got.event.wd;
}

static void touch(const char *path) { TRY(close(TRY(open(path, O_WRONLY | O_CREAT, 0600)))); }

/* All that is queued, but for what removing the targets itself causes. */
static void drain(int fd) { while (next(fd)) { } }

static int deleted(void) {
    int fd = TRY(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    int gap = TRY(inotify_add_watch(fd, ".", IN_OPEN));
    TRY(mkdir("folder", 0700));
    TRY(mkdir("folder/below", 0700));
    int file = TRY(open("file", O_RDWR | O_CREAT | O_EXCL, 0600)), other = TRY(open("other", O_RDWR | O_CREAT | O_EXCL, 0600));
    int folder = TRY(open("folder/below", O_RDONLY | O_DIRECTORY));
    CHECK(write(file, "content", 7) == 7, "write");
    TRY(link("other", "second"));
    int plain = TRY(inotify_add_watch(fd, "file", IN_MODIFY | IN_CLOSE_WRITE | IN_DELETE_SELF));
    TRY(inotify_rm_watch(fd, gap));
    int linked = TRY(inotify_add_watch(fd, "other", IN_MODIFY | IN_ATTRIB));
    int removed = TRY(inotify_add_watch(fd, "folder/below", IN_ACCESS | IN_DELETE_SELF | IN_ONLYDIR));
    TRY(close(other));
    TRY(unlink("file"));
    TRY(unlink("other"));
    TRY(rmdir("folder/below"));
    drain(fd);
    room = 0;
    CHECK(gap == 1 && plain == 2 && linked == 3 && removed == 4, "set-up: %d %d %d", plain, linked, removed);
    probe_ready();
    probe_wait();
    CHECK(next(fd) == 0, "an event of watch %d, mask %x, nobody caused", got.event.wd, got.event.mask);
    CHECK(pwrite(file, "C", 1, 0) == 1 && next(fd) == plain && got.event.mask == IN_MODIFY, "watch %d mask %x", got.event.wd, got.event.mask);
    TRY(truncate("second", 5));
    CHECK(next(fd) == linked && got.event.mask == IN_MODIFY, "hard link: watch %d mask %x", got.event.wd, got.event.mask);
    TRY(chmod("second", 0640));
    CHECK(next(fd) == linked && got.event.mask == IN_ATTRIB, "hard link: watch %d mask %x", got.event.wd, got.event.mask);
    TRY(close(file));
    CHECK(next(fd) == plain && got.event.mask == IN_CLOSE_WRITE, "watch %d mask %x", got.event.wd, got.event.mask);
    CHECK(next(fd) == plain && got.event.mask == IN_DELETE_SELF, "watch %d mask %x", got.event.wd, got.event.mask);
    CHECK(next(fd) == plain && got.event.mask == IN_IGNORED, "watch %d mask %x", got.event.wd, got.event.mask);
    TRY(close(folder));
    int gone = 0;
    while (next(fd) == removed) gone |= (int)got.event.mask;
    CHECK(gone & IN_IGNORED, "the removed folder is gone, its watch is not: %x", gone);
    return probe_pass();
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    if (argc > 2 && !strcmp(argv[2], "deleted")) return deleted();
    mkdir("watched", 0700);
    mkdir("watched/deep", 0700);
    mkdir("once", 0700);
    touch("watched/deep/file");
    int fd = TRY(inotify_init1(IN_NONBLOCK | IN_CLOEXEC)), none = TRY(inotify_init1(0));
    int gone = TRY(inotify_add_watch(fd, "watched/deep", IN_CREATE));
    int folder = TRY(inotify_add_watch(fd, "watched", IN_CREATE | IN_ONLYDIR)), shot = TRY(inotify_add_watch(fd, "once", IN_CREATE | IN_ONESHOT));
    int file = TRY(inotify_add_watch(fd, "watched/deep/file", IN_MODIFY | IN_CLOSE_WRITE));
    TRY(inotify_rm_watch(fd, gone));
    CHECK(next(fd) == gone && next(fd) == 0, "set-up");
    TRY(rename("watched/deep/file", "watched/deep/moved"));
    CHECK(gone == 1 && file == 4, "set-up");
    probe_ready();
    probe_wait();
    CHECK(next(fd) == 0, "an event of watch %d, mask %x, nobody caused", got.event.wd, got.event.mask);
    touch("once/new");
    int first = next(fd);
    CHECK(first == shot && (got.event.mask & IN_CREATE), "watch %d mask %x for %s", first, got.event.mask, got.name);
    CHECK(next(fd) == shot && (got.event.mask & IN_IGNORED), "the watch for one event is not over: %d %x", got.event.wd, got.event.mask);
    CHECK(next(fd) == 0, "an event of watch %d, mask %x, nobody caused", got.event.wd, got.event.mask);
    touch("watched/fresh");
    CHECK(next(fd) == folder && got.event.mask == IN_CREATE, "watch %d mask %x", got.event.wd, got.event.mask);
    int writer = TRY(open("watched/deep/moved", O_WRONLY | O_APPEND));
    CHECK(write(writer, "x", 1) == 1, "write");
    CHECK(next(fd) == file && got.event.mask == IN_MODIFY, "watch %d mask %x", got.event.wd, got.event.mask);
    TRY(close(writer));
    CHECK(next(fd) == file && got.event.mask == IN_CLOSE_WRITE, "watch %d mask %x", got.event.wd, got.event.mask);
    touch("watched/deep/other");
    CHECK(next(fd) == 0, "a watch that was removed");
    TRY(inotify_rm_watch(fd, folder));
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(none, F_GETFD) == 0 && !(fcntl(none, F_GETFL) & O_NONBLOCK), "flags");
    CHECK(inotify_add_watch(none, "watched", IN_CREATE) == 1, "the instance without watches");
    return probe_pass();
}
