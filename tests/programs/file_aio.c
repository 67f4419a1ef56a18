/* Contexts of asynchronous I/O (io_setup): rings of different sizes, events that were not read yet in one (in the middle of its ring,
   and around its end), another that is empty, moved and read-only ones.
   argument: late (requests come to their end during the capture). */
#include "probe.h"
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#define FEW 3
#define AROUND 20

struct header { unsigned id, nr, head, tail, magic, compat, incompat, length; };

static char file_data[8192], buffers[FEW][512];
static int data;

static aio_context_t set_up(unsigned events) {
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, events, &context) == -1) skip("io_setup: %s", strerror(errno));
    return context;
}

static struct header look(aio_context_t context) { return *(volatile struct header *)context; }

static void submit(aio_context_t context, int command, void *buffer, size_t bytes, off_t at, uint64_t tag) {
    struct iocb request = {.aio_data = tag, .aio_lio_opcode = (uint16_t)command, .aio_fildes = (uint32_t)data,
        .aio_buf = (uint64_t)buffer, .aio_nbytes = bytes, .aio_offset = at};
    struct iocb *all[1] = {&request};
    CHECK(syscall(SYS_io_submit, context, 1L, all) == 1, "io_submit: %s", strerror(errno));
}

static long get(aio_context_t context, long least, long most, struct io_event *events) {
    struct timespec time = {5, 0};
    return syscall(SYS_io_getevents, context, least, most, events, &time);
}

static long waiting(aio_context_t context) {
    struct header ring = look(context);
    return ring.tail >= ring.head ? ring.tail - ring.head : ring.nr - ring.head + ring.tail;
}

/* Requests that are read again, until the ring's head is at that place. */
static void turn(aio_context_t context, unsigned place) {
    struct io_event event;
    while (look(context).head % look(context).nr != place) {
        submit(context, IOCB_CMD_PREAD, buffers[0], 1, 0, 0);
        CHECK(get(context, 1, 1, &event) == 1, "a turn of the ring");
    }
}

/* Events in order, with what was asked and what came of it: the last read of three is short, each of the others whole. */
static void fill(aio_context_t context, uint64_t tag, long count) {
    for (long i = 0; i < count; i++)
        submit(context, IOCB_CMD_PREAD, buffers[i % FEW], 100 + (size_t)i, i % 4 == 3 ? 8180 : i, tag + (uint64_t)i);
    for (int tries = 0; waiting(context) < count && tries < 500; tries++) usleep(10000);
    CHECK(waiting(context) == count, "%ld of %ld requests came to their end", waiting(context), count);
}

static void drain(aio_context_t context, uint64_t tag, long count, const char *what) {
    struct io_event events[64];
    CHECK(waiting(context) == count, "%s: %ld events are not read", what, waiting(context));
    for (long at = 0; at < count;) {
        long got = get(context, 1, count - at > 2 ? 2 : 64, events);
        CHECK(got >= 1, "%s: io_getevents %ld: %s", what, got, strerror(errno));
        for (long i = 0; i < got; i++, at++) {
            long wanted = at % 4 == 3 ? 12 : 100 + at;
            CHECK(events[i].data == tag + (uint64_t)at && events[i].res == wanted && events[i].res2 == 0,
                "%s: event %ld is %llx with %lld", what, at, events[i].data, events[i].res);
        }
    }
    CHECK(waiting(context) == 0, "%s: more events than there were", what);
}

static void work(aio_context_t context, const char *what) {
    char out[512], in[512];
    struct io_event event;
    probe_fill(out, sizeof out, 77);
    for (int i = 0; i < 300; i++) {
        submit(context, IOCB_CMD_PWRITE, out, sizeof out, 1024, 5);
        CHECK(get(context, 1, 1, &event) == 1 && event.data == 5 && event.res == (long)sizeof out, "%s: a write", what);
        submit(context, IOCB_CMD_PREAD, in, sizeof in, 1024, 6);
        CHECK(get(context, 1, 1, &event) == 1 && event.data == 6 && event.res == (long)sizeof in, "%s: a read", what);
        probe_same(in, sizeof in, 77, what);
        memset(in, 0, sizeof in);
    }
    CHECK(syscall(SYS_io_destroy, context) == 0, "%s: io_destroy: %s", what, strerror(errno));
    CHECK(get(context, 0, 1, &event) == -1 && errno == EINVAL, "%s: there after its end", what);
}

/* There is always a request in flight, that comes to its end while the program stands still, and tells an eventfd. */
static int late(void) {
    aio_context_t context = set_up(1);
    int timer = TRY(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), told = TRY(eventfd(0, EFD_NONBLOCK));
    struct itimerspec soon = {.it_value = {0, 30000000}};
    for (uint64_t round = 1, last = 0; !last || round < last + 3; round++) {
        TRY(timerfd_settime(timer, 0, &soon, NULL));
        struct iocb request = {.aio_data = round, .aio_lio_opcode = IOCB_CMD_POLL, .aio_fildes = (uint32_t)timer, .aio_buf = POLLIN,
            .aio_flags = IOCB_FLAG_RESFD, .aio_resfd = (uint32_t)told};
        struct iocb *all[1] = {&request};
        if (syscall(SYS_io_submit, context, 1L, all) != 1) skip("IOCB_CMD_POLL: %s", strerror(errno));
        if (round == 1) probe_ready();
        struct pollfd one = {.fd = told, .events = POLLIN};
        CHECK(poll(&one, 1, 5000) == 1, "round %lu: the eventfd was not told", round);
        uint64_t count = 0;
        CHECK(read(told, &count, 8) == 8 && count == 1, "round %lu: told %lu times", round, count);
        struct io_event event;
        CHECK(get(context, 1, 1, &event) == 1 && event.data == round && event.res == POLLIN, "round %lu: its event", round);
        if (!last && probe_resumed()) last = round;
    }
    return probe_pass();
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    if (argc > 2 && !strcmp(argv[2], "late")) return late();
    data = TRY(open("data", O_RDWR | O_CREAT | O_TRUNC, 0600));
    probe_fill(file_data, sizeof file_data, 3);
    CHECK(write(data, file_data, sizeof file_data) == (ssize_t)sizeof file_data, "write");
    aio_context_t small = set_up(1), large = set_up(3000), around = set_up(200), still = set_up(10), moved = set_up(9);
    unsigned sizes[] = {look(small).nr, look(large).nr, look(around).nr};
    CHECK(sizes[0] < sizes[1] && sizes[1] != sizes[2], "rings of %u, %u, %u", sizes[0], sizes[1], sizes[2]);
    turn(small, 5);
    fill(small, 1000, FEW);
    turn(around, look(around).nr - AROUND / 2);
    fill(around, 2000, AROUND);
    CHECK(look(around).tail < look(around).head, "not around the end");
    TRY(mprotect((void *)still, 4096, PROT_READ));
    size_t bytes = 32 * (size_t)(look(moved).nr + 1);
    void *place = probe_map(bytes, PROT_NONE, MAP_PRIVATE);
    CHECK(mremap((void *)moved, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place, "mremap: %s", strerror(errno));
    moved = (aio_context_t)place;
    fill(moved, 3000, 1);
    struct header before[] = {look(small), look(large), look(around), look(still), look(moved)};
    probe_ready();
    probe_wait();
    aio_context_t all[] = {small, large, around, still, moved};
    for (int i = 0; i < 5; i++) {
        struct header now = look(all[i]);
        CHECK(now.nr == before[i].nr && now.head == before[i].head && now.tail == before[i].tail && now.magic == before[i].magic,
            "ring %d: %u events from %u to %u", i, now.nr, now.head, now.tail);
    }
    CHECK(probe_faults((char *)still + 64, 1) && !probe_faults((char *)still + 64, 0), "the read-only ring");
    drain(small, 1000, FEW, "the small one");
    drain(large, 0, 0, "the large one");
    drain(around, 2000, AROUND, "the one around its end");
    drain(moved, 3000, 1, "the moved one");
    TRY(mprotect((void *)still, 4096, PROT_READ | PROT_WRITE));
    work(small, "the small one");
    work(large, "the large one");
    work(around, "the one around its end");
    work(still, "the read-only one");
    work(moved, "the moved one");
    return probe_pass();
}
