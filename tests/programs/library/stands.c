/*
 * Programs that cannot be captured from inside as they are: one that is not dumpable until the file `again` is there, and one whose limit
 * of memory leaves no room for a copy.
 */
#include "../probe.h"
#include <sys/prctl.h>
#include <sys/resource.h>

/* Bytes of addresses in use, and some more. */
static void limit_memory(void) {
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file && fscanf(file, "%lu", &pages) == 1, "statm");
    fclose(file);
    struct rlimit limit = {.rlim_cur = pages * PAGE + (12 << 20), .rlim_max = RLIM_INFINITY};
    TRY(setrlimit(RLIMIT_AS, &limit));
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    int hides = argc > 2 && !strcmp(argv[2], "undumpable");
    if (hides) TRY(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
    else limit_memory();
    probe_ready();
    while (hides && access("again", F_OK) && !probe_resumed()) usleep(1000);
    if (hides) TRY(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    if (hides && !access("again", F_OK)) TRY(close(TRY(open("done", O_CREAT | O_WRONLY, 0600))));
    probe_wait();
    return probe_pass();
}
