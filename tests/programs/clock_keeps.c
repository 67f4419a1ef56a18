/* CLOCK_MONOTONIC and CLOCK_BOOTTIME go on where they were while real time has gone by: by the number of seconds given, or more. */
#include "probe.h"

static double show(clockid_t clock) {
    struct timespec now;
    TRY(clock_gettime(clock, &now));
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Past the vdso. */
static double ask(clockid_t clock) {
    struct timespec now;
    TRY(syscall(SYS_clock_gettime, clock, &now));
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

struct clocks { double real, monotonic, boot; };

static struct clocks look(void) {
    return (struct clocks){show(CLOCK_REALTIME), show(CLOCK_MONOTONIC), show(CLOCK_BOOTTIME)};
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    double waited = argc > 2 ? atof(argv[2]) : 3;
    struct clocks last = look(), gap = {0, 0, 0};
    probe_ready();
    while (!probe_resumed()) {
        struct clocks now = look();
        CHECK(now.monotonic >= last.monotonic && now.boot >= last.boot, "a clock went back");
        if (now.real - last.real > gap.real)
            gap = (struct clocks){now.real - last.real, now.monotonic - last.monotonic, now.boot - last.boot};
        last = now;
    }
    CHECK(gap.real >= waited, "only %f s have gone by", gap.real);
    CHECK(gap.monotonic <= gap.real - waited * 0.9, "CLOCK_MONOTONIC jumped by %f of %f s", gap.monotonic, gap.real);
    CHECK(gap.boot <= gap.real - waited * 0.9, "CLOCK_BOOTTIME jumped by %f of %f s", gap.boot, gap.real);
    double vdso = show(CLOCK_MONOTONIC), kernel = ask(CLOCK_MONOTONIC);
    CHECK(kernel >= vdso && kernel - vdso < 10, "the vdso says %f, the kernel %f", vdso, kernel);
    struct timespec until = {(time_t)kernel + 1, 0};
    double before = ask(CLOCK_REALTIME);
    TRY(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL));
    CHECK(show(CLOCK_MONOTONIC) >= (double)until.tv_sec && ask(CLOCK_REALTIME) - before < 60, "an absolute sleep by the kept clock");
    return probe_pass();
}
