//! Sections in which no checkpoint is made. A request that comes meanwhile is served when the last thread leaves its section.
//!
//! Whoever leads a checkpoint closes the *gate* and looks whether anybody is in a section then; whoever enters one counts himself and
//! waits while the gate is closed. So nobody stands still in a section.
//!
//! # Safety
//! Unsafe here: the place of three words, see [`crate::home`].

#![allow(unsafe_code, reason = "see Safety above")]

use core::ffi::c_int;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use super::words::own;
use super::{AGAIN, fail, prepare, signal_myself};
use crate::{answer, raw};

/// Threads that are in sections, or wait at the gate.
#[unsafe(link_section = ".data.rewake_forks")]
static DISABLED: AtomicU32 = AtomicU32::new(0);
/// 1: closed.
#[unsafe(link_section = ".data.rewake_forks")]
static GATE: AtomicU32 = AtomicU32::new(0);
/// A request was put off.
#[unsafe(link_section = ".data.rewake_forks")]
static LATER: AtomicU32 = AtomicU32::new(0);
/// Between two looks.
const MOMENT: u64 = 50_000_000;

/// Who asked, and what came with the signal, of a request that was put off.
pub static BY: AtomicI32 = AtomicI32::new(0);
/// See [`BY`].
pub static TOKEN: AtomicU64 = AtomicU64::new(0);

/// See ckpt.h.
pub fn disable() -> c_int {
    let words = own();
    let depth = words.sections.load(Ordering::Relaxed);
    if depth == u32::MAX {
        return fail(libc::EOVERFLOW, "too many sections in one another");
    }
    if depth == 0 {
        prepare();
        enter();
    }
    words.sections.store(depth + 1, Ordering::Relaxed);
    0
}

/// No checkpoint begins until this thread leaves, nor is one being made when this returns.
pub fn enter() {
    DISABLED.fetch_add(1, Ordering::SeqCst);
    while GATE.load(Ordering::SeqCst) != 0 {
        raw::futex_wait(&GATE, 1, Some(MOMENT));
    }
}

/// The thread leaves: the last one serves what was asked for meanwhile.
pub fn leave() {
    if DISABLED.fetch_sub(1, Ordering::SeqCst) == 1 {
        raw::futex_wake(&DISABLED);
        if LATER.swap(0, Ordering::SeqCst) != 0 {
            signal_myself(AGAIN);
        }
    }
}

/// See ckpt.h.
pub fn enable() -> c_int {
    let words = own();
    let depth = words.sections.load(Ordering::Relaxed);
    if depth == 0 {
        return fail(libc::EPERM, "this thread has not disabled checkpoints (ckpt_disable)");
    }
    words.sections.store(depth - 1, Ordering::Relaxed);
    if depth == 1 {
        leave();
    }
    0
}

/// Whoever leads closes the gate; false, and it stays open, when threads are in sections.
#[must_use]
pub fn close_gate() -> bool {
    GATE.store(1, Ordering::SeqCst);
    if DISABLED.load(Ordering::SeqCst) == 0 {
        return true;
    }
    open_gate();
    false
}

/// Whoever waits at the gate may enter.
pub fn open_gate() {
    GATE.store(0, Ordering::SeqCst);
    raw::futex_wake(&GATE);
}

/// Puts a request off; false when nobody is in a section any more, and it can be served at once.
#[must_use]
pub fn put_off(by: i32, token: u64) -> bool {
    BY.store(by, Ordering::SeqCst);
    // Only one is remembered. Whoever waits for another one is told.
    let other = TOKEN.swap(token, Ordering::SeqCst);
    if LATER.swap(1, Ordering::SeqCst) != 0 && other != token {
        answer::refuse(
            other,
            b"another request came while the program does not want checkpoints",
            b"ask again later",
        );
    }
    DISABLED.load(Ordering::SeqCst) != 0 || LATER.swap(0, Ordering::SeqCst) == 0
}

/// Waits a moment, or until nobody is in a section.
pub fn wait() {
    let now = DISABLED.load(Ordering::SeqCst);
    if now != 0 {
        raw::futex_wait(&DISABLED, now, Some(MOMENT));
    }
}

/// Waits until nobody is in a section.
pub fn wait_for_all() {
    while DISABLED.load(Ordering::SeqCst) != 0 {
        wait();
    }
}

/// A child has one thread, which is in the sections it was in.
#[inline]
pub fn in_child() {
    let disabled = u32::from(own().sections.load(Ordering::Relaxed) != 0);
    for (word, value) in [(&DISABLED, disabled), (&GATE, 0), (&LATER, 0)] {
        if word.load(Ordering::SeqCst) != value {
            word.store(value, Ordering::SeqCst);
        }
    }
}
