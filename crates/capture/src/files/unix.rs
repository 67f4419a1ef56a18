//! Unix sockets with all that they are connected to in the target: found by inode, looked at through duplicates of their descriptors,
//! their queues read without taking anything out.
//!
//! Descriptors in flight (`SCM_RIGHTS`) are looked at as copies in this process; one that leads to a socket is looked through in its turn.

mod connect;
mod look;
mod names;
mod queue;

use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rewake_image::records::{OpenFile, PeerCredentials, UnixMessage, UnixName, UnixSocket, open_file::Kind};
use rewake_linux::proc::Proc;
use rewake_linux::socket::diag::Diag;
use rewake_linux::socket::unix::Message;
use rustix::fs::{FileType, OFlags};

use self::look::Look;
use super::{Seen, Target};
use crate::error::{During, Result};
use crate::findings::Findings;
use crate::findings::Refusal;

/// Unix sockets of the target.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) records: Vec<UnixSocket>,
    pub(crate) names: Vec<UnixName>,
    /// By inode: the id of a record, or why there is none.
    by_inode: HashMap<u64, Result<u32, Refusal>>,
    /// Copies of descriptors in flight, until what they lead to has been read.
    in_flight: Vec<OwnedFd>,
    /// The copies that come with each message: socket, message, numbers.
    carried: Vec<(usize, usize, Vec<i32>)>,
}

/// What is wanted of the sockets' queues: only a target that stands still is not disturbed by a look at them.
#[derive(Debug, Default)]
struct Queued {
    messages: Vec<Message>,
    /// Numbers of our copies of the descriptors that come with each.
    files: Vec<Vec<i32>>,
}

impl Sockets {
    /// Looks at all of them. What is in flight is added to `seen`, as descriptors of this process.
    ///
    /// # Errors
    /// When our own descriptors cannot be looked at.
    pub(super) fn find(target: Target<'_>, seen: &mut Vec<Seen>) -> Result<Self> {
        let mut sockets = Self::default();
        let mut looks: Vec<Look> = Vec::new();
        let mut diag = None;
        let mut at = 0;
        while let Some(one) = seen.get(at) {
            at += 1;
            if !is_socket(one) || looks.iter().any(|look| look.inode == one.inode().1) {
                continue;
            }
            let diag = diag.get_or_insert_with(Diag::open);
            let Some(mut look) = Look::at(one, diag, target.still) else { continue };
            let arrived = look.queued.messages.iter_mut().map(|message| std::mem::take(&mut message.files));
            let arrived: Vec<Vec<OwnedFd>> = arrived.collect();
            for files in arrived {
                look.queued.files.push(files.iter().map(|file| file.as_raw_fd()).collect());
                for file in files {
                    seen.push(in_flight(&file)?);
                    sockets.in_flight.push(file);
                }
            }
            looks.push(look);
        }
        if !looks.is_empty() {
            let diag = diag.as_ref().and_then(|diag| diag.as_ref().ok());
            connect::judge(target, seen, &mut looks, diag);
            sockets.tell(target, looks);
        }
        Ok(sockets)
    }

    /// Records of those that are inside.
    fn tell(&mut self, target: Target<'_>, looks: Vec<Look>) {
        let (inside, outside): (Vec<Look>, Vec<Look>) =
            looks.into_iter().partition(|look| look.refusal.is_none());
        for look in outside {
            if let Some(refusal) = look.refusal {
                self.by_inode.insert(look.inode, Err(refusal));
            }
        }
        for (id, look) in (0..).zip(&inside) {
            self.by_inode.insert(look.inode, Ok(id));
        }
        connect::records(target, self, inside);
    }

    /// This process, if it has copies of what is in flight.
    ///
    /// # Errors
    /// When we cannot look at ourselves.
    pub(super) fn look_at_ourselves(&self) -> Result<Option<Proc>> {
        if self.in_flight.is_empty() {
            return Ok(None);
        }
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Proc::own().during("open", pid, "/proc/self").map(Some)
    }

    /// What is known of the socket behind a descriptor: its record, or why there is none; nothing of one that is no unix socket, or whose
    /// other side may be taken over by somebody else.
    pub(super) fn of(&self, one: &Seen) -> Option<Result<u32, Refusal>> {
        is_socket(one).then(|| self.by_inode.get(&one.inode().1).cloned()).flatten()
    }

    /// Notes the open files that are in flight, whose ids are told by our copies of them.
    pub(super) fn carry(&mut self, file_at: &HashMap<i32, u32>, open: &[OpenFile], findings: &mut Findings) {
        for (socket, message, numbers) in std::mem::take(&mut self.carried) {
            let files: Option<Vec<u32>> = numbers.iter().map(|fd| file_at.get(fd).copied()).collect();
            // What cannot be captured is named already.
            let Some(files) = files else { continue };
            for id in &files {
                let kind = usize::try_from(*id).ok().and_then(|at| open.get(at)?.kind.as_ref());
                if let Some(what) = too_late(kind) {
                    let reason = format!("{what} is on its way through it (SCM_RIGHTS)");
                    findings.add(format!("unix socket {socket}"), reason, "let the program receive it first");
                }
            }
            self.records[socket].queue[message].files = files;
        }
    }

    /// Turns process ids into those that the target sees; `inner` has those of its own. Where they differ, the ids of others are nobody
    /// there.
    pub(crate) fn translate(&mut self, inner: &HashMap<i32, i32>) {
        let own = inner.iter().any(|(outer, inner)| outer != inner);
        let translate = |one: &mut PeerCredentials| {
            if own {
                one.pid = inner.get(&one.pid).copied().unwrap_or(0);
            }
        };
        for record in &mut self.records {
            record.peer_credentials.iter_mut().for_each(translate);
            record.accepted_credentials.iter_mut().for_each(translate);
            let messages = record.queue.iter_mut();
            messages.filter_map(|message| message.credentials.as_mut()).for_each(translate);
        }
    }

    fn push(&mut self, socket: UnixSocket, queued: Queued) {
        let at = self.records.len();
        let carried = queued.files.into_iter().zip(0..).filter(|(files, _)| !files.is_empty());
        self.carried.extend(carried.map(|(files, message)| (at, message, files)));
        self.records.push(socket);
    }

    /// Another socket, which nobody has open.
    fn add(&mut self, kind: u32, name: Option<u32>, peer: Option<u32>) -> u32 {
        let id = u32::try_from(self.records.len()).expect("fewer sockets than 2^32");
        self.records.push(UnixSocket { id, r#type: kind, name, peer, ..UnixSocket::default() });
        id
    }
}

fn is_socket(one: &Seen) -> bool {
    FileType::from_raw_mode(one.link.stat.mode) == FileType::Socket && !one.flags().contains(OFlags::PATH)
}

/// A copy of a descriptor in flight.
fn in_flight(file: &OwnedFd) -> Result<Seen> {
    let (pid, fd) = (rustix::process::getpid().as_raw_nonzero().get(), file.as_raw_fd());
    let own = Proc::own().during("open", pid, "/proc/self")?;
    let link = own.link(&format!("fd/{fd}")).during("readlink", pid, "a descriptor in flight")?;
    let info = own.fdinfo(fd).during("read fdinfo", pid, "a descriptor in flight")?;
    Ok(Seen { pid, fd, link, info, in_flight: true })
}

/// What is not open yet when messages are sent again.
fn too_late(kind: Option<&Kind>) -> Option<&'static str> {
    match kind {
        Some(Kind::KernelFile(_)) => Some("a file of the kernel"),
        Some(Kind::Outside(_)) => Some("a stream to the outside"),
        _ => None,
    }
}

/// A message as it was sent.
fn message(queued: &Message, sender: Option<u32>) -> UnixMessage {
    // Without a number there is nobody to tell of.
    let credentials = queued.credentials.filter(|one| one.pid != 0).map(|one| PeerCredentials {
        pid: one.pid,
        uid: one.uid,
        gid: one.gid,
        groups: Vec::new(),
    });
    UnixMessage { data: queued.data.clone(), files: Vec::new(), credentials, sender }
}
