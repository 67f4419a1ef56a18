/* Files that cannot be opened anew beside the descriptor that there is, with their contents in the image.
   argument: leased (a lease ends, and its holder is told, when anybody opens the file), shut (nobody may open it any more), writes-only
   (leased, through a descriptor that only writes), mapped (leased, and only mapped any more). */
#include "probe.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define HOLE (1 << 20)

static volatile sig_atomic_t told;
static void tell(int signal) { (void)signal; told = 1; }

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "";
    int leased = strcmp(kind, "shut");
    struct sigaction action = {.sa_handler = tell};
    TRY(sigaction(SIGIO, &action, NULL));
    int file = TRY(open("held", O_RDWR | O_CREAT | O_TRUNC, 0600));
    CHECK(write(file, "begin", 5) == 5, "write");
    CHECK(pwrite(file, "end", 3, HOLE) == 3, "write behind the hole");
    if (!strcmp(kind, "writes-only")) {
        TRY(close(file));
        file = TRY(open("held", O_WRONLY));
    }
    if (leased) TRY(fcntl(file, F_SETLEASE, F_WRLCK));
    else TRY(fchmod(file, 0));
    if (!strcmp(kind, "mapped")) {
        char *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        CHECK(mapped != MAP_FAILED, "mmap: %s", strerror(errno));
        TRY(close(file));
        probe_ready();
        probe_wait();
        CHECK(!told && !memcmp(mapped, "begin", 5), "somebody has opened the file");
        return probe_pass();
    }
    probe_ready();
    probe_wait();
    CHECK(!told, "somebody has opened the file");
    if (leased) CHECK(fcntl(file, F_GETLEASE) == F_WRLCK, "the lease is %d", fcntl(file, F_GETLEASE));
    if (!strcmp(kind, "writes-only")) return probe_pass();
    CHECK(lseek(file, 0, SEEK_CUR) == 5, "the position is %ld", (long)lseek(file, 0, SEEK_CUR));
    CHECK(write(file, ", middle", 8) == 8, "write");
    char back[16] = {0};
    CHECK(pread(file, back, 13, 0) == 13 && !strcmp(back, "begin, middle"), "it holds '%s'", back);
    CHECK(pread(file, back, 16, HOLE) == 3 && !memcmp(back, "end", 3), "behind the hole '%.3s'", back);
    struct stat now;
    TRY(fstat(file, &now));
    CHECK(now.st_blocks * 512 < HOLE / 2, "its hole was filled: %ld blocks", (long)now.st_blocks);
    return probe_pass();
}
