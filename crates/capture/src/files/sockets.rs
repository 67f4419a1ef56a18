//! Sockets that are not captured. One that is a standard stream may be exchanged for that of `resume`, as a pipe or a terminal is, if it
//! is nothing but a connection to somebody else.

use std::io;

use rewake_linux::proc::Proc;
use rewake_linux::{attributes, socket};
use rustix::fs::OFlags;

use super::Seen;
use crate::findings::Refusal;

const REMEDY: &str = "close the connection first, or capture the program while it has none";

/// Whether a socket at a standard stream is a stream to the outside.
pub(super) fn is_stream_to_outside(proc: &Proc, one: &Seen) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(Refusal::new(reason, REMEDY));
    if one.flags().contains(OFlags::PATH) {
        return refuse("it is the place of a socket (O_PATH)".to_owned());
    }
    let seen = match attributes::duplicate(proc.id(), one.fd).and_then(socket::look) {
        Ok(seen) => seen,
        // It was closed meanwhile, or is another file now: the target runs.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK)) => return Ok(()),
        Err(error) => return refuse(unknown(&error)),
    };
    let reason = match seen {
        socket::Socket { listening: true, .. } => "it is a socket that listens for connections",
        socket::Socket { kind, family, .. }
            if kind != libc::SOCK_STREAM
                || !matches!(family, libc::AF_UNIX | libc::AF_INET | libc::AF_INET6) =>
        {
            "it is a socket of a kind that no standard stream can take the place of"
        }
        socket::Socket { connected: false, .. } => "it is a socket that is not connected",
        socket::Socket { peer: Some(peer), .. } if peer == proc.id() => {
            "it is a socket whose other side is the program's own"
        }
        _ => return Ok(()),
    };
    refuse(format!("{reason}; open sockets are not supported yet"))
}

fn unknown(error: &io::Error) -> String {
    format!("it is a socket that cannot be looked at ({error})")
}

/// Why another one is not captured.
pub(super) fn refusal<T>(proc: &Proc, one: &Seen) -> Result<T, Refusal> {
    let refuse = |what: &str| Err(Refusal::new(format!("{what} are not supported yet"), REMEDY));
    if one.flags().contains(OFlags::PATH) {
        return refuse("sockets opened as files (O_PATH)");
    }
    let family =
        attributes::duplicate(proc.id(), one.fd).and_then(socket::look).map(|seen| (seen.family, seen.kind));
    match family {
        Ok((libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM)) => refuse("TCP sockets"),
        Ok((libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM)) => refuse("UDP sockets"),
        Ok((libc::AF_INET | libc::AF_INET6, _)) => refuse("raw sockets"),
        Ok((libc::AF_NETLINK, _)) => refuse("netlink sockets"),
        Ok((libc::AF_PACKET, _)) => refuse("packet sockets"),
        _ => refuse("open sockets of this kind"),
    }
}
