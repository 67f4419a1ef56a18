//! POSIX message queues that processes have open. Their messages can only be received; see [`rewake_linux::mqueue`].

use std::collections::HashSet;

use rewake_image::records::{PosixQueue, PosixQueueEnd, open_file, posix_queue};
use rewake_linux::mqueue::{self, Journal, Notice};
use rewake_linux::proc::{Proc, holders};
use rustix::fs::{Mode, OFlags};

use super::kind::{LET_FINISH, identity, refuse};
use super::{Seen, Target, netlink};
use crate::ask::queues::{MOST_BYTES, SIGNAL, THREAD};
use crate::error::{CaptureError, During, Result};
use crate::findings::Findings;
use crate::findings::Refusal;
use crate::kin;

/// A queue, and a descriptor to read it by.
#[derive(Clone, Debug)]
pub(crate) struct QueueSource {
    inode: (u64, u64),
    pid: i32,
    fd: i32,
    /// The process that is told of the next message, or 0.
    pub(crate) told: i32,
    record: PosixQueue,
}

/// Signals that do more than to come, that nobody can take away, or that end our own programs.
const UNFIT: [i32; 9] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGCHLD,
];

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
        match look(target, proc, one, id) {
            Ok((record, told)) => {
                queues.push(QueueSource { inode: one.inode(), pid: one.pid, fd: one.fd, told, record })
            }
            Err(refusal) => {
                findings.turn_to(one.pid);
                findings.refuse(one.name(), refusal);
            }
        }
    }
    let inodes: HashSet<(u64, u64)> = queues.iter().map(|queue| queue.inode).collect();
    // We may have copies ourselves, of what is in flight.
    let copies = own.map(Proc::id);
    let inside = |pid| copies == Some(pid) || !kin::is_outsider(target.family, pid);
    for (inode, holder) in holders(&inodes, inside) {
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
    one.link.target.starts_with(b"/")
        && one.link.stat.file_type() == libc::S_IFREG
        && is_message_queue(proc, one.fd)
}

/// Whether a descriptor leads to a message queue.
pub(crate) fn is_message_queue(proc: &Proc, fd: i32) -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat(proc, format!("fd/{fd}"), flags, Mode::empty()).is_ok_and(mqueue::is_queue)
}

fn look(target: Target<'_>, proc: &Proc, one: &Seen, id: u32) -> Result<(PosixQueue, i32), Refusal> {
    if one.in_flight {
        // Whoever of ours had to finish a look at it would not find it.
        return refuse("nobody has this message queue open", "let the program receive it first");
    }
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
    if let Some(notice) = state.notice {
        check_notice(target, notice, attributes)?;
    }
    let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let record = PosixQueue {
        id,
        identity: Some(identity(&one.link)),
        uid: one.link.stat.uid,
        gid: one.link.stat.gid,
        removed: one.link.deleted || one.link.stat.links == 0,
        max_messages: number(attributes.max_messages),
        message_size: number(attributes.message_size),
        messages: Vec::new(),
        notification: None,
    };
    Ok((record, state.notice.map_or(0, |notice| notice.pid)))
}

/// Whether it can be found out what comes with the news of the next message.
fn check_notice(target: Target<'_>, notice: Notice, attributes: mqueue::Attributes) -> Result<(), Refusal> {
    const REMEDY: &str = "let the program take that back first (mq_notify with no event)";
    if !target.family.contains(&notice.pid) {
        let who = if notice.pid == 0 { "a process".to_owned() } else { format!("process {}", notice.pid) };
        let reason = format!("{who} outside of the captured tree is told of the next message (mq_notify)");
        return refuse(reason, "end that process first, or capture one above both");
    }
    if notice.kind == SIGNAL && UNFIT.contains(&notice.signal) {
        let reason = format!(
            "a process is told of the next message (mq_notify) by signal {}, whose value cannot be found out",
            notice.signal
        );
        return refuse(reason, REMEDY);
    }
    if attributes.messages.saturating_mul(attributes.message_size) > MOST_BYTES {
        let reason =
            "a process is told of the next message (mq_notify), and those that are there are too many";
        return refuse(reason, "let the program receive them first");
    }
    let only = || Proc::open(notice.pid).is_ok_and(|proc| netlink::only_one(&proc).is_some());
    if notice.kind == THREAD && !only() {
        let reason = "a thread is told of the next message (mq_notify with SIGEV_THREAD), and by which of its netlink \
                      sockets is not known";
        return refuse(reason, REMEDY);
    }
    Ok(())
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
    pub(crate) fn read(&self, journal: &Journal, learned: &[PosixQueue]) -> Result<PosixQueue> {
        let same = |queue: &&PosixQueue| {
            queue.identity.as_ref().is_some_and(|one| (one.device, one.inode) == self.inode)
        };
        if let Some(queue) = learned.iter().find(same) {
            let (messages, notification) = (queue.messages.clone(), queue.notification.clone());
            return Ok(PosixQueue { messages, notification, ..self.record.clone() });
        }
        if self.told != 0 {
            let reason = "who is told of the next message has changed meanwhile";
            return Err(CaptureError::failed("read", self.pid, "message queue", reason).advise("try again"));
        }
        let messages = journal.read(self.pid, self.fd).during("read", self.pid, "message queue")?;
        let message = |(priority, content)| posix_queue::Message { priority, content };
        Ok(PosixQueue { messages: messages.into_iter().map(message).collect(), ..self.record.clone() })
    }
}
