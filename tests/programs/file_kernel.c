/* Files of /proc, /sys and control groups (argument: own, threads, others, links): they go on at their positions, tell of the restored
   process, and duplicates share one position. A half read listing is whole in the end. */
#include "probe.h"
#include <ctype.h>
#include <dirent.h>
#include <sys/epoll.h>

static const char *content(int fd) {
    static char text[65536];
    ssize_t length, sum = 0;
    while ((length = TRY(read(fd, text + sum, sizeof text - 1 - (size_t)sum))) > 0) sum += length;
    text[sum] = 0;
    return text;
}

static const char *leads_to(int fd) {
    static char path[256], name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = TRY(readlink(name, path, sizeof path - 1));
    path[length] = 0;
    return path;
}

static long position(int fd) { return (long)TRY(lseek(fd, 0, SEEK_CUR)); }

/* What the kernel says of this process: its memory, its descriptors, its state. */
static void own(void) {
    static char first[65536];
    char expected[64], byte[8];
    static volatile char mine[64] = "in the data of this program";
    int maps = TRY(open("/proc/self/maps", O_RDONLY | O_CLOEXEC)), same = TRY(dup(maps));
    ssize_t half = TRY(read(maps, first, 300));
    int stat = TRY(open("/proc/self/stat", O_RDONLY)), fds = TRY(open("/proc/self/fd", O_RDONLY | O_DIRECTORY));
    int memory = TRY(open("/proc/self/mem", O_RDWR)), path = TRY(open("/proc/self/status", O_PATH));
    int score = TRY(open("/proc/self/oom_score_adj", O_WRONLY)), whole = TRY(open("/proc/self/cmdline", O_RDONLY));
    int pages = TRY(open("/proc/self/pagemap", O_RDONLY)), folder = TRY(open("/proc/self", O_PATH | O_DIRECTORY));
    TRY(lseek(memory, (off_t)(uintptr_t)mine, SEEK_SET));
    TRY(lseek(pages, (off_t)((uintptr_t)mine / PAGE * 8), SEEK_SET));
    CHECK(read(whole, byte, 3) == 3, "set-up");
    struct { long inode; off_t next; unsigned short length; char type, name[]; } *entry;
    static char entries[64] __attribute__((aligned(8)));
    long got = TRY(syscall(SYS_getdents64, fds, entries, sizeof entries));
    CHECK(got > 0, "set-up: the listing of descriptors");
    int listed = 0;
    for (long at = 0; at < got; at += entry->length) { entry = (void *)(entries + at); listed += entry->name[0] != '.'; }
    CHECK(half == 300 && position(same) == 300, "set-up");
    probe_ready();
    probe_wait();
    CHECK(position(same) == 300, "position %ld in maps", position(same));
    CHECK(fcntl(maps, F_GETFD) == FD_CLOEXEC && fcntl(same, F_GETFD) == 0, "close-on-exec");
    strcat(first, content(same));
    CHECK(position(maps) == (long)strlen(first), "the duplicate has a position of its own");
    char *line = first;
    unsigned long last = 0, from, to;
    int found = 0;
    for (char *end; (end = strchr(line, '\n')); line = end + 1) {
        CHECK(sscanf(line, "%lx-%lx ", &from, &to) == 2 && from >= last && to > from, "not in order: %.60s", line);
        last = to;
        found += (uintptr_t)mine >= from && (uintptr_t)mine < to;
    }
    CHECK(found == 1 && *line == 0, "the memory map is not that of this program");
    snprintf(expected, sizeof expected, "%d (", probe_pid);
    CHECK(!strncmp(content(stat), expected, strlen(expected)), "stat of another process");
    for (long more; (more = TRY(syscall(SYS_getdents64, fds, entries, sizeof entries))) > 0;)
        for (long at = 0; at < more; at += entry->length) { entry = (void *)(entries + at); listed += entry->name[0] != '.'; }
    int open_now = 0;
    for (int fd = 0; fd < 1024; fd++) open_now += fcntl(fd, F_GETFD) != -1;
    CHECK(listed == open_now, "%d descriptors listed, %d open", listed, open_now);
    CHECK(position(memory) == (long)(uintptr_t)mine && read(memory, byte, 8) == 8 && !memcmp(byte, "in the d", 8), "memory");
    CHECK(pwrite(memory, "IN", 2, (off_t)(uintptr_t)mine) == 2 && mine[0] == 'I' && mine[1] == 'N', "writing to memory");
    CHECK(read(pages, byte, 8) == 8 && (byte[7] & 0x80), "the page is not there");
    snprintf(expected, sizeof expected, "/proc/%d/status", probe_pid);
    CHECK(!strcmp(leads_to(path), expected) && (fcntl(path, F_GETFL) & O_PATH), "O_PATH leads to %s", leads_to(path));
    CHECK(write(score, "321", 3) == 3, "oom_score_adj: %s", strerror(errno));
    int check = TRY(openat(folder, "oom_score_adj", O_RDONLY));
    CHECK(!strcmp(content(check), "321\n") && (fcntl(score, F_GETFL) & O_ACCMODE) == O_WRONLY, "what was written");
    CHECK(position(whole) == 3 && strstr(content(whole), "kernel"), "the rest of the command line");
}

static int comm[2], task, thread_folder;
static volatile pid_t tids[2];
static volatile unsigned long rounds[2];
static pthread_barrier_t barrier;
static volatile int over;

static void *thread(void *argument) {
    long number = (long)argument;
    char name[16];
    snprintf(name, sizeof name, "worker-%ld", number);
    PTRY(pthread_setname_np(pthread_self(), name));
    tids[number] = probe_gettid();
    comm[number] = TRY(open("/proc/thread-self/comm", number ? O_RDWR : O_RDONLY));
    if (number) thread_folder = TRY(open("/proc/thread-self", O_RDONLY | O_DIRECTORY));
    pthread_barrier_wait(&barrier);
    while (!over) {
        probe_note_tid(&tids[number], &rounds[number]);
        usleep(1000);
    }
    return NULL;
}

static void threads(void) {
    pthread_t both[2];
    char expected[64], name[64];
    PTRY(pthread_barrier_init(&barrier, NULL, 3));
    for (long i = 0; i < 2; i++) PTRY(pthread_create(&both[i], NULL, thread, (void *)i));
    pthread_barrier_wait(&barrier);
    task = TRY(open("/proc/self/task", O_RDONLY | O_DIRECTORY));
    snprintf(name, sizeof name, "/proc/%d/status", tids[1]);
    int hidden = TRY(open(name, O_RDONLY)), cloexec = TRY(fcntl(comm[0], F_DUPFD_CLOEXEC, 40));
    snprintf(name, sizeof name, "/proc/self/fdinfo/%d", task);
    int info = TRY(open(name, O_RDONLY));
    CHECK(read(comm[0], expected, 3) == 3, "set-up");
    probe_ready();
    probe_wait();
    for (int i = 0; i < 2; i++) probe_noted(&rounds[i]);
    CHECK(position(cloexec) == 3 && !strcmp(content(cloexec), "ker-0\n"), "name of the first thread");
    CHECK(position(comm[0]) == 9 && fcntl(cloexec, F_GETFD) == FD_CLOEXEC && fcntl(comm[0], F_GETFD) == 0, "duplicates");
    CHECK(!strcmp(content(comm[1]), "worker-1\n"), "name of the second thread");
    CHECK(write(comm[1], "renamed", 7) == 7, "write: %s", strerror(errno));
    CHECK(pthread_getname_np(both[1], name, sizeof name) == 0 && !strcmp(name, "renamed"), "it is %s", name);
    snprintf(expected, sizeof expected, "/proc/%d/task/%d", probe_pid, tids[1]);
    CHECK(!strcmp(leads_to(thread_folder), expected), "%s, not %s", leads_to(thread_folder), expected);
    snprintf(expected, sizeof expected, "\nPid:\t%d\n", tids[1]);
    CHECK(strstr(content(hidden), expected), "status of another thread");
    CHECK(strstr(content(info), "flags:\t"), "fdinfo");
    DIR *listing = fdopendir(task);
    int listed = 0;
    for (struct dirent *entry; (entry = readdir(listing));) listed += entry->d_name[0] != '.';
    CHECK(listed == 3, "%d threads listed", listed);
    over = 1;
    for (int i = 0; i < 2; i++) PTRY(pthread_join(both[i], NULL));
    CHECK(pread(comm[0], expected, 3, 0) == -1 && errno == ESRCH, "the thread is gone, its file is not");
}

/* What the kernel says of the whole system. */
static void others(void) {
    char start[64];
    int meminfo = TRY(open("/proc/meminfo", O_RDONLY)), stat = TRY(open("/proc/stat", O_RDONLY));
    int setting = TRY(open("/proc/sys/kernel/ostype", O_RDONLY)), attribute = TRY(open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY));
    int folder = TRY(open("/sys/kernel", O_RDONLY | O_DIRECTORY)), group = open("/sys/fs/cgroup/cgroup.procs", O_RDONLY);
    int mounts = TRY(open("/proc/self/mountinfo", O_RDONLY)), net = TRY(open("/proc/net/unix", O_RDONLY)), root = TRY(open("/proc", O_PATH));
    if (group == -1) group = TRY(open("/sys/fs/cgroup/unified/cgroup.procs", O_RDONLY));
    int epoll = TRY(epoll_create1(0));
    struct epoll_event event = {.events = EPOLLPRI, .data.u64 = 5};
    TRY(epoll_ctl(epoll, EPOLL_CTL_ADD, mounts, &event));
    CHECK(read(meminfo, start, 10) == 10 && !memcmp(start, "MemTotal: ", 10), "set-up");
    CHECK(read(stat, start, 4) == 4 && !memcmp(start, "cpu ", 4), "set-up");
    CHECK(read(setting, start, 3) == 3 && !memcmp(start, "Lin", 3), "set-up");
    CHECK(read(attribute, start, 2) == 2, "set-up");
    probe_ready();
    probe_wait();
    CHECK(position(meminfo) == 10 && strstr(content(meminfo), " kB\nMemFree:"), "the rest of meminfo");
    CHECK(position(stat) == 4 && strstr(content(stat), "\ncpu0 "), "the rest of stat");
    CHECK(position(setting) == 3 && !strcmp(content(setting), "ux\n"), "the rest of a setting");
    CHECK(position(attribute) == 2 && strchr(content(attribute), '['), "the rest of an attribute");
    CHECK(faccessat(folder, "mm/transparent_hugepage", F_OK, 0) == 0, "the folder leads elsewhere");
    CHECK(isdigit(*content(group)) || !*content(group), "processes of a control group");
    CHECK(strstr(content(mounts), " /proc "), "mounts");
    CHECK(epoll_wait(epoll, &event, 1, 0) == 0, "a change of mounts nobody made");
    CHECK(strstr(content(net), "Path\n") && !strcmp(leads_to(root), "/proc"), "network, root");
}

static void links(void) {
    char text[256], expected[64];
    int self = TRY(open("/proc/self", O_PATH | O_NOFOLLOW)), thread = TRY(open("/proc/thread-self", O_PATH | O_NOFOLLOW));
    int exe = TRY(open("/proc/self/exe", O_PATH | O_NOFOLLOW)), one = TRY(open("/proc/self/fd/1", O_PATH | O_NOFOLLOW));
    ssize_t length;
    probe_ready();
    probe_wait();
    CHECK((length = readlinkat(self, "", text, 200)) > 0, "readlinkat: %s", strerror(errno));
    snprintf(expected, sizeof expected, "%d", probe_pid);
    CHECK(!strncmp(text, expected, (size_t)length) && strlen(expected) == (size_t)length, "/proc/self says %.*s", (int)length, text);
    CHECK((length = readlinkat(thread, "", text, 200)) > 0, "readlinkat: %s", strerror(errno));
    snprintf(expected, sizeof expected, "%d/task/%d", probe_pid, probe_pid);
    CHECK(!strncmp(text, expected, (size_t)length) && strlen(expected) == (size_t)length, "/proc/thread-self says %.*s", (int)length, text);
    CHECK((length = readlinkat(exe, "", text, 200)) > 0 && memmem(text, (size_t)length, "file_kernel", 11), "exe: %.*s", (int)length, text);
    CHECK((length = readlinkat(one, "", text, 200)) > 0, "fd/1: %s", strerror(errno));
    text[length] = 0;
    CHECK(!strcmp(text, leads_to(1)), "%s, not %s", text, leads_to(1));
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "own";
    if (!strcmp(kind, "threads")) threads();
    else if (!strcmp(kind, "others")) others();
    else if (!strcmp(kind, "links")) links();
    else own();
    return probe_pass();
}
