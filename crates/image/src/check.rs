//! Whether an image makes sense.
//!
//! The same questions are asked before an image is written and after it is read. They keep what reads an image from having to
//! doubt numbers: every reference leads somewhere, every length is bounded, everything that is ordered is in order. Whether
//! *this host* can wake the image is not asked here.

mod aio;
mod contents;
mod files;
mod ipc;
mod memory;
mod process;
mod removed;
mod sockets;
mod special;
mod tree;

use crate::Image;
use crate::ImageError;
use crate::pages::{BLOCK_SIZE_U64, MAX_BLOCKS, block_count, block_length};
use crate::records::page_stream::Compression;
use crate::records::{Manifest, PageStream};

pub use memory::{MAX_VMAS, TASK_SIZE};
pub use process::{MAX_PID, MAX_THREADS, REGISTER_COUNT, SIGINFO_LENGTH, XSTATE_LENGTHS};
pub(crate) use sockets::MAX_MESSAGES;
pub use sockets::SOCKET_OPTIONS;
pub use special::told_of;
pub use tree::MAX_PROCESSES;

/// Longest path, in bytes, as in Linux.
pub const MAX_PATH: usize = 4096;
/// Most bytes of `Manifest.lineage`.
const MAX_LINEAGE: usize = 64;
/// Highest `Manifest.file_level`.
const MAX_FILE_LEVEL: u32 = 3;

/// Leaves with [`ImageError::Invalid`] unless the condition holds: `ensure!(condition, "Record {n}", "detail {d}")`. The texts are
/// made only when needed.
macro_rules! ensure {
    ($condition:expr, $record:expr, $($detail:tt)+) => {
        if !$condition {
            return Err($crate::check::invalid($record, format!($($detail)+)));
        }
    };
}
pub(crate) use ensure;

pub(crate) fn invalid(record: impl std::fmt::Display, detail: String) -> ImageError {
    ImageError::Invalid { record: record.to_string(), detail }
}

/// Checks everything; see [`Image::check`].
pub(crate) fn image(image: &Image) -> Result<(), ImageError> {
    manifest(&image.manifest)?;
    stream(&image.stream)?;
    image.processes.iter().try_for_each(process::check)?;
    tree::check(image)?;
    process::filters(image)?;
    contents::check(image)?;
    files::check(image)?;
    removed::check(image)?;
    sockets::check(image)?;
    memory::check(image)?;
    ipc::check(image)?;
    image.processes.iter().try_for_each(|process| memory::registrations(image, process))?;
    image.processes.iter().try_for_each(aio::check)?;
    for record in &image.unknown {
        let mandatory = record.flags & crate::container::MANDATORY != 0;
        let known = crate::records::RecordKind::from_number(record.kind).is_some();
        ensure!(!mandatory && !known, "unknown record", "kind {} flags {}", record.kind, record.flags);
    }
    Ok(())
}

fn manifest(manifest: &Manifest) -> Result<(), ImageError> {
    ensure!(manifest.host.is_some(), "Manifest", "no host");
    ensure!(
        u64::from(manifest.page_size) == crate::PAGE_SIZE,
        "Manifest",
        "page size {} is not {}",
        manifest.page_size,
        crate::PAGE_SIZE
    );
    ensure!(
        manifest.file_level <= MAX_FILE_LEVEL,
        "Manifest",
        "file level {} is above {MAX_FILE_LEVEL}",
        manifest.file_level
    );
    ensure!(
        manifest.lineage.len() <= MAX_LINEAGE,
        "Manifest",
        "a lineage of {} bytes is longer than {MAX_LINEAGE}",
        manifest.lineage.len()
    );
    let Some(cpu) = &manifest.cpu else {
        return Err(invalid("Manifest", "no cpu".to_owned()));
    };
    for component in &cpu.components {
        let inside = component.offset.checked_add(component.size).is_some_and(|end| end <= cpu.xsave_size);
        ensure!(
            component.index < u64::BITS && inside,
            "Manifest",
            "xsave component {} at {} of {} bytes is not inside the {} bytes of the area",
            component.index,
            component.offset,
            component.size,
            cpu.xsave_size
        );
    }
    Ok(())
}

/// Checks that lengths and numbers of blocks fit together.
pub(crate) fn stream(stream: &PageStream) -> Result<(), ImageError> {
    const RECORD: &str = "PageStream";
    let Ok(compression) = Compression::try_from(stream.compression) else {
        return Err(invalid(RECORD, format!("unknown compression {}", stream.compression)));
    };
    ensure!(
        u64::from(stream.block_size) == BLOCK_SIZE_U64,
        RECORD,
        "block size {} is not {BLOCK_SIZE_U64}",
        stream.block_size
    );
    let blocks = block_count(stream.stream_length);
    ensure!(blocks <= MAX_BLOCKS, RECORD, "{blocks} blocks, at most {MAX_BLOCKS} are possible");
    ensure!(
        stream.stream_length.is_multiple_of(crate::PAGE_SIZE),
        RECORD,
        "length {} is no whole number of pages",
        stream.stream_length
    );
    let checksums = stream.checksums.len();
    ensure!(u64::try_from(checksums) == Ok(blocks), RECORD, "{checksums} checksums for {blocks} blocks");
    let expected = if compression == Compression::None {
        ensure!(stream.stored_lengths.is_empty(), RECORD, "stored lengths although not compressed");
        stream.stream_length
    } else {
        stored_length(stream)?
    };
    ensure!(
        stream.file_length == expected,
        RECORD,
        "file length {} where the blocks have {expected} bytes",
        stream.file_length
    );
    Ok(())
}

/// Bytes of all compressed blocks in the file.
fn stored_length(stream: &PageStream) -> Result<u64, ImageError> {
    let (lengths, blocks) = (stream.stored_lengths.len(), stream.checksums.len());
    ensure!(lengths == blocks, "PageStream", "{lengths} stored lengths for {blocks} blocks");
    let mut sum = 0;
    for (index, length) in (0u64..).zip(&stream.stored_lengths) {
        let memory = block_length(stream, index);
        let stored = u64::from(*length);
        ensure!(
            (1..=memory).contains(&stored),
            "PageStream",
            "block {index} of {memory} bytes is stored in {stored}"
        );
        sum += stored;
    }
    Ok(sum)
}

/// Checks that bytes are an absolute path.
pub(crate) fn path(path: &[u8], record: &str, field: &str) -> Result<(), ImageError> {
    let shown = || crate::records::path_of(path).display().to_string();
    ensure!(path.first() == Some(&b'/'), record, "{field} {:?} is no absolute path", shown());
    ensure!(!path.contains(&0), record, "{field} {:?} has a zero byte in it", shown());
    ensure!(
        path.len() < MAX_PATH,
        record,
        "{field} has {} bytes, at most {MAX_PATH} are possible",
        path.len()
    );
    Ok(())
}

/// Checks that numbers go up, each above the one before.
pub(crate) fn ascending<T: Ord + std::fmt::Debug>(
    numbers: impl IntoIterator<Item = T>,
    record: &str,
    field: &str,
) -> Result<(), ImageError> {
    let mut last: Option<T> = None;
    for number in numbers {
        if let Some(last) = &last {
            ensure!(*last < number, record, "{field} {number:?} comes after {last:?}");
        }
        last = Some(number);
    }
    Ok(())
}
