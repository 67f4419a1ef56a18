//! What a program with the library inside shows to others, and how it is asked for a checkpoint: a mark in its memory map, a signal with
//! a token, and a socket whose name the token tells, where the program's copy answers.
//!
//! # Safety
//! The unsafe calls pass a `siginfo_t` and a `ucred` of our own to the kernel, which checks the rest.

#![allow(unsafe_code, reason = "a signal with a value, see Safety above")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// What copies of a program are called, those that write its images.
pub const COPY: &CStr = c"rewake-ckpt";

/// Beginning of the mark's name; the number of the signal follows it.
pub const MARK: &str = "rewake-ckpt-";
/// How the kernel shows memory of that name: mapped from a memfd, or named.
pub const SHOWN: [&str; 2] = ["/memfd:rewake-ckpt-", "[anon:rewake-ckpt-"];

/// The signal that a mark in one line of a memory map names.
#[must_use]
pub fn signal_in(line: &str) -> Option<i32> {
    let name = line.splitn(6, ' ').nth(5)?.trim_start();
    let rest = SHOWN.iter().find_map(|shown| name.strip_prefix(shown))?;
    let digits = rest.strip_suffix(" (deleted)").or_else(|| rest.strip_suffix(']'))?;
    digits.parse().ok().filter(|signal| (1..=64).contains(signal))
}

/// Bytes of the name of the socket where an answer is awaited, in the abstract namespace.
pub const NAME: usize = MARK.len() + 16;

/// The name that goes with a token.
#[must_use]
pub fn name_of(token: u64) -> [u8; NAME] {
    let mut name = [0; NAME];
    name[..MARK.len()].copy_from_slice(MARK.as_bytes());
    for (digit, at) in name[MARK.len()..].iter_mut().zip((0..16).rev()) {
        *digit = b"0123456789abcdef"[usize::from((token >> (4 * at)).to_le_bytes()[0] & 15)];
    }
    name
}

/// Asks a process for a checkpoint by its signal, with a token, as sigqueue(3) would.
///
/// # Errors
/// The kernel's: it is gone, or not ours.
pub fn ask(pidfd: impl AsFd, signal: i32, token: u64) -> io::Result<()> {
    // siginfo_t: signal, error, code, padding, then pid, uid, value.
    let mut info = [0u64; 16];
    info[0] = u64::from(signal.unsigned_abs());
    info[1] = u64::from(libc::SI_QUEUE.cast_unsigned());
    info[2] = u64::from(std::process::id()) | u64::from(rustix::process::getuid().as_raw()) << 32;
    info[3] = token;
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: a siginfo_t of ours, which outlives the call.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info.as_ptr(), 0) };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whom the other end of a connection belongs to.
///
/// # Errors
/// The kernel's: it is no unix socket.
pub fn peer_uid(socket: impl AsFd) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = libc::socklen_t::try_from(size_of_val(&peer)).unwrap_or(0);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: room for what the kernel writes, and its length, both ours.
    let told = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut len)
    };
    if told == 0 { Ok(peer.uid) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_known_by_the_name_the_kernel_shows() {
        let line = |name: &str| format!("7f0000000000-7f0000001000 ---p 00000000 00:01 4711      {name}");
        assert_eq!(signal_in(&line("/memfd:rewake-ckpt-34 (deleted)")), Some(34));
        assert_eq!(signal_in(&line("[anon:rewake-ckpt-40]")), Some(40));
        for other in
            ["", "/memfd:rewake-ckpt-65 (deleted)", "/tmp/rewake-ckpt-34", "/memfd:rewake-ckpt-34", "[heap]"]
        {
            assert_eq!(signal_in(&line(other)), None, "{other}");
        }
        assert_eq!(signal_in("7f0000000000-7f0000001000 ---p 00000000 00:00 0"), None);
    }

    #[test]
    fn the_token_is_in_the_name() {
        assert_eq!(&name_of(0x0123_4567_89ab_cdef), b"rewake-ckpt-0123456789abcdef");
    }
}
