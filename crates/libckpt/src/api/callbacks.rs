//! Functions of the program's that are called before and after a checkpoint, in the normal course of a thread: they may lock, allocate
//! and print.
//!
//! In `ckpt_here` that thread is the caller. For requests by signal it is a thread of the library's own, which the first callback
//! starts: whoever gets the signal only wakes it, and it asks for the checkpoint as any other thread would.
//!
//! # Safety
//! Unsafe here: functions that the program gave for this purpose; a thread that stays.

#![allow(unsafe_code, reason = "see Safety above")]

use core::ffi::{c_int, c_void};
use core::mem::transmute;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::{fail, here_for_others, lock, prepare, sections, unlock};
use crate::{answer, raw};

/// Called before a checkpoint.
pub type Before = unsafe extern "C" fn(*mut c_void);
/// Called after it.
pub type After = unsafe extern "C" fn(c_int, *mut c_void);

/// When a function is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Before a checkpoint, the last registered first.
    Before,
    /// After it, the first registered first.
    After,
}

/// Most functions.
const MOST: usize = 64;

struct Entry {
    kind: AtomicU32,
    function: AtomicUsize,
    argument: AtomicUsize,
}

static TABLE: [Entry; MOST] = [const {
    Entry { kind: AtomicU32::new(0), function: AtomicUsize::new(0), argument: AtomicUsize::new(0) }
}; MOST];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static LOCK: AtomicU32 = AtomicU32::new(0);
/// There is a thread for requests.
static SERVED: AtomicU32 = AtomicU32::new(0);
/// It is asked for a checkpoint.
static REQUESTED: AtomicU32 = AtomicU32::new(0);

type Copied = ([(u32, usize, usize); MOST], usize);

fn copied() -> Copied {
    let mut copies = [(0, 0, 0); MOST];
    lock(&LOCK);
    let count = COUNT.load(Ordering::Relaxed).min(MOST);
    for (copy, entry) in copies.iter_mut().zip(&TABLE).take(count) {
        let (function, argument) = (&entry.function, &entry.argument);
        *copy = (
            entry.kind.load(Ordering::Relaxed),
            function.load(Ordering::Relaxed),
            argument.load(Ordering::Relaxed),
        );
    }
    unlock(&LOCK);
    (copies, count)
}

/// Calls those for before.
pub fn before() {
    let (copies, count) = copied();
    for &(_, function, argument) in copies[..count].iter().rev().filter(|one| one.0 == Kind::Before as u32) {
        // SAFETY: registered as such a function, with this argument.
        unsafe { transmute::<usize, Before>(function)(argument as *mut c_void) };
    }
}

/// Calls those for after.
pub fn after(result: c_int) {
    let (copies, count) = copied();
    for &(_, function, argument) in copies[..count].iter().filter(|one| one.0 == Kind::After as u32) {
        // SAFETY: registered as such a function, with this argument.
        unsafe { transmute::<usize, After>(function)(result, argument as *mut c_void) };
    }
}

/// See ckpt.h.
pub fn add(kind: Kind, function: usize, argument: usize) -> c_int {
    prepare();
    lock(&LOCK);
    let count = COUNT.load(Ordering::Relaxed);
    let result = match TABLE.get(count) {
        None => Err((libc::ENOSPC, "there are as many callbacks as can be")),
        Some(_) if !served() => Err((libc::EAGAIN, "no thread could be made for callbacks")),
        Some(entry) => {
            entry.kind.store(kind as u32, Ordering::Relaxed);
            entry.function.store(function, Ordering::Relaxed);
            entry.argument.store(argument, Ordering::Relaxed);
            COUNT.store(count + 1, Ordering::Release);
            Ok(())
        }
    };
    unlock(&LOCK);
    result.map_or_else(|(error, why)| fail(error, why), |()| 0)
}

/// See ckpt.h.
pub fn forget(argument: usize) -> c_int {
    lock(&LOCK);
    let count = COUNT.load(Ordering::Relaxed).min(MOST);
    let mut kept = 0;
    for from in &TABLE[..count] {
        let to = &TABLE[kept];
        if from.argument.load(Ordering::Relaxed) == argument {
            continue;
        }
        to.kind.store(from.kind.load(Ordering::Relaxed), Ordering::Relaxed);
        to.function.store(from.function.load(Ordering::Relaxed), Ordering::Relaxed);
        to.argument.store(from.argument.load(Ordering::Relaxed), Ordering::Relaxed);
        kept += 1;
    }
    COUNT.store(kept, Ordering::Release);
    unlock(&LOCK);
    if kept == count { fail(libc::ENOENT, "no callback has this argument") } else { 0 }
}

/// Starts the thread for requests, once; whether there is one.
fn served() -> bool {
    if SERVED.load(Ordering::Acquire) != 0 {
        return true;
    }
    let mut thread: libc::pthread_t = 0;
    // SAFETY: a thread that begins in a function of ours and never ends.
    let made = unsafe {
        let made = libc::pthread_create(&raw mut thread, core::ptr::null(), serve, null_mut()) == 0;
        if made {
            libc::pthread_detach(thread);
        }
        made
    };
    SERVED.store(u32::from(made), Ordering::Release);
    made
}

/// Has the thread for requests make the checkpoint that was asked for; false when there is nobody to call before it.
#[must_use]
pub fn hand_over(by: i32, token: u64) -> bool {
    if COUNT.load(Ordering::Acquire) == 0 || SERVED.load(Ordering::Acquire) == 0 {
        return false;
    }
    sections::BY.store(by, Ordering::SeqCst);
    let other = sections::TOKEN.swap(token, Ordering::SeqCst);
    if REQUESTED.swap(1, Ordering::SeqCst) != 0 && other != token {
        answer::refuse(other, b"another request came while callbacks were awaited", b"ask again");
    }
    raw::futex_wake(&REQUESTED);
    true
}

extern "C" fn serve(_: *mut c_void) -> *mut c_void {
    /// Libc's own signals, and ours: all others are for the program's threads.
    const LET_THROUGH: u64 = 1 << 31 | 1 << 32 | 1 << 33;
    let blocked = !LET_THROUGH;
    let name = c"ckpt-callbacks";
    // SAFETY: a set and a string of ours.
    unsafe {
        let args = [raw::word(libc::SIG_SETMASK), &raw const blocked as u64, 0, 8, 0, 0];
        raw::call(libc::SYS_rt_sigprocmask, args);
        raw::call(libc::SYS_prctl, [raw::word(libc::PR_SET_NAME), name.as_ptr() as u64, 0, 0, 0, 0]);
    }
    loop {
        if REQUESTED.swap(0, Ordering::SeqCst) == 0 {
            raw::futex_wait(&REQUESTED, 0, None);
            continue;
        }
        sections::wait_for_all();
        here_for_others();
    }
}

/// A child begins without callbacks: the thread for requests is its parent's.
pub fn in_child() {
    COUNT.store(0, Ordering::Release);
    for word in [&LOCK, &SERVED, &REQUESTED] {
        word.store(0, Ordering::Release);
    }
}
