//! Files of huge pages (hugetlbfs, and memfds of such pages). They can be read like others; but they are written through mappings only, and
//! `lseek` tells no holes in them.
//!
//! # Safety
//! The one unsafe block maps a page of a file that this process holds, copies into what was mapped, and unmaps it. The page was
//! allocated before, so that touching it cannot fail.

#![allow(unsafe_code, reason = "memory is mapped and written to, see Safety above")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use rustix::fs::FallocateFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// `HUGETLBFS_MAGIC`.
const MAGIC: u64 = 0x9584_58f6;
/// Bytes that are looked at in one go.
const LOOK: usize = 256 << 10;

/// The file's pages have 2 to this power bytes; 0: it is an ordinary file.
///
/// # Errors
/// What fstatfs(2) says.
pub fn page_shift(file: impl AsFd) -> io::Result<u32> {
    let facts = rustix::fs::fstatfs(file)?;
    let huge = u64::try_from(facts.f_type).is_ok_and(|kind| kind & 0xffff_ffff == MAGIC);
    Ok(if huge { facts.f_bsize.trailing_zeros() } else { 0 })
}

/// Parts of the file, within its size, that hold something: all of it where it has no holes, else the pages that are not all zeros. Looking
/// allocates nothing.
///
/// # Errors
/// What reading says.
pub fn data_runs(file: &File, shift: u32) -> io::Result<Vec<Range<u64>>> {
    let facts = file.metadata()?;
    let (size, page) = (facts.len(), 1u64 << shift);
    if size == 0 || facts.blocks().saturating_mul(512) >= size {
        return Ok(std::iter::once(0..size).filter(|all| !all.is_empty()).collect());
    }
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut buffer = vec![0; LOOK];
    for start in (0..size).step_by(usize::try_from(page).map_err(io::Error::other)?) {
        let end = size.min(start + page);
        if is_zero(file, start..end, &mut buffer)? {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
    }
    Ok(runs)
}

fn is_zero(file: &File, range: Range<u64>, buffer: &mut [u8]) -> io::Result<bool> {
    let mut at = range.start;
    while at < range.end {
        let len = buffer.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
        let part = &mut buffer[..len];
        file.read_exact_at(part, at)?;
        if part.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += u64::try_from(len).unwrap_or(u64::MAX);
    }
    Ok(true)
}

/// Writes to the file, whose pages have 2 to the power of `shift` bytes; those that are not there yet are allocated first. `file` is open for
/// reading and writing.
///
/// # Errors
/// When there are not enough huge pages (`ENOSPC`), or what mmap(2) says.
pub fn write_at(file: &File, shift: u32, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    let page = 1u64 << shift;
    while !bytes.is_empty() {
        let start = offset & !(page - 1);
        let skip = offset - start;
        let len = bytes.len().min(usize::try_from(page - skip).unwrap_or(usize::MAX));
        let (part, rest) = bytes.split_at(len);
        rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, start, page)?;
        copy(file, start..start + page, skip, part)?;
        (offset, bytes) = (start + page, rest);
    }
    Ok(())
}

/// Copies bytes into an allocated page of a file, `skip` bytes behind its begin.
fn copy(file: &File, page: Range<u64>, skip: u64, bytes: &[u8]) -> io::Result<()> {
    let len = usize::try_from(page.end - page.start).map_err(io::Error::other)?;
    let skip = usize::try_from(skip).map_err(io::Error::other)?;
    assert!(skip.checked_add(bytes.len()).is_some_and(|end| end <= len), "the bytes lie within the page");
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
    // SAFETY: a new mapping at a place that the kernel chooses replaces nothing; it has `len` bytes, of which `skip..skip + bytes.len()`
    // are written to, as asserted above; nobody else knows of it, and it is gone when we return.
    unsafe {
        let place = rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, file, page.start)?;
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.cast::<u8>().add(skip), bytes.len());
        rustix::mm::munmap(place, len)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::fs::MemfdFlags;

    use super::*;

    #[test]
    fn ordinary_files_have_no_huge_pages() {
        assert_eq!(page_shift(tempfile::tempfile().unwrap()).unwrap(), 0);
    }

    #[test]
    fn what_is_written_is_read_and_holes_are_told() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let Ok(file) = rustix::fs::memfd_create("huge", flags).map(File::from) else { return };
        assert_eq!(page_shift(&file).unwrap(), 21);
        file.set_len(3 << 21).unwrap();
        assert_eq!(data_runs(&file, 21).unwrap(), []);
        match write_at(&file, 21, (2 << 21) - 2, b"abcd") {
            // None are set aside here.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => return,
            written => written.unwrap(),
        }
        let mut read = [0; 6];
        file.read_exact_at(&mut read, (2 << 21) - 3).unwrap();
        assert_eq!(&read, b"\0abcd\0");
        let runs = data_runs(&file, 21).unwrap();
        assert!(runs.len() == 1 && runs[0] == (1 << 21..3 << 21), "{runs:?}");
    }
}
