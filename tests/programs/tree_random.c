/* A tree that chance made: processes that share what clone(2) can share, sessions and groups with and without leaders, ended children,
   orphans, files and memory in common. It does nothing when it is there: whoever started it compares.
   argument: the seed. */
#include "probe.h"
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define MOST 24
#define STACK 65536

static struct {
    atomic_int born, settled;
    int orphans;
} *shared;

static uint64_t state;
/* How many processes above wait for us, the root not counted. */
static int depth_now;
static char common[4096];

static unsigned chance(unsigned limit) {
    state = probe_mix(state);
    return (unsigned)((state >> 33) % limit);
}

__attribute__((noreturn)) static void settle(void) {
    atomic_fetch_add(&shared->settled, 1);
    for (;;) syscall(SYS_pause);
}

/* One with the memory of its parent must not touch what the C library keeps there. */
static int share_memory(void *what) {
    switch ((int)(intptr_t)what) {
    case 1: syscall(SYS_setsid); break;
    case 2: syscall(SYS_setpgid, 0, 0); break;
    }
    settle();
}

static void live(int depth);

/* One after the other, so that a seed always makes the same tree. */
static void wait_for_all(void) {
    while (atomic_load(&shared->settled) < atomic_load(&shared->born) - depth_now) usleep(200);
    /* Who ends has to come to its end. */
    usleep(2000);
}

static void make_child(int depth) {
    if (atomic_fetch_add(&shared->born, 1) >= MOST) {
        atomic_fetch_sub(&shared->born, 1);
        return;
    }
    uint64_t own = chance(1u << 30);
    unsigned kind = chance(10);
    unsigned long flags = SIGCHLD;
    if (kind == 0 || kind == 1) {
        char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(stack != MAP_FAILED, "mmap: %s", strerror(errno));
        int extra = (kind == 1 ? CLONE_SIGHAND : 0) | (chance(2) ? CLONE_FILES : 0) | (chance(2) ? CLONE_FS : 0);
        TRY(clone(share_memory, stack + STACK, CLONE_VM | extra | SIGCHLD, (void *)(intptr_t)chance(3)));
        wait_for_all();
        return;
    }
    if (kind == 2) flags |= CLONE_FILES;
    if (kind == 3) flags |= CLONE_FS;
    if (kind == 4) flags = (flags & ~0xfful) | (chance(2) ? 0 : SIGURG);
    long child = syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);
    CHECK(child >= 0, "clone: %s", strerror(errno));
    if (child == 0) {
        state = own;
        live(depth + 1);
    }
    wait_for_all();
}

static void change(int depth) {
    static const int signals[] = {SIGUSR1, SIGUSR2, SIGHUP, SIGALRM, SIGURG};
    int ends[2];
    sigset_t set;
    switch (chance(15)) {
    case 0: case 1: case 2: case 3: case 4:
        if (depth < 5) make_child(depth);
        break;
    case 5: setsid(); break;
    case 6: setpgid(0, 0); break;
    case 7: setpgid(0, chance(2) ? getpgid(getppid()) : getppid()); break;
    case 8: TRY(pipe2(ends, chance(2) ? O_NONBLOCK : 0)); break;
    case 9: open(common, O_RDWR | O_CREAT | (chance(2) ? O_APPEND : 0), 0600); break;
    case 10: dup((int)chance(12)); break;
    case 11: close(3 + (int)chance(9)); break;
    case 12: CHECK(mmap(NULL, PAGE * (1 + chance(3)), PROT_READ | PROT_WRITE,
                        (chance(2) ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0) != MAP_FAILED, "mmap"); break;
    case 13:
        umask(chance(0100));
        if (chance(2)) TRY(chdir(chance(2) ? "/" : "/proc"));
        break;
    case 14:
        signal(signals[chance(5)], chance(2) ? SIG_IGN : SIG_DFL);
        sigemptyset(&set);
        sigaddset(&set, signals[chance(5)]);
        sigprocmask(SIG_BLOCK, &set, NULL);
        /* Who took in orphans goes on doing so: the kernel does not tell of one that did before. */
        if (chance(6) == 0) prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        break;
    }
}

static void live(int depth) {
    depth_now = depth;
    int born = 0;
    for (unsigned changes = 2 + chance(9); changes > 0; changes--) {
        int before = atomic_load(&shared->born);
        change(depth);
        born |= atomic_load(&shared->born) != before;
    }
    /* Who ends leaves what is below it behind: in the tree only if somebody takes it in. */
    if (depth > 0 && chance(5) == 0 && (shared->orphans || !born)) {
        atomic_fetch_add(&shared->settled, 1);
        if (chance(3) == 0) {
            signal(SIGTERM, SIG_DFL);
            kill(getpid(), SIGTERM);
        }
        _exit((int)chance(256));
    }
    settle();
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    CHECK(realpath(".", common), "realpath");
    strcat(common, "/common");
    state = probe_mix(argc > 2 ? strtoull(argv[2], NULL, 0) : 1);
    shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "mmap: %s", strerror(errno));
    shared->orphans = chance(2) == 0;
    if (shared->orphans) TRY(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
    if (chance(4) == 0) setsid();
    for (int i = 0; i < 12; i++) change(0);
    while (atomic_load(&shared->settled) != atomic_load(&shared->born)) usleep(1000);
    /* Those that end have to come to their end. */
    usleep(20000);
    probe_ready();
    for (;;) pause();
}
