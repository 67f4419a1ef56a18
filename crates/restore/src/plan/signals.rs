//! Dispositions and pending signals.

use rewake_image::records::{PendingSignal, Thread};
use rewake_linux::program::{DataRef, Sysno, TrackRef};

use super::{Planner, args};

const SIGKILL: u32 = 9;
const SIGSTOP: u32 = 19;
const HIGHEST: u32 = 64;
const MASK_SIZE: i32 = 8;

impl Planner<'_> {
    /// All of them, also the defaults: the seed has `resume`'s.
    pub(super) fn dispositions(&mut self) {
        for signal in (1..=HIGHEST).filter(|signal| ![SIGKILL, SIGSTOP].contains(signal)) {
            let found = self.process.actions.iter().find(|action| action.signal == signal);
            let action = found.copied().unwrap_or_default();
            // struct kernel_sigaction
            let words = [action.handler, action.flags, action.restorer, action.mask];
            let data = self.program.words(&words);
            let args = args![signal, data, 0, MASK_SIZE];
            self.program.call(self.leader, Sysno::rt_sigaction, args).note(format!("signal {signal}"));
        }
    }

    /// The process's, queued by the leader while all signals are blocked; delivered once the threads have their masks back. Signals
    /// that seem to come from the kernel a thread may queue for itself only, whoever it is.
    pub(super) fn pending_signals(&mut self) {
        let pid = self.id(self.leader, self.process.pid);
        for pending in &self.process.pending {
            if self.timer_behind(pending).is_some() {
                continue;
            }
            let (signal, info) = self.siginfo(self.leader, pending);
            let call =
                self.program.call(self.leader, Sysno::rt_sigqueueinfo, [pid, signal.into(), info.into()]);
            call.note(format!("pending signal {signal}"));
        }
    }

    /// A thread's own.
    pub(super) fn pending_of_thread(&mut self, track: TrackRef, thread: &Thread) {
        for pending in &thread.pending {
            if self.timer_behind(pending).is_some() {
                continue;
            }
            let (signal, info) = self.siginfo(track, pending);
            let (pid, tid) = (self.id(track, self.process.pid), self.id(track, thread.tid));
            let args = [pid, tid, signal.into(), info.into()];
            let call = self.program.call(track, Sysno::rt_tgsigqueueinfo, args);
            call.note(format!("pending signal {signal} of thread {}", thread.tid));
        }
    }

    fn siginfo(&mut self, track: TrackRef, pending: &PendingSignal) -> (i32, DataRef) {
        let signal = pending.siginfo.first_chunk::<4>().map_or(0, |bytes| i32::from_le_bytes(*bytes));
        let info = self.program.bytes(&pending.siginfo);
        self.sender_now(track, pending, info);
        (signal, info)
    }
}
