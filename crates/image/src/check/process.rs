//! Whether the process and its threads make sense.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::{ascending, ensure, invalid, path};
use crate::records::{Credentials, PendingSignal, Process, Thread};
use crate::{Image, ImageError};

/// Highest process or thread id: the kernel's own limit.
pub const MAX_PID: i32 = 1 << 22;
/// Most threads in an image.
pub const MAX_THREADS: usize = 100_000;
/// Words of `struct user_regs_struct`.
pub const REGISTER_COUNT: usize = 27;
/// Bytes of an xsave area: at least legacy area and header, at most a generous bound.
pub const XSTATE_LENGTHS: RangeInclusive<usize> = 576..=64 << 10;
/// Bytes of a `siginfo_t`.
pub const SIGINFO_LENGTH: usize = 128;

const SIGNALS: RangeInclusive<u32> = 1..=64;
const SIGKILL: u32 = 9;
const SIGSTOP: u32 = 19;
/// RLIM_NLIMITS.
const LIMIT_COUNT: u32 = 16;
/// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
const TIMER_COUNT: u32 = 3;
/// TASK_COMM_LEN without the zero.
const MAX_COMM: usize = 15;
/// NGROUPS_MAX.
const MAX_GROUPS: usize = 65_536;
/// Bytes of the CPU mask of 64 Ki processors.
const MAX_AFFINITY: usize = 8192;

/// SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU.
const STOP_SIGNALS: RangeInclusive<u32> = 19..=22;
/// SECCOMP_MODE_FILTER, the highest.
const SECCOMP_FILTER: u32 = 2;
/// BPF_MAXINSNS, in bytes.
const MAX_FILTER: usize = 4096 * 8;
/// Instructions of all filters of a thread: what the kernel allows.
const MAX_FILTERS: usize = 32_768;
/// SECCOMP_FILTER_FLAG_LOG, the only one the kernel tells.
const FILTER_FLAGS: u64 = 2;
/// Far above the limit of queued signals, which bounds them.
const MAX_TIMERS: usize = 1 << 20;
const SIGEV_THREAD_ID: u32 = 4;
/// Nanoseconds that the kernel's clocks can hold.
const MAX_TIME: u64 = u64::MAX >> 1;
/// Bytes of a set of memory nodes.
const MAX_NODES: usize = 128;
/// `PR_SPEC_STORE_BYPASS`, `PR_SPEC_INDIRECT_BRANCH`, `PR_SPEC_L1D_FLUSH`.
const SPECULATION_COUNT: u32 = 3;

const RECORD: &str = "Process";

pub(super) fn check(process: &Process) -> Result<(), ImageError> {
    if process.exit_status.is_some() {
        return ended(process);
    }
    ids(process)?;
    for (name, value) in [("exe", &process.exe), ("cwd", &process.cwd), ("root", &process.root)] {
        path(value, RECORD, name)?;
    }
    comm(&process.comm, RECORD)?;
    ensure!(process.umask <= 0o777, RECORD, "umask {:#o} is impossible", process.umask);
    limits(process)?;
    signals(process)?;
    timers(process)?;
    clocks(process)?;
    credentials(process.credentials.as_ref())?;
    threads(process)
}

/// One that has ended keeps its ids and its name.
fn ended(process: &Process) -> Result<(), ImageError> {
    ids(process)?;
    comm(&process.comm, RECORD)
}

fn ids(process: &Process) -> Result<(), ImageError> {
    ensure!((1..=MAX_PID).contains(&process.pid), RECORD, "pid {} is impossible", process.pid);
    for (name, id) in [("ppid", process.ppid), ("pgid", process.pgid), ("sid", process.sid)] {
        // 0: an ancestor, group or session outside the pid namespace.
        ensure!((0..=MAX_PID).contains(&id), RECORD, "{name} {id} is impossible");
    }
    Ok(())
}

fn comm(comm: &[u8], record: &str) -> Result<(), ImageError> {
    let fits = comm.len() <= MAX_COMM && !comm.contains(&0);
    ensure!(fits, record, "comm {:?} is impossible", String::from_utf8_lossy(comm));
    Ok(())
}

fn limits(process: &Process) -> Result<(), ImageError> {
    ascending(process.limits.iter().map(|limit| limit.resource), RECORD, "limit of resource")?;
    for limit in &process.limits {
        let resource = limit.resource;
        ensure!(resource < LIMIT_COUNT, RECORD, "limit of unknown resource {resource}");
        let (soft, hard) = (limit.soft, limit.hard);
        ensure!(soft <= hard, RECORD, "limit of resource {resource}: soft {soft} above hard {hard}");
    }
    ascending(process.interval_timers.iter().map(|timer| timer.which), RECORD, "interval timer")?;
    for timer in &process.interval_timers {
        ensure!(timer.which < TIMER_COUNT, RECORD, "unknown interval timer {}", timer.which);
    }
    Ok(())
}

fn timers(process: &Process) -> Result<(), ImageError> {
    let count = process.posix_timers.len();
    ensure!(count <= MAX_TIMERS, RECORD, "{count} timers, at most {MAX_TIMERS} are possible");
    ascending(process.posix_timers.iter().map(|timer| timer.id), RECORD, "POSIX timer")?;
    for timer in &process.posix_timers {
        let id = timer.id;
        ensure!(id >= 0, RECORD, "POSIX timer {id} is impossible");
        let signal = u32::try_from(timer.signal).unwrap_or(u32::MAX);
        ensure!(signal <= *SIGNALS.end(), RECORD, "POSIX timer {id} with signal {}", timer.signal);
        let to_thread = timer.notify & SIGEV_THREAD_ID != 0;
        let exists = !to_thread || process.threads.iter().any(|thread| thread.tid == timer.thread);
        ensure!(exists, RECORD, "POSIX timer {id} tells thread {}, which is not there", timer.thread);
        ensure!(
            timer.notify <= SIGEV_THREAD_ID | 2,
            RECORD,
            "POSIX timer {id} tells in way {}",
            timer.notify
        );
        let possible = timer.interval_ns <= MAX_TIME && timer.remaining_ns <= MAX_TIME;
        ensure!(possible, RECORD, "POSIX timer {id} has an impossible time");
    }
    Ok(())
}

fn clocks(process: &Process) -> Result<(), ImageError> {
    let Some(clocks) = process.clocks else { return Ok(()) };
    for (name, shown) in [("monotonic", clocks.monotonic_ns), ("boottime", clocks.boottime_ns)] {
        ensure!(i64::try_from(shown).is_ok(), RECORD, "clock {name} shows the impossible {shown}");
    }
    Ok(())
}

fn signals(process: &Process) -> Result<(), ImageError> {
    ascending(process.actions.iter().map(|action| action.signal), RECORD, "action of signal")?;
    for action in &process.actions {
        let signal = action.signal;
        let possible = SIGNALS.contains(&signal) && signal != SIGKILL && signal != SIGSTOP;
        ensure!(possible, RECORD, "signal {signal} cannot have an action");
    }
    pending(&process.pending, RECORD)
}

fn pending(pending: &[PendingSignal], record: &str) -> Result<(), ImageError> {
    for signal in pending {
        let length = signal.siginfo.len();
        ensure!(length == SIGINFO_LENGTH, record, "siginfo of {length} bytes, {SIGINFO_LENGTH} expected");
        // Nobody ever sees those two pending on a thread that stands still.
        let number = signal.signal().and_then(|number| u32::try_from(number).ok());
        let number = number.filter(|number| ![SIGKILL, SIGSTOP].contains(number));
        ensure!(
            number.is_some_and(|number| SIGNALS.contains(&number)),
            record,
            "pending signal {:?} is impossible",
            signal.signal()
        );
    }
    Ok(())
}

fn credentials(credentials: Option<&Credentials>) -> Result<(), ImageError> {
    let Some(credentials) = credentials else {
        return Err(invalid(RECORD, "no credentials".to_owned()));
    };
    for (name, ids) in [("user", &credentials.uids), ("group", &credentials.gids)] {
        ensure!(ids.len() == 4, RECORD, "{} {name} ids, 4 expected", ids.len());
    }
    let groups = credentials.groups.len();
    ensure!(groups <= MAX_GROUPS, RECORD, "{groups} groups, at most {MAX_GROUPS} are possible");
    Ok(())
}

fn threads(process: &Process) -> Result<(), ImageError> {
    let count = process.threads.len();
    ensure!((1..=MAX_THREADS).contains(&count), RECORD, "{count} threads, 1 to {MAX_THREADS} are possible");
    ascending(process.threads.iter().map(|thread| thread.tid), RECORD, "thread")?;
    let leader = process.threads.iter().any(|thread| thread.tid == process.pid);
    ensure!(leader, RECORD, "no thread has the id of the process, {}", process.pid);
    let living = process.threads.iter().any(|thread| !thread.exited);
    ensure!(living, RECORD, "all threads have ended");
    ensure!(!process.stop_told || process.stopped_by.is_some(), RECORD, "told of a stop that is none");
    if let Some(signal) = process.stopped_by {
        ensure!(STOP_SIGNALS.contains(&signal), RECORD, "stopped by signal {signal}, which stops nothing");
    }
    shared_folders(process)?;
    process.threads.iter().try_for_each(|one| thread(one, process.pid))
}

/// Who shares a working folder with another thread shares one that is that thread's own.
fn shared_folders(process: &Process) -> Result<(), ImageError> {
    let own = |thread: &Thread| thread.own_fs.as_ref().map(|own| own.shared_with);
    let owners =
        process.threads.iter().filter(|thread| thread.tid != process.pid && own(thread) == Some(None));
    let owners: BTreeSet<i32> = owners.map(|thread| thread.tid).collect();
    for thread in &process.threads {
        let Some(Some(with)) = own(thread) else { continue };
        let fits = owners.contains(&with) && thread.tid != process.pid;
        ensure!(
            fits,
            RECORD,
            "thread {} shares a working folder that thread {with} does not have",
            thread.tid
        );
    }
    Ok(())
}

fn thread(thread: &Thread, pid: i32) -> Result<(), ImageError> {
    let tid = thread.tid;
    let record = &format!("Process {pid}, thread {tid}");
    ensure!((1..=MAX_PID).contains(&tid), record, "its id is impossible");
    comm(&thread.comm, record)?;
    if thread.exited {
        let empty = thread.registers.is_empty() && thread.xstate.is_empty() && thread.pending.is_empty();
        ensure!(tid == pid && empty, record, "it has ended, but is not the first or has registers");
        ensure!(thread.seccomp_filters.is_empty(), record, "it has ended, but has seccomp filters");
        return thread.credentials.iter().try_for_each(|own| credentials(Some(own)));
    }
    let registers = thread.registers.len();
    ensure!(registers == REGISTER_COUNT, record, "{registers} registers, {REGISTER_COUNT} expected");
    let xstate = thread.xstate.len();
    ensure!(XSTATE_LENGTHS.contains(&xstate), record, "an xsave area of {xstate} bytes is impossible");
    pending(&thread.pending, record)?;
    thread.credentials.iter().try_for_each(|own| credentials(Some(own)))?;
    let death = thread.parent_death_signal;
    ensure!(death == 0 || SIGNALS.contains(&death), record, "parent death signal {death} is impossible");
    let affinity = thread.affinity.len();
    ensure!(affinity <= MAX_AFFINITY, record, "a CPU mask of {affinity} bytes is impossible");
    let (mode, filters) = (thread.seccomp_mode, thread.seccomp_filters.len());
    ensure!(mode <= SECCOMP_FILTER, record, "seccomp mode {mode} is unknown");
    let fits = if mode == SECCOMP_FILTER { (1..=MAX_FILTERS).contains(&filters) } else { filters == 0 };
    ensure!(fits, record, "{filters} seccomp filters in mode {mode}");
    if let Some(own) = &thread.own_fs {
        path(&own.cwd, record, "cwd")?;
        path(&own.root, record, "root")?;
        ensure!(own.umask <= 0o777, record, "umask {:#o} is impossible", own.umask);
    }
    let nodes = thread.memory_policy_nodes.len();
    ensure!(nodes <= MAX_NODES, record, "a set of memory nodes of {nodes} bytes is impossible");
    for control in &thread.speculation {
        ensure!(control.kind < SPECULATION_COUNT, record, "speculation of unknown kind {}", control.kind);
    }
    Ok(())
}

/// Checks the seccomp filters, and that those of threads are among them.
pub(super) fn filters(image: &Image) -> Result<(), ImageError> {
    const RECORD: &str = "SeccompFilter";
    let known: BTreeSet<u32> = image.seccomp_filters.iter().map(|filter| filter.id).collect();
    ascending(image.seccomp_filters.iter().map(|filter| filter.id), RECORD, "id")?;
    for filter in &image.seccomp_filters {
        let (id, length) = (filter.id, filter.instructions.len());
        let possible = (1..=MAX_FILTER).contains(&length) && length.is_multiple_of(8);
        ensure!(possible, RECORD, "filter {id} of {length} bytes is impossible");
        ensure!(filter.flags & !FILTER_FLAGS == 0, RECORD, "filter {id} has flags {:#x}", filter.flags);
    }
    for thread in image.processes.iter().flat_map(|process| &process.threads) {
        let unknown = thread.seccomp_filters.iter().find(|id| !known.contains(id));
        ensure!(unknown.is_none(), RECORD, "filter {unknown:?} of thread {} is not there", thread.tid);
    }
    Ok(())
}
