//! System V objects: found or made by the root before anything else, with their ids, owners and contents; segments are filled and
//! attached with the rest of the memory. What processes give back to semaphores each sets for itself, when all are born.

use rewake_image::ipc::{Ipc, objects};
use rewake_image::records::{IpcObject, MessageQueue, SemaphoreSet, SharedMemory};
use rewake_linux::program::{Accept, CallRef, DataRef, Sysno};
use rewake_linux::sysv::Kind;

use super::{Planner, args};
use crate::ipc::{Existing, kind};

const IPC_RMID: i32 = 0;
const IPC_SET: i32 = 1;
const SHM_LOCK: i32 = 11;
const SETVAL: i32 = 16;
const SEM_UNDO: i16 = 0x1000;
const IPC_NOWAIT: i16 = 0o4000;
const MSG_NOERROR: i32 = 0o10_000;
/// Words of the longest structure that IPC_SET reads, and of which of them the limit of a queue is.
const WORDS: usize = 16;
const LIMIT: usize = 11;
/// The most that one part of an operation adds, or takes.
const MOST: i32 = 32_767;

/// An object that the program made; it is removed again when the restore fails.
#[derive(Clone, Copy, Debug)]
pub struct MadeObject {
    /// Of which kind.
    pub kind: Kind,
    /// Returned its id.
    pub made: CallRef,
    /// Returned something but 0 if that one did return.
    pub mark: CallRef,
}

impl Planner<'_> {
    /// Finds or makes all of them.
    pub(super) fn ipc_objects(&mut self) {
        let leader = self.leader;
        if self.site.ipc.own {
            let call = self.program.call(leader, Sysno::unshare, args![libc::CLONE_NEWIPC]);
            call.note("IPC namespace");
        }
        let image = self.image;
        for object in objects(image) {
            let existing = self.site.ipc.existing.get(&(kind(&object), object.object().id)).cloned();
            if existing.is_none() {
                self.make_object(&object, image.shared_memory.iter().find(|memory| is_of(memory, &object)));
            }
            match object {
                Ipc::Segment(_) => self.own(&object, existing.is_some(), None),
                Ipc::Semaphores(set) => {
                    self.own(&object, existing.is_some(), None);
                    self.values(set, existing.as_ref());
                }
                Ipc::Queue(queue) => self.messages(queue, existing.as_ref()),
            }
        }
    }

    /// Makes one that is not there, with its id and by whom it was made.
    fn make_object(&mut self, object: &Ipc<'_>, memory: Option<&SharedMemory>) {
        let IpcObject { id, key, creator_uid, creator_gid, mode, .. } = object.object();
        let path: &[u8] = match object {
            Ipc::Segment(_) => b"/proc/sys/kernel/shm_next_id",
            Ipc::Semaphores(_) => b"/proc/sys/kernel/sem_next_id",
            Ipc::Queue(_) => b"/proc/sys/kernel/msg_next_id",
        };
        let (leader, note) = (self.leader, object.name());
        let (path, text) = (self.program.string(path), id.to_string());
        let flags = libc::O_WRONLY | libc::O_CLOEXEC;
        let call = self.program.call(leader, Sysno::openat, args![libc::AT_FDCWD, path, flags, 0]);
        call.accept(Accept::Exactly(0)).note(format!("id of {note}"));
        let (data, length) = (self.program.string(text.as_bytes()), u64::try_from(text.len()).unwrap_or(0));
        let call = self.program.call(leader, Sysno::write, args![0, data, length]);
        call.accept(Accept::Exactly(length)).note(format!("id of {note}"));
        self.program.call(leader, Sysno::close, args![0]);
        // Only root can be others for a moment.
        let (uid, gid) = (self.site.identity.uids[1], self.site.identity.gids[1]);
        let other = uid == 0 && (uid, gid) != (creator_uid, creator_gid);
        if other {
            self.become_creator(creator_uid, creator_gid);
        }
        let flags = mode.cast_signed() | libc::IPC_CREAT | libc::IPC_EXCL;
        let program = &mut self.program;
        let call = match object {
            Ipc::Segment(segment) => {
                let shift = memory.map_or(0, |memory| memory.huge_page_shift);
                let args = args![key, segment.size, flags | super::memory::huge_segment(shift)];
                program.call(leader, Sysno::shmget, args)
            }
            Ipc::Semaphores(set) => {
                let count = u64::try_from(set.values.len()).unwrap_or(u64::MAX);
                program.call(leader, Sysno::semget, args![key, count, flags])
            }
            Ipc::Queue(_) => program.call(leader, Sysno::msgget, args![key, flags]),
        };
        let made = call.accept(Accept::Exactly(id.unsigned_abs().into())).note(note).done();
        let mark = program.call(leader, Sysno::gettid, args![]).done();
        self.made_objects.push(MadeObject { kind: kind(object), made, mark });
        if other {
            // The group first when leaving, last when coming back: to change it takes the right.
            self.become_creator(uid, gid);
        }
    }

    /// Who makes objects. To change that forgets the wish to die with the parent.
    fn become_creator(&mut self, uid: u32, gid: u32) {
        let (program, leader) = (&mut self.program, self.leader);
        let user = |program: &mut rewake_linux::program::Program| {
            program.call(leader, Sysno::setresuid, args![-1, uid, -1]).note("creator of System V objects");
        };
        if uid == 0 {
            user(program);
        }
        program.call(leader, Sysno::setresgid, args![-1, gid, -1]).note("creator of System V objects");
        if uid != 0 {
            user(program);
        }
        program
            .call(leader, Sysno::prctl, args![libc::PR_SET_PDEATHSIG, libc::SIGKILL])
            .note("die with resume");
    }

    /// Owner, permissions, and the limit of a queue.
    fn own(&mut self, object: &Ipc<'_>, existing: bool, limit: Option<u64>) {
        let IpcObject { id, uid, gid, creator_uid, creator_gid, mode, .. } = object.object();
        if !existing
            && limit.is_none()
            && (uid, gid) == (creator_uid, creator_gid)
            && self.site.identity.uids[1] == 0
        {
            return;
        }
        let mut words = [0u64; WORDS];
        // struct ipc64_perm: key, uid, gid, creator's uid and gid, mode.
        words[0] = u64::from(uid) << 32;
        words[1] = gid.into();
        words[2] = u64::from(mode) << 32;
        words[LIMIT] = limit.unwrap_or(0);
        let (leader, data) = (self.leader, self.program.words(&words));
        let program = &mut self.program;
        let call = match object {
            Ipc::Segment(_) => program.call(leader, Sysno::shmctl, args![id, IPC_SET, data]),
            Ipc::Semaphores(_) => program.call(leader, Sysno::semctl, args![id, 0, IPC_SET, data]),
            Ipc::Queue(_) => program.call(leader, Sysno::msgctl, args![id, IPC_SET, data]),
        };
        call.note(format!("owner of {}", object.name()));
    }

    /// The values of semaphores. One that nobody ever touched is not touched here.
    fn values(&mut self, set: &SemaphoreSet, existing: Option<&Existing>) {
        let id = set.object.map_or(0, |object| object.id);
        for (place, value) in (0u32..).zip(&set.values) {
            let now = existing.and_then(|existing| existing.values.get(usize::try_from(place).ok()?));
            if now.unwrap_or(&0) != value {
                let call = self.program.call(self.leader, Sysno::semctl, args![id, place, SETVAL, *value]);
                call.note(format!("value of System V semaphore {id}.{place}"));
            }
        }
        if set.operated && existing.is_none() {
            // What tells others that it is initialised.
            let place = set.pids.iter().position(|pid| *pid != 0).unwrap_or(0);
            self.touch(set, place);
        }
    }

    /// An operation that changes nothing but by whom and when the last one was.
    fn touch(&mut self, set: &SemaphoreSet, place: usize) {
        let value = set.values.get(place).copied().and_then(|value| i32::try_from(value).ok()).unwrap_or(0);
        let parts = if value == 0 { vec![(0, 0)] } else { vec![(-value, 0), (value, 0)] };
        self.operate(set, place, &parts, "last use");
    }

    /// Parts of an operation on one semaphore, all or none.
    fn operate(&mut self, set: &SemaphoreSet, place: usize, parts: &[(i32, i16)], what: &str) {
        let id = set.object.map_or(0, |object| object.id);
        let mut bytes = Vec::with_capacity(parts.len() * 6);
        for (number, flags) in parts {
            bytes.extend(u16::try_from(place).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend(i16::try_from(*number).unwrap_or(i16::MIN).to_le_bytes());
            bytes.extend((flags | IPC_NOWAIT).to_le_bytes());
        }
        let (count, data) = (u64::try_from(parts.len()).unwrap_or(0), self.program.bytes(&bytes));
        let call = self.program.call(self.leader, Sysno::semop, args![id, data, count]);
        call.note(format!("{what} of System V semaphore {id}.{place}"));
    }

    /// The messages of a queue, in order.
    fn messages(&mut self, queue: &MessageQueue, existing: Option<&Existing>) {
        let object = Ipc::Queue(queue);
        let (leader, id) = (self.leader, object.object().id);
        if let Some(existing) = existing.filter(|existing| existing.messages > 0) {
            let rest = self.program.zeros(8);
            for _ in 0..existing.messages {
                let args = args![id, rest, 0, 0, i32::from(IPC_NOWAIT) | MSG_NOERROR];
                let call = self.program.call(leader, Sysno::msgrcv, args);
                call.accept(Accept::SuccessOr(libc::ENOMSG))
                    .note(format!("what is left in {}", object.name()));
            }
        }
        let length = |content: &[u8]| u64::try_from(content.len()).unwrap_or(u64::MAX);
        let bytes: u64 = queue.messages.iter().map(|message| length(&message.content)).sum();
        self.own(&object, existing.is_some(), Some(queue.max_bytes.max(bytes)));
        for message in &queue.messages {
            let mut data = message.r#type.to_le_bytes().to_vec();
            data.extend(&message.content);
            let data = self.program.bytes(&data);
            let args = args![id, data, length(&message.content), i32::from(IPC_NOWAIT)];
            self.program.call(leader, Sysno::msgsnd, args).note(format!("message in {}", object.name()));
        }
        if bytes > queue.max_bytes {
            self.own(&object, true, Some(queue.max_bytes));
        }
    }

    /// What is said of a segment when it is attached: it does not vanish any more.
    pub(super) fn settle_segment(&mut self, memory: &SharedMemory) {
        let Some(segment) = &memory.segment else { return };
        let (leader, name) = (self.leader, Ipc::Segment(segment).name());
        let id = segment.object.map_or(0, |object| object.id);
        if segment.locked {
            self.program.call(leader, Sysno::shmctl, args![id, SHM_LOCK, 0]).note(format!("{name}, locked"));
        }
        if segment.removed {
            self.program.call(leader, Sysno::shmctl, args![id, IPC_RMID, 0]).note(format!("{name}, removed"));
        }
    }

    /// What the end of this process gives back to semaphores, and those that it used last. All are born.
    pub(super) fn semaphores(&mut self) {
        let (image, process) = (self.image, self.process);
        for undo in &process.semaphore_undo {
            let Some(set) = image.semaphore_sets.iter().find(|set| id_of(set) == undo.set) else { continue };
            for (place, adjustment) in undo.semaphores.iter().zip(&undo.adjustments) {
                self.give_back(set, usize::try_from(*place).unwrap_or(usize::MAX), *adjustment);
            }
        }
        if let Some(word) = self.given_back {
            let living = u32::try_from(self.tree.living()).expect("image counts are checked");
            let call = self.program.barrier(self.leader, word, living);
            call.note("what is given back to semaphores is set");
        }
        for set in &image.semaphore_sets {
            for (place, _) in set.pids.iter().enumerate().filter(|(_, pid)| **pid == process.pid) {
                if set.operated {
                    self.touch(set, place);
                } else {
                    let (id, value) = (id_of(set), set.values.get(place).copied().unwrap_or(0));
                    let place = u64::try_from(place).unwrap_or(u64::MAX);
                    let call = self.program.call(self.leader, Sysno::semctl, args![id, place, SETVAL, value]);
                    call.note(format!("last use of System V semaphore {id}.{place}"));
                }
            }
        }
    }

    /// An operation whose parts add up to nothing, but of some of which the kernel keeps account.
    fn give_back(&mut self, set: &SemaphoreSet, place: usize, adjustment: i32) {
        let value = set.values.get(place).copied().and_then(|value| i32::try_from(value).ok()).unwrap_or(0);
        let mut parts = vec![(-value, 0)];
        let mut rest = adjustment.abs();
        while rest > 0 {
            let part = rest.min(MOST);
            let flags = if adjustment > 0 { (0, SEM_UNDO) } else { (SEM_UNDO, 0) };
            parts.extend([(part, flags.0), (-part, flags.1)]);
            rest -= part;
        }
        parts.push((value, 0));
        parts.retain(|(number, _)| *number != 0);
        self.operate(set, place, &parts, "what is given back");
    }
}

fn id_of(set: &SemaphoreSet) -> i32 {
    set.object.map_or(0, |object| object.id)
}

fn is_of(memory: &SharedMemory, object: &Ipc<'_>) -> bool {
    matches!(object, Ipc::Segment(segment) if memory.segment.as_ref() == Some(segment))
}

/// Where all meet between what they give back and what they used last, if anybody has both.
pub(super) fn given_back(
    program: &mut rewake_linux::program::Program,
    image: &rewake_image::Image,
) -> Option<DataRef> {
    let undo = image.processes.iter().any(|process| !process.semaphore_undo.is_empty());
    let pids = image.semaphore_sets.iter().any(|set| !set.pids.is_empty());
    (undo && pids && image.processes.len() > 1).then(|| program.zeros(4))
}
