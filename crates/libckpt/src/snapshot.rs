//! Mode fork: the copy keeps its memory as it was, and a copy of that one writes the image, so that the program can go on at once.
//!
//! # Safety
//! Unsafe here: raw system calls, and a descriptor that only copies of the process have.

#![allow(unsafe_code, reason = "see Safety above")]

use std::fs::File;
use std::os::fd::FromRawFd as _;

use crate::raw;

/// The memory that does not change any more.
#[derive(Debug)]
pub struct Snapshot {
    /// Opened by who keeps it.
    pub memory: File,
    /// Who keeps it.
    pub keeper: i32,
}

/// Makes this copy the keeper of its memory, and goes on in a copy of it. `None` where that cannot be made: then this one goes on.
///
/// The keeper writes to nothing but its stack, which is not the program's, and ends when the other does.
#[must_use]
pub fn keep() -> Option<Snapshot> {
    let memory = raw::open(b"/proc/self/mem\0", 0);
    if memory < 0 {
        return None;
    }
    let keeper = raw::getpid();
    // SAFETY: a fork that sends no signal when the copy ends; both go on right here, on stacks of their own.
    let made = unsafe { raw::call(libc::SYS_clone, [0; 6]) };
    if made < 0 {
        raw::close(memory);
        return None;
    }
    if made > 0 {
        end_with(made);
    }
    // SAFETY: opened above; nobody else in this process knows of it.
    Some(Snapshot { memory: unsafe { File::from_raw_fd(memory) }, keeper })
}

/// Waits for the end of the one that writes.
fn end_with(writer: i64) -> ! {
    let mut status = 0u32;
    let how = u64::from(libc::__WCLONE.cast_unsigned());
    loop {
        // SAFETY: a word of ours; it never returns from the other.
        unsafe {
            let args = [writer.cast_unsigned(), &raw mut status as u64, how, 0, 0, 0];
            if raw::call(libc::SYS_wait4, args) != -i64::from(libc::EINTR) {
                raw::call(libc::SYS_exit_group, [0; 6]);
            }
        }
    }
}
