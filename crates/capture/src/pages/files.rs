//! Contents of files that are copied while the target runs, so that it does not stand still for them.
//!
//! In a first, short pause each file's size and times of change are noted: no call that writes to it is under way then. A file that has
//! the same when the target stands still for good is as it was copied. One that the target does nothing but add to begins as it did; that is
//! verified when the target runs again. All others are copied again.
//!
//! Writes past calls do not show so: those by shared memory do when a page is written to for the first time only, and those of AIO go on
//! while the target stands still. What it may write to in these ways is not copied ahead.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use rewake_image::pages::BLOCK_SIZE_U64;
use rewake_image::records::{Extent, FileContent};
use rewake_image::{AlignedBuffer, PageWriter};
use rewake_linux::addr::PAGE_SIZE;
use rewake_linux::proc::Proc;
use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};

use super::Plan;
use crate::error::{During, Result};

/// Files with less in them, in bytes, are copied in the pause.
const LARGE: u64 = 1 << 20;
/// So are all if there is less in them together: the first pause would not be worth it.
const WORTH: u64 = 8 << 20;
/// They are open until the target goes on, and again in the pause; more of them are copied there.
const MOST_OPEN: usize = 64;
/// What was changed longer ago than this, in nanoseconds, is not changed all the time. It is also as much as the coarsest of the times that
/// are noted (ext2, ext3: seconds; elsewhere a tick of the kernel's clock): two changes within that may have the same.
const QUIET: i128 = 1_000_000_000;
/// ext2 to ext4, XFS, btrfs, f2fs (`f_type` of statfs(2)): they note by this host's clock every call that writes, and every first write
/// to a page by a mapping. tmpfs does not note the latter; what overlayfs does depends on what is below it, and others ask other hosts.
const TRUSTED: [i64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// By device and inode.
type Key = (u64, u64);

fn key(record: &FileContent) -> Key {
    record.identity.as_ref().map_or((0, 0), |identity| (identity.device, identity.inode))
}

/// What tells that a file is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: i128,
    changed: i128,
}

impl Stamp {
    fn of(file: &File) -> std::io::Result<Self> {
        let data = file.metadata()?;
        Ok(Self {
            size: data.size(),
            modified: nanoseconds(data.mtime(), data.mtime_nsec()),
            changed: nanoseconds(data.ctime(), data.ctime_nsec()),
        })
    }

    fn is_quiet(&self) -> bool {
        // The clock of these times.
        let now = clock_gettime(ClockId::RealtimeCoarse);
        nanoseconds(now.tv_sec, now.tv_nsec) - self.changed > QUIET
    }
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}

/// How the target writes to files.
#[derive(Debug, Default)]
pub(super) struct Writers {
    /// Inodes of those that it may write to by its memory, now or when mprotect(2) lets it: pages that are written to already do not fault
    /// then. Some file systems show another device there.
    in_memory: HashSet<u64>,
    /// It can have writes going on while it stands still.
    asynchronous: bool,
    /// Those that it can write to in their midst.
    in_place: HashSet<Key>,
}

impl Writers {
    /// The target stands still: these are its processes.
    pub(super) fn of(procs: &[Proc]) -> Result<Self> {
        let mut writers = Self::default();
        for proc in procs {
            let maps = proc.maps().during("read maps", proc.id(), "mappings")?;
            writers
                .in_memory
                .extend(maps.iter().filter(|mapping| mapping.shared).map(|mapping| mapping.inode));
            writers.asynchronous |= maps.iter().any(|mapping| mapping.name == b"/[aio]");
            for fd in proc.fds().during("read", proc.id(), "descriptors")? {
                let info = proc.fdinfo(fd.fd).during("read", proc.id(), format!("descriptor {}", fd.fd))?;
                let flags = OFlags::from_bits_retain(info.flags);
                if flags & OFlags::ACCMODE != OFlags::RDONLY && !flags.contains(OFlags::APPEND) {
                    writers.in_place.insert((fd.link.stat.device, fd.link.stat.inode));
                }
            }
        }
        Ok(writers)
    }

    /// Whether it does nothing to this file but add to it, if anything.
    fn only_add(&self, key: Key) -> bool {
        !self.in_place.contains(&key)
    }
}

/// Files that could be copied.
#[derive(Debug)]
pub(crate) struct Candidates(Vec<Candidate>);

#[derive(Debug)]
struct Candidate {
    record: FileContent,
    file: File,
    /// What it is like while nobody writes to it, if it is likely to stay so, at least as far as it goes; and whether it would show if
    /// somebody wrote to it from then on.
    noted: Option<(Stamp, bool)>,
}

impl Candidates {
    /// Of these files, the large ones whose changes show; `None` if they are not worth a pause.
    pub(crate) fn of(files: impl Iterator<Item = (FileContent, File)>) -> Option<Self> {
        let is_trusted =
            |file: &File| rustix::fs::fstatfs(file).is_ok_and(|system| TRUSTED.contains(&system.f_type));
        let suits = |(record, file): &(FileContent, File)| {
            record.huge_page_shift == 0 && on_disk(file) >= LARGE && is_trusted(file)
        };
        let candidate = |(record, file)| Candidate { record, file, noted: None };
        let candidates = Self(files.filter(suits).take(MOST_OPEN).map(candidate).collect());
        (candidates.size() >= WORTH).then_some(candidates)
    }

    /// Bytes that they take at most in the image.
    pub(crate) fn size(&self) -> u64 {
        self.0.iter().map(|candidate| on_disk(&candidate.file)).sum()
    }

    /// Notes what they are like. The target stands still: these are its processes.
    ///
    /// # Errors
    /// When one of those was killed meanwhile.
    pub(crate) fn note(&mut self, procs: &[Proc]) -> Result<()> {
        let writers = Writers::of(procs)?;
        for Candidate { record, file, noted } in &mut self.0 {
            let key = key(record);
            if writers.asynchronous || writers.in_memory.contains(&key.1) {
                continue;
            }
            let stamp = Stamp::of(file).ok().map(|stamp| (stamp, stamp.is_quiet()));
            *noted = stamp.filter(|(_, quiet)| *quiet || writers.only_add(key));
        }
        Ok(())
    }

    /// Copies them. The target runs.
    ///
    /// # Errors
    /// When one cannot be read, or the image not be written.
    pub(crate) fn copy(
        self,
        pid: i32,
        writer: &PageWriter,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<EarlierFiles> {
        let total = self.0.iter().filter_map(|one| one.noted).map(|(stamp, _)| stamp.size).sum();
        let (mut files, mut done) = (EarlierFiles::default(), 0);
        for Candidate { record, file, noted } in self.0 {
            let Some(noted) = noted else { continue };
            let key = key(&record);
            let mut copied = Copied::new(pid, (record, file), noted, files.stream)?;
            let end = copied.plan.total;
            writer.reserve(end).map_err(|error| crate::commit::image_error("write", pid, error))?;
            copied.plan.write(pid, writer, &mut |bytes| progress(done + bytes, total))?;
            done += end - files.stream;
            files.stream = end;
            copied.plan.running = false;
            files.copied.insert(key, copied);
        }
        Ok(files)
    }
}

/// What was copied of files.
#[derive(Debug, Default)]
pub(crate) struct EarlierFiles {
    copied: HashMap<Key, Copied>,
    stream: u64,
    /// Those of which a part is relied on.
    relied: RefCell<Vec<Key>>,
}

#[derive(Debug)]
struct Copied {
    stamp: Stamp,
    /// It would show if somebody had written to it since.
    tells: bool,
    plan: Plan,
}

/// The part of a file that is as it was copied.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unchanged {
    pub(super) pages: Vec<Extent>,
    /// All from here on is to be copied.
    pub(super) rest: u64,
}

impl Copied {
    fn new(
        pid: i32,
        (mut record, file): (FileContent, File),
        (stamp, tells): (Stamp, bool),
        stream: u64,
    ) -> Result<Self> {
        if let Some(identity) = &mut record.identity {
            identity.size = stamp.size;
        }
        let mut plan = Plan { total: stream, begin: stream, running: true, ..Plan::default() };
        plan.add_content(pid, record, file, (true, 0))?;
        // The next one begins with a block of its own.
        plan.total = plan.total.next_multiple_of(BLOCK_SIZE_U64);
        Ok(Self { stamp, tells, plan })
    }

    fn pages(&self) -> &[Extent] {
        self.plan.contents.first().map_or(&[], |record| &record.pages)
    }

    /// Whether reading it again gives what was written. If that fails it does not: it was cut off, or tells why when it is copied again.
    fn is_as_written(&self, pid: i32, writer: &PageWriter) -> Result<bool> {
        let mut buffer =
            AlignedBuffer::new(usize::try_from(BLOCK_SIZE_U64).expect("a block fits into memory"));
        for index in self.plan.begin / BLOCK_SIZE_U64..self.plan.total / BLOCK_SIZE_U64 {
            let block = buffer.as_mut_slice();
            let read = self.plan.read_block(pid, index, block);
            let same = if read.is_ok() { writer.is_block(index, block) } else { Ok(false) };
            if !same.map_err(|error| crate::commit::image_error("read", pid, error))? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl EarlierFiles {
    /// Where the stream goes on.
    pub(crate) const fn stream(&self) -> u64 {
        self.stream
    }

    /// What of a file is as it was copied, if anything. That of one that grew has to be verified, by [`EarlierFiles::is_settled`].
    pub(super) fn unchanged(
        &self,
        record: &FileContent,
        file: &File,
        writers: &Writers,
    ) -> Option<Unchanged> {
        let key = key(record);
        let copied = self.copied.get(&key)?;
        let (now, then) = (Stamp::of(file).ok()?, copied.stamp);
        if writers.asynchronous {
            return None;
        }
        if copied.tells && now == then {
            return Some(Unchanged { pages: copied.pages().to_vec(), rest: now.size });
        }
        // The last page may have been a part of one.
        let whole = then.size & !(PAGE_SIZE - 1);
        if now.size < then.size || whole == 0 || !writers.only_add(key) || writers.in_memory.contains(&key.1)
        {
            return None;
        }
        self.relied.borrow_mut().push(key);
        Some(Unchanged { pages: up_to(copied.pages(), whole), rest: whole })
    }

    /// Verifies what was taken for granted while the target stood still; it runs again. Whether that was right: nobody writes over a file,
    /// without any descriptor for it, and back in such a moment.
    ///
    /// # Errors
    /// When what is read cannot be compressed as it was.
    pub(crate) fn is_settled(&self, pid: i32, writer: &PageWriter) -> Result<bool> {
        for key in self.relied.borrow().iter() {
            if !self.copied[key].is_as_written(pid, writer)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn on_disk(file: &File) -> u64 {
    file.metadata().map_or(0, |data| data.blocks() * 512)
}

fn up_to(pages: &[Extent], end: u64) -> Vec<Extent> {
    let before = pages.iter().filter(|extent| extent.address < end);
    before.map(|extent| Extent { length: extent.length.min(end - extent.address), ..*extent }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_end_where_the_last_whole_page_does() {
        let extent = |address, length, stream_offset| Extent { address, length, stream_offset };
        let pages =
            [extent(0, 0x2000, 0x10000), extent(0x4000, 0x3000, 0x12000), extent(0x9000, 0x1000, 0x15000)];
        assert_eq!(up_to(&pages, 0x5000), [extent(0, 0x2000, 0x10000), extent(0x4000, 0x1000, 0x12000)]);
        assert_eq!(up_to(&pages, 0x2000), [extent(0, 0x2000, 0x10000)]);
        assert_eq!(up_to(&pages, 0xa000), pages);
    }
}
