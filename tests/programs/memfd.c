/* Memory files: content, seals, mappings shared and private, several descriptors.
   argument: open, shared, private, sealed, future (F_SEAL_FUTURE_WRITE with a writable mapping), only-mapped. */
#include "probe.h"

#define SIZE (64 * PAGE)

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "open";
    int sealed = !strcmp(kind, "sealed"), future = !strcmp(kind, "future"), only = !strcmp(kind, "only-mapped");
    int private = !strcmp(kind, "private"), mapped = strcmp(kind, "open") && !sealed;
    int fd = TRY(memfd_create("a name", sealed || future ? MFD_ALLOW_SEALING : 0));
    TRY(ftruncate(fd, SIZE));
    char *content = malloc(SIZE);
    probe_fill(content, SIZE / 2, 1);
    CHECK(write(fd, content, SIZE / 2) == SIZE / 2, "write");
    char *memory = NULL;
    if (mapped) {
        memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, private ? MAP_PRIVATE : MAP_SHARED, fd, 0);
        CHECK(memory != MAP_FAILED, "mmap");
        if (private) probe_fill(memory, PAGE, 2);
    }
    int seals = sealed ? F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL : future ? F_SEAL_FUTURE_WRITE | F_SEAL_GROW : F_SEAL_SEAL;
    if (sealed || future) TRY(fcntl(fd, F_ADD_SEALS, seals));
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int reader = TRY(open(path, O_RDONLY));
    TRY(lseek(reader, 3 * PAGE, SEEK_SET));
    if (only) {
        TRY(close(fd));
        TRY(close(reader));
    }

    probe_ready();
    probe_wait();

    if (mapped) {
        probe_fill(content, SIZE / 2, 1);
        if (private) probe_fill(content, PAGE, 2);
        CHECK(!memcmp(memory, content, SIZE / 2), "the mapping differs");
        probe_zero(memory + SIZE / 2, SIZE / 2, "rest of the mapping");
    }
    if (only) return probe_pass();
    CHECK(fcntl(fd, F_GET_SEALS) == seals, "seals %x, were %x", fcntl(fd, F_GET_SEALS), seals);
    struct stat now;
    TRY(fstat(fd, &now));
    CHECK(now.st_size == SIZE, "size");
    char shown[128] = "";
    TRY(readlink(path, shown, sizeof shown - 1));
    CHECK(!strcmp(shown, "/memfd:a name (deleted)"), "name %s", shown);
    CHECK(lseek(reader, 0, SEEK_CUR) == 3 * PAGE, "position");
    CHECK(pread(reader, content, SIZE / 2, 0) == SIZE / 2, "pread");
    probe_same(content, SIZE / 2, 1, "content");
    CHECK(write(reader, "x", 1) == -1 && errno == EBADF, "the reader writes");
    if (sealed || future) CHECK(pwrite(fd, "x", 1, 0) == -1 && errno == EPERM, "a sealed file was written");
    else CHECK(pwrite(fd, "x", 1, 0) == 1, "pwrite");
    if (future) {
        memory[0] = 'y';
        CHECK(pread(reader, content, 1, 0) == 1 && content[0] == 'y', "the mapping is of another file");
    }
    if (!strcmp(kind, "shared")) CHECK(memory[0] == 'x', "the mapping is of another file");
    return probe_pass();
}
