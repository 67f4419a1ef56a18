//! Records of threads: what can be told from outside while they stand still.

use rewake_image::records::{
    FileSystemContext, PendingSignal, Process, RestartableSequence, Scheduling, Thread,
};
use rewake_linux::attributes;
use rewake_linux::kcmp::{self, Shared};
use rewake_linux::proc::{Proc, Status};
use rewake_linux::ptrace::{self, Stopped};
use rewake_linux::signal::SigInfo;

use crate::error::{During, Result};
use crate::findings::Findings;
use crate::process;
use crate::spaces::Ids;

/// All of a thread but what only itself can tell (see [`crate::ask`]).
///
/// # Errors
/// When the thread was killed meanwhile, or the kernel refuses.
pub(crate) fn outside(proc: &Proc, ids: &Ids, stopped: &Stopped) -> Result<Thread> {
    let (pid, tid) = (proc.id(), stopped.tid());
    let object = format!("thread {tid}");
    let rseq = stopped.rseq().during("read rseq", pid, &object)?;
    let (robust_list, robust_list_len) = ptrace::robust_list(tid).during("read robust list", pid, &object)?;
    let thread = proc.thread(tid).during("open", pid, &object)?;
    let status = thread.status().during("read status", pid, &object)?;
    let scheduling = attributes::scheduling(tid).during("read scheduling", pid, &object)?;
    Ok(Thread {
        tid: ids.inner(tid),
        comm: thread.comm().during("read name", pid, &object)?,
        registers: stopped.registers().during("read registers", pid, &object)?.words().to_vec(),
        xstate: stopped.xstate().during("read extended registers", pid, &object)?.as_bytes().to_vec(),
        signal_mask: stopped.signal_mask().during("read signal mask", pid, &object)?.bits(),
        pending: stopped
            .pending(false)
            .during("read pending signals", pid, &object)?
            .iter()
            .map(pending)
            .collect(),
        rseq: (rseq.address != 0).then_some(RestartableSequence {
            address: rseq.address,
            size: rseq.size,
            signature: rseq.signature,
            flags: rseq.flags,
        }),
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
    match kcmp::compare(what, proc.living(), tid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(true),
        order => Ok(order.during("kcmp", proc.id(), format!("thread {tid}"))?.is_eq()),
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

/// What threads with a working folder or root of their own may not have: shared it with one another, or lost it.
///
/// # Errors
/// When the kernel does not tell.
pub(crate) fn check_own_fs(proc: &Proc, process: &Process, findings: &mut Findings) -> Result<()> {
    let own: Vec<&Thread> = process.threads.iter().filter(|thread| thread.own_fs.is_some()).collect();
    let elsewhere = Proc::own().and_then(|own| own.root()).is_ok_and(|root| root.target != process.root);
    for (index, thread) in own.iter().enumerate() {
        let (pid, tid) = (proc.id(), thread.tid);
        let mut refuse = |reason: &str| {
            findings.add_thread(tid, reason, "capture the program at a time when it does not use this");
        };
        if elsewhere {
            refuse("it has a working directory of its own in a program with another root directory (chroot)");
        }
        for other in &own[..index] {
            let same = kcmp::compare(Shared::Fs, other.tid, tid);
            if same.during("kcmp", pid, format!("thread {tid}"))?.is_eq() {
                refuse("it shares its working directory with some threads and not with others");
            }
        }
        let folder = proc.thread(tid).and_then(|thread| thread.cwd());
        let folder = folder.during("read working directory", pid, format!("thread {tid}"))?;
        if !folder.deleted && !folder.reachable {
            refuse("its working directory cannot be found under its name");
        }
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
