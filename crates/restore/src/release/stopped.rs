//! A process that was stopped by job control is stopped again, before it has run a single instruction.

use std::time::Duration;

use rewake_image::records::Process;
use rewake_linux::program::Sysno;
use rewake_linux::ptrace::{Event, Running, StopReason, Stopped};
use rewake_linux::signal::SignalSet;
use rustix::process::{Pid, Signal, kill_process};

use super::Release;
use crate::error::RestoreError;

const P_PID: u64 = 1;
/// WUNTRACED, WNOHANG and __WALL.
const STOPS: u64 = 2 | 1 | 0x4000_0000;
/// SIGCHLD, as the first byte of what is told with it.
const CHILD: u8 = 17;
/// Looks for the news of a stop, and how long between two.
const NEWS_TRIES: u32 = 100;
const NEWS_PAUSE: Duration = Duration::from_millis(1);
const SIG_IGN: u64 = 1;
const SA_NOCLDSTOP: u64 = 1;

/// Whether a process is sent a signal when a child stops.
fn hears(process: &Process, owner: Option<&Process>) -> bool {
    let actions = owner.map_or(&process.actions, |owner| &owner.actions);
    let action = actions.iter().find(|action| action.signal == u32::from(CHILD));
    action.is_none_or(|action| action.handler != SIG_IGN && action.flags & SA_NOCLDSTOP == 0)
}

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

    /// Another thread of a process that is being stopped: the last one completes it.
    pub(super) fn follow_into_stop(&self, tracee: Stopped) -> Result<Stopped, RestoreError> {
        match self.next(tracee.cont(0).map_err(|error| self.refused(error))?)? {
            (stopped, StopReason::Group(_)) => Ok(stopped),
            (_, reason) => Err(self.seed.died(&format!("unexpected stop: {reason:?}"))),
        }
    }

    /// The parent of a process that was stopped again: what it was told of that before it is not told again. The kernel sends the news in
    /// its own time.
    pub(super) fn hear_of(&self, child: &Process, tracee: Stopped) -> Result<Stopped, RestoreError> {
        let mut tracee = tracee;
        if child.stop_told {
            let pid = u64::from(child.pid.unsigned_abs());
            let args = [P_PID, pid, 0, STOPS, 0, 0];
            tracee = self.call(tracee, Sysno::waitid, args)?.0;
        }
        let pending = self.process.pending.iter().filter_map(|pending| pending.siginfo.first());
        if hears(self.process, self.owner_of_actions()) && !pending.into_iter().any(|signal| *signal == CHILD)
        {
            let set = self.seed.news().get();
            for _ in 0..NEWS_TRIES {
                let (stopped, result) =
                    self.call(tracee, Sysno::rt_sigtimedwait, [set, 0, set + 8, 8, 0, 0])?;
                tracee = stopped;
                if result != -i64::from(libc::EAGAIN) {
                    break;
                }
                std::thread::sleep(NEWS_PAUSE);
            }
        }
        Ok(tracee)
    }

    /// Whose dispositions it has.
    fn owner_of_actions(&self) -> Option<&Process> {
        self.process.actions_of.and_then(|owner| self.image.process(owner))
    }

    fn next(&self, running: Running) -> Result<(Stopped, StopReason), RestoreError> {
        match running.wait().map_err(|error| self.refused(error))? {
            Event::Stopped(stopped, reason) => Ok((stopped, reason)),
            Event::Exited(tid, _) => Err(self.seed.died(&format!("thread {tid} ended"))),
        }
    }
}
