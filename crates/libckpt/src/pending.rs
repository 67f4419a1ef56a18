//! Signals that are pending: the kernel shows them only to those that take them, so they are taken, noted, and queued again.
//!
//! Each thread does so for its own, the leading one then for those of the process. While all signals are blocked nobody notices.
//!
//! # Safety
//! Unsafe here: raw system calls with buffers of ours; places of the mailbox that nobody else has.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::Ordering;

use crate::entry::set_action;
use crate::lead::MAILBOX;
use crate::mailbox::{Mailbox, Pending};
use crate::{SIGSTAND, raw, settings};

/// What is ours, and what libc asks of a thread.
fn ours() -> u64 {
    1 << (settings::signal() - 1) | 1 << (SIGSTAND - 1)
}

const SET: u64 = 8;

/// Whether signals are pending for the calling thread or its process.
#[must_use]
pub fn any() -> bool {
    all() & !ours() != 0
}

fn all() -> u64 {
    let mut set = 0u64;
    // SAFETY: a set of ours.
    unsafe { raw::call(libc::SYS_rt_sigpending, [&raw mut set as u64, SET, 0, 0, 0, 0]) };
    set
}

/// Whether a signal is pending that the calling thread will handle when its mask is this one, so that its call ends: one of its own, or of
/// the process if it is the first thread (any other may take those); of any kind, or only of those whose handlers end calls that could
/// go on.
#[must_use]
pub fn will_be_handled(mask: u64, any: bool) -> bool {
    let deliverable = all() & !ours() & !mask;
    if deliverable == 0 {
        return false;
    }
    let own = if raw::gettid() == raw::getpid() { deliverable } else { deliverable & shown(b"SigPnd:") };
    (1..=64).any(|signal| own & 1 << (signal - 1) != 0 && has_handler(signal, any))
}

/// Whether a handler takes this signal: of any kind, or only one whose end is the end of calls as well.
pub(crate) fn has_handler(signal: i32, any: bool) -> bool {
    let Ok([handler, flags, ..]) = set_action(signal, None) else { return false };
    let restarts = flags & u64::from(libc::SA_RESTART.cast_unsigned()) != 0;
    handler > libc::SIG_IGN as u64 && (any || !restarts)
}

/// Notes those of the calling thread.
pub fn note(tid: i32) {
    let own = take(b"SigPnd:", tid);
    queue_again(own, tid);
}

/// Notes those of the calling thread, and those of the process. A thread's own are taken first, and are queued again last: whoever takes
/// one of the process's would be given the thread's of that number instead.
pub fn note_all(tid: i32) {
    let own = take(b"SigPnd:", tid);
    let shared = take(b"ShdPnd:", 0);
    queue_again(shared, 0);
    queue_again(own, tid);
}

/// What was noted at once: from where in the mailbox, and how many.
#[derive(Clone, Copy)]
struct Noted {
    begin: usize,
    count: usize,
}

fn take(line: &[u8], tid: i32) -> Noted {
    let mailbox = Mailbox::at(MAILBOX.load(Ordering::Relaxed));
    let most = mailbox.most_signals();
    let begin = usize::try_from(mailbox.signals().load(Ordering::Acquire)).unwrap_or(0);
    let mut count = 0usize;
    loop {
        let set = shown(line) & !ours();
        if set == 0 {
            break;
        }
        // The lowest first, as the kernel would.
        let one = set & set.wrapping_neg();
        let at = usize::try_from(mailbox.signals().fetch_add(1, Ordering::AcqRel)).unwrap_or(most);
        if at >= most {
            // Who writes the image sees that there are more than fit.
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
        count += 1;
    }
    Noted { begin, count }
}

fn queue_again(Noted { begin, count: mut mine }: Noted, tid: i32) {
    let mailbox = Mailbox::at(MAILBOX.load(Ordering::Relaxed));
    let own = u64::from(tid.unsigned_abs());
    let end =
        usize::try_from(mailbox.signals().load(Ordering::Acquire)).unwrap_or(0).min(mailbox.most_signals());
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

/// The set in a line of the calling thread's status, read in small pieces: there may be little room on this stack.
fn shown(line: &[u8]) -> u64 {
    let path = c"/proc/thread-self/status".as_ptr() as u64;
    let mut finder = Finder { line, matched: Some(0), set: 0, found: false };
    // SAFETY: a string and a buffer of ours.
    unsafe {
        let args = [raw::word(libc::AT_FDCWD), path, raw::word(libc::O_CLOEXEC), 0, 0, 0];
        let Ok(file @ 0..) = i32::try_from(raw::call(libc::SYS_openat, args)) else { return 0 };
        let mut text = [0u8; 128];
        loop {
            let args = [raw::word(file), text.as_mut_ptr() as u64, text.len() as u64, 0, 0, 0];
            let Ok(read @ 1..) = usize::try_from(raw::call(libc::SYS_read, args)) else { break };
            text[..read.min(text.len())].iter().for_each(|byte| finder.see(*byte));
        }
        raw::close(file);
    }
    finder.set
}

/// Finds a line by its beginning and reads the set in it.
struct Finder<'a> {
    line: &'a [u8],
    /// How much of the beginning was seen in this line; `None` if it begins otherwise.
    matched: Option<usize>,
    set: u64,
    found: bool,
}

impl Finder<'_> {
    fn see(&mut self, byte: u8) {
        match (byte, self.matched) {
            (b'\n', _) => {
                self.found |= self.matched == Some(self.line.len());
                self.matched = if self.found { None } else { Some(0) };
            }
            (_, Some(at)) if at == self.line.len() => {
                if let Some(digit) = char::from(byte).to_digit(16) {
                    self.set = self.set << 4 | u64::from(digit);
                }
            }
            (_, Some(at)) => self.matched = (self.line[at] == byte).then_some(at + 1),
            (_, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_read_from_its_line() {
        let read = |line: &[u8], text: &[u8]| {
            let mut finder = Finder { line, matched: Some(0), set: 0, found: false };
            text.iter().for_each(|byte| finder.see(*byte));
            finder.set
        };
        let text = b"Name:\tSigPnd:\nSigQ:\t1/2\nSigPnd:\t0000000000000a00\nShdPnd:\t8000000000000001\nSigBlk:\tff\n";
        assert_eq!(read(b"SigPnd:", text), 0xa00);
        assert_eq!(read(b"ShdPnd:", text), 0x8000_0000_0000_0001);
        assert_eq!(read(b"SigBlk:", text), 0xff);
        assert_eq!(read(b"SigIgn:", text), 0);
    }
}
