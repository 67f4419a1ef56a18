//! Content of files: which goes into the image, and from where it is read.
//!
//! A file that has no name any more lives on in the image only: it always goes in. What has a name goes in as far as the level asks
//! for it, to be there when the file is found changed.

use std::collections::{HashMap, HashSet};
use std::fs::File;

use rewake_image::records::{FileContent, file_content::Kind};
use rewake_linux::proc::{Link, Mapping, Proc};
use rewake_linux::{attributes, hugetlb, lease};
use rustix::fs::{OFlags, SealFlags};

use crate::error::{CaptureError, During, Result};
use crate::files::identity;

/// Content of files open (or mapped) for writing is kept from this level on.
pub(crate) const WRITTEN: u8 = 1;
/// That of every open regular file.
pub(crate) const OPEN: u8 = 2;
/// That of mapped files, the executable and libraries too.
pub(crate) const MAPPED: u8 = 3;

/// How a process of the target has a file.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The process.
    pub(crate) pid: i32,
    pub(crate) way: Way,
}

/// How a process has a file.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// At this descriptor.
    Descriptor(i32),
    /// Mapped here.
    Mapping(Mapping),
    /// Mapped, and this user may not open it through the mapping: what the mappings show.
    Shown,
    /// As its executable.
    Exe,
}

impl Source {
    /// At a descriptor.
    pub(crate) const fn descriptor(pid: i32, fd: i32) -> Self {
        Self { pid, way: Way::Descriptor(fd) }
    }

    /// In its memory.
    pub(crate) const fn mapping(pid: i32, mapping: Mapping) -> Self {
        Self { pid, way: Way::Mapping(mapping) }
    }

    /// In its memory, which is all that can be read of it.
    pub(crate) const fn shown(pid: i32) -> Self {
        Self { pid, way: Way::Shown }
    }

    /// What it runs.
    pub(crate) const fn exe(pid: i32) -> Self {
        Self { pid, way: Way::Exe }
    }
}

/// What a content is read from.
#[derive(Debug)]
pub(crate) enum Opened {
    /// The file itself.
    File(File),
    /// The file through the target's own description, whose position must stay where it is.
    Held(File),
    /// The target's mappings of it.
    Mappings,
}

/// Files whose content goes into the image.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    level: u8,
    files: Vec<(FileContent, Source)>,
    /// Places in `files` by device and inode.
    known: HashMap<(u64, u64), usize>,
}

impl Contents {
    /// None yet, at that level.
    pub(crate) fn new(level: u8) -> Self {
        Self { level, ..Self::default() }
    }

    /// The id of the content of a file that has a name, if the level asks for it: from `level` on, or from [`WRITTEN`] on if the
    /// program may write to it.
    pub(crate) fn named(&mut self, link: &Link, source: Source, written: bool, level: u8) -> Option<u32> {
        let wanted = self.level >= level || (written && self.level >= WRITTEN);
        wanted.then(|| self.add(link, source, written, Kind::Named))
    }

    /// The id of the content of a file that has none.
    pub(crate) fn unlinked(&mut self, link: &Link, source: Source, written: bool) -> u32 {
        self.add(link, source, written, Kind::Unlinked)
    }

    /// The id of the content of a memfd; `name` without the kernel's prefix.
    pub(crate) fn memfd(&mut self, link: &Link, name: &[u8], source: Source) -> u32 {
        let id = self.add(link, source, true, Kind::Memfd);
        if let Some((record, _)) = self.file_mut(id)
            && let Some(identity) = &mut record.identity
        {
            identity.path = name.to_vec();
        }
        id
    }

    /// The process and the descriptor at which the target has a file whose content goes in.
    pub(crate) fn descriptor(&self, device: u64, inode: u64) -> Option<(i32, i32)> {
        let source = &self.files[*self.known.get(&(device, inode))?].1;
        match source.way {
            Way::Descriptor(fd) => Some((source.pid, fd)),
            Way::Mapping(_) | Way::Shown | Way::Exe => None,
        }
    }

    /// Whether the target has a descriptor of a file that had this name and has none any more.
    pub(crate) fn has_unlinked(&self, path: &[u8]) -> bool {
        self.files.iter().any(|(record, source)| {
            matches!(source.way, Way::Descriptor(_))
                && record.kind() != Kind::Named
                && record.identity.as_ref().is_some_and(|identity| identity.path == path)
        })
    }

    /// The record and the source of a content.
    pub(crate) fn file_mut(&mut self, id: u32) -> Option<&mut (FileContent, Source)> {
        self.files.get_mut(usize::try_from(id).ok()?)
    }

    fn add(&mut self, link: &Link, source: Source, written: bool, kind: Kind) -> u32 {
        let next = self.files.len();
        let at = *self.known.entry((link.stat.device, link.stat.inode)).or_insert(next);
        if at == next {
            let record = FileContent {
                id: u32::try_from(at).expect("fewer files than 2^32"),
                kind: kind.into(),
                identity: Some(identity(link)),
                uid: link.stat.uid,
                gid: link.stat.gid,
                ..FileContent::default()
            };
            self.files.push((record, source));
        } else if matches!(source.way, Way::Descriptor(_)) {
            // A descriptor can be opened by everybody who may trace the target, a mapping by few.
            self.files[at].1 = source;
        }
        self.files[at].0.written |= written;
        u32::try_from(at).expect("fewer files than 2^32")
    }

    /// Those that can be opened anew while the target runs, each opened when it is asked for.
    pub(crate) fn openable(&self) -> impl Iterator<Item = (FileContent, File)> {
        let at_descriptors = |(record, source): &&(FileContent, Source)| {
            matches!(source.way, Way::Descriptor(_)) && record.kind() != Kind::Memfd
        };
        self.files.iter().filter(at_descriptors).filter_map(|(record, source)| {
            match open(record, source, &HashSet::new()) {
                Ok((record, Opened::File(file))) => Some((record, file)),
                // It may have been closed meanwhile; if not, the pause tells.
                _ => None,
            }
        })
    }

    /// Opens all of them for reading. The target stands still.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(crate) fn open(&self) -> Result<Vec<(FileContent, Opened)>> {
        let leased =
            if self.files.is_empty() { HashSet::new() } else { lease::exclusive().unwrap_or_default() };
        self.files.iter().map(|(record, source)| open(record, source, &leased)).collect()
    }
}

fn open(
    record: &FileContent,
    source: &Source,
    leased: &HashSet<(u64, u64)>,
) -> Result<(FileContent, Opened)> {
    let pid = source.pid;
    let proc = Proc::open_living(pid).during("open", pid, "process")?;
    let path = record.identity.as_ref().map(|identity| identity.path.clone()).unwrap_or_default();
    let name = format!("content of {}", String::from_utf8_lossy(&path));
    if let Way::Mapping(Mapping { device, inode, .. }) = source.way
        && leased.contains(&(device, inode))
    {
        let reason = "to open it would break a lease, and it is mapped only";
        let remedy =
            "let the program give the lease up first; a file that has a name can be left out (--files 0)";
        return Err(CaptureError::failed("open", pid, &name, reason).advise(remedy));
    }
    let mut held = false;
    let file = match &source.way {
        Way::Descriptor(fd) => {
            let opened;
            (opened, held) = at_descriptor(&proc, *fd, &name)?;
            opened
        }
        Way::Mapping(mapping) => match proc.open_mapped_file(mapping, OFlags::RDONLY) {
            Err(error) if error.is_denied() => by_name(record).ok_or_else(|| {
                let error = CaptureError::failed("open", pid, &name, error);
                error.advise("run the command as root, or with the capability CAP_CHECKPOINT_RESTORE")
            })?,
            opened => opened.during("open", pid, &name)?,
        },
        Way::Shown => return Ok((record.clone(), Opened::Mappings)),
        Way::Exe => proc.open_file("exe", OFlags::RDONLY).during("open", pid, &name)?,
    };
    let mut record = record.clone();
    let size = file.metadata().during("stat", pid, &name)?.len();
    if let Some(identity) = &mut record.identity {
        identity.size = size;
    }
    record.huge_page_shift = hugetlb::page_shift(&file).during("stat file system", pid, &name)?;
    if record.kind() == Kind::Memfd {
        let seals = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
        record.seals = seals.bits();
    }
    Ok((record, if held { Opened::Held(file) } else { Opened::File(file) }))
}

/// Opens what is at a descriptor anew, or takes it as it is: then its position is the target's too.
fn at_descriptor(proc: &Proc, fd: i32, name: &str) -> Result<(File, bool)> {
    let pid = proc.id();
    let own = attributes::duplicate(pid, fd).during("open", pid, name)?;
    // To open the file would break the lease, which the target is told.
    if !lease::is_exclusive(&own) {
        match proc.open_file(&format!("fd/{fd}"), OFlags::RDONLY) {
            // It may have been opened with rights that its owner has no more.
            Err(error) if error.is_denied() => {}
            opened => return Ok((opened.during("open", pid, name)?, false)),
        }
    }
    let flags = rustix::fs::fcntl_getfl(&own).during("fcntl", pid, name)?;
    if flags & OFlags::ACCMODE == OFlags::WRONLY {
        let reason = "this user may not open it for reading, and the program has it open for writing only";
        let error = CaptureError::failed("open", pid, name, reason);
        return Err(
            error.advise("run the command as root; a file that has a name can be left out (--files 0)")
        );
    }
    Ok((File::from(own), true))
}

/// A mapped file under its name, if that is still the same file: for those who may not open it through the mapping.
fn by_name(record: &FileContent) -> Option<File> {
    let identity = record.identity.as_ref().filter(|_| record.kind() == Kind::Named)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(&identity.path[..], flags, rustix::fs::Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    ((stat.st_dev, stat.st_ino) == (identity.device, identity.inode)).then(|| File::from(file))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn levels_say_what_goes_in_and_a_file_goes_in_once() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"content").unwrap();
        let proc = Proc::own().unwrap();
        let link = proc.link(&format!("fd/{}", file.as_raw_fd())).unwrap();
        let source = || Source::descriptor(proc.id(), file.as_raw_fd());
        assert_eq!(Contents::new(0).named(&link, source(), true, OPEN), None);
        assert_eq!(Contents::new(1).named(&link, source(), false, OPEN), None);
        let mut contents = Contents::new(2);
        assert_eq!(contents.named(&link, source(), false, OPEN), Some(0));
        assert_eq!(contents.named(&link, source(), true, MAPPED), Some(0));
        assert_eq!(contents.unlinked(&link, source(), false), 0);
        let opened = contents.open().unwrap();
        assert_eq!(opened.len(), 1);
        let record = &opened[0].0;
        assert!(record.written && record.identity.as_ref().unwrap().size == 7);
    }
}
