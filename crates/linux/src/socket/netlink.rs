//! Whether a netlink socket is as it was made.
//!
//! # Safety
//! Every block here is one system call on a descriptor that is borrowed for its time, with local variables of the sizes that it is told.

#![allow(unsafe_code, reason = "system calls that rustix has in a feature of its own only, see Safety above")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::unix::{filter, option};

/// `SO_*` that a program can set and that last.
const OPTIONS: [u32; 20] = [1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 18, 20, 21, 29, 34, 36, 42];
/// `SO_PROTOCOL`.
const PROTOCOL: u32 = 38;
const SOL_NETLINK: i32 = 270;
/// `NETLINK_PKTINFO` to `NETLINK_GET_STRICT_CHK`.
const NETLINK_OPTIONS: [i32; 6] = [3, 4, 5, 8, 10, 11];
const STRICT: i32 = 12;

/// Whether it has no address, no peer, nothing in it, and all options as they are by default.
///
/// # Errors
/// When the kernel does not tell.
pub fn is_as_made(socket: impl AsFd, kind: i32) -> io::Result<bool> {
    let socket = socket.as_fd();
    let new = new(kind)?;
    if option(socket, PROTOCOL)? != option(&new, PROTOCOL)? {
        return Ok(false);
    }
    let same = |number: u32| option(socket, number).ok() == option(&new, number).ok();
    let netlink = NETLINK_OPTIONS
        .iter()
        .chain(&[STRICT])
        .all(|number| netlink_option(socket, *number).ok() == netlink_option(new.as_fd(), *number).ok());
    let named = name(socket, libc::getsockname)? || name(socket, libc::getpeername)?;
    let plain = OPTIONS.into_iter().all(same) && netlink && filter(socket)?.is_empty();
    Ok(plain && !named && is_empty(socket)?)
}

fn new(kind: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel gave it to us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn netlink_option(socket: BorrowedFd<'_>, number: i32) -> io::Result<i32> {
    let (mut value, mut len) = (0i32, 4);
    let place = (&raw mut value).cast();
    // SAFETY: the kernel writes at most `len` bytes, the size of `value`, and `len`.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), SOL_NETLINK, number, place, &raw mut len) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// getsockname or getpeername.
type Ask = unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

/// Whether it has a port or groups, here or there.
fn name(socket: BorrowedFd<'_>, ask: Ask) -> io::Result<bool> {
    // struct sockaddr_nl: family, padding, port, groups.
    let (mut address, mut len) = ([0u32; 3], 12);
    let place = address.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `len` bytes, the size of `address`, and `len`.
    let result = unsafe { ask(socket.as_raw_fd(), place, &raw mut len) };
    if result == 0 { Ok(address[1..] != [0, 0]) } else { Err(io::Error::last_os_error()) }
}

fn is_empty(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let (mut byte, flags) = (0u8, libc::MSG_PEEK | libc::MSG_DONTWAIT);
    let place = (&raw mut byte).cast();
    // SAFETY: the kernel writes at most one byte.
    let result = unsafe { libc::recv(socket.as_raw_fd(), place, 1, flags) };
    match io::Error::last_os_error() {
        _ if result >= 0 => Ok(false),
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_and_used() {
        let one = new(libc::SOCK_RAW).unwrap();
        assert!(is_as_made(&one, libc::SOCK_RAW).unwrap());
        super::super::unix::set_option(&one, libc::SO_RCVBUF, 4000).unwrap();
        assert!(!is_as_made(&one, libc::SOCK_RAW).unwrap());
        let bound = new(libc::SOCK_DGRAM).unwrap();
        let address = [libc::AF_NETLINK.unsigned_abs(), 0, 0];
        // SAFETY: the kernel reads twelve bytes, the size of `address`.
        let result = unsafe { libc::bind(bound.as_raw_fd(), address.as_ptr().cast(), 12) };
        assert_eq!(result, 0);
        assert!(!is_as_made(&bound, libc::SOCK_DGRAM).unwrap());
    }
}
