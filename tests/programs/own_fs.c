/* Working folder, root and umask.
   thread: a thread has its own ones; thread-root: and another root; chroot: the whole program has another root;
   thread-in-chroot: the whole program, and a thread has its own folder outside; pair: a thread has its own ones, and a third shares them. */
#include "probe.h"
#include <sched.h>

static volatile int stop;
static pthread_barrier_t barrier;
static const char *kind;
static char base[2048];

static int is(const char *name) { return !strcmp(kind, name); }

static void expect(const char *who, const char *folder, mode_t mask) {
    char now[4096];
    CHECK(getcwd(now, sizeof now) && !strcmp(now, folder), "working folder of %s is %s, not %s", who, now, folder);
    mode_t is = umask(mask);
    CHECK(is == mask, "umask of %s is %o", who, is);
}

static void into_jail(void) {
    if (chroot("jail") == -1 && errno == EPERM) skip("changing the root is not permitted here");
    TRY(chdir("/in"));
    TRY(umask(0137));
}

/* It has what the second thread has, also when that changes. */
static void *third(void *folder) {
    expect("the third thread", folder, 0137);
    pthread_barrier_wait(&barrier);
    while (!stop) { }
    expect("the third thread", folder, 0137);
    TRY(chdir("/tmp"));
    TRY(umask(0111));
    return folder;
}

static void *second(void *nothing) {
    char folder[4096];
    pthread_t thread;
    TRY(unshare(CLONE_FS));
    if (is("thread-root")) {
        into_jail();
        strcpy(folder, "/in");
    } else {
        TRY(chdir("other"));
        TRY(umask(0137));
        snprintf(folder, sizeof folder, "%s/other", base);
    }
    expect("the second thread", folder, 0137);
    if (is("pair")) PTRY(pthread_create(&thread, NULL, third, folder));
    pthread_barrier_wait(&barrier);
    while (!stop) { }
    if (is("pair")) {
        PTRY(pthread_join(thread, NULL));
        expect("the second thread", "/tmp", 0111);
        return nothing;
    }
    expect("the second thread", folder, 0137);
    if (is("thread-root")) CHECK(access("/here", F_OK) == 0 && access("/proc", F_OK) == -1, "the second thread's root is another");
    return nothing;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    kind = argc > 2 ? argv[2] : "thread";
    CHECK(getcwd(base, sizeof base), "getcwd");
    TRY(mkdir("other", 0755));
    TRY(mkdir("jail", 0755));
    TRY(mkdir("jail/in", 0755));
    TRY(mkdir("jail/here", 0755));
    int outside = TRY(open(".", O_RDONLY | O_DIRECTORY));
    TRY(umask(0022));
    pthread_t thread;
    PTRY(pthread_barrier_init(&barrier, NULL, is("pair") ? 3 : 2));
    if (is("chroot")) {
        into_jail();
    } else {
        PTRY(pthread_create(&thread, NULL, second, NULL));
        pthread_barrier_wait(&barrier);
    }
    if (is("thread-in-chroot")) into_jail();
    probe_ready();
    struct stat file;
    while (fstatat(outside, "go", &file, 0) == -1) { }
    if (is("chroot")) {
        expect("the program", "/in", 0137);
        CHECK(access("/here", F_OK) == 0 && access("/proc", F_OK) == -1, "the root is another");
        return probe_pass();
    }
    expect("the program", is("thread-in-chroot") ? "/in" : base, is("thread-in-chroot") ? 0137 : 0022);
    stop = 1;
    PTRY(pthread_join(thread, NULL));
    if (is("thread-in-chroot")) {
        CHECK(access("/here", F_OK) == 0 && access("/proc", F_OK) == -1, "the root is another");
        return probe_pass();
    }
    CHECK(access("/proc/self", F_OK) == 0, "the program's root is another");
    return probe_pass();
}
