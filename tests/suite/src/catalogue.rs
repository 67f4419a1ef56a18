//! Which program proves which capability: the rows of `docs/capabilities.md`.

mod channels;
mod members;

use channels::{IPC, SOCKETS};
use members::MEMBERS;

/// A part of the table.
#[derive(Debug)]
pub struct Section {
    /// Its heading.
    pub title: &'static str,
    /// Its rows.
    pub rows: &'static [Row],
    /// Whether its programs are run with the library inside as well.
    pub inside: bool,
}

/// A capability and the programs that prove it.
#[derive(Debug)]
pub struct Row {
    /// What survives, in words.
    pub capability: &'static str,
    /// All of these must pass.
    pub probes: &'static [Probe],
}

/// A program with its arguments, and how it is handled.
#[derive(Debug)]
pub struct Probe {
    /// The program and its arguments, as on a command line.
    pub call: &'static str,
    /// Milliseconds between READY and the checkpoint.
    pub settle: u64,
    /// May the image be resumed after the original, left running, has ended? Not when it changed its files.
    pub again: bool,
    /// Does it stop itself once it is ready?
    pub stops: bool,
    /// Modes in which it must be able to be saved, copied while it runs by an ordinary user too.
    pub modes: &'static [&'static str],
    /// Further options of the compiler; the first may name one other than gcc.
    pub options: &'static [&'static str],
}

const fn probe(call: &'static str) -> Probe {
    Probe { call, settle: 40, again: true, stops: false, modes: &[], options: &[] }
}

const fn once(call: &'static str) -> Probe {
    Probe { again: false, ..probe(call) }
}

/// Changes its memory all the time.
const fn changes(call: &'static str) -> Probe {
    Probe { modes: &["stop", "precopy"], settle: 200, ..probe(call) }
}

/// Half of its sleep is over at the checkpoint, so that beginning anew and going on differ.
const fn sleeps(call: &'static str) -> Probe {
    Probe { settle: 600, ..probe(call) }
}

/// And its sleep is interrupted twice.
const fn sleeps_twice(call: &'static str) -> Probe {
    Probe { modes: &["precopy"], ..sleeps(call) }
}

const fn stops(call: &'static str) -> Probe {
    Probe { stops: true, ..probe(call) }
}

const fn built(call: &'static str, options: &'static [&'static str]) -> Probe {
    Probe { options, ..probe(call) }
}

const fn row(capability: &'static str, probes: &'static [Probe]) -> Row {
    Row { capability, probes }
}

/// The whole catalogue.
pub const SECTIONS: &[Section] = &[
    Section { title: "Memory", rows: MEMORY, inside: true },
    Section { title: "Execution state", rows: EXECUTION, inside: true },
    Section { title: "Blocked in a system call", rows: BLOCKED, inside: true },
    Section { title: "Signals and timers", rows: SIGNALS, inside: true },
    Section { title: "Processes", rows: PROCESSES, inside: false },
    Section { title: "Processes, each for itself and together", rows: MEMBERS, inside: false },
    Section { title: "Files", rows: FILES, inside: true },
    Section { title: "Pipes", rows: PIPES, inside: true },
    Section { title: "IPC", rows: IPC, inside: false },
    Section { title: "Unix sockets", rows: SOCKETS, inside: false },
];

const PROCESSES: &[Row] = &[
    row("one parent and many children", &[probe("tree children 3"), probe("tree children 200")]),
    row(
        "storms: processes, threads and programs that are born and end while the freeze happens",
        &[
            probe("storm processes"),
            probe("storm orphans"),
            probe("storm programs"),
            probe("storm threads"),
            probe("storm both"),
        ],
    ),
    row("deep trees", &[probe("tree deep 5")]),
    row("children that run other programs, a shell among them", &[probe("tree programs")]),
    row("children that ended and were not waited for (zombies): how, each once", &[probe("tree zombies")]),
    row("wait4 and waitid go on waiting, and tell what they would have", &[probe("tree waiting")]),
    row("stopped children", &[probe("tree stopped")]),
    row("8 processes with 5 threads each", &[probe("tree threads 8")]),
    row("signal at the parent's death inside the tree", &[probe("tree death")]),
    row("process groups, with their leaders and without", &[probe("tree_ids groups")]),
    row("sessions, and children from before them", &[probe("tree_ids sessions")]),
    row("orphans, also of sessions whose leaders are gone", &[probe("tree_ids orphans")]),
    row("open files in common: one position, one lock", &[once("tree_shared position")]),
    row(
        "pipes between processes, with data in them",
        &[probe("tree_shared pipes"), probe("tree_shared pipeline")],
    ),
    row("shared memory across fork, with futexes; memory files", &[probe("tree_shared memory")]),
    row(
        "copy-on-write memory of many processes, each of which has changed a little",
        &[probe("tree_cow 30 20")],
    ),
    row("copy-on-write memory that both have changed", &[probe("tree_shared copies")]),
    row(
        "address space in common (CLONE_VM), with descriptors, working folder or handlers",
        &[probe("tree_shared vm"), probe("tree_shared vm-files-fs"), probe("tree_shared vm-sighand")],
    ),
    row("descriptors in common (CLONE_FILES)", &[probe("tree_shared files")]),
    row("working folder and umask in common (CLONE_FS)", &[probe("tree_shared fs")]),
];

const MEMORY: &[Row] = &[
    row(
        "memory that changes all the time while it is saved: each page from one and the same moment",
        &[
            changes("changing pages"),
            changes("changing threads"),
            changes("changing moves"),
            changes("changing across"),
            // Now and then it has a child, and may not be copied ahead then.
            Probe { modes: &["stop"], ..changes("changing forks") },
            changes("changing empties"),
            changes("changing huge"),
            changes("changing calls"),
            changes("changing opens"),
            Probe { modes: &["stop"], ..changes("changing direct") },
        ],
    ),
    row(
        "anonymous private memory, read-only, no-access (PROT_NONE) with content, holes, zeros after MADV_DONTNEED",
        &[probe("mem_private")],
    ),
    row("stack of the main thread goes on growing", &[probe("stack_grows main")]),
    row("stack of a thread goes on growing", &[probe("stack_grows thread")]),
    row("grow-down region (MAP_GROWSDOWN) goes on growing", &[probe("stack_grows growsdown")]),
    row("heap: brk grows and shrinks after the resume", &[probe("mem_brk")]),
    row("private file mappings, clean and modified", &[probe("mem_file_private")]),
    row("shared file mappings", &[once("mem_file_shared")]),
    row(
        "mapped files truncated since mapping, also deleted; files in /dev/shm",
        &[
            once("mem_file_truncated named"),
            once("mem_file_truncated deleted"),
            probe("mem_file_truncated private"),
            once("mem_file_truncated shm"),
        ],
    ),
    row("shared anonymous memory mapped several times", &[probe("mem_shared_anon")]),
    row(
        "memory files (memfd): open, mapped shared and private, sealed, only mapped",
        &[
            probe("memfd open"),
            probe("memfd shared"),
            probe("memfd private"),
            probe("memfd sealed"),
            probe("memfd future"),
            probe("memfd only-mapped"),
        ],
    ),
    row("code made at run time: writable and executable, execute-only", &[probe("mem_jit")]),
    row("sparse reservation of a terabyte", &[probe("mem_sparse")]),
    row("shared libraries, opened before and after (dlopen)", &[probe("mem_dlopen")]),
    row(
        "guard regions (MADV_GUARD_INSTALL) in anonymous, locked, shared memory and files",
        &[
            probe("mem_guards anonymous"),
            probe("mem_guards locked"),
            probe("mem_guards shared"),
            probe("mem_guards file"),
        ],
    ),
    row("sealed mappings (mseal)", &[probe("mem_sealed")]),
    row(
        "huge pages (hugetlb): private, without reservation, shared, files of hugetlbfs",
        &[
            probe("mem_huge private"),
            probe("mem_huge reserve"),
            probe("mem_huge shared"),
            once("mem_huge file"),
        ],
    ),
    row(
        "files of huge pages: memory files (memfd), named and unlinked ones of hugetlbfs, open and mapped, with holes",
        &[
            probe("mem_huge memfd-open"),
            probe("mem_huge memfd-mapped"),
            once("mem_huge named"),
            probe("mem_huge unlinked"),
        ],
    ),
    row("memory files of huge pages of 1 GiB", &[probe("mem_huge memfd-gib")]),
    row("transparent huge pages come back as such", &[probe("mem_advice hugepage")]),
    row(
        "advice: DONTFORK, WIPEONFORK, MERGEABLE, NOHUGEPAGE, DONTDUMP, SEQUENTIAL, RANDOM",
        &[
            probe("mem_advice dontfork"),
            probe("mem_advice wipeonfork"),
            probe("mem_advice mergeable"),
            probe("mem_advice nohugepage"),
            probe("mem_advice dontdump"),
            probe("mem_advice sequential"),
            probe("mem_advice random"),
        ],
    ),
    row(
        "locked memory: mlock, mlock2 (MLOCK_ONFAULT)",
        &[probe("mem_advice mlock"), probe("mem_advice onfault")],
    ),
    row("memory policies of mappings (mbind), one node", &[probe("mem_policy")]),
    row(
        "very many mappings: 60,000 of a page each, 20,000 shared objects",
        &[probe("mem_many 60000"), probe("mem_many 20000 shared")],
    ),
    row("much memory, filled by several at once, and pieces of every size", &[probe("mem_large 128")]),
    row(
        "programs: dynamic, static, static-pie",
        &[built("threads 3", &[]), built("threads 3", &["-static"]), built("threads 3", &["-static-pie"])],
    ),
    row(
        "programs of another C library (musl): dynamic, static",
        &[built("threads 3", &["musl-gcc"]), built("threads 3", &["musl-gcc", "-static"])],
    ),
    row(
        "vdso at the same place; /proc/PID/{exe,comm,cmdline}, argv, environment, auxv",
        &[probe("process_identity"), probe("vdso same")],
    ),
];

const EXECUTION: &[Row] = &[
    row("general registers", &[probe("registers general")]),
    row("x87 registers and control word", &[probe("registers x87")]),
    row("SSE registers and MXCSR", &[probe("registers sse")]),
    row("AVX registers", &[probe("registers avx")]),
    row("AVX-512 registers and masks", &[probe("registers avx512")]),
    row(
        "threads under mutexes, condition variables and barriers: 1, 10, 1,000",
        &[probe("threads 1"), probe("threads 10"), probe("threads 1000")],
    ),
    row("thread-local storage, errno, fs and gs base", &[probe("tls")]),
    row(
        "per thread: name, signal mask, alternate stack, policy, nice, affinity, timer slack",
        &[probe("thread_attributes")],
    ),
    row("restartable sequences (rseq)", &[probe("rseq")]),
    row("robust mutexes: a dead owner is noticed", &[probe("mutexes robust")]),
    row("PI mutexes held and waited for", &[probe("mutexes pi")]),
    row("locks that know who holds them, and numbers that only look like it", &[probe("locks")]),
    row("joining threads (clear_child_tid)", &[probe("join")]),
    row(
        "same pid and tids, working folder, umask, limits, names, nice, policy, dumpable, no_new_privs",
        &[once("process_attributes untraceable"), once("process_attributes traceable")],
    ),
    row(
        "locks on memory mapped later (mlockall MCL_FUTURE)",
        &[probe("settings future-locks"), probe("settings future-locks-on-fault")],
    ),
    row(
        "huge pages switched off, all or but where advised; merging of equal pages (PR_SET_MEMORY_MERGE)",
        &[probe("settings huge-pages"), probe("settings huge-pages-but-advised"), probe("settings merging")],
    ),
    row("memory that cannot be made executable (PR_SET_MDWE)", &[probe("settings no-new-code")]),
    row(
        "per thread: policy for memory errors, time stamp counter switched off (PR_SET_TSC)",
        &[probe("settings memory-errors"), probe("settings tsc")],
    ),
    row("per thread: speculation control", &[probe("settings speculation")]),
    row("per thread: memory policy (set_mempolicy)", &[probe("settings policy")]),
    row("I/O flusher (PR_SET_IO_FLUSHER)", &[probe("settings flusher")]),
    row(
        "credentials: another user, groups, all five capability sets, secure bits, parent death signal, dumpable",
        &[probe("credentials dropped"), probe("credentials plain"), probe("credentials exposed")],
    ),
    row(
        "personality, child subreaper, membarrier registration, score of the out-of-memory killer, core file filter, login uid",
        &[
            probe("process_settings personality"),
            probe("process_settings subreaper"),
            probe("process_settings membarrier"),
            probe("process_settings oom"),
            probe("process_settings coredump"),
            probe("process_settings login"),
        ],
    ),
    row("threads with credentials of their own", &[probe("credentials threads")]),
    row("first thread ended while others run", &[probe("leader_ended")]),
    row(
        "threads with working folder, root and umask of their own; program in another root directory (chroot)",
        &[
            once("own_fs thread"),
            once("own_fs thread-root"),
            once("own_fs chroot"),
            once("own_fs thread-in-chroot"),
            once("own_fs pair"),
        ],
    ),
    row(
        "seccomp filters: shared (TSYNC), per thread, installed with rights given up later; strict mode",
        &[
            probe("seccomp shared"),
            probe("seccomp more"),
            probe("seccomp own"),
            probe("seccomp strict"),
            probe("seccomp dropped"),
        ],
    ),
];

const BLOCKED: &[Row] = &[
    row(
        "sleeps go on with the time that was left (nanosleep, clock_nanosleep)",
        &[
            sleeps_twice("blocked nanosleep"),
            sleeps_twice("blocked nanosleep_null"),
            sleeps_twice("blocked clock_nanosleep"),
        ],
    ),
    row(
        "time-outs go on with the time that was left (poll, ppoll, select, pselect, futex; epoll through the C library)",
        &[
            sleeps_twice("blocked poll_timeout"),
            sleeps("blocked ppoll_timeout"),
            sleeps("blocked select_timeout"),
            sleeps("blocked pselect_timeout"),
            sleeps_twice("blocked futex_timeout"),
            sleeps("blocked epoll_timeout"),
            sleeps("blocked epoll_pwait_timeout"),
        ],
    ),
    row(
        "time-outs of other calls may begin anew (epoll_pwait2, sigtimedwait, semtimedop, calls made by the program itself)",
        &[
            sleeps("blocked epoll_pwait2_timeout_anew"),
            sleeps("blocked epoll_register_timeout_anew"),
            sleeps("blocked sigtimedwait_timeout_anew"),
            Probe { again: false, ..sleeps("blocked semtimedop_timeout_anew") },
        ],
    ),
    row(
        "sleeps and waits until an absolute time",
        &[sleeps("blocked clock_abstime"), sleeps("blocked cond_abstime")],
    ),
    row("read and write on a pipe", &[probe("blocked read"), probe("blocked write")]),
    row("readv and writev on a pipe", &[probe("blocked readv"), probe("blocked writev")]),
    row("poll, ppoll, select", &[probe("blocked poll"), probe("blocked ppoll"), probe("blocked select")]),
    row(
        "futex, condition variable with and without time-out, semaphore",
        &[
            probe("blocked futex"),
            probe("blocked futex2_one"),
            probe("blocked futex2_many"),
            probe("blocked cond"),
            probe("blocked cond_timed"),
            probe("blocked semaphore"),
        ],
    ),
    row(
        "pause, sigsuspend, sigwait, sigtimedwait",
        &[
            probe("blocked pause"),
            probe("blocked sigsuspend"),
            probe("blocked sigwait"),
            probe("blocked sigtimedwait"),
        ],
    ),
];

const SIGNALS: &[Row] = &[
    row("dispositions with all flags, masks and restorer", &[probe("signal_actions")]),
    row(
        "pending standard and queued real-time signals with values, shared and per thread",
        &[probe("signal_pending")],
    ),
    row("alternate signal stack", &[probe("signal_stack used")]),
    row(
        "program inside a handler on the alternate stack; nested handlers",
        &[probe("signal_stack inside"), probe("signal_stack nested")],
    ),
    row("interval timers (all three)", &[Probe { settle: 300, ..probe("itimers") }]),
    row(
        "stopped processes stay stopped and can be continued: SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU",
        &[stops("stopped STOP"), stops("stopped TSTP"), stops("stopped TTIN"), stops("stopped TTOU")],
    ),
    row(
        "POSIX timers: ids, value, interval, signal or thread told, processor time, signals that wait",
        &[Probe { settle: 200, ..probe("posix_timers running") }, probe("posix_timers pending")],
    ),
];

const FILES: &[Row] = &[
    row(
        "regular files: position, flags, O_APPEND, O_PATH, close-on-exec, descriptor numbers",
        &[once("file_regular")],
    ),
    row("dup'd descriptors share one position", &[once("file_shared_position")]),
    row("directories, /dev/null, zero, full, urandom", &[once("file_devices")]),
    row(
        "unlinked files: open several times, sparse (5 GB), O_TMPFILE, replaced, mapped, folder gone, another hard link left",
        &[
            probe("file_unlinked plain"),
            probe("file_unlinked sparse"),
            once("file_unlinked tmpfile"),
            probe("file_unlinked replaced"),
            probe("file_unlinked mapped"),
            probe("file_unlinked folder"),
            probe("file_unlinked read-only"),
            once("file_unlinked linked"),
        ],
    ),
    row(
        "removed folders: as working folder (in another removed one, name taken since, of a thread alone) and open",
        &[probe("removed cwd"), probe("removed taken"), probe("removed thread")],
    ),
    row("locks: flock, POSIX record locks", &[once("file_locks")]),
    row("eventfd: count, semaphore, O_NONBLOCK", &[probe("file_eventfd")]),
    row(
        "timerfd: all clocks, relative and absolute, intervals, expirations not read, TFD_TIMER_CANCEL_ON_SET",
        &[probe("file_timerfd plain"), probe("file_timerfd absolute"), probe("file_timerfd alarm")],
    ),
    row("locks of open files (OFD), leases", &[once("file_owner locks")]),
    row(
        "owners of signals about files: thread, process group; O_ASYNC, F_SETSIG",
        &[once("file_owner signals")],
    ),
    row(
        "contexts of asynchronous I/O: their ids, events not read yet in their places, rings moved and read-only, requests that end late",
        &[probe("file_aio"), probe("file_aio late")],
    ),
    row(
        "inotify: same watch numbers, IN_ONESHOT, targets moved or deleted and still open",
        &[once("file_inotify"), once("file_inotify deleted")],
    ),
    row(
        "fanotify: marks of files, folders, mounts and file systems, what is ignored, names told, targets moved or deleted",
        &[once("file_fanotify fid"), once("file_fanotify all")],
    ),
    row(
        "files of /proc and /sys, control groups: one's own and one's threads', position, writing, O_PATH, links, folders",
        &[
            probe("file_kernel own"),
            probe("file_kernel threads"),
            probe("file_kernel others"),
            probe("file_kernel links"),
        ],
    ),
    row("symbolic links opened as such (O_PATH)", &[probe("file_symlink")]),
    row("signalfd with signals queued", &[probe("file_signalfd")]),
    row(
        "epoll: levels, edges, one-shots, exclusive, nested, on numbers closed or reused, on standard streams, blocked in it",
        &[
            probe("file_epoll plain"),
            probe("file_epoll nested"),
            probe("file_epoll closed"),
            probe("file_epoll streams"),
            probe("file_epoll wait"),
        ],
    ),
];

const PIPES: &[Row] = &[
    row("pipes to itself with data, size, O_NONBLOCK, one end closed, dup'd", &[probe("pipe_self")]),
    row(
        "pipes in packet mode (O_DIRECT) with packets, and opened for reading and writing at once",
        &[probe("pipe_self packets"), probe("pipe_self both")],
    ),
    row(
        "named pipes (fifos) with data, size, several ends, packets, a hang-up seen or not yet, nobody reading; removed ones",
        &[
            probe("fifo plain"),
            probe("fifo hangup"),
            probe("fifo writer"),
            probe("fifo packets"),
            probe("fifo removed"),
        ],
    ),
];
