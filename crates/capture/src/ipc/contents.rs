//! What is in segments that cannot be read through a mapping: they are attached by this command, or a copy of it, for a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;

use rewake_image::records::{Segment, SharedMemory};
use rewake_linux::addr::page_up;
use rewake_linux::proc::Proc;
use rewake_linux::sysv;
use rustix::fs::{MemfdFlags, OFlags};

use super::{Found, Objects, inside};
use crate::error::{CaptureError, During, Result};
use crate::memory::Memory;

/// Nothing to tell.
#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

/// The tree's segments, and copies of those that have to be copied.
#[derive(Debug)]
pub(crate) struct Segments<'a> {
    objects: &'a Objects,
    copies: BTreeMap<i32, File>,
}

impl<'a> Segments<'a> {
    /// Copies what no mapping shows, to this command at least. The target stands still.
    ///
    /// # Errors
    /// When one may not be read, or was not found.
    pub(crate) fn read(root: i32, objects: &'a Objects, memory: &Memory) -> Result<Self> {
        let parts = memory.mapped_parts();
        let mut seen = BTreeSet::new();
        for object in &memory.shared {
            let Some(id) = object.segment else { continue };
            let Some(found) = objects.segments.iter().find(|found| found.id() == id) else {
                let name = format!("System V segment {id}");
                return Err(CaptureError::failed("find", object.pid, name, "the kernel does not list it"));
            };
            let opens = || {
                let proc = Proc::open_living(object.pid);
                proc.and_then(|proc| proc.open_mapped_file(&object.mapping, OFlags::RDONLY)).is_ok()
            };
            let whole = object.mapped_end >= size(found) && !parts.lacks_some(object);
            if whole || opens() {
                seen.insert(id);
            }
        }
        let ids: Vec<i32> = objects.segments.iter().map(Found::id).filter(|id| !seen.contains(id)).collect();
        Ok(Self { objects, copies: copy(root, objects, &ids)? })
    }

    /// The copy of a segment, if there is one, and what it is of.
    pub(crate) fn take(&mut self, id: i32) -> Option<(&'a Found, File)> {
        let file = self.copies.remove(&id)?;
        Some((self.objects.segments.iter().find(|found| found.id() == id)?, file))
    }

    /// Those that nobody took.
    pub(crate) fn rest(&mut self) -> Vec<(&'a Found, File)> {
        let ids: Vec<i32> = self.copies.keys().copied().collect();
        ids.into_iter().filter_map(|id| self.take(id)).collect()
    }

    /// What a segment is.
    pub(crate) fn segment(&self, id: i32) -> Option<Segment> {
        self.objects.segments.iter().find(|found| found.id() == id)?.segment
    }
}

/// Copies the content of these segments to files of ours.
///
/// # Errors
/// When one may not be read.
fn copy(root: i32, objects: &Objects, ids: &[i32]) -> Result<BTreeMap<i32, File>> {
    let wanted = objects.segments.iter().filter(|found| ids.contains(&found.id()));
    let files = wanted.map(|found| Ok((found.id(), file(found)?))).collect::<io::Result<BTreeMap<_, _>>>();
    let files = files.during("create", root, "copy of System V segments")?;
    if !files.is_empty() {
        inside::of(root, objects.own, || fill(&files)).during("read", root, "System V segments")?;
    }
    Ok(files)
}

fn file(found: &Found) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("segment", MemfdFlags::CLOEXEC)?);
    file.set_len(size(found))?;
    Ok(file)
}

fn size(found: &Found) -> u64 {
    page_up(found.segment.as_ref().map_or(0, |segment| segment.size))
}

fn fill(files: &BTreeMap<i32, File>) -> io::Result<Nothing> {
    for segment in sysv::segments()? {
        if let Some(file) = files.get(&segment.object.id) {
            let copied = sysv::copy_segment(&segment, file);
            copied.map_err(|error| super::named("segment", segment.object.id, &error))?;
        }
    }
    Ok(Nothing {})
}

/// The record of a segment whose content was copied.
pub(crate) fn record(id: u32, found: &Found) -> SharedMemory {
    SharedMemory { id, size: size(found), segment: found.segment, ..SharedMemory::default() }
}
