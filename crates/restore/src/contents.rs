//! Files that are made anew from the image: those that have no name any more, and private copies of those that hold something else now.
//!
//! `resume` makes and fills them before there is a new process, from verified blocks; the new process opens them through descriptors
//! it inherits. None of them ever has a name: whatever happens, nothing of them remains.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rewake_image::pages::BLOCK_SIZE_U64;
use rewake_image::records::vma::Backing;
use rewake_image::records::{FileContent, Vma, file_content::Kind, path_of};
use rewake_image::{Image, PageReader};
use rewake_linux::hugetlb;
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags};

use crate::error::RestoreError;

/// Where the flags of a memfd tell the size of its huge pages (`MFD_HUGE_SHIFT`).
const MEMFD_HUGE_SHIFT: u32 = 26;
/// Permission bits.
pub const PERMISSIONS: u32 = 0o7777;

/// The files made, in the order of their descriptors' numbers.
#[derive(Debug, Default)]
pub struct Prepared {
    files: Vec<(u32, OwnedFd)>,
}

impl Prepared {
    /// The ids of the contents, in order.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.files.iter().map(|(id, _)| *id)
    }

    /// The descriptors, in order.
    pub fn descriptors(&self) -> impl Iterator<Item = &OwnedFd> {
        self.files.iter().map(|(_, file)| file)
    }

    /// Which descriptor each content will have, when the first one has number `first`.
    #[must_use]
    pub fn numbers(&self, first: i32) -> BTreeMap<u32, i32> {
        self.ids().zip(first..).collect()
    }
}

/// Makes all files that need it: those without a name, and `private`, whose name now leads to something else.
///
/// # Errors
/// A damaged block, or no room.
pub fn prepare(
    image: &Image,
    reader: &PageReader,
    dir: &Path,
    private: &BTreeSet<u32>,
) -> Result<Prepared, RestoreError> {
    let mut stream = Stream::new(reader)?;
    let mut prepared = Prepared::default();
    for content in &image.file_contents {
        if content.kind() == Kind::Named && !private.contains(&content.id) {
            continue;
        }
        let system = |operation, source| RestoreError::System {
            operation,
            pid: image.root().pid,
            object: format!("content of {}", path(content).display()),
            source,
        };
        let file = make(image, content, dir).map_err(|source| system("create", source))?;
        for extent in &content.pages {
            stream.copy(extent.stream_offset, extent.length, |at, bytes| {
                let written = match content.huge_page_shift {
                    0 => file.write_all_at(bytes, extent.address + at),
                    shift => hugetlb::write_at(&file, shift, extent.address + at, bytes),
                };
                written.map_err(|source| system("write", source))
            })?;
        }
        finish(&file, content).map_err(|source| system("set", source))?;
        prepared.files.push((content.id, file.into()));
    }
    Ok(prepared)
}

fn path(content: &FileContent) -> &Path {
    path_of(content.identity.as_ref().map_or(&[], |identity| &identity.path))
}

/// The empty file.
fn make(image: &Image, content: &FileContent, dir: &Path) -> io::Result<File> {
    match content.kind() {
        Kind::Memfd => memfd(content),
        // Where it was, so that it is of the same file system; else where there is room.
        Kind::Unlinked => {
            let folder = path(content).parent().unwrap_or(Path::new("/"));
            if content.huge_page_shift != 0 {
                return huge(folder, content).or_else(|_| memfd(content));
            }
            // A file system for temporary files may forbid to run what is on it.
            let ours =
                || if is_run(image, content.id) { memfd(content) } else { Err(io::ErrorKind::Other.into()) };
            let elsewhere = || nameless(&std::env::temp_dir()).or_else(|_| nameless(dir));
            nameless(folder).or_else(|_| ours()).or_else(|_| elsewhere())
        }
        // A file system that holds images may forbid to run what is on it.
        Kind::Named if is_mapped(image, content.id) || content.huge_page_shift != 0 => memfd(content),
        Kind::Named => nameless(dir).or_else(|_| memfd(content)),
    }
}

/// A file in `folder` that never gets a name. It may be given one later (linkat), as one made without a name could.
fn nameless(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, folder, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Such a file in a file system of huge pages of the size that it had.
fn huge(folder: &Path, content: &FileContent) -> io::Result<File> {
    let file = nameless(folder)?;
    if hugetlb::page_shift(&file)? == content.huge_page_shift {
        Ok(file)
    } else {
        Err(io::Error::other("its pages are of another size"))
    }
}

fn memfd(content: &FileContent) -> io::Result<File> {
    let mut flags = MemfdFlags::CLOEXEC;
    if content.huge_page_shift != 0 {
        let size = content.huge_page_shift << MEMFD_HUGE_SHIFT;
        flags |= MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(size);
    }
    if content.seals != SealFlags::SEAL.bits() {
        flags |= MemfdFlags::ALLOW_SEALING;
    }
    let name = path(content).file_name().unwrap_or_default();
    Ok(rustix::fs::memfd_create(name, flags)?.into())
}

fn is_mapped(image: &Image, id: u32) -> bool {
    let exe = image.memories().filter_map(|memory| memory.exe.as_ref());
    image.mapped_files.iter().chain(exe).any(|file| file.content == Some(id))
}

/// Whether one of the processes runs code of the file.
fn is_run(image: &Image, id: u32) -> bool {
    const EXECUTABLE: u32 = libc::PROT_EXEC.cast_unsigned();
    let file = |vma: &Vma| image.mapped_files.get(usize::try_from(vma.object).ok()?)?.content;
    let runs = |vma: &&Vma| vma.backing() == Backing::File && vma.protection & EXECUTABLE != 0;
    image.memories().any(|memory| {
        memory.exe.as_ref().and_then(|exe| exe.content) == Some(id)
            || memory.vmas.iter().filter(runs).any(|vma| file(vma) == Some(id))
    })
}

/// Size and owner. The mode is set last of all, by the new process: it may forbid to open the file once more as the program had it.
fn finish(file: &File, content: &FileContent) -> io::Result<()> {
    let Some(identity) = &content.identity else { return Ok(()) };
    file.set_len(identity.size)?;
    let now = rustix::fs::fstat(file)?;
    if (now.st_uid, now.st_gid) != (content.uid, content.gid) {
        // What we may not give away stays ours: the program sees it through its descriptors all the same.
        let _ = std::os::unix::fs::fchown(file, Some(content.uid), Some(content.gid));
    }
    let ours = rustix::fs::fstat(file)?.st_uid == rustix::process::geteuid().as_raw();
    // What was given away is not the new process's to change, should it live in a user namespace.
    let mode = if ours { Mode::RWXU } else { Mode::from_raw_mode(identity.mode & PERMISSIONS) };
    rustix::fs::fchmod(file, mode)?;
    Ok(())
}

/// The page stream, block by verified block.
struct Stream<'a> {
    reader: &'a PageReader,
    buffer: rewake_image::BlockBuffer,
}

impl<'a> Stream<'a> {
    fn new(reader: &'a PageReader) -> Result<Self, RestoreError> {
        Ok(Self { reader, buffer: reader.buffer()? })
    }

    /// Hands on `length` bytes of the stream from `offset` on, in parts, each with its distance from the beginning.
    fn copy(
        &mut self,
        offset: u64,
        length: u64,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let mut done = 0;
        while done < length {
            let at = offset + done;
            let block = self.reader.read_block(at / BLOCK_SIZE_U64, &mut self.buffer)?;
            let skip = usize::try_from(at % BLOCK_SIZE_U64).unwrap_or(usize::MAX);
            let rest = block.get(skip..).unwrap_or_default();
            let part = &rest[..rest.len().min(usize::try_from(length - done).unwrap_or(usize::MAX))];
            assert!(!part.is_empty(), "extents lie within the stream");
            take(done, part)?;
            done += u64::try_from(part.len()).unwrap_or(u64::MAX);
        }
        Ok(())
    }
}
