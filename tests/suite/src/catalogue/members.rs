//! What each process of a tree has of its own, what it knows of the others, and how it comes into being.

use super::{Row, once, probe, row};

pub(super) const MEMBERS: &[Row] = &[
    row(
        "settings of each: folder, umask, limits, nice, oom score, name, policy, subreaper, death signal",
        &[probe("tree_settings own")],
    ),
    row(
        "children on their way: vfork, posix_spawn, system(), execve among threads",
        &[
            probe("tree_spawn system"),
            probe("tree_spawn spawn"),
            probe("tree_spawn vfork"),
            probe("tree_spawn threads"),
            probe("tree_spawn shells"),
            probe("tree_spawn rebirths"),
        ],
    ),
    row(
        "pidfds: to oneself, others, zombies, processes that are gone, threads; in common, in an epoll set",
        &[probe("tree_pidfd all"), probe("tree_pidfd threads"), probe("tree_pidfd watched")],
    ),
    row("files and folders of /proc of other processes and threads of the tree", &[probe("tree_pidfd proc")]),
    row("seccomp filters of each, and inherited ones", &[probe("tree_seccomp")]),
    row("credentials and groups of each", &[probe("tree_settings owned")]),
    row(
        "members of other users: who made their connections and sent their messages, pidfds, who may signal whom",
        &[probe("tree_users")],
    ),
    row("a root directory of a child's own (chroot)", &[probe("tree_settings roots")]),
    row("children with another exit signal, or none", &[probe("tree_settings exit-signals")]),
    row("child subreapers in the tree", &[probe("tree_settings reapers")]),
    row(
        "eventfds, signalfds, timerfds, inotify in common",
        &[
            probe("tree_objects eventfds"),
            probe("tree_objects signalfds"),
            probe("tree_objects timerfds"),
            once("tree_objects inotifies"),
        ],
    ),
    row("fanotify groups in common", &[once("tree_objects fanotifies")]),
    row("epoll in common, with numbers of one process only", &[probe("tree_objects epolls")]),
    row("epoll waits of children for their own signals (signalfd)", &[probe("tree_objects watched-signals")]),
    row("locks of several processes: flock, POSIX, OFD", &[once("tree_objects locks")]),
    row("processes that wait for a lock of another one", &[probe("tree_objects lock-waiters")]),
    row("leases of a child", &[once("tree_objects leases")]),
    row("signals about open files to other processes and groups (F_SETOWN)", &[probe("tree_objects owners")]),
    row(
        "children waited for in every way: wait4 with usage, waitpid, waitid by group",
        &[probe("tree_waits blocked")],
    ),
    row(
        "stops of children: told once, also of those not waited for yet",
        &[probe("tree_waits stops"), probe("tree_waits stopped-threads")],
    ),
    row("children that go on, of which was told", &[probe("tree_waits continued")]),
    row(
        "news of children pending, or not wanted",
        &[probe("tree_waits pending"), probe("tree_waits ignored"), probe("tree_waits no-wait")],
    ),
];
