//! Timers of timer_create, with the ids the program knows them by.

use std::collections::BTreeSet;

use rewake_image::records::{PendingSignal, PosixTimer};
use rewake_linux::program::Sysno;

use super::{Planner, args};
use crate::error::RestoreError;

const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
/// Where ids cannot be chosen they count up from 0, and this is how far we count.
const MOST_IDS: i32 = 4096;
const NANOSECONDS: u64 = 1_000_000_000;
/// Places in a `siginfo_t` of a timer: the code, and the timer's id.
const CODE: usize = 8;
const TIMER_ID: usize = 16;
const SI_TIMER: i32 = -2;
const SIGEV_NONE: u32 = libc::SIGEV_NONE.unsigned_abs();

impl Planner<'_> {
    /// Makes and sets all timers; after the threads are there, since some are told in person.
    pub(super) fn timers(&mut self) -> Result<(), RestoreError> {
        let timers = &self.process.posix_timers;
        let Some(last) = timers.last() else { return Ok(()) };
        let leader = self.leader;
        if self.site.timer_ids {
            let on = args![PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0];
            self.program.call(leader, Sysno::prctl, on).note("timers get the ids asked for");
        } else if last.id >= MOST_IDS {
            return Err(RestoreError::Unsupported {
                pid: self.process.pid,
                object: format!("POSIX timer {}", last.id),
                reason: "this kernel does not let us choose the ids of timers (Linux 6.15 does)".into(),
            });
        }
        let mut next = 0;
        for timer in timers {
            while !self.site.timer_ids && next < timer.id {
                let clock = libc::CLOCK_MONOTONIC;
                self.create(&PosixTimer { id: next, clock, notify: SIGEV_NONE, ..PosixTimer::default() });
                self.program.call(leader, Sysno::timer_delete, args![next]).note("not this id");
                next += 1;
            }
            next = timer.id + 1;
            self.create(timer);
        }
        if self.site.timer_ids {
            self.program.call(leader, Sysno::prctl, args![PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0]);
        }
        let pending = self.timers_pending();
        for timer in timers {
            self.set(timer, pending.contains(&timer.id));
        }
        Ok(())
    }

    fn create(&mut self, timer: &PosixTimer) {
        let id = self.program.words(&[u64::from(timer.id.unsigned_abs())]);
        // struct sigevent: value, signal, how, thread.
        let signal = u64::from(timer.signal.unsigned_abs()) | u64::from(timer.notify) << 32;
        let thread = u64::from(timer.thread.unsigned_abs());
        let event = self.program.words(&[timer.value, signal, thread, 0, 0, 0, 0, 0]);
        let note = format!("POSIX timer {}", timer.id);
        if timer.thread != 0 {
            self.write_id(timer.thread, event.skip(16));
        }
        let clock = self.clock_now(timer.clock);
        self.program.call(self.leader, Sysno::timer_create, args![clock, event, id]).note(note);
    }

    /// A timer whose signal is pending fires at once, when its last expiration would have been: the kernel then keeps the signal and
    /// counts overruns as it did. Any other goes on with the time that was left.
    fn set(&mut self, timer: &PosixTimer, pending: bool) {
        let split = |ns: u64| [ns / NANOSECONDS, ns % NANOSECONDS];
        let (mut flags, mut value) = (0, timer.remaining_ns);
        if pending {
            let now = self.site.clocks.get(&timer.clock).copied();
            let since = timer.interval_ns.saturating_sub(timer.remaining_ns);
            (flags, value) = match now.and_then(|now| now.checked_sub(since)) {
                Some(last) if timer.interval_ns != 0 && last != 0 => (libc::TIMER_ABSTIME, last),
                _ => (0, 1),
            };
        } else if timer.remaining_ns == 0 {
            return;
        }
        let words = [split(timer.interval_ns), split(value)].concat();
        let value = self.program.words(&words);
        let note =
            format!("POSIX timer {}{}", timer.id, if pending { ", its signal is pending" } else { "" });
        self.program.call(self.leader, Sysno::timer_settime, args![timer.id, flags, value, 0]).note(note);
    }

    /// Timers whose signal is pending.
    fn timers_pending(&self) -> BTreeSet<i32> {
        let process = self.process;
        let all = process.pending.iter().chain(process.threads.iter().flat_map(|thread| &thread.pending));
        all.filter_map(|pending| self.timer_behind(pending)).collect()
    }

    /// The timer that a pending signal came from: it is not queued again, the timer does that.
    pub(super) fn timer_behind(&self, pending: &PendingSignal) -> Option<i32> {
        let number =
            |at: usize| pending.siginfo.get(at..)?.first_chunk::<4>().map(|bytes| i32::from_le_bytes(*bytes));
        let id = number(TIMER_ID).filter(|_| number(CODE) == Some(SI_TIMER))?;
        let timers = &self.process.posix_timers;
        timers.iter().any(|timer| timer.id == id && Some(timer.signal) == pending.signal()).then_some(id)
    }
}
