//! Objects without content of their own: eventfds, timerfds, signalfds.

use rewake_image::records::{EventFd, NetlinkSocket, OpenFile, SignalFd, TimerFd, open_file};
use rewake_linux::program::{Accept, Sysno};

use super::super::{Planner, args};

const EFD_SEMAPHORE: u32 = 1;
/// `TFD_IOC_SET_TICKS`: `_IOW('T', 0, u64)`.
const SET_TICKS: u64 = 0x4008_5400;
const TFD_TIMER_ABSTIME: u32 = 1;
const MASK_SIZE: u64 = 8;
const NANOSECONDS: u64 = 1_000_000_000;
const NONBLOCK: u32 = libc::O_NONBLOCK.cast_unsigned();
const CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();

impl Planner<'_> {
    pub(super) fn eventfd(&mut self, spare: i32, file: &OpenFile, eventfd: &EventFd) {
        let mode = if eventfd.semaphore { EFD_SEMAPHORE } else { 0 };
        let args = args![0, mode | file.flags & NONBLOCK | CLOEXEC];
        self.program.call(self.leader, Sysno::eventfd2, args).accept(Accept::Exactly(0)).note("eventfd");
        if eventfd.count != 0 {
            let count = self.program.words(&[eventfd.count]);
            let call = self.program.call(self.leader, Sysno::write, args![0, count, 8]);
            call.accept(Accept::Exactly(8)).note(format!("eventfd counts {}", eventfd.count));
        }
        self.move_up(0, spare);
    }

    pub(super) fn signalfd(&mut self, spare: i32, file: &OpenFile, signals: &SignalFd) {
        let mask = self.program.words(&[signals.mask]);
        let args = args![-1, mask, MASK_SIZE, file.flags & NONBLOCK | CLOEXEC];
        let call = self.program.call(self.leader, Sysno::signalfd4, args).accept(Accept::Exactly(0));
        call.note(format!("signalfd for {:#x}", signals.mask));
        self.move_up(0, spare);
    }

    pub(super) fn netlink(&mut self, spare: i32, file: &OpenFile, socket: &NetlinkSocket) {
        let kind = socket.r#type | file.flags & NONBLOCK | CLOEXEC;
        let args = args![libc::AF_NETLINK, kind, libc::NETLINK_ROUTE];
        self.program.call(self.leader, Sysno::socket, args).accept(Accept::Exactly(0)).note("netlink socket");
        self.move_up(0, spare);
    }

    /// Expirations that were not read yet are there before anything can watch the timer.
    pub(super) fn timerfd(&mut self, spare: i32, file: &OpenFile, timer: &TimerFd) {
        let args = args![timer.clock, file.flags & NONBLOCK | CLOEXEC];
        let call = self.program.call(self.leader, Sysno::timerfd_create, args).accept(Accept::Exactly(0));
        call.note(format!("timerfd of clock {}", timer.clock));
        self.move_up(0, spare);
        if timer.ticks != 0 {
            self.set_timer(spare, timer);
            let ticks = self.program.words(&[timer.ticks]);
            let call = self.program.call(self.leader, Sysno::ioctl, args![spare, SET_TICKS, ticks]);
            call.note("expirations of a timerfd");
        }
    }

    /// The others begin to run as late as can be.
    pub(super) fn arm_timers(&mut self) {
        let image = self.image;
        for file in &image.open_files {
            if let Some(open_file::Kind::Timerfd(timer)) = &file.kind
                && timer.ticks == 0
                && let Some(spare) = self.spare_of(file.id)
            {
                self.set_timer(spare, timer);
            }
        }
    }

    /// A time by a clock that is another one since comes when what was left of it has passed.
    fn set_timer(&mut self, spare: i32, timer: &TimerFd) {
        let absolute = timer.settime_flags & TFD_TIMER_ABSTIME != 0
            && timer.remaining_ns != 0
            && (self.site.same_boot || is_realtime(timer.clock));
        let flags = if absolute || is_realtime(timer.clock) { timer.settime_flags } else { 0 };
        let value = if absolute { timer.expires_ns } else { timer.remaining_ns };
        let split = |ns: u64| [ns / NANOSECONDS, ns % NANOSECONDS];
        let value = self.program.words(&[split(timer.interval_ns), split(value)].concat());
        let args = args![spare, flags, value, 0];
        self.program.call(self.leader, Sysno::timerfd_settime, args).note("timerfd");
    }
}

/// `CLOCK_REALTIME` or `CLOCK_REALTIME_ALARM`.
fn is_realtime(clock: i32) -> bool {
    matches!(clock, libc::CLOCK_REALTIME | 8)
}
