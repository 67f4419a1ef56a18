//! Leases: by taking one is told whether anybody has a file open for writing; and who holds one is told when somebody opens the file.
//!
//! # Safety
//! fcntl(2) with these commands takes and returns plain numbers; the descriptor is borrowed for the call.
#![allow(unsafe_code, reason = "rustix offers no leases")]

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Not in libc.
const F_SETSIG: i32 = 10;

/// What a lease tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writers {
    /// Nobody has the file open or mapped for writing.
    None,
    /// Somebody has; or, on some network file systems, the server did not say otherwise.
    Some,
    /// This file system has no leases, or the file is somebody else's.
    Unknown,
}

/// Asks who else has the file open for writing, by a lease that is given back at once. `file` is open for reading only, else it would
/// be found itself.
///
/// # Errors
/// What fcntl(2) says, but for what means that leases are not to be had.
pub fn writers(file: impl AsFd) -> io::Result<Writers> {
    let fd = file.as_fd().as_raw_fd();
    // Whoever opens the file just now makes the kernel tell us by a signal; SIGIO, its default, would end us.
    control(fd, F_SETSIG, libc::SIGURG)?;
    let lease = control(fd, libc::F_SETLEASE, libc::F_RDLCK);
    match lease {
        Ok(()) => control(fd, libc::F_SETLEASE, libc::F_UNLCK).map(|()| Writers::None),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(Writers::Some),
            Some(
                libc::EINVAL | libc::EACCES | libc::EPERM | libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOLCK,
            ) => Ok(Writers::Unknown),
            _ => Err(error),
        },
    }
}

/// Whether a lease is held through this description that ends when anybody opens the file, be it for reading.
#[must_use]
pub fn is_exclusive(file: impl AsFd) -> bool {
    // SAFETY: numbers only; the descriptor is borrowed.
    unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETLEASE) == libc::F_WRLCK }
}

/// Device (that of the file system) and inode of all files on which somebody has a lease that ends when they are opened.
///
/// # Errors
/// When `/proc/locks` cannot be read.
pub fn exclusive() -> io::Result<HashSet<(u64, u64)>> {
    Ok(std::fs::read_to_string("/proc/locks")?.lines().filter_map(exclusive_lease).collect())
}

/// `3: LEASE  ACTIVE    WRITE 4711 fe:03:1234 0 EOF`; what waits for another one has an arrow before its kind.
fn exclusive_lease(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (kind, state, access, _, file) =
        (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
    let mut parts = file.split(':');
    let (major, minor) = (parts.next()?, parts.next()?);
    let device = libc::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = parts.next()?.parse().ok()?;
    (kind == "LEASE" && access == "WRITE" && matches!(state, "ACTIVE" | "BREAKING" | "BREAKER"))
        .then_some((device, inode))
}

fn control(fd: i32, command: i32, argument: i32) -> io::Result<()> {
    // SAFETY: numbers only; the caller borrows the descriptor.
    if unsafe { libc::fcntl(fd, command, argument) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn exclusive_leases_are_listed() {
        let line = "3: LEASE  ACTIVE    WRITE 4711 fe:03:1234 0 EOF";
        assert_eq!(exclusive_lease(line), Some((libc::makedev(0xfe, 3), 1234)));
        for other in
            ["2: POSIX  ADVISORY  WRITE 1 00:1c:66 0 EOF", "3: LEASE  ACTIVE    READ  1 fe:03:1 0 EOF", "4:"]
        {
            assert_eq!(exclusive_lease(other), None);
        }
    }

    #[test]
    fn a_writer_is_noticed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reading = File::open(file.path()).unwrap();
        let found = writers(&reading).unwrap();
        // Where there are no leases, nothing can be told.
        assert!(matches!(found, Writers::Some | Writers::Unknown), "{found:?}");
        let path = file.into_temp_path();
        let reading = File::open(&path).unwrap();
        assert!(matches!(writers(&reading).unwrap(), Writers::None | Writers::Unknown));
    }
}
