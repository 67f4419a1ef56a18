/*
 * Children that come and go as fast as they can, by vfork and exec: whenever the checkpoint comes, one of them is on its way.
 * argument: how. What counts them goes on after the resume; each must end as it should.
 */
#include "tree.h"
#include <spawn.h>

extern char **environ;

static void one_system(long i) {
    char command[32];
    snprintf(command, sizeof command, "exit %ld", i % 100);
    int status = system(command);
    CHECK(status == (int)(i % 100) << 8, "system() of %s tells %#x", command, status);
}

static void one_spawn(long i) {
    char number[16];
    snprintf(number, sizeof number, "exit %ld", i % 100);
    char *arguments[] = {"sh", "-c", number, NULL};
    pid_t child;
    PTRY(posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, environ));
    tree_ends(child, (int)(i % 100) << 8);
}

static void one_vfork(long i) {
    pid_t child = vfork();
    if (child == 0) {
        for (volatile int spin = 0; spin < 200000; spin++) { }
        _exit((int)(i % 100));
    }
    CHECK(child > 0, "vfork: %s", strerror(errno));
    tree_ends(child, (int)(i % 100) << 8);
}

static void repeat(void (*one)(long)) {
    long i = 0;
    for (; i < 3; i++) one(i);
    probe_ready();
    while (!probe_resumed()) one(i++);
    for (long end = i + 20; i < end; i++) one(i);
    tree_no_child();
}

/* Several at once, in threads. */
static void *spawns(void *argument) {
    for (long i = (long)(intptr_t)argument; !probe_resumed(); i++) one_spawn(i);
    return NULL;
}

static void threads(void) {
    pthread_t all[3];
    for (int i = 0; i < 3; i++) PTRY(pthread_create(&all[i], NULL, spawns, (void *)(intptr_t)(i * 10)));
    usleep(50000);
    probe_ready();
    for (int i = 0; i < 3; i++) PTRY(pthread_join(all[i], NULL));
    tree_no_child();
}

/* Shells that start others. */
static void shells(void) {
    pid_t all[3];
    for (int i = 0; i < 3; i++) {
        all[i] = tree_fork();
        if (all[i]) continue;
        char script[1024];
        snprintf(script, sizeof script,
                 "while [ ! -e '%s' ]; do /bin/true || exit 9; ( exec /bin/sh -c 'exit 3' ); [ $? = 3 ] || exit 8; "
                 "n=$(echo x | cat); [ \"$n\" = x ] || exit 7; done; exit 5", probe_go);
        execl("/bin/sh", "sh", "-c", script, NULL);
        fail("exec: %s", strerror(errno));
    }
    usleep(50000);
    probe_ready();
    for (int i = 0; i < 3; i++) tree_ends(all[i], 5 << 8);
    tree_no_child();
}

/* A child that becomes itself again and again, with threads that are ended by it: every other time one of these does it. */
static char *again[5];
static void *idle(void *argument) {
    (void)argument;
    for (;;) pause();
    return NULL;
}
static void *become(void *argument) {
    (void)argument;
    execv("/proc/self/exe", again);
    fail("exec: %s", strerror(errno));
}

static void rebirth(char **argv, long count) {
    char number[24];
    pthread_t all[4];
    if (probe_resumed() && count > 20) _exit(6);
    snprintf(number, sizeof number, "%ld", count + 1);
    again[0] = argv[0], again[1] = argv[1], again[2] = "reborn", again[3] = number;
    for (int i = 0; i < 3; i++) PTRY(pthread_create(&all[i], NULL, idle, NULL));
    if (count % 2) become(NULL);
    PTRY(pthread_create(&all[3], NULL, become, NULL));
    idle(NULL);
}

static void rebirths(char **argv) {
    pid_t all[2];
    for (int i = 0; i < 2; i++) {
        all[i] = tree_fork();
        if (all[i] == 0) rebirth(argv, 1);
    }
    usleep(50000);
    probe_ready();
    for (int i = 0; i < 2; i++) tree_ends(all[i], 6 << 8);
}

/* The child of a vfork that does not come to its end by itself. */
static void stuck(void) {
    signal(SIGUSR1, SIG_IGN);
    probe_ready();
    pid_t child = vfork();
    if (child == 0) {
        while (!probe_resumed()) usleep(2000);
        _exit(7);
    }
    tree_ends(child, 7 << 8);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *what = argc > 2 ? argv[2] : "system";
    if (!strcmp(what, "system")) repeat(one_system);
    else if (!strcmp(what, "spawn")) repeat(one_spawn);
    else if (!strcmp(what, "vfork")) repeat(one_vfork);
    else if (!strcmp(what, "threads")) threads();
    else if (!strcmp(what, "shells")) shells();
    else if (!strcmp(what, "rebirths")) rebirths(argv);
    else if (!strcmp(what, "reborn")) rebirth(argv, atol(argv[3]));
    else if (!strcmp(what, "stuck")) stuck();
    else fail("unknown variant %s", what);
    return probe_pass();
}
