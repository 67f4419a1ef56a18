//! Checkpoints at intervals: a timer of the kernel's sends the signal.
//!
//! It is taken away when a checkpoint begins and made anew when it is over, or in another life: so it is in no image, and the time
//! counts from the end of the last checkpoint. A child made by fork has none.
//!
//! # Safety
//! Unsafe here: raw system calls with structures of ours.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::{AtomicI32, Ordering};

use crate::{entry, raw, settings};

/// What comes with its signal.
pub const VALUE: u64 = 0x7265_7761_6b65;

/// Its id, and the process it is of: 0 for none.
static TIMER: AtomicI32 = AtomicI32::new(-1);
static OWNER: AtomicI32 = AtomicI32::new(0);

/// Makes it, if checkpoints are wanted at intervals.
pub fn start() {
    let seconds = u64::from(settings::interval());
    if seconds == 0 || entry::ON.load(Ordering::Relaxed) == 0 {
        return;
    }
    // struct sigevent: value, signal, how, and room.
    let mut event = [0u64; 8];
    event[0] = VALUE;
    event[1] =
        u64::from(settings::signal().unsigned_abs()) | u64::from(libc::SIGEV_SIGNAL.unsigned_abs()) << 32;
    let mut id = -1i32;
    let clock = raw::word(libc::CLOCK_MONOTONIC);
    // struct itimerspec: interval, then what is left. Should nobody take the signal for so long, it comes again.
    let times = [seconds, 0, seconds, 0];
    // SAFETY: structures of ours.
    let made = unsafe {
        let args = [clock, event.as_ptr() as u64, &raw mut id as u64, 0, 0, 0];
        let made = raw::call(libc::SYS_timer_create, args);
        if made == 0 {
            raw::call(libc::SYS_timer_settime, [raw::word(id), 0, times.as_ptr() as u64, 0, 0, 0])
        } else {
            made
        }
    };
    if made == 0 {
        TIMER.store(id, Ordering::Relaxed);
        OWNER.store(raw::getpid(), Ordering::Relaxed);
    } else {
        crate::voice::say(
            b"libckpt: there is no timer for checkpoints at intervals (limit of pending signals)",
        );
    }
}

/// Takes it away.
pub fn stop() {
    if OWNER.swap(0, Ordering::Relaxed) == raw::getpid() {
        let id = TIMER.swap(-1, Ordering::Relaxed);
        // SAFETY: a number of ours: no other process has made this timer.
        unsafe { raw::call(libc::SYS_timer_delete, [raw::word(id), 0, 0, 0, 0, 0]) };
    }
}
