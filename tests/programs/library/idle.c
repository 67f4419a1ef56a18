/* What common things cost, in nanoseconds each: to be compared with and without the library. argv[1] is a program that does nothing. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *nothing;

static void cpu(void)
{
    volatile uint64_t sum = 0;
    uint64_t x = 88172645463325252u;
    for (int i = 0; i < 1000; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    sum = x;
    (void)sum;
}

static void heap(void)
{
    static volatile size_t size = 24;
    void *volatile memory = malloc(size);
    free(memory);
    size = 24 + (size * 7 & 1023);
}

static void file(void)
{
    char byte[16];
    int fd = open("/dev/zero", O_RDONLY);
    if (fd < 0 || read(fd, byte, sizeof byte) != sizeof byte || close(fd))
        exit(1);
}

static void *end(void *argument) { return argument; }

static void thread(void)
{
    pthread_t one;
    if (pthread_create(&one, NULL, end, NULL) || pthread_join(one, NULL))
        exit(1);
}

static void child(void)
{
    pid_t pid = fork();
    if (!pid)
        _exit(0);
    if (pid < 0 || waitpid(pid, NULL, 0) != pid)
        exit(1);
}

static void program(void)
{
    pid_t pid = fork();
    if (!pid) {
        execl(nothing, nothing, NULL);
        _exit(9);
    }
    int status;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
        exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The middle of 15 batches. */
static void measure(const char *name, void (*act)(void), int count)
{
    double batches[15];
    for (int batch = 0; batch < 15; batch++) {
        double begun = now();
        for (int i = 0; i < count; i++)
            act();
        batches[batch] = (now() - begun) / count;
    }
    qsort(batches, 15, sizeof *batches, compare);
    printf("%s %.2f\n", name, batches[7]);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    nothing = argv[1];
    measure("cpu", cpu, 200);
    measure("heap", heap, 20000);
    measure("file", file, 500);
    measure("thread", thread, 20);
    measure("child", child, 20);
    measure("program", program, 4);
    return 0;
}
