/* Functions of the vdso, through the C library and looked up by the program itself. The second argument says what they must be after the
   resume: same (the kernel's own, where they were) or bridged (at the old place a jump to this kernel's, which is elsewhere); asking: bridged, and a thread that does nothing but ask for the time. */
#include "probe.h"
#include <elf.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/time.h>

typedef int clock_function(clockid_t, struct timespec *);
static clock_function *looked_up;
static const char *base;

/* Through the ELF header that the auxiliary vector names, as C libraries do it. */
static void *look_up(const char *name) {
    const Elf64_Ehdr *header = (const void *)base;
    CHECK(!memcmp(header->e_ident, ELFMAG, SELFMAG), "no ELF header at AT_SYSINFO_EHDR");
    const Elf64_Phdr *program = (const void *)(base + header->e_phoff);
    const Elf64_Dyn *dynamic = NULL;
    for (int i = 0; i < header->e_phnum; i++)
        if (program[i].p_type == PT_DYNAMIC) dynamic = (const void *)(base + program[i].p_offset);
    CHECK(dynamic != NULL, "no dynamic section");
    const Elf64_Sym *symbols = NULL;
    const char *strings = NULL;
    for (; dynamic->d_tag != DT_NULL; dynamic++) {
        if (dynamic->d_tag == DT_SYMTAB) symbols = (const void *)(base + dynamic->d_un.d_ptr);
        if (dynamic->d_tag == DT_STRTAB) strings = base + dynamic->d_un.d_ptr;
    }
    CHECK(symbols && strings, "no symbols");
    for (const Elf64_Sym *symbol = symbols; (const char *)symbol < strings; symbol++)
        if (!strcmp(strings + symbol->st_name, name)) return (void *)(uintptr_t)(base + symbol->st_value);
    fail("no %s", name);
}

static void mapping_of_vdso(uintptr_t *start, uintptr_t *end) {
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(maps != NULL, "maps: %s", strerror(errno));
    char line[512];
    *start = *end = 0;
    while (fgets(line, sizeof line, maps))
        if (strstr(line, "[vdso]")) {
            CHECK(*start == 0, "more than one vdso");
            CHECK(sscanf(line, "%lx-%lx", start, end) == 2, "%s", line);
        }
    fclose(maps);
}

static int64_t nanoseconds(struct timespec time) { return time.tv_sec * 1000000000ll + time.tv_nsec; }

static int64_t call(clockid_t clock) {
    struct timespec time = {0, 0};
    TRY(syscall(SYS_clock_gettime, clock, &time));
    return nanoseconds(time);
}

/* Everything between two system calls must lie between their results; coarse clocks may be a tick behind. */
static void check_clocks(void) {
    static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI, CLOCK_MONOTONIC_RAW,
                                       CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE};
    for (size_t i = 0; i < sizeof clocks / sizeof *clocks; i++) {
        clock_function *functions[] = {clock_gettime, looked_up};
        for (int j = 0; j < 2; j++) {
            struct timespec time = {0, 0};
            int64_t before = call(clocks[i]);
            TRY(functions[j](clocks[i], &time));
            int64_t after = call(clocks[i]), now = nanoseconds(time);
            CHECK(before <= now && now <= after, "clock %d shows %lld between %lld and %lld", clocks[i], (long long)now, (long long)before, (long long)after);
        }
        struct timespec resolution = {-1, -1}, said = {0, 0};
        TRY(clock_getres(clocks[i], &resolution));
        TRY(syscall(SYS_clock_getres, clocks[i], &said));
        CHECK(nanoseconds(resolution) == nanoseconds(said), "resolution of clock %d", clocks[i]);
    }
    struct timeval day = {0, 0};
    int64_t before = call(CLOCK_REALTIME) / 1000;
    TRY(gettimeofday(&day, NULL));
    CHECK(before <= day.tv_sec * 1000000ll + day.tv_usec && day.tv_sec * 1000000ll + day.tv_usec <= call(CLOCK_REALTIME) / 1000, "gettimeofday");
    time_t seconds = syscall(SYS_time, NULL), now = time(NULL);
    CHECK(seconds <= now && now <= syscall(SYS_time, NULL), "time");
    cpu_set_t one, all;
    TRY(sched_getaffinity(0, sizeof all, &all));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &all)) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        TRY(sched_setaffinity(0, sizeof one, &one));
        CHECK(sched_getcpu() == cpu, "on processor %d, not %d", sched_getcpu(), cpu);
        int (*getcpu)(unsigned *, unsigned *, void *) = look_up("__vdso_getcpu");
        unsigned here = ~0u;
        CHECK(getcpu(&here, NULL, NULL) == 0 && here == (unsigned)cpu, "getcpu says %u, not %d", here, cpu);
    }
    TRY(sched_setaffinity(0, sizeof all, &all));
}

static volatile int stop;

static void *ask(void *nothing) {
    struct timespec before = {0, 0}, now;
    while (!stop) {
        TRY(clock_gettime(CLOCK_REALTIME, &now));
        TRY(clock_gettime(CLOCK_MONOTONIC, &now));
        CHECK(nanoseconds(before) <= nanoseconds(now), "CLOCK_MONOTONIC goes back");
        before = now;
    }
    return nothing;
}

/* Does the function begin with a jump into this kernel's vdso? */
static int leads_on(const void *function, uintptr_t start, uintptr_t end) {
    const unsigned char *code = function;
    uintptr_t target;
    memcpy(&target, code + 6, sizeof target);
    return !memcmp(code, "\xff\x25\0\0\0\0", 6) && start <= target && target < end;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "same";
    base = (const char *)getauxval(AT_SYSINFO_EHDR);
    if (!base) skip("there is no vdso");
    uintptr_t start, end;
    mapping_of_vdso(&start, &end);
    CHECK(start == (uintptr_t)base, "the vdso is not where the auxiliary vector says");
    looked_up = look_up("__vdso_clock_gettime");
    CHECK(!leads_on(looked_up, start, end), "it leads on already");
    check_clocks();
    int asking = !strcmp(kind, "asking");
    pthread_t thread;
    if (asking) PTRY(pthread_create(&thread, NULL, ask, NULL));
    probe_ready();
    probe_wait();
    CHECK(getauxval(AT_SYSINFO_EHDR) == (uintptr_t)base && look_up("__vdso_clock_gettime") == looked_up, "its functions are elsewhere");
    mapping_of_vdso(&start, &end);
    int same = !strcmp(kind, "same");
    CHECK((start == (uintptr_t)base) == same, "the kernel's vdso is at %lx, was at %p", start, base);
    /* Or by way of one that was this kernel's before. */
    if (asking || !strcmp(kind, "bridged"))
        CHECK(leads_on(looked_up, start, end), "clock_gettime is not led to this kernel's");
    for (int i = 0; i < 200; i++) check_clocks();
    stop = 1;
    if (asking) PTRY(pthread_join(thread, NULL));
    return probe_pass();
}
