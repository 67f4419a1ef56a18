//! What the kernel tells of the unix sockets of our network namespace by their inodes (`NETLINK_SOCK_DIAG`).
//!
//! # Safety
//! Every block here is one system call on a descriptor of our own. What it reads and writes are vectors that live until it is over, of
//! the lengths that it is told.

#![allow(unsafe_code, reason = "system calls that rustix has in a feature of its own only, see Safety above")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `NETLINK_SOCK_DIAG`, `SOCK_DIAG_BY_FAMILY`, `NLM_F_REQUEST`, `NLMSG_ERROR`.
const PROTOCOL: i32 = 4;
const BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;
const ERROR: u16 = 2;
/// `UDIAG_SHOW_*`: file, peer, waiting connections, lengths of queues.
const SHOW: u32 = 2 | 4 | 8 | 0x10;
/// Attributes.
const FILE: u16 = 1;
const PEER: u16 = 2;
const WAITING: u16 = 3;
const LENGTHS: u16 = 4;
const SHUTDOWN: u16 = 6;
/// Bytes of `struct nlmsghdr`, of `struct unix_diag_msg` and of a `struct nlattr`.
const HEADER: usize = 16;
const MESSAGE: usize = 16;
const ATTRIBUTE: usize = 4;
/// A listener of many connections has an answer of four bytes for each.
const ROOM: usize = 1 << 20;

/// A unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// The inode of the file it is bound to, cut off at 32 bits.
    pub file: Option<u32>,
    /// The inode of the socket it is connected to; 0 for one that is gone, or was not accepted yet.
    pub peer: Option<u32>,
    /// It listens: the inodes of the sockets at the other end of the connections that wait, in order; 0 for one that is gone.
    pub waiting: Vec<u32>,
    /// It listens: how many connections may wait.
    pub backlog: u32,
    /// Whether it listens.
    pub listens: bool,
    /// What shutdown(2) ended: 1 receiving, 2 sending.
    pub shutdown: u32,
}

/// The kernel's answers.
#[derive(Debug)]
pub struct Diag(OwnedFd);

impl Diag {
    /// Asks for a way to ask.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, PROTOCOL) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel made this descriptor for us just now.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The socket that has this inode.
    ///
    /// # Errors
    /// `ENOENT` when there is none in our network namespace.
    pub fn ask(&self, inode: u32) -> io::Result<UnixSocket> {
        let request = request(inode);
        let fd = self.0.as_raw_fd();
        // SAFETY: the kernel reads `request`, as many bytes as it has.
        let sent = unsafe { libc::send(fd, request.as_ptr().cast(), request.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut answer = vec![0_u8; ROOM];
        // SAFETY: the kernel writes at most as many bytes as `answer` has.
        let got = unsafe { libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        parse(&answer[..got])
    }
}

/// `struct nlmsghdr`, then `struct unix_diag_req`.
fn request(inode: u32) -> Vec<u8> {
    let family = u8::try_from(libc::AF_UNIX).unwrap_or(1);
    let mut body = vec![family, 0, 0, 0];
    // All states; the socket; what to show; any cookie.
    for word in [u32::MAX, inode, SHOW, u32::MAX, u32::MAX] {
        body.extend(word.to_ne_bytes());
    }
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut request = length.to_ne_bytes().to_vec();
    request.extend(BY_FAMILY.to_ne_bytes());
    request.extend(REQUEST.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    request
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn parse(answer: &[u8]) -> io::Result<UnixSocket> {
    const LISTEN: u8 = 10;
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "an answer that makes no sense");
    if half(answer, 4) == Some(ERROR) {
        let error = word(answer, HEADER).ok_or_else(broken)?.cast_signed();
        return Err(io::Error::from_raw_os_error(error.saturating_neg()));
    }
    let listens = *answer.get(HEADER + 2).ok_or_else(broken)? == LISTEN;
    let mut socket = UnixSocket { listens, ..UnixSocket::default() };
    let mut rest = answer.get(HEADER + MESSAGE..).ok_or_else(broken)?;
    while let (Some(length), Some(kind)) = (half(rest, 0), half(rest, 2)) {
        let length = usize::from(length);
        let Some(content) = rest.get(ATTRIBUTE..length) else { break };
        match kind {
            FILE => socket.file = word(content, 0),
            PEER => socket.peer = word(content, 0),
            WAITING => {
                socket.waiting = (0..content.len() / 4).filter_map(|at| word(content, at * 4)).collect()
            }
            LENGTHS if listens => socket.backlog = word(content, 4).unwrap_or(0),
            SHUTDOWN => socket.shutdown = content.first().copied().unwrap_or(0).into(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn inode(socket: impl AsFd) -> u32 {
        u32::try_from(rustix::fs::fstat(socket).unwrap().st_ino).unwrap()
    }

    #[test]
    fn a_pair_and_one_whose_other_side_is_gone() {
        let diag = Diag::open().unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        other.shutdown(Shutdown::Write).unwrap();
        let told = diag.ask(inode(&one)).unwrap();
        assert_eq!((told.peer, told.shutdown, told.listens), (Some(inode(&other)), 1, false));
        let gone = inode(&other);
        drop(other);
        assert_eq!(diag.ask(inode(&one)).unwrap().peer, Some(0));
        assert_eq!(diag.ask(gone).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn a_listener_and_those_who_wait() {
        let diag = Diag::open().unwrap();
        let path = std::env::temp_dir().join(format!("rewake-diag-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let clients: Vec<UnixStream> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let told = diag.ask(inode(&listener)).unwrap();
        let waiting: Vec<u32> = clients.iter().map(inode).collect();
        assert_eq!(told.waiting, waiting);
        assert!(told.listens && told.backlog >= 100);
        let file = std::fs::symlink_metadata(&path).unwrap().ino();
        assert_eq!(told.file.map(u64::from), Some(file & u64::from(u32::MAX)));
        assert_eq!(diag.ask(waiting[0]).unwrap().peer, Some(0), "nobody has accepted it");
        std::fs::remove_file(&path).unwrap();
    }
}
