/* Settings that few programs change (argument: which): they are there again, and they work.
   policy (set_mempolicy of each thread), future-locks, future-locks-on-fault, merging, memory-errors, tsc, speculation,
   huge-pages, huge-pages-but-advised, no-new-code (PR_SET_MDWE), flusher. */
#include "probe.h"
#include <sys/prctl.h>

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif
#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#define PR_GET_IO_FLUSHER 58
#endif
#define EXCEPT_ADVISED 2

static const char *kind;
static volatile int stop;
static pthread_barrier_t barrier;
static sigjmp_buf jump;

static int is(const char *name) { return !strcmp(kind, name); }

/* Not every kernel, machine or user can do everything. */
#define CAN(call) ({ long got_ = (call); if (got_ == -1) skip("%s: %s", #call, strerror(errno)); (int)got_; })

static unsigned long nodes[16];
static int policy(void) {
    int mode = -1;
    memset(nodes, 0, sizeof nodes);
    TRY(syscall(SYS_get_mempolicy, &mode, nodes, 8 * sizeof nodes + 1, NULL, 0));
    return mode;
}

static void on_fault(int signal) { siglongjmp(jump, signal); }

/* Nothing in here may read the clock: libc does that by the counter. */
static int counter_faults(void) {
    struct sigaction action = {.sa_handler = on_fault}, old;
    sigaction(SIGSEGV, &action, &old);
    int faulted = sigsetjmp(jump, 1);
    if (!faulted) __asm__ volatile("rdtsc" ::: "eax", "edx");
    sigaction(SIGSEGV, &old, NULL);
    return faulted != 0;
}

static void *second(void *nothing) {
    if (is("policy")) {
        unsigned long first = 1;
        CAN(syscall(SYS_set_mempolicy, 3, &first, 8)); /* interleave */
    }
    if (is("memory-errors")) CAN(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
    if (is("speculation")) {
        int can = prctl(PR_GET_SPECULATION_CTRL, 0, 0, 0, 0);
        if (can < 0 || !(can & PR_SPEC_PRCTL)) skip("this processor's speculation is not a thread's to choose: %d", can);
        CAN(prctl(PR_SET_SPECULATION_CTRL, 0, PR_SPEC_DISABLE, 0, 0));
    }
    if (is("tsc")) CAN(prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0));
    pthread_barrier_wait(&barrier);
    while (!stop) { }
    if (is("policy")) CHECK(policy() == 3 && nodes[0] == 1, "memory policy of the second thread is %d", policy());
    if (is("memory-errors")) CHECK(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY, "policy for memory errors");
    if (is("speculation")) CHECK(prctl(PR_GET_SPECULATION_CTRL, 0, 0, 0, 0) == (PR_SPEC_PRCTL | PR_SPEC_DISABLE), "speculation is %d", prctl(PR_GET_SPECULATION_CTRL, 0, 0, 0, 0));
    if (is("tsc")) CHECK(counter_faults(), "the second thread can read the counter");
    return nothing;
}

/* Is memory that is mapped now locked (and there at once)? */
static void expect_locks(int at_once) {
    char *memory = probe_map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    CHECK(msync(memory, 4 * PAGE, MS_INVALIDATE) == -1 && errno == EBUSY, "new memory is not locked");
    unsigned char there[4];
    TRY(mincore(memory, 4 * PAGE, there));
    CHECK((there[3] & 1) == at_once, "new memory is %sthere at once", there[3] & 1 ? "" : "not ");
    TRY(munmap(memory, 4 * PAGE));
}

static void set_up(void) {
    if (is("policy")) {
        unsigned long first = 1;
        CAN(syscall(SYS_set_mempolicy, 2, &first, 8)); /* bind */
    }
    if (is("future-locks")) CAN(mlockall(MCL_FUTURE));
    if (is("future-locks-on-fault")) CAN(mlockall(MCL_FUTURE | MCL_ONFAULT));
    if (is("merging")) CAN(prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0));
    if (is("huge-pages")) CAN(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    if (is("huge-pages-but-advised")) CAN(prctl(PR_SET_THP_DISABLE, 1, EXCEPT_ADVISED, 0, 0));
    if (is("no-new-code")) CAN(prctl(PR_SET_MDWE, 1, 0, 0, 0));
    if (is("flusher")) CAN(prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0));
}

static void check(void) {
    if (is("policy")) CHECK(policy() == 2 && nodes[0] == 1, "memory policy is %d", policy());
    if (is("future-locks")) expect_locks(1);
    if (is("future-locks-on-fault")) expect_locks(0);
    if (is("merging")) CHECK(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1, "merging is off");
    if (is("memory-errors")) CHECK(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_DEFAULT, "policy for memory errors of the first thread");
    if (is("speculation")) CHECK(prctl(PR_GET_SPECULATION_CTRL, 0, 0, 0, 0) == (PR_SPEC_PRCTL | PR_SPEC_ENABLE), "speculation of the first thread");
    if (is("tsc")) CHECK(!counter_faults(), "the first thread cannot read the counter");
    if (is("huge-pages")) CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1, "huge pages: %d", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    if (is("huge-pages-but-advised")) CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == (1 | EXCEPT_ADVISED), "huge pages: %d", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    if (is("flusher")) CHECK(prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) == 1, "not an I/O flusher");
    if (is("no-new-code")) {
        CHECK(prctl(PR_GET_MDWE, 0, 0, 0, 0) == 1, "memory can be made executable");
        CHECK(mmap(NULL, PAGE, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED, "memory is writable and executable");
    }
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    kind = argc > 2 ? argv[2] : "policy";
    PTRY(pthread_barrier_init(&barrier, NULL, 2));
    pthread_t thread;
    PTRY(pthread_create(&thread, NULL, second, NULL));
    pthread_barrier_wait(&barrier);
    set_up();
    check();
    probe_ready();
    probe_wait();
    check();
    stop = 1;
    PTRY(pthread_join(thread, NULL));
    return probe_pass();
}
