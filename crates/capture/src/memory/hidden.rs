//! Files that have no name any more, are open nowhere and only mapped, for a user who may not open them through the mapping: their
//! content is what the mappings show. What no mapping shows, or private pages hide, nobody but the kernel could give.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rewake_image::records::Vma;
use rewake_image::records::vma::Backing;
use rewake_linux::addr::{PAGE_SIZE, RemoteAddr};
use rewake_linux::memory::ProcessMemory;
use rewake_linux::pagemap::{PageMap, Query, Run};
use rewake_linux::proc::{FileStat, Link, Mapping, MappingKind, VmFlags};

use super::shared::apart;
use super::{MappedPart, Memory, Refusal};
use crate::contents::Source;

const TMPFS: i64 = 0x0102_1994;
/// So many names of a file system in memory are looked at, at most.
const MOST_NAMES: u32 = 10_000;
const AS_ROOT: &str = "run the command as root, or with the capability CAP_CHECKPOINT_RESTORE";
/// All there is to know: readable and writable for its owner.
const MODE: u32 = libc::S_IFREG | 0o600;

/// Such a file. One whose name really ends with ` (deleted)` is found under it.
pub(super) fn link(pid: i32, mapping: &Mapping) -> (Link, Source) {
    let whole = [&mapping.name[..], b" (deleted)"].concat();
    let inode = |stat: &FileStat| (stat.device, stat.inode) == (mapping.device, mapping.inode);
    if let Some(stat) = FileStat::of_path(&whole).ok().filter(inode) {
        let link = Link { target: whole, deleted: false, reachable: true, stat };
        return (link, Source::mapping(pid, mapping.clone()));
    }
    let stat = FileStat {
        device: mapping.device,
        inode: mapping.inode,
        mode: MODE,
        rdev: 0,
        size: 0,
        links: 0,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime_s: 0,
        mtime_ns: 0,
    };
    let mut link = Link { target: mapping.name.clone(), deleted: true, reachable: false, stat };
    // Named semaphores get their names as second ones, in the same folder.
    let mut other = Link { stat: FileStat { links: 1, ..stat }, ..link.clone() };
    other.find_other_name(&[]);
    if let Some(stat) = FileStat::of_path(&other.target).ok().filter(|stat| other.reachable && inode(stat)) {
        link = Link { stat, ..other };
        return (link, Source::mapping(pid, mapping.clone()));
    }
    (link, Source::shown(pid))
}

/// Refuses what would come back as a copy of something that others see.
pub(super) fn check(mapping: &Mapping) -> Result<(), Refusal> {
    if mapping.flags.contains(VmFlags::HUGETLB) {
        return Err(("this user may not open the huge pages behind it".to_owned(), AS_ROOT));
    }
    if mapping.shared && !matches!(mapping.kind(), MappingKind::Memfd(_)) && !has_no_name(mapping) {
        let reason = "the deleted file may live on under another name, which this user is not told";
        return Err((reason.to_owned(), AS_ROOT));
    }
    Ok(())
}

/// Whether a file has no name left in a file system in memory, all of which this user may look through: as the semaphores of POSIX in
/// `/dev/shm`, which many remove as soon as they have them mapped.
fn has_no_name(mapping: &Mapping) -> bool {
    let path = Path::new(OsStr::from_bytes(&mapping.name));
    let same = |path: &Path| std::fs::metadata(path).is_ok_and(|one| one.dev() == mapping.device);
    let Some(top) = path.ancestors().skip(1).take_while(|folder| same(folder)).last() else { return false };
    let in_memory = rustix::fs::statfs(top).is_ok_and(|stat| stat.f_type == TMPFS);
    in_memory && is_nowhere(top, mapping).unwrap_or(false)
}

/// Whether no name below a folder leads to the file; an error where that cannot be told.
fn is_nowhere(top: &Path, mapping: &Mapping) -> io::Result<bool> {
    let (mut folders, mut seen) = (vec![top.to_owned()], 0);
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !could_have_linked(&folder) => {
                continue;
            }
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let stat = entry.metadata()?;
            seen += 1;
            if stat.dev() != mapping.device || seen > MOST_NAMES {
                // What lies below another mount cannot be seen.
                return Err(io::ErrorKind::Unsupported.into());
            }
            if stat.ino() == mapping.inode {
                return Ok(false);
            }
            if stat.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(true)
}

/// Whether this user, whose the file is, may ever have given it a name in a folder; nobody else but root links files of others.
fn could_have_linked(folder: &Path) -> bool {
    use rustix::fs::{Access, access};
    let own = rustix::process::getuid().as_raw();
    access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok()
        || std::fs::symlink_metadata(folder).map_or(true, |stat| stat.uid() == own)
}

impl Memory {
    /// What the mappings of a content show of it, and where it ends, as far as they tell: in whole pages.
    ///
    /// # Errors
    /// When memory or page table of a process cannot be read.
    pub(crate) fn shown(&self, content: u32) -> io::Result<(Vec<MappedPart>, u64)> {
        let (mut parts, mut size) = (Vec::new(), 0);
        for space in &self.spaces {
            let mut vmas = space.vmas.iter().filter(|vma| self.is_of(vma, content)).peekable();
            if vmas.peek().is_none() {
                continue;
            }
            let target = ProcessMemory::open(space.pid).map_err(|error| error.source)?;
            let mut map = PageMap::open(space.pid).map_err(io::Error::other)?;
            for vma in vmas {
                size = size.max(show(space.pid, vma, &target, &mut map, &mut parts)?);
            }
        }
        Ok((apart(parts), size))
    }

    fn is_of(&self, vma: &Vma, content: u32) -> bool {
        let file = usize::try_from(vma.object).ok().and_then(|object| self.files.get(object));
        vma.backing() == Backing::File && file.is_some_and(|file| file.content == Some(content))
    }
}

/// Adds what one mapping shows, and tells where that ends.
fn show(
    pid: i32,
    vma: &Vma,
    target: &ProcessMemory,
    map: &mut PageMap,
    parts: &mut Vec<MappedPart>,
) -> io::Result<u64> {
    let (mut at, mut size) = (vma.start, 0);
    let guards = vma.guards.iter().map(|guard| (guard.address, guard.address + guard.length));
    for (start, end) in guards.chain([(vma.end, vma.end)]) {
        let readable = at + readable(target, RemoteAddr::new(at), start - at);
        size = size.max(vma.offset + (readable - vma.start));
        let mut own = Vec::new();
        if !vma.shared && at < readable {
            let range = RemoteAddr::new(at)..RemoteAddr::new(readable);
            map.scan_into(range, Query::ANONYMOUS, &mut own).map_err(io::Error::other)?;
        }
        parts.extend(without(at, readable, &own).into_iter().map(|(from, to)| MappedPart {
            pid,
            address: RemoteAddr::new(from),
            offset: vma.offset + (from - vma.start),
            len: to - from,
        }));
        at = end;
    }
    Ok(size)
}

/// The part of a range that lies outside of all runs.
fn without(mut at: u64, end: u64, runs: &[Run]) -> Vec<(u64, u64)> {
    let mut left = Vec::new();
    for run in runs {
        if at < run.start.get() {
            left.push((at, run.start.get()));
        }
        at = run.start.get() + run.len;
    }
    if at < end {
        left.push((at, end));
    }
    left
}

/// How many bytes from `start` on are in the file: those behind its end cannot be read.
fn readable(target: &ProcessMemory, start: RemoteAddr, len: u64) -> u64 {
    let (mut first, mut last) = (0, len / PAGE_SIZE);
    // Pages before `first` can be read, those from `last` on cannot.
    while first < last {
        let middle = first + (last - first) / 2;
        if target.read_exact_at(start + middle * PAGE_SIZE, &mut [0]).is_ok() {
            first = middle + 1;
        } else {
            last = middle;
        }
    }
    first * PAGE_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_left_out() {
        let run = |start, len| Run { start: RemoteAddr::new(start), len };
        assert_eq!(without(0, 100, &[]), [(0, 100)]);
        assert_eq!(without(0, 100, &[run(0, 10), run(20, 30), run(90, 10)]), [(10, 20), (50, 90)]);
        assert_eq!(without(5, 5, &[]), []);
    }
}
