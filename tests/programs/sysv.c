/* System V IPC of one process and of a tree. argument: what. Everything is removed again at the end. */
#include "tree.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#define SIZE (5 * PAGE + 100)
#define WHOLE (6 * PAGE)

static int key_of(int which) { return 0x52570000 + (getpid() & 0x7fff) + (which << 16); }

static struct shmid_ds segment(int id) {
    struct shmid_ds state;
    TRY(shmctl(id, IPC_STAT, &state));
    return state;
}

static void same_owner(const struct ipc_perm *before, const struct ipc_perm *after, const char *what) {
    CHECK(before->__key == after->__key, "%s: key %x, was %x", what, after->__key, before->__key);
    CHECK(before->uid == after->uid && before->gid == after->gid, "%s: owner %u", what, after->uid);
    CHECK(before->cuid == after->cuid && before->cgid == after->cgid, "%s: creator %u", what, after->cuid);
    CHECK((before->mode & 0777) == (after->mode & 0777), "%s: mode %o, was %o", what, after->mode, before->mode);
}

/* Attached often: all of it, a part, read-only, and once more by a key. */
static void shm(void) {
    int id = TRY(shmget(key_of(1), SIZE, IPC_CREAT | IPC_EXCL | 0640));
    char *first = TRY(shmat(id, NULL, 0)), *second = TRY(shmat(id, NULL, 0)), *only = TRY(shmat(id, NULL, SHM_RDONLY));
    char *place = probe_map(WHOLE, PROT_NONE, MAP_PRIVATE);
    char *third = TRY(shmat(id, place, SHM_REMAP));
    CHECK(third == place, "SHM_REMAP");
    TRY(munmap(third, 2 * PAGE));
    TRY(mprotect(third + 3 * PAGE, PAGE, PROT_READ));
    int empty = TRY(shmget(key_of(2), 3 * PAGE, IPC_CREAT | IPC_EXCL | 0600));
    char *moment = TRY(shmat(empty, NULL, 0));
    strcpy(moment + 2 * PAGE, "nobody has it attached");
    TRY(shmdt(moment));
    probe_fill(first + PAGE, PAGE, 7);
    struct shmid_ds before = segment(id), empty_before = segment(empty);
    probe_ready();
    probe_wait();
    struct shmid_ds after = segment(id), empty_after = segment(empty);
    same_owner(&before.shm_perm, &after.shm_perm, "segment");
    same_owner(&empty_before.shm_perm, &empty_after.shm_perm, "segment that nobody has attached");
    CHECK(after.shm_segsz == SIZE && before.shm_nattch == after.shm_nattch, "%zu bytes, %lu attachments, were %lu",
          after.shm_segsz, after.shm_nattch, before.shm_nattch);
    CHECK(empty_after.shm_nattch == 0 && empty_after.shm_segsz == 3 * PAGE, "attached to the empty one");
    probe_zero(first, PAGE, "first page");
    probe_same(second + PAGE, PAGE, 7, "second attachment");
    probe_same(only + PAGE, PAGE, 7, "read-only attachment");
    strcpy(second + 2 * PAGE, "written");
    CHECK(!strcmp(third + 2 * PAGE, "written") && !strcmp(only + 2 * PAGE, "written"), "they are not the same memory");
    CHECK(probe_faults(only, 1) && mprotect(only, PAGE, PROT_READ | PROT_WRITE) == -1, "read-only can be written");
    CHECK(probe_faults(third + 3 * PAGE, 1) && !probe_faults(third + 4 * PAGE, 1), "protection");
    TRY(mprotect(third + 3 * PAGE, PAGE, PROT_READ | PROT_WRITE));
    CHECK(shmget(key_of(1), 0, 0) == id, "the key leads to another one");
    TRY(shmdt(first));
    TRY(shmdt(second));
    TRY(shmdt(only));
    TRY(munmap(third + 2 * PAGE, WHOLE - 2 * PAGE));
    CHECK(segment(id).shm_nattch == 0, "%lu attachments left", segment(id).shm_nattch);
    moment = TRY(shmat(empty, NULL, 0));
    CHECK(!strcmp(moment + 2 * PAGE, "nobody has it attached"), "content of the one that nobody had attached");
    TRY(shmdt(moment));
    TRY(shmctl(id, IPC_RMID, NULL));
    TRY(shmctl(empty, IPC_RMID, NULL));
}

/* Removed while it is attached: it goes with the last attachment, and no key leads to it. */
static void removed(void) {
    int id = TRY(shmget(key_of(1), SIZE, IPC_CREAT | IPC_EXCL | 0600));
    char *first = TRY(shmat(id, NULL, 0)), *second = TRY(shmat(id, NULL, 0));
    TRY(shmctl(id, IPC_RMID, NULL));
    probe_fill(first, 5 * PAGE, 3);
    CHECK(segment(id).shm_perm.mode & SHM_DEST, "it is not marked");
    probe_ready();
    probe_wait();
    probe_same(second, 5 * PAGE, 3, "content");
    CHECK(segment(id).shm_perm.mode & SHM_DEST, "it is not marked any more");
    CHECK(segment(id).shm_nattch == 2, "%lu attachments", segment(id).shm_nattch);
    CHECK(shmget(key_of(1), 0, 0) == -1 && errno == ENOENT, "its key leads to something");
    TRY(shmdt(first));
    TRY(shmdt(second));
    struct shmid_ds gone;
    CHECK(shmctl(id, IPC_STAT, &gone) == -1, "it is still there");
}

/* Huge pages. */
static void huge(void) {
    size_t bytes = 2 << 20;
    int id = shmget(IPC_PRIVATE, bytes, IPC_CREAT | SHM_HUGETLB | 0600);
    if (id == -1) skip("no huge pages: %s", strerror(errno));
    char *first = TRY(shmat(id, NULL, 0));
    TRY(shmctl(id, IPC_RMID, NULL));
    probe_fill(first, bytes, 9);
    probe_ready();
    probe_wait();
    probe_same(first, bytes, 9, "content");
    CHECK(segment(id).shm_nattch == 1 && segment(id).shm_segsz == bytes, "attachments");
    TRY(shmdt(first));
}

/* Shared by parent, child and grandchild, at different places. */
static void shm_tree(void) {
    int id = TRY(shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0600));
    volatile uint64_t *words = TRY(shmat(id, NULL, 0));
    words[0] = 1000;
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        volatile uint64_t *more = TRY(shmat(id, NULL, 0));
        TRY(shmdt((void *)words));
        const volatile uint64_t *only = TRY(shmat(id, NULL, SHM_RDONLY));
        more[512 + 1] = 77;
        tree_set_up();
        tree_wait(pid, parent);
        CHECK(more[0] == 1000 && only[0] == 1000, "the child's content");
        more[1] = 5;
        while (words && more[2] != 6) usleep(1000);
        CHECK(only[2] == 6, "read-only shows another");
        _exit(0);
    }
    tree_ready(1);
    struct shmid_ds before = segment(id);
    probe_wait();
    CHECK(segment(id).shm_nattch == before.shm_nattch && before.shm_nattch == 3, "%lu attachments", segment(id).shm_nattch);
    while (words[1] != 5) usleep(1000);
    CHECK(words[513] == 77, "what the child wrote");
    words[2] = 6;
    tree_ends(child, 0);
    CHECK(segment(id).shm_nattch == 1, "%lu attachments", segment(id).shm_nattch);
    TRY(shmctl(id, IPC_RMID, NULL));
}

static int value(int set, int semaphore) { return TRY(semctl(set, semaphore, GETVAL)); }

static void operate(int set, int semaphore, int number, int flags) {
    struct sembuf operation = {(unsigned short)semaphore, (short)number, (short)flags};
    int result;
    while ((result = semop(set, &operation, 1)) == -1 && errno == EINTR) fail("semop: interrupted");
    CHECK(result == 0, "semop %d %+d: %s", semaphore, number, strerror(errno));
}

/* Values, last process, owner, whether it was ever operated on. */
static void sem(void) {
    int set = TRY(semget(key_of(1), 5, IPC_CREAT | IPC_EXCL | 0620)), fresh = TRY(semget(IPC_PRIVATE, 2, 0600));
    TRY(semctl(set, 1, SETVAL, 32767));
    TRY(semctl(set, 3, SETVAL, 5));
    operate(set, 3, -2, 0);
    operate(set, 0, 9, 0);
    TRY(semctl(fresh, 1, SETVAL, 8));
    struct semid_ds before, after;
    TRY(semctl(set, 0, IPC_STAT, &before));
    probe_ready();
    probe_wait();
    TRY(semctl(set, 0, IPC_STAT, &after));
    same_owner(&before.sem_perm, &after.sem_perm, "set");
    CHECK(after.sem_nsems == 5 && after.sem_otime != 0, "%lu semaphores, last operation at %ld", after.sem_nsems, after.sem_otime);
    int expected[] = {9, 32767, 0, 3, 0};
    for (int i = 0; i < 5; i++) CHECK(value(set, i) == expected[i], "semaphore %d is %d", i, value(set, i));
    int pids[] = {getpid(), getpid(), 0, getpid(), 0};
    for (int i = 0; i < 5; i++) CHECK(semctl(set, i, GETPID) == pids[i], "last process of %d is %d", i, semctl(set, i, GETPID));
    CHECK(semget(key_of(1), 5, 0) == set, "the key leads to another one");
    TRY(semctl(fresh, 0, IPC_STAT, &after));
    CHECK(after.sem_otime == 0 && value(fresh, 1) == 8, "the other set was operated on at %ld", after.sem_otime);
    CHECK(semctl(fresh, 1, GETPID) == getpid() && semctl(fresh, 0, GETPID) == 0, "last processes of the other set");
    TRY(semctl(set, 0, IPC_RMID));
    TRY(semctl(fresh, 0, IPC_RMID));
}

/* What the end of a process gives back, by each of two. */
static void undo(void) {
    int set = TRY(semget(IPC_PRIVATE, 5, IPC_CREAT | 0600));
    TRY(semctl(set, 0, SETVAL, 10));
    TRY(semctl(set, 1, SETVAL, 1));
    operate(set, 0, -2, SEM_UNDO);
    operate(set, 4, 1, SEM_UNDO);
    tree_begin();
    pid_t child = tree_fork();
    if (child == 0) {
        pid_t pid = getpid(), parent = getppid();
        operate(set, 0, -3, SEM_UNDO);
        operate(set, 1, -1, SEM_UNDO);
        operate(set, 2, 300, SEM_UNDO);
        operate(set, 2, -100, SEM_UNDO);
        operate(set, 3, 5, SEM_UNDO);
        operate(set, 3, -5, SEM_UNDO);
        tree_set_up();
        tree_wait(pid, parent);
        _exit(0);
    }
    tree_ready(1);
    CHECK(value(set, 0) == 5 && value(set, 1) == 0 && value(set, 2) == 200, "values");
    probe_wait();
    CHECK(semctl(set, 0, GETPID) == child && semctl(set, 4, GETPID) == getpid(), "last processes %d and %d",
          semctl(set, 0, GETPID), semctl(set, 4, GETPID));
    tree_ends(child, 0);
    CHECK(value(set, 0) == 8, "its 3 were not given back: %d", value(set, 0));
    CHECK(value(set, 1) == 1, "the lock was not given back: %d", value(set, 1));
    CHECK(value(set, 2) == 0, "its 200 were not taken back: %d", value(set, 2));
    CHECK(value(set, 3) == 0, "nothing was to be given back: %d", value(set, 3));
    TRY(semctl(set, 0, IPC_RMID));
}

/* A child waits in semop, another in semtimedop, another for zero. */
static void waiters(void) {
    int set = TRY(semget(IPC_PRIVATE, 3, IPC_CREAT | 0600));
    TRY(semctl(set, 2, SETVAL, 4));
    tree_begin();
    pid_t all[3];
    for (int i = 0; i < 3; i++) {
        all[i] = tree_fork();
        if (all[i]) continue;
        tree_set_up();
        struct sembuf operation = {(unsigned short)i, i == 2 ? 0 : -2, 0};
        struct timespec limit = {600, 0};
        int result = i == 1 ? semtimedop(set, &operation, 1, &limit) : semop(set, &operation, 1);
        CHECK(result == 0, "semop: %s", strerror(errno));
        CHECK(probe_resumed(), "it waited for nothing");
        _exit(0);
    }
    tree_ready(3);
    while (semctl(set, 0, GETNCNT) != 1 || semctl(set, 1, GETNCNT) != 1 || semctl(set, 2, GETZCNT) != 1) usleep(1000);
    probe_wait();
    while (semctl(set, 0, GETNCNT) != 1 || semctl(set, 1, GETNCNT) != 1 || semctl(set, 2, GETZCNT) != 1) usleep(1000);
    operate(set, 0, 2, 0);
    operate(set, 1, 2, 0);
    operate(set, 2, -4, 0);
    for (int i = 0; i < 3; i++) tree_ends(all[i], 0);
    TRY(semctl(set, 0, IPC_RMID));
}

struct text { long type; char text[64]; };

static void send(int queue, long type, const char *words) {
    struct text message = {.type = type};
    strcpy(message.text, words);
    TRY(msgsnd(queue, &message, strlen(words), IPC_NOWAIT));
}

static void receive(int queue, long type, long wanted, const char *words) {
    struct text message = {0};
    ssize_t length = TRY(msgrcv(queue, &message, sizeof message.text, type, IPC_NOWAIT));
    CHECK(message.type == wanted && (size_t)length == strlen(words) && !memcmp(message.text, words, (size_t)length),
          "type %ld, %zd bytes: %s", message.type, length, message.text);
}

/* Messages with their types, in order. */
static void msg(void) {
    int queue = TRY(msgget(key_of(1), IPC_CREAT | IPC_EXCL | 0666)), empty = TRY(msgget(IPC_PRIVATE, 0600));
    send(queue, 3, "three");
    send(queue, 1, "");
    send(queue, 0x7fffffffffff, "large");
    send(queue, 3, "three again");
    send(empty, 1, "gone");
    receive(empty, 0, 1, "gone");
    struct msqid_ds before, after;
    TRY(msgctl(queue, IPC_STAT, &before));
    before.msg_qbytes = 1000;
    before.msg_perm.mode = 0640;
    TRY(msgctl(queue, IPC_SET, &before));
    probe_ready();
    probe_wait();
    TRY(msgctl(queue, IPC_STAT, &after));
    same_owner(&before.msg_perm, &after.msg_perm, "queue");
    CHECK(after.msg_qnum == 4 && after.msg_qbytes == 1000, "%lu messages, limit %lu", after.msg_qnum, after.msg_qbytes);
    CHECK(msgget(key_of(1), 0) == queue, "the key leads to another one");
    receive(queue, 3, 3, "three");
    receive(queue, 0, 1, "");
    receive(queue, 0, 0x7fffffffffff, "large");
    receive(queue, 0, 3, "three again");
    struct text none;
    CHECK(msgrcv(queue, &none, 8, 0, IPC_NOWAIT) == -1 && msgrcv(empty, &none, 8, 0, IPC_NOWAIT) == -1, "more came");
    TRY(msgctl(queue, IPC_RMID, NULL));
    TRY(msgctl(empty, IPC_RMID, NULL));
}

/* One child waits for a message of a type, another for room. */
static void msg_waiters(void) {
    int in = TRY(msgget(IPC_PRIVATE, IPC_CREAT | 0600)), out = TRY(msgget(IPC_PRIVATE, IPC_CREAT | 0600));
    struct msqid_ds state;
    TRY(msgctl(out, IPC_STAT, &state));
    state.msg_qbytes = 10;
    TRY(msgctl(out, IPC_SET, &state));
    send(in, 4, "not this one");
    send(out, 1, "0123456789");
    tree_begin();
    pid_t all[2];
    for (int i = 0; i < 2; i++) {
        all[i] = tree_fork();
        if (all[i]) continue;
        tree_set_up();
        struct text message = {.type = 2, .text = "late"};
        if (i == 0) {
            ssize_t length = TRY(msgrcv(in, &message, sizeof message.text, 5, 0));
            CHECK(length == 4 && !memcmp(message.text, "five", 4), "another message");
        } else {
            TRY(msgsnd(out, &message, 4, 0));
        }
        CHECK(probe_resumed(), "it waited for nothing");
        _exit(0);
    }
    tree_ready(2);
    probe_wait();
    send(in, 5, "five");
    tree_ends(all[0], 0);
    receive(out, 0, 1, "0123456789");
    tree_ends(all[1], 0);
    receive(out, 0, 2, "late");
    receive(in, 0, 4, "not this one");
    TRY(msgctl(in, IPC_RMID, NULL));
    TRY(msgctl(out, IPC_RMID, NULL));
}

/* Makes something with a key, for as long as it is wanted. */
static void take(const char *what, int key) {
    int flags = IPC_CREAT | IPC_EXCL | 0600;
    int id = TRY(!strcmp(what, "shm") ? shmget(key, SIZE, flags) : !strcmp(what, "sem") ? semget(key, 5, flags) : msgget(key, flags));
    probe_ready();
    while (!probe_resumed()) usleep(1000);
    TRY(!strcmp(what, "shm") ? shmctl(id, IPC_RMID, NULL) : !strcmp(what, "sem") ? semctl(id, 0, IPC_RMID) : msgctl(id, IPC_RMID, NULL));
}

/* Has another's segment attached. */
static void attach(int id) {
    char *other = TRY(shmat(id, NULL, SHM_RDONLY));
    probe_ready();
    while (!probe_resumed()) usleep(1000);
    TRY(shmdt(other));
}

int main(int argc, char **argv) {
    static const struct { const char *name; void (*run)(void); } all[] = {
        {"shm", shm}, {"removed", removed}, {"huge", huge}, {"shm-tree", shm_tree}, {"sem", sem}, {"undo", undo},
        {"waiters", waiters}, {"msg", msg}, {"msg-waiters", msg_waiters},
    };
    probe_start(argc, argv);
    if (argc > 4 && !strcmp(argv[2], "take")) {
        take(argv[3], atoi(argv[4]));
        return probe_pass();
    }
    if (argc > 3 && !strcmp(argv[2], "attach")) {
        attach(atoi(argv[3]));
        return probe_pass();
    }
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (argc > 2 && !strcmp(argv[2], all[i].name)) {
            all[i].run();
            return probe_pass();
        }
    fail("no such test");
}
