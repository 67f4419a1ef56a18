//! What the kernel tells of a socket, whoever else has it open.
//!
//! # Safety
//! Every block here is one system call that writes into local variables of the size the call is told.

#![allow(unsafe_code, reason = "system calls that rustix has in a feature of its own only, see Safety above")]

pub mod diag;
pub mod netlink;
pub mod unix;

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// `AF_*`.
    pub family: i32,
    /// `SOCK_*`.
    pub kind: i32,
    /// Whether it takes connections.
    pub listening: bool,
    /// Whether there is another side.
    pub connected: bool,
    /// Who connected the other side, or listened there, if that is told: for `AF_UNIX`, in our pid namespace.
    pub peer: Option<i32>,
}

/// Asks the kernel about a socket of ours.
///
/// # Errors
/// When the descriptor is no socket.
pub fn look(socket: impl AsFd) -> io::Result<Socket> {
    let fd = socket.as_fd();
    let family = option(fd, libc::SO_DOMAIN, 0)?;
    let peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    Ok(Socket {
        family,
        kind: option(fd, libc::SO_TYPE, 0)?,
        // Kinds of sockets that cannot listen do not know the question.
        listening: option(fd, libc::SO_ACCEPTCONN, 0).unwrap_or_default() != 0,
        connected: is_connected(fd)?,
        peer: match family {
            libc::AF_UNIX => Some(option(fd, libc::SO_PEERCRED, peer)?.pid),
            _ => None,
        },
    })
}

/// An option of `SOL_SOCKET`: plain numbers, any bytes of which are a value.
fn option<T: Copy>(fd: BorrowedFd<'_>, name: i32, mut value: T) -> io::Result<T> {
    let mut len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let place = (&raw mut value).cast();
    // SAFETY: the kernel writes at most `len` bytes, the size of `value`, which is made of integers only (callers here), and `len`.
    let result = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, place, &raw mut len) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

fn is_connected(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut address = [0_u8; 128];
    let mut len = libc::socklen_t::try_from(address.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `len` bytes, the size of `address`, and `len`.
    let result = unsafe { libc::getpeername(fd.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut len) };
    if result == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        // Not connected (any more), or of a kind that never is.
        error if matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::EOPNOTSUPP | libc::EINVAL)) => {
            Ok(false)
        }
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn sockets_are_told_apart() {
        let own = std::process::id().cast_signed();
        let (one, _other) = UnixStream::pair().unwrap();
        let pair = look(&one).unwrap();
        let stream = libc::SOCK_STREAM;
        let unix = Socket {
            family: libc::AF_UNIX,
            kind: stream,
            listening: false,
            connected: true,
            peer: Some(own),
        };
        assert_eq!(pair, unix);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inet =
            Socket { family: libc::AF_INET, kind: stream, listening: true, connected: false, peer: None };
        assert_eq!(look(&listener).unwrap(), inet);
        let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(look(&connected).unwrap(), Socket { listening: false, connected: true, ..inet });
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp = Socket { kind: libc::SOCK_DGRAM, listening: false, ..inet };
        assert_eq!(look(&datagrams).unwrap(), udp);
        assert!(look(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
