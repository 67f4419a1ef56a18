//! Files by their handles, as `/proc/PID/fdinfo` shows them for watches: found without any name.
//!
//! # Safety
//! The one call here reads a structure that lives as long as the call, whose first word says how long it is.
#![allow(unsafe_code, reason = "rustix does not open files by handle")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `MAX_HANDLE_SZ`.
const LONGEST: usize = 128;

/// A file's handle on its file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    /// Its type, which only the file system understands.
    pub kind: i32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// `struct file_handle` with room for the longest one.
#[repr(C)]
struct Raw {
    length: u32,
    kind: i32,
    bytes: [u8; LONGEST],
}

impl Handle {
    /// Opens the file (`O_PATH`); `mount` is any open folder of its file system.
    ///
    /// # Errors
    /// `EPERM` without `CAP_DAC_READ_SEARCH`, `ESTALE` when it is gone.
    pub fn open(&self, mount: impl AsFd) -> io::Result<OwnedFd> {
        let mut raw = Raw { length: 0, kind: self.kind, bytes: [0; LONGEST] };
        let room = raw.bytes.get_mut(..self.bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        room.copy_from_slice(&self.bytes);
        raw.length = u32::try_from(self.bytes.len()).map_err(io::Error::other)?;
        let (mount, flags) = (mount.as_fd().as_raw_fd(), libc::O_PATH | libc::O_CLOEXEC);
        // SAFETY: the kernel reads `length` bytes behind the two words, which are no more than `raw` has.
        let opened = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount, &raw const raw, flags) };
        let opened = i32::try_from(opened).map_err(io::Error::other)?;
        if opened < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so this is a new descriptor that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(opened) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_handle_opens_nothing() {
        let mount = std::fs::File::open("/").unwrap();
        assert!(Handle { kind: 1, bytes: vec![0; 8] }.open(&mount).is_err());
        assert!(Handle { kind: 1, bytes: vec![0; LONGEST + 1] }.open(&mount).is_err());
    }
}
