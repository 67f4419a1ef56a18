//! Copies that write images while the program goes on: which are still there.
//!
//! # Safety
//! Unsafe here: a raw system call with a name of ours.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use rewake_linux::inside::COPY;

use crate::mailbox::Mailbox;
use crate::raw;

/// Copies that wrote the last images or kept memory for those, some of which may be at it yet: the last one behind [`LAST`].
static COPIES: [AtomicI32; MOST] = [const { AtomicI32::new(0) }; MOST];
static LAST: AtomicUsize = AtomicUsize::new(0);
const MOST: usize = 64;

/// In another life nobody writes.
pub fn nobody() {
    COPIES.iter().for_each(|copy| copy.store(0, Ordering::Relaxed));
}

/// Whether the last image is being written yet.
#[must_use]
pub fn is_busy() -> bool {
    lives(COPIES[LAST.load(Ordering::Relaxed) % MOST].load(Ordering::Relaxed))
}

/// Copies that were made before and are there yet.
pub fn others() -> impl Iterator<Item = i32> {
    COPIES.iter().map(|copy| copy.load(Ordering::Relaxed)).filter(|copy| lives(*copy))
}

/// Takes leave of copies that have ended: in a container they are left to its first process, which may be this one.
pub fn reap() {
    let options = raw::word(libc::WNOHANG | libc::__WALL);
    for copy in COPIES.iter().filter(|copy| copy.load(Ordering::Relaxed) != 0) {
        let id = copy.load(Ordering::Relaxed);
        // SAFETY: nothing is told.
        let reaped = unsafe { raw::call(libc::SYS_wait4, [raw::word(id), 0, options, 0, 0, 0]) };
        if reaped == i64::from(id) {
            copy.store(0, Ordering::Relaxed);
        }
    }
}

fn lives(copy: i32) -> bool {
    if copy == 0 {
        return false;
    }
    let mut path = *b"/proc/........../stat\0";
    let (mut rest, mut at) = (copy.unsigned_abs(), 16);
    while at > 6 {
        at -= 1;
        // Zeros before it are the kernel's to refuse: the number is put behind slashes instead.
        path[at] = if rest == 0 { b'/' } else { b'0' + u8::try_from(rest % 10).unwrap_or(0) };
        rest /= 10;
    }
    // It may be another process by now, or have ended and not been waited for.
    let state = raw::state_in(&path, |name| name == COPY.to_bytes());
    state.is_some_and(|state| !b"ZX".contains(&state))
}

/// Gives this process the name of copies, those that it makes included.
pub fn take_name() {
    let name = COPY.as_ptr() as u64;
    // SAFETY: a string of ours.
    unsafe { raw::call(libc::SYS_prctl, [raw::word(libc::PR_SET_NAME), name, 0, 0, 0, 0]) };
}

/// Called by a copy: tells its id. `keeper` keeps the memory that it reads, if another does.
pub fn introduce(mailbox: &Mailbox, keeper: Option<i32>) {
    let [writer, other] = mailbox.copies();
    other.store(keeper.unwrap_or(0).unsigned_abs(), Ordering::Release);
    writer.store(raw::getpid().unsigned_abs(), Ordering::Release);
}

/// Called by the process, while there is a mailbox: remembers them.
pub fn note(mailbox: &Mailbox) {
    let [writer, keeper] = mailbox.copies().map(|id| i32::try_from(id.load(Ordering::Acquire)).unwrap_or(0));
    // The writer last.
    for copy in [keeper, writer] {
        let at = LAST.load(Ordering::Relaxed).wrapping_add(1);
        COPIES[at % MOST].store(copy, Ordering::Relaxed);
        LAST.store(at, Ordering::Relaxed);
    }
}
