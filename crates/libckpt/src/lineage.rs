//! What tells the images of this program from those of others that are started from the same file and share its store: a random number
//! that it has through all its lives.
//!
//! # Safety
//! Unsafe here: a raw system call that writes two words of ours.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::{AtomicU64, Ordering};

use crate::raw;

#[unsafe(link_section = ".data.rewake_forks")]
static NUMBER: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// This process is another program from now on.
#[inline]
pub fn forget() {
    for word in NUMBER.iter().filter(|word| word.load(Ordering::Relaxed) != 0) {
        word.store(0, Ordering::Relaxed);
    }
}

/// Takes a number unless there is one.
pub fn take() {
    const DO_NOT_WAIT: i32 = 1;
    if own() != [0; 16] {
        return;
    }
    let mut number = [0u64; 2];
    // SAFETY: the kernel writes as much.
    unsafe {
        let room = [number.as_mut_ptr() as u64, size_of_val(&number) as u64, raw::word(DO_NOT_WAIT), 0, 0, 0];
        raw::call(libc::SYS_getrandom, room);
    }
    for (word, new) in NUMBER.iter().zip(number) {
        word.store(new, Ordering::Relaxed);
    }
}

/// The number; zero before the first image, or where the kernel had none.
#[must_use]
pub fn own() -> [u8; 16] {
    let mut bytes = [0; 16];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(&NUMBER) {
        bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
    }
    bytes
}
