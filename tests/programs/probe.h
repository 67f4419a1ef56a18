/*
 * What every self-checking program shares: it builds some state, says READY, waits by polling for the file
 * named by argv[1] (no descriptor is kept), looks at its state again and says PASS or FAIL and why.
 * A program that cannot run on this machine says SKIP before READY and exits 77.
 */
#ifndef PROBE_H
#define PROBE_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL

static const char *probe_go;
/* Of the first thread. */
static pid_t probe_pid, probe_tid;
static double probe_gap;
/* Whoever wakes us without any right gives us other ids (REWAKE_OTHER_IDS is set then). */
static int probe_other_ids;

static inline void probe_say(const char *word, const char *format, va_list arguments) {
    char line[512];
    int length = snprintf(line, sizeof line, "%s", word);
    length += vsnprintf(line + length, sizeof line - (size_t)length - 1, format, arguments);
    if (length > (int)sizeof line - 2) length = (int)sizeof line - 2;
    line[length++] = '\n';
    if (write(1, line, (size_t)length) != length) _exit(3);
}

__attribute__((noreturn, format(printf, 1, 2))) static inline void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    probe_say("FAIL: ", format, arguments);
    _exit(1);
}

__attribute__((noreturn, format(printf, 1, 2))) static inline void skip(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    probe_say("SKIP: ", format, arguments);
    _exit(77);
}

#define CHECK(condition, ...) do { if (!(condition)) fail(__VA_ARGS__); } while (0)
/* For calls of the set-up and of the check alike: -1 is a failure that names the call. */
#define TRY(call) ({ __typeof__(call) result_ = (call); if (result_ == (__typeof__(call))-1) fail("%s: %s", #call, strerror(errno)); result_; })
/* For the pthread functions, which return the error itself. */
#define PTRY(call) do { int error_ = (call); if (error_) fail("%s: %s", #call, strerror(error_)); } while (0)

static inline double probe_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static inline pid_t probe_gettid(void) { return (pid_t)syscall(SYS_gettid); }

static inline void probe_start(int argc, char **argv) {
    if (argc < 2) { fprintf(stderr, "usage: %s GO-FILE [ARGUMENT...]\n", argv[0]); exit(2); }
    probe_go = argv[1];
    probe_other_ids = getenv("REWAKE_OTHER_IDS") != NULL;
    probe_pid = getpid();
    probe_tid = probe_gettid();
}

static inline void probe_ready(void) {
    if (write(1, "READY\n", 6) != 6) _exit(3);
}

static inline int probe_resumed(void) {
    struct stat file;
    return stat(probe_go, &file) == 0;
}

/* Computes until the flag file is there; probe_gap is then the longest time the program stood still. */
static inline void probe_wait(void) {
    double last = probe_now();
    while (!probe_resumed()) {
        for (volatile int i = 0; i < 20000; i++) { }
        double now = probe_now();
        if (now - last > probe_gap) probe_gap = now - last;
        last = now;
    }
    CHECK(probe_other_ids || getpid() == probe_pid, "pid was %d, is %d", probe_pid, getpid());
    probe_pid = probe_tid = getpid();
}

/* Notes the id of the calling thread, again and again: it is the same for ever but where ids are others. */
static inline void probe_note_tid(volatile pid_t *tid, volatile unsigned long *times) {
    if (probe_other_ids) *tid = probe_gettid();
    ++*times;
}

/* Waits until a thread has noted its id since the call. */
static inline void probe_noted(const volatile unsigned long *times) {
    for (unsigned long before = *times; *times < before + 2;) usleep(1000);
}

static inline int probe_pass(void) {
    return write(1, "PASS\n", 5) == 5 ? 0 : 3;
}

static inline uint64_t probe_mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static inline void probe_fill(void *memory, size_t bytes, uint64_t seed) {
    uint64_t *word = memory;
    for (size_t i = 0; i < bytes / 8; i++) word[i] = probe_mix(seed * 1000003 + i);
}

static inline void probe_same(const void *memory, size_t bytes, uint64_t seed, const char *what) {
    const uint64_t *word = memory;
    for (size_t i = 0; i < bytes / 8; i++)
        CHECK(word[i] == probe_mix(seed * 1000003 + i), "%s: byte %zu differs", what, i * 8);
}

static inline void probe_zero(const void *memory, size_t bytes, const char *what) {
    const uint64_t *word = memory;
    for (size_t i = 0; i < bytes / 8; i++) CHECK(word[i] == 0, "%s: byte %zu is not zero", what, i * 8);
}

static inline void *probe_map(size_t bytes, int protection, int flags) {
    void *memory = mmap(NULL, bytes, protection, flags | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "mmap of %zu bytes: %s", bytes, strerror(errno));
    return memory;
}

static sigjmp_buf probe_fault_jump;
static inline void probe_on_fault(int signal) { siglongjmp(probe_fault_jump, signal); }

/* Does touching this byte (reading or writing) end in SIGSEGV or SIGBUS? */
static inline int probe_faults(volatile char *byte, int writing) {
    struct sigaction action = {.sa_handler = probe_on_fault}, old_segv, old_bus;
    sigaction(SIGSEGV, &action, &old_segv);
    sigaction(SIGBUS, &action, &old_bus);
    int signal = sigsetjmp(probe_fault_jump, 1);
    if (signal == 0) {
        char value = *byte;
        if (writing) *byte = value;
    }
    sigaction(SIGSEGV, &old_segv, NULL);
    sigaction(SIGBUS, &old_bus, NULL);
    return signal != 0;
}
#endif
