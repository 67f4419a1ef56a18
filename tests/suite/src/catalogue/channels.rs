//! What processes talk to one another by.

use super::{Row, once, probe, row};

pub(super) const IPC: &[Row] = &[
    row(
        "System V shared memory: id, key, owner, mode, size; attached often, in part, read-only, or by nobody",
        &[probe("sysv shm")],
    ),
    row("System V shared memory that was removed while it is attached", &[probe("sysv removed")]),
    row("System V shared memory of huge pages", &[probe("sysv huge")]),
    row("System V shared memory of several processes", &[probe("sysv shm-tree")]),
    row(
        "System V semaphores: id, key, owner, mode, values, last process, operated on or not",
        &[probe("sysv sem")],
    ),
    row("System V semaphores: what processes give back when they end (SEM_UNDO)", &[probe("sysv undo")]),
    row("System V semaphores: processes that wait at them go on waiting", &[probe("sysv waiters")]),
    row(
        "System V message queues: id, key, owner, mode, limit, messages with their types in order",
        &[probe("sysv msg")],
    ),
    row("System V message queues: waiting receivers and senders go on waiting", &[probe("sysv msg-waiters")]),
    row(
        "POSIX message queues: messages with their priorities in order, attributes, several descriptions",
        &[probe("mqueue messages")],
    ),
    row("POSIX message queues on their way through a socket (SCM_RIGHTS)", &[probe("mqueue in-flight")]),
    row("POSIX message queues that have no name any more", &[probe("mqueue unlinked")]),
    row(
        "POSIX message queues: news of the next message (mq_notify) by signal with its value, by a thread, by none",
        &[
            probe("mqueue notify"),
            probe("mqueue notify-tree"),
            probe("mqueue notify-thread"),
            probe("mqueue notify-thread 3"),
            probe("mqueue many 30"),
        ],
    ),
    row("POSIX message queues: waiting receivers and senders go on waiting", &[probe("mqueue waiters")]),
    row(
        "POSIX named semaphores, with a waiting process",
        &[once("posix_ipc sem"), probe("posix_ipc sem-unlinked")],
    ),
    row(
        "POSIX shared memory of several processes",
        &[once("posix_ipc shm"), probe("posix_ipc shm-unlinked")],
    ),
];

pub(super) const SOCKETS: &[Row] = &[
    row(
        "stream pairs with data in both directions, O_NONBLOCK, close-on-exec, dup'd",
        &[probe("unix_pair stream")],
    ),
    row(
        "pairs for packets and for datagrams: messages keep their borders, empty ones too",
        &[probe("unix_pair packets"), probe("unix_pair datagrams")],
    ),
    row("halves that were shut down", &[probe("unix_pair halves")]),
    row("the other side closed: with data left, with data unread (ECONNRESET)", &[probe("unix_pair closed")]),
    row(
        "sockets filled to the brim, small and large buffers",
        &[probe("unix_pair full"), probe("unix_pair full datagrams")],
    ),
    row("socket options, SO_PEEK_OFF", &[probe("unix_pair options")]),
    row(
        "pairs between processes; who is told to have made them (SO_PEERCRED), also when that one has ended",
        &[probe("unix_pair family")],
    ),
    row("send and recv that wait", &[probe("unix_pair blocked")]),
    row(
        "listeners and connections through them: paths, abstract names, autobind, permissions of the file, backlog",
        &[probe("unix_names listeners"), probe("unix_names listeners packets")],
    ),
    row("connections that wait to be accepted, in their order", &[probe("unix_names waiting")]),
    row(
        "files of sockets deleted, replaced, renamed; listeners closed before their connections",
        &[probe("unix_names gone")],
    ),
    row("sockets of all types that are not connected yet", &[probe("unix_names states")]),
    row(
        "datagrams from many to one, with the addresses they came from, also of senders that are gone",
        &[probe("unix_names datagrams")],
    ),
    row(
        "datagrams to another program (a system log): connected again to whoever has that name, with answers that wait",
        &[once("unix_outside absolute"), once("unix_outside relative"), once("unix_outside abstract")],
    ),
    row("accept and connect that wait", &[probe("unix_names blocked")]),
    row(
        "a server and its clients, each a process, data on its way",
        &[probe("unix_names family"), probe("unix_names family packets")],
    ),
    row(
        "descriptors in flight (SCM_RIGHTS), each with the byte it came with: files, pipes, eventfds, files that nobody has open",
        &[
            probe("unix_rights files stream"),
            probe("unix_rights files packets"),
            probe("unix_rights files datagrams"),
        ],
    ),
    row(
        "sockets in flight: in their own queues, with data and descriptors in them",
        &[probe("unix_rights cycles")],
    ),
    row(
        "who sent a message (SCM_CREDENTIALS), also when that process has ended",
        &[
            probe("unix_rights credentials stream"),
            probe("unix_rights credentials packets"),
            probe("unix_rights credentials datagrams"),
        ],
    ),
];
