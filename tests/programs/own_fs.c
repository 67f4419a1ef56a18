/* Working folder, root and umask.
   thread: a thread has its own ones; thread-root: and another root; chroot: the whole program has another root. */
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

static void *second(void *nothing) {
    char folder[4096];
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
    pthread_barrier_wait(&barrier);
    while (!stop) { }
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
    PTRY(pthread_barrier_init(&barrier, NULL, 2));
    if (is("chroot")) {
        into_jail();
    } else {
        PTRY(pthread_create(&thread, NULL, second, NULL));
        pthread_barrier_wait(&barrier);
    }
    probe_ready();
    struct stat file;
    while (fstatat(outside, "go", &file, 0) == -1) { }
    if (is("chroot")) {
        expect("the program", "/in", 0137);
        CHECK(access("/here", F_OK) == 0 && access("/proc", F_OK) == -1, "the root is another");
        return probe_pass();
    }
    expect("the program", base, 0022);
    stop = 1;
    PTRY(pthread_join(thread, NULL));
    CHECK(access("/proc/self", F_OK) == 0, "the program's root is another");
    return probe_pass();
}
