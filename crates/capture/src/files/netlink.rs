//! Netlink sockets that nobody has used but to be told of messages of POSIX queues (mq_notify, as the C library does it for SIGEV_THREAD):
//! as they were made, and empty. All others are refused.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rewake_image::records::{NetlinkSocket, open_file};
use rewake_linux::proc::Proc;
use rewake_linux::{attributes, socket};

use super::Seen;
use super::kind::{Kind, refuse};
use crate::findings::Refusal;

const REMEDY: &str = "let the program close it first";

/// The record of one; nothing of what is no netlink socket.
pub(super) fn record(proc: &Proc, one: &Seen) -> Option<Result<Kind, Refusal>> {
    let socket = attributes::duplicate(proc.id(), one.fd).ok()?;
    let seen = socket::look(&socket).ok().filter(|seen| seen.family == libc::AF_NETLINK)?;
    let kind = u32::try_from(seen.kind).unwrap_or(0);
    let record = || Kind::Special(open_file::Kind::Netlink(NetlinkSocket { r#type: kind }));
    Some(match socket::netlink::is_as_made(&socket, seen.kind) {
        Ok(true) => Ok(record()),
        Ok(false) => refuse("netlink sockets that are in use are not supported yet", REMEDY),
        Err(error) => refuse(format!("it is a netlink socket that cannot be looked at ({error})"), REMEDY),
    })
}

/// The number of the one netlink socket that a process has; nothing if it has none, or several.
pub(crate) fn only_one(proc: &Proc) -> Option<i32> {
    let mut found: BTreeMap<u64, i32> = BTreeMap::new();
    for fd in proc.fds().ok()? {
        let is_socket = fd.link.target.starts_with(b"socket:");
        let duplicate = || -> Option<OwnedFd> { attributes::duplicate(proc.id(), fd.fd).ok() };
        let family = |socket: OwnedFd| socket::look(&socket).ok().map(|seen| seen.family);
        if is_socket && duplicate().and_then(family) == Some(libc::AF_NETLINK) {
            found.entry(fd.link.stat.inode).or_insert(fd.fd);
        }
    }
    let only = found.len() == 1;
    found.into_values().next().filter(|_| only)
}
