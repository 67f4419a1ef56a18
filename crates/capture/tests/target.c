/* A program with some of everything that one process can have; says where, waits for a line, checks itself. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { PRIVATE = 8 << 20, SHARED = 1 << 20, STEP = 64 << 10 };

static volatile unsigned long counter;
static volatile double sum;
static volatile int sleep_errors;

static void *compute(void *unused) {
    prctl(PR_SET_NAME, "compute");
    for (;;) {
        counter++;
        sum += 1.0 / (double)counter;
    }
    return unused;
}

static void *sleeper(void *unused) {
    prctl(PR_SET_NAME, "sleeper");
    for (;;) {
        struct timespec t = {0, 20000000};
        if (nanosleep(&t, NULL) != 0) sleep_errors++;
    }
    return unused;
}

static void *waiter(void *pipe_end) {
    prctl(PR_SET_NAME, "waiter");
    static char stack[16384];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&alternate, NULL);
    char byte;
    if (read(*(int *)pipe_end, &byte, 1) != 1 || byte != 'w') sleep_errors++;
    return NULL;
}

static void handler(int signal) { (void)signal; }

static unsigned char pattern(size_t i) { return (unsigned char)(i * 7 + i / 4096 + 1); }

static int check(const unsigned char *memory, size_t length, size_t step) {
    for (size_t i = 0; i < length; i++) {
        unsigned char want = (i / step) % 2 == 0 ? pattern(i) : 0;
        if (memory[i] != want) return 0;
    }
    return 1;
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    close_range(3, ~0u, 0); /* what the test's own caller left open */
    unsigned char *private = mmap(NULL, PRIVATE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char *shared = mmap(NULL, SHARED, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (private == MAP_FAILED || shared == MAP_FAILED) return 3;
    madvise(private, PRIVATE, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < PRIVATE; i++)
        if ((i / STEP) % 2 == 0) private[i] = pattern(i);
    for (size_t i = 0; i < SHARED; i++)
        if ((i / STEP) % 2 == 0) shared[i] = pattern(i);
    int file = open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || write(file, "0123456789", 10) != 10 || lseek(file, 4, SEEK_SET) != 4) return 4;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 2, .l_len = 3};
    if (fcntl(file, F_SETLK, &lock) != 0) return 5;
    int copy = dup(file), inner[2], wait[2];
    if (copy < 0 || pipe(inner) != 0 || pipe(wait) != 0 || write(inner[1], "in the pipe", 11) != 11) return 6;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGUSR1, handler);
    raise(SIGUSR2);
    struct itimerval timer = {.it_value.tv_sec = 5000};
    setitimer(ITIMER_REAL, &timer, NULL);
    umask(027);

    pthread_t threads[3];
    pthread_create(&threads[0], NULL, compute, NULL);
    pthread_create(&threads[1], NULL, sleeper, NULL);
    pthread_create(&threads[2], NULL, waiter, &wait[0]);
    printf("READY %p %p %d %d\n", (void *)private, (void *)shared, file, inner[0]);
    fflush(stdout);

    char line[16], content[16] = "";
    if (!fgets(line, sizeof line, stdin)) return 7;
    unsigned long before = counter;
    usleep(50000);
    int ok = check(private, PRIVATE, STEP) && check(shared, SHARED, STEP) && counter > before;
    ok = ok && read(inner[0], content, sizeof content) == 11 && strcmp(content, "in the pipe") == 0;
    ok = ok && read(copy, content, 6) == 6 && memcmp(content, "456789", 6) == 0;
    ok = ok && write(wait[1], "w", 1) == 1 && pthread_join(threads[2], NULL) == 0 && sleep_errors == 0;
    sigpending(&set);
    ok = ok && sigismember(&set, SIGUSR2) == 1;
    puts(ok ? "PASS" : "FAIL");
    return !ok;
}
