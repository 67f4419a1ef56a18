/* Advice and locks of mappings stay, as /proc/self/smaps shows them, and do what they are for.
   argument: dontfork wipeonfork mergeable nohugepage hugepage dontdump sequential random mlock onfault */
#include "probe.h"
#include <sys/wait.h>

static const struct { const char *name, *flag; int advice; } KINDS[] = {
    {"dontfork", " dc", MADV_DONTFORK}, {"wipeonfork", " wf", MADV_WIPEONFORK}, {"mergeable", " mg", MADV_MERGEABLE},
    {"nohugepage", " nh", MADV_NOHUGEPAGE}, {"hugepage", " hg", MADV_HUGEPAGE}, {"dontdump", " dd", MADV_DONTDUMP},
    {"sequential", " sr", MADV_SEQUENTIAL}, {"random", " rr", MADV_RANDOM}, {"mlock", " lo", 0}, {"onfault", " lf", 0},
};

/* The line of the mapping that begins there. */
static long of_mapping(void *start, const char *line, char *into, size_t size) {
    FILE *smaps = fopen("/proc/self/smaps", "re");
    CHECK(smaps != NULL, "smaps: %s", strerror(errno));
    char text[4096], wanted[32];
    snprintf(wanted, sizeof wanted, "%lx-", (unsigned long)start);
    int inside = 0;
    long found = -1;
    while (fgets(text, sizeof text, smaps)) {
        if (strchr(text, '-') && strchr("0123456789abcdef", text[0])) inside = !strncmp(text, wanted, strlen(wanted));
        if (inside && !strncmp(text, line, strlen(line))) {
            found = atol(text + strlen(line));
            if (into) snprintf(into, size, "%s", text);
            break;
        }
    }
    fclose(smaps);
    return found;
}

static int has(void *start, const char *flag) {
    char text[4096] = "";
    CHECK(of_mapping(start, "VmFlags:", text, sizeof text) != -1, "no such mapping");
    return strstr(text, flag) != NULL;
}

/* What a child sees of the first word: -1 when the memory is not there. */
static int child_sees(volatile char *memory) {
    pid_t child = TRY(fork());
    if (child == 0) _exit(probe_faults(memory, 0) ? 2 : memory[0] == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status), "the child died");
    return WEXITSTATUS(status);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "";
    size_t bytes = 4 << 20, at = 0;
    while (at < sizeof KINDS / sizeof *KINDS && strcmp(KINDS[at].name, kind)) at++;
    CHECK(at < sizeof KINDS / sizeof *KINDS, "unknown kind %s", kind);
    char *around = probe_map(4 * bytes, PROT_NONE, MAP_PRIVATE);
    char *memory = (char *)(((uintptr_t)around + 2 * bytes) & ~(bytes - 1));
    TRY(mprotect(memory, bytes, PROT_READ | PROT_WRITE));
    if (!strcmp(kind, "mlock")) {
        if (mlock(memory, 16 * PAGE)) skip("mlock: %s", strerror(errno));
    } else if (!strcmp(kind, "onfault")) {
        if (mlock2(memory, bytes, MLOCK_ONFAULT)) skip("mlock2: %s", strerror(errno));
    } else if (madvise(memory, bytes, KINDS[at].advice)) {
        skip("madvise: %s", strerror(errno));
    }
    size_t filled = strcmp(kind, "hugepage") ? 16 * PAGE : bytes;
    probe_fill(memory, filled, 1);
    const char *flag = KINDS[at].flag;
    CHECK(has(memory, flag), "no flag%s before", flag);
    long huge = of_mapping(memory, "AnonHugePages:", NULL, 0), locked = of_mapping(memory, "Locked:", NULL, 0);
    if (!strcmp(kind, "hugepage") && huge < (long)(bytes >> 10)) skip("the kernel gave %ld kB of huge pages only", huge);
    probe_ready();
    probe_wait();
    CHECK(has(memory, flag), "the flag%s is lost", flag);
    CHECK(!has(around, flag), "another mapping has the flag%s", flag);
    probe_same(memory, filled, 1, kind);
    long now = of_mapping(memory, "AnonHugePages:", NULL, 0);
    if (!strcmp(kind, "hugepage")) CHECK(now >= huge, "%ld kB of huge pages were %ld", now, huge);
    if (!strcmp(kind, "nohugepage")) CHECK(now == 0, "%ld kB of huge pages", now);
    now = of_mapping(memory, "Locked:", NULL, 0);
    CHECK(now >= locked, "%ld kB locked, were %ld", now, locked);
    if (!strcmp(kind, "onfault")) CHECK(now <= locked, "%ld kB locked, were %ld: brought in as well", now, locked);
    if (!strcmp(kind, "dontfork")) CHECK(child_sees(memory) == 2, "a child gets it");
    if (!strcmp(kind, "wipeonfork")) CHECK(child_sees(memory) == 1, "a child sees its content");
    return probe_pass();
}
