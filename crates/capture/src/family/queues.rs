//! What the POSIX message queues of the tree hold, and who is told of the next message (mq_notify).

use std::collections::BTreeSet;

use rewake_image::records::{FileIdentity, PosixNotification, PosixQueue, posix_queue};
use rewake_linux::mqueue;
use rewake_linux::proc::{Fd, Proc};
use rustix::fs::OFlags;

use super::Family;
use crate::ask::queues::{Asked, Learned, MOST_BYTES, THREAD};
use crate::error::{CaptureError, During, Result};
use crate::files::netlink;

const OBJECT: &str = "message queue";

/// A descriptor of a process that leads to a queue.
struct Found {
    pid: i32,
    fd: Fd,
}

impl Found {
    const fn inode(&self) -> (u64, u64) {
        (self.fd.link.stat.device, self.fd.link.stat.inode)
    }
}

impl Family {
    /// Messages of all queues that have any and what comes with the news of the next one; nothing else of them. Process ids are those out
    /// here. Queues that none of the tree may open to receive and send are not among them.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub(crate) fn queues(&mut self) -> Result<Vec<PosixQueue>> {
        let mut found: Vec<Found> = Vec::new();
        for (pid, frozen) in &self.members {
            let fds = frozen.proc.fds().during("list descriptors", *pid, "fd")?;
            let queues = fds.into_iter().filter(|fd| is_queue(&frozen.proc, fd));
            found.extend(queues.map(|fd| Found { pid: *pid, fd }));
        }
        let inodes: BTreeSet<(u64, u64)> = found.iter().map(Found::inode).collect();
        let mut queues = Vec::new();
        for inode in inodes {
            let ways: Vec<&Found> = found.iter().filter(|one| one.inode() == inode).collect();
            queues.extend(self.queue(&ways)?);
        }
        Ok(queues)
    }

    /// One that all of these lead to.
    fn queue(&mut self, ways: &[&Found]) -> Result<Option<PosixQueue>> {
        let Some(first) = ways.first() else { return Ok(None) };
        let Some(proc) = self.members.get(&first.pid).map(|frozen| &frozen.proc) else { return Ok(None) };
        let file = proc.open_file(&format!("fd/{}", first.fd.fd), OFlags::RDWR | OFlags::NONBLOCK);
        let file = file.during("open", first.pid, OBJECT)?;
        let attributes = mqueue::attributes(&file).during("read", first.pid, OBJECT)?;
        let notice = mqueue::state(&file).during("read", first.pid, OBJECT)?.notice;
        let bytes = attributes.messages.saturating_mul(attributes.message_size);
        if notice.is_none() && (attributes.messages == 0 || bytes > MOST_BYTES) {
            return Ok(None);
        }
        let mut tried = BTreeSet::new();
        for way in ways.iter().filter(|way| notice.is_none_or(|notice| notice.pid == way.pid)) {
            let Some(frozen) = self.members.get_mut(&way.pid).filter(|_| tried.insert(way.pid)) else {
                continue;
            };
            let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
            let by_socket = notice.is_some_and(|notice| notice.kind == THREAD);
            let socket = if by_socket { netlink::only_one(&frozen.proc).unwrap_or(-1) } else { 0 };
            let (messages, size) = (number(attributes.messages), number(attributes.message_size));
            let asked = Asked { fd: way.fd.fd, messages, size, notice, socket };
            if let Some(learned) = frozen.queue(&asked)? {
                return Ok(Some(record(&asked, first.inode(), learned)));
            }
        }
        let Some(notice) = notice else { return Ok(None) };
        let reason = "the process that is told of the next message (mq_notify) does not have the queue open, or may not open it \
                      to receive and send";
        let error = CaptureError::failed("open", notice.pid, OBJECT, reason);
        Err(error.advise("let the program take that back first (mq_notify with no event)"))
    }
}

fn record(asked: &Asked, (device, inode): (u64, u64), learned: Learned) -> PosixQueue {
    let message = |(priority, content)| posix_queue::Message { priority, content };
    let Learned { messages, kind, value, cookie } = learned;
    let notification = asked.notice.map(|notice| PosixNotification {
        pid: notice.pid,
        fd: asked.fd,
        notify: kind.unsigned_abs(),
        signal: notice.signal,
        value,
        socket: asked.socket,
        cookie,
    });
    PosixQueue {
        identity: Some(FileIdentity { device, inode, ..FileIdentity::default() }),
        messages: messages.into_iter().map(message).collect(),
        notification,
        ..PosixQueue::default()
    }
}

/// Whether it can be used as a queue.
fn is_queue(proc: &Proc, fd: &Fd) -> bool {
    let regular = fd.link.stat.file_type() == libc::S_IFREG && fd.link.target.starts_with(b"/");
    let path_only =
        || proc.fdinfo(fd.fd).is_ok_and(|info| OFlags::from_bits_retain(info.flags).contains(OFlags::PATH));
    regular && crate::files::is_message_queue(proc, fd.fd) && !path_only()
}
