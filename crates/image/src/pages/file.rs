//! The file `pages` while it is written: past the page cache where the file system can.
//!
//! Memory for the page cache has to be found first, page by page, and on a virtual machine from the host: writing a large image
//! through it is several times slower than the disk. Blocks that are aligned as the disk wants them are written directly.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

/// Alignment of memory, offsets and lengths that every disk is content with, in bytes.
pub const DIRECT_ALIGNMENT: usize = 4096;

/// The file, opened twice.
#[derive(Debug)]
pub struct PagesFile {
    cached: File,
    direct: Option<File>,
    /// Cleared when the file system turns out not to keep its promise.
    use_direct: AtomicBool,
}

impl PagesFile {
    /// Opens the file once more for direct writing, where that is possible.
    pub fn new(cached: File) -> Self {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::DIRECT;
        let again = rustix::fs::open(format!("/proc/self/fd/{}", cached.as_raw_fd()), flags, Mode::empty());
        Self { cached, direct: again.ok().map(File::from), use_direct: AtomicBool::new(true) }
    }

    /// Takes `bytes` of the disk now, so that a full disk shows before anything is copied, and blocks can be written side by side
    /// without the file growing under them. File systems that cannot do that are left to grow.
    pub fn reserve(&self, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.cached, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) | Ok(()) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Bytes of the disk that are free for us.
    pub fn available(&self) -> io::Result<u64> {
        let system = rustix::fs::fstatvfs(&self.cached)?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }

    /// Writes `bytes` at `offset`.
    pub fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = self.direct_for(bytes, offset) {
            match direct.write_all_at(bytes, offset) {
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    self.use_direct.store(false, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        self.cached.write_all_at(bytes, offset)
    }

    fn direct_for(&self, bytes: &[u8], offset: u64) -> Option<&File> {
        let aligned = bytes.as_ptr().addr().is_multiple_of(DIRECT_ALIGNMENT)
            && bytes.len().is_multiple_of(DIRECT_ALIGNMENT)
            && usize::try_from(offset).is_ok_and(|offset| offset.is_multiple_of(DIRECT_ALIGNMENT));
        self.direct.as_ref().filter(|_| aligned && self.use_direct.load(Ordering::Relaxed))
    }
}

/// A buffer aligned for direct writing.
#[derive(Debug)]
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    begin: usize,
    len: usize,
}

impl AlignedBuffer {
    /// `len` zero bytes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let bytes = vec![0; len + DIRECT_ALIGNMENT];
        let begin = bytes.as_ptr().align_offset(DIRECT_ALIGNMENT);
        Self { bytes, begin, len }
    }

    /// The bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..self.begin + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_other_blocks_come_to_lie_side_by_side() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pages");
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
        let file = PagesFile::new(file);
        file.reserve(3 * 4096).expect("room");
        let mut buffer = AlignedBuffer::new(8192);
        buffer.as_mut_slice().fill(7);
        assert!(buffer.as_mut_slice().as_ptr().addr().is_multiple_of(DIRECT_ALIGNMENT));
        file.write(buffer.as_mut_slice(), 4096).expect("written directly");
        file.write(&[5; 100], 0).expect("written through the cache");
        let content = std::fs::read(&path).expect("read back");
        assert_eq!((content[99], content[100], content[4095]), (5, 0, 0));
        assert!(content[4096..].iter().all(|byte| *byte == 7) && content.len() == 3 * 4096);
    }

    #[test]
    fn a_disk_without_room_says_so_before_anything_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = File::create_new(folder.path().join("pages")).expect("a file");
        let error = PagesFile::new(file).reserve(1 << 60).expect_err("no disk is that large");
        assert!(matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge), "{error}");
    }
}
