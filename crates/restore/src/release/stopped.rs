//! A process that was stopped by job control is stopped again, before it has run a single instruction.

use rewake_linux::ptrace::{Event, Running, StopReason, Stopped};
use rewake_linux::signal::SignalSet;
use rustix::process::{Pid, Signal, kill_process};

use super::Release;
use crate::error::RestoreError;

impl Release<'_> {
    /// Stops the process by `signal`, or by SIGSTOP where the kernel ignores that (an orphaned process group). One thread, with its
    /// registers set, takes the signal; the kernel then stops the others as they are let go.
    pub(super) fn stop_process(&self, tracee: Stopped, signal: i32) -> Result<Stopped, RestoreError> {
        let refused = |error| self.refused(error);
        let mut tracee = tracee;
        for signal in [signal, libc::SIGSTOP] {
            // Nothing but what is sent here.
            tracee.set_signal_mask(SignalSet::ALL.without(signal)).map_err(refused)?;
            let pid = Pid::from_raw(self.pid).expect("an id of a process");
            kill_process(pid, Signal::STOP).map_err(|errno| self.seed.died(&errno.to_string()))?;
            let (taken, reason) = self.next(tracee.cont(0).map_err(refused)?)?;
            if !matches!(reason, StopReason::Signal(info) if info.signal() == libc::SIGSTOP) {
                return Err(self.seed.died(&format!("unexpected stop: {reason:?}")));
            }
            // A stop in any case: should the signal be ignored, the thread does not run on.
            taken.interrupt_next().map_err(refused)?;
            let (stopped, reason) = self.next(taken.cont(signal).map_err(refused)?)?;
            match reason {
                StopReason::Group(_) => return Ok(stopped),
                StopReason::EventStop => tracee = stopped,
                reason => return Err(self.seed.died(&format!("unexpected stop: {reason:?}"))),
            }
        }
        Err(self.seed.died("it does not stop"))
    }

    fn next(&self, running: Running) -> Result<(Stopped, StopReason), RestoreError> {
        match running.wait().map_err(|error| self.refused(error))? {
            Event::Stopped(stopped, reason) => Ok((stopped, reason)),
            Event::Exited(tid, _) => Err(self.seed.died(&format!("thread {tid} ended"))),
        }
    }
}
