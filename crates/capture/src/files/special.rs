//! Objects without content of their own: eventfds, timerfds, signalfds. The kernel tells in fdinfo what is inside.

use std::time::Duration;

use rewake_image::records::{EventFd, SignalFd, TimerFd, open_file};
use rewake_linux::attributes;
use rewake_linux::proc::{FdInfo, Proc};
use rustix::time::{ClockId, clock_gettime};

use super::Seen;
use super::kind::{LET_FINISH, refuse};
use crate::findings::Refusal;

/// Looks at a timer that expires as fast as it is asked.
const TRIES: u32 = 20;
/// Clocks of `timerfd_create` besides the two ordinary ones.
const CLOCK_BOOTTIME: i32 = 7;
const CLOCK_BOOTTIME_ALARM: i32 = 9;

/// The record of an object by its link; `None` if it is of another kind.
pub(super) fn record(proc: &Proc, one: &Seen) -> Option<Result<open_file::Kind, Refusal>> {
    match &one.link.target[..] {
        b"anon_inode:[eventfd]" => Some(eventfd(&one.info).map(open_file::Kind::Eventfd)),
        b"anon_inode:[timerfd]" => Some(timerfd(proc, one).map(open_file::Kind::Timerfd)),
        b"anon_inode:[signalfd]" => Some(signalfd(&one.info).map(open_file::Kind::Signalfd)),
        _ => None,
    }
}

fn not_told<T>(what: &str) -> Result<T, Refusal> {
    refuse(format!("this kernel does not tell {what}"), LET_FINISH)
}

fn eventfd(info: &FdInfo) -> Result<EventFd, Refusal> {
    let Some(&count) = info.numbers("eventfd-count", 16).first() else {
        return not_told("what an eventfd counts");
    };
    match info.numbers("eventfd-semaphore", 10).first() {
        Some(semaphore) => Ok(EventFd { count, semaphore: *semaphore != 0 }),
        None => not_told("whether an eventfd counts down one by one (Linux 6.5 does)"),
    }
}

fn signalfd(info: &FdInfo) -> Result<SignalFd, Refusal> {
    match info.numbers("sigmask", 16).first() {
        Some(mask) => Ok(SignalFd { mask: *mask }),
        None => not_told("the signals of a signalfd"),
    }
}

/// A timer that repeats stands still from an expiration until the next look at it. Asking for the time left is such a look, and
/// changes nothing of what the program will read.
fn timerfd(proc: &Proc, one: &Seen) -> Result<TimerFd, Refusal> {
    for _ in 0..TRIES {
        let Ok(info) = proc.fdinfo(one.fd) else { break };
        let Some(timer) = timer_of(&info) else { break };
        let stands_still = timer.ticks > 0 && timer.interval_ns > 0 && timer.remaining_ns == 0;
        if !stands_still {
            return whole(timer, one);
        }
        let looked = attributes::duplicate(proc.id(), one.fd)
            .and_then(|own| Ok(rustix::time::timerfd_gettime(own)?.it_value.tv_nsec));
        if looked.is_err() {
            break;
        }
    }
    // It expires faster than anybody could tell where it is: any moment is as good.
    match timer_of(&one.info) {
        Some(timer) => whole(TimerFd { remaining_ns: timer.interval_ns, ..timer }, one),
        None => not_told("how a timerfd is set"),
    }
}

/// With the time by its clock when it expires. Called right after the time left was read.
fn whole(timer: TimerFd, one: &Seen) -> Result<TimerFd, Refusal> {
    const CANCEL_ON_SET: u32 = 2;
    if timer.settime_flags & CANCEL_ON_SET != 0
        && timer.ticks > 0
        && timer.interval_ns == 0
        && timer.remaining_ns > 0
    {
        let reason = "the clock was set, and the program has not yet been told so by this timerfd";
        return refuse(reason, format!("let the program read descriptor {} first", one.fd));
    }
    let clock = match timer.clock {
        libc::CLOCK_MONOTONIC => ClockId::Monotonic,
        CLOCK_BOOTTIME | CLOCK_BOOTTIME_ALARM => ClockId::Boottime,
        _ => ClockId::Realtime,
    };
    let now = Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let armed = timer.remaining_ns > 0;
    Ok(TimerFd { expires_ns: if armed { now.saturating_add(timer.remaining_ns) } else { 0 }, ..timer })
}

fn timer_of(info: &FdInfo) -> Option<TimerFd> {
    let nanoseconds = |key: &str| match info.numbers(key, 10)[..] {
        [seconds, nanoseconds] => seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds),
        _ => None,
    };
    Some(TimerFd {
        clock: i32::try_from(*info.numbers("clockid", 10).first()?).ok()?,
        ticks: *info.numbers("ticks", 10).first()?,
        settime_flags: u32::try_from(*info.numbers("settime flags", 8).first()?).ok()?,
        remaining_ns: nanoseconds("it_value")?,
        interval_ns: nanoseconds("it_interval")?,
        expires_ns: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(text: &str) -> FdInfo {
        FdInfo::parse(format!("pos:\t0\nflags:\t02\n{text}").as_bytes()).unwrap()
    }

    #[test]
    fn what_fdinfo_tells() {
        let text = "eventfd-count:              12c\neventfd-id: 1\neventfd-semaphore: 1\n";
        assert_eq!(eventfd(&info(text)).unwrap(), EventFd { count: 300, semaphore: true });
        assert!(eventfd(&info("eventfd-count: 1\n")).unwrap_err().reason.contains("6.5"));
        assert_eq!(signalfd(&info("sigmask:\t0000000000000200\n")).unwrap().mask, 1 << 9);
        let text = "clockid: 1\nticks: 3\nsettime flags: 01\nit_value: (2, 5)\nit_interval: (0, 50000000)\n";
        let expected = TimerFd {
            clock: 1,
            ticks: 3,
            settime_flags: 1,
            remaining_ns: 2_000_000_005,
            interval_ns: 50_000_000,
            expires_ns: 0,
        };
        assert_eq!(timer_of(&info(text)), Some(expected));
        assert_eq!(timer_of(&info("clockid: 1\n")), None);
    }
}
