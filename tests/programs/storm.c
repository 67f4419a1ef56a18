/* Processes and threads that are born and end as fast as they can, while the freeze happens.
   argument: processes (a tree of up to 500, of which each ends at once or makes others), orphans (they leave children behind),
   programs (each is another program: /bin/true), threads (of up to 100), both; identities (members that change who they are, as whole
   processes and thread by thread), connections (of which data is sent through each before it is accepted, which takes a while).
   Births and ends are counted in memory that all share: none may be lost, and none counted twice. */
#include "unix.h"
#include <grp.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>

extern char **environ;

static struct {
    atomic_long born, ended, alive, wrong;
    atomic_int stop;
} *count;

static int most = 500;

static uint32_t chance(uint32_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    return *state ^= *state << 5;
}

/* One that has room to be born. */
static int enter(void) {
    if (atomic_fetch_add(&count->alive, 1) >= most) {
        atomic_fetch_sub(&count->alive, 1);
        return 0;
    }
    atomic_fetch_add(&count->born, 1);
    return 1;
}

static void leave(void) {
    atomic_fetch_add(&count->ended, 1);
    atomic_fetch_sub(&count->alive, 1);
}

/* Makes some children and waits for them, or leaves them behind. */
__attribute__((noreturn)) static void live(uint32_t state, int depth, int orphans) {
    pid_t own = getpid(), made[3];
    int children = 0;
    for (uint32_t i = chance(&state) % 4; i > 0 && depth < 6 && !atomic_load(&count->stop); i--) {
        if (!enter()) continue;
        pid_t child = fork();
        if (child == -1) leave();
        else if (child == 0) live(state * 2654435761u + i, depth + 1, orphans);
        else made[children++] = child;
    }
    for (int i = 0; i < children && !orphans; i++) {
        int status;
        pid_t ended;
        do ended = waitpid(made[i], &status, 0); while (ended == -1 && errno == EINTR);
        if (ended != made[i] || status != 0) atomic_fetch_add(&count->wrong, 1);
    }
    if (getpid() != own) atomic_fetch_add(&count->wrong, 1);
    leave();
    _exit(0);
}

static void storm(int orphans) {
    uint32_t state = 2463534242u;
    if (orphans) TRY(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
    while (!probe_resumed()) {
        if (enter()) {
            pid_t child = fork();
            if (child == 0) live(state, 0, orphans);
            if (child == -1) leave();
        }
        chance(&state);
        int status;
        while (waitpid(-1, &status, WNOHANG) > 0) if (status != 0) atomic_fetch_add(&count->wrong, 1);
    }
    atomic_store(&count->stop, 1);
    int status;
    pid_t ended;
    while ((ended = waitpid(-1, &status, 0)) > 0 || errno == EINTR) {
        if (ended > 0 && status != 0) atomic_fetch_add(&count->wrong, 1);
    }
    CHECK(errno == ECHILD, "waiting for the last: %s", strerror(errno));
}

static void programs(void) {
    char *words[] = {"true", NULL};
    while (!probe_resumed()) {
        pid_t child;
        int status;
        PTRY(posix_spawn(&child, "/bin/true", NULL, NULL, words, environ));
        atomic_fetch_add(&count->born, 1);
        pid_t ended;
        do ended = waitpid(child, &status, 0); while (ended == -1 && errno == EINTR);
        CHECK(ended == child && status == 0, "true ended as %#x", status);
        atomic_fetch_add(&count->ended, 1);
    }
}

static void *brief(void *argument) {
    uint32_t state = (uint32_t)(uintptr_t)argument;
    for (uint32_t turns = chance(&state) % 1000; turns > 0; turns--) chance(&state);
    leave();
    return argument;
}

static void *starter(void *argument) {
    uintptr_t next = 1;
    while (!atomic_load(&count->stop)) {
        pthread_t threads[20];
        int started = 0;
        for (; started < 20 && enter(); started++) {
            if (pthread_create(&threads[started], NULL, brief, (void *)(next + (uintptr_t)started)) != 0) {
                leave();
                break;
            }
        }
        for (int i = 0; i < started; i++) {
            void *back;
            PTRY(pthread_join(threads[i], &back));
            if (back != (void *)(next + (uintptr_t)i)) atomic_fetch_add(&count->wrong, 1);
        }
        next += 20;
    }
    return argument;
}

static void threads(void (*beside)(void)) {
    pthread_t starters[5];
    most = beside ? 500 : 100;
    for (int i = 0; i < 5; i++) PTRY(pthread_create(&starters[i], NULL, starter, NULL));
    if (beside) beside();
    while (!probe_resumed()) usleep(1000);
    atomic_store(&count->stop, 1);
    for (int i = 0; i < 5; i++) PTRY(pthread_join(starters[i], NULL));
}

static void rain(void) { storm(0); }

#define MEMBERS 8
#define WHO 3

/* What a process changes for all its threads: the C library makes each of them do so, by a signal. */
static void change_together(uid_t id) {
    gid_t groups[] = {id, id + 1}, now[8];
    uid_t real, effective, saved;
    PTRY(setgroups(2, groups) ? errno : 0);
    if (getgroups(8, now) != 2 || now[1] != id + 1) atomic_fetch_add(&count->wrong, 1);
    PTRY(setresgid(id, id, 0) ? errno : 0);
    PTRY(setresuid(0, id, 0) ? errno : 0);
    getresuid(&real, &effective, &saved);
    if (real != 0 || effective != id || saved != 0) atomic_fetch_add(&count->wrong, 1);
    PTRY(seteuid(0) ? errno : 0);
    PTRY(setresgid(0, 0, 0) ? errno : 0);
}

/* What one thread changes for itself: others are who they were. */
static void change_alone(uid_t id) {
    gid_t groups[] = {id}, now[8];
    uid_t real, effective, saved;
    CHECK(syscall(SYS_setgroups, 1, groups) == 0, "setgroups: %s", strerror(errno));
    CHECK(syscall(SYS_setresgid, id, id, 0) == 0, "setresgid: %s", strerror(errno));
    CHECK(syscall(SYS_setresuid, id, id, 0) == 0, "setresuid: %s", strerror(errno));
    syscall(SYS_getresuid, &real, &effective, &saved);
    if (real != id || effective != id || saved != 0) atomic_fetch_add(&count->wrong, 1);
    if (syscall(SYS_getgroups, 8, now) != 1 || now[0] != id) atomic_fetch_add(&count->wrong, 1);
    CHECK(syscall(SYS_setresuid, 0, 0, 0) == 0, "setresuid back: %s", strerror(errno));
    CHECK(syscall(SYS_setresgid, 0, 0, 0) == 0, "setresgid back: %s", strerror(errno));
    atomic_fetch_add(&count->born, 1);
    atomic_fetch_add(&count->ended, 1);
}

static int changes_alone;

static void *who(void *argument) {
    uid_t own = (uid_t)(uintptr_t)argument;
    while (!atomic_load(&count->stop)) {
        if (changes_alone) change_alone(own);
        else usleep(100);
    }
    return argument;
}

static void identities(void) {
    if (geteuid() != 0) skip("only root may become others");
    pid_t made[MEMBERS], parent = getpid();
    for (int i = 0; i < MEMBERS; i++) {
        made[i] = TRY(fork());
        if (made[i] != 0) continue;
        pthread_t threads[WHO];
        uid_t own = (uid_t)(2000 + 10 * i);
        changes_alone = i % 2;
        for (int t = 0; t < WHO; t++) PTRY(pthread_create(&threads[t], NULL, who, (void *)(uintptr_t)(own + (uid_t)t)));
        while (!atomic_load(&count->stop)) {
            if (getppid() != parent) _exit(1);
            if (!changes_alone) {
                change_together(own);
                atomic_fetch_add(&count->born, 1);
                atomic_fetch_add(&count->ended, 1);
            } else usleep(1000);
        }
        for (int t = 0; t < WHO; t++) PTRY(pthread_join(threads[t], NULL));
        _exit(0);
    }
    while (atomic_load(&count->born) < 100) usleep(1000);
    probe_ready();
    while (!probe_resumed()) usleep(1000);
    atomic_store(&count->stop, 1);
    for (int i = 0; i < MEMBERS; i++) tree_ends(made[i], 0);
}

#define ACCEPTED_AFTER 10000
#define BETWEEN 20000

/* A third of the time there is a connection with data that nobody can read. */
static void connections(void) {
    int listener = TRY(socket(AF_UNIX, SOCK_STREAM, 0));
    unix_bind(listener, "storm.sock");
    TRY(listen(listener, 5));
    pid_t server = TRY(fork());
    while (server == 0) {
        char byte;
        struct pollfd comes = {.fd = listener, .events = POLLIN};
        while (poll(&comes, 1, -1) != 1) CHECK(errno == EINTR, "poll: %s", strerror(errno));
        usleep(ACCEPTED_AFTER);
        int one = TRY(accept(listener, NULL, NULL));
        if (read(one, &byte, 1) != 1 || write(one, &byte, 1) != 1) atomic_fetch_add(&count->wrong, 1);
        TRY(close(one));
        if (byte == 'q') _exit(0);
        atomic_fetch_add(&count->ended, 1);
    }
    for (int last = 0; !last; usleep(BETWEEN)) {
        last = probe_resumed();
        char sent = last ? 'q' : (char)('a' + atomic_load(&count->born) % 13), back = 0;
        int one = TRY(socket(AF_UNIX, SOCK_STREAM, 0));
        unix_connect(one, "storm.sock");
        CHECK(write(one, &sent, 1) == 1, "write");
        if (read(one, &back, 1) != 1 || back != sent) atomic_fetch_add(&count->wrong, 1);
        TRY(close(one));
        if (!last) atomic_fetch_add(&count->born, 1);
    }
    tree_ends(server, 0);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "processes";
    count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(count != MAP_FAILED, "mmap: %s", strerror(errno));
    if (strcmp(kind, "identities")) probe_ready();
    else identities();
    if (!strcmp(kind, "threads")) threads(NULL);
    else if (!strcmp(kind, "both")) threads(rain);
    else if (!strcmp(kind, "programs")) programs();
    else if (!strcmp(kind, "connections")) connections();
    else if (strcmp(kind, "identities")) storm(!strcmp(kind, "orphans"));
    CHECK(atomic_load(&count->born) > 0 && atomic_load(&count->born) == atomic_load(&count->ended),
          "%ld born, %ld ended", atomic_load(&count->born), atomic_load(&count->ended));
    CHECK(atomic_load(&count->wrong) == 0, "%ld ended wrongly", atomic_load(&count->wrong));
    return probe_pass();
}
