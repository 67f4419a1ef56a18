/* The alternate signal stack. argument: used (after the resume), inside (a handler on it at the checkpoint),
   nested (a handler in a handler). */
#include "probe.h"

static char stack[65536];
static volatile int waits, where_on_stack, inner_done;

static int on_stack(void) {
    char here;
    return &here >= stack && &here < stack + sizeof stack;
}

static void handler(int signal) {
    where_on_stack = on_stack();
    volatile char frame[4096];
    memset((char *)frame, signal, sizeof frame);
    if (waits) {
        probe_ready();
        probe_wait();
    }
    for (unsigned i = 0; i < sizeof frame; i++) CHECK(frame[i] == signal, "frame of the handler");
    CHECK(on_stack(), "the handler lost its stack");
}

static void outer(int signal) {
    raise(SIGUSR1);
    inner_done = signal;
    sigset_t now;
    sigprocmask(SIG_SETMASK, NULL, &now);
    CHECK(sigismember(&now, signal) && !sigismember(&now, SIGUSR1), "mask in the outer handler");
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "used";
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack}, now;
    TRY(sigaltstack(&alternate, NULL));
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    TRY(sigaction(SIGUSR1, &action, NULL));
    action.sa_handler = outer;
    TRY(sigaction(SIGUSR2, &action, NULL));
    if (!strcmp(kind, "used")) {
        probe_ready();
        probe_wait();
        raise(SIGUSR1);
    } else {
        waits = 1;
        raise(!strcmp(kind, "nested") ? SIGUSR2 : SIGUSR1);
        waits = 0;
    }
    CHECK(where_on_stack, "the handler did not run on the alternate stack");
    if (!strcmp(kind, "nested")) CHECK(inner_done == SIGUSR2, "the outer handler never ended");
    TRY(sigaltstack(NULL, &now));
    CHECK(now.ss_sp == (void *)stack && now.ss_size == sizeof stack && now.ss_flags == 0, "alternate stack afterwards");
    sigset_t mask;
    sigprocmask(SIG_SETMASK, NULL, &mask);
    CHECK(!sigismember(&mask, SIGUSR1) && !sigismember(&mask, SIGUSR2), "signal mask afterwards");
    where_on_stack = 0;
    raise(SIGUSR1);
    CHECK(where_on_stack, "a second handler did not run on the alternate stack");
    return probe_pass();
}
