/* What parent and children have of their own, and different: each finds its own again. argument: what. */
#include "tree.h"
#include <grp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/personality.h>

static long number_in(const char *path) {
    char text[64] = "";
    int file = TRY(open(path, O_RDONLY));
    CHECK(read(file, text, sizeof text - 1) > 0, "%s: %s", path, strerror(errno));
    close(file);
    return strtol(text, NULL, strstr(path, "filter") ? 16 : 10);
}

static void put(const char *path, const char *text) {
    int file = TRY(open(path, O_WRONLY));
    CHECK(write(file, text, strlen(text)) == (ssize_t)strlen(text), "%s: %s", path, strerror(errno));
    close(file);
}

/* Everything that is looked at, as one text. */
static void all_of_it(char *text, size_t size) {
    char folder[256], name[17] = "";
    struct rlimit files, core;
    uid_t uids[3];
    gid_t gids[3], groups[32];
    mode_t mask = umask(0);
    umask(mask);
    CHECK(getcwd(folder, sizeof folder), "getcwd: %s", strerror(errno));
    struct stat root;
    TRY(stat("/", &root));
    TRY(getrlimit(RLIMIT_NOFILE, &files));
    TRY(getrlimit(RLIMIT_CORE, &core));
    TRY(getresuid(&uids[0], &uids[1], &uids[2]));
    TRY(getresgid(&gids[0], &gids[1], &gids[2]));
    int count = TRY(getgroups(32, groups));
    TRY(prctl(PR_GET_NAME, name));
    int reaper = -1, death = -1;
    TRY(prctl(PR_GET_CHILD_SUBREAPER, &reaper));
    TRY(prctl(PR_GET_PDEATHSIG, &death));
    cpu_set_t cpus;
    TRY(sched_getaffinity(0, sizeof cpus, &cpus));
    errno = 0;
    snprintf(text, size, "cwd %s root %ld:%ld umask %o files %ld/%ld core %ld uids %d %d %d gids %d %d %d groups %d %d nice %d oom %ld "
             "filter %lx name %s reaper %d death %d dumpable %d persona %x slack %d cpus %d policy %d session %d group %d thp %d nnp %d",
             folder, (long)root.st_dev, (long)root.st_ino, mask, (long)files.rlim_cur, (long)files.rlim_max, (long)core.rlim_cur,
             uids[0], uids[1], uids[2], gids[0], gids[1], gids[2], count, count ? (int)groups[0] : -1, getpriority(PRIO_PROCESS, 0),
             number_in("/proc/self/oom_score_adj"), number_in("/proc/self/coredump_filter"), name, reaper, death,
             prctl(PR_GET_DUMPABLE), personality(0xffffffff), prctl(PR_GET_TIMERSLACK), CPU_COUNT(&cpus), sched_getscheduler(0),
             getsid(0) == getpid(), getpgrp() == getpid(), prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
}

static char folder[300];

static void differ(int which) {
    char place[320];
    snprintf(place, sizeof place, "%s/%d", folder, which);
    (void)mkdir(place, 0755);
    TRY(chdir(place));
    umask((mode_t)(which * 7 + 1));
    struct rlimit files = {.rlim_cur = 200 + (rlim_t)which, .rlim_max = 300 + (rlim_t)which}, core = {.rlim_cur = 4096 * (rlim_t)which, .rlim_max = 1 << 20};
    TRY(setrlimit(RLIMIT_NOFILE, &files));
    TRY(setrlimit(RLIMIT_CORE, &core));
    TRY(setpriority(PRIO_PROCESS, 0, which));
    char text[16];
    snprintf(text, sizeof text, "%d", 100 + which);
    put("/proc/self/oom_score_adj", text);
    snprintf(text, sizeof text, "0x%x", 0x20 + which);
    put("/proc/self/coredump_filter", text);
    snprintf(text, sizeof text, "member %d", which);
    TRY(prctl(PR_SET_NAME, text));
    TRY(prctl(PR_SET_CHILD_SUBREAPER, which % 2));
    TRY(prctl(PR_SET_TIMERSLACK, 60000 + which));
    TRY(prctl(PR_SET_THP_DISABLE, which == 2, 0, 0, 0));
    if (which == 2) TRY(personality(ADDR_NO_RANDOMIZE));
    if (which == 1) {
        struct sched_param param = {0};
        TRY(sched_setscheduler(0, SCHED_BATCH, &param));
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(0, &cpus);
        TRY(sched_setaffinity(0, sizeof cpus, &cpus));
    }
    if (which == 3) TRY(setsid());
    if (which == 1) TRY(setpgid(0, 0));
    /* What a parent's death means is a signal of its own for each. */
    if (which) TRY(prctl(PR_SET_PDEATHSIG, which == 1 ? SIGUSR1 : SIGUSR2));
}

/* argument: own settings, as whoever it is. */
static void settings(void (*more)(int)) {
    CHECK(getcwd(folder, sizeof folder), "getcwd: %s", strerror(errno));
    tree_begin();
    pid_t all[4];
    char before[1024], after[1024];
    for (int i = 1; i < 4; i++) {
        all[i] = tree_fork();
        if (all[i]) continue;
        differ(i);
        if (more) more(i);
        all_of_it(before, sizeof before);
        pid_t pid = getpid(), parent = getppid();
        tree_set_up();
        tree_wait(pid, parent);
        all_of_it(after, sizeof after);
        CHECK(!strcmp(before, after), "child %d: was %s\n is %s", i, before, after);
        _exit(i);
    }
    differ(0);
    all_of_it(before, sizeof before);
    tree_ready(3);
    probe_wait();
    all_of_it(after, sizeof after);
    /* A program that led no group leads one after a resume. */
    char *group = strstr(before, " group 0"), *now = strstr(after, " group 1");
    if (group && now) memcpy(group, now, 8);
    CHECK(!strcmp(before, after), "parent: was %s\n is %s", before, after);
    for (int i = 1; i < 4; i++) tree_ends(all[i], i << 8);
}

static void give_up(int which) {
    if (which == 2) return;
    gid_t groups[] = {2000 + (gid_t)which, 3000};
    TRY(setgroups(2, groups));
    TRY(setresgid(1000 + (gid_t)which, 1000, 1001));
    if (which == 1) TRY(setresuid(1000, 1000, 1000));
    else TRY(setresuid(1003, 1004, 0));
    /* What had a part in setting it: put back. */
    TRY(prctl(PR_SET_DUMPABLE, 1));
    TRY(prctl(PR_SET_PDEATHSIG, SIGUSR1));
    if (which == 1) TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static void owned(void) {
    if (geteuid() != 0) skip("it takes root to become others");
    char here[300];
    CHECK(getcwd(here, sizeof here), "getcwd: %s", strerror(errno));
    /* Others may go there. */
    for (char *end = here + strlen(here); end > here; end = strrchr(here, '/'), *end = 0) {
        struct stat now;
        TRY(stat(here, &now));
        if (!(now.st_mode & 01)) TRY(chmod(here, now.st_mode | 055));
    }
    settings(give_up);
}

/* Roots of their own. */
static void roots(void) {
    if (geteuid() != 0) skip("it takes root for chroot");
    CHECK(getcwd(folder, sizeof folder), "getcwd: %s", strerror(errno));
    char inside[320], flag[340], probe[400];
    snprintf(inside, sizeof inside, "%s/inside", folder);
    snprintf(flag, sizeof flag, "%s/here", inside);
    TRY(mkdir(inside, 0755));
    TRY(mkdir(flag, 0755));
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        int go = TRY(open(folder, O_PATH | O_DIRECTORY));
        TRY(chroot(inside));
        TRY(chdir("/here"));
        tree_set_up();
        while (faccessat(go, "go", F_OK, 0) != 0) usleep(2000);
        CHECK(getpid() == pid && getppid() == parent, "ids");
        struct stat there;
        CHECK(stat("/here", &there) == 0 && stat("/proc/self", &there) == -1, "another root");
        CHECK(getcwd(probe, sizeof probe) && !strcmp(probe, "/here"), "the folder is %s", probe);
        _exit(2);
    }
    tree_ready(1);
    probe_wait();
    CHECK(access("/proc/self", F_OK) == 0, "the parent's root is another one");
    tree_ends(child, 2 << 8);
}

/* Children that tell of their end by another signal, or by none. */
static int seen[65];
static void count(int signal) { seen[signal]++; }

static pid_t born_with(int signal) {
    tree_begin();
    pid_t child = (pid_t)TRY(syscall(SYS_clone, (long)signal, 0, 0, 0, 0));
    if (child == 0) {
        pid_t pid = (pid_t)syscall(SYS_getpid), parent = (pid_t)syscall(SYS_getppid);
        tree_set_up();
        while (!probe_resumed()) usleep(2000);
        CHECK(syscall(SYS_getpid) == pid && syscall(SYS_getppid) == parent, "ids of a child");
        usleep(20000);
        _exit(signal);
    }
    char byte;
    CHECK(read(tree_pipe[0], &byte, 1) == 1, "waiting for a child");
    TRY(close(tree_pipe[0]));
    TRY(close(tree_pipe[1]));
    return child;
}

static void exit_signals(void) {
    struct sigaction action = {.sa_handler = count};
    int signals[] = {0, SIGUSR1, SIGRTMIN + 3, SIGCHLD};
    pid_t all[4], ended[4];
    for (int i = 1; i < 4; i++) TRY(sigaction(signals[i], &action, NULL));
    for (int i = 0; i < 4; i++) all[i] = born_with(signals[i]);
    /* And of each kind one that has ended. */
    for (int i = 0; i < 4; i++) {
        ended[i] = (pid_t)TRY(syscall(SYS_clone, (long)signals[i], 0, 0, 0, 0));
        if (ended[i] == 0) _exit(40 + i);
        siginfo_t info;
        int got;
        do got = waitid(P_PID, (id_t)ended[i], &info, WEXITED | WNOWAIT | __WALL); while (got == -1 && errno == EINTR);
        CHECK(got == 0, "waitid: %s", strerror(errno));
    }
    int before[65];
    memcpy(before, seen, sizeof seen);
    CHECK(before[SIGUSR1] == 1 && before[SIGRTMIN + 3] == 1, "no news of the children that ended");
    probe_ready();
    probe_wait();
    for (int i = 1; i < 4; i++) CHECK(seen[signals[i]] <= before[signals[i]] + 1, "signal %d came %d times more", signals[i], seen[signals[i]]);
    for (int i = 0; i < 4; i++) {
        int status;
        pid_t got;
        CHECK(signals[i] == SIGCHLD || waitpid(all[i], &status, WNOHANG) == -1, "it is an ordinary child since");
        do got = waitpid(all[i], &status, signals[i] == SIGCHLD ? 0 : __WCLONE); while (got == -1 && errno == EINTR);
        CHECK(got == all[i] && status == signals[i] << 8, "the child of signal %d: %d, %#x, %s", signals[i], got, status, strerror(errno));
        CHECK(waitpid(ended[i], &status, __WALL) == ended[i] && status == (40 + i) << 8, "the ended child of signal %d", signals[i]);
    }
    for (int i = 1; i < 4; i++) CHECK(seen[signals[i]] == before[signals[i]] + 1, "signal %d came %d times, not %d", signals[i], seen[signals[i]], before[signals[i]] + 1);
    CHECK(waitpid(-1, NULL, WNOHANG | __WALL) == -1 && errno == ECHILD, "there is a child more");
}

/* Orphans come to the reaper among them, not to the one above. */
static void reapers(void) {
    tree_begin();
    pid_t reaper = tree_fork();
    if (reaper == 0) {
        TRY(prctl(PR_SET_CHILD_SUBREAPER, 1));
        pid_t reaper_pid = getpid();
        pid_t middle = tree_fork();
        if (middle == 0) {
            pid_t leaf = tree_fork();
            if (leaf == 0) {
                pid_t parent = getppid(), pid = getpid();
                tree_set_up();
                while (!probe_resumed()) usleep(2000);
                CHECK(getpid() == pid, "pid");
                for (int i = 0; getppid() == parent; i++) { CHECK(i < 5000, "never an orphan"); usleep(2000); }
                _exit(31);
            }
            tree_live();
        }
        /* One that is an orphan already, and one that has ended as such. */
        pid_t gone = tree_fork();
        if (gone == 0) {
            pid_t orphan = tree_fork();
            if (orphan == 0) {
                while (getppid() != reaper_pid) usleep(1000);
                tree_live();
            }
            pid_t dead = tree_fork();
            if (dead == 0) _exit(32);
            siginfo_t info;
            TRY(waitid(P_PID, (id_t)dead, &info, WEXITED | WNOWAIT));
            _exit(0);
        }
        tree_ends(gone, 0);
        usleep(60000);
        tree_set_up();
        while (!probe_resumed()) usleep(2000);
        int status, sum = 0, left = 4; /* middle, its child, the orphan, the one that has ended */
        pid_t got;
        while ((got = wait(&status)) > 0) {
            CHECK(WIFEXITED(status), "an orphan ended with %#x", status);
            sum += WEXITSTATUS(status);
            left--;
        }
        CHECK(left == 0 && sum == 63, "%d did not come, sum %d", left, sum);
        _exit(33);
    }
    tree_ready(4);
    probe_wait();
    tree_ends(reaper, 33 << 8);
    tree_no_child();
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "own";
    if (!strcmp(what, "own")) settings(NULL);
    else if (!strcmp(what, "owned")) owned();
    else if (!strcmp(what, "roots")) roots();
    else if (!strcmp(what, "exit-signals")) exit_signals();
    else if (!strcmp(what, "reapers")) reapers();
    else fail("unknown variant %s", what);
    return probe_pass();
}
