/*
 * Programs that do one thing as fast as they can while they are checkpointed again and again, and that would break if a checkpoint
 * took a lock of theirs, memory of theirs, a descriptor's number or much room on a stack. Each looks at what it does all the time.
 */
#include "probe.h"
#include <dlfcn.h>
#include <link.h>
#include <sys/wait.h>
#include <ucontext.h>

static _Atomic int over;
static _Atomic unsigned long rounds[64];

/* Every worker counts its rounds: it must have got on after the last wake-up. */
static int workers;
static pthread_t worker[64];

static void start(void *(*run)(void *), int count, size_t stack) {
    pthread_attr_t attr;
    PTRY(pthread_attr_init(&attr));
    if (stack) PTRY(pthread_attr_setstacksize(&attr, stack));
    for (int i = 0; i < count; i++, workers++)
        PTRY(pthread_create(&worker[workers], &attr, run, (void *)(intptr_t)workers));
}

static void *mallocs(void *argument) {
    uint64_t seed = (uint64_t)(intptr_t)argument + 1;
    enum { HELD = 64 };
    unsigned char *held[HELD] = {0};
    size_t size[HELD] = {0};
    while (!over) {
        uint64_t random = seed = probe_mix(seed);
        unsigned at = random % HELD;
        for (size_t i = 0; i < size[at]; i++)
            CHECK(held[at][i] == (unsigned char)(at * 7 + i), "byte %zu of a piece of %zu is %d", i, size[at], held[at][i]);
        free(held[at]);
        size[at] = (random >> 8) % ((random >> 40) % 50 ? 3000 : 300000);
        held[at] = malloc(size[at]);
        CHECK(held[at] || !size[at], "no memory for %zu bytes", size[at]);
        for (size_t i = 0; i < size[at]; i++) held[at][i] = (unsigned char)(at * 7 + i);
        rounds[(intptr_t)argument]++;
    }
    return NULL;
}

/* One file for both, through stdio alone; looked at as a whole now and then by whoever holds the lock. */
static FILE *lines;
static unsigned long next_line;
enum { LINES = 20000 };

static void look_at_lines(void) {
    CHECK(fflush(lines) == 0, "fflush: %s", strerror(errno));
    FILE *file = fopen("lines", "r");
    CHECK(file, "lines: %s", strerror(errno));
    unsigned long number, other, count = 0;
    char rest[64];
    while (fscanf(file, "line %lu of %63s is %lu\n", &number, rest, &other) == 3) {
        CHECK(number == count && other == (number ^ 0x5555) && strcmp(rest, "many") == 0, "line %lu says %lu %s %lu", count, number, rest, other);
        count++;
    }
    CHECK(feof(file), "line %lu is broken", count);
    CHECK(count == next_line, "%lu lines of %lu", count, next_line);
    fclose(file);
}

static void *printfs(void *argument) {
    char text[256];
    while (!over) {
        flockfile(lines);
        fprintf(lines, "line %lu of %s is %lu\n", next_line, "many", next_line ^ 0x5555);
        if (++next_line == LINES) {
            look_at_lines();
            rewind(lines);
            TRY(ftruncate(fileno(lines), 0));
            next_line = 0;
        }
        funlockfile(lines);
        double number = (double)rounds[(intptr_t)argument] / 7;
        int length = snprintf(text, sizeof text, "%.9f %lx %s", number, rounds[(intptr_t)argument], "end");
        CHECK(length > 12 && strcmp(text + length - 3, "end") == 0 && strtod(text, NULL) - number < 1e-6, "snprintf made '%s'", text);
        rounds[(intptr_t)argument]++;
    }
    return NULL;
}

/* Closes all that it does not know, in both ways, and always finds its own files at the lowest numbers. */
static void *closes(void *argument) {
    while (!over) {
        if (rounds[0] % 2) syscall(SYS_close_range, 3, ~0U, 0);
        else for (int fd = 3; fd < 64; fd++) close(fd);
        int file = TRY(open("closes", O_RDWR | O_CREAT | O_TRUNC, 0600));
        CHECK(file == 3, "a file was opened as %d", file);
        int ends[2];
        TRY(pipe(ends));
        CHECK(ends[0] == 4 && ends[1] == 5, "a pipe was opened as %d and %d", ends[0], ends[1]);
        uint64_t value = probe_mix(rounds[0]), read_back = 0;
        CHECK(TRY(write(file, &value, 8)) == 8, "short write");
        CHECK(TRY(pread(file, &read_back, 8, 0)) == 8 && read_back == value, "the file holds something else");
        CHECK(TRY(write(ends[1], &value, 8)) == 8, "short write");
        CHECK(TRY(read(ends[0], &read_back, 8)) == 8 && read_back == value, "the pipe holds something else");
        TRY(unlink("closes"));
        rounds[(intptr_t)argument]++;
    }
    return NULL;
}

static void *ends_at_once(void *argument) {
    volatile char room[512];
    memset((char *)room, (int)(intptr_t)argument, sizeof room);
    return (void *)((intptr_t)argument + room[0] * 0);
}

static void *makes_threads(void *argument) {
    while (!over) {
        pthread_t made[4];
        void *result;
        for (intptr_t i = 0; i < 4; i++) PTRY(pthread_create(&made[i], NULL, ends_at_once, (void *)(i + 1)));
        for (intptr_t i = 0; i < 4; i++) {
            PTRY(pthread_join(made[i], &result));
            CHECK(result == (void *)(i + 1), "a thread returned %p", result);
        }
        rounds[(intptr_t)argument]++;
    }
    return NULL;
}

static void *loads(void *argument) {
    static const char *const names[] = {"libresolv.so.2", "libutil.so.1", "libstdc++.so.6", "libnss_compat.so.2", "libgomp.so.1", "libanl.so.1"};
    while (!over) {
        int loaded = 0;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
            if (!library) continue;
            loaded++;
            CHECK(dlsym(library, "no_such_name_here") == NULL && dlerror(), "a symbol that is not there");
            CHECK(dlclose(library) == 0, "dlclose: %s", dlerror());
        }
        CHECK(loaded, "no library at all could be loaded");
        rounds[(intptr_t)argument]++;
    }
    return NULL;
}

/* Signals all the time, with handlers on an alternate stack, out of which it jumps as often as not. */
static __thread sigjmp_buf jump;
static __thread volatile int may_jump;
static _Atomic unsigned long handled;

static void on_alternate(int signal) {
    char room[256];
    memset(room, signal, sizeof room);
    handled++;
    for (volatile int i = 0; i < 2000; i++) { }
    CHECK(room[255] == signal && room[0] == signal, "the alternate stack was written to");
    if (may_jump && handled % 2) siglongjmp(jump, 1);
}

static void *jumps(void *argument) {
    char *memory = probe_map(16384, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    stack_t stack = {.ss_sp = memory, .ss_size = 16384};
    TRY(sigaltstack(&stack, NULL));
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
    event._sigev_un._tid = probe_gettid();
    TRY(timer_create(CLOCK_MONOTONIC, &event, &timer));
    struct itimerspec every = {{0, 200000}, {0, 200000}};
    TRY(timer_settime(timer, 0, &every, NULL));
    while (!over) {
        volatile uint64_t sum = 0;
        if (sigsetjmp(jump, 1) == 0) {
            may_jump = 1;
            for (int i = 0; i < 20000; i++) sum += probe_mix((uint64_t)i) & 1;
        }
        may_jump = 0;
        sigset_t now;
        PTRY(pthread_sigmask(SIG_SETMASK, NULL, &now));
        CHECK(!sigismember(&now, SIGUSR1) && !sigismember(&now, 34), "a signal stays blocked");
        rounds[(intptr_t)argument]++;
    }
    TRY(timer_delete(timer));
    return NULL;
}

/* Threads with the smallest stacks there are, and coroutines that have as little, all with guards below. */
static void *small(void *argument) {
    uint64_t seed = (uint64_t)(intptr_t)argument, sum = 0;
    while (!over) {
        uint64_t words[64];
        for (int i = 0; i < 64; i++) words[i] = seed + (uint64_t)i;
        for (volatile int i = 0; i < 1000; i++) { }
        for (int i = 0; i < 64; i++) CHECK(words[i] == seed + (uint64_t)i, "a word on the stack was changed");
        sum += seed = probe_mix(seed);
        rounds[(intptr_t)argument]++;
    }
    return (void *)(intptr_t)(sum & 1);
}

enum { COROUTINES = 8, ROOM = 8192 };

struct ring { ucontext_t back, coroutine[COROUTINES]; unsigned long turns[COROUTINES]; };

static void take_turns(unsigned high, unsigned low, int own) {
    struct ring *ring = (struct ring *)(((uintptr_t)high << 32) | low);
    for (;;) {
        volatile uint64_t words[32];
        for (int i = 0; i < 32; i++) words[i] = (uint64_t)(own * i);
        for (volatile int i = 0; i < 1000; i++) { }
        for (int i = 0; i < 32; i++) CHECK(words[i] == (uint64_t)(own * i), "a word of a coroutine was changed");
        ring->turns[own]++;
        swapcontext(&ring->coroutine[own], own + 1 < COROUTINES ? &ring->coroutine[own + 1] : &ring->back);
    }
}

static void *coroutines(void *argument) {
    static struct ring rings[2];
    struct ring *ring = &rings[(intptr_t)argument % 2];
    for (volatile int i = 0; i < COROUTINES; i++) {
        char *memory = probe_map(ROOM + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
        TRY(mprotect(memory, PAGE, PROT_NONE));
        TRY(getcontext(&ring->coroutine[i]));
        ring->coroutine[i].uc_stack = (stack_t){.ss_sp = memory + PAGE, .ss_size = ROOM};
        makecontext(&ring->coroutine[i], (void (*)(void))take_turns, 3, (unsigned)((uintptr_t)ring >> 32), (unsigned)(uintptr_t)ring, i);
    }
    while (!over) {
        TRY(swapcontext(&ring->back, &ring->coroutine[0]));
        unsigned long turns = ++rounds[(intptr_t)argument];
        for (int i = 0; i < COROUTINES; i++) CHECK(ring->turns[i] == turns, "coroutine %d took %lu turns of %lu", i, ring->turns[i], turns);
    }
    return NULL;
}

/* Holds what a checkpoint must not need: the locks of the loader and of stdio, for good. */
static _Atomic int holding;

static int hold_loader(struct dl_phdr_info *info, size_t size, void *argument) {
    (void)info, (void)size, (void)argument;
    holding++;
    while (!over) usleep(1000);
    return 1;
}

static void *holds_loader(void *argument) {
    dl_iterate_phdr(hold_loader, NULL);
    rounds[(intptr_t)argument]++;
    return NULL;
}

static void *holds_stdio(void *argument) {
    flockfile(stdout);
    flockfile(stderr);
    holding++;
    while (!over) usleep(1000);
    funlockfile(stderr);
    funlockfile(stdout);
    rounds[(intptr_t)argument]++;
    return NULL;
}

static pid_t home;
#ifdef WATCHED
/* Memory of the program's taken by a process that is not the program: whoever copies us must not. */
static void look_who(void) {
    if (home && getpid() != home) {
        static const char text[] = "FAIL: memory of the program's was taken by a copy of it\n";
        syscall(SYS_write, 1, text, sizeof text - 1);
        kill(home, SIGKILL);
        _exit(1);
    }
}
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), __libc_free(void *);
extern void *__libc_memalign(size_t, size_t);
void *malloc(size_t size) { look_who(); return __libc_malloc(size); }
void *calloc(size_t count, size_t size) { look_who(); return __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { look_who(); return __libc_realloc(old, size); }
void free(void *old) { look_who(); __libc_free(old); }
void *memalign(size_t align, size_t size) { look_who(); return __libc_memalign(align, size); }
void *aligned_alloc(size_t align, size_t size) { look_who(); return __libc_memalign(align, size); }
int posix_memalign(void **place, size_t align, size_t size) { look_who(); *place = __libc_memalign(align, size); return *place ? 0 : ENOMEM; }
#endif

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "";
    lines = fopen("lines", "w");
    CHECK(lines, "lines: %s", strerror(errno));
    if (!strcmp(what, "malloc")) start(mallocs, 2, 0);
    else if (!strcmp(what, "printf")) start(printfs, 2, 0);
    else if (!strcmp(what, "descriptors")) { fclose(lines); start(closes, 1, 0); }
    else if (!strcmp(what, "threads")) start(makes_threads, 3, 0);
    else if (!strcmp(what, "dlopen")) start(loads, 2, 0), start(mallocs, 1, 0);
    else if (!strcmp(what, "handlers")) {
        struct sigaction action = {.sa_handler = on_alternate, .sa_flags = SA_ONSTACK};
        sigfillset(&action.sa_mask);
        TRY(sigaction(SIGUSR1, &action, NULL));
        start(jumps, 2, 0);
    } else if (!strcmp(what, "small")) start(small, 4, PTHREAD_STACK_MIN), start(coroutines, 2, 0);
    else if (!strcmp(what, "locks")) start(holds_loader, 1, 0), start(holds_stdio, 1, 0);
    else if (!strcmp(what, "watched")) home = getpid(), start(mallocs, 2, 0);
    else fail("what is '%s'?", what);
    if (!strcmp(what, "locks")) while (holding < 2) usleep(1000);
    else for (int i = 0; i < workers; i++) while (!rounds[i]) usleep(1000);
    probe_ready();
    while (!probe_resumed()) usleep(2000);
    /* The life that was recovered last must get on, and not only end. */
    unsigned long before[64];
    for (int i = 0; i < workers; i++) before[i] = rounds[i];
    if (strcmp(what, "locks")) for (int i = 0; i < workers; i++) while (rounds[i] == before[i]) usleep(1000);
    over = 1;
    for (int i = 0; i < workers; i++) PTRY(pthread_join(worker[i], NULL));
    if (!strcmp(what, "printf")) look_at_lines();
    if (!strcmp(what, "handlers")) CHECK(handled > 100, "only %lu signals were handled", handled);
    return probe_pass();
}
