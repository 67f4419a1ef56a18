//! System V IPC: what segments, semaphores and message queues there are in our IPC namespace, and what is in them.
//!
//! # Safety
//! Every block here is one system call that reads numbers, and writes into a buffer of ours of at least the size the kernel writes: its
//! structures for 64-bit programs, none longer than [`Answer`]; as many values as a set has semaphores; a message no longer than it is
//! told. A segment is attached for reading where the kernel finds room, and read only as long as it stays attached.

#![allow(unsafe_code, reason = "system calls without a safe wrapper, see Safety above")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

const IPC_STAT: i32 = 2;
const IPC_RMID: i32 = 0;
const MSG_INFO: i32 = 12;
const MSG_STAT_ANY: i32 = 13;
const SHM_INFO: i32 = 14;
const SHM_STAT_ANY: i32 = 15;
const SEM_INFO: i32 = 19;
const SEM_STAT_ANY: i32 = 20;
const GETPID: i32 = 11;
const GETALL: i32 = 13;
const SHM_RDONLY: i32 = 0o10_000;
const MSG_COPY: i32 = 0o40_000;
const PAGE: usize = 4096;

/// `shm_perm.mode`: to vanish with the last attachment, locked.
const SHM_DEST: u32 = 0o1000;
const SHM_LOCKED: u32 = 0o2000;
const PERMISSIONS: u32 = 0o777;

/// The longest of the structures (`struct shm_info` and the like are shorter).
type Answer = [u64; 16];

/// What all of them have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// Its id.
    pub id: i32,
    /// 0: private.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Owner.
    pub gid: u32,
    /// Who made it.
    pub creator_uid: u32,
    /// Who made it.
    pub creator_gid: u32,
    /// Permissions.
    pub mode: u32,
    /// When it was changed last, in seconds since 1970.
    pub changed_s: i64,
}

/// Shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// What all have.
    pub object: Object,
    /// Bytes.
    pub size: u64,
    /// Mappings of it.
    pub attached: u64,
    /// Processes that made it and that attached or detached it last.
    pub pids: [i32; 2],
    /// Marked to vanish.
    pub removed: bool,
    /// Locked into memory.
    pub locked: bool,
}

/// Semaphores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// What all have.
    pub object: Object,
    /// So many.
    pub semaphores: usize,
    /// Whether semop(2) was ever called on it.
    pub operated: bool,
}

/// A message queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// What all have.
    pub object: Object,
    /// Messages in it.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// So many are allowed.
    pub max_bytes: u64,
    /// Processes that sent and received last.
    pub pids: [i32; 2],
}

/// A kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Shared memory.
    Segment,
    /// Semaphores.
    Set,
    /// Message queue.
    Queue,
}

fn check(result: libc::c_long) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

fn control(kind: Kind, id: i32, command: i32, answer: &mut Answer) -> io::Result<i32> {
    let answer = answer.as_mut_ptr();
    // SAFETY: the kernel writes one structure of the kind, which fits into an answer.
    check(unsafe {
        match kind {
            Kind::Segment => libc::syscall(libc::SYS_shmctl, id, command, answer),
            Kind::Set => libc::syscall(libc::SYS_semctl, id, 0, command, answer),
            Kind::Queue => libc::syscall(libc::SYS_msgctl, id, command, answer),
        }
    })
}

/// The two halves of a word, the lower first.
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// `struct ipc64_perm` at the beginning, and the time of the last change at its word; the mode with all its bits apart.
fn object(id: i32, answer: &Answer, changed: usize) -> (Object, u32) {
    let ([key, uid], [gid, creator_uid], [creator_gid, mode]) =
        (halves(answer[0]), halves(answer[1]), halves(answer[2]));
    let key = key.cast_signed();
    let changed_s = answer[changed].cast_signed();
    let mode_alone = mode & PERMISSIONS;
    (Object { id, key, uid, gid, creator_uid, creator_gid, mode: mode_alone, changed_s }, mode)
}

fn segment(id: i32, answer: &Answer) -> Segment {
    let (object, mode) = object(id, answer, 9);
    Segment {
        object,
        size: answer[6],
        attached: answer[11],
        pids: halves(answer[10]).map(u32::cast_signed),
        removed: mode & SHM_DEST != 0,
        locked: mode & SHM_LOCKED != 0,
    }
}

fn set(id: i32, answer: &Answer) -> Set {
    let (object, _) = object(id, answer, 8);
    Set { object, operated: answer[6] != 0, semaphores: usize::try_from(answer[10]).unwrap_or(0) }
}

fn queue(id: i32, answer: &Answer) -> Queue {
    let (object, _) = object(id, answer, 8);
    let pids = halves(answer[12]).map(u32::cast_signed);
    Queue { object, bytes: answer[9], messages: answer[10], max_bytes: answer[11], pids }
}

/// All objects of a kind, whoever has them, in order of their ids.
fn all<T>(kind: Kind, info: i32, stat: i32, parse: fn(i32, &Answer) -> T) -> io::Result<Vec<T>> {
    let mut answer = Answer::default();
    let last = match control(kind, 0, info, &mut answer) {
        Ok(last) => last,
        // A kernel without System V IPC.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for place in 0..=last {
        let mut answer = Answer::default();
        match control(kind, place, stat, &mut answer) {
            Ok(id) => found.push((id, parse(id, &answer))),
            // Nothing there, or gone meanwhile.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIDRM)) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_unstable_by_key(|(id, _)| *id);
    Ok(found.into_iter().map(|(_, object)| object).collect())
}

/// All segments.
///
/// # Errors
/// When the kernel does not tell (before Linux 4.17).
pub fn segments() -> io::Result<Vec<Segment>> {
    all(Kind::Segment, SHM_INFO, SHM_STAT_ANY, segment)
}

/// All sets of semaphores.
///
/// # Errors
/// As [`segments`].
pub fn sets() -> io::Result<Vec<Set>> {
    all(Kind::Set, SEM_INFO, SEM_STAT_ANY, set)
}

/// All message queues.
///
/// # Errors
/// As [`segments`].
pub fn queues() -> io::Result<Vec<Queue>> {
    all(Kind::Queue, MSG_INFO, MSG_STAT_ANY, queue)
}

impl Set {
    /// The values.
    ///
    /// # Errors
    /// EACCES without the permission to read it; when it is gone.
    pub fn values(&self) -> io::Result<Vec<u16>> {
        let mut answer = Answer::default();
        control(Kind::Set, self.object.id, IPC_STAT, &mut answer)?;
        // The number never changes in the life of a set, nor is an id given away twice in a short time.
        let count = set(self.object.id, &answer).semaphores;
        let mut values = vec![0u16; count];
        // SAFETY: the kernel writes as many values as the set has semaphores.
        check(unsafe { libc::syscall(libc::SYS_semctl, self.object.id, 0, GETALL, values.as_mut_ptr()) })?;
        Ok(values)
    }

    /// The processes that changed each semaphore last, or 0.
    ///
    /// # Errors
    /// As [`Set::values`].
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        let pid = |semaphore: usize| {
            // SAFETY: numbers only.
            check(unsafe { libc::syscall(libc::SYS_semctl, self.object.id, semaphore, GETPID, 0) })
        };
        (0..self.semaphores).map(pid).collect()
    }
}

impl Queue {
    /// Its messages in order, types and contents; they stay there. Nobody may receive meanwhile.
    ///
    /// # Errors
    /// EACCES without the permission to read it; ENOSYS on a kernel without checkpoint and restore.
    pub fn copy(&self) -> io::Result<Vec<(i64, Vec<u8>)>> {
        let mut messages = Vec::new();
        let longest = usize::try_from(self.bytes).map_err(io::Error::other)?;
        let mut buffer = vec![0u64; 1 + longest.div_ceil(8)];
        for place in 0..self.messages {
            let flags = MSG_COPY | libc::IPC_NOWAIT;
            // SAFETY: the buffer holds the type, which is a word, and as many bytes as all messages have.
            let length = check(unsafe {
                let (id, into) = (self.object.id, buffer.as_mut_ptr());
                libc::syscall(libc::SYS_msgrcv, id, into, longest, place, flags)
            })?;
            let length = usize::try_from(length).map_err(io::Error::other)?;
            let bytes = buffer[1..].iter().flat_map(|word| word.to_le_bytes()).take(length).collect();
            messages.push((buffer[0].cast_signed(), bytes));
        }
        Ok(messages)
    }
}

/// Removes an object; a segment that is attached vanishes with its last attachment.
///
/// # Errors
/// When there is none, or it is another's.
pub fn remove(kind: Kind, id: i32) -> io::Result<()> {
    control(kind, id, IPC_RMID, &mut Answer::default()).map(drop)
}

/// Copies what of a segment is not zero to the same places of a file.
///
/// # Errors
/// Without the permission to read it; when the file cannot be written.
pub fn copy_segment(segment: &Segment, into: &File) -> io::Result<()> {
    let length = usize::try_from(segment.size).map_err(io::Error::other)?;
    // SAFETY: the kernel chooses the place.
    let at = unsafe { libc::shmat(segment.object.id, std::ptr::null(), SHM_RDONLY) };
    if at.addr() == usize::MAX {
        return Err(io::Error::last_os_error());
    }
    let mut page = [0u8; PAGE];
    let copied = (0..length).step_by(PAGE).try_for_each(|offset| {
        let part = PAGE.min(length - offset);
        // SAFETY: within the segment, which stays attached until all is copied; another process may write to it, which makes no
        // difference to a copy of bytes.
        unsafe { std::ptr::copy_nonoverlapping(at.cast::<u8>().add(offset), page.as_mut_ptr(), part) };
        let bytes = &page[..part];
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        into.write_all_at(bytes, u64::try_from(offset).map_err(io::Error::other)?)
    });
    // SAFETY: attached above, and nobody has a reference into it.
    unsafe { libc::shmdt(at) };
    copied
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_semaphores_is_seen_and_removed() {
        // SAFETY: numbers only.
        let id = unsafe { libc::semget(libc::IPC_PRIVATE, 3, 0o640 | libc::IPC_CREAT) };
        assert!(id >= 0);
        // SAFETY: numbers only.
        assert_eq!(unsafe { libc::syscall(libc::SYS_semctl, id, 1, 16, 77) }, 0);
        let set = *sets().unwrap().iter().find(|set| set.object.id == id).expect("it is listed");
        assert_eq!((set.semaphores, set.operated, set.object.mode, set.object.key), (3, false, 0o640, 0));
        assert!(set.object.changed_s > 1_600_000_000, "{set:?}");
        assert_eq!(set.values().unwrap(), [0, 77, 0]);
        assert_eq!(set.pids().unwrap()[1].unsigned_abs(), std::process::id());
        remove(Kind::Set, id).unwrap();
        assert!(sets().unwrap().iter().all(|set| set.object.id != id));
    }

    #[test]
    fn messages_are_copied_and_stay() {
        // SAFETY: numbers only.
        let id = unsafe { libc::msgget(libc::IPC_PRIVATE, 0o600 | libc::IPC_CREAT) };
        for text in [b"first###", b"second##"] {
            let message = [5, u64::from_le_bytes(*text)];
            // SAFETY: a type and eight bytes.
            assert_eq!(unsafe { libc::msgsnd(id, message.as_ptr().cast(), 8, 0) }, 0);
        }
        for _ in 0..2 {
            let queue = *queues().unwrap().iter().find(|queue| queue.object.id == id).expect("it is listed");
            assert_eq!((queue.messages, queue.bytes, queue.pids[1]), (2, 16, 0));
            assert_eq!(queue.copy().unwrap(), [(5, b"first###".to_vec()), (5, b"second##".to_vec())]);
        }
        remove(Kind::Queue, id).unwrap();
    }

    #[test]
    fn a_segment_is_copied_without_its_zeros() {
        // SAFETY: numbers only; the segment is attached until the end, and nobody else has it.
        let id = unsafe { libc::shmget(libc::IPC_PRIVATE, 3 * PAGE, 0o600 | libc::IPC_CREAT) };
        // SAFETY: as above.
        let at = unsafe { libc::shmat(id, std::ptr::null(), 0) }.cast::<u8>();
        // SAFETY: within the segment.
        unsafe { at.add(PAGE + 5).write(9) };
        let segment = *segments().unwrap().iter().find(|segment| segment.object.id == id).expect("listed");
        assert_eq!((segment.size, segment.attached, segment.removed), (3 * PAGE as u64, 1, false));
        assert_eq!(segment.pids.map(i32::unsigned_abs), [std::process::id(); 2]);
        let memory = rustix::fs::memfd_create("copy", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(memory);
        file.set_len(segment.size).unwrap();
        copy_segment(&segment, &file).unwrap();
        let mut bytes = vec![1; 3 * PAGE];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes.iter().position(|byte| *byte != 0), Some(PAGE + 5));
        remove(Kind::Segment, id).unwrap();
        assert!(segments().unwrap().iter().any(|one| one.object.id == id && one.removed));
        // SAFETY: attached above.
        unsafe { libc::shmdt(at.cast()) };
    }
}
