/* What comes along with messages of unix sockets: descriptors (SCM_RIGHTS) and who sent them (SCM_CREDENTIALS). argument: what. */
#include "unix.h"
#include <linux/kcmp.h>
#include <sys/eventfd.h>

static int same(int one, int other) { return syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, one, other) == 0; }

static int get_one(int socket, const char *text, const char *what) {
    int file;
    CHECK(unix_get_files(socket, 4096, text, &file, NULL, what) == 1, "%s: not one descriptor", what);
    return file;
}

/* Files that nobody has open any more but for those on their way, and such as are open too. */
static void files(int type) {
    int ends[2], ways[2], kept, events, got[10];
    char text[100];
    TRY(socketpair(AF_UNIX, type, 0, ends));
    int file = kept = TRY(open("unix-kept", O_RDWR | O_CREAT | O_TRUNC, 0600));
    CHECK(write(kept, "0123456789", 10) == 10 && lseek(kept, 3, SEEK_SET) == 3, "file");
    int lonely = TRY(open("unix-lonely", O_RDWR | O_CREAT | O_TRUNC | O_APPEND, 0600));
    CHECK(write(lonely, "abcdefghij", 10) == 10 && lseek(lonely, 4, SEEK_SET) == 4, "file");
    int nameless = TRY(open(".", O_RDWR | O_TMPFILE, 0600));
    CHECK(write(nameless, "nameless", 8) == 8, "file without a name");
    TRY(pipe(ways));
    CHECK(write(ways[1], "in the pipe", 11) == 11, "pipe");
    events = TRY(eventfd(7, 0));
    unix_put(ends[0], "before");
    unix_send_files(ends[0], "two", (int[]){file, lonely}, 2, NULL);
    unix_send_files(ends[0], "pipe", ways, 2, NULL);
    unix_put(ends[0], "between");
    unix_send_files(ends[0], "more", (int[]){events, nameless, events}, 3, NULL);
    unix_put(ends[0], "after");
    TRY(close(lonely));
    TRY(close(nameless));
    TRY(close(ways[0]));
    TRY(close(ways[1]));
    TRY(close(events));
    probe_ready();
    probe_wait();
    /* A part of what comes before must not bring anything along. */
    if (type == SOCK_STREAM) {
        CHECK(unix_get_files(ends[1], 3, "bef", got, NULL, "before") == 0, "descriptors come too early");
        CHECK(read(ends[1], text, 3) == 3 && !memcmp(text, "ore", 3), "before");
        CHECK(unix_get_files(ends[1], 1, "t", got, NULL, "two") == 2, "two");
        CHECK(read(ends[1], text, 2) == 2 && !memcmp(text, "wo", 2), "two");
    } else {
        unix_got(ends[1], "before", "before");
        CHECK(unix_get_files(ends[1], 10, "two", got, NULL, "two") == 2, "two");
    }
    CHECK(same(got[0], kept) && !same(got[1], kept), "the file that is open too");
    CHECK(read(got[0], text, 2) == 2 && !memcmp(text, "34", 2) && lseek(kept, 0, SEEK_CUR) == 5, "its position");
    CHECK((fcntl(got[1], F_GETFL) & O_APPEND) && read(got[1], text, 3) == 3 && !memcmp(text, "efg", 3), "the lonely one");
    CHECK(unix_get_files(ends[1], 10, "pipe", got, NULL, "pipe") == 2, "pipe");
    CHECK(read(got[0], text, sizeof text) == 11 && !memcmp(text, "in the pipe", 11), "what was in the pipe");
    CHECK(write(got[1], "x", 1) == 1 && read(got[0], text, 1) == 1, "both ends");
    TRY(close(got[1]));
    CHECK(read(got[0], text, 1) == 0, "there is another writer");
    if (type == SOCK_STREAM) {
        CHECK(read(ends[1], text, 7) == 7 && !memcmp(text, "between", 7), "between");
        CHECK(unix_get_files(ends[1], 4, "more", got, NULL, "more") == 3, "more");
        unix_got(ends[1], "after", "after");
    } else {
        unix_got(ends[1], "between", "between");
        CHECK(unix_get_files(ends[1], 10, "more", got, NULL, "more") == 3, "more");
        unix_got(ends[1], "after", "after");
    }
    uint64_t count;
    CHECK(same(got[0], got[2]) && read(got[0], &count, 8) == 8 && count == 7, "eventfd");
    CHECK(pread(got[1], text, 10, 0) == 8 && !memcmp(text, "nameless", 8), "the one without a name");
    unix_empty(ends[1], "nothing more");
}

/* Sockets in sockets: one in its own queue, two in one another's, and one that is nowhere else, with something in it in turn. */
static void cycles(void) {
    int own[2], one[2], other[2], carrier[2], inner[2];
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, own));
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, one));
    TRY(socketpair(AF_UNIX, SOCK_DGRAM, 0, other));
    TRY(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, carrier));
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, inner));
    unix_send_files(own[0], "itself", &own[1], 1, NULL);
    unix_send_files(one[0], "other", &other[1], 1, NULL);
    unix_send_files(other[0], "one", &one[1], 1, NULL);
    int file = TRY(open("unix-deep", O_RDWR | O_CREAT | O_TRUNC, 0600));
    CHECK(write(file, "deep", 4) == 4, "file");
    unix_put(inner[0], "hidden");
    unix_send_files(inner[0], "file", &file, 1, NULL);
    unix_send_files(carrier[0], "inner", &inner[1], 1, NULL);
    int listener = TRY(socket(AF_UNIX, SOCK_STREAM, 0)), client = TRY(socket(AF_UNIX, SOCK_STREAM, 0));
    char name[60];
    snprintf(name, sizeof name, "@rewake rights %d", getpid());
    unix_bind(listener, name);
    TRY(listen(listener, 3));
    unix_connect(client, name);
    unix_send_files(carrier[0], "listener", &listener, 1, NULL);
    TRY(close(listener));
    TRY(close(file));
    TRY(close(inner[1]));
    TRY(close(other[1]));
    probe_ready();
    probe_wait();
    int back = get_one(own[1], "itself", "its own");
    CHECK(same(back, own[1]), "it is another one");
    unix_put(own[0], "again");
    unix_got(back, "again", "its own");
    unix_put(other[0], "two");
    int inside = get_one(carrier[1], "inner", "inner"), got;
    CHECK(unix_get_files(inside, 6, "hidden", &got, NULL, "hidden") == 0, "inner data");
    file = get_one(inside, "file", "deep file");
    char text[10];
    CHECK(pread(file, text, 10, 0) == 4 && !memcmp(text, "deep", 4), "deep file");
    unix_put(inside, "answer");
    unix_got(inner[0], "answer", "inner");
    listener = get_one(carrier[1], "listener", "listener");
    int server = TRY(accept(listener, NULL, NULL));
    unix_put(client, "hello");
    unix_got(server, "hello", "the connection that waited");
    int others = get_one(one[1], "other", "the other one");
    back = get_one(others, "one", "and back");
    CHECK(same(back, one[1]), "they no longer lead to one another");
    unix_got(others, "two", "the other one");
    unix_put(one[0], "still");
    unix_got(back, "still", "one");
}

/* Who sent it: this process, a child, one who has ended; also where the kernel was not asked to tell. */
static void credentials(int type) {
    int ends[2], silent[2];
    struct ucred who, own = {getpid(), geteuid(), getegid()};
    TRY(socketpair(AF_UNIX, type, 0, ends));
    TRY(socketpair(AF_UNIX, type, 0, silent));
    unix_put(silent[0], "unknown");
    unix_set(ends[1], SO_PASSCRED, 1);
    unix_set(silent[1], SO_PASSCRED, 1);
    tree_begin();
    unix_put(ends[0], "parent");
    pid_t gone = tree_fork();
    if (gone == 0) {
        unix_put(ends[0], "ended");
        unix_put(ends[0], "too");
        _exit(0);
    }
    tree_ends(gone, 0);
    unix_send_files(ends[0], "explicit", NULL, 0, &own);
    if (geteuid() == 0) unix_send_files(ends[0], "claimed", NULL, 0, &(struct ucred){getpid(), 4321, 1234});
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        int file = TRY(open("/dev/null", O_RDWR));
        unix_send_files(ends[0], "child", &file, 1, NULL);
        TRY(close(ends[1]));
        tree_set_up();
        tree_wait(pid, parent);
        _exit(0);
    }
    tree_ready(1);
    probe_wait();
    int file = -1;
    unix_get_files(ends[1], 6, "parent", &file, &who, "parent");
    CHECK(who.pid == own.pid && who.uid == own.uid && who.gid == own.gid, "sent by %d (%u), not by us", who.pid, who.uid);
    unix_get_files(ends[1], 5, "ended", &file, &who, "ended");
    CHECK(who.pid == gone && who.uid == own.uid, "sent by %d (%u), not by the one who has ended", who.pid, who.uid);
    unix_get_files(ends[1], 3, "too", &file, &who, "too");
    CHECK(who.pid == gone, "sent by %d, not by the one who has ended", who.pid);
    unix_get_files(ends[1], 8, "explicit", &file, &who, "explicit");
    CHECK(who.pid == own.pid && who.uid == own.uid, "explicit: sent by %d (%u)", who.pid, who.uid);
    if (geteuid() == 0) {
        unix_get_files(ends[1], 7, "claimed", &file, &who, "claimed");
        CHECK(who.pid == own.pid && who.uid == 4321 && who.gid == 1234, "claimed: sent by %d (%u)", who.pid, who.uid);
    }
    CHECK(unix_get_files(ends[1], 5, "child", &file, &who, "child") == 1 && who.pid == child, "sent by %d, not by the child", who.pid);
    unix_get_files(silent[1], 7, "unknown", &file, &who, "unknown");
    CHECK(who.pid == 0, "nobody was asked, and %d is told", who.pid);
    unix_put(ends[0], "now");
    unix_get_files(ends[1], 3, "now", &file, &who, "now");
    CHECK(who.pid == own.pid, "sent by %d now", who.pid);
    tree_ends(child, 0);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "files";
    const char *how = argc > 3 ? argv[3] : "stream";
    int type = !strcmp(how, "stream") ? SOCK_STREAM : !strcmp(how, "packets") ? SOCK_SEQPACKET : SOCK_DGRAM;
    if (!strcmp(what, "files")) files(type);
    else if (!strcmp(what, "cycles")) cycles();
    else if (!strcmp(what, "credentials")) credentials(type);
    else fail("no such variant");
    return probe_pass();
}
