/* Shared file mappings: what is written through them is in the file, before and after. */
#include "probe.h"

int main(int argc, char **argv) {
    probe_start(argc, argv);
    size_t bytes = 16 * PAGE;
    int file = TRY(open("shared.dat", O_RDWR | O_CREAT | O_TRUNC, 0600));
    TRY(ftruncate(file, (off_t)bytes));
    char *writer = TRY((char *)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    char *reader = TRY((char *)mmap(NULL, 8 * PAGE, PROT_READ, MAP_SHARED, file, 4 * PAGE));
    TRY(close(file));
    probe_fill(writer, bytes, 1);
    probe_ready();
    probe_wait();
    probe_same(writer, bytes, 1, "shared file mapping");
    CHECK(memcmp(reader, writer + 4 * PAGE, 8 * PAGE) == 0, "second mapping of the file");
    CHECK(probe_faults(reader, 1), "read-only shared mapping can be written");
    writer[5 * PAGE + 3] = 'w';
    CHECK(reader[PAGE + 3] == 'w', "mappings are no longer one file");
    char byte = 0;
    file = TRY(open("shared.dat", O_RDWR));
    CHECK(pread(file, &byte, 1, (off_t)(5 * PAGE + 3)) == 1 && byte == 'w', "the file does not see the mapping's write");
    CHECK(pwrite(file, "f", 1, (off_t)(6 * PAGE)) == 1, "pwrite");
    CHECK(writer[6 * PAGE] == 'f', "the mapping does not see the file's write");
    return probe_pass();
}
