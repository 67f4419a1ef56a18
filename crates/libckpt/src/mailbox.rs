//! Memory that the process and its copy share: what the threads are to walk, and where.
//!
//! # Safety
//! Unsafe here: places within a mapping of our own, shared with the copy, which takes turns with us.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::AtomicU32;

use crate::raw;

/// Bytes of the whole; only what is touched is there.
pub const SIZE: usize = 256 << 20;
/// Where the table of walks begins, and how many there can be.
const TABLE: usize = 4096;
/// Most threads.
pub const MOST: usize = 1 << 18;
/// Where the calls are that threads were in.
const CALLS: usize = TABLE + MOST * size_of::<Walk>();
/// Where the signals are that were pending, and how many there can be.
const SIGNALS: usize = CALLS + MOST * size_of::<Doing>();
/// Most signals.
pub const MOST_SIGNALS: usize = 1 << 15;
/// Where the program lies.
pub const STAGE: usize = SIGNALS + MOST_SIGNALS * size_of::<Pending>();

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
}

/// No call that is known of.
pub const NOTHING: Doing = Doing { number: -1, stack: 0, place: 0 };

/// A signal that is pending.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Pending {
    /// For which thread; 0: for the process.
    pub tid: i64,
    /// The kernel's `siginfo_t`.
    pub info: [u8; 128],
}

/// The shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Mailbox(*mut u8);

impl Mailbox {
    /// Makes one, before the copy is made.
    #[must_use]
    pub fn new() -> Option<Self> {
        raw::map(SIZE, libc::MAP_SHARED | libc::MAP_NORESERVE).map(Self)
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
        assert!(at < MOST, "so many threads fit");
        // SAFETY: within the mapping.
        unsafe { self.0.add(TABLE).cast::<Walk>().add(at) }
    }

    /// The call of the thread that was asked at this place.
    #[must_use]
    pub fn doing(&self, at: usize) -> *mut Doing {
        assert!(at < MOST, "so many threads fit");
        // SAFETY: within the mapping.
        unsafe { self.0.add(CALLS).cast::<Doing>().add(at) }
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

    /// The signal noted at this place.
    #[must_use]
    pub fn signal(&self, at: usize) -> *mut Pending {
        assert!(at < MOST_SIGNALS, "so many signals fit");
        // SAFETY: within the mapping.
        unsafe { self.0.add(SIGNALS).cast::<Pending>().add(at) }
    }

    /// Where a program lies: address, and bytes there are.
    #[must_use]
    pub fn stage(&self) -> (*mut u8, usize) {
        // SAFETY: within the mapping.
        (unsafe { self.0.add(STAGE) }, SIZE - STAGE)
    }

    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> core::ops::Range<u64> {
        self.0 as u64..self.0 as u64 + SIZE as u64
    }

    /// Gives it back.
    ///
    /// # Safety
    /// Nobody in this process uses it any more.
    pub unsafe fn unmap(self) {
        // SAFETY: the caller's.
        unsafe { raw::unmap(self.0, SIZE) };
    }
}
