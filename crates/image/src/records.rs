//! The messages of `proto/records.proto`, and what is worth asking them.

mod generated {
    #![allow(
        missing_docs,
        clippy::pedantic,
        reason = "made by prost-build; the documentation is in records.proto"
    )]
    include!(concat!(env!("OUT_DIR"), "/rewake.image.v1.rs"));
}

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use generated::*;
pub use prost::Message;

/// `Limit.soft` and `Limit.hard` of a resource without limit.
pub const UNLIMITED: u64 = u64::MAX;

/// What a frame of the file `records` holds. [`RecordKind::number`] belongs to the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// [`Manifest`], exactly one.
    Manifest,
    /// [`Process`], exactly one.
    Process,
    /// [`MappedFile`]; `Vma.object` counts them in their order.
    MappedFile,
    /// [`SharedMemory`].
    SharedMemory,
    /// [`OpenFile`].
    OpenFile,
    /// [`Pipe`].
    Pipe,
    /// [`PageStream`], exactly one.
    PageStream,
    /// [`FileContent`].
    FileContent,
    /// [`SeccompFilter`].
    SeccompFilter,
    /// [`RemovedFile`].
    RemovedFile,
    /// [`SemaphoreSet`].
    SemaphoreSet,
    /// [`MessageQueue`].
    MessageQueue,
    /// [`PosixQueue`].
    PosixQueue,
    /// [`UnixSocket`].
    UnixSocket,
    /// [`UnixName`].
    UnixName,
}

impl RecordKind {
    /// Every kind this version knows.
    pub const ALL: [Self; 15] = [
        Self::Manifest,
        Self::Process,
        Self::MappedFile,
        Self::SharedMemory,
        Self::OpenFile,
        Self::Pipe,
        Self::PageStream,
        Self::FileContent,
        Self::SeccompFilter,
        Self::RemovedFile,
        Self::SemaphoreSet,
        Self::MessageQueue,
        Self::PosixQueue,
        Self::UnixSocket,
        Self::UnixName,
    ];

    /// The kind with that number, if this version knows it.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// The number that stands in a frame.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Manifest => 1,
            Self::Process => 2,
            Self::MappedFile => 3,
            Self::SharedMemory => 4,
            Self::OpenFile => 5,
            Self::Pipe => 6,
            Self::PageStream => 7,
            Self::FileContent => 8,
            Self::SeccompFilter => 9,
            Self::RemovedFile => 10,
            Self::SemaphoreSet => 20,
            Self::MessageQueue => 21,
            Self::PosixQueue => 22,
            Self::UnixSocket => 30,
            Self::UnixName => 31,
        }
    }

    /// The name of the message, as in `records.proto`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manifest => "Manifest",
            Self::Process => "Process",
            Self::MappedFile => "MappedFile",
            Self::SharedMemory => "SharedMemory",
            Self::OpenFile => "OpenFile",
            Self::Pipe => "Pipe",
            Self::PageStream => "PageStream",
            Self::FileContent => "FileContent",
            Self::SeccompFilter => "SeccompFilter",
            Self::RemovedFile => "RemovedFile",
            Self::SemaphoreSet => "SemaphoreSet",
            Self::MessageQueue => "MessageQueue",
            Self::PosixQueue => "PosixQueue",
            Self::UnixSocket => "UnixSocket",
            Self::UnixName => "UnixName",
        }
    }
}

/// A path as it stands in a record.
#[must_use]
pub fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

impl Process {
    /// Whose address space, descriptors, folders and dispositions it has; itself those of its own.
    #[must_use]
    pub fn common(&self) -> [i32; 4] {
        [self.memory_of, self.descriptors_of, self.folders_of, self.actions_of]
            .map(|owner| owner.unwrap_or(self.pid))
    }
}

impl Vma {
    /// Bytes the mapping covers; 0 for a nonsensical one.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether pages of this mapping may be in the image on their own: private memory, not the kernel's own mappings.
    /// Shared memory has its content in [`SharedMemory`], a shared file in the file.
    #[must_use]
    pub fn may_own_pages(&self) -> bool {
        use vma::Backing::{Anonymous, File, SharedMemory};
        !self.shared && matches!(vma::Backing::try_from(self.backing), Ok(Anonymous | File | SharedMemory))
    }
}

impl Extent {
    /// The address behind the last byte; `None` when it leaves 64 bits.
    #[must_use]
    pub const fn end(&self) -> Option<u64> {
        self.address.checked_add(self.length)
    }

    /// The offset in the page stream behind the last byte; `None` when it leaves 64 bits.
    #[must_use]
    pub const fn stream_end(&self) -> Option<u64> {
        self.stream_offset.checked_add(self.length)
    }
}

impl PendingSignal {
    /// `si_signo`; `None` when the record is too short to have one.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.siginfo.first_chunk::<4>().map(|bytes| i32::from_le_bytes(*bytes))
    }
}

impl FileIdentity {
    /// Where the file was.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        path_of(&self.path)
    }
}

impl RemovedFile {
    /// Whether it is a folder; else it is a fifo.
    #[must_use]
    pub fn is_folder(&self) -> bool {
        /// `S_IFMT` and `S_IFDIR`.
        const KIND: (u32, u32) = (0o170_000, 0o040_000);
        self.identity.as_ref().is_some_and(|identity| identity.mode & KIND.0 == KIND.1)
    }

    /// Its last name, without the folder that it was in.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        let path = self.identity.as_ref().map_or(&[][..], |identity| &identity.path);
        path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }
}

impl UnixName {
    /// Whether it is no path.
    #[must_use]
    pub fn is_abstract(&self) -> bool {
        self.text.first() == Some(&0)
    }

    /// For people: an abstract name begins with `@`.
    #[must_use]
    pub fn shown(&self) -> String {
        match self.text.split_first() {
            Some((0, rest)) => format!("@{}", String::from_utf8_lossy(rest)),
            _ => String::from_utf8_lossy(&self.text).into_owned(),
        }
    }
}

impl OpenFile {
    /// The identity of the file or directory behind it; `None` for devices, pipes and outside streams.
    #[must_use]
    pub const fn identity(&self) -> Option<&FileIdentity> {
        match &self.kind {
            Some(open_file::Kind::Regular(RegularFile { identity, .. }))
            | Some(open_file::Kind::Directory(Directory { identity, .. })) => identity.as_ref(),
            _ => None,
        }
    }
}
