/* timerfds. argument: plain (disarmed, one shot, periodic, expirations not read), absolute (clocks that pass while the program
   stands still; TFD_TIMER_CANCEL_ON_SET), alarm (clocks that wake the host). */
#include "probe.h"
#include <poll.h>
#include <sys/timerfd.h>

#define MS 1000000L

static int timer(int clock, int flags, long first, long interval) {
    int fd = timerfd_create(clock, TFD_NONBLOCK);
    if (fd == -1) skip("timerfd_create for clock %d: %s", clock, strerror(errno));
    struct itimerspec value = {{interval / 1000, interval % 1000 * MS}, {first / 1000, first % 1000 * MS}};
    if (flags & TFD_TIMER_ABSTIME) {
        struct timespec now;
        TRY(clock_gettime(clock == CLOCK_BOOTTIME_ALARM ? CLOCK_BOOTTIME : clock, &now));
        value.it_value.tv_sec += now.tv_sec;
        value.it_value.tv_nsec += now.tv_nsec;
        if (value.it_value.tv_nsec >= 1000 * MS) { value.it_value.tv_sec++; value.it_value.tv_nsec -= 1000 * MS; }
    }
    TRY(timerfd_settime(fd, flags, &value, NULL));
    return fd;
}

static uint64_t ticks(int fd) {
    uint64_t count = 0;
    ssize_t got = read(fd, &count, 8);
    CHECK(got == 8 || (got == -1 && errno == EAGAIN), "read: %s", strerror(errno));
    return count;
}

static double left(int fd) {
    struct itimerspec now;
    TRY(timerfd_gettime(fd, &now));
    return (double)now.it_value.tv_sec + (double)now.it_value.tv_nsec / 1e9;
}

static double interval(int fd) {
    struct itimerspec now;
    TRY(timerfd_gettime(fd, &now));
    return (double)now.it_interval.tv_sec + (double)now.it_interval.tv_nsec / 1e9;
}

static void await(int fd, int ms) {
    struct pollfd one = {.fd = fd, .events = POLLIN};
    CHECK(poll(&one, 1, ms) == 1 && one.revents == POLLIN, "the timer does not expire");
}

static void plain(void) {
    int disarmed = timer(CLOCK_MONOTONIC, 0, 0, 0), far = timer(CLOCK_MONOTONIC, 0, 100000, 0);
    int real = timer(CLOCK_REALTIME, 0, 200000, 7000), boot = timer(CLOCK_BOOTTIME, 0, 300000, 0);
    int expired = timer(CLOCK_MONOTONIC, 0, 1, 0), unread = timer(CLOCK_MONOTONIC, 0, 1, 40000);
    int fast = timer(CLOCK_MONOTONIC, 0, 10, 10), soon = timer(CLOCK_MONOTONIC, 0, 1500, 0);
    usleep(100000);
    struct pollfd one = {.fd = unread, .events = POLLIN};
    CHECK(poll(&one, 1, 0) == 1, "set-up");
    double began = probe_now();
    probe_ready();
    probe_wait();
    double passed = probe_now() - began, ran = passed - probe_gap;
    CHECK(left(disarmed) == 0 && ticks(disarmed) == 0, "the disarmed one");
    CHECK(left(far) <= 100 - ran + 0.2 && left(far) > 100 - passed - 0.2, "%.3f s left of 100 after %.3f (stood still %.3f)", left(far), passed, probe_gap);
    CHECK(left(real) <= 200 - ran + 0.2 && left(real) > 200 - passed - 0.2 && interval(real) == 7, "CLOCK_REALTIME: %.3f left", left(real));
    CHECK(left(boot) <= 300 - ran + 0.2 && left(boot) > 300 - passed - 0.2 && interval(boot) == 0, "CLOCK_BOOTTIME: %.3f left", left(boot));
    CHECK(ticks(expired) == 1 && ticks(expired) == 0 && left(expired) == 0, "the expired one");
    CHECK(ticks(unread) == 1 && ticks(unread) == 0, "the expired one that repeats");
    CHECK(left(unread) > 30 && left(unread) < 40.1 && interval(unread) == 40, "it repeats in %.3f", left(unread));
    uint64_t many = ticks(fast);
    CHECK(many >= (uint64_t)((ran + 0.08) / 0.01 * 0.8) && many <= (uint64_t)((passed + 0.2) / 0.01 + 20), "%lu expirations in %.3f s (stood still %.3f)", (unsigned long)many, passed, probe_gap);
    await(fast, 5000);
    await(soon, 10000);
    CHECK(probe_now() - began - probe_gap > 1.2, "it expired after %.3f s", probe_now() - began - probe_gap);
}

static void absolute(void) {
    int real = timer(CLOCK_REALTIME, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, 100000, 0);
    int mono = timer(CLOCK_MONOTONIC, TFD_TIMER_ABSTIME, 100000, 3000), soon = timer(CLOCK_MONOTONIC, TFD_TIMER_ABSTIME, 700, 0);
    double began = probe_now();
    probe_ready();
    probe_wait();
    double passed = probe_now() - began;
    CHECK(left(real) < 100 - passed + 0.05 && left(real) > 100 - passed - 0.3, "CLOCK_REALTIME: %.3f s left after %.3f", left(real), passed);
    CHECK(left(mono) < 100 - passed + 0.05 && left(mono) > 100 - passed - 0.3 && interval(mono) == 3, "CLOCK_MONOTONIC: %.3f s left after %.3f", left(mono), passed);
    await(soon, 10000);
    double late = probe_now() - began - 0.7;
    CHECK(late > -0.01 && late < probe_gap + 1, "it expired %.3f s late", late);
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", real);
    int info = TRY(open(path, O_RDONLY));
    text[TRY(read(info, text, sizeof text - 1))] = 0;
    CHECK(strstr(text, "settime flags: 03"), "its flags: %s", text);
}

static void alarm_clocks(void) {
    int real = timer(CLOCK_REALTIME_ALARM, 0, 100000, 0), boot = timer(CLOCK_BOOTTIME_ALARM, TFD_TIMER_ABSTIME, 200000, 0);
    double began = probe_now();
    probe_ready();
    probe_wait();
    double passed = probe_now() - began;
    CHECK(left(real) <= 100 && left(real) > 100 - passed - 0.2, "%.3f s left", left(real));
    CHECK(left(boot) <= 200 - passed + 0.05 && left(boot) > 200 - passed - 0.3, "%.3f s left", left(boot));
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "plain";
    if (!strcmp(kind, "plain")) plain();
    if (!strcmp(kind, "absolute")) absolute();
    if (!strcmp(kind, "alarm")) alarm_clocks();
    return probe_pass();
}
