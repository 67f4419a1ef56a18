/* Groups and sessions, living and dead leaders, orphans. argument: which. */
#include "tree.h"
#include <sys/prctl.h>

/* What a process is to find again. */
struct ids { pid_t pid, parent, group, session; };

static struct ids own_ids(void) {
    struct ids ids = {getpid(), getppid(), getpgrp(), getsid(0)};
    return ids;
}

/* Those from outside the tree are what `resume` makes of them: `outside` is the root's group, `session` its session. */
static void same_ids(struct ids then, struct ids root, const char *who) {
    struct ids now = own_ids();
    CHECK(now.pid == then.pid, "%s: pid was %d, is %d", who, then.pid, now.pid);
    CHECK(now.parent == then.parent, "%s: parent was %d, is %d", who, then.parent, now.parent);
    if (then.group != root.group) CHECK(now.group == then.group, "%s: group was %d, is %d", who, then.group, now.group);
    if (then.session != root.session)
        CHECK(now.session == then.session, "%s: session was %d, is %d", who, then.session, now.session);
}

static struct ids root;

__attribute__((noreturn)) static void live(const char *who) {
    struct ids ids = own_ids();
    tree_set_up();
    while (!probe_resumed()) usleep(2000);
    same_ids(ids, root, who);
    _exit(0);
}

/* A pipeline's group, whose first member is still there, and one whose is not. */
static void groups(void) {
    pid_t first = tree_fork();
    if (first == 0) {
        TRY(setpgid(0, 0));
        live("leader of a group");
    }
    TRY(setpgid(first, first));
    pid_t second = tree_fork();
    if (second == 0) {
        TRY(setpgid(0, first));
        live("member of a group");
    }
    pid_t gone = tree_fork();
    if (gone == 0) {
        TRY(setpgid(0, 0));
        pause();
        _exit(0);
    }
    TRY(setpgid(gone, gone));
    pid_t left[2];
    for (int i = 0; i < 2; i++) {
        left[i] = tree_fork();
        if (left[i] == 0) {
            TRY(setpgid(0, gone));
            live("member of a group without its leader");
        }
    }
    /* Not before they have joined. */
    for (int i = 0; i < 2; i++)
        while (getpgid(left[i]) != gone) usleep(1000);
    TRY(kill(gone, SIGKILL));
    tree_ends(gone, SIGKILL);
    tree_ready(4);
    probe_wait();
    CHECK(getpgid(second) == first, "the group of a member is %d", getpgid(second));
    CHECK(getpgid(left[1]) == gone, "the group without a leader is %d", getpgid(left[1]));
    CHECK(kill(-gone, 0) == 0, "no signal reaches that group");
    tree_ends(first, 0);
    tree_ends(second, 0);
    tree_ends(left[0], 0);
    tree_ends(left[1], 0);
}

/* Sessions; a child born before its parent made one; a leader whose group differs from its members'. */
static void sessions(void) {
    pid_t leader = tree_fork();
    if (leader == 0) {
        pid_t early = tree_fork();
        if (early == 0) live("born before the session");
        TRY(setsid());
        pid_t late = tree_fork();
        if (late == 0) live("born into the session");
        pid_t job = tree_fork();
        if (job == 0) {
            TRY(setpgid(0, 0));
            live("a job of the session");
        }
        struct ids ids = own_ids();
        tree_set_up();
        while (!probe_resumed()) usleep(2000);
        same_ids(ids, root, "leader of a session");
        CHECK(getsid(late) == ids.pid && getsid(early) != ids.pid, "sessions of the children");
        tree_ends(early, 0);
        tree_ends(late, 0);
        tree_ends(job, 0);
        _exit(0);
    }
    tree_ready(4);
    probe_wait();
    tree_ends(leader, 0);
}

/* Orphans that came to a subreaper: of its own session, of one whose leader lives, and of one whose leader is gone. */
static void orphans(void) {
    TRY(prctl(PR_SET_CHILD_SUBREAPER, 1));
    int orphans[2];
    TRY(pipe(orphans));
    pid_t middle = tree_fork();
    if (middle == 0) {
        if (tree_fork() == 0) {
            while (getppid() != probe_pid) usleep(1000);
            close(orphans[0]), close(orphans[1]);
            live("orphan");
        }
        _exit(0);
    }
    pid_t leader = tree_fork();
    if (leader == 0) {
        TRY(setsid());
        pid_t between = tree_fork();
        if (between == 0) {
            if (tree_fork() == 0) {
                while (getppid() != probe_pid) usleep(1000);
                close(orphans[0]), close(orphans[1]);
                live("orphan of a session whose leader lives");
            }
            _exit(0);
        }
        tree_ends(between, 0);
        close(orphans[0]), close(orphans[1]);
        live("leader of a session that has an orphan");
    }
    pid_t dead = tree_fork();
    if (dead == 0) {
        TRY(setsid());
        for (int i = 0; i < 2; i++)
            if (tree_fork() == 0) {
                while (getppid() != probe_pid) usleep(1000);
                close(orphans[0]), close(orphans[1]);
                live("orphan of a session whose leader is gone");
            }
        _exit(0);
    }
    tree_ends(middle, 0);
    tree_ends(dead, 0);
    close(orphans[0]), close(orphans[1]);
    tree_ready(5);
    probe_wait();
    tree_ends(leader, 0);
    for (int i = 0; i < 4; i++) {
        int status;
        CHECK(wait(&status) > 0 && status == 0, "an orphan ended with %#x", status);
    }
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    root = own_ids();
    const char *what = argc > 2 ? argv[2] : "groups";
    tree_begin();
    if (!strcmp(what, "groups")) groups();
    else if (!strcmp(what, "sessions")) sessions();
    else if (!strcmp(what, "orphans")) orphans();
    else fail("unknown variant %s", what);
    tree_no_child();
    return probe_pass();
}
