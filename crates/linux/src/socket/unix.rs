//! What the kernel tells of a unix socket, and a look at what waits in it that takes nothing out.
//!
//! # Safety
//! Every block here is one system call on a descriptor that is borrowed for its time. What it reads and writes are local variables, or
//! vectors that live until it is over, of the sizes that it is told; descriptors that it returns are nobody else's.

#![allow(unsafe_code, reason = "system calls that rustix has in a feature of its own only, see Safety above")]

use std::ffi::c_void;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Where the text of an address begins.
const TEXT: usize = offset_of!(libc::sockaddr_un, sun_path);
/// Room for control messages: 253 descriptors, credentials, a label.
const CONTROL: usize = 4096;
/// `SIOCUNIXFILE`.
const BOUND_FILE: libc::Ioctl = 0x89e0;
/// `SO_GET_FILTER`.
const GET_FILTER: i32 = 26;
/// `SCM_PIDFD`.
const SCM_PIDFD: i32 = 4;
/// Bytes of `struct sock_filter`.
const INSTRUCTION: usize = 8;

/// Somebody's credentials as a socket tells them: process, user, group. In our namespaces; 0 for a process that is in none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A message that waits, or a part of a stream.
#[derive(Debug, Default)]
pub struct Message {
    /// Its bytes.
    pub data: Vec<u8>,
    /// How many it has; more than there are in `data` when that had no room.
    pub length: usize,
    /// Copies of the descriptors that come with it.
    pub files: Vec<OwnedFd>,
    /// Who sent it, if this socket asks for that (`SO_PASSCRED`) and it is known.
    pub credentials: Option<Credentials>,
    /// The address of the socket that sent it, if it has one.
    pub sender: Option<Vec<u8>>,
    /// There were descriptors that could not be copied.
    pub files_missing: bool,
}

fn check(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// An option of `SOL_SOCKET`, as many bytes as the kernel has of it.
///
/// # Errors
/// When it does not know the option, or not of this socket.
pub fn option(socket: impl AsFd, option: u32) -> io::Result<Vec<u8>> {
    let option = i32::try_from(option).map_err(io::Error::other)?;
    let mut value = vec![0; 64];
    let (fd, mut len) = (socket.as_fd().as_raw_fd(), 64);
    let place = value.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `len` bytes into `value`, which has as many, and `len`.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, place, &raw mut len) })?;
    value.truncate(usize::try_from(len).map_err(io::Error::other)?);
    Ok(value)
}

/// Sets an option of `SOL_SOCKET` that is a number.
///
/// # Errors
/// When the kernel does not take it.
pub fn set_option(socket: impl AsFd, option: i32, value: i32) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let (place, len) = ((&raw const value).cast(), libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4));
    // SAFETY: the kernel reads `len` bytes, the size of `value`.
    check(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, place, len) }).map(|_| ())
}

/// Who made the other side, or listened there: `SO_PEERCRED` and `SO_PEERGROUPS`. `None` where nobody has.
///
/// # Errors
/// When the kernel does not tell.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Option<(Credentials, Vec<u32>)>> {
    const NOBODY: u32 = u32::MAX;
    let fd = socket.as_fd();
    let value = option(fd, libc::SO_PEERCRED.cast_unsigned())?;
    let Some(known) = credentials(&value).filter(|known| (known.uid, known.gid) != (NOBODY, NOBODY)) else {
        return Ok(None);
    };
    Ok(Some((known, peer_groups(fd)?)))
}

fn credentials(bytes: &[u8]) -> Option<Credentials> {
    let word = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    Some(Credentials { pid: word(0)?.cast_signed(), uid: word(4)?, gid: word(8)? })
}

fn peer_groups(fd: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    const SO_PEERGROUPS: i32 = 59;
    let mut groups = vec![0_u32; 32];
    loop {
        let len = groups.len() * size_of::<u32>();
        let mut len = libc::socklen_t::try_from(len).map_err(io::Error::other)?;
        let place = groups.as_mut_ptr().cast();
        // SAFETY: the kernel writes at most `len` bytes into `groups`, which has as many, and `len`.
        let told = check(unsafe {
            libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_PEERGROUPS, place, &raw mut len)
        });
        let count = usize::try_from(len).map_err(io::Error::other)? / size_of::<u32>();
        match told {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && count > groups.len() => {
                groups.resize(count, 0);
            }
            // Nobody told who they are.
            Err(error) if error.raw_os_error() == Some(libc::ENODATA) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
}

/// The classic filter of a socket, as its instructions; empty if there is none.
///
/// # Errors
/// `EACCES` for one of another kind (eBPF), which nobody can read.
pub fn filter(socket: impl AsFd) -> io::Result<Vec<u8>> {
    let fd = socket.as_fd().as_raw_fd();
    let mut count: libc::socklen_t = 0;
    let none = std::ptr::null_mut();
    // SAFETY: with no room given, the kernel writes `count` only, which is of instructions here.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, GET_FILTER, none, &raw mut count) })?;
    let instructions = usize::try_from(count).map_err(io::Error::other)?;
    let mut filter = vec![0_u8; instructions * INSTRUCTION];
    if instructions > 0 {
        let place = filter.as_mut_ptr().cast();
        // SAFETY: the kernel writes at most `count` instructions into `filter`, which has room for as many.
        check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, GET_FILTER, place, &raw mut count) })?;
    }
    Ok(filter)
}

type AddressCall = unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

/// The address of a socket, as it was given to bind(2); `None` if it has none.
///
/// # Errors
/// When it cannot be asked.
pub fn name(socket: impl AsFd) -> io::Result<Option<Vec<u8>>> {
    address(socket.as_fd(), libc::getsockname)
}

/// The address of the other side, even if that is gone.
///
/// # Errors
/// `ENOTCONN` when there is none.
pub fn peer_name(socket: impl AsFd) -> io::Result<Option<Vec<u8>>> {
    address(socket.as_fd(), libc::getpeername)
}

fn address(fd: BorrowedFd<'_>, call: AddressCall) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = [0_u8; 128];
    let mut len: libc::socklen_t = 128;
    // SAFETY: the kernel writes at most `len` bytes into `bytes`, which has as many, and `len`.
    check(unsafe { call(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut len) })?;
    Ok(text(&bytes[..usize::try_from(len).map_err(io::Error::other)?.min(bytes.len())]))
}

/// The text of an address: a path without the zero byte behind it, or an abstract name with the one before it.
fn text(address: &[u8]) -> Option<Vec<u8>> {
    let text = address.get(TEXT..)?;
    match text.first()? {
        0 => Some(text.to_vec()),
        _ => Some(text.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()),
    }
}

/// Bytes that can be read: of a stream or of packets all, of datagrams those of the first one.
///
/// # Errors
/// When the socket listens.
pub fn readable(socket: impl AsFd) -> io::Result<usize> {
    asked(socket.as_fd(), libc::FIONREAD)
}

/// Memory of what was sent and has not been received; 0 when all has.
///
/// # Errors
/// When the socket listens.
pub fn unreceived(socket: impl AsFd) -> io::Result<usize> {
    asked(socket.as_fd(), libc::TIOCOUTQ)
}

fn asked(fd: BorrowedFd<'_>, what: libc::Ioctl) -> io::Result<usize> {
    let mut value: i32 = 0;
    // SAFETY: the kernel writes one integer into `value`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), what, &raw mut value) })?;
    usize::try_from(value).map_err(io::Error::other)
}

/// The file that a socket is bound to, as a place (`O_PATH`).
///
/// # Errors
/// `ENOENT` when it is bound to none; `EPERM` for those who do not administer the network.
pub fn bound_file(socket: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no argument but the number.
    let fd = check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), BOUND_FILE, 0) })?;
    // SAFETY: the kernel made this descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}

/// A new socket of that type (`SOCK_*`).
///
/// # Errors
/// When there is no such type.
pub fn new(kind: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel made this descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}

/// Whether a socket file is nobody's any more. A socket for datagrams that asks for it disturbs none.
///
/// # Errors
/// When we may not ask, or it is no socket.
pub fn is_abandoned(text: &[u8]) -> io::Result<bool> {
    match takes_datagrams(text).map_err(|error| (error.raw_os_error(), error)) {
        Err((Some(libc::ECONNREFUSED), _)) => Ok(true),
        // Of another type, or connected to somebody else, or just so.
        Ok(_) | Err((Some(libc::EPROTOTYPE | libc::EPERM), _)) => Ok(false),
        Err((_, error)) => Err(error),
    }
}

/// Whether somebody has a socket for datagrams of that address, to which a new one can be connected. Nothing is sent.
///
/// # Errors
/// Why not.
pub fn takes_datagrams(text: &[u8]) -> io::Result<()> {
    let socket = new(libc::SOCK_DGRAM)?;
    let address = self::sockaddr(text);
    let len = libc::socklen_t::try_from(address.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes of `address`, which has as many.
    check(unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr().cast(), len) }).map(|_| ())
}

/// A `struct sockaddr_un` of that text, as long as it must be.
#[must_use]
pub fn sockaddr(text: &[u8]) -> Vec<u8> {
    let family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or(1);
    let mut address = family.to_ne_bytes().to_vec();
    address.extend_from_slice(text);
    if text.first().is_some_and(|first| *first != 0) && text.len() < size_of::<libc::sockaddr_un>() - TEXT {
        address.push(0);
    }
    address
}

/// The first message that waits, or as much of a stream as was sent in one piece; `None` if there is nothing. It begins where the socket
/// looks (`SO_PEEK_OFF`), which moves on.
///
/// # Errors
/// When the socket is not connected, or an error was waiting to be told.
pub fn peek(socket: impl AsFd, room: usize) -> io::Result<Option<Message>> {
    let mut data = vec![0_u8; room.max(1)];
    let mut control = vec![0_u64; CONTROL / size_of::<u64>()];
    let mut address = [0_u8; 128];
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: room };
    // SAFETY: all-zero is a valid message without any parts.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = address.as_mut_ptr().cast();
    header.msg_namelen = 128;
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast::<c_void>();
    header.msg_controllen = CONTROL;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every part of `header` points to memory of that size that lives until the call is over.
    let got = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) };
    let Ok(length) = usize::try_from(got) else {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    };
    data.truncate(length.min(room));
    let named = usize::try_from(header.msg_namelen).unwrap_or(0).min(address.len());
    let mut message = Message {
        data,
        length,
        sender: text(&address[..named]),
        files_missing: header.msg_flags & libc::MSG_CTRUNC != 0,
        ..Message::default()
    };
    let bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    message.take_control(&bytes[..header.msg_controllen.min(CONTROL)]);
    Ok(Some(message))
}

/// Of the first `length` bytes that a look at a stream finds, those that were sent before the last piece of them: such a piece is copied
/// whole or not at all, and there is no room for the last byte of this one.
///
/// # Errors
/// As [`peek`].
pub fn before_last_piece(socket: impl AsFd, length: usize) -> io::Result<usize> {
    let mut data = vec![0_u8; length.max(1)];
    // Nothing is ever mapped there.
    let nowhere = std::ptr::without_provenance_mut::<c_void>(1);
    let mut parts = [
        libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: length.saturating_sub(1) },
        libc::iovec { iov_base: nowhere, iov_len: 1 },
    ];
    // SAFETY: all-zero is a valid message without any parts.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = parts.as_mut_ptr();
    header.msg_iovlen = parts.len();
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: `header` points to parts that live until the call is over: the first is `data`, fewer bytes than that has; into the second the
    // kernel cannot write, which it finds out by itself.
    let got = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) };
    match usize::try_from(got).map_err(|_| io::Error::last_os_error()) {
        // Not even the first piece had room.
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(0),
        got => got,
    }
}

/// Sends bytes and, with them, descriptors: for tests of those who look at them.
///
/// # Errors
/// What the kernel says.
#[doc(hidden)]
pub fn send_with(socket: impl AsFd, data: &[u8], files: &[i32]) -> io::Result<()> {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let mut control = (HEADER + size_of_val(files)).to_ne_bytes().to_vec();
    control.extend([libc::SOL_SOCKET, libc::SCM_RIGHTS].map(i32::to_ne_bytes).concat());
    files.iter().for_each(|fd| control.extend(fd.to_ne_bytes()));
    control.resize(control.len().next_multiple_of(8), 0);
    let mut iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: all-zero is a valid message without any parts.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast::<c_void>();
    header.msg_controllen = control.len();
    // SAFETY: every part of `header` points to memory of that size that lives until the call is over; the kernel only reads it.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Message {
    /// Takes what came beside the data: `struct cmsghdr` of 16 bytes, its content, and so on, each at a multiple of 8.
    fn take_control(&mut self, mut control: &[u8]) {
        const HEADER: usize = size_of::<libc::cmsghdr>();
        while let Some((header, _)) = control.split_at_checked(HEADER) {
            let number = |at: usize| {
                let bytes = header.get(at..)?.first_chunk::<4>()?;
                Some(i32::from_ne_bytes(*bytes))
            };
            let length = header.first_chunk::<8>().map_or(0, |bytes| usize::from_ne_bytes(*bytes));
            let Some(content) = control.get(HEADER..length.max(HEADER)) else { return };
            match (number(8), number(12)) {
                (Some(libc::SOL_SOCKET), Some(libc::SCM_RIGHTS)) => self.files.extend(descriptors(content)),
                (Some(libc::SOL_SOCKET), Some(libc::SCM_CREDENTIALS)) => {
                    self.credentials = credentials(content);
                }
                // It stands for the sender, who is known by number: closed again.
                (Some(libc::SOL_SOCKET), Some(SCM_PIDFD)) => drop(descriptors(content)),
                _ => {}
            }
            let next = length.max(HEADER).next_multiple_of(8).min(control.len());
            control = &control[next..];
        }
    }
}

fn descriptors(content: &[u8]) -> Vec<OwnedFd> {
    let numbers = content.chunks_exact(4).filter_map(|bytes| Some(i32::from_ne_bytes(*bytes.first_chunk()?)));
    // SAFETY: the kernel made these descriptors for us just now (negative ones are errors), and told them to nobody else.
    numbers.filter(|fd| *fd >= 0).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    fn temporary(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("rewake-unix-{name}-{}", std::process::id()))
    }

    #[test]
    fn names_and_credentials_of_both_sides() {
        use std::os::unix::ffi::OsStrExt as _;
        let path = temporary("name");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let (server, _) = listener.accept().unwrap();
        let text = Some(path.as_os_str().as_bytes().to_vec());
        assert_eq!((name(&listener).unwrap(), name(&client).unwrap()), (text.clone(), None));
        assert_eq!(peer_name(&client).unwrap(), text);
        drop(server);
        assert_eq!(peer_name(&client).unwrap(), text, "although it is gone");
        let (peer, _) = peer_credentials(&client).unwrap().unwrap();
        assert_eq!(peer.pid, std::process::id().cast_signed());
        assert!(!is_abandoned(text.as_ref().unwrap()).unwrap());
        drop(listener);
        assert!(is_abandoned(text.as_ref().unwrap()).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert!(is_abandoned(text.as_ref().unwrap()).is_err());
        assert_eq!(peer_credentials(UnixDatagram::unbound().unwrap()).unwrap(), None);
    }

    #[test]
    fn a_look_takes_nothing_out() {
        let (one, other) = UnixStream::pair().unwrap();
        (&one).write_all(b"data").unwrap();
        assert_eq!((readable(&other).unwrap(), unreceived(&other).unwrap()), (4, 0));
        assert!(unreceived(&one).unwrap() > 0);
        for _ in 0..2 {
            let message = peek(&other, 100).unwrap().unwrap();
            assert_eq!((message.data.as_slice(), message.length), (&b"data"[..], 4));
        }
        assert!(peek(&one, 100).unwrap().is_none());
    }

    #[test]
    fn messages_are_walked_through_with_what_comes_along() {
        let path = temporary("sender");
        let (sender, receiver) = (UnixDatagram::bind(&path).unwrap(), UnixDatagram::unbound().unwrap());
        let name_of = b"\0rewake-unix-receiver".to_vec();
        let name_of = [name_of, std::process::id().to_string().into_bytes()].concat();
        let address = sockaddr(&name_of);
        let len = libc::socklen_t::try_from(address.len()).unwrap();
        // SAFETY: `address` has `len` bytes.
        assert_eq!(unsafe { libc::bind(receiver.as_raw_fd(), address.as_ptr().cast(), len) }, 0);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::connect(sender.as_raw_fd(), address.as_ptr().cast(), len) }, 0);
        set_option(&receiver, libc::SO_PASSCRED, 1).unwrap();
        for data in [&b"first"[..], b"", b"third one"] {
            sender.send(data).unwrap();
        }
        set_option(&receiver, libc::SO_PEEK_OFF, 0).unwrap();
        let mut got = Vec::new();
        while let Some(message) = peek(&receiver, 7).unwrap() {
            assert!(message.sender.as_ref().is_some_and(|name| name.starts_with(b"/")), "{message:?}");
            assert_eq!(message.credentials.unwrap().pid, std::process::id().cast_signed());
            got.push((message.data, message.length));
        }
        assert_eq!(got[..2], [(b"first".to_vec(), 5), (Vec::new(), 0)]);
        assert_eq!(got[2], (b"third o".to_vec(), 9), "it had no room for all");
        assert_eq!(name(&receiver).unwrap(), Some(name_of));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_filter_is_read() {
        let (one, _other) = UnixDatagram::pair().unwrap();
        assert!(filter(&one).unwrap().is_empty());
        let mut code = libc::sock_filter { code: 6, jt: 0, jf: 0, k: 1000 };
        let program = libc::sock_fprog { len: 1, filter: &raw mut code };
        let len = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap();
        let place = (&raw const program).cast();
        // SAFETY: the kernel reads the program and its one instruction.
        let set = unsafe {
            libc::setsockopt(one.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, place, len)
        };
        assert_eq!(set, 0);
        assert_eq!(filter(&one).unwrap(), [6, 0, 0, 0, 0xe8, 3, 0, 0]);
    }
}
