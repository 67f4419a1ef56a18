/* What programs may call (ckpt.h): each variant makes a checkpoint of its own, ends, and checks itself when it is recovered.
 * In the first life it ends with 3 when all was well; in the second with 0, after PASS. */
#include <ckpt.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/wait.h>
#include <unistd.h>

#define SAVED 3
#define CHECK(what)                                                                                     \
    do {                                                                                                \
        if (!(what)) {                                                                                  \
            printf("FAIL line %d: %s (%s)\n", __LINE__, #what, ckpt_error());                           \
            fflush(stdout);                                                                             \
            _exit(1);                                                                                   \
        }                                                                                               \
    } while (0)

static int saved(void) { return SAVED; }

static int pass(void)
{
    puts("PASS");
    return 0;
}

/* The result tells which life this is, in any thread, with all registers and the stack as they were. */
static int here(void)
{
    double sum = 0.1;
    volatile int calls = 0;
    for (int at = 0; at < 3; at++) {
        calls = calls + 1;
        int life = ckpt_here();
        CHECK(life == 0 || life == 1);
        sum += 0.1;
        if (life == 1) {
            CHECK(calls == 3 && at == 2 && sum > 0.39 && sum < 0.41);
            CHECK(ckpt_here() == 0);
            return pass();
        }
    }
    return saved();
}

static void *one_of_many(void *count)
{
    for (int at = 0; at < 4; at++) {
        int life = ckpt_here();
        CHECK(life == 0 || life == 1);
        __atomic_add_fetch((int *)count, 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

/* Several threads at once: each gets its turn. */
static int threads(void)
{
    pthread_t all[3];
    int count = 0;
    for (int at = 0; at < 3; at++)
        CHECK(!pthread_create(&all[at], NULL, one_of_many, &count));
    for (int at = 0; at < 3; at++)
        CHECK(!pthread_join(all[at], NULL));
    CHECK(count == 12);
    return ckpt_here() == 1 ? pass() : saved();
}

#define PAGES 64
#define PAGE 4096

static unsigned char *pages(void)
{
    unsigned char *at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    memset(at, 7, PAGES * PAGE);
    return at;
}

static int all_are(const unsigned char *from, const unsigned char *to, int byte)
{
    while (from < to)
        if (*from++ != byte)
            return 0;
    return 1;
}

/* Whole pages come back as zeros, all others as they were; what was given back and mapped anew is kept. */
static int exclude(void)
{
    unsigned char *at = pages(), *again = pages();
    CHECK(ckpt_exclude(at + 1, 10 * PAGE) == 0);
    CHECK(ckpt_exclude(at + 20 * PAGE, 20 * PAGE) == 0);
    CHECK(ckpt_include(at + 30 * PAGE + 5, 1) == 0);
    CHECK(ckpt_exclude(at + 100, 100) == 0);
    CHECK(ckpt_exclude(again, PAGES * PAGE) == 0);
    CHECK(munmap(again, PAGES * PAGE) == 0);
    CHECK(ckpt_exclude(again, PAGES * PAGE) == -ENOMEM && strstr(ckpt_error(), "mapped"));
    CHECK(mmap(again, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == again);
    memset(again, 9, PAGES * PAGE);
    CHECK(ckpt_exclude(at, (size_t)-1) == -EINVAL);
    int life = ckpt_here();
    CHECK(life == 0 || life == 1);
    CHECK(all_are(again, again + PAGES * PAGE, 9));
    CHECK(all_are(at, at + PAGE, 7));
    CHECK(all_are(at + PAGE, at + 10 * PAGE, life ? 0 : 7));
    CHECK(all_are(at + 10 * PAGE, at + 20 * PAGE, 7));
    CHECK(all_are(at + 20 * PAGE, at + 30 * PAGE, life ? 0 : 7));
    CHECK(all_are(at + 30 * PAGE, at + 31 * PAGE, 7));
    CHECK(all_are(at + 31 * PAGE, at + 40 * PAGE, life ? 0 : 7));
    CHECK(all_are(at + 40 * PAGE, at + PAGES * PAGE, 7));
    return life ? pass() : saved();
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char order[64];
static int how_it_went = 99;
static pthread_t caller;

static void before(void *name)
{
    /* In the normal course of a thread: also one that was interrupted in malloc could not hinder this. */
    char *text = strdup(name);
    CHECK(text && ckpt_here() == -EDEADLK);
    strcat(order, text);
    free(text);
    if (!strcmp(name, "b"))
        CHECK(!pthread_mutex_lock(&lock));
}

static void after(int how, void *name)
{
    strcat(order, name);
    how_it_went = how;
    caller = pthread_self();
    if (!strcmp(name, "x"))
        CHECK(!pthread_mutex_unlock(&lock));
}

static void register_all(void)
{
    CHECK(ckpt_on_checkpoint(before, "a") == 0);
    CHECK(ckpt_on_checkpoint(before, "b") == 0);
    CHECK(ckpt_on_checkpoint(before, "gone") == 0);
    CHECK(ckpt_on_resume(after, "x") == 0);
    CHECK(ckpt_on_resume(after, "y") == 0);
    CHECK(ckpt_forget("gone") == 0 && ckpt_forget("gone") == -ENOENT);
    CHECK(ckpt_on_checkpoint(NULL, NULL) == -EINVAL);
}

/* The last registered first before, the first registered first after; the caller's thread calls them. */
static int callbacks(void)
{
    register_all();
    int life = ckpt_here();
    CHECK(life == 0 || life == 1);
    CHECK(!strcmp(order, "baxy") && how_it_went == life && pthread_equal(caller, pthread_self()));
    CHECK(!pthread_mutex_trylock(&lock));
    return life ? pass() : saved();
}

/* The same when a signal asks, while the thread that gets it never leaves malloc. */
static int callbacks_by_signal(void)
{
    register_all();
    kill(getpid(), SIGFREEZE);
    for (;;) {
        for (int at = 0; at < 1000; at++)
            free(malloc(at));
        pthread_mutex_lock(&lock);
        int how = how_it_went;
        pthread_mutex_unlock(&lock);
        if (how == 99 || strlen(order) < 4)
            continue;
        CHECK(!strcmp(order, "baxy") && !pthread_equal(caller, pthread_self()));
        CHECK(how == 0 || how == 1);
        return how ? pass() : saved();
    }
}

static volatile sig_atomic_t stop;

static void *asks(void *nothing)
{
    (void)nothing;
    for (int at = 0; at < 20; at++) {
        kill(getpid(), SIGFREEZE);
        usleep(1000);
    }
    stop = 1;
    return NULL;
}

/* Requests that come in a section are put off until it is left. */
static int sections(void)
{
    pthread_t thread;
    CHECK(ckpt_enable() == -EPERM && *ckpt_error());
    CHECK(ckpt_disable() == 0);
    CHECK(ckpt_here() == -EDEADLK);
    CHECK(!pthread_create(&thread, NULL, asks, NULL));
    pid_t begun = getpid();
    for (;;) {
        CHECK(ckpt_disable() == 0);
        CHECK(ckpt_enable() == 0);
        usleep(100);
        if (stop)
            break;
        CHECK(access("store/latest", F_OK) != 0);
    }
    CHECK(!pthread_join(thread, NULL));
    CHECK(getpid() == begun && access("store/latest", F_OK) != 0);
    /* All of them are one request, which is served here. */
    CHECK(ckpt_enable() == 0);
    if (getpid() != begun)
        return pass();
    for (int at = 0; at < 5000 && access("store/latest", F_OK) != 0; at++)
        usleep(1000);
    CHECK(access("store/latest", F_OK) == 0);
    return saved();
}

/* Whoever has disabled checkpoints is waited for. */
static void *in_section(void *inside)
{
    while (!stop) {
        CHECK(ckpt_disable() == 0);
        pid_t begun = getpid();
        *(volatile int *)inside += 1;
        usleep(300);
        /* In another life this would be another process. */
        CHECK(getpid() == begun);
        CHECK(ckpt_enable() == 0);
        usleep(30);
    }
    return NULL;
}

static int waits(void)
{
    pthread_t thread;
    static int inside;
    CHECK(!pthread_create(&thread, NULL, in_section, &inside));
    while (!*(volatile int *)&inside)
        usleep(10);
    for (int at = 0; at < 10; at++) {
        int life = ckpt_here();
        CHECK(life == 0 || life == 1);
        if (life) {
            stop = 1;
            CHECK(!pthread_join(thread, NULL));
            return pass();
        }
    }
    return saved();
}

/* What cannot be captured is said, and the program goes on. */
static int refused(void)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    if (!child) {
        close(ends[1]);
        _exit(read(ends[0], &child, 1) != 0);
    }
    register_all();
    CHECK(ckpt_here() == -ENOTSUP);
    CHECK(strstr(ckpt_error(), "child"));
    CHECK(how_it_went == -ENOTSUP && !strcmp(order, "baxy"));
    CHECK(access("store/latest", F_OK) != 0);
    close(ends[1]);
    CHECK(waitpid(child, NULL, 0) == child);
    close(ends[0]);
    *order = 0;
    return ckpt_here() == 1 ? pass() : saved();
}

/* What nothing shows from inside is refused, too, once the program has it. */
static int hidden(void)
{
    int life = ckpt_here();
    if (life == 1)
        return pass();
    CHECK(life == 0);
    int id = semget(IPC_PRIVATE, 1, 0600);
    CHECK(id >= 0 && semctl(id, 0, IPC_RMID) == 0);
    CHECK(ckpt_here() == -ENOTSUP && strstr(ckpt_error(), "System V semaphores"));
    return saved();
}

/* A child has its parent's sections; it makes no image, which would be taken for one of the program. */
static int child(void)
{
    register_all();
    CHECK(ckpt_disable() == 0);
    pid_t one = fork();
    if (!one) {
        CHECK(ckpt_here() == -EDEADLK);
        CHECK(ckpt_enable() == 0);
        CHECK(ckpt_here() == -ECHILD && strstr(ckpt_error(), "child of the program") && !*order);
        CHECK(access("store/latest", F_OK) != 0);
        _exit(0);
    }
    int status;
    CHECK(waitpid(one, &status, 0) == one && !status);
    CHECK(ckpt_enable() == 0);
    return ckpt_here() == 1 ? pass() : saved();
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(void);
    } all[] = {
        {"here", here},         {"threads", threads}, {"exclude", exclude}, {"callbacks", callbacks},
        {"signal", callbacks_by_signal}, {"sections", sections}, {"waits", waits},
        {"refused", refused}, {"child", child}, {"hidden", hidden},
    };
    for (size_t at = 0; argc > 1 && at < sizeof all / sizeof *all; at++)
        if (!strcmp(argv[1], all[at].name))
            return all[at].run();
    return 2;
}
