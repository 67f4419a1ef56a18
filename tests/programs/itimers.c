/* The three interval timers: what was left at the checkpoint is what is left after it; then they fire. */
#include "probe.h"
#include <sys/time.h>

static volatile sig_atomic_t fired;
static void on_alarm(int signal) { fired = signal; }

static double seconds(struct timeval time) { return (double)time.tv_sec + (double)time.tv_usec / 1e6; }

int main(int argc, char **argv) {
    probe_start(argc, argv);
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    TRY(sigaction(SIGALRM, &action, NULL));
    struct itimerval real = {.it_value = {1, 500000}, .it_interval = {33, 0}};
    struct itimerval virtual = {.it_value = {500, 0}, .it_interval = {7, 250000}};
    struct itimerval prof = {.it_value = {600, 0}}, now;
    TRY(setitimer(ITIMER_VIRTUAL, &virtual, NULL));
    TRY(setitimer(ITIMER_PROF, &prof, NULL));
    double started = probe_now();
    TRY(setitimer(ITIMER_REAL, &real, NULL));
    probe_ready();
    probe_wait();
    TRY(getitimer(ITIMER_VIRTUAL, &now));
    CHECK(seconds(now.it_value) > 490 && seconds(now.it_value) <= 500 && seconds(now.it_interval) == 7.25, "ITIMER_VIRTUAL has %.3f s left", seconds(now.it_value));
    TRY(getitimer(ITIMER_PROF, &now));
    CHECK(seconds(now.it_value) > 590 && seconds(now.it_value) <= 600 && seconds(now.it_interval) == 0, "ITIMER_PROF has %.3f s left", seconds(now.it_value));
    TRY(getitimer(ITIMER_REAL, &now));
    CHECK(seconds(now.it_interval) == 33, "interval of ITIMER_REAL is %.3f s", seconds(now.it_interval));
    while (!fired && probe_now() - started - probe_gap < 5) { }
    double awake = probe_now() - started - probe_gap;
    CHECK(fired == SIGALRM, "ITIMER_REAL never fired");
    /* A timer that went on while frozen fires early, one that began anew late. */
    CHECK(awake > 1.5 - probe_gap - 0.05 && awake < 1.8, "ITIMER_REAL fired after %.3f s (stood still %.3f s)", awake, probe_gap);
    TRY(getitimer(ITIMER_REAL, &now));
    CHECK(seconds(now.it_value) > 30, "ITIMER_REAL was not set anew");
    return probe_pass();
}
