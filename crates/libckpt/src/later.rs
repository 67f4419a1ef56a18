//! Requests that come while a checkpoint is being made: they are remembered, and sent again when it is over.
//!
//! # Safety
//! Unsafe here: a raw system call with a `siginfo_t` of ours.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::{AtomicU64, Ordering};

use crate::lead::BUSY;
use crate::{answer, raw, settings};

/// Most requests that wait for an answer.
const MOST: usize = 64;
/// In the place of a token: nobody waits for the answer.
const PLAIN: u64 = u64::MAX;

/// Tokens; 0 where there is none.
#[unsafe(link_section = ".data.rewake_forks")]
static WAITING: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];

/// Remembers a request. Those without a token are one.
pub fn remember(token: u64) {
    let wanted = if token == 0 { PLAIN } else { token };
    let is_there = |place: &AtomicU64| place.load(Ordering::SeqCst) == PLAIN;
    let take =
        |place: &AtomicU64| place.compare_exchange(0, wanted, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    let remembered = token == 0 && WAITING.iter().any(is_there) || WAITING.iter().any(take);
    if !remembered {
        answer::refuse(token, b"too many requests wait already", b"ask again later");
    }
    // It may have been over before this was remembered.
    if BUSY.load(Ordering::SeqCst) == 0 {
        send_again();
    }
}

/// Called when a checkpoint is over.
pub fn send_again() {
    for place in &WAITING {
        let token = place.swap(0, Ordering::SeqCst);
        if token != 0 {
            send(if token == PLAIN { 0 } else { token });
        }
    }
}

/// In another life nobody waits.
#[inline]
pub fn forget() {
    let waiting = WAITING.iter().filter(|place| place.load(Ordering::SeqCst) != 0);
    waiting.for_each(|place| place.store(0, Ordering::SeqCst));
}

fn send(token: u64) {
    let (process, signal) = (raw::getpid(), settings::signal());
    // siginfo_t: signal, error, code, padding, then pid, uid, value.
    let mut info = [0u64; 16];
    info[0] = u64::from(signal.unsigned_abs());
    info[1] = u64::from(libc::SI_QUEUE.cast_unsigned());
    info[2] = u64::from(process.unsigned_abs());
    info[3] = token;
    let args = [raw::word(process), raw::word(signal), info.as_ptr() as u64, 0, 0, 0];
    // SAFETY: a siginfo_t of ours.
    unsafe { raw::call(libc::SYS_rt_sigqueueinfo, args) };
}
