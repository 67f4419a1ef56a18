//! System V IPC: which objects belong to the tree, and what is in them.
//!
//! The kernel links a process to a segment that it has attached, and to nothing else. So an object is the tree's when one of its processes
//! has it attached, waits for it, or made, used or changed it last, as far as the kernel remembers; in an IPC namespace of its own, when
//! it is there. Nothing of them is changed by looking.

pub(crate) mod contents;
mod inside;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use rewake_image::records::{IpcObject, MessageQueue, Process, Segment, SemaphoreSet, message_queue};
use rewake_linux::arch::x86_64::Registers;
use rewake_linux::proc::{self, MappingKind, Proc};
use rewake_linux::sysv::{self, Kind};

use crate::error::{CaptureError, During, Result};
use crate::findings::Findings;
use crate::kin;
use crate::spaces::Ids;

/// What was found, as it also goes from one process of ours to another.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Objects {
    /// The tree has an IPC namespace of its own.
    #[prost(bool, tag = "1")]
    pub(crate) own: bool,
    #[prost(message, repeated, tag = "2")]
    pub(crate) segments: Vec<Found>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) sets: Vec<SemaphoreSet>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) queues: Vec<MessageQueue>,
    /// Sets of which it is not known that they are the tree's: that its processes have to give back something to them would tell.
    #[prost(message, repeated, tag = "5")]
    pub(crate) others: Vec<SemaphoreSet>,
}

/// A segment, and how many mappings of it there are.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Found {
    #[prost(message, optional, tag = "1")]
    pub(crate) segment: Option<Segment>,
    #[prost(uint64, tag = "2")]
    pub(crate) attached: u64,
}

impl Found {
    /// Its id.
    pub(crate) fn id(&self) -> i32 {
        self.segment.as_ref().and_then(|segment| segment.object).map_or(-1, |object| object.id)
    }
}

/// What ties objects to the tree, but for what the objects tell themselves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ties {
    /// Processes out here, and their ids as they see them.
    members: BTreeMap<i32, i32>,
    /// Objects that their threads wait for, and segments that they have attached.
    objects: BTreeSet<(Kind, i32)>,
}

impl Ties {
    /// Of these processes.
    ///
    /// # Errors
    /// When the kernel does not tell what they have attached.
    pub(crate) fn of<'a>(processes: impl Iterator<Item = (i32, &'a Process)>, ids: &Ids) -> Result<Self> {
        let mut ties = Self::default();
        for (pid, process) in processes.filter(|(_, process)| process.exit_status.is_none()) {
            ties.members.insert(pid, ids.inner(pid));
            ties.objects.extend(process.threads.iter().filter_map(|thread| waits_for(&thread.registers)));
            if process.memory.is_some() {
                let proc = Proc::open_living(pid).during("open", pid, "process")?;
                let maps = proc.maps().during("read maps", pid, "mappings")?;
                let segments = maps.iter().filter_map(segment_of);
                ties.objects.extend(segments.map(|id| (Kind::Segment, id)));
            }
        }
        Ok(ties)
    }

    fn has(&self, kind: Kind, id: i32, pids: &[i32]) -> bool {
        self.objects.contains(&(kind, id)) || pids.iter().any(|pid| self.members.contains_key(pid))
    }
}

/// The id of the segment that a mapping shows.
pub(crate) fn segment_of(mapping: &proc::Mapping) -> Option<i32> {
    match mapping.kind() {
        MappingKind::SystemV(_) => i32::try_from(mapping.inode).ok(),
        _ => None,
    }
}

/// The object that a thread waits for, or was at last, by its registers.
fn waits_for(registers: &[u64]) -> Option<(Kind, i32)> {
    let registers = Registers::from_words(registers.first_chunk().copied()?);
    let id = i32::try_from(registers.rdi()).ok()?;
    match i64::try_from(registers.orig_rax()).ok()? {
        libc::SYS_semop | libc::SYS_semtimedop => Some((Kind::Set, id)),
        libc::SYS_msgsnd | libc::SYS_msgrcv => Some((Kind::Queue, id)),
        _ => None,
    }
}

/// Finds the objects of the tree whose root is `root`.
///
/// # Errors
/// When one of them may not be read, or there is no way into the tree's namespace.
pub(crate) fn survey(root: i32, ties: &Ties) -> Result<Objects> {
    let own = is_own(root)?;
    inside::of(root, own, || look(own, ties)).during("read", root, "System V IPC")
}

/// Whether the tree has another IPC namespace than we.
fn is_own(root: i32) -> Result<bool> {
    let of = |proc: Proc| proc.namespace("ipc");
    let ours = Proc::own().and_then(of).during("readlink", root, "our namespace ipc")?;
    let theirs = Proc::open_living(root).and_then(of).during("readlink", root, "namespace ipc")?;
    Ok(ours != theirs)
}

/// All in our namespace that is tied to the tree, or all.
fn look(all: bool, ties: &Ties) -> io::Result<Objects> {
    let mut objects = Objects { own: all, ..Objects::default() };
    for segment in sysv::segments()? {
        if all || ties.has(Kind::Segment, segment.object.id, &segment.pids) {
            let (attached, segment) = (segment.attached, self::segment(&segment));
            objects.segments.push(Found { segment: Some(segment), attached });
        }
    }
    for found in sysv::sets()? {
        let tied = all || ties.objects.contains(&(Kind::Set, found.object.id));
        match set(&found, &ties.members) {
            Ok(set) if tied || set.pids.iter().any(|pid| *pid != 0) => objects.sets.push(set),
            Ok(set) => objects.others.push(set),
            // What may not be looked at is another's.
            Err(_) if !tied => {}
            Err(error) => return Err(named("semaphores", found.object.id, &error)),
        }
    }
    for found in sysv::queues()? {
        if all || ties.has(Kind::Queue, found.object.id, &found.pids) {
            objects.queues.push(queue(&found).map_err(|error| named("queue", found.object.id, &error))?);
        }
    }
    Ok(objects)
}

fn named(kind: &str, id: i32, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("System V {kind} {id}: {error}"))
}

fn object(object: &sysv::Object) -> IpcObject {
    IpcObject {
        id: object.id,
        key: object.key,
        uid: object.uid,
        gid: object.gid,
        creator_uid: object.creator_uid,
        creator_gid: object.creator_gid,
        mode: object.mode,
        changed_s: object.changed_s,
    }
}

fn segment(segment: &sysv::Segment) -> Segment {
    Segment {
        object: Some(object(&segment.object)),
        size: segment.size,
        removed: segment.removed,
        locked: segment.locked,
    }
}

fn set(set: &sysv::Set, members: &BTreeMap<i32, i32>) -> io::Result<SemaphoreSet> {
    let pids = set.pids()?.into_iter().map(|pid| members.get(&pid).copied().unwrap_or(0)).collect();
    Ok(SemaphoreSet {
        object: Some(object(&set.object)),
        values: set.values()?.into_iter().map(u32::from).collect(),
        pids,
        operated: set.operated,
    })
}

fn queue(queue: &sysv::Queue) -> io::Result<MessageQueue> {
    let messages = queue.copy()?.into_iter();
    let messages = messages.map(|(r#type, content)| message_queue::Message { r#type, content });
    Ok(MessageQueue {
        object: Some(object(&queue.object)),
        max_bytes: queue.max_bytes,
        messages: messages.collect(),
    })
}

/// Namespaces of IPC: ours, or one that nobody but the tree is in.
///
/// # Errors
/// When the root is gone.
pub(crate) fn check_namespace(root: i32, family: &[i32], findings: &mut Findings) -> Result<()> {
    let namespace = |pid: i32| Proc::open_living(pid).and_then(|proc| proc.namespace("ipc"));
    let theirs = namespace(root).during("readlink", root, "namespace ipc")?;
    let mut refuse = |pid: i32, reason: String| {
        findings.turn_to(pid);
        findings.add(
            "namespace ipc",
            reason,
            "run the command inside the same container or namespace as the program",
        );
    };
    for member in family {
        // One that ended, or ends meanwhile, has none.
        if namespace(*member).is_ok_and(|own| own != theirs) {
            refuse(*member, format!("it is not the one of process {root}"));
        }
    }
    if is_own(root)? {
        let others = proc::processes().unwrap_or_default().into_iter();
        let others = others.filter(|pid| kin::is_outsider(family, *pid));
        for other in others.filter(|other| namespace(*other).is_ok_and(|its| its == theirs)) {
            refuse(root, format!("it is not the one of this command, and process {other} is in it too"));
        }
    }
    Ok(())
}

/// Whether somebody else has one of the tree's segments attached. It stands still.
pub(crate) fn check_attached(objects: &Objects, mappings: &BTreeMap<i32, u64>, findings: &mut Findings) {
    for found in &objects.segments {
        let own = mappings.get(&found.id()).copied().unwrap_or(0);
        if found.attached > own {
            let key =
                found.segment.as_ref().and_then(|segment| segment.object).map_or(0, |object| object.key);
            findings.add(
                format!("System V segment {} (key {key:#x})", found.id()),
                "a process outside of the captured tree has it attached too",
                "end the other process first, or capture a process above both",
            );
        }
    }
}

/// Semaphores that others changed while they were looked at.
///
/// # Errors
/// When they did.
pub(crate) fn check_unchanged(root: i32, before: &Objects, ties: &Ties) -> Result<()> {
    let values = |objects: &Objects| -> Vec<(i32, Vec<u32>)> {
        let id = |set: &SemaphoreSet| set.object.map_or(-1, |object| object.id);
        objects.sets.iter().map(|set| (id(set), set.values.clone())).collect()
    };
    if before.sets.is_empty() || values(before) == values(&survey(root, ties)?) {
        return Ok(());
    }
    let text = "another process changed them meanwhile";
    Err(CaptureError::failed("read", root, "System V semaphores", text).advise("try again"))
}
