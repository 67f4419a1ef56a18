/* Settings of the whole process that other programs have no use for. argument: personality, subreaper, membarrier, oom (score of the
   out-of-memory killer), coredump (which memory a core file holds), login (the login uid of the audit). */
#include "probe.h"
#include <sys/personality.h>
#include <sys/prctl.h>

enum { PRIVATE_EXPEDITED = 1 << 3, REGISTER_PRIVATE_EXPEDITED = 1 << 4 };

static long read_number(const char *path, int base) {
    char text[64] = {0};
    int fd = TRY(open(path, O_RDONLY));
    TRY(read(fd, text, sizeof text - 1));
    TRY(close(fd));
    return strtol(text, NULL, base);
}

static void write_text(const char *path, const char *text) {
    int fd = TRY(open(path, O_WRONLY));
    CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text), "%s: %s", path, strerror(errno));
    TRY(close(fd));
}

/* Sets it, or says what it is now. */
static void set(const char *kind) {
    if (!strcmp(kind, "personality")) TRY(personality(ADDR_NO_RANDOMIZE | SHORT_INODE));
    if (!strcmp(kind, "subreaper")) TRY(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
    if (!strcmp(kind, "membarrier")) TRY(syscall(SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0, 0));
    if (!strcmp(kind, "oom")) write_text("/proc/self/oom_score_adj", "321");
    if (!strcmp(kind, "coredump")) write_text("/proc/self/coredump_filter", "0x5d");
    if (!strcmp(kind, "login")) {
        char text[32];
        snprintf(text, sizeof text, "%u", getuid());
        int fd = open("/proc/self/loginuid", O_WRONLY);
        if (fd == -1) skip("this kernel has no login uid: %s", strerror(errno));
        if (write(fd, text, strlen(text)) == -1) skip("it cannot be set here: %s", strerror(errno));
        TRY(close(fd));
    }
}

static int is_set(const char *kind) {
    if (!strcmp(kind, "personality")) return personality(0xffffffff) == (ADDR_NO_RANDOMIZE | SHORT_INODE);
    int subreaper = 0;
    if (!strcmp(kind, "subreaper")) return TRY(prctl(PR_GET_CHILD_SUBREAPER, &subreaper, 0, 0, 0)) == 0 && subreaper;
    /* Only one who has registered may. */
    if (!strcmp(kind, "membarrier")) return syscall(SYS_membarrier, PRIVATE_EXPEDITED, 0, 0) == 0;
    if (!strcmp(kind, "oom")) return read_number("/proc/self/oom_score_adj", 10) == 321;
    if (!strcmp(kind, "coredump")) return read_number("/proc/self/coredump_filter", 16) == 0x5d;
    if (!strcmp(kind, "login")) return access("/proc/self/loginuid", F_OK) == 0 && (uid_t)read_number("/proc/self/loginuid", 10) == getuid();
    return 0;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "";
    CHECK(!is_set(kind), "%s is set from the beginning", kind);
    set(kind);
    CHECK(is_set(kind), "%s is not set", kind);
    probe_ready();
    probe_wait();
    CHECK(is_set(kind), "%s is lost", kind);
    return probe_pass();
}
