//! Tracing: the states of a tracee as types.
//!
//! A [`Stopped`] tracee can be read, changed and resumed; resuming consumes it and gives a [`Running`] one, which can only be
//! interrupted and waited for. A tracee that ended is a value, [`Event::Exited`], never an error text. One that is killed while
//! it is stopped answers with errors that say so ([`PtraceError::is_gone`]); resuming it still works and its end comes from
//! [`Running::wait`].
//!
//! All tracees are seized (`PTRACE_SEIZE`): nothing is sent to them, and when the tracer dies the kernel lets them go on. They
//! belong to the *thread* that seized them; the types cannot leave it.
//!
//! # Safety
//! The unsafe blocks are system calls whose pointers are to locals that outlive the call, with their true lengths; the kernel
//! writes within those only.

#![allow(unsafe_code, reason = "ptrace and waitpid, see Safety above")]

mod reap;
mod stopped;
mod wait;

use std::io;
use std::marker::PhantomData;

use crate::signal::SigInfo;

pub use reap::seize_while_reaping;
pub use stopped::{Detached, RseqConfiguration, SeccompFilter};
pub use wait::{kill_and_reap, kill_and_reap_children, kill_and_reap_tracee};

/// A request to the kernel about a tracee failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} failed for pid {tid}: {source}")]
pub struct PtraceError {
    /// The request, as the kernel names it.
    pub operation: &'static str,
    /// The thread.
    pub tid: i32,
    /// What the kernel said.
    pub source: io::Error,
}

impl PtraceError {
    pub(crate) fn last(operation: &'static str, tid: i32) -> Self {
        Self { operation, tid, source: io::Error::last_os_error() }
    }

    /// Whether the tracee no longer exists (or, for [`seize`], never did).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.source.raw_os_error() == Some(libc::ESRCH)
    }
}

/// How tracees are seized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Kill the tracee when the tracer ends: for processes that are still being built.
    pub exit_kill: bool,
    /// No seccomp filter counts while we trace (`PTRACE_O_SUSPEND_SECCOMP`); this takes CAP_SYS_ADMIN.
    pub suspend_seccomp: bool,
}

impl Options {
    fn bits(self) -> i32 {
        let exit_kill = if self.exit_kill { libc::PTRACE_O_EXITKILL } else { 0 };
        let suspend = if self.suspend_seccomp { libc::PTRACE_O_SUSPEND_SECCOMP } else { 0 };
        libc::PTRACE_O_TRACESYSGOOD | exit_kill | suspend
    }
}

/// How a thread or process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// By `exit`, with this status.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
    /// It is gone, and the kernel has not told how: another thread's `execve` replaced it, or it is the leader of a process of
    /// which other threads are still to be waited for.
    Unknown,
}

/// Why a tracee stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// `PTRACE_EVENT_STOP`: interrupted by us, or a notice of a changed job control state. The stop is inside the kernel's signal
    /// handling: an interrupted call restarts from here.
    EventStop,
    /// The process is stopped by this signal (`SIGSTOP`, `SIGTSTP`, `SIGTTIN`, `SIGTTOU`).
    Group(i32),
    /// A signal is about to be delivered; unless it is passed on when the tracee is resumed, it is dropped. If the tracer dies
    /// before that, the kernel delivers it.
    Signal(SigInfo),
    /// At the entry of a system call.
    SyscallEnter,
    /// At the exit of a system call.
    SyscallExit,
    /// Another `PTRACE_EVENT_*`.
    Event(i32),
}

/// What happened to a running tracee.
#[derive(Debug)]
pub enum Event {
    /// It stopped.
    Stopped(Stopped, StopReason),
    /// The thread with this id ended.
    Exited(i32, ExitStatus),
}

/// What [`Running::try_wait`] found.
#[derive(Debug)]
pub enum Poll {
    /// It stopped or ended.
    Ready(Event),
    /// It runs on.
    Pending(Running),
}

/// A tracee that runs, or runs as far as we know.
#[derive(Debug)]
#[must_use = "a running tracee is to be waited for"]
pub struct Running {
    tid: i32,
    thread_bound: PhantomData<*const ()>,
}

/// A tracee that is stopped and waits for us.
#[derive(Debug)]
#[must_use = "a stopped tracee waits to be resumed"]
pub struct Stopped {
    tid: i32,
    thread_bound: PhantomData<*const ()>,
}

/// Begins to trace thread `tid` without stopping it.
///
/// # Errors
/// When there is no such thread ([`PtraceError::is_gone`]), another process traces it, or we may not (EPERM).
pub fn seize(tid: i32, options: Options) -> Result<Running, PtraceError> {
    // SAFETY: PTRACE_SEIZE takes numbers only.
    let result = unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0usize, i64::from(options.bits())) };
    if result == -1 {
        let mut error = PtraceError::last("PTRACE_SEIZE", tid);
        // The kernel says EPERM of a thread that has ended but is still listed.
        if error.source.raw_os_error() == Some(libc::EPERM) && wait::is_zombie(tid) {
            error.source = io::Error::from_raw_os_error(libc::ESRCH);
        }
        return Err(error);
    }
    Ok(Running { tid, thread_bound: PhantomData })
}

/// Thread `tid`, which is our tracee already: one that was traced under another id and took this one, by execve(2).
///
/// # Errors
/// [`PtraceError::is_gone`] when there is no such thread, or it is not our tracee.
pub fn reborn(tid: i32) -> Result<Running, PtraceError> {
    let own = rustix::thread::gettid().as_raw_nonzero().get();
    let tracer =
        crate::proc::Proc::open(tid).and_then(|thread| thread.status()).map(|status| status.tracer_pid);
    if tracer.is_ok_and(|tracer| tracer == own) {
        return Ok(Running { tid, thread_bound: PhantomData });
    }
    Err(PtraceError { operation: "PTRACE_SEIZE", tid, source: io::Error::from_raw_os_error(libc::ESRCH) })
}

/// The robust futex list of any thread we may trace: its address and the length of its head, in bytes.
///
/// # Errors
/// When the thread is gone or we may not ask.
pub fn robust_list(tid: i32) -> Result<(u64, u64), PtraceError> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: both pointers are to locals of the size the kernel writes.
    let result = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    if result == -1 { Err(PtraceError::last("get_robust_list", tid)) } else { Ok((head, len)) }
}
