/* Folders that were removed while they are in use.
   cwd: the working folder and the one it was in, both open too, with their modes; taken: the name of the working folder belongs to
   something else since; lost: it cannot come back under its name; thread: that of a thread alone. */
#include "probe.h"
#include <dirent.h>
#include <sched.h>

static const char *kind;
static char base[2048], text[2][4096];
static volatile int stop;
static pthread_barrier_t barrier;

static int is(const char *name) { return !strcmp(kind, name); }

/* Where a link of /proc leads. */
static const char *leads(const char *link, int which) {
    ssize_t length = TRY(readlink(link, text[which], sizeof text[which] - 1));
    text[which][length] = 0;
    return text[which];
}

static void expect(const char *link, const char *path) {
    char wanted[4096];
    snprintf(wanted, sizeof wanted, "%s/%s (deleted)", base, path);
    CHECK(!strcmp(leads(link, 0), wanted), "%s leads to %s, not to %s", link, text[0], wanted);
}

static void gone(const char *path, mode_t mode) {
    struct stat now;
    TRY(stat(path, &now));
    CHECK(now.st_nlink == 0, "%s has %ld names", path, (long)now.st_nlink);
    CHECK(now.st_mode == (S_IFDIR | mode), "mode of %s is %o", path, now.st_mode);
    CHECK(now.st_uid == geteuid() && now.st_gid == getegid(), "owner of %s is %d", path, now.st_uid);
}

static int same(const char *one, const char *other) {
    struct stat first, second;
    TRY(stat(one, &first));
    TRY(stat(other, &second));
    return first.st_ino == second.st_ino && first.st_dev == second.st_dev;
}

static void is_lost(const char *cwd, const char *path) {
    char now[4096], name[64];
    int one;
    expect(cwd, path);
    CHECK(!getcwd(now, sizeof now) && errno == ENOENT, "the working folder has a name");
    CHECK((one = open("new", O_CREAT | O_WRONLY, 0600)) == -1 && errno == ENOENT, "something can be made in it");
    snprintf(name, sizeof name, "%s/.", cwd);
    gone(name, 01730);
}

static void *second(void *nothing) {
    char own[64];
    snprintf(own, sizeof own, "/proc/self/task/%d/cwd", probe_gettid());
    TRY(unshare(CLONE_FS));
    TRY(chdir("a/b"));
    TRY(umask(0137));
    TRY(rmdir("../b"));
    is_lost(own, "a/b");
    pthread_barrier_wait(&barrier);
    while (!stop) { }
    if (probe_other_ids) snprintf(own, sizeof own, "/proc/self/task/%d/cwd", probe_gettid());
    is_lost(own, "a/b");
    TRY(chdir(".."));
    CHECK(same(".", "/proc/self/cwd/a"), "what it was in is something else");
    CHECK(umask(0) == 0137, "umask of the thread");
    return nothing;
}

static void of_a_thread(void) {
    pthread_t thread;
    PTRY(pthread_barrier_init(&barrier, NULL, 2));
    PTRY(pthread_create(&thread, NULL, second, NULL));
    pthread_barrier_wait(&barrier);
    probe_ready();
    probe_wait();
    char now[4096];
    CHECK(getcwd(now, sizeof now) && !strcmp(now, base), "working folder of the program is %s", now);
    CHECK(access("a/b", F_OK) == -1 && access("a", F_OK) == 0, "names");
    stop = 1;
    PTRY(pthread_join(thread, NULL));
}

static void taken(void) {
    TRY(chdir("a/b"));
    TRY(rmdir("../b"));
    CHECK(close(TRY(open("../b", O_CREAT | O_EXCL | O_WRONLY, 0644))) == 0, "close");
    is_lost("/proc/self/cwd", "a/b");
    probe_ready();
    probe_wait();
    struct stat other, now;
    TRY(stat(".", &now));
    TRY(stat("../b", &other));
    CHECK(now.st_nlink == 0 && now.st_mode == (S_IFDIR | 01730), "the working folder has mode %o", now.st_mode);
    CHECK(S_ISREG(other.st_mode) && other.st_nlink == 1, "what has its name is something else");
    CHECK(strstr(leads("/proc/self/cwd", 0), "/a/b") && strstr(text[0], " (deleted)"), "it leads to %s", text[0]);
    TRY(chdir(".."));
    int entries = 0;
    for (DIR *folder = opendir("."); readdir(folder);) entries++;
    CHECK(entries == 3, "%d entries where it was", entries);
}

/* What it was in is gone as well: it comes back anywhere. */
static void lost(void) {
    TRY(chdir("a/b"));
    TRY(rmdir("../b"));
    is_lost("/proc/self/cwd", "a/b");
    probe_ready();
    probe_wait();
    gone("/proc/self/cwd/.", 01730);
    CHECK(strstr(leads("/proc/self/cwd", 0), "b") && strstr(text[0], " (deleted)"), "it leads to %s", text[0]);
    struct stat elsewhere;
    text[0][strlen(text[0]) - strlen(" (deleted)")] = 0;
    CHECK(stat(text[0], &elsewhere) == -1 && errno == ENOENT, "%s is left", text[0]);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    kind = argc > 2 ? argv[2] : "cwd";
    CHECK(getcwd(base, sizeof base), "getcwd");
    TRY(umask(0));
    TRY(mkdir("a", 0755));
    TRY(mkdir("a/b", is("cwd") ? 0711 : 01730));
    TRY(umask(0022));
    if (is("thread")) of_a_thread();
    else if (is("lost")) lost();
    else if (is("taken")) taken();
    else {
        TRY(umask(0));
        TRY(mkdir("a/b/c", 01730));
        TRY(umask(0022));
        int outer = TRY(open("a/b", O_RDONLY | O_DIRECTORY | O_CLOEXEC)), inner = TRY(open("a/b/c", O_PATH)), other = TRY(dup2(outer, 77));
        int reader = TRY(open("a/b/c", O_RDONLY | O_NOATIME));
        TRY(chdir("a/b/c"));
        TRY(rmdir("../../b/c"));
        TRY(rmdir("../../b"));
        TRY(lseek(outer, 5, SEEK_SET));
        is_lost("/proc/self/cwd", "a/b/c");
        probe_ready();
        probe_wait();
        is_lost("/proc/self/cwd", "a/b/c");
        char names[4][64];
        int fds[] = {outer, inner, other, reader};
        for (int i = 0; i < 4; i++) {
            snprintf(names[i], sizeof names[i], "/proc/self/fd/%d", fds[i]);
            expect(names[i], i % 2 ? "a/b/c" : "a/b");
        }
        gone(names[0], 0711);
        CHECK(same(names[0], names[2]) && same(names[1], ".") && same(names[3], ".") && same(names[0], ".."), "they are not the same");
        CHECK(lseek(other, 0, SEEK_CUR) == 5 && lseek(other, 7, SEEK_SET) == 7 && lseek(outer, 0, SEEK_CUR) == 7, "position");
        CHECK(fcntl(outer, F_GETFD) == FD_CLOEXEC && fcntl(other, F_GETFD) == 0, "close-on-exec");
        CHECK((fcntl(inner, F_GETFL) & O_PATH) && (fcntl(reader, F_GETFL) & O_NOATIME), "flags");
        TRY(chdir(".."));
        expect("/proc/self/cwd", "a/b");
        TRY(chdir(".."));
        char now[4096];
        CHECK(getcwd(now, sizeof now) && !strncmp(now, base, strlen(base)) && !strcmp(now + strlen(base), "/a"), "above it is %s", now);
        CHECK(access("b", F_OK) == -1 && errno == ENOENT, "a name is left");
    }
    mode_t mask = umask(0);
    CHECK(mask == 0022, "umask is %o", mask);
    return probe_pass();
}
