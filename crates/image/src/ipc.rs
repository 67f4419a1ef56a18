//! System V objects of an image, whatever their kind.

use crate::Image;
use crate::describe::IpcDescription;
use crate::records::{IpcObject, MessageQueue, Segment, SemaphoreSet};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ipc<'a> {
    /// Shared memory.
    Segment(&'a Segment),
    /// Semaphores.
    Semaphores(&'a SemaphoreSet),
    /// A message queue.
    Queue(&'a MessageQueue),
}

impl<'a> Ipc<'a> {
    /// What all kinds have.
    #[must_use]
    pub fn object(&self) -> IpcObject {
        let object = match self {
            Self::Segment(segment) => &segment.object,
            Self::Semaphores(set) => &set.object,
            Self::Queue(queue) => &queue.object,
        };
        object.unwrap_or_default()
    }

    /// `segment`, `semaphores` or `queue`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Segment(_) => "segment",
            Self::Semaphores(_) => "semaphores",
            Self::Queue(_) => "queue",
        }
    }

    /// For messages: `System V segment 7 (key 0x5151)`.
    #[must_use]
    pub fn name(&self) -> String {
        let IpcObject { id, key, .. } = self.object();
        format!("System V {} {id} (key {key:#x})", self.kind())
    }

    /// For people and scripts.
    #[must_use]
    pub fn describe(&self) -> IpcDescription {
        let object = self.object();
        let amount = match self {
            Self::Segment(segment) => segment.size,
            Self::Semaphores(set) => u64::try_from(set.values.len()).unwrap_or(u64::MAX),
            Self::Queue(queue) => u64::try_from(queue.messages.len()).unwrap_or(u64::MAX),
        };
        IpcDescription {
            kind: self.kind(),
            id: object.id,
            key: object.key.cast_unsigned(),
            uid: object.uid,
            mode: object.mode,
            amount,
        }
    }
}

/// All of an image.
pub fn objects(image: &Image) -> impl Iterator<Item = Ipc<'_>> {
    let segments = image.shared_memory.iter().filter_map(|memory| memory.segment.as_ref());
    let sets = image.semaphore_sets.iter().map(Ipc::Semaphores);
    segments.map(Ipc::Segment).chain(sets).chain(image.message_queues.iter().map(Ipc::Queue))
}
