//! POSIX message queues: found or made by the root, filled, and opened as files that `resume` prepared are. One without a name is made with
//! one that nobody has, which is taken away at once.

use rewake_image::records::PosixQueue;
use rewake_linux::program::{Accept, CallRef, Sysno};

use super::super::{Planner, args};
use crate::contents::PERMISSIONS;
use crate::ipc::name_of;

/// Until all have been opened.
const MODE: u32 = 0o600;
const SIGEV_THREAD: u32 = 2;
const FLAGS: i32 = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;

/// A queue that the program made; its name is taken away again when the restore fails.
#[derive(Clone, Debug)]
pub struct MadeQueue {
    /// Its name.
    pub name: Vec<u8>,
    /// Returned something but 0 if it was made.
    pub mark: CallRef,
}

impl Planner<'_> {
    /// Finds or makes all of them.
    pub(super) fn posix_queues(&mut self) {
        let image = self.image;
        for (place, queue) in image.posix_queues.iter().enumerate() {
            self.posix_queue(queue, self.queue_number(place));
        }
    }

    fn posix_queue(&mut self, queue: &PosixQueue, number: i32) {
        let (leader, own) = (self.leader, name_of(queue));
        let note = format!("message queue {}", String::from_utf8_lossy(own));
        let existing = self.site.ipc.queues.get(&queue.id).copied();
        let name = if queue.removed {
            format!("/rewake-{}-{}", self.image.root().pid, queue.id).into_bytes()
        } else {
            own.to_vec()
        };
        let program = &mut self.program;
        let text = program.string(name.strip_prefix(b"/").unwrap_or(&name));
        if existing.is_some() {
            let call = program.call(leader, Sysno::mq_open, args![text, FLAGS, 0, 0]);
            call.accept(Accept::Exactly(0)).note(note.clone());
        } else {
            if queue.removed {
                // Of a restore that was killed.
                program.call(leader, Sysno::mq_unlink, args![text]).accept(Accept::Any).note(note.clone());
            }
            // struct mq_attr: flags, most messages, message size, messages, four more.
            let limits = [0, queue.max_messages.into(), queue.message_size.into(), 0, 0, 0, 0, 0];
            let limits = program.words(&limits);
            let flags = FLAGS | libc::O_CREAT | libc::O_EXCL;
            let call = program.call(leader, Sysno::mq_open, args![text, flags, MODE, limits]);
            call.accept(Accept::Exactly(0)).note(note.clone());
            let mark = program.call(leader, Sysno::gettid, args![]).done();
            self.made_queues.push(MadeQueue { name: name.clone(), mark });
        }
        let program = &mut self.program;
        if queue.removed {
            program.call(leader, Sysno::mq_unlink, args![text]).note(note.clone());
        }
        if let Some(left) = existing.filter(|left| *left > 0) {
            let rest = program.zeros(usize::try_from(queue.message_size).unwrap_or_default());
            for _ in 0..left.min(queue.max_messages.into()) {
                let args = args![0, rest, queue.message_size, 0, 0];
                let call = program.call(leader, Sysno::mq_timedreceive, args);
                call.accept(Accept::SuccessOr(libc::EAGAIN)).note(format!("what is left in {note}"));
            }
        }
        for message in &queue.messages {
            let length = u64::try_from(message.content.len()).unwrap_or(u64::MAX);
            let content = program.bytes(&message.content);
            let args = args![0, content, length, message.priority, 0];
            program.call(leader, Sysno::mq_timedsend, args).note(format!("message in {note}"));
        }
        self.move_up(0, number);
    }

    /// The descriptor that keeps one until the helpers are closed.
    fn queue_number(&self, place: usize) -> i32 {
        let (image, removed) = (self.image, &self.site.removed);
        let sockets = image.unix_sockets.len() + 2 * image.unix_names.len();
        let before = 2 * image.removed_files.len() + removed.folders.len() + removed.around(image) + sockets;
        self.spare(image.open_files.len() + before + place)
    }

    /// An open description of one.
    pub(super) fn open_queue(&mut self, spare: i32, flags: u32, id: u32) {
        let image = self.image;
        if let Ok(place) = image.posix_queues.binary_search_by_key(&id, |queue| queue.id) {
            let number = self.queue_number(place);
            self.open_prepared(spare, number, flags, name_of(&image.posix_queues[place]));
        }
    }

    /// What this process asked to be told of, when it closes nothing any more: that would take it back.
    pub(in crate::plan) fn ask_for_news(&mut self) {
        let (image, pid) = (self.image, self.process.pid);
        for queue in &image.posix_queues {
            let Some(one) = queue.notification.as_ref().filter(|one| one.pid == pid) else { continue };
            let by_socket = one.notify == SIGEV_THREAD;
            let by = if by_socket { one.socket } else { one.signal };
            // struct sigevent: value, signal or socket, kind; 64 bytes.
            let words =
                [one.value, u64::from(by.unsigned_abs()) | u64::from(one.notify) << 32, 0, 0, 0, 0, 0, 0];
            let event = self.program.words(&words);
            if by_socket {
                let cookie = self.program.bytes(&one.cookie);
                self.program.point(event, 0, cookie);
            }
            let note = format!("news of message queue {}", String::from_utf8_lossy(name_of(queue)));
            self.program.call(self.leader, Sysno::mq_notify, args![one.fd, event]).note(note);
        }
    }

    /// Owners and permissions, when nothing has to be opened any more. Whoever may not give things away keeps them.
    pub(super) fn finish_queues(&mut self) {
        let image = self.image;
        for (place, queue) in image.posix_queues.iter().enumerate() {
            let number = self.queue_number(place);
            let mode = queue.identity.as_ref().map_or(MODE, |identity| identity.mode) & PERMISSIONS;
            let program = &mut self.program;
            let call = program.call(self.leader, Sysno::fchown, args![number, queue.uid, queue.gid]);
            call.accept(Accept::Any).note("owner of a message queue");
            let call = program.call(self.leader, Sysno::fchmod, args![number, mode]);
            call.note("permissions of a message queue");
        }
    }
}
