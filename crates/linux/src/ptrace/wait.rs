//! Waiting for tracees.

use std::io;
use std::marker::PhantomData;
use std::time::Duration;

use super::{Event, ExitStatus, Poll, PtraceError, Running, StopReason, Stopped};

/// `si_code` of [`libc::PTRACE_EVENT_STOP`] and the other events stand above the signal in the wait status.
const EVENT_SHIFT: i32 = 16;
/// Set in the stop signal of system call stops by `PTRACE_O_TRACESYSGOOD`.
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;
const PTRACE_EVENT_STOP: i32 = 128;
/// Between looks at a leader that cannot be reaped yet.
const LEADER_PAUSE: Duration = Duration::from_micros(200);

impl Running {
    /// The thread's id.
    #[must_use]
    pub const fn tid(&self) -> i32 {
        self.tid
    }

    /// Asks the tracee to stop, to be seen by [`Running::wait`]. For one that is gone this does nothing: waiting tells.
    ///
    /// # Errors
    /// When the tracee is not ours any more.
    pub fn interrupt(&self) -> Result<(), PtraceError> {
        // SAFETY: PTRACE_INTERRUPT takes no pointers.
        let result = unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, self.tid, 0usize, 0usize) };
        if result == 0 {
            return Ok(());
        }
        let error = PtraceError::last("PTRACE_INTERRUPT", self.tid);
        if error.is_gone() { Ok(()) } else { Err(error) }
    }

    /// Waits until the tracee stops or ends.
    ///
    /// The kernel does not report a process's leader as dead before all its other threads are reaped. Where that would mean to
    /// wait for ever, the leader is reported with [`ExitStatus::Unknown`].
    ///
    /// # Errors
    /// When waiting itself fails.
    pub fn wait(self) -> Result<Event, PtraceError> {
        if !self.is_leader() {
            return match self.poll(0)? {
                Poll::Ready(event) => Ok(event),
                Poll::Pending(running) => Ok(Event::Exited(running.tid, ExitStatus::Unknown)),
            };
        }
        let mut running = self;
        loop {
            running = match running.try_wait()? {
                Poll::Ready(event) => return Ok(event),
                Poll::Pending(running) => running,
            };
            if peek(libc::P_ALL, 0, libc::__WNOTHREAD)
                .is_ok_and(|news| news.is_some_and(|news| news.tid == running.tid))
            {
                continue;
            }
            if is_zombie(running.tid) {
                return match running.try_wait()? {
                    Poll::Ready(event) => Ok(event),
                    Poll::Pending(running) => Ok(Event::Exited(running.tid, ExitStatus::Unknown)),
                };
            }
            std::thread::sleep(LEADER_PAUSE);
        }
    }

    /// Looks whether the tracee has stopped or ended, without waiting.
    ///
    /// # Errors
    /// When waiting itself fails.
    pub fn try_wait(self) -> Result<Poll, PtraceError> {
        self.poll(libc::WNOHANG)
    }

    /// Looks first, without taking the news: once the report of a signal's delivery is taken, the kernel drops the signal should
    /// the tracer die. Such reports stay until the tracee is resumed.
    fn poll(self, flags: i32) -> Result<Poll, PtraceError> {
        loop {
            match peek(libc::P_PID, self.tid, flags) {
                Ok(None) => return Ok(Poll::Pending(self)),
                Ok(Some(news)) if news.is_signal_delivery() => {
                    return self.event(news.status << 8 | 0x7f).map(Poll::Ready);
                }
                Ok(Some(_)) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::ECHILD) => {
                        return Ok(Poll::Ready(Event::Exited(self.tid, ExitStatus::Unknown)));
                    }
                    Some(libc::EINTR) => continue,
                    _ => return Err(PtraceError { operation: "waitid", tid: self.tid, source: error }),
                },
            }
            if let Some(status) = take(self.tid) {
                return self.event(status).map(Poll::Ready);
            }
        }
    }

    fn event(self, status: i32) -> Result<Event, PtraceError> {
        if libc::WIFEXITED(status) {
            return Ok(Event::Exited(self.tid, ExitStatus::Code(libc::WEXITSTATUS(status))));
        }
        if libc::WIFSIGNALED(status) {
            return Ok(Event::Exited(self.tid, ExitStatus::Signal(libc::WTERMSIG(status))));
        }
        let stopped = Stopped { tid: self.tid, thread_bound: PhantomData };
        let signal = libc::WSTOPSIG(status);
        let reason = match status >> EVENT_SHIFT {
            PTRACE_EVENT_STOP if signal == libc::SIGTRAP => StopReason::EventStop,
            PTRACE_EVENT_STOP => StopReason::Group(signal),
            0 if signal == SYSCALL_STOP => match stopped.at_syscall_entry() {
                Ok(true) => StopReason::SyscallEnter,
                Ok(false) => StopReason::SyscallExit,
                Err(error) if error.is_gone() => return stopped.into_running().wait(),
                Err(error) => return Err(error),
            },
            0 => match stopped.siginfo() {
                Ok(info) => StopReason::Signal(info),
                Err(error) if error.is_gone() => return stopped.into_running().wait(),
                Err(error) => return Err(error),
            },
            event => StopReason::Event(event),
        };
        Ok(Event::Stopped(stopped, reason))
    }

    fn is_leader(&self) -> bool {
        // SAFETY: signal 0 is not sent, only looked up: it exists for the leader's id as group id alone.
        unsafe { libc::syscall(libc::SYS_tgkill, self.tid, self.tid, 0) == 0 }
    }
}

impl Stopped {
    /// Whether it is not in that stop any more: it was killed, also by another thread's `execve`, which may have taken its id since.
    /// Then it is to be waited for.
    ///
    /// # Errors
    /// Itself, when it still stands still as far as can be told.
    pub fn if_killed(self) -> Result<Running, Self> {
        match peek(libc::P_PID, self.tid, libc::WNOHANG) {
            Ok(None) => Err(self),
            Ok(Some(_)) => Ok(self.into_running()),
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(self.into_running()),
            Err(_) => Err(self),
        }
    }
}

/// Whether a thread has ended, though it may still be listed.
pub(super) fn is_zombie(tid: i32) -> bool {
    let Ok(stat) = std::fs::read(format!("/proc/{tid}/stat")) else { return true };
    let Some(end) = stat.iter().rposition(|&byte| byte == b')') else { return false };
    matches!(stat.get(end + 2), Some(b'Z' | b'X'))
}

/// What waitid tells.
struct News {
    tid: i32,
    code: i32,
    /// The stop signal, with the event above it; or how it ended.
    status: i32,
}

impl News {
    fn is_signal_delivery(&self) -> bool {
        self.code == libc::CLD_TRAPPED && self.status < 1 << 8 && self.status != SYSCALL_STOP
    }
}

/// Waits until a tracee or child of this thread has something to tell, and says what, without taking the news. `None`: nothing
/// yet, with `WNOHANG` in `flags`.
fn peek(which: libc::idtype_t, tid: i32, flags: i32) -> io::Result<Option<News>> {
    const FLAGS: i32 = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL;
    // SAFETY: an all-zero siginfo_t is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the siginfo_t is a local.
    if unsafe { libc::waitid(which, tid.unsigned_abs(), &raw mut info, FLAGS | flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid filled in the members of SIGCHLD's variant, or left all zero.
    let (tid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((tid != 0).then_some(News { tid, code: info.si_code, status }))
}

/// Takes the news of a thread; its wait status.
pub(super) fn take(tid: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: the status is a local.
    let result = unsafe { libc::waitpid(tid, &raw mut status, libc::WNOHANG | libc::__WALL) };
    (result > 0).then_some(status)
}

/// Kills a child of ours, and waits for it and for all of its threads that we trace: it is not dead before.
///
/// Other children that end meanwhile are waited for too.
pub fn kill_and_reap(pid: i32) {
    // SAFETY: kill takes numbers only; the process is our child and not waited for, so the id is its.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    loop {
        // SAFETY: no status is asked for.
        let reaped = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WALL) };
        let interrupted = reaped == -1 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        if reaped == -1 && !interrupted || reaped == pid && !exists(pid) {
            return;
        }
    }
}

/// Kills one that we trace, whoever's child it is, and waits for it: until then nobody else can. Does nothing about others.
pub fn kill_and_reap_tracee(tid: i32) {
    let own = std::process::id().cast_signed();
    let is_ours = || {
        let status = crate::proc::Proc::open(tid).and_then(|proc| proc.status());
        status.is_ok_and(|status| status.tracer_pid == own)
    };
    while is_ours() {
        // SAFETY: kill takes numbers only; while we trace it and have not waited for it, the id is its.
        unsafe { libc::kill(tid, libc::SIGKILL) };
        // SAFETY: no status is asked for.
        if unsafe { libc::waitpid(tid, std::ptr::null_mut(), libc::__WALL) } == -1
            && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted
        {
            return;
        }
    }
}

/// Kills all children of ours but one, and waits for them, until there is none left: also those that become ours meanwhile.
///
/// # Panics
/// When `/proc` cannot be read.
pub fn kill_and_reap_children(but: Option<i32>) {
    loop {
        let own = crate::proc::Proc::own().and_then(|own| own.children());
        let children = own.expect("our own process is there");
        let mut killed = false;
        for child in children.into_iter().filter(|child| Some(*child) != but) {
            // SAFETY: kill takes numbers only; the process is our child and not waited for, so the id is its.
            unsafe { libc::kill(child, libc::SIGKILL) };
            // SAFETY: no status is asked for.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::__WALL) };
            killed = true;
        }
        if !killed {
            return;
        }
    }
}

/// Whether there is such a process, be it a zombie: what was reaped may have been a stop.
fn exists(pid: i32) -> bool {
    // SAFETY: signal 0 is only looked up.
    unsafe { libc::kill(pid, 0) == 0 }
}
