/* Who the program is and what it may (argument: which). All by the system calls themselves: libc would change all threads.
   dropped: another user and group with supplementary groups, few capabilities in all five sets, secure bits;
   threads: each thread is somebody else;
   plain: another user without any right; exposed: the same, but it may be traced by its user. */
#include "probe.h"
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>

#define NEED(call) do { if ((long)(call) == -1) { if (errno == EPERM) skip("%s is not permitted here", #call); fail("%s: %s", #call, strerror(errno)); } } while (0)
#define BIT(capability) (1u << (capability))

static volatile int stop;
static pthread_barrier_t barrier;

static void capabilities(uint32_t effective, uint32_t permitted, uint32_t inheritable) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{effective, permitted, inheritable}, {0, 0, 0}};
    NEED(syscall(SYS_capset, &header, data));
}

/* What the kernel shows of this thread. */
static void identity(char *out, size_t size) {
    char text[4096], *line, *rest = text;
    int fd = TRY(open("/proc/thread-self/status", O_RDONLY));
    ssize_t length = TRY(read(fd, text, sizeof text - 1));
    TRY(close(fd));
    text[length] = 0;
    size_t used = 0;
    while ((line = strsep(&rest, "\n")))
        if (!strncmp(line, "Uid", 3) || !strncmp(line, "Gid", 3) || !strncmp(line, "Groups", 6) || !strncmp(line, "Cap", 3) || !strncmp(line, "NoNewPrivs", 10))
            used += (size_t)snprintf(out + used, size - used, "%s ", line);
    int death = -1;
    TRY(prctl(PR_GET_PDEATHSIG, &death, 0, 0, 0));
    snprintf(out + used, size - used, "bits %d keep %d death %d dumpable %d", prctl(PR_GET_SECUREBITS, 0, 0, 0, 0), prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0), death, prctl(PR_GET_DUMPABLE, 0, 0, 0, 0));
}

static void become(uid_t real, uid_t effective, uid_t saved, uid_t files) {
    gid_t groups[] = {1000, 44, 7};
    NEED(syscall(SYS_setgroups, 3, groups));
    NEED(syscall(SYS_setresgid, real + 1, effective + 1, saved + 1));
    syscall(SYS_setfsgid, files + 1);
    NEED(syscall(SYS_setresuid, real, effective, saved));
    syscall(SYS_setfsuid, files);
}

static void dropped(void) {
    NEED(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT, 0, 0, 0));
    NEED(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE, 0, 0, 0));
    NEED(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
    become(1000, 1000, 1000, 1000);
    /* Still able to find the file it waits for. */
    uint32_t some = BIT(CAP_NET_RAW) | BIT(CAP_DAC_READ_SEARCH) | BIT(CAP_CHOWN) | BIT(CAP_SETPCAP);
    capabilities(some, some, BIT(CAP_NET_RAW) | BIT(CAP_KILL));
    NEED(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0));
    NEED(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_KEEP_CAPS, 0, 0, 0));
    some &= ~BIT(CAP_SETPCAP);
    capabilities(some & ~BIT(CAP_NET_RAW), some, BIT(CAP_NET_RAW) | BIT(CAP_KILL));
    NEED(prctl(PR_SET_PDEATHSIG, SIGUSR1, 0, 0, 0));
}

static void *somebody(void *argument) {
    int me = (int)(intptr_t)argument;
    char before[2048], now[2048];
    if (me == 0) become(1000, 1001, 1002, 1003);
    if (me == 1) {
        NEED(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
        become(2000, 0, 2000, 2001);
        capabilities(BIT(CAP_CHOWN), BIT(CAP_CHOWN) | BIT(CAP_FOWNER), 0);
    }
    if (me == 2) NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (me == 3) NEED(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED, 0, 0, 0));
    if (me == 4) NEED(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME, 0, 0, 0));
    if (me % 2 == 0) NEED(prctl(PR_SET_PDEATHSIG, SIGUSR2, 0, 0, 0));
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    identity(before, sizeof before);
    pthread_barrier_wait(&barrier);
    while (!stop) { }
    identity(now, sizeof now);
    CHECK(!strcmp(before, now), "thread %d was %s, is %s", me, before, now);
    return NULL;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "dropped";
    char before[2048], now[2048];
    pthread_t threads[5];
    int count = strcmp(kind, "threads") ? 0 : 5;
    if (getuid() != 0) skip("only root can become somebody else");
    PTRY(pthread_barrier_init(&barrier, NULL, (unsigned)count + 1));
    for (intptr_t i = 0; i < count; i++) PTRY(pthread_create(&threads[i], NULL, somebody, (void *)i));
    pthread_barrier_wait(&barrier);
    if (!strcmp(kind, "dropped")) dropped();
    if (!strcmp(kind, "plain") || !strcmp(kind, "exposed")) {
        become(1000, 1000, 1000, 1000);
        if (access(probe_go, F_OK) == -1 && errno == EACCES) skip("user 1000 cannot see the folder of the test");
    }
    /* Another user's process cannot be looked into, unless it says so. */
    if (!strcmp(kind, "exposed") || count) TRY(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    pthread_barrier_wait(&barrier);
    identity(before, sizeof before);
    pthread_barrier_wait(&barrier);
    if (!strcmp(kind, "plain")) CHECK(strstr(before, "dumpable 0"), "dumpable: %s", before);
    if (!strcmp(kind, "dropped")) CHECK(strstr(before, "death 10") && strstr(before, "CapAmb:\t0000000000002000"), "not set up: %s", before);
    probe_ready();
    probe_wait();
    identity(now, sizeof now);
    CHECK(!strcmp(before, now), "was %s, is %s", before, now);
    stop = 1;
    for (int i = 0; i < count; i++) PTRY(pthread_join(threads[i], NULL));
    if (!strcmp(kind, "plain")) CHECK(setuid(0) == -1 && setresuid((uid_t)-1, 0, (uid_t)-1) == -1, "it can become root again");
    return probe_pass();
}
