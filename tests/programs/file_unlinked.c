/* Files that have no name any more, and some that never had one: content, position, one inode behind several descriptors.
   argument: plain, sparse (5 GB of hole with a little data), tmpfile, replaced, mapped, folder (its folder is gone too), linked (a hard link
   is left under another name: the same file), read-only (of a mode that would not let it be opened for writing again). */
#include "probe.h"

static void expect(int fd, off_t at, const char *what, size_t bytes, uint64_t seed) {
    char *buffer = malloc(bytes);
    CHECK(pread(fd, buffer, bytes, at) == (ssize_t)bytes, "%s: pread: %s", what, strerror(errno));
    probe_same(buffer, bytes, seed, what);
    free(buffer);
}

static void put(int fd, off_t at, size_t bytes, uint64_t seed) {
    char *buffer = malloc(bytes);
    probe_fill(buffer, bytes, seed);
    CHECK(pwrite(fd, buffer, bytes, at) == (ssize_t)bytes, "pwrite: %s", strerror(errno));
    free(buffer);
}

/* Not whole pages: the last one ends in the middle. */
static const size_t size = 300000;
static int sparse, tmpfile_, replaced, linked, mapped, folder, read_only;
static const char *name = "unlinked";
static int fd = -1, reader = -1, appender = -1, twin = -1;
static char *memory;

static void choose(const char *kind) {
    sparse = !strcmp(kind, "sparse");
    tmpfile_ = !strcmp(kind, "tmpfile");
    replaced = !strcmp(kind, "replaced");
    linked = !strcmp(kind, "linked");
    mapped = !strcmp(kind, "mapped");
    folder = !strcmp(kind, "folder");
    read_only = !strcmp(kind, "read-only");
    if (folder) name = "gone/unlinked";
}

static mode_t mode(void) { return read_only ? 0400 : 0640; }

static void set_up(void) {
    if (folder) TRY(mkdir("gone", 0700));
    fd = tmpfile_ ? TRY(open(".", O_TMPFILE | O_RDWR, 0640)) : TRY(open(name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0640));
    put(fd, 0, size, 1);
    if (sparse) {
        put(fd, 5000000000, 8192, 2);
        TRY(ftruncate(fd, 5100000001));
    }
    if (!tmpfile_) {
        TRY(reader = open(name, O_RDONLY));
        TRY(appender = open(name, O_WRONLY | O_APPEND));
    }
    TRY(fchmod(fd, mode()));
    if (mapped) memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(memory != MAP_FAILED, "mmap");
    if (replaced) {
        int other = TRY(open("other", O_RDWR | O_CREAT, 0600));
        put(other, 0, 64, 9);
        TRY(close(other));
        TRY(rename("other", name));
    } else if (!tmpfile_) {
        if (linked) TRY(link(name, "other-name"));
        TRY(unlink(name));
    }
    if (folder) TRY(rmdir("gone"));
    twin = TRY(dup(fd));
    TRY(lseek(fd, 12345, SEEK_SET));
    if (reader >= 0) TRY(lseek(reader, 777, SEEK_SET));
}

static void check_file(struct stat *now) {
    struct stat other;
    TRY(fstat(fd, now));
    CHECK(now->st_nlink == (linked ? 1 : 0), "it has %ld names", (long)now->st_nlink);
    if (linked) {
        TRY(stat("other-name", &other));
        CHECK(other.st_ino == now->st_ino, "no longer the file of that name");
    }
    CHECK((now->st_mode & 07777) == mode(), "mode %o", now->st_mode);
    CHECK(now->st_size == (sparse ? 5100000001 : (off_t)size), "size %lld", (long long)now->st_size);
    CHECK(now->st_blocks * 512 < 20000000, "%lld blocks: the holes are filled", (long long)now->st_blocks);
    expect(fd, 0, "content", size, 1);
    if (sparse) {
        expect(fd, 5000000000, "content behind the hole", 8192, 2);
        char zeros[4096] = {1};
        CHECK(pread(fd, zeros, sizeof zeros, 2500000000) == sizeof zeros, "pread");
        probe_zero(zeros, sizeof zeros, "hole");
    }
}

static void check_descriptors(const struct stat *now) {
    struct stat other;
    CHECK(lseek(fd, 0, SEEK_CUR) == 12345, "position");
    TRY(lseek(twin, 5, SEEK_SET));
    CHECK(lseek(fd, 0, SEEK_CUR) == 5, "a dup'd descriptor has another position");
    if (reader >= 0) {
        CHECK(lseek(reader, 0, SEEK_CUR) == 777, "position of the reader");
        TRY(fstat(reader, &other));
        CHECK(other.st_ino == now->st_ino && other.st_dev == now->st_dev, "two descriptors, two files");
        CHECK(write(reader, "x", 1) == -1 && errno == EBADF, "the reader writes");
        CHECK(write(appender, "12345678", 8) == 8, "append");
        TRY(fstat(fd, &other));
        CHECK(other.st_size == now->st_size + 8, "appended somewhere else");
    }
    put(fd, 290000, 8192, 5);
    expect(fd, 290000, "what was written now", 8192, 5);
}

static void check_mapping(void) {
    put(fd, 4096, 4096, 3);
    probe_same(memory + 4096, 4096, 3, "what was written to the file");
    probe_fill(memory, 4096, 4);
    expect(fd, 0, "what was written to the mapping", 4096, 4);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    choose(argc > 2 ? argv[2] : "plain");
    set_up();
    probe_ready();
    probe_wait();

    struct stat now, other;
    check_file(&now);
    /* Before anything is written anew. */
    if (mapped) probe_same(memory, size / 8 * 8, 1, "mapping");
    check_descriptors(&now);
    if (mapped) check_mapping();
    if (replaced) {
        int named = TRY(open(name, O_RDONLY));
        expect(named, 0, "the file that has the name now", 64, 9);
        TRY(fstat(named, &other));
        CHECK(other.st_ino != now.st_ino, "the same file");
    }
    if (tmpfile_) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        CHECK(linkat(AT_FDCWD, path, AT_FDCWD, "linked", AT_SYMLINK_FOLLOW) == 0, "linkat: %s", strerror(errno));
    }
    return probe_pass();
}
