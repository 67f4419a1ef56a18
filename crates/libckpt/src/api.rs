//! What programs may call: `include/ckpt.h` says what each function means.
//!
//! All of it runs in the normal course of a thread, and the checkpoint itself in the handler of the signal as ever: a thread that wants
//! one sends that signal to itself, with a value that says so, and finds the outcome among its own [`words`].
//!
//! # Safety
//! Unsafe here: functions of the C interface, whose callers answer for what they give; raw system calls with words of ours.

#![allow(unsafe_code, reason = "see Safety above")]

pub mod callbacks;
pub mod excluded;
pub mod sections;
pub mod words;

use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicU32, Ordering};

use crate::gather::PLACE_BITS;
use crate::lead::BUSY;
use crate::{home, raw, settings};
use callbacks::{After, Before};
use words::{Words, own};

/// In the value of the signal by which a thread asks for a checkpoint itself: for its own sake, or for that of a request that was put off.
pub const HERE: u64 = 0x6865_7265 << PLACE_BITS;
/// The request that was put off.
pub const FOR_OTHERS: u64 = 1;
/// A request that was put off because of sections is made again: nobody waits for the outcome.
pub const AGAIN: u64 = HERE | 2;

/// What a thread finds when no handler of ours came.
const UNANSWERED: i32 = i32::MIN;
/// Between two attempts.
const MOMENT: u64 = 5_000_000;
const SI_QUEUE: i32 = -1;
const SET: u64 = 8;

/// One checkpoint of a thread's own wish at a time: callbacks are not called in two threads at once.
static TURN: AtomicU32 = AtomicU32::new(0);
static PREPARED: AtomicU32 = AtomicU32::new(0);

/// A lock for threads in their normal course.
pub(crate) fn lock(lock: &AtomicU32) {
    while lock.swap(1, Ordering::AcqRel) != 0 {
        raw::futex_wait(lock, 1, Some(MOMENT));
    }
}

/// Gives it back.
pub(crate) fn unlock(lock: &AtomicU32) {
    lock.store(0, Ordering::Release);
    raw::futex_wake(lock);
}

/// Has libc tell us of children: they begin without sections of other threads, callbacks, and a checkpoint in the making.
pub(crate) fn prepare() {
    if PREPARED.swap(1, Ordering::AcqRel) == 0 {
        // SAFETY: a function of this library, which stays loaded.
        unsafe { libc::pthread_atfork(None, None, Some(child)) };
    }
}

extern "C" fn child() {
    for word in [&TURN, &BUSY] {
        word.store(0, Ordering::Release);
    }
    sections::in_child();
    callbacks::in_child();
    excluded::in_child();
}

/// Notes why a call of the interface failed; its result.
pub(crate) fn fail(error: i32, why: &str) -> c_int {
    own().say(why.as_bytes());
    -error
}

/// Makes a checkpoint; 0 after it, 1 in another life, a negative error number if there is none.
fn here(why: u64) -> c_int {
    let words = own();
    if home::is_away() {
        return fail(
            libc::ECHILD,
            "a child made by vfork, _Fork or a direct system call makes no checkpoints",
        );
    }
    if words.inside.load(Ordering::Relaxed) != 0 {
        return fail(libc::EDEADLK, "called by a callback: the checkpoint is in the making");
    }
    if words.sections.load(Ordering::Relaxed) != 0 {
        return fail(libc::EDEADLK, "this thread has disabled checkpoints (ckpt_disable)");
    }
    if home::maker_lives() {
        return fail(
            libc::ECHILD,
            "a child of the program makes no checkpoints as long as its parent lives; families are not supported from inside yet",
        );
    }
    prepare();
    words.inside.store(1, Ordering::Relaxed);
    lock(&TURN);
    callbacks::before();
    let result = ask(words, why);
    callbacks::after(result);
    unlock(&TURN);
    words.inside.store(0, Ordering::Relaxed);
    result
}

/// Asks by the signal until it is this thread's turn.
fn ask(words: &Words, why: u64) -> c_int {
    if words.sections.load(Ordering::Relaxed) != 0 {
        return fail(libc::EDEADLK, "a callback has disabled checkpoints (ckpt_disable)");
    }
    loop {
        words.outcome.store(UNANSWERED, Ordering::Relaxed);
        signal_myself(why);
        match words.outcome.load(Ordering::Relaxed) {
            UNANSWERED => {
                return fail(
                    libc::ENOSYS,
                    "the library does not have its signal: it is not active in this program, or the signal was taken \
                     from it by a direct system call",
                );
            }
            busy if busy == -libc::EBUSY => raw::futex_wait(&BUSY, 1, Some(MOMENT)),
            later if later == -libc::EAGAIN => sections::wait(),
            outcome => return outcome,
        }
    }
}

/// Sends the signal to the calling thread, which takes it before this returns.
pub(crate) fn signal_myself(why: u64) {
    let ours = 1u64 << (settings::signal() - 1);
    let mut before = 0u64;
    let mask = |how: c_int, new: &u64, old: *mut u64| {
        let args = [raw::word(how), core::ptr::from_ref(new) as u64, old as u64, SET, 0, 0];
        // SAFETY: sets of ours.
        unsafe { raw::call(libc::SYS_rt_sigprocmask, args) };
    };
    mask(libc::SIG_UNBLOCK, &ours, &raw mut before);
    queue_for_myself(why);
    mask(libc::SIG_SETMASK, &before, core::ptr::null_mut());
}

/// Sends the signal to the calling thread, which takes it when it may.
pub(crate) fn queue_for_myself(why: u64) {
    // siginfo_t: signal, error, code, padding, then pid, uid, value.
    let mut info = [0u64; 16];
    info[0] = u64::from(settings::signal().unsigned_abs());
    info[1] = u64::from(SI_QUEUE.cast_unsigned());
    info[2] = u64::from(raw::getpid().unsigned_abs());
    info[3] = why;
    let own = [
        raw::word(raw::getpid()),
        raw::word(raw::gettid()),
        raw::word(settings::signal()),
        info.as_ptr() as u64,
        0,
        0,
    ];
    // SAFETY: a siginfo_t of ours.
    unsafe { raw::call(libc::SYS_rt_tgsigqueueinfo, own) };
}

/// For a request that callbacks have to be called for.
pub(crate) fn here_for_others() {
    here(HERE | FOR_OTHERS);
}

/// See ckpt.h.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn ckpt_here() -> c_int {
    here(HERE)
}

/// See ckpt.h.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn ckpt_disable() -> c_int {
    sections::disable()
}

/// See ckpt.h.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn ckpt_enable() -> c_int {
    sections::enable()
}

/// See ckpt.h.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn ckpt_exclude(address: *mut c_void, length: usize) -> c_int {
    excluded::exclude(address as u64, length as u64)
}

/// See ckpt.h.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn ckpt_include(address: *mut c_void, length: usize) -> c_int {
    excluded::include(address as u64, length as u64)
}

/// See ckpt.h.
///
/// # Safety
/// The function can be called with this argument, in any thread.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn ckpt_on_checkpoint(function: Option<Before>, argument: *mut c_void) -> c_int {
    match function {
        Some(function) => callbacks::add(callbacks::Kind::Before, function as usize, argument as usize),
        None => fail(libc::EINVAL, "no function"),
    }
}

/// See ckpt.h.
///
/// # Safety
/// The function can be called with this argument, in any thread.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn ckpt_on_resume(function: Option<After>, argument: *mut c_void) -> c_int {
    match function {
        Some(function) => callbacks::add(callbacks::Kind::After, function as usize, argument as usize),
        None => fail(libc::EINVAL, "no function"),
    }
}

/// See ckpt.h.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn ckpt_forget(argument: *mut c_void) -> c_int {
    callbacks::forget(argument as usize)
}

/// See ckpt.h.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn ckpt_error() -> *const c_char {
    own().text()
}
