//! A process that is a copy of another one, which stands still: it reads that one's descriptors in its own, and its memory through a
//! file that the other opened before the copy was made. So it needs no right to look into another process.
//!
//! # Safety
//! The one unsafe block borrows a descriptor for the moment of its duplication; the kernel checks that it is open.

#![allow(unsafe_code, reason = "a number as a descriptor, see Safety above")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use crate::kcmp::Shared;

/// Whose copy this process is, and what of the other is not the program's.
#[derive(Debug)]
pub struct Twin {
    /// The other process.
    pub of: i32,
    /// Its `/proc/self/mem`, opened by itself.
    pub memory: File,
    /// The memory of a copy of it that does nothing any more, should the other go on before all is read.
    pub snapshot: Option<File>,
    /// More copies of it.
    pub kin: Vec<i32>,
    /// Descriptors of the other that are there for us only.
    pub descriptors: Vec<RawFd>,
    /// Memory of the other that is there for us only, in bytes.
    pub mappings: Vec<Range<u64>>,
}

static TWIN: OnceLock<Twin> = OnceLock::new();

/// Says whose copy this process is, once and for all.
///
/// # Errors
/// The twin again, when that was said before.
pub fn is_copy_of(twin: Twin) -> Result<(), Twin> {
    TWIN.set(twin)
}

fn of(pid: i32) -> Option<&'static Twin> {
    TWIN.get().filter(|twin| twin.of == pid)
}

/// This process and others that are copies of `pid`, if this one is.
#[must_use]
pub fn copies_of(pid: i32) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).ok();
    of(pid).map_or_else(Vec::new, |twin| twin.kin.iter().copied().chain(own).collect())
}

/// Whether private memory of `pid` can be read as it was when this process was made, whatever became of it since.
#[must_use]
pub fn has_snapshot(pid: i32) -> bool {
    of(pid).is_some_and(|twin| twin.snapshot.is_some())
}

/// The private memory of `pid` as it was then.
pub(crate) fn snapshot_of(pid: i32) -> Option<io::Result<File>> {
    of(pid)?.snapshot.as_ref().map(File::try_clone)
}

/// The memory of `pid`, if this process is its copy.
pub(crate) fn memory_of(pid: i32) -> Option<io::Result<File>> {
    of(pid).map(|twin| twin.memory.try_clone())
}

/// The descriptor `fd` of `pid`, if this process is its copy.
pub(crate) fn descriptor_of(pid: i32, fd: RawFd) -> Option<io::Result<OwnedFd>> {
    of(pid)?;
    // SAFETY: borrowed for this call only; where the number is not open the kernel says EBADF.
    let own = unsafe { BorrowedFd::borrow_raw(fd) };
    Some(own.try_clone_to_owned())
}

/// Whether a descriptor of `pid` is there for this process only.
#[must_use]
pub fn hides_descriptor(pid: i32, fd: RawFd) -> bool {
    of(pid).is_some_and(|twin| twin.descriptors.contains(&fd))
}

/// Whether memory of `pid` that begins at `start` is there for this process only.
#[must_use]
pub fn hides_mapping(pid: i32, start: u64) -> bool {
    of(pid).is_some_and(|twin| twin.mappings.iter().any(|range| range.contains(&start)))
}

/// Whether this process is a copy of `pid`.
#[must_use]
pub fn is_of(pid: i32) -> bool {
    of(pid).is_some()
}

static OWN_FOLDERS: OnceLock<Vec<i32>> = OnceLock::new();

/// Notes which threads of the process have a working folder, root and umask of their own.
pub fn note_own_folders(tids: Vec<i32>) {
    // Who asks twice is told the same.
    let _noted = OWN_FOLDERS.set(tids);
}

/// Whether a thread of `pid`, whose copy this process is, shares something with it; `None` if that is not known.
pub(crate) fn shares(what: Shared, pid: i32, tid: i32) -> Option<bool> {
    let twin = of(pid)?;
    match what {
        Shared::Fs => OWN_FOLDERS.get().map(|own| !own.contains(&tid)),
        // A pipe that the process opened when all stood still is there for those only that have the same descriptors.
        Shared::Files => {
            let link = |folder: String, fd: i32| std::fs::read_link(format!("{folder}/fd/{fd}")).ok();
            let mut pipes = twin.descriptors.iter().filter_map(|fd| {
                let of_process = link(format!("/proc/{pid}"), *fd)?;
                of_process.as_os_str().as_encoded_bytes().starts_with(b"pipe:").then_some((*fd, of_process))
            });
            pipes
                .next()
                .map(|(fd, of_process)| link(format!("/proc/{pid}/task/{tid}"), fd) == Some(of_process))
        }
        _ => None,
    }
}
