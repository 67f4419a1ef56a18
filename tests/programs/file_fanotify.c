/* fanotify (argument: fid, what everybody may have; all, with marks of mounts and file systems, for the administrator): groups with their
   flags, marks of each kind, what is ignored, a target without a name. The kernel must tell the same of each group as before. */
#include "probe.h"
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#ifndef FAN_MARK_IGNORE_SURV
#define FAN_MARK_IGNORE_SURV 0x440
#endif
#ifndef FAN_MARK_EVICTABLE
#define FAN_MARK_EVICTABLE 0x200
#endif

static char before[2][4096];

/* The lines about the group, in the order of the alphabet; `without` is the number of an inode that is another one in the end. */
static void told(int fd, char *text, unsigned long without) {
    static char lines[16][256];
    char name[64], key[64];
    int count = 0;
    snprintf(name, sizeof name, "/proc/self/fdinfo/%d", fd);
    snprintf(key, sizeof key, " ino:%lx ", without);
    FILE *info = fopen(name, "r");
    CHECK(info, "%s: %s", name, strerror(errno));
    while (count < 16 && fgets(lines[count], 256, info))
        if (!strncmp(lines[count], "fanotify ", 9)) {
            if (strstr(lines[count], key)) strcpy(lines[count], strstr(lines[count], "mflags:")), *strstr(lines[count], "fhandle-bytes") = 0;
            count++;
        }
    fclose(info);
    qsort(lines, (size_t)count, 256, (int (*)(const void *, const void *))strcmp);
    for (int i = *text = 0; i < count; i++) strcat(text, lines[i]);
}

static struct { struct fanotify_event_metadata head; char rest[512]; } event;
static uint64_t next(int fd) {
    ssize_t length = read(fd, &event, sizeof event.head + 80);
    if (length == -1 && errno == EAGAIN) return 0;
    CHECK(length >= (ssize_t)sizeof event.head && event.head.event_len == length, "read: %zd, %s", length, strerror(errno));
    if (event.head.fd >= 0) TRY(close(event.head.fd));
    return event.head.mask;
}

static void touch(const char *path) { TRY(close(TRY(open(path, O_WRONLY | O_CREAT, 0600)))); }

/* Not every kernel has it, or gives it to everybody. */
#define MARK(fd, flags, mask, path) do { if (fanotify_mark(fd, FAN_MARK_ADD | (flags), mask, AT_FDCWD, path)) skip("fanotify_mark of %s: %s", path, strerror(errno)); } while (0)

static void fid(void) {
    int fd = fanotify_init(FAN_REPORT_DFID_NAME | FAN_CLOEXEC, 0);
    if (fd == -1) skip("fanotify_init: %s", strerror(errno));
    int plain = TRY(fanotify_init(FAN_REPORT_FID, O_RDONLY | O_LARGEFILE)), file = TRY(open("nameless", O_RDWR | O_CREAT | O_EXCL, 0600));
    TRY(fcntl(fd, F_SETFL, O_NONBLOCK));
    TRY(fcntl(plain, F_SETFL, O_NONBLOCK));
    MARK(fd, 0, FAN_CREATE | FAN_DELETE | FAN_ONDIR | FAN_EVENT_ON_CHILD | FAN_CLOSE_WRITE, "watched");
    MARK(fd, 0, FAN_MODIFY, "watched/file");
    MARK(fd, FAN_MARK_IGNORE_SURV, FAN_CLOSE_WRITE, "watched/file");
    MARK(fd, FAN_MARK_EVICTABLE, FAN_MOVED_TO, "other");
    MARK(plain, 0, FAN_MODIFY | FAN_CLOSE_WRITE, "nameless");
    struct stat inode;
    TRY(fstat(file, &inode));
    TRY(unlink("nameless"));
    TRY(rename("watched/file", "other/moved"));
    while (next(fd)) { }
    while (next(plain)) { }
    told(fd, before[0], 0);
    told(plain, before[1], inode.st_ino);
    CHECK(strlen(before[0]) > 200 && strlen(before[1]) > 60, "set-up");
    probe_ready();
    probe_wait();
    static char now[4096];
    told(fd, now, 0);
    CHECK(!strcmp(now, before[0]), "the group is\n%snot\n%s", now, before[0]);
    TRY(fstat(file, &inode));
    told(plain, now, inode.st_ino);
    CHECK(!strcmp(now, before[1]), "the group is\n%snot\n%s", now, before[1]);
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(plain, F_GETFD) == 0 && fcntl(plain, F_GETFL) & O_NONBLOCK, "flags");
    uint64_t mask = next(fd);
    CHECK(mask == 0, "an event nobody caused: %llx", (unsigned long long)mask);
    CHECK((mask = next(plain)) == 0, "an event nobody caused: %llx", (unsigned long long)mask);
    touch("watched/new");
    CHECK((mask = next(fd)) & FAN_CREATE, "mask %llx", (unsigned long long)mask);
    CHECK(memmem(event.rest, sizeof event.rest, "new", 4), "the name is not told");
    while (next(fd)) { }
    int moved = TRY(open("other/moved", O_WRONLY));
    CHECK(write(moved, "x", 1) == 1, "write");
    TRY(close(moved));
    CHECK((mask = next(fd)) == FAN_MODIFY, "mask %llx", (unsigned long long)mask);
    CHECK((mask = next(fd)) == 0, "what is ignored is told: %llx", (unsigned long long)mask);
    CHECK(write(file, "x", 1) == 1 && (mask = next(plain)) == FAN_MODIFY, "without a name: mask %llx", (unsigned long long)mask);
}

static int quiet_child(const char *path) {
    pid_t child = TRY(fork());
    if (child == 0) {
        execl(path, path, (char *)NULL);
        _exit(99);
    }
    int status;
    TRY(waitpid(child, &status, 0));
    return WEXITSTATUS(status);
}

static void all(void) {
    char program[64], command[256];
    int fd = fanotify_init(FAN_CLASS_CONTENT | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS | FAN_NONBLOCK, O_RDONLY | O_CLOEXEC | O_LARGEFILE);
    if (fd == -1) skip("fanotify_init: %s", strerror(errno));
    int whole = TRY(fanotify_init(FAN_REPORT_FID | FAN_REPORT_TID | FAN_NONBLOCK, 0));
    touch("watched/quiet");
    MARK(fd, 0, FAN_OPEN | FAN_CLOSE_WRITE | FAN_EVENT_ON_CHILD | FAN_ONDIR, "watched");
    MARK(fd, FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_OPEN, "watched/quiet");
    /* Nobody else starts programs from there. */
    MARK(fd, FAN_MARK_MOUNT, FAN_OPEN_EXEC, "/dev/shm");
    MARK(whole, FAN_MARK_FILESYSTEM, FAN_OPEN_EXEC, "/dev/shm");
    snprintf(program, sizeof program, "/dev/shm/fanotify-%d", getpid());
    while (next(fd)) { }
    told(fd, before[0], 0);
    told(whole, before[1], 0);
    CHECK(strstr(before[0], "mnt_id:") && strstr(before[1], "\nfanotify sdev:"), "set-up: %s%s", before[0], before[1]);
    probe_ready();
    probe_wait();
    static char now[4096];
    told(fd, now, 0);
    CHECK(!strcmp(now, before[0]), "the group is\n%snot\n%s", now, before[0]);
    told(whole, now, 0);
    CHECK(!strcmp(now, before[1]), "the group is\n%snot\n%s", now, before[1]);
    uint64_t mask = next(fd);
    CHECK(mask == 0, "an event nobody caused: %llx", (unsigned long long)mask);
    touch("watched/quiet");
    CHECK((mask = next(fd)) == FAN_CLOSE_WRITE, "what is ignored is told: %llx", (unsigned long long)mask);
    touch("watched/loud");
    CHECK((mask = next(fd)) & FAN_OPEN && event.head.pid == getpid(), "mask %llx", (unsigned long long)mask);
    while (next(fd)) { }
    snprintf(command, sizeof command, "cp /bin/true %s && chmod 700 %s", program, program);
    CHECK(system(command) == 0, "%s", command);
    int status = quiet_child(program);
    unlink(program);
    CHECK(status == 0, "%s ended with %d", program, status);
    CHECK((mask = next(fd)) & FAN_OPEN_EXEC, "mount: mask %llx", (unsigned long long)mask);
    CHECK((mask = next(whole)) & FAN_OPEN_EXEC, "file system: mask %llx", (unsigned long long)mask);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    mkdir("watched", 0700);
    mkdir("other", 0700);
    touch("watched/file");
    if (argc > 2 && !strcmp(argv[2], "all")) all();
    else fid();
    return probe_pass();
}
