//! What the library says to the program's user: on the standard error of the program, as long as that is what it was.
//!
//! A program may close it and have a file of its own at that number; nothing is written there then.
//!
//! # Safety
//! Unsafe here: raw system calls with structures of ours.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::{AtomicU64, Ordering};

use crate::raw;

const STDERR: i32 = 2;
/// Device, inode and kind of the standard error at the start; zeros if there was none.
static KNOWN: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

fn seen() -> Option<libc::stat> {
    // SAFETY: a structure that is numbers, which the kernel writes.
    unsafe {
        let mut seen: libc::stat = core::mem::zeroed();
        let args = [raw::word(STDERR), &raw mut seen as u64, 0, 0, 0, 0];
        (raw::call(libc::SYS_fstat, args) == 0).then_some(seen)
    }
}

fn identity(seen: &libc::stat) -> [u64; 3] {
    [seen.st_dev, seen.st_ino, u64::from(seen.st_mode & libc::S_IFMT)]
}

/// Notes what the standard error is.
pub fn learn() {
    let known = seen().map_or([0; 3], |seen| identity(&seen));
    for (place, word) in KNOWN.iter().zip(known) {
        place.store(word, Ordering::Relaxed);
    }
}

/// Whether it is meant for words: what it was at the start, a device (a terminal, or nothing), or a file that is only added to.
fn is_for_words() -> bool {
    let Some(seen) = seen() else { return false };
    let known = [0, 1, 2].map(|at: usize| KNOWN[at].load(Ordering::Relaxed));
    let added_to = || {
        // SAFETY: numbers.
        let flags =
            unsafe { raw::call(libc::SYS_fcntl, [raw::word(STDERR), raw::word(libc::F_GETFL), 0, 0, 0, 0]) };
        flags >= 0 && flags & i64::from(libc::O_APPEND) != 0
    };
    identity(&seen) == known
        || seen.st_mode & libc::S_IFMT == libc::S_IFCHR
        || seen.st_mode & libc::S_IFMT == libc::S_IFREG && added_to()
}

/// Says a line.
pub fn say(text: &[u8]) {
    Line::new(text).say();
}

/// A line in the making: in one piece, so that nobody else's words come between.
#[derive(Debug)]
pub struct Line {
    text: [u8; 256],
    len: usize,
}

impl Line {
    /// One that begins so.
    #[must_use]
    pub fn new(text: &[u8]) -> Self {
        let mut line = Self { text: [0; 256], len: 0 };
        line.text(text);
        line
    }

    /// Adds text, as far as there is room.
    pub fn text(&mut self, text: &[u8]) {
        // The last byte is for the end of the line.
        let room = self.text.len() - 1 - self.len;
        let text = &text[..text.len().min(room)];
        self.text[self.len..self.len + text.len()].copy_from_slice(text);
        self.len += text.len();
    }

    /// Adds a number in decimal.
    pub fn number(&mut self, number: u64) {
        let (mut digits, mut at, mut rest) = ([0u8; 20], 20, number);
        loop {
            at -= 1;
            digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.text(&digits[at..]);
    }

    /// What it is so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..self.len]
    }

    /// Says it.
    pub fn say(mut self) {
        self.text[self.len] = b'\n';
        write(&self.text[..=self.len]);
    }
}

/// Writes whole lines, where somebody reads them and there is room at once. All signals are blocked.
pub fn write(text: &[u8]) {
    if !is_for_words() {
        return;
    }
    let fd = raw::word(STDERR);
    let mut polled = libc::pollfd { fd: STDERR, events: libc::POLLOUT, revents: 0 };
    let pipe = 1u64 << (libc::SIGPIPE - 1);
    let (mut pending, now) = (0u64, [0u64; 2]);
    // SAFETY: text and structures of ours.
    unsafe {
        raw::call(libc::SYS_poll, [&raw mut polled as u64, 1, 0, 0, 0, 0]);
        if polled.revents != libc::POLLOUT {
            return;
        }
        raw::call(libc::SYS_rt_sigpending, [&raw mut pending as u64, 8, 0, 0, 0, 0]);
        let written = raw::call(libc::SYS_write, [fd, text.as_ptr() as u64, text.len() as u64, 0, 0, 0]);
        if written == -i64::from(libc::EPIPE) && pending & pipe == 0 {
            // Nobody reads: that is not the program's fault.
            let args = [&raw const pipe as u64, 0, now.as_ptr() as u64, 8, 0, 0];
            raw::call(libc::SYS_rt_sigtimedwait, args);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_hold_what_they_can() {
        let mut line = Line::new(b"thread ");
        line.number(1_234_567);
        line.number(0);
        line.number(u64::MAX);
        assert_eq!(&line.text[..line.len], b"thread 1234567018446744073709551615");
        line.text(&[b'x'; 500]);
        assert_eq!(line.len, 255);
    }
}
