//! System V IPC: where the program gets its objects from.
//!
//! A killed program leaves its segments, semaphores and queues behind, as the kernel does: on the same host they are found again, and get
//! back what the image says. What is not there any more is made anew, with the same id, which takes a right. An id or a key that is
//! somebody else's is an error; in an IPC namespace of its own all are free.

use std::collections::{BTreeMap, HashSet};
use std::fs::OpenOptions;
use std::io;

use rewake_image::Image;
use rewake_image::ipc::{Ipc, objects};
use rewake_image::records::{IpcObject, PosixQueue};
use rewake_linux::mqueue;
use rewake_linux::proc::holders;
use rewake_linux::sysv::{self, Kind, Object};

use crate::error::RestoreError;
use crate::{IpcPolicy, Options};

/// Why the program gets an IPC namespace of its own, for people.
const NOTE: &str = "this user may not choose the ids of System V objects: the program gets the same ids in an IPC namespace of its own";
/// What tells whether we may.
const NEXT_ID: &str = "/proc/sys/kernel/shm_next_id";

/// An object of the program's that is still there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Existing {
    /// Of a queue: messages that are in it now.
    pub messages: u64,
    /// Of a set: the values that its semaphores have now.
    pub values: Vec<u32>,
}

/// Where the objects come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The program gets a namespace of its own.
    pub own: bool,
    /// Those that are there already.
    pub existing: BTreeMap<(Kind, i32), Existing>,
    /// POSIX queues that are there already, by id in the image: how many messages are in them now.
    pub queues: BTreeMap<u32, u64>,
    /// What to tell people.
    pub note: Option<&'static str>,
}

/// What is there now, and what it has in common with one of the image.
#[derive(Clone, Debug)]
struct Here {
    kind: Kind,
    object: Object,
    /// Bytes of a segment, number of semaphores.
    size: u64,
    attached: u64,
    removed: bool,
    found: Existing,
}

/// The kind of an object.
#[must_use]
pub const fn kind(object: &Ipc<'_>) -> Kind {
    match object {
        Ipc::Segment(_) => Kind::Segment,
        Ipc::Semaphores(_) => Kind::Set,
        Ipc::Queue(_) => Kind::Queue,
    }
}

/// Decides; nothing is made or changed.
///
/// # Errors
/// When an id or key is taken, or may not be chosen.
pub fn origin(options: &Options, image: &Image, same_boot: bool) -> Result<Origin, RestoreError> {
    let own = Origin { own: true, ..Origin::default() };
    if options.ipc == IpcPolicy::Namespace || image.manifest.own_ipc {
        return Ok(own);
    }
    if objects(image).next().is_none() && image.posix_queues.is_empty() {
        return Ok(Origin::default());
    }
    let pid = image.root().pid;
    let here = all_here().map_err(|source| RestoreError::System {
        operation: "survey",
        pid,
        object: "System V IPC".into(),
        source,
    })?;
    let mut origin = Origin::default();
    for queue in image.posix_queues.iter().filter(|queue| !queue.removed) {
        match find_queue(queue, same_boot) {
            Ok(Some(messages)) => drop(origin.queues.insert(queue.id, messages)),
            Ok(None) => {}
            Err(reason) => {
                let object = format!("POSIX message queue {}", String::from_utf8_lossy(name_of(queue)));
                return Err(RestoreError::IpcTaken { pid, object, reason });
            }
        }
    }
    let mut missing = None;
    for wanted in objects(image) {
        match find(&wanted, &here, same_boot) {
            Ok(Some(existing)) => {
                origin.existing.insert((kind(&wanted), wanted.object().id), existing);
            }
            Ok(None) => missing = Some(wanted.name()),
            Err(reason) => return Err(RestoreError::IpcTaken { pid, object: wanted.name(), reason }),
        }
    }
    match missing {
        Some(object) if !may_choose_ids() => match options.ipc {
            IpcPolicy::Auto => Ok(Origin { note: Some(NOTE), ..own }),
            _ => Err(RestoreError::IpcForbidden { pid, object }),
        },
        _ => Ok(origin),
    }
}

/// Whether this process may choose the ids of objects.
fn may_choose_ids() -> bool {
    OpenOptions::new().write(true).open(NEXT_ID).is_ok()
}

/// One of the image as it is there, if it is; what is in its place, if that is another.
fn find(wanted: &Ipc<'_>, here: &[Here], same_boot: bool) -> Result<Option<Existing>, String> {
    let object = wanted.object();
    let mut same_kind = here.iter().filter(|here| here.kind == kind(wanted));
    let with_id = same_kind.clone().find(|here| here.object.id == object.id);
    let Some(with_id) = with_id else {
        let same_key = same_kind.find(|here| object.key != 0 && here.object.key == object.key);
        return match same_key {
            Some(here) => Err(format!("its key belongs to one with id {}", described(&here.object))),
            None => Ok(None),
        };
    };
    let theirs = described(&with_id.object);
    if !is_same(&object, &with_id.object, same_boot) || size(wanted) != with_id.size {
        return Err(format!("its id belongs to another one: {theirs}"));
    }
    match (with_id.attached, with_id.removed) {
        (0, false) => Ok(Some(with_id.found.clone())),
        (attached, _) => {
            Err(format!("it is still there, and other processes use it ({attached} attachments): {theirs}"))
        }
    }
}

/// How many messages are in a POSIX queue that is there still; why it is not the image's, if it is another.
fn find_queue(wanted: &PosixQueue, same_boot: bool) -> Result<Option<u64>, String> {
    let file = match mqueue::open(name_of(wanted)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("its name belongs to another one: {error}")),
    };
    let (Ok(here), Ok(stat)) = (mqueue::attributes(&file), rustix::fs::fstat(&file)) else {
        return Err("its name belongs to another one, which tells nothing".to_owned());
    };
    let then = wanted.identity.as_ref();
    let same_file = then.is_some_and(|then| (then.device, then.inode) == (stat.st_dev, stat.st_ino));
    let same_limits = (here.max_messages, here.message_size)
        == (u64::from(wanted.max_messages), u64::from(wanted.message_size));
    if !same_boot || !same_file || !same_limits {
        return Err(format!("its name belongs to another one (of {} messages at most)", here.max_messages));
    }
    // Their messages would be taken for what was left behind.
    let inode = (stat.st_dev, stat.st_ino);
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    match holders(&HashSet::from([inode]), |pid| pid == own).get(&inode) {
        Some(holder) => Err(format!("it is still there, and process {holder} uses it")),
        None => Ok(Some(here.messages)),
    }
}

/// With a slash before it.
#[must_use]
pub fn name_of(queue: &PosixQueue) -> &[u8] {
    queue.identity.as_ref().map_or(&[], |identity| &identity.path)
}

fn size(wanted: &Ipc<'_>) -> u64 {
    match wanted {
        Ipc::Segment(segment) => segment.size,
        Ipc::Semaphores(set) => u64::try_from(set.values.len()).unwrap_or(u64::MAX),
        Ipc::Queue(_) => 0,
    }
}

/// Ids are given away again only after many others, and objects never get older.
fn is_same(wanted: &IpcObject, here: &Object, same_boot: bool) -> bool {
    same_boot
        && wanted.key == here.key
        && (wanted.creator_uid, wanted.creator_gid) == (here.creator_uid, here.creator_gid)
        && here.changed_s >= wanted.changed_s
}

fn described(object: &Object) -> String {
    format!("{} (key {:#x}, owner {}, permissions {:o})", object.id, object.key, object.uid, object.mode)
}

fn all_here() -> io::Result<Vec<Here>> {
    let of = |kind, object| Here {
        kind,
        object,
        size: 0,
        attached: 0,
        removed: false,
        found: Existing::default(),
    };
    let segments = sysv::segments()?.into_iter().map(|segment| Here {
        size: segment.size,
        attached: segment.attached,
        removed: segment.removed,
        ..of(Kind::Segment, segment.object)
    });
    let sets = sysv::sets()?.into_iter().map(|set| {
        // What cannot be read is another's, or will fail by name.
        let values = set.values().unwrap_or_default().into_iter().map(u32::from).collect();
        let found = Existing { values, ..Existing::default() };
        let size = u64::try_from(set.semaphores).unwrap_or(u64::MAX);
        Here { size, found, ..of(Kind::Set, set.object) }
    });
    let queues = sysv::queues()?.into_iter().map(|queue| {
        let found = Existing { messages: queue.messages, ..Existing::default() };
        Here { found, ..of(Kind::Queue, queue.object) }
    });
    Ok(segments.chain(sets).chain(queues).collect())
}

#[cfg(test)]
mod tests {
    use rewake_image::sample;

    use super::*;

    /// The queue of the sample (id 1, private) as it was left behind.
    fn left(id: i32, key: i32) -> Here {
        let object = Object {
            id,
            key,
            creator_uid: 1000,
            creator_gid: 1000,
            changed_s: 1_700_000_000,
            ..Object::default()
        };
        let found = Existing { messages: 5, ..Existing::default() };
        Here { kind: Kind::Queue, object, size: 0, attached: 0, removed: false, found }
    }

    #[test]
    fn what_was_left_behind_is_found_and_others_are_not_taken_for_it() {
        let image = sample::everything();
        let wanted = Ipc::Queue(&image.message_queues[0]);
        let with = |change: &dyn Fn(&mut Here)| {
            let mut here = left(1, 0);
            change(&mut here);
            find(&wanted, &[here], true)
        };
        assert_eq!(with(&|_| ()).unwrap().unwrap().messages, 5);
        assert_eq!(with(&|here| here.object.changed_s += 9).unwrap().unwrap().messages, 5);
        assert_eq!(with(&|here| here.object.id = 2), Ok(None));
        assert_eq!(with(&|here| here.kind = Kind::Set), Ok(None));
        let another = "belongs to another";
        assert!(with(&|here| here.object.key = 7).unwrap_err().contains(another));
        assert!(with(&|here| here.object.creator_uid = 7).unwrap_err().contains(another));
        assert!(with(&|here| here.object.changed_s -= 1).unwrap_err().contains(another));
        assert!(with(&|here| here.size = 1).unwrap_err().contains(another));
        assert!(with(&|here| here.attached = 1).unwrap_err().contains("other processes use it"));
        assert!(find(&wanted, &[left(1, 0)], false).unwrap_err().contains(another));
        // A key is somebody's.
        let wanted = Ipc::Semaphores(&image.semaphore_sets[0]);
        let here = Here { kind: Kind::Set, ..left(12, -5) };
        assert!(find(&wanted, &[here], true).unwrap_err().contains("its key belongs to one with id 12"));
    }
}
