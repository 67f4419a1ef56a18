//! What one process may have and must get back, so that nothing is forgotten: each entry is proven by a program of the catalogue, or by
//! a test of the faults where that says so. What is not is listed at the end of the table, and must be known as a gap here.

use std::fs;

use crate::catalogue::{Row, SECTIONS};
use crate::workshop::root;

/// Something required, and words one of which stands in the row (or the call of a program there) that proves it.
type Requirement = (&'static str, &'static [&'static str]);

/// By section. All words are in small letters.
pub const REQUIRED: &[(&str, &[Requirement])] = &[
    ("Memory", MEMORY),
    ("Execution state", EXECUTION),
    ("Signals and timers", SIGNALS),
    ("Files", FILES),
    ("IPC", IPC),
    ("Unix sockets", SOCKETS),
];

const SOCKETS: &[Requirement] = &[
    ("stream pairs with data both ways", &["unix_pair stream"]),
    ("packets and datagrams with their borders", &["unix_pair packets"]),
    ("halves shut down, other side closed", &["unix_pair halves"]),
    ("peer closed, with data left or unread", &["unix_pair closed"]),
    ("full sockets, sizes of buffers", &["unix_pair full"]),
    ("socket options", &["unix_pair options"]),
    ("peer credentials", &["so_peercred"]),
    ("listening, with connections queued", &["unix_names waiting"]),
    ("abstract names, autobind", &["abstract names"]),
    ("bound and deleted names", &["unix_names gone"]),
    ("datagrams from many with addresses", &["unix_names datagrams"]),
    ("descriptors in flight", &["scm_rights"]),
    ("cycles of sockets in flight", &["unix_rights cycles"]),
    ("credentials in flight", &["scm_credentials"]),
];

const MEMORY: &[Requirement] = &[
    ("anonymous private memory, read-only memory", &["anonymous private"]),
    ("no-access memory", &["prot_none"]),
    ("guard regions (MADV_GUARD_INSTALL)", &["guard"]),
    ("stacks that go on growing", &["stack_grows main"]),
    ("grow-down regions", &["growsdown"]),
    ("heap that grows and shrinks", &["mem_brk"]),
    ("private file mappings, clean and modified", &["mem_file_private"]),
    ("mapped file deleted since", &["file_unlinked mapped"]),
    ("mapped file replaced since", &["replaced"]),
    ("mapped file truncated since", &["truncated since", "truncated mapped", "truncated"]),
    ("shared file mappings", &["mem_file_shared"]),
    ("shared anonymous memory", &["mem_shared_anon"]),
    ("memfd, sealed", &["memfd sealed"]),
    ("memfd of huge pages", &["mem_huge memfd-mapped"]),
    ("memfd mapped privately", &["memfd private"]),
    ("files in /dev/shm", &["/dev/shm", "shm"]),
    ("transparent huge pages", &["transparent huge", "thp"]),
    ("pages of hugetlbfs", &["hugetlb"]),
    ("memory not given to children (MADV_DONTFORK)", &["dontfork"]),
    ("memory wiped in children (MADV_WIPEONFORK)", &["wipeonfork"]),
    ("mergeable memory (MADV_MERGEABLE)", &["mergeable"]),
    ("memory without huge pages (MADV_NOHUGEPAGE)", &["nohugepage"]),
    ("locked memory (mlock)", &["mlock"]),
    ("sealed mappings (mseal)", &["mseal"]),
    ("memory policies (NUMA)", &["numa", "memory polic", "mbind"]),
    ("shared libraries, also dlopened", &["mem_dlopen"]),
    (
        "library replaced on disk since: self-contained image",
        &["a library opened by the program was replaced: --files 3 has it"],
    ),
    ("vdso and vvar in their places", &["vdso"]),
    ("resumed under another kernel, whose vdso differs", &["another kernel", "another vdso"]),
    ("programs: dynamic, static, static-pie", &["static-pie"]),
    ("programs: musl", &["musl"]),
    ("code made at run time, execute-only memory", &["mem_jit"]),
    ("60,000 mappings", &["60,000", "mem_many"]),
    ("sparse reservation of a terabyte", &["mem_sparse"]),
];

const EXECUTION: &[Requirement] = &[
    ("general registers", &["registers general"]),
    ("x87 registers and control word", &["registers x87"]),
    ("SSE registers and MXCSR", &["registers sse"]),
    ("AVX registers", &["registers avx"]),
    ("AVX-512 registers", &["registers avx512"]),
    ("1,000 threads", &["threads 1000"]),
    ("thread-local storage", &["tls"]),
    ("per thread: names, masks, stacks, policy, nice, affinity, timer slack", &["thread_attributes"]),
    ("personality", &["personality"]),
    ("thread leader exited while others run", &["leader"]),
    ("threads with credentials of their own", &["credentials of their own"]),
    (
        "threads with a working folder of their own (no CLONE_FS)",
        &["clone_fs", "folders of their own", "umask of their own"],
    ),
    ("futexes", &["blocked futex"]),
    ("robust mutexes", &["mutexes robust"]),
    ("PI mutexes", &["mutexes pi"]),
    ("restartable sequences", &["rseq"]),
    ("membarrier registration", &["membarrier"]),
    ("clear_child_tid", &["clear_child_tid"]),
    ("sleeps with the time that was left", &["blocked nanosleep"]),
    ("read, write, poll interrupted and restarted", &["blocked read"]),
    ("epoll_wait interrupted and restarted", &["file_epoll wait"]),
    ("seccomp: strict", &["seccomp strict", "seccomp: strict"]),
    ("seccomp: filters, per thread", &["seccomp"]),
    ("no_new_privs", &["no_new_privs"]),
    ("dumpable", &["dumpable"]),
    ("parent death signal", &["parent death signal"]),
    ("capabilities kept over setuid (keepcaps)", &["keepcaps", "secure bits"]),
    ("child subreaper", &["subreaper"]),
    ("transparent huge pages switched off", &["huge pages switched off"]),
    ("user and group ids, groups", &["another user, groups"]),
    ("five capability sets, secure bits", &["five capability sets"]),
    ("umask", &["umask"]),
    ("score of the out-of-memory killer", &["oom", "out-of-memory"]),
    ("login uid", &["login"]),
    ("resource limits", &["limits"]),
    ("argv, environment, auxv, /proc/PID/{exe,comm,cmdline}", &["auxv"]),
    ("CLOCK_MONOTONIC that does not jump, on request", &["clocks are kept"]),
];

const SIGNALS: &[Requirement] = &[
    ("dispositions with all flags and restorer", &["signal_actions"]),
    ("pending signals, standard and queued, shared and per thread", &["signal_pending"]),
    ("inside a handler, nested, on the alternate stack", &["signal_stack nested"]),
    ("stopped by SIGSTOP", &["stopped"]),
    ("stopped by SIGTSTP, SIGTTIN, SIGTTOU", &["sigttin", "tstp", "each stop signal"]),
    ("interval timers", &["itimers"]),
    ("alarm", &["alarm", "itimers"]),
    ("POSIX timers: ids", &["posix_timers running"]),
    ("POSIX timers: overrun", &["overrun", "posix_timers pending"]),
    ("POSIX timers: a thread told (SIGEV_THREAD_ID)", &["thread told"]),
    ("timerfd", &["timerfd"]),
    ("signalfd with signals queued", &["signalfd"]),
];

const FILES: &[Requirement] = &[
    ("regular files: position, flags, O_APPEND, O_PATH, close-on-exec, numbers", &["file_regular"]),
    ("O_TMPFILE", &["o_tmpfile"]),
    ("dup'd descriptors share one position", &["file_shared_position"]),
    ("contents of files by level", &["--files ", "files_level", "file level"]),
    ("files grown, shrunk, replaced, deleted since are put back (-o)", &["shrunk, grown, deleted"]),
    ("unlinked files", &["file_unlinked plain"]),
    ("unlinked files, sparse", &["file_unlinked sparse"]),
    ("unlinked files that have another name still", &["hard link", "another name", "several names"]),
    ("removed folders", &["removed folders"]),
    ("directories with their position", &["directories"]),
    ("/dev/null, zero, full, random", &["/dev/null"]),
    ("/dev/tty", &["/dev/tty open"]),
    ("files of /proc and /sys", &["/proc and /sys", "/proc/self", "/sys"]),
    ("working folder, also removed", &["working folder"]),
    ("removed working folder", &["removed cwd"]),
    ("another root (chroot)", &["chroot"]),
    ("locks: flock, POSIX", &["file_locks"]),
    ("locks: of open file descriptions", &["ofd", "open file description"]),
    ("leases", &["lease"]),
    ("owner and signal of a file (F_SETOWN, F_SETSIG)", &["f_setown", "f_setsig"]),
    ("inotify", &["inotify"]),
    ("inotify: targets deleted or moved", &["inotify moved", "inotify deleted", "deleted or moved", "moved"]),
    ("fanotify", &["fanotify"]),
    ("eventfd", &["eventfd"]),
    ("epoll, nested, on closed descriptors, edge-triggered", &["epoll nested", "epoll"]),
    ("contexts of asynchronous I/O", &["aio"]),
    ("named and removed fifos", &["fifo removed"]),
];

const IPC: &[Requirement] = &[
    ("System V shared memory", &["sysv shm"]),
    ("System V shared memory: attached often, read-only", &["attached often"]),
    ("System V shared memory: attached, then removed", &["sysv removed"]),
    ("System V semaphores: values, last process", &["sysv sem"]),
    ("System V semaphores: undo", &["sem_undo"]),
    ("System V semaphores: waiters", &["sysv waiters"]),
    ("System V message queues", &["sysv msg"]),
    ("an IPC namespace of its own, where an id is taken", &["--ipc namespace"]),
    ("named semaphores", &["named semaphores"]),
    ("POSIX shared memory", &["posix_ipc shm"]),
    ("POSIX message queues", &["mqueue"]),
    ("POSIX message queues: notification", &["mq_notify"]),
];

/// Gaps that are known: what is refused by name so far, or has no program yet. An entry that is proven must be taken out.
pub const GAPS: &[&str] = &[];

/// Everything required that no program and no test of the faults proves, with its section.
#[must_use]
pub fn unproven() -> Vec<(&'static str, &'static str)> {
    let rows: Vec<String> =
        SECTIONS.iter().flat_map(|section| section.rows).map(said).chain(tests_of_faults()).collect();
    let proven = |words: &[&str]| words.iter().any(|word| rows.iter().any(|row| row.contains(word)));
    let all =
        REQUIRED.iter().flat_map(|(section, entries)| entries.iter().map(move |entry| (*section, entry)));
    all.filter(|(_, (_, words))| !proven(words)).map(|(section, (what, _))| (section, *what)).collect()
}

fn said(row: &Row) -> String {
    let calls = row.probes.iter().map(|probe| [&[probe.call], probe.options].concat().join(" "));
    format!("{}\n{}", row.capability, calls.collect::<Vec<_>>().join("\n")).to_lowercase()
}

/// Names of tests, as they stand in the sources of the faults: what takes more than one program and one resume is proven there.
fn tests_of_faults() -> Vec<String> {
    let Ok(entries) = fs::read_dir(root().join("tests/suite/src/faults")) else { return Vec::new() };
    let sources = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let names = |text: String| -> Vec<String> {
        let lines = text.lines().filter(|line| line.contains("report.test(") && !line.contains("refuse"));
        lines.map(str::to_lowercase).collect()
    };
    sources.flat_map(names).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_forgotten() {
        let missing: Vec<&str> = unproven().into_iter().map(|(_, what)| what).collect();
        assert_eq!(missing, GAPS, "required and not proven on the left, known as gaps on the right");
    }

    #[test]
    fn gaps_are_among_what_is_required() {
        for gap in GAPS {
            let known = REQUIRED.iter().flat_map(|(_, entries)| *entries).any(|(what, _)| what == gap);
            assert!(known, "{gap:?} is nothing that is required");
        }
    }
}
