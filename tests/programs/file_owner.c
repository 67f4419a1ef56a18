/* argument locks: locks of open files (OFD) and leases; signals: who gets signals about files, which, and whether at all. */
#include "probe.h"
#include <sys/wait.h>

static void locks(void) {
    int fd = TRY(open("locked", O_RDWR | O_CREAT, 0600)), other = TRY(open("locked", O_RDWR)), third;
    struct flock write_lock = {.l_type = F_WRLCK, .l_start = 10, .l_len = 5}, read_lock = {.l_type = F_RDLCK, .l_start = 100};
    TRY(fcntl(fd, F_OFD_SETLK, &write_lock));
    TRY(fcntl(other, F_OFD_SETLK, &read_lock));
    TRY(close(TRY(open("leased", O_RDWR | O_CREAT, 0600))));
    TRY(close(TRY(open("leased too", O_RDWR | O_CREAT, 0600))));
    int leased = TRY(open("leased", O_RDONLY)), alone = TRY(open("leased too", O_RDWR));
    TRY(fcntl(leased, F_SETLEASE, F_RDLCK));
    TRY(fcntl(alone, F_SETLEASE, F_WRLCK));
    probe_ready();
    probe_wait();
    third = TRY(open("locked", O_RDWR));
    struct flock test = {.l_type = F_WRLCK, .l_start = 0, .l_len = 50};
    TRY(fcntl(third, F_OFD_GETLK, &test));
    CHECK(test.l_type == F_WRLCK && test.l_start == 10 && test.l_len == 5 && test.l_pid == -1, "lock %d at %ld", test.l_type, (long)test.l_start);
    test = (struct flock){.l_type = F_WRLCK, .l_start = 50};
    TRY(fcntl(third, F_OFD_GETLK, &test));
    CHECK(test.l_type == F_RDLCK && test.l_start == 100 && test.l_len == 0, "lock %d at %ld", test.l_type, (long)test.l_start);
    test = (struct flock){.l_type = F_WRLCK, .l_start = 0, .l_len = 50};
    TRY(fcntl(fd, F_OFD_GETLK, &test));
    CHECK(test.l_type == F_UNLCK, "the lock is not that of its descriptor");
    CHECK(fcntl(leased, F_GETLEASE) == F_RDLCK && fcntl(alone, F_GETLEASE) == F_WRLCK, "leases %d and %d", fcntl(leased, F_GETLEASE), fcntl(alone, F_GETLEASE));
}

static volatile sig_atomic_t taken, taken_by;
static void on_signal(int signal, siginfo_t *info, void *context) { (void)context; (void)info; taken = signal; taken_by = probe_gettid(); }

static volatile pid_t thread_id;
static volatile unsigned long rounds;
static volatile int over;
static void *thread(void *none) {
    thread_id = probe_gettid();
    while (!over) {
        probe_note_tid(&thread_id, &rounds);
        usleep(1000);
    }
    return none;
}

static void signals(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    TRY(sigaction(SIGRTMIN + 4, &action, NULL));
    TRY(sigaction(SIGIO, &action, NULL));
    pthread_t other;
    PTRY(pthread_create(&other, NULL, thread, NULL));
    while (!thread_id) usleep(1000);
    int ends[2], group[2];
    TRY(pipe(ends));
    TRY(pipe(group));
    struct f_owner_ex owner = {F_OWNER_TID, thread_id}, to_group = {F_OWNER_PGRP, getpgrp()}, now;
    TRY(fcntl(ends[0], F_SETOWN_EX, &owner));
    TRY(fcntl(ends[0], F_SETSIG, SIGRTMIN + 4));
    TRY(fcntl(ends[0], F_SETFL, O_ASYNC | O_NONBLOCK));
    TRY(fcntl(group[0], F_SETOWN_EX, &to_group));
    probe_ready();
    probe_wait();
    probe_noted(&rounds);
    CHECK(taken == 0, "signal %d nobody caused", taken);
    TRY(fcntl(ends[0], F_GETOWN_EX, &now));
    CHECK(now.type == F_OWNER_TID && now.pid == thread_id && fcntl(ends[0], F_GETSIG) == SIGRTMIN + 4, "owner %d of type %d", now.pid, now.type);
    TRY(fcntl(group[0], F_GETOWN_EX, &now));
    CHECK(now.type == F_OWNER_PGRP && now.pid == getpgrp(), "owner %d of type %d", now.pid, now.type);
    CHECK(fcntl(ends[0], F_GETFL) == (O_ASYNC | O_NONBLOCK) && !(fcntl(ends[1], F_GETFL) & O_ASYNC), "flags %x", fcntl(ends[0], F_GETFL));
    CHECK(write(ends[1], "x", 1) == 1, "write");
    for (int i = 0; i < 5000 && !taken; i++) usleep(1000);
    CHECK(taken == SIGRTMIN + 4 && taken_by == thread_id, "signal %d to %d", taken, taken_by);
    over = 1;
    PTRY(pthread_join(other, NULL));
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    if (argc > 2 && !strcmp(argv[2], "locks")) locks();
    else signals();
    return probe_pass();
}
