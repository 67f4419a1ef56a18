//! The answer to whoever asked for a checkpoint with a token (`ckpt PID`): a connection to the socket whose name the token tells.
//!
//! Only this user and root are answered. Nobody has to listen: who asked may be gone, and nothing waits for it.
//!
//! # Safety
//! Unsafe here: raw system calls with an address and text of ours.

#![allow(unsafe_code, reason = "see Safety above")]

use rewake_linux::inside::{NAME, name_of};

use crate::raw;

/// A `sockaddr_un` in the abstract namespace: family, a zero byte, the name.
const ADDRESS: usize = 2 + 1 + NAME;

/// Said first: a copy is there and at work.
pub const BEGUN: &[u8] = b"begun\n";

/// Somebody who waits for an answer.
#[derive(Debug)]
pub struct Asker(i32);

impl Asker {
    /// Whoever waits for the answer with this token.
    #[must_use]
    pub fn of(token: u64) -> Option<Self> {
        if token == 0 {
            return None;
        }
        let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let args = [raw::word(libc::AF_UNIX), raw::word(flags), 0, 0, 0, 0];
        // SAFETY: numbers.
        let made = i32::try_from(unsafe { raw::call(libc::SYS_socket, args) }).unwrap_or(-1);
        if made < 0 {
            return None;
        }
        let asker = Self(made);
        let mut address = [0u8; ADDRESS];
        address[0] = u8::try_from(libc::AF_UNIX).unwrap_or(1);
        address[3..].copy_from_slice(&name_of(token));
        let args = [raw::word(made), address.as_ptr() as u64, ADDRESS as u64, 0, 0, 0];
        // SAFETY: an address of ours and its length.
        let connected = unsafe { raw::call(libc::SYS_connect, args) } == 0;
        (connected && asker.may_know()).then_some(asker)
    }

    /// Whether it is this user or root who listens.
    fn may_know(&self) -> bool {
        // pid, uid, gid
        let mut peer = [u32::MAX; 3];
        let mut len = 12u32;
        let (level, what) = (raw::word(libc::SOL_SOCKET), raw::word(libc::SO_PEERCRED));
        let args = [raw::word(self.0), level, what, peer.as_mut_ptr() as u64, &raw mut len as u64, 0];
        // SAFETY: room for what the kernel writes, and its length; calls without arguments.
        unsafe {
            let own = [libc::SYS_getuid, libc::SYS_geteuid].map(|call| raw::call(call, [0; 6]));
            let known = raw::call(libc::SYS_getsockopt, args) == 0;
            known && (peer[1] == 0 || own.contains(&i64::from(peer[1])))
        }
    }

    /// Says something; whether it was taken.
    pub fn say(&self, text: &[u8]) -> bool {
        let args =
            [raw::word(self.0), text.as_ptr() as u64, text.len() as u64, raw::word(libc::MSG_NOSIGNAL), 0, 0];
        // SAFETY: text of ours.
        let sent = unsafe { raw::call(libc::SYS_sendto, args) };
        usize::try_from(sent) == Ok(text.len())
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        raw::close(self.0);
    }
}

/// Tells whoever asked with this token that there will be no checkpoint, and why; whether anybody was told. `cause` and `remedy` are
/// one line each.
pub fn refuse(token: u64, cause: &[u8], remedy: &[u8]) -> bool {
    Asker::of(token).is_some_and(|asker| {
        let all = [&b"failed\n"[..], cause, b"\n", remedy, b"\n."];
        all.iter().all(|text| asker.say(text))
    })
}
