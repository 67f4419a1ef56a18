//! Which process the library is at home in: not in children that the program makes without another program in them.
//!
//! Such a child has the handler, and the program's memory: its own copy of it (fork), or the very same (vfork). It must make no image,
//! which would be taken for one of the program. When the process that made it is gone it has become the program itself (daemons do so).
//!
//! What every child looks at is in one section of the library's data, `.data.rewake_forks`, and the functions that look are in one piece: a
//! child pays for each page that it touches first, and fork with the library must cost hardly more than without.
//!
//! # Safety
//! Unsafe here: a handler that libc calls in children, and a raw system call without arguments.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::{AtomicI32, Ordering};

use crate::voice::Line;
use crate::{answer, entry, lineage, raw};

/// Ids of processes.
#[repr(align(64))]
struct Ids {
    /// The process.
    home: AtomicI32,
    /// The one that made it, if that had the library and had it copied.
    parent: AtomicI32,
    /// Who makes one.
    maker: AtomicI32,
}

#[unsafe(link_section = ".data.rewake_forks")]
static IDS: Ids = Ids { home: AtomicI32::new(0), parent: AtomicI32::new(0), maker: AtomicI32::new(0) };

fn set(home: i32, parent: i32) {
    IDS.home.store(home, Ordering::Release);
    IDS.maker.store(home, Ordering::Release);
    IDS.parent.store(parent, Ordering::Release);
}

/// This process is the program.
pub fn settle() {
    set(raw::getpid(), 0);
}

/// This process is the program; children made from now on know that they are not.
pub fn begin() {
    settle();
    // SAFETY: the function touches words of ours only. Without memory for it, children make no images.
    unsafe { libc::pthread_atfork(Some(in_maker), None, Some(in_child)) };
}

/// The child cannot ask for it: its maker may have ended by then, as that of a daemon does. Nearly always it is known.
extern "C" fn in_maker() {
    let pid = raw::getpid();
    if IDS.maker.load(Ordering::Acquire) != pid {
        IDS.maker.store(pid, Ordering::Release);
    }
}

extern "C" fn in_child() {
    set(raw::getpid(), IDS.maker.load(Ordering::Acquire));
    lineage::forget();
    entry::forked();
}

fn parent() -> i32 {
    // SAFETY: no arguments.
    let id = unsafe { raw::call(libc::SYS_getppid, [0; 6]) };
    i32::try_from(id).unwrap_or(0)
}

/// Whether the library knows this process: it was started, woken, or made by fork(3).
#[must_use]
pub fn is_home() -> bool {
    IDS.home.load(Ordering::Acquire) == raw::getpid()
}

/// Whether it was made in another way by a process with the library: their memory may be one and the same.
#[must_use]
pub fn is_away() -> bool {
    IDS.home.load(Ordering::Acquire) != 0 && !is_home()
}

/// Whether this process is the program. Whoever asked with this token is told so, or whoever reads what it says, if it is a child of it.
#[must_use]
pub fn is_here(token: u64) -> bool {
    if !is_home() {
        // The program waits until this one becomes another program.
        return false;
    }
    if !maker_lives() {
        return true;
    }
    tell(token, IDS.parent.load(Ordering::Acquire));
    false
}

/// Whether this process was made by one with the library that is there yet.
#[must_use]
pub fn maker_lives() -> bool {
    let parent_then = IDS.parent.load(Ordering::Acquire);
    parent_then != 0 && parent_then == parent()
}

/// Not inlined: there may be little room on the stack of those who do not need it.
#[cold]
#[inline(never)]
fn tell(token: u64, parent: i32) {
    let mut cause = Line::new(b"process ");
    cause.number(raw::getpid().unsigned_abs().into());
    cause.text(b" is a child of process ");
    cause.number(parent.unsigned_abs().into());
    cause.text(b"; families are not supported from inside yet");
    if !answer::refuse(token, cause.as_bytes(), b"use chkpnt, from outside") {
        let mut line = Line::new(b"libckpt: no checkpoint: ");
        line.text(cause.as_bytes());
        line.say();
    }
}
