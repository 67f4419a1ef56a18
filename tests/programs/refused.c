/* Things that must be refused by name.
   argument: child-socket (a child has one), traced (a child traces another one), socket, reading (a regular file held open for reading: not refused), sharer (a process that is no
   child has the same memory), memory-file (one maps a memfd too), ldt (modify_ldt), keyring, secret (memfd_secret), aio (a thread
   waits for a request that is in flight), other-process and ended-thread
   (open files of /proc that tell of those), permission (fanotify), queued (events of inotify); what is no stream to the outside, though
   it is a standard stream: socket-at-0 (it listens), datagrams-at-0, ptmx-at-0; unix sockets: unix-outside (the other side is another
   program's), unix-shared (another program has it too), unix-waiting (a connection from another program waits to be accepted),
   unix-early (data was sent through one that was not accepted yet), unix-early-closed (and it was closed), unix-oob (data out of band),
   unix-pidfd (a message that tells of its sender by a pidfd), unix-pidfd-sent (a pidfd of the program itself is on its way). */
#include "probe.h"
#include <arpa/inet.h>
#include <asm/ldt.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

/* Processes with the memory of this one: they must not touch what threads have of their own. */
static char stacks[2][65536];
static volatile pid_t sharer;

__attribute__((noreturn)) static int share(void *none) {
    (void)none;
    for (;;) pause();
}

__attribute__((noreturn)) static int share_from_afar(void *none) {
    (void)none;
    sharer = clone(share, stacks[1] + sizeof stacks[1], CLONE_VM | SIGCHLD, NULL);
    _exit(0);
}

/* Not every kernel knows everything. */
#define GET(call) ({ long got_ = (call); if (got_ == -1) skip("%s: %s", #call, strerror(errno)); (int)got_; })

static void *open_own(void *none) {
    TRY(open("/proc/thread-self/comm", O_RDONLY));
    return none;
}

static int share_file(void) {
    int fd = TRY(memfd_create("shared", MFD_CLOEXEC));
    TRY(ftruncate(fd, 4096));
    return fd;
}

static void put_at_0(int fd) {
    TRY(dup2(fd, 0));
    if (fd != 0) TRY(close(fd));
}

static void standard_input(const char *kind) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr *address = (struct sockaddr *)&here;
    if (!strcmp(kind, "socket-at-0")) {
        put_at_0(GET(socket(AF_INET, SOCK_STREAM, 0)));
        GET(bind(0, address, sizeof here));
        TRY(listen(0, 1));
    }
    if (!strcmp(kind, "datagrams-at-0")) {
        put_at_0(GET(socket(AF_INET, SOCK_DGRAM, 0)));
        here.sin_port = htons(9);
        GET(connect(0, address, sizeof here));
    }
    if (!strcmp(kind, "ptmx-at-0")) put_at_0(GET(posix_openpt(O_RDWR | O_NOCTTY)));
}

static aio_context_t context;
static pthread_t waiter;
static int ends[2], told;

static void *wait_for_event(void *none) {
    struct io_event event;
    long got = syscall(SYS_io_getevents, context, 1L, 1L, &event, NULL);
    CHECK(got == 1 && event.data == 7 && __atomic_load_n(&told, __ATOMIC_SEQ_CST), "io_getevents %ld: %s", got, strerror(errno));
    return none;
}

static void wait_in_flight(void) {
    GET(syscall(SYS_io_setup, 1, &context));
    TRY(pipe(ends));
    struct iocb request = {.aio_lio_opcode = IOCB_CMD_POLL, .aio_fildes = (uint32_t)ends[0], .aio_buf = POLLIN, .aio_data = 7};
    struct iocb *all[1] = {&request};
    GET(syscall(SYS_io_submit, context, 1L, all));
    PTRY(pthread_create(&waiter, NULL, wait_for_event, NULL));
    usleep(100000);
}

/* A process that is not below this one, with the descriptors there are now. */
static pid_t go_afar(void) {
    volatile pid_t *told = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(told != MAP_FAILED, "mmap");
    pid_t between = TRY(fork());
    if (between == 0) {
        pid_t afar = fork();
        if (afar == 0) return 0;
        *told = afar;
        _exit(0);
    }
    CHECK(waitpid(between, NULL, 0) == between && *told > 0, "fork");
    pid_t afar = *told;
    TRY(munmap((void *)told, 4096));
    return afar;
}

static void unix_sockets(const char *kind) {
    int pair[2], client;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "rewake-refused-%d", getpid());
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    int listener = TRY(socket(AF_UNIX, SOCK_STREAM, 0));
    TRY(bind(listener, (struct sockaddr *)&address, sizeof address));
    TRY(listen(listener, 5));
    if (!strcmp(kind, "unix-outside") || !strcmp(kind, "unix-shared") || !strcmp(kind, "unix-waiting")) {
        sharer = go_afar();
        if (sharer == 0) {
            TRY(close(pair[0]));
            if (strcmp(kind, "unix-shared")) TRY(close(listener));
            client = TRY(socket(AF_UNIX, SOCK_STREAM, 0));
            if (!strcmp(kind, "unix-waiting")) TRY(connect(client, (struct sockaddr *)&address, sizeof address));
            CHECK(write(pair[1], "x", 1) == 1, "write");
            if (strcmp(kind, "unix-outside")) TRY(close(pair[1]));
            for (;;) pause();
        }
        char byte;
        CHECK(read(pair[0], &byte, 1) == 1, "the process afar failed");
        TRY(close(pair[1]));
        if (strcmp(kind, "unix-outside")) TRY(close(pair[0]));
    }
    if (!strncmp(kind, "unix-early", 10)) {
        client = TRY(socket(AF_UNIX, SOCK_STREAM, 0));
        TRY(connect(client, (struct sockaddr *)&address, sizeof address));
        CHECK(write(client, "early", 5) == 5, "write");
        if (!strcmp(kind, "unix-early-closed")) TRY(close(client));
    }
    if (!strcmp(kind, "unix-oob")) GET(send(pair[0], "x", 1, MSG_OOB));
    if (!strcmp(kind, "unix-pidfd-sent")) {
        int pidfd = GET((int)syscall(SYS_pidfd_open, getpid(), 0));
        union {
            char bytes[CMSG_SPACE(sizeof pidfd)];
            struct cmsghdr aligned;
        } control = {0};
        struct iovec part = {.iov_base = "x", .iov_len = 1};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
        *CMSG_FIRSTHDR(&message) = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof pidfd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &pidfd, sizeof pidfd);
        GET(sendmsg(pair[0], &message, 0));
        TRY(close(pidfd));
    }
    if (!strcmp(kind, "unix-pidfd")) {
        GET(setsockopt(pair[0], SOL_SOCKET, 76, &(int){1}, sizeof(int)));
        CHECK(write(pair[1], "x", 1) == 1, "write");
    }
}

static void set_up(const char *kind) {
    if (!strncmp(kind, "unix-", 5)) unix_sockets(kind);
    if (!strcmp(kind, "permission")) {
        GET(mkdir("guarded", 0700));
        GET(fanotify_mark(GET(fanotify_init(FAN_CLASS_CONTENT, O_RDONLY)), FAN_MARK_ADD, FAN_OPEN_PERM, AT_FDCWD, "guarded"));
    }
    if (!strcmp(kind, "queued")) {
        TRY(inotify_add_watch(TRY(inotify_init1(0)), ".", IN_CREATE));
        TRY(mkdir("created", 0700));
    }
    if (!strcmp(kind, "other-process")) {
        char name[64];
        snprintf(name, sizeof name, "/proc/%d/stat", getppid());
        TRY(open(name, O_RDONLY));
    }
    if (!strcmp(kind, "ended-thread")) {
        pthread_t thread;
        PTRY(pthread_create(&thread, NULL, open_own, NULL));
        PTRY(pthread_join(thread, NULL));
    }
    if (!strcmp(kind, "sharer")) {
        pid_t between = GET(clone(share_from_afar, stacks[0] + sizeof stacks[0], CLONE_VM | SIGCHLD, NULL));
        CHECK(waitpid(between, NULL, 0) == between && sharer > 0, "clone");
    }
    if (!strcmp(kind, "memory-file")) {
        volatile pid_t *told = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, share_file(), 0);
        CHECK(told != MAP_FAILED, "mmap");
        pid_t between = TRY(fork());
        if (between == 0) {
            pid_t afar = fork();
            if (afar == 0) for (;;) pause();
            *told = afar;
            _exit(0);
        }
        CHECK(waitpid(between, NULL, 0) == between && *told > 0, "fork");
        sharer = *told;
    }
    if (!strcmp(kind, "ldt")) {
        struct user_desc entry = {.entry_number = 3, .base_addr = 4096, .limit = 4095, .seg_32bit = 1, .useable = 1};
        GET(syscall(SYS_modify_ldt, 1, &entry, sizeof entry));
    }
    if (!strcmp(kind, "keyring")) GET(syscall(SYS_keyctl, 0, -2, 1));
    if (!strcmp(kind, "aio")) {
        wait_in_flight();
    }
    if (!strcmp(kind, "secret")) {
        int fd = GET(syscall(447, 0));
        GET(ftruncate(fd, 4096));
        CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED, "mmap");
        GET(close(fd));
    }
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "";
    pid_t child = 0;
    int fd = -1;
    pid_t second = 0;
    if (!strcmp(kind, "child-socket") || !strcmp(kind, "traced")) {
        int ready[2];
        char byte;
        TRY(pipe(ready));
        child = TRY(fork());
        if (child == 0) {
            TRY(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0));
            for (;;) pause();
        }
        second = TRY(fork());
        if (second == 0) {
            TRY(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0));
            if (!strcmp(kind, "child-socket")) GET(socket(AF_INET, SOCK_STREAM, 0));
            else GET(ptrace(PTRACE_SEIZE, child, NULL, NULL));
            GET(write(ready[1], "x", 1));
            for (;;) pause();
        }
        TRY(close(ready[1]));
        CHECK(read(ready[0], &byte, 1) == 1, "the second child failed");
        TRY(close(ready[0]));
    }
    if (!strcmp(kind, "socket")) {
        TRY(fd = socket(AF_INET, SOCK_STREAM, 0));
        struct sockaddr none = {.sa_family = AF_UNSPEC};
        (void)connect(fd, &none, sizeof none);
    }
    if (!strcmp(kind, "reading")) {
        fd = TRY(open("input", O_RDONLY));
        char byte;
        CHECK(read(fd, &byte, 1) == 1, "read");
    }
    set_up(kind);
    standard_input(kind);
    probe_ready();
    while (!probe_resumed()) usleep(5000);
    if (waiter) {
        __atomic_store_n(&told, 1, __ATOMIC_SEQ_CST);
        CHECK(write(ends[1], "x", 1) == 1, "write");
        PTRY(pthread_join(waiter, NULL));
    }
    if (sharer) TRY(kill(sharer, SIGKILL));
    for (pid_t one = second; one; one = one == second ? child : 0) {
        TRY(kill(one, SIGKILL));
        CHECK(waitpid(one, NULL, 0) == one, "waitpid: %s", strerror(errno));
    }
    return probe_pass();
}
