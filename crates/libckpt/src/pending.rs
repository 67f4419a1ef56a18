//! Signals that are pending: the kernel shows them only to those that take them, so they are taken, noted, and queued again.
//!
//! Each thread does so for its own, the leading one then for those of the process. While all signals are blocked nobody notices.
//!
//! # Safety
//! Unsafe here: raw system calls with buffers of ours; places of the mailbox that nobody else has.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::Ordering;

use crate::lead::MAILBOX;
use crate::mailbox::{MOST_SIGNALS, Mailbox, Pending};
use crate::{SIGSTAND, raw, settings};

/// What is ours, and what libc asks of a thread.
fn ours() -> u64 {
    1 << (settings::signal() - 1) | 1 << (SIGSTAND - 1)
}

const SET: u64 = 8;

/// Whether signals are pending for the calling thread or its process.
#[must_use]
pub fn any() -> bool {
    let mut set = 0u64;
    // SAFETY: a set of ours.
    unsafe { raw::call(libc::SYS_rt_sigpending, [&raw mut set as u64, SET, 0, 0, 0, 0]) };
    set & !ours() != 0
}

/// Notes those of the calling thread.
pub fn note(tid: i32) {
    take(b"SigPnd:", tid);
}

/// Notes those of the process.
pub fn note_shared() {
    take(b"ShdPnd:", 0);
}

fn take(line: &[u8], tid: i32) {
    let mailbox = Mailbox::at(MAILBOX.load(Ordering::Relaxed));
    let begin = usize::try_from(mailbox.signals().load(Ordering::Acquire)).unwrap_or(0);
    let own = u64::from(tid.unsigned_abs());
    let mut mine = 0usize;
    loop {
        let set = shown(line) & !ours();
        if set == 0 {
            break;
        }
        // The lowest first, as the kernel would.
        let one = set & set.wrapping_neg();
        let at = usize::try_from(mailbox.signals().fetch_add(1, Ordering::AcqRel)).unwrap_or(MOST_SIGNALS);
        if at >= MOST_SIGNALS {
            break;
        }
        let time = [0u64; 2];
        // SAFETY: a set and a time of ours; a place of the mailbox that is only ours.
        let taken = unsafe {
            let place = mailbox.signal(at);
            place.write(Pending { tid: i64::from(tid), info: [0; 128] });
            let info = &raw mut (*place).info as u64;
            raw::call(
                libc::SYS_rt_sigtimedwait,
                [&raw const one as u64, info, time.as_ptr() as u64, SET, 0, 0],
            )
        };
        if taken <= 0 {
            // SAFETY: as above.
            unsafe { (*mailbox.signal(at)).tid = -1 };
            break;
        }
        mine += 1;
    }
    let end = usize::try_from(mailbox.signals().load(Ordering::Acquire)).unwrap_or(0).min(MOST_SIGNALS);
    for at in begin..end {
        if mine == 0 {
            return;
        }
        // SAFETY: a place of the mailbox that was written.
        unsafe {
            let pending = mailbox.signal(at);
            if (*pending).tid != i64::from(tid) {
                continue;
            }
            mine -= 1;
            let info = &raw const (*pending).info;
            let signal = u64::from(info.cast::<u32>().read_unaligned());
            let process = raw::word(raw::getpid());
            if tid == 0 {
                raw::call(libc::SYS_rt_sigqueueinfo, [process, signal, info as u64, 0, 0, 0]);
            } else {
                raw::call(libc::SYS_rt_tgsigqueueinfo, [process, own, signal, info as u64, 0, 0]);
            }
        }
    }
}

/// The set in a line of the calling thread's status.
fn shown(line: &[u8]) -> u64 {
    let mut text = [0u8; 4096];
    let path = c"/proc/thread-self/status".as_ptr() as u64;
    // SAFETY: a string and a buffer of ours.
    let read = unsafe {
        let args = [raw::word(libc::AT_FDCWD), path, raw::word(libc::O_CLOEXEC), 0, 0, 0];
        let Ok(file @ 0..) = i32::try_from(raw::call(libc::SYS_openat, args)) else { return 0 };
        let args = [raw::word(file), text.as_mut_ptr() as u64, text.len() as u64, 0, 0, 0];
        let read = raw::call(libc::SYS_read, args);
        raw::close(file);
        usize::try_from(read).unwrap_or(0).min(text.len())
    };
    for found in text[..read].split(|byte| *byte == b'\n') {
        if let Some(digits) = found.strip_prefix(line) {
            let digits = digits.iter().filter_map(|byte| char::from(*byte).to_digit(16));
            return digits.fold(0, |sum, digit| sum << 4 | u64::from(digit));
        }
    }
    0
}
