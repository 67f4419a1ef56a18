//! Memory that the process and its copy share: what the threads are to walk, and where.
//!
//! # Safety
//! Unsafe here: places within a mapping of our own, shared with the copy, which takes turns with us.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::raw;

/// Where the table of walks begins. Before it: what was done, how many signals are noted, most threads, most signals, bytes of all.
const TABLE: usize = 4096;
/// The program begins with a page.
const PAGE: usize = 4096;
/// Most signals, where there is room for as many, and where there is not.
const MANY_SIGNALS: usize = 1 << 15;
const FEW_SIGNALS: usize = 1 << 8;
/// Bytes for the program: where there is room for questions about as many mappings as a process may have, at least, and for each thread.
const WIDE_STAGE: usize = 64 << 20;
const STAGE: usize = 1 << 20;
const STAGE_OF_THREAD: usize = 16 << 10;
/// More threads than were there when it was made: so many, and as many again.
const MORE: usize = 64;

/// What one thread is to walk: nothing when `first` is 0.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Walk {
    /// Address of the first entry.
    pub first: u64,
    /// Address of the context.
    pub context: u64,
}

/// The system call that a thread was in just before it was asked to stand still.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Doing {
    /// Its number; -1 for none.
    pub number: i64,
    /// The thread's stack pointer.
    pub stack: u64,
    /// Where it returns to.
    pub place: u64,
    /// When it was seen, in nanoseconds.
    pub at: u64,
}

impl Doing {
    /// Nothing that is known.
    pub const NOTHING: Self = Self { number: -1, stack: 0, place: 0, at: 0 };
}

/// A signal that is pending.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Pending {
    /// For which thread; 0: for the process.
    pub tid: i64,
    /// The kernel's `siginfo_t`.
    pub info: [u8; 128],
}

/// Where the answer of the copy is, in the first page.
const ANSWER: usize = 1024;
/// Most bytes of a text.
const TEXT: usize = 480;
/// In a word by which the kernel tells of the end of whoever holds it.
const OWNER_DIED: u32 = 0x4000_0000;
/// Between two looks.
const LOOK: u64 = 20_000_000;

/// What the copy says of the outcome, and whether it lives.
#[repr(C)]
pub struct Answer {
    /// libc's `robust_list_head` as the kernel wants it, with `holder` as the lock that is being taken.
    robust: [AtomicU64; 3],
    /// Who writes the image.
    holder: AtomicU32,
    given: AtomicU32,
    number: AtomicU32,
    len: AtomicU32,
    text: [AtomicU8; TEXT],
}

const _: () = assert!(ANSWER + size_of::<Answer>() <= TABLE, "the answer lies before the table");

impl Answer {
    /// The calling process will answer; the kernel notes its end, whatever it dies of.
    pub fn begin(&self) {
        self.holder.store(raw::gettid().unsigned_abs(), Ordering::Release);
        let head = self.robust.as_ptr() as u64;
        self.robust[0].store(head, Ordering::Relaxed);
        self.robust[2].store(self.holder.as_ptr() as u64, Ordering::Relaxed);
        // SAFETY: a list of ours, empty but for the lock that is being taken.
        unsafe { raw::call(libc::SYS_set_robust_list, [head, 24, 0, 0, 0, 0]) };
    }

    /// Answers.
    pub fn give(&self, number: i32, text: &[u8]) {
        let text = &text[..text.len().min(TEXT)];
        for (place, byte) in self.text.iter().zip(text) {
            place.store(*byte, Ordering::Relaxed);
        }
        self.len.store(u32::try_from(text.len()).unwrap_or(0), Ordering::Relaxed);
        self.number.store(number.unsigned_abs(), Ordering::Relaxed);
        self.given.store(1, Ordering::Release);
        raw::futex_wake(&self.given);
    }

    /// Waits for the answer; `None` when whoever was to give it is gone.
    #[must_use]
    pub fn wait(&self) -> Option<(i32, &[u8])> {
        loop {
            let gone = self.holder.load(Ordering::Acquire) & OWNER_DIED != 0;
            if self.given.load(Ordering::Acquire) != 0 {
                break;
            }
            if gone {
                return None;
            }
            raw::futex_wait(&self.given, 0, Some(LOOK));
        }
        let len = usize::try_from(self.len.load(Ordering::Relaxed)).unwrap_or(0).min(TEXT);
        // SAFETY: it is not written any more.
        let text = unsafe { core::slice::from_raw_parts(self.text.as_ptr().cast::<u8>(), len) };
        Some((self.number.load(Ordering::Relaxed).cast_signed(), text))
    }
}

/// The shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Mailbox(*mut u8);

impl Mailbox {
    /// Makes one for about as many threads, before the copy is made.
    #[must_use]
    pub fn new(threads: usize) -> Option<Self> {
        let most = threads.checked_mul(2)?.checked_add(MORE)?;
        let rooms = [(MANY_SIGNALS, WIDE_STAGE), (MANY_SIGNALS, STAGE), (FEW_SIGNALS, STAGE)];
        rooms.into_iter().find_map(|(signals, stage)| Self::with_room(most, signals, stage))
    }

    /// Only what is touched of it is there.
    fn with_room(most: usize, signals: usize, stage: usize) -> Option<Self> {
        let tables = most.checked_mul(size_of::<Walk>() + size_of::<Doing>() + STAGE_OF_THREAD)?;
        let size = (TABLE + stage + tables + signals * size_of::<Pending>()).next_multiple_of(PAGE);
        let mailbox = raw::map_untouched(size).map(Self)?;
        for (at, word) in [(2, most), (3, signals), (4, size)] {
            // SAFETY: words at the beginning of a new mapping.
            unsafe { mailbox.0.cast::<u64>().add(at).write(word as u64) };
        }
        Some(mailbox)
    }

    /// What the copy says of the outcome.
    #[must_use]
    pub fn answer(&self) -> &Answer {
        // SAFETY: within the first page of our mapping, which is zero at first; atomic numbers.
        unsafe { &*self.0.add(ANSWER).cast::<Answer>() }
    }

    fn word(&self, at: usize) -> usize {
        // SAFETY: written when it was made.
        unsafe { self.0.cast::<usize>().add(at).read() }
    }

    /// Most threads.
    #[must_use]
    pub fn most(&self) -> usize {
        self.word(2)
    }

    /// Most signals.
    #[must_use]
    pub fn most_signals(&self) -> usize {
        self.word(3)
    }

    fn size(&self) -> usize {
        self.word(4)
    }

    fn calls(&self) -> usize {
        TABLE + self.most() * size_of::<Walk>()
    }

    fn noted(&self) -> usize {
        self.calls() + self.most() * size_of::<Doing>()
    }

    /// The one that is at this address.
    #[must_use]
    pub const fn at(address: u64) -> Self {
        Self(address as *mut u8)
    }

    /// Counts the orders that were carried out.
    #[must_use]
    pub fn done(&self) -> &AtomicU32 {
        // SAFETY: the first word of our mapping, used as an atomic only.
        unsafe { AtomicU32::from_ptr(self.0.cast()) }
    }

    /// The walk of the thread that stands at this place in the list.
    #[must_use]
    pub fn walk(&self, at: usize) -> *mut Walk {
        assert!(at < self.most(), "so many threads fit");
        // SAFETY: within the mapping.
        unsafe { self.0.add(TABLE).cast::<Walk>().add(at) }
    }

    /// The call of the thread that was asked at this place.
    #[must_use]
    pub fn doing(&self, at: usize) -> *mut Doing {
        assert!(at < self.most(), "so many threads fit");
        // SAFETY: within the mapping.
        unsafe { self.0.add(self.calls()).cast::<Doing>().add(at) }
    }

    /// How many signals are noted.
    #[must_use]
    pub fn signals(&self) -> &AtomicU32 {
        // SAFETY: the second word of our mapping, used as an atomic only.
        unsafe { AtomicU32::from_ptr(self.0.cast::<u32>().add(1)) }
    }

    /// The ids of the copy that writes and of another one that keeps the memory, if there is one.
    #[must_use]
    pub fn copies(&self) -> [&AtomicU32; 2] {
        // SAFETY: the third and the fourth word of our mapping, used as atomics only.
        [2, 3].map(|at| unsafe { AtomicU32::from_ptr(self.0.cast::<u32>().add(at)) })
    }

    /// What the copy says on standard error, in short.
    #[must_use]
    pub fn complaint(&self) -> &AtomicU64 {
        // SAFETY: the sixth word of our mapping, used as an atomic only.
        unsafe { AtomicU64::from_ptr(self.0.cast::<u64>().add(5)) }
    }

    /// The signal noted at this place.
    #[must_use]
    pub fn signal(&self, at: usize) -> *mut Pending {
        assert!(at < self.most_signals(), "so many signals fit");
        // SAFETY: within the mapping.
        unsafe { self.0.add(self.noted()).cast::<Pending>().add(at) }
    }

    /// Where a program lies: address, and bytes there are.
    #[must_use]
    pub fn stage(&self) -> (*mut u8, usize) {
        let at = (self.noted() + self.most_signals() * size_of::<Pending>()).next_multiple_of(PAGE);
        // SAFETY: within the mapping.
        (unsafe { self.0.add(at) }, self.size() - at)
    }

    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> core::ops::Range<u64> {
        self.0 as u64..self.0 as u64 + self.size() as u64
    }

    /// Gives it back.
    ///
    /// # Safety
    /// Nobody in this process uses it any more.
    pub unsafe fn unmap(self) {
        // SAFETY: the caller's.
        unsafe { raw::unmap(self.0, self.size()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_places_are_apart_and_within() {
        for threads in [1, 5000] {
            let mailbox = Mailbox::new(threads).unwrap();
            let range = mailbox.range();
            let last_walk = mailbox.walk(mailbox.most() - 1) as u64 + size_of::<Walk>() as u64;
            assert!(last_walk <= mailbox.doing(0) as u64);
            let last_call = mailbox.doing(mailbox.most() - 1) as u64 + size_of::<Doing>() as u64;
            assert!(last_call <= mailbox.signal(0) as u64);
            let last = mailbox.signal(mailbox.most_signals() - 1) as u64 + size_of::<Pending>() as u64;
            let (stage, len) = mailbox.stage();
            assert!(last <= stage as u64 && stage as u64 + len as u64 == range.end);
            assert!(
                (stage as u64).is_multiple_of(4096) && len + PAGE >= STAGE && mailbox.most() > 2 * threads
            );
            // SAFETY: within the mapping; nobody else has it.
            unsafe {
                mailbox.signal(0).write(Pending { tid: 7, info: [1; 128] });
                stage.add(len - 1).write(1);
                mailbox.unmap();
            }
        }
    }
}
