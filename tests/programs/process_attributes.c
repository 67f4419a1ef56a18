/* What belongs to the process: working folder, umask, limits, name, scheduling, dumpable, ids; parent death signal, child subreaper,
   oom score, core dump filter.
   argument: untraceable (not dumpable: then no other process may look into this one, be it a copy of it), traceable. */
#include "probe.h"
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

static void put(const char *file, const char *text) {
    int fd = TRY(open(file, O_WRONLY));
    CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text), "%s: %s", file, strerror(errno));
    TRY(close(fd));
}

static void expect(const char *file, const char *text) {
    char now[64] = {0};
    int fd = TRY(open(file, O_RDONLY));
    CHECK(read(fd, now, sizeof now - 1) > 0, "%s: %s", file, strerror(errno));
    TRY(close(fd));
    CHECK(!strcmp(now, text), "%s is %s", file, now);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    char folder[4096], folder_now[4096], name[16] = {0};
    TRY(mkdir("elsewhere", 0700));
    TRY(chdir("elsewhere"));
    CHECK(getcwd(folder, sizeof folder), "getcwd");
    umask(0137);
    struct rlimit limits[16], now;
    for (int i = 0; i < 16; i++) TRY(getrlimit(i, &limits[i]));
    limits[RLIMIT_NOFILE].rlim_cur = 777;
    limits[RLIMIT_CORE].rlim_cur = 0;
    limits[RLIMIT_CPU].rlim_cur = 5000;
    limits[RLIMIT_CPU].rlim_max = 6000;
    limits[RLIMIT_STACK].rlim_cur = 9 * 1024 * 1024;
    for (int i = 0; i < 16; i++) TRY(setrlimit(i, &limits[i]));
    TRY(prctl(PR_SET_NAME, "odd ) name (", 0, 0, 0));
    TRY(prctl(PR_SET_TIMERSLACK, 123456, 0, 0, 0));
    TRY(prctl(PR_SET_PDEATHSIG, SIGUSR2, 0, 0, 0));
    TRY(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
    put("/proc/self/oom_score_adj", "321");
    put("/proc/self/coredump_filter", "0x25");
    int dumpable = argc < 3 || strcmp(argv[2], "untraceable");
    if (!dumpable) TRY(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
    TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    TRY(setpriority(PRIO_PROCESS, 0, 5));
    struct sched_param parameter = {0};
    TRY(sched_setscheduler(0, SCHED_BATCH, &parameter));
    pid_t pid = getpid(), group = getpgrp(), session = getsid(0);
    uid_t user = getuid();
    (void)group, (void)session;
    probe_ready();
    probe_wait();
    CHECK((probe_other_ids || getpid() == pid) && probe_gettid() == probe_tid, "ids are %d/%d, were %d/%d", getpid(), probe_gettid(), pid, probe_tid);
    CHECK(getuid() == user && geteuid() == user, "user id is %d", getuid());
    CHECK(getcwd(folder_now, sizeof folder_now) && !strcmp(folder, folder_now), "working folder is %s", folder_now);
    mode_t mask = umask(0);
    CHECK(mask == 0137, "umask is %o", mask);
    for (int i = 0; i < 16; i++) {
        TRY(getrlimit(i, &now));
        CHECK(now.rlim_cur == limits[i].rlim_cur && now.rlim_max == limits[i].rlim_max, "limit %d is %lu/%lu, was %lu/%lu", i,
              (unsigned long)now.rlim_cur, (unsigned long)now.rlim_max, (unsigned long)limits[i].rlim_cur, (unsigned long)limits[i].rlim_max);
    }
    TRY(prctl(PR_GET_NAME, name, 0, 0, 0));
    CHECK(!strcmp(name, "odd ) name ("), "name is %s", name);
    CHECK(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0) == 123456, "timer slack");
    int death = 0, reaper = 0;
    TRY(prctl(PR_GET_PDEATHSIG, &death, 0, 0, 0));
    TRY(prctl(PR_GET_CHILD_SUBREAPER, &reaper, 0, 0, 0));
    CHECK(death == SIGUSR2, "parent death signal is %d", death);
    CHECK(reaper == 1, "no child subreaper");
    expect("/proc/self/oom_score_adj", "321\n");
    expect("/proc/self/coredump_filter", "00000025\n");
    CHECK(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == dumpable, "dumpable");
    CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "no_new_privs");
    CHECK(getpriority(PRIO_PROCESS, 0) == 5, "nice is %d", getpriority(PRIO_PROCESS, 0));
    CHECK(sched_getscheduler(0) == SCHED_BATCH, "scheduling policy");
    return probe_pass();
}
