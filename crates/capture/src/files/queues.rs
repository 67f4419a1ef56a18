//! POSIX message queues that processes have open. Their messages can only be received; see [`rewake_linux::mqueue`].

use std::collections::HashSet;

use rewake_image::records::{PosixQueue, PosixQueueEnd, open_file, posix_queue};
use rewake_linux::mqueue::{self, Journal};
use rewake_linux::proc::{Proc, holders};
use rustix::fs::{Mode, OFlags};

use super::kind::{LET_FINISH, Refusal, identity, refuse};
use super::{Seen, Target};
use crate::error::{During, Result};
use crate::findings::Findings;
use crate::kin;

/// A queue, and a descriptor to read it by.
#[derive(Clone, Debug)]
pub(crate) struct QueueSource {
    inode: (u64, u64),
    pid: i32,
    fd: i32,
    record: PosixQueue,
}

/// All that the target has open; what cannot be captured goes to `findings`.
///
/// # Errors
/// When the target is gone.
pub(super) fn inside(
    target: Target<'_>,
    own: Option<&Proc>,
    seen: &[Seen],
    findings: &mut Findings,
) -> Result<Vec<QueueSource>> {
    let mut queues: Vec<QueueSource> = Vec::new();
    for one in seen.iter().filter(|one| !one.flags().contains(OFlags::PATH)) {
        let proc = target.of(one, own)?;
        if !is_queue(proc, one) || queues.iter().any(|queue| queue.inode == one.inode()) {
            continue;
        }
        let id = u32::try_from(queues.len()).unwrap_or(u32::MAX);
        match look(proc, one, id) {
            Ok(record) => queues.push(QueueSource { inode: one.inode(), pid: one.pid, fd: one.fd, record }),
            Err(refusal) => {
                findings.turn_to(one.pid);
                findings.add(one.name(), refusal.reason, refusal.remedy);
            }
        }
    }
    let inodes: HashSet<(u64, u64)> = queues.iter().map(|queue| queue.inode).collect();
    for (inode, holder) in holders(&inodes, |pid| !kin::is_outsider(target.family, pid)) {
        if let Some(one) = seen.iter().find(|one| one.inode() == inode) {
            findings.turn_to(one.pid);
            let reason =
                format!("process {holder}, outside of the captured tree, has this message queue open too");
            findings.add(one.name(), reason, "end that process first, or capture one above both");
        }
    }
    Ok(queues)
}

fn is_queue(proc: &Proc, one: &Seen) -> bool {
    let name = format!("fd/{}", one.fd);
    one.link.target.starts_with(b"/")
        && one.link.stat.file_type() == libc::S_IFREG
        && rustix::fs::openat(proc, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .is_ok_and(mqueue::is_queue)
}

fn look(proc: &Proc, one: &Seen, id: u32) -> Result<PosixQueue, Refusal> {
    let name = format!("fd/{}", one.fd);
    let Ok(file) = proc.open_file(&name, OFlags::RDWR | OFlags::NONBLOCK) else {
        return refuse(
            "this user may not read and write the message queue",
            "run the command as its owner, or as root",
        );
    };
    let (Ok(attributes), Ok(state)) = (mqueue::attributes(&file), mqueue::state(&file)) else {
        return refuse("this kernel does not tell what the message queue is", LET_FINISH);
    };
    if state.notifies {
        // What comes with the signal, no one but the process that is told of it ever sees.
        let reason = "a process waits to be told of the next message (mq_notify), which is not supported yet";
        return refuse(reason, "let the program take that back first (mq_notify with no event)");
    }
    let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(PosixQueue {
        id,
        identity: Some(identity(&one.link)),
        uid: one.link.stat.uid,
        gid: one.link.stat.gid,
        removed: one.link.deleted || one.link.stat.links == 0,
        max_messages: number(attributes.max_messages),
        message_size: number(attributes.message_size),
        messages: Vec::new(),
    })
}

/// The record of a descriptor, if it is one of a queue.
pub(super) fn end(queues: &[QueueSource], one: &Seen) -> Option<open_file::Kind> {
    let queue = queues.iter().find(|queue| queue.inode == one.inode())?;
    let usable = !one.flags().contains(OFlags::PATH);
    usable.then_some(open_file::Kind::PosixQueue(PosixQueueEnd { queue: queue.record.id }))
}

impl QueueSource {
    /// The queue with its messages. The target stands still.
    ///
    /// # Errors
    /// When somebody else takes or sends messages meanwhile.
    pub(crate) fn read(&self, journal: &Journal) -> Result<PosixQueue> {
        let messages = journal.read(self.pid, self.fd).during("read", self.pid, "message queue")?;
        let message = |(priority, content)| posix_queue::Message { priority, content };
        Ok(PosixQueue { messages: messages.into_iter().map(message).collect(), ..self.record.clone() })
    }
}
