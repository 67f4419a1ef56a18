/* What /proc says of the program: exe, comm, cmdline, environment, auxiliary vector; and the vdso's place. */
#include "probe.h"
#include <sys/auxv.h>
#include <sys/wait.h>

static ssize_t slurp(const char *path, char *buffer, size_t bytes) {
    int fd = TRY(open(path, O_RDONLY));
    ssize_t got, total = 0;
    while ((got = read(fd, buffer + total, bytes - (size_t)total)) > 0) total += got;
    TRY(close(fd));
    return total;
}

static void regions(char *out, size_t bytes) {
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps, "/proc/self/maps");
    out[0] = 0;
    while (fgets(line, sizeof line, maps))
        if (strstr(line, "[vdso]") || strstr(line, "[vvar") || strstr(line, "[vsyscall]")) {
            char *space = strchr(line, ' ');
            *space = 0;
            strncat(out, line, bytes - strlen(out) - 1);
            strncat(out, " ", bytes - strlen(out) - 1);
        }
    fclose(maps);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    static char before[4][65536], after[4][65536];
    static const char *files[] = {"/proc/self/comm", "/proc/self/cmdline", "/proc/self/environ", "/proc/self/auxv"};
    ssize_t lengths[4];
    char exe[4096] = {0}, exe_now[4096] = {0}, places[1024], places_now[1024];
    TRY(setenv("REWAKE_PROBE", "kept", 1));
    for (int i = 0; i < 4; i++) lengths[i] = slurp(files[i], before[i], sizeof before[i]);
    TRY(readlink("/proc/self/exe", exe, sizeof exe - 1));
    regions(places, sizeof places);
    unsigned long vdso = getauxval(AT_SYSINFO_EHDR);
    char **arguments = argv, **environment = environ;
    probe_ready();
    probe_wait();
    for (int i = 0; i < 4; i++) {
        ssize_t length = slurp(files[i], after[i], sizeof after[i]);
        CHECK(length == lengths[i] && !memcmp(before[i], after[i], (size_t)length), "%s differs", files[i]);
    }
    TRY(readlink("/proc/self/exe", exe_now, sizeof exe_now - 1));
    CHECK(!strcmp(exe, exe_now), "/proc/self/exe is %s, was %s", exe_now, exe);
    regions(places_now, sizeof places_now);
    CHECK(!strcmp(places, places_now), "vdso and friends at %s, were at %s", places_now, places);
    CHECK(getauxval(AT_SYSINFO_EHDR) == vdso && memcmp((void *)vdso, "\177ELF", 4) == 0, "no vdso at %lx", vdso);
    CHECK(arguments == argv && environment == environ && !strcmp(getenv("REWAKE_PROBE"), "kept"), "arguments or environment moved");
    struct timespec by_vdso, by_kernel;
    for (int clock = 0; clock < 2; clock++) {
        TRY(clock_gettime(clock, &by_vdso));
        TRY(syscall(SYS_clock_gettime, clock, &by_kernel));
        double apart = (double)(by_kernel.tv_sec - by_vdso.tv_sec) + (double)(by_kernel.tv_nsec - by_vdso.tv_nsec) / 1e9;
        CHECK(apart > -0.5 && apart < 0.5, "the vdso's clock %d is %.3f s off", clock, apart);
    }
    int status = system("exit 3");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3, "a child started after the resume ended with %d", status);
    return probe_pass();
}
