//! Pidfds: to processes and threads of the tree, and to such as are gone. The kernel tells in fdinfo of whom one is.

use rewake_image::records::{Pidfd, open_file};
use rewake_linux::attributes;
use rewake_linux::proc::Proc;

use super::kind::{LET_FINISH, refuse};
use super::{Seen, Target};
use crate::findings::Refusal;
use crate::spaces::Ids;

/// What the links of pidfds begin with.
const LINKS: [&[u8]; 2] = [b"anon_inode:[pidfd]", b"pidfd:"];

/// What is opened again when all processes are there comes too late for a message that waits in a socket.
pub(super) const IN_FLIGHT: &str = "it tells of a process, and is in a message that was not received yet";

pub(super) fn is_pidfd(one: &Seen) -> bool {
    LINKS.iter().any(|link| one.link.target.starts_with(link))
}

pub(super) fn record(target: Target<'_>, one: &Seen) -> Result<open_file::Kind, Refusal> {
    let told = one.info.other("Pid").and_then(|text| std::str::from_utf8(text.trim_ascii()).ok());
    match told.and_then(|text| text.parse::<i32>().ok()) {
        None => refuse("this kernel does not tell whom a pidfd is of", LET_FINISH),
        Some(-1) => {
            let own = attributes::duplicate(one.pid, one.fd).ok();
            let exit_status = own.and_then(attributes::pidfd_exit_status).unwrap_or(0);
            // Without a place of their own (before Linux 6.9) all are of one inode; nothing tells them apart then but this number.
            let gone = one.link.stat.inode;
            Ok(open_file::Kind::Pidfd(Pidfd { id: 0, gone, exit_status }))
        }
        Some(id) => match member(target, id) {
            Some(_) if one.in_flight => refuse(IN_FLIGHT, LET_FINISH),
            Some(id) => Ok(open_file::Kind::Pidfd(Pidfd { id, ..Pidfd::default() })),
            None => {
                let name = Proc::open(id).and_then(|proc| proc.comm()).unwrap_or_default();
                let name = String::from_utf8_lossy(&name).into_owned();
                let reason =
                    format!("it refers to process {id} ({name}), which is outside the captured tree");
                refuse(reason, "let the program close it, or capture a tree that has both in it")
            }
        },
    }
}

/// The id that a process or thread of the tree has inside, by the one out here.
pub(super) fn member(target: Target<'_>, id: i32) -> Option<i32> {
    let is_thread = |pid: i32| {
        let threads = Proc::open_living(pid).and_then(|proc| proc.threads());
        threads.is_ok_and(|threads| threads.contains(&id))
    };
    let process = target.family.iter().copied().find(|pid| *pid == id || is_thread(*pid))?;
    let ids = Ids::of_all([process]).ok()?;
    Some(ids.inner(id)).filter(|inner| *inner != 0)
}
