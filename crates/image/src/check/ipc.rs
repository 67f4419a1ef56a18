//! Whether System V objects make sense: segments, semaphores, queues, and what the ends of processes give back.

use std::collections::{BTreeMap, BTreeSet};

use super::{ascending, ensure, invalid};
use crate::records::open_file::Kind;
use crate::records::{
    IpcObject, MessageQueue, OpenFile, PosixQueue, Process, SemaphoreSet, SemaphoreUndo, SharedMemory, Vma,
};
use crate::{Image, ImageError};

/// Most objects of a kind, and semaphores of a set: what kernels can be told to allow.
const MAX_OBJECTS: usize = 1 << 24;
const MAX_SEMAPHORES: usize = 65_536;
/// SEMVMX, and the least and the most that the end of a process adds.
const MAX_VALUE: u32 = 32_767;
const ADJUSTMENTS: std::ops::RangeInclusive<i32> = -32_768..=32_767;
/// Permissions; objects have no others.
const PERMISSIONS: u32 = 0o777;
/// The kernel's own limits of POSIX queues: HARD_MSGMAX, HARD_MSGSIZEMAX, MQ_PRIO_MAX.
const MAX_MESSAGES: u32 = 65_536;
const MAX_MESSAGE_SIZE: u32 = 16 << 20;
const PRIORITIES: u32 = 32_768;
const MAX_NAME: usize = 255;
/// The highest signal; `SIGEV_*`; `NOTIFY_COOKIE_LEN`.
const LAST_SIGNAL: i32 = 64;
const SIGEV_SIGNAL: u32 = 0;
const SIGEV_NONE: u32 = 1;
const SIGEV_THREAD: u32 = 2;
const COOKIE: usize = 32;
/// What a private object's key is.
const PRIVATE: i32 = 0;

pub(super) fn check(image: &Image) -> Result<(), ImageError> {
    segments(&image.shared_memory)?;
    image.memories().try_for_each(|memory| read_only(&memory.vmas, &image.shared_memory))?;
    let members: BTreeSet<i32> = image.processes.iter().map(|process| process.pid).collect();
    let sets = image.semaphore_sets.iter();
    unique(sets.clone().map(|set| set.object.as_ref()), "SemaphoreSet")?;
    sets.clone().try_for_each(|one| set(one, &members))?;
    unique(image.message_queues.iter().map(|queue| queue.object.as_ref()), "MessageQueue")?;
    image.message_queues.iter().try_for_each(queue)?;
    ascending(image.posix_queues.iter().map(|queue| queue.id), "PosixQueue", "id")?;
    image.posix_queues.iter().try_for_each(posix_queue)?;
    let owners: BTreeMap<i32, &Process> = image
        .processes
        .iter()
        .filter(|process| process.exit_status.is_none() && process.descriptors_of.is_none())
        .map(|process| (process.pid, process))
        .collect();
    image.posix_queues.iter().try_for_each(|queue| notification(&image.open_files, &owners, queue))?;
    let sizes: BTreeMap<i32, usize> =
        sets.filter_map(|set| Some((set.object.as_ref()?.id, set.values.len()))).collect();
    for process in &image.processes {
        ascending(process.semaphore_undo.iter().map(|undo| undo.set), "Process", "undo of semaphores")?;
        process.semaphore_undo.iter().try_for_each(|one| undo(one, &sizes))?;
    }
    Ok(())
}

/// Ids go up, and no two objects have one key.
fn unique<'a>(objects: impl Iterator<Item = Option<&'a IpcObject>>, record: &str) -> Result<(), ImageError> {
    let objects = objects.map(|object| object.ok_or_else(|| invalid(record, "it has no id".to_owned())));
    let objects = objects.collect::<Result<Vec<&IpcObject>, _>>()?;
    ensure!(objects.len() <= MAX_OBJECTS, record, "{} of them", objects.len());
    ascending(objects.iter().map(|object| object.id), record, "id")?;
    let mut keys = BTreeSet::new();
    for object in objects {
        ensure!(object.id >= 0, record, "id {} is impossible", object.id);
        ensure!(object.mode & !PERMISSIONS == 0, record, "permissions {:o} are impossible", object.mode);
        let unique = object.key == PRIVATE || keys.insert(object.key);
        ensure!(unique, record, "key {:#x} is there twice", object.key);
    }
    Ok(())
}

fn segments(memory: &[SharedMemory]) -> Result<(), ImageError> {
    let with: Vec<_> = memory.iter().filter_map(|one| Some((one, one.segment.as_ref()?))).collect();
    let mut objects: Vec<Option<&IpcObject>> =
        with.iter().map(|(_, segment)| segment.object.as_ref()).collect();
    objects.sort_by_key(|object| object.map(|object| object.id));
    unique(objects.into_iter(), "SharedMemory")?;
    for (memory, segment) in with {
        let record = format!("SharedMemory {}", memory.id);
        ensure!(
            segment.size > 0 && segment.size <= memory.size,
            record,
            "a segment of {} bytes in {}",
            segment.size,
            memory.size
        );
    }
    Ok(())
}

fn read_only(vmas: &[Vma], memory: &[SharedMemory]) -> Result<(), ImageError> {
    for vma in vmas.iter().filter(|vma| vma.attached_read_only) {
        let segment = memory.iter().any(|object| object.id == vma.object && object.segment.is_some());
        let shared = vma.backing() == crate::records::vma::Backing::SharedMemory;
        ensure!(segment && shared, "Process", "mapping {:#x} is attached, but to no segment", vma.start);
        ensure!(vma.protection & 2 == 0, "Process", "mapping {:#x} is attached read-only", vma.start);
    }
    Ok(())
}

fn set(set: &SemaphoreSet, members: &BTreeSet<i32>) -> Result<(), ImageError> {
    let record = &format!("SemaphoreSet {}", set.object.as_ref().map_or(0, |object| object.id));
    let count = set.values.len();
    ensure!((1..=MAX_SEMAPHORES).contains(&count), record, "{count} semaphores");
    if let Some(value) = set.values.iter().find(|value| **value > MAX_VALUE) {
        return Err(invalid(record, format!("value {value} is impossible")));
    }
    let pids = set.pids.len();
    ensure!(pids == 0 || pids == count, record, "{pids} process ids for {count} semaphores");
    if let Some(pid) = set.pids.iter().find(|pid| **pid != 0 && !members.contains(pid)) {
        return Err(invalid(record, format!("process {pid}, which is not there")));
    }
    Ok(())
}

fn undo(undo: &SemaphoreUndo, sizes: &BTreeMap<i32, usize>) -> Result<(), ImageError> {
    let record = "Process, undo of semaphores";
    let Some(size) = sizes.get(&undo.set) else {
        return Err(invalid(record, format!("set {}, which is not there", undo.set)));
    };
    let (count, adjustments) = (undo.semaphores.len(), undo.adjustments.len());
    ensure!(count == adjustments, record, "{adjustments} adjustments of {count} semaphores");
    ascending(&undo.semaphores, record, "semaphore")?;
    let last = undo.semaphores.last().and_then(|last| usize::try_from(*last).ok()).unwrap_or(0);
    ensure!(last < *size, record, "semaphore {last} of {size}");
    let possible = undo.adjustments.iter().all(|adjustment| ADJUSTMENTS.contains(adjustment));
    ensure!(possible, record, "an adjustment that is impossible");
    Ok(())
}

fn queue(queue: &MessageQueue) -> Result<(), ImageError> {
    let record = &format!("MessageQueue {}", queue.object.as_ref().map_or(0, |object| object.id));
    let types = queue.messages.iter().all(|message| message.r#type > 0);
    ensure!(types, record, "a message of an impossible type");
    ensure!(i64::try_from(queue.max_bytes).is_ok(), record, "{} bytes at most", queue.max_bytes);
    Ok(())
}

/// Who is told of the next message has the queue open, and the socket by which it is told.
fn notification(
    files: &[OpenFile],
    owners: &BTreeMap<i32, &Process>,
    queue: &PosixQueue,
) -> Result<(), ImageError> {
    let Some(one) = &queue.notification else { return Ok(()) };
    let record = &format!("PosixQueue {}, notification", queue.id);
    let Some(process) = owners.get(&one.pid) else {
        return Err(invalid(record, format!("process {} has no descriptors of its own", one.pid)));
    };
    let file = |fd: i32| {
        let at = process.descriptors.binary_search_by_key(&fd, |descriptor| descriptor.fd).ok()?;
        let file = process.descriptors[at].file;
        files[files.binary_search_by_key(&file, |file| file.id).ok()?].kind.as_ref()
    };
    let own = matches!(file(one.fd), Some(Kind::PosixQueue(end)) if end.queue == queue.id);
    ensure!(own, record, "descriptor {} of process {} does not lead to the queue", one.fd, one.pid);
    ensure!((0..=LAST_SIGNAL).contains(&one.signal), record, "signal {} is impossible", one.signal);
    match one.notify {
        SIGEV_SIGNAL | SIGEV_NONE => {
            ensure!(one.cookie.is_empty(), record, "what only a socket is told");
        }
        SIGEV_THREAD => {
            let socket = matches!(file(one.socket), Some(Kind::Netlink(_)));
            ensure!(socket, record, "descriptor {} of process {} is no such socket", one.socket, one.pid);
            ensure!(one.cookie.len() == COOKIE, record, "a socket is not told {} bytes", one.cookie.len());
        }
        other => return Err(invalid(record, format!("nobody is told in way {other}"))),
    }
    Ok(())
}

fn posix_queue(queue: &PosixQueue) -> Result<(), ImageError> {
    let record = &format!("PosixQueue {}", queue.id);
    super::files::identity(queue.identity.as_ref(), record)?;
    let path = queue.identity.as_ref().map_or(&[][..], |identity| &identity.path);
    let name = path.strip_prefix(b"/").unwrap_or_default();
    let plain = !name.is_empty() && name.len() <= MAX_NAME && !name.contains(&b'/');
    ensure!(plain && name != b"." && name != b"..", record, "its name is impossible");
    let (most, size) = (queue.max_messages, queue.message_size);
    ensure!((1..=MAX_MESSAGES).contains(&most), record, "{most} messages at most");
    ensure!((1..=MAX_MESSAGE_SIZE).contains(&size), record, "messages of {size} bytes at most");
    let count = u32::try_from(queue.messages.len()).unwrap_or(u32::MAX);
    ensure!(count <= most, record, "{count} messages, at most {most}");
    for message in &queue.messages {
        let length = u32::try_from(message.content.len()).unwrap_or(u32::MAX);
        ensure!(length <= size, record, "a message of {length} bytes, at most {size}");
        ensure!(message.priority < PRIORITIES, record, "priority {} is impossible", message.priority);
    }
    Ok(())
}
