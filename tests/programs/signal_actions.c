/* Dispositions with all their flags and masks: unchanged, and every handler works when raised afterwards. */
#include "probe.h"

static volatile sig_atomic_t plain_count, info_value, once_count, deferred, depth, deepest;

static void plain(int signal) { plain_count += signal; }
static void once(int signal) { once_count += signal; }
static void info(int signal, siginfo_t *what, void *context) {
    CHECK(signal == SIGRTMIN + 1 && context != NULL, "handler with information got signal %d", signal);
    info_value = what->si_value.sival_int;
    sigset_t now;
    sigprocmask(SIG_SETMASK, NULL, &now);
    deferred = sigismember(&now, SIGUSR2) && sigismember(&now, SIGRTMIN + 1);
}
static void nested(int signal) {
    if (++depth > deepest) deepest = depth;
    if (deepest < 3) raise(signal);
    depth--;
}

static void install(int signal, void (*handler)(int), int flags, int masked) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    if (masked) sigaddset(&action.sa_mask, masked);
    TRY(sigaction(signal, &action, NULL));
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    struct sigaction before[65], after;
    install(SIGUSR1, plain, SA_RESTART, SIGTERM);
    install(SIGUSR2, once, (int)SA_RESETHAND, 0);
    install(SIGALRM, nested, SA_NODEFER, 0);
    install(SIGPIPE, SIG_IGN, 0, 0);
    install(SIGCHLD, SIG_DFL, SA_NOCLDWAIT | SA_NOCLDSTOP, 0);
    struct sigaction action = {.sa_sigaction = info, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaddset(&action.sa_mask, SIGUSR2);
    TRY(sigaction(SIGRTMIN + 1, &action, NULL));
    for (int i = 1; i <= 64; i++) sigaction(i, NULL, &before[i]);
    probe_ready();
    probe_wait();
    for (int i = 1; i <= 64; i++) {
        if (sigaction(i, NULL, &after) != 0) continue;
        CHECK(after.sa_handler == before[i].sa_handler, "handler of signal %d", i);
        CHECK(after.sa_flags == before[i].sa_flags, "flags of signal %d are %x, were %x", i, after.sa_flags, before[i].sa_flags);
        CHECK(memcmp(&after.sa_mask, &before[i].sa_mask, 8) == 0, "mask of signal %d", i);
    }
    raise(SIGUSR1);
    raise(SIGUSR1);
    CHECK(plain_count == 2 * SIGUSR1, "SIGUSR1 came %d times", plain_count / SIGUSR1);
    union sigval value = {.sival_int = 4711};
    TRY(sigqueue(getpid(), SIGRTMIN + 1, value));
    CHECK(info_value == 4711, "value with the real-time signal is %d", info_value);
    CHECK(deferred, "signals are not deferred while the handler runs");
    raise(SIGUSR2);
    TRY(sigaction(SIGUSR2, NULL, &after));
    CHECK(once_count == SIGUSR2 && after.sa_handler == SIG_DFL, "SA_RESETHAND");
    raise(SIGALRM);
    CHECK(deepest == 3 && depth == 0, "SA_NODEFER: depth %d", deepest);
    raise(SIGPIPE);
    return probe_pass();
}
