//! Records of threads: what can be told from outside while they stand still.

use rewake_image::records::{PendingSignal, RestartableSequence, Scheduling, Thread};
use rewake_linux::attributes;
use rewake_linux::proc::Proc;
use rewake_linux::ptrace::{self, Stopped};
use rewake_linux::signal::SigInfo;

use crate::error::{During, Result};
use crate::process;

/// All of a thread but what only itself can tell (see [`crate::ask`]).
///
/// # Errors
/// When the thread was killed meanwhile, or the kernel refuses.
pub(crate) fn outside(proc: &Proc, stopped: &Stopped) -> Result<Thread> {
    let (pid, tid) = (proc.id(), stopped.tid());
    let object = format!("thread {tid}");
    let rseq = stopped.rseq().during("read rseq", pid, &object)?;
    let (robust_list, robust_list_len) = ptrace::robust_list(tid).during("read robust list", pid, &object)?;
    let thread = proc.thread(tid).during("open", pid, &object)?;
    let status = thread.status().during("read status", pid, &object)?;
    let scheduling = attributes::scheduling(tid).during("read scheduling", pid, &object)?;
    Ok(Thread {
        tid,
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
