/* epoll. argument: plain (levels, edges, one-shots, data), nested, closed (numbers closed and reused), streams (its own standard
   streams), wait (threads blocked in it), lost (watches what nothing leads to any more: refused). */
#include "probe.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

static void add(int epoll, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    TRY(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}

/* What is told now, as a set of small data values. */
static uint64_t told(int epoll) {
    struct epoll_event events[32];
    int count = TRY(epoll_wait(epoll, events, 32, 0));
    uint64_t set = 0;
    for (int i = 0; i < count; i++) {
        CHECK(events[i].data.u64 < 64, "data %lx", (unsigned long)events[i].data.u64);
        set |= 1UL << events[i].data.u64;
    }
    return set;
}

static void expect(int epoll, uint64_t set, const char *what) {
    uint64_t now = told(epoll);
    CHECK(now == set, "%s: told %lx, not %lx", what, (unsigned long)now, (unsigned long)set);
}

static uint64_t one = 1;
static void plain(void) {
    int epoll = TRY(epoll_create1(EPOLL_CLOEXEC)), pending = TRY(epoll_create1(0));
    int level[2], edge[2], shot[2], armed[2], full[2], gone[2];
    TRY(pipe(level)); TRY(pipe(edge)); TRY(pipe(shot)); TRY(pipe(armed)); TRY(pipe2(full, O_NONBLOCK)); TRY(pipe(gone));
    int event = TRY(eventfd(0, 0)), timer = TRY(timerfd_create(CLOCK_MONOTONIC, 0)), exclusive = TRY(eventfd(0, 0));
    add(epoll, level[0], EPOLLIN, 1);
    add(epoll, edge[0], EPOLLIN | EPOLLET, 2);
    add(epoll, shot[0], EPOLLIN | EPOLLONESHOT, 3);
    add(epoll, armed[0], EPOLLIN | EPOLLONESHOT | EPOLLET, 4);
    add(epoll, event, EPOLLIN | EPOLLET | EPOLLONESHOT, 5);
    add(epoll, timer, EPOLLIN | EPOLLONESHOT, 6);
    add(epoll, exclusive, EPOLLIN | EPOLLEXCLUSIVE, 7);
    add(epoll, gone[0], EPOLLIN | EPOLLONESHOT, 8);
    char some[65536] = {0};
    CHECK(write(full[1], some, 65536) == 65536 && write(full[1], some, 1) == -1, "filling a pipe");
    add(epoll, full[1], EPOLLOUT | EPOLLET, 9);
    CHECK(write(edge[1], "x", 1) == 1 && write(shot[1], "x", 1) == 1 && write(event, &one, 8) == 8, "write");
    TRY(close(gone[1]));
    struct itimerspec soon = {.it_value.tv_nsec = 1000};
    TRY(timerfd_settime(timer, 0, &soon, NULL));
    usleep(10000);
    expect(epoll, 0x16c, "set-up");
    char byte;
    CHECK(read(shot[0], &byte, 1) == 1, "read");
    expect(epoll, 0, "set-up");
    /* Another instance has something waiting that was not fetched. */
    add(pending, edge[0], EPOLLIN | EPOLLET, 20);
    probe_ready();
    probe_wait();
    expect(epoll, 0, "after the resume");
    expect(pending, 1UL << 20, "what was waiting");
    expect(pending, 0, "what was fetched");
    CHECK(write(level[1], "x", 1) == 1, "write");
    expect(epoll, 2, "level");
    expect(epoll, 2, "level again");
    CHECK(read(level[0], &byte, 1) == 1, "read");
    CHECK(write(edge[1], "y", 1) == 1, "write");
    expect(epoll, 4, "edge");
    expect(epoll, 0, "edge again");
    CHECK(write(shot[1], "y", 1) == 1 && write(event, &one, 8) == 8, "write");
    expect(epoll, 0, "one-shots that fired before");
    TRY(close(shot[1]));
    expect(epoll, 0, "a hang-up at a one-shot that fired");
    struct epoll_event again = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 13};
    TRY(epoll_ctl(epoll, EPOLL_CTL_MOD, shot[0], &again));
    expect(epoll, 1 << 13, "a one-shot armed again");
    CHECK(write(armed[1], "x", 1) == 1, "write");
    expect(epoll, 1 << 4, "an armed one-shot");
    CHECK(write(armed[1], "x", 1) == 1, "write");
    expect(epoll, 0, "fired now");
    CHECK(write(exclusive, &one, 8) == 8, "write");
    expect(epoll, 1 << 7, "exclusive");
    struct epoll_event event_of = {.events = EPOLLIN};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_MOD, exclusive, &event_of) == -1 && errno == EINVAL, "it is no longer exclusive");
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, level[0], &event_of) == -1 && errno == EEXIST, "a watch was not there");
    CHECK(fcntl(epoll, F_GETFD) == FD_CLOEXEC, "close-on-exec");
    CHECK(read(full[0], some, 65536) == 65536, "read");
    expect(epoll, 1 << 7 | 1 << 9, "room in a pipe");
}

static void nested(void) {
    int inner = TRY(epoll_create1(0)), middle = TRY(epoll_create1(0)), outer = TRY(epoll_create1(0));
    int event = TRY(eventfd(0, 0)), far = TRY(eventfd(1, 0));
    add(outer, middle, EPOLLIN, 1);
    add(middle, inner, EPOLLIN, 2);
    add(inner, event, EPOLLIN, 3);
    add(outer, far, EPOLLIN, 4);
    probe_ready();
    probe_wait();
    expect(outer, 1 << 4, "outer");
    CHECK(write(event, &one, 8) == 8, "write");
    expect(outer, 1 << 4 | 1 << 1, "outer, by the innermost");
    expect(middle, 1 << 2, "middle");
    expect(inner, 1 << 3, "inner");
    uint64_t value;
    CHECK(read(event, &value, 8) == 8, "read");
    expect(outer, 1 << 4, "outer again");
}

static void closed(void) {
    int epoll = TRY(epoll_create1(0)), a = TRY(eventfd(0, EFD_NONBLOCK)), b = TRY(eventfd(0, EFD_NONBLOCK)), c = TRY(eventfd(0, EFD_NONBLOCK));
    int number = 40;
    int kept_a = TRY(dup(a)), kept_b = TRY(dup(b)), kept_c = TRY(dup(c));
    TRY(dup2(a, number));
    add(epoll, number, EPOLLIN, 1);
    TRY(dup2(b, number));
    add(epoll, number, EPOLLIN, 2);
    TRY(dup2(c, number));
    add(epoll, number, EPOLLIN | EPOLLET, 3);
    TRY(dup2(a, 300));
    add(epoll, 300, EPOLLIN, 4);
    TRY(close(300));
    add(epoll, c, EPOLLIN | EPOLLONESHOT, 5);
    CHECK(write(kept_c, &one, 8) == 8, "write");
    expect(epoll, 1 << 3 | 1 << 5, "set-up");
    TRY(dup2(b, number));
    TRY(close(a)); TRY(close(b)); TRY(close(c));
    uint64_t value;
    CHECK(read(kept_c, &value, 8) == 8, "read");
    probe_ready();
    probe_wait();
    CHECK(fcntl(300, F_GETFD) == -1 && fcntl(a, F_GETFD) == -1 && fcntl(c, F_GETFD) == -1, "a number that was closed is open");
    expect(epoll, 0, "after the resume");
    CHECK(write(kept_a, &one, 8) == 8, "write");
    expect(epoll, 1 << 1 | 1 << 4, "the first");
    CHECK(write(number, &one, 8) == 8, "write");
    expect(epoll, 1 << 1 | 1 << 2 | 1 << 4, "the second");
    CHECK(write(kept_c, &one, 8) == 8, "write");
    expect(epoll, 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4, "the third");
    CHECK(read(kept_b, &value, 8) == 8 && read(kept_a, &value, 8) == 8, "read");
    expect(epoll, 0, "all read");
    struct epoll_event event = {.events = EPOLLIN};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_DEL, number, &event) == 0, "the watch of the number as it is now");
    CHECK(write(kept_b, &one, 8) == 8 && read(kept_b, &value, 8) == 8, "a watch that was removed");
    expect(epoll, 0, "removed");
}

static void streams(void) {
    int epoll = TRY(epoll_create1(0)), input[2];
    /* Its own pipe as standard input, so that there is something to watch wherever it runs. */
    TRY(pipe(input));
    TRY(dup2(input[0], 0));
    TRY(close(input[0]));
    add(epoll, 0, EPOLLIN, 1);
    struct epoll_event event = {.events = EPOLLOUT, .data.u64 = 2};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, 2, &event) == -1 && errno != EPERM) fail("epoll_ctl: %s", strerror(errno));
    probe_ready();
    probe_wait();
    CHECK((told(epoll) & 2) == 0, "standard input is ready");
    CHECK(write(input[1], "x", 1) == 1 && (told(epoll) & 2), "standard input is not ready");
}

static int blocked_epoll;
static void *blocked(void *kind) {
    struct epoll_event event;
    struct timespec hour = {3600, 0};
    sigset_t none;
    sigemptyset(&none);
    int got = -2;
    double began = probe_now();
    if (!strcmp(kind, "ever")) got = epoll_wait(blocked_epoll, &event, 1, -1);
    if (!strcmp(kind, "long")) got = epoll_wait(blocked_epoll, &event, 1, 3600000);
    if (!strcmp(kind, "mask")) got = epoll_pwait(blocked_epoll, &event, 1, -1, &none);
    if (!strcmp(kind, "pwait2")) got = (int)syscall(SYS_epoll_pwait2, blocked_epoll, &event, 1, &hour, &none, 8);
    if (!strcmp(kind, "short")) {
        got = epoll_wait(blocked_epoll, &event, 1, 400);
        double lasted = probe_now() - began;
        CHECK(got == 0 && lasted > 0.39, "epoll_wait gave %d after %.3f s: %s", got, lasted, strerror(errno));
        return NULL;
    }
    CHECK(got == 1 && event.data.u64 == 5, "epoll_wait %s gave %d: %s", (char *)kind, got, strerror(errno));
    return NULL;
}

static void waits(void) {
    blocked_epoll = TRY(epoll_create1(0));
    int event = TRY(eventfd(0, 0));
    add(blocked_epoll, event, EPOLLIN, 5);
    static char kinds[][8] = {"ever", "long", "mask", "pwait2", "short"};
    pthread_t threads[5];
    for (int i = 0; i < 5; i++) PTRY(pthread_create(&threads[i], NULL, blocked, kinds[i]));
    usleep(50000);
    probe_ready();
    probe_wait();
    for (int i = 0; i < 4; i++) CHECK(pthread_tryjoin_np(threads[i], NULL) == EBUSY, "epoll_wait %s came back", kinds[i]);
    PTRY(pthread_join(threads[4], NULL));
    CHECK(write(event, &one, 8) == 8, "write");
    for (int i = 0; i < 4; i++) PTRY(pthread_join(threads[i], NULL));
}

/* Another process keeps the pipe open that only the epoll instance knows here. */
static void lost(void) {
    int epoll = TRY(epoll_create1(0)), ends[2];
    TRY(pipe(ends));
    add(epoll, ends[0], EPOLLIN, 1);
    pid_t child = TRY(fork());
    if (child == 0) {
        /* Detached: the program has no children. */
        if (TRY(fork()) > 0) _exit(0);
        for (int fd = 0; fd < 3; fd++) close(fd);
        close(epoll);
        while (!probe_resumed()) usleep(10000);
        _exit(0);
    }
    CHECK(waitpid(child, NULL, 0) == child, "waitpid");
    TRY(close(ends[0]));
    TRY(close(ends[1]));
    probe_ready();
    probe_wait();
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "plain";
    if (!strcmp(kind, "plain")) plain();
    if (!strcmp(kind, "nested")) nested();
    if (!strcmp(kind, "closed")) closed();
    if (!strcmp(kind, "streams")) streams();
    if (!strcmp(kind, "wait")) waits();
    if (!strcmp(kind, "lost")) lost();
    return probe_pass();
}
