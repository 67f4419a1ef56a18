//! What somebody said about checkpoints of this program, read at its start and kept where no memory has to be taken for it.
//!
//! # Safety
//! Unsafe here: text written once, before there are threads; the environment as libc gives it to functions before `main`.

#![allow(unsafe_code, reason = "see Safety above")]

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use core::sync::atomic::{AtomicU32, Ordering};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// Longest path of a store, with its end.
const PATH: usize = 4096;

/// Text that is written once, before there are threads.
struct Text(UnsafeCell<[u8; PATH]>);

// SAFETY: written at the start only, by the one thread there is.
unsafe impl Sync for Text {}

static DIRECTORY: Text = Text(UnsafeCell::new([0; PATH]));
static LEVEL: AtomicU32 = AtomicU32::new(1);

/// Reads the environment.
///
/// # Safety
/// A list of strings, with a null pointer at its end, as `main` gets it.
pub unsafe fn read(environment: *const *const c_char) {
    let mut at = environment;
    // SAFETY: the caller's.
    while let Some(entry) = unsafe { at.read().as_ref() } {
        // SAFETY: the caller's.
        let text = unsafe { CStr::from_ptr(entry) }.to_bytes();
        if let Some(path) = text.strip_prefix(b"CKPT_DIRECTORY=")
            && path.len() < PATH
        {
            // SAFETY: there is one thread yet.
            unsafe { (&mut *DIRECTORY.0.get())[..path.len()].copy_from_slice(path) };
        } else if let Some([level @ b'0'..=b'3']) = text.strip_prefix(b"CKPT_STORE_FILES_LEVEL=") {
            LEVEL.store(u32::from(level - b'0'), Ordering::Relaxed);
        }
        // SAFETY: the null pointer comes yet.
        at = unsafe { at.add(1) };
    }
}

/// The store, if somebody said which.
#[must_use]
pub fn directory() -> Option<PathBuf> {
    // SAFETY: written at the start only.
    let bytes = unsafe { &*DIRECTORY.0.get() };
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
    (len > 0).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(&bytes[..len])))
}

/// Whose content goes into images.
#[must_use]
pub fn level() -> u8 {
    u8::try_from(LEVEL.load(Ordering::Relaxed)).unwrap_or(1)
}
