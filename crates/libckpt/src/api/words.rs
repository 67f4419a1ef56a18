//! What each thread keeps for itself: the sections it is in, the outcome of its last checkpoint, why its last call failed.
//!
//! # Safety
//! Unsafe here: thread-local words of ours, found by the model that programs and libraries loaded at the start use; they are zero at first.

#![allow(unsafe_code, reason = "see Safety above")]

use core::arch::global_asm;
use core::ffi::c_char;
use core::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, Ordering};

/// Bytes of a text, with its end.
const TEXT: usize = 496;

global_asm!(
    ".pushsection .tbss.rewake_ckpt, \"awT\", @nobits",
    ".balign 16",
    ".hidden rewake_ckpt_words",
    ".globl rewake_ckpt_words",
    "rewake_ckpt_words:",
    ".zero 512",
    ".popsection",
);

/// The words of a thread. Its signal handlers write them too.
#[repr(C)]
pub struct Words {
    /// Sections it is in.
    pub sections: AtomicU32,
    /// It makes a checkpoint: callbacks are called.
    pub inside: AtomicU32,
    /// What came of the checkpoint it asked for.
    pub outcome: AtomicI32,
    spare: AtomicU32,
    text: [AtomicU8; TEXT],
}

const _: () = assert!(size_of::<Words>() == 512, "as much as there is room for");

/// Those of the calling thread.
#[must_use]
pub fn own<'a>() -> &'a Words {
    let at: u64;
    // SAFETY: the address of this thread's copy, which is there as long as the thread, and zero at first: atomic numbers.
    unsafe {
        core::arch::asm!(
            "mov {at}, fs:0",
            "add {at}, [rip + rewake_ckpt_words@gottpoff]",
            at = out(reg) at,
            options(nostack, readonly),
        );
        &*(at as *const Words)
    }
}

impl Words {
    /// Notes a text, as much of it as there is room for.
    pub fn say(&self, text: &[u8]) {
        let room = &self.text[..TEXT - 1];
        for (place, byte) in room.iter().zip(text.iter().chain(core::iter::once(&0))) {
            place.store(*byte, Ordering::Relaxed);
        }
    }

    /// The text, with a zero byte at its end.
    #[must_use]
    pub fn text(&self) -> *const c_char {
        self.text.as_ptr().cast()
    }
}
