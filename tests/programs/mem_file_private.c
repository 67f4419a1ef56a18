/* Private file mappings: clean ones show the file, modified pages stay modified, the file stays as it is. */
#include "probe.h"

int main(int argc, char **argv) {
    probe_start(argc, argv);
    size_t bytes = 16 * PAGE;
    int file = TRY(open("private.dat", O_RDWR | O_CREAT | O_TRUNC, 0600));
    char *content = probe_map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    probe_fill(content, bytes, 1);
    CHECK(write(file, content, bytes) == (ssize_t)bytes, "write");
    char *clean = TRY((char *)mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, file, 0));
    char *mixed = TRY((char *)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0));
    char *offset = TRY((char *)mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 8 * PAGE));
    TRY(close(file));
    probe_same(clean, bytes, 1, "mapping before the checkpoint");
    probe_fill(mixed + 2 * PAGE, 2 * PAGE, 2);
    mixed[9 * PAGE] = 'm';
    offset[PAGE] = 'o';
    TRY(mprotect(mixed + 2 * PAGE, PAGE, PROT_READ));
    probe_ready();
    probe_wait();
    probe_same(clean, bytes, 1, "clean mapping");
    probe_same(mixed, 2 * PAGE, 1, "clean page of a modified mapping");
    probe_same(mixed + 2 * PAGE, 2 * PAGE, 2, "modified pages");
    CHECK(mixed[9 * PAGE] == 'm' && offset[PAGE] == 'o', "modified byte lost");
    CHECK(offset[PAGE + 1] == clean[9 * PAGE + 1] && mixed[9 * PAGE + 1] == clean[9 * PAGE + 1], "neighbour of a modified byte");
    CHECK(probe_faults(mixed + 2 * PAGE, 1), "page made read-only can be written");
    mixed[12 * PAGE] = 'n';
    TRY(madvise(offset, 4 * PAGE, MADV_DONTNEED));
    CHECK(memcmp(offset, clean + 8 * PAGE, 4 * PAGE) == 0, "MADV_DONTNEED does not bring back the file");
    file = TRY(open("private.dat", O_RDONLY));
    CHECK(read(file, content, bytes) == (ssize_t)bytes, "read");
    probe_same(content, bytes, 1, "the file on disk");
    return probe_pass();
}
