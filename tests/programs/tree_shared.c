/* What processes have in common. argument: what. */
#include "tree.h"
#include <linux/futex.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/uio.h>

/* One position for all who have the file. */
static void position(void) {
    static char data[10000];
    memset(data, 'd', sizeof data);
    int file = TRY(open("shared-position", O_RDWR | O_CREAT | O_TRUNC, 0600));
    CHECK(write(file, data, sizeof data) == (ssize_t)sizeof data, "write");
    TRY(lseek(file, 1000, SEEK_SET));
    TRY(flock(file, LOCK_EX));
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        int own = TRY(open("shared-position", O_RDONLY));
        TRY(lseek(own, 5, SEEK_SET));
        tree_set_up();
        tree_wait(pid, parent);
        CHECK(lseek(file, 0, SEEK_CUR) == 1000 && lseek(own, 0, SEEK_CUR) == 5, "positions");
        CHECK(flock(own, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the lock is gone");
        CHECK(flock(file, LOCK_EX | LOCK_NB) == 0, "the lock is another's");
        TRY(lseek(file, 7777, SEEK_SET));
        _exit(0);
    }
    tree_ready(1);
    probe_wait();
    tree_ends(child, 0);
    CHECK(lseek(file, 0, SEEK_CUR) == 7777, "the child's position is not ours");
}

/* Two ways to and fro, with something in them. */
static void pipes(void) {
    int there[2], back[2];
    char text[64];
    TRY(pipe(there));
    TRY(pipe(back));
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        TRY(close(there[1]));
        TRY(close(back[0]));
        CHECK(write(back[1], "waiting", 7) == 7, "write");
        tree_set_up();
        tree_wait(pid, parent);
        CHECK(read(there[0], text, 5) == 5 && !memcmp(text, "first", 5), "what was in the pipe");
        while (read(there[0], text, 1) == 1) CHECK(write(back[1], text, 1) == 1, "write");
        _exit(0);
    }
    TRY(close(there[0]));
    TRY(close(back[1]));
    CHECK(write(there[1], "first", 5) == 5, "write");
    tree_ready(1);
    probe_wait();
    CHECK(read(back[0], text, 7) == 7 && !memcmp(text, "waiting", 7), "what was in the other pipe");
    for (int i = 0; i < 1000; i++) {
        char byte = (char)i, answer;
        CHECK(write(there[1], &byte, 1) == 1 && read(back[0], &answer, 1) == 1 && answer == byte, "answer %d", i);
    }
    TRY(close(there[1]));
    CHECK(read(back[0], text, 1) == 0, "the child's end is not the last one");
    tree_ends(child, 0);
}

/* A chain of processes, as of a shell; all block somewhere in it. */
static void pipeline(void) {
    int ends[4][2];
    for (int i = 0; i < 4; i++) TRY(pipe(ends[i]));
    tree_begin();
    pid_t all[3];
    for (int i = 0; i < 3; i++) {
        all[i] = tree_fork();
        if (all[i]) continue;
        int in = ends[i][0], out = ends[i + 1][1];
        for (int j = 0; j < 4; j++)
            for (int k = 0; k < 2; k++)
                if (ends[j][k] != in && ends[j][k] != out) TRY(close(ends[j][k]));
        tree_set_up();
        uint64_t word;
        while (read(in, &word, sizeof word) == sizeof word) {
            word++;
            if (write(out, &word, sizeof word) != sizeof word) _exit(2);
        }
        _exit(0);
    }
    for (int i = 0; i < 3; i++) TRY(close(ends[i][0]));
    for (int i = 1; i < 4; i++) TRY(close(ends[i][1]));
    tree_ready(3);
    uint64_t sent = 0, word;
    do {
        CHECK(write(ends[0][1], &sent, sizeof sent) == sizeof sent, "write");
        CHECK(read(ends[3][0], &word, sizeof word) == sizeof word && word == sent + 3, "%lu became %lu", sent, word);
        sent++;
    } while (!probe_resumed());
    TRY(close(ends[0][1]));
    CHECK(read(ends[3][0], &word, sizeof word) == 0, "more comes out than went in");
    for (int i = 0; i < 3; i++) tree_ends(all[i], 0);
}

static long futex(volatile int *word, int operation, int value) {
    return syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
}

/* Shared memory: anonymous, a part of it, read-only; two take turns by a futex in it. */
static void memory(void) {
    size_t bytes = 64 * PAGE;
    char *shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "mmap: %s", strerror(errno));
    probe_fill(shared + 8 * PAGE, 8 * PAGE, 5);
    int file = TRY(memfd_create("in common", 0));
    TRY(ftruncate(file, (off_t)bytes));
    char *named = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(named != MAP_FAILED, "mmap: %s", strerror(errno));
    probe_fill(named, bytes, 6);
    volatile int *turn = (volatile int *)shared, *stop = turn + 1, *count = turn + 2;
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        TRY(munmap(shared + 32 * PAGE, 32 * PAGE));
        TRY(mprotect(shared + 8 * PAGE, 8 * PAGE, PROT_READ));
        tree_set_up();
        while (!*stop) {
            if (*turn == 1) {
                *count += 1;
                *turn = 0;
                futex(turn, FUTEX_WAKE, 1);
            } else futex(turn, FUTEX_WAIT, 0);
        }
        probe_same(shared + 8 * PAGE, 8 * PAGE, 5, "shared memory of the child");
        probe_same(named, bytes, 6, "memory file of the child");
        named[0] = 'c';
        _exit(0);
    }
    tree_ready(1);
    int turns = 0;
    while (!probe_resumed()) {
        *turn = 1;
        futex(turn, FUTEX_WAKE, 1);
        while (*turn == 1) futex(turn, FUTEX_WAIT, 1);
        turns++;
    }
    CHECK(*count == turns, "%d turns here, %d there", turns, *count);
    *stop = 1;
    *turn = 2;
    futex(turn, FUTEX_WAKE, 1);
    tree_ends(child, 0);
    CHECK(named[0] == 'c', "the child's write is not seen");
}

static volatile int cloned_ready;
static int keeps_memory(void *argument) {
    volatile int *go = argument;
    cloned_ready = 1;
    while (!*go) syscall(SYS_nanosleep, &(struct timespec){0, 2000000}, NULL);
    *go = 2;
    return 6;
}

/* A process in the same address space: clone with CLONE_VM, perhaps with more. */
static void address_space(int flags) {
    static char stack[64 << 10] __attribute__((aligned(16)));
    static volatile int go;
    pid_t child = TRY(clone(keeps_memory, stack + sizeof stack, flags | CLONE_VM | SIGCHLD, (void *)&go));
    while (!cloned_ready) usleep(1000);
    probe_ready();
    probe_wait();
    go = 1;
    tree_ends(child, 6 << 8);
    CHECK(go == 2, "its write is not seen: the memory is another one");
}

/* Descriptors, or working folder and umask, in common without the memory. */
static void table(int flags) {
    tree_begin();
    TRY(mkdir("folder", 0700) == -1 && errno != EEXIST ? -1 : 0);
    pid_t child = (pid_t)TRY(syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL));
    if (child == 0) {
        if (flags & CLONE_FILES) CHECK(write(tree_pipe[1], "x", 1) == 1, "telling the parent");
        else tree_set_up();
        while (!probe_resumed()) usleep(2000);
        if (flags & CLONE_FILES) {
            int file = TRY(open("/dev/null", O_RDWR));
            TRY(dup2(file, 333));
        }
        if (flags & CLONE_FS) {
            umask(0123);
            TRY(chdir("folder"));
        }
        _exit(0);
    }
    mode_t mask = umask(022);
    umask(mask);
    char folder[4096];
    CHECK(getcwd(folder, sizeof folder), "getcwd");
    tree_ready(1);
    probe_wait();
    tree_ends(child, 0);
    if (flags & CLONE_FILES) CHECK(fcntl(333, F_GETFD) == 0, "the child's descriptor is not ours");
    if (flags & CLONE_FS) {
        char after[4096];
        CHECK(getcwd(after, sizeof after) && strlen(after) == strlen(folder) + 7, "the child's folder is not ours: %s", after);
        CHECK(umask(0) == 0123, "the child's umask is not ours");
    }
}

/* Copy on write: parents and children that have changed different parts since. */
static void copies(void) {
    size_t pages = 2048;
    char *memory = probe_map(pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    for (size_t page = 0; page < pages; page++) probe_fill(memory + page * PAGE, PAGE, page);
    tree_begin();
    pid_t all[4];
    for (int i = 0; i < 4; i++) {
        all[i] = tree_fork();
        if (all[i]) continue;
        for (size_t page = (size_t)i; page < 256; page += 4) probe_fill(memory + page * PAGE, PAGE, 5000 + page);
        TRY(madvise(memory + (1000 + 10 * (size_t)i) * PAGE, 10 * PAGE, MADV_DONTNEED));
        pid_t pid = getpid(), parent = getppid();
        tree_set_up();
        tree_wait(pid, parent);
        for (size_t page = 0; page < pages; page++) {
            size_t from = 1000 + 10 * (size_t)i;
            if (page >= from && page < from + 10) probe_zero(memory + page * PAGE, PAGE, "given back");
            else probe_same(memory + page * PAGE, PAGE, page < 256 && page % 4 == (size_t)i ? 5000 + page : page, "page of a child");
        }
        memset(memory, i, pages * PAGE);
        _exit(0);
    }
    for (size_t page = 256; page < 512; page++) probe_fill(memory + page * PAGE, PAGE, 9000 + page);
    TRY(munmap(memory + 700 * PAGE, 50 * PAGE));
    tree_ready(4);
    probe_wait();
    for (size_t page = 0; page < pages; page++) {
        if (page >= 700 && page < 750) continue;
        probe_same(memory + page * PAGE, PAGE, page >= 256 && page < 512 ? 9000 + page : page, "page of the parent");
    }
    for (int i = 0; i < 4; i++) tree_ends(all[i], 0);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "position";
    if (!strcmp(what, "position")) position();
    else if (!strcmp(what, "pipes")) pipes();
    else if (!strcmp(what, "pipeline")) pipeline();
    else if (!strcmp(what, "memory")) memory();
    else if (!strcmp(what, "copies")) copies();
    else if (!strcmp(what, "vm")) address_space(0);
    else if (!strcmp(what, "vm-files-fs")) address_space(CLONE_FILES | CLONE_FS);
    else if (!strcmp(what, "vm-sighand")) address_space(CLONE_SIGHAND);
    else if (!strcmp(what, "files")) table(CLONE_FILES);
    else if (!strcmp(what, "fs")) table(CLONE_FS);
    else fail("unknown variant %s", what);
    return probe_pass();
}
