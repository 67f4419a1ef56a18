//! Records of threads: what can be told from outside while they stand still.

use rewake_image::records::{FileSystemContext, PendingSignal, RestartableSequence, Scheduling, Thread};
use rewake_linux::attributes;
use rewake_linux::kcmp::{self, Shared};
use rewake_linux::proc::{Proc, Status};
use rewake_linux::ptrace::{self, Stopped};
use rewake_linux::signal::SigInfo;

use crate::error::{During, Result};
use crate::findings::Findings;
use crate::process;
use crate::spaces::Ids;

/// What no file of `/proc` tells of a thread, but whoever holds it.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) tid: i32,
    /// In the order of `struct user_regs_struct`.
    pub(crate) registers: Vec<u64>,
    /// Extended state, an xsave area.
    pub(crate) xstate: Vec<u8>,
    pub(crate) signal_mask: u64,
    /// Signals pending for it alone.
    pub(crate) pending: Vec<PendingSignal>,
    pub(crate) rseq: Option<RestartableSequence>,
}

impl State {
    /// Of a thread that is traced.
    ///
    /// # Errors
    /// When the thread was killed meanwhile.
    pub(crate) fn of(pid: i32, stopped: &Stopped) -> Result<Self> {
        let tid = stopped.tid();
        let object = format!("thread {tid}");
        let rseq = stopped.rseq().during("read rseq", pid, &object)?;
        let signals = stopped.pending(false).during("read pending signals", pid, &object)?;
        Ok(Self {
            tid,
            registers: stopped.registers().during("read registers", pid, &object)?.words().to_vec(),
            xstate: stopped.xstate().during("read extended registers", pid, &object)?.as_bytes().to_vec(),
            signal_mask: stopped.signal_mask().during("read signal mask", pid, &object)?.bits(),
            pending: signals.iter().map(pending).collect(),
            rseq: (rseq.address != 0).then_some(RestartableSequence {
                address: rseq.address,
                size: rseq.size,
                signature: rseq.signature,
                flags: rseq.flags,
            }),
        })
    }
}

/// All of a thread but what only itself can tell (see [`crate::ask`]).
///
/// # Errors
/// When the thread was killed meanwhile, or the kernel refuses.
pub(crate) fn outside(proc: &Proc, ids: &Ids, state: State) -> Result<Thread> {
    let (pid, tid) = (proc.id(), state.tid);
    let object = format!("thread {tid}");
    let (robust_list, robust_list_len) = ptrace::robust_list(tid).during("read robust list", pid, &object)?;
    let thread = proc.thread(tid).during("open", pid, &object)?;
    let status = thread.status().during("read status", pid, &object)?;
    let scheduling = attributes::scheduling(tid).during("read scheduling", pid, &object)?;
    Ok(Thread {
        tid: ids.inner(tid),
        comm: thread.comm().during("read name", pid, &object)?,
        registers: state.registers,
        xstate: state.xstate,
        signal_mask: state.signal_mask,
        pending: state.pending,
        rseq: state.rseq,
        robust_list,
        robust_list_len,
        scheduling: Some(Scheduling {
            policy: scheduling.policy,
            nice: scheduling.nice,
            priority: scheduling.priority,
            flags: scheduling.flags,
            runtime_ns: scheduling.runtime_ns,
            deadline_ns: scheduling.deadline_ns,
            period_ns: scheduling.period_ns,
        }),
        affinity: attributes::affinity(tid).during("read affinity", pid, &object)?,
        io_priority: attributes::io_priority(tid).during("read I/O priority", pid, &object)?,
        credentials: Some(process::credentials(&status)),
        own_fs: own_fs(proc, &thread, &status)?,
        seccomp_mode: status.seccomp,
        ..Thread::default()
    })
}

/// Whether a thread shares something with the others. One that ended meanwhile does.
///
/// # Errors
/// When the kernel does not tell.
pub(crate) fn shares(what: Shared, proc: &Proc, tid: i32) -> Result<bool> {
    match kcmp::shared_with_thread(what, proc.living(), tid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(true),
        shared => shared.during("kcmp", proc.id(), format!("thread {tid}")),
    }
}

/// Working folder, root and umask of a thread that has its own ones.
fn own_fs(proc: &Proc, thread: &Proc, status: &Status) -> Result<Option<FileSystemContext>> {
    let (pid, tid) = (proc.id(), thread.id());
    if shares(Shared::Fs, proc, tid)? {
        return Ok(None);
    }
    let object = format!("thread {tid}");
    Ok(Some(FileSystemContext {
        cwd: thread.cwd().during("read working directory", pid, &object)?.target,
        root: thread.root().during("read root directory", pid, &object)?.target,
        umask: status.umask.unwrap_or(0o022),
        ..FileSystemContext::default()
    }))
}

/// Threads with a working folder and root of their own, each the first of those that share them: as we see its id, and as it does.
pub(crate) type Owners = Vec<(i32, i32)>;

/// Notes with whom a thread shares its own working folder, and that this can be found again.
///
/// # Errors
/// When the kernel does not tell.
pub(crate) fn settle_own_fs(
    proc: &Proc,
    tid: i32,
    thread: &mut Thread,
    owners: &mut Owners,
    findings: &mut Findings,
) -> Result<()> {
    let inner = thread.tid;
    let Some(own) = &mut thread.own_fs else { return Ok(()) };
    let (pid, object) = (proc.id(), format!("thread {tid}"));
    for (other, their_own) in owners.iter() {
        if kcmp::compare(Shared::Fs, *other, tid).during("kcmp", pid, &object)?.is_eq() {
            own.shared_with = Some(*their_own);
            return Ok(());
        }
    }
    owners.push((tid, inner));
    let folder = proc.thread(tid).and_then(|thread| thread.cwd());
    let folder = folder.during("read working directory", pid, &object)?;
    if !folder.deleted && !folder.reachable {
        let remedy = "capture the program at a time when it does not use this";
        findings.add_thread(tid, "its working directory cannot be found under its name", remedy);
    }
    Ok(())
}

/// The first thread of a process, ended while others run.
///
/// # Errors
/// When the process was killed meanwhile.
pub(crate) fn ended_leader(proc: &Proc, ids: &Ids) -> Result<Thread> {
    let pid = proc.id();
    let leader = proc.thread(pid).during("open", pid, "first thread")?;
    let status = leader.status().during("read status", pid, "first thread")?;
    Ok(Thread {
        tid: ids.inner(pid),
        comm: leader.comm().during("read name", pid, "first thread")?,
        exited: true,
        exit_code: leader.stat().during("read stat", pid, "first thread")?.exit_code,
        credentials: Some(process::credentials(&status)),
        ..Thread::default()
    })
}

/// A pending signal as a record.
pub(crate) fn pending(info: &SigInfo) -> PendingSignal {
    PendingSignal { siginfo: info.as_bytes().to_vec() }
}

/// Signals pending for the whole process, asked of any of its threads.
///
/// # Errors
/// When the process was killed meanwhile.
pub(crate) fn shared_pending<'a>(
    pid: i32,
    mut threads: impl Iterator<Item = &'a Stopped>,
) -> Result<Vec<PendingSignal>> {
    let Some(thread) = threads.next() else { return Ok(Vec::new()) };
    let pending = thread.pending(true).during("read pending signals", pid, "process")?;
    Ok(pending.iter().map(self::pending).collect())
}
