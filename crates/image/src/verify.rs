//! Looking at every byte of an image.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::fs::{CWD, Mode, OFlags};

use crate::image::read_records;
use crate::{FILES, Image, ImageError, PageReader, UNDO_FILE, container, dir};

/// More threads than this only wait for the disk.
const MAX_THREADS: usize = 8;

/// What was found to be as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct VerifySummary {
    /// Files in the image.
    pub files: u64,
    /// Records in the file `records`.
    pub records: u64,
    /// Blocks in the file `pages`.
    pub blocks: u64,
    /// Bytes in all files.
    pub bytes: u64,
    /// Bytes of memory in the image, decompressed.
    pub memory_bytes: u64,
}

/// Checks every byte of every file of the image in `dir`, decompresses every block, and looks for files that do not belong there.
/// `progress` is told, from several threads, how many of how many bytes of files are done.
///
/// # Errors
/// The first thing that is wrong, naming image, file and place.
pub fn verify(dir: &Path, progress: impl Fn(u64, u64) + Sync) -> Result<VerifySummary, ImageError> {
    let image = check_records(dir)?;
    let reader = PageReader::open(dir, &image.image.stream)?;
    let total = image.bytes + reader.stream().file_length;
    progress(image.bytes, total);
    verify_pages(&reader, &|done| progress(image.bytes + done, total))?;
    Ok(VerifySummary {
        files: u64::try_from(FILES.len()).unwrap_or(u64::MAX),
        records: image.records,
        blocks: reader.blocks(),
        bytes: total,
        memory_bytes: reader.stream().stream_length,
    })
}

/// An image whose records have been checked.
struct Checked {
    image: Image,
    records: u64,
    bytes: u64,
}

fn check_records(dir: &Path) -> Result<Checked, ImageError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::openat(CWD, dir, flags, Mode::empty()).map_err(ImageError::io("open", dir))?;
    let names = dir::entries(&open, dir)?;
    let bytes = read_records(dir)?;
    let belongs = |name: &OsStr| FILES.iter().any(|known| name == *known) || is_undo(name);
    if let Some(name) = names.iter().find(|name| !belongs(name)) {
        let name = name.to_string_lossy().into_owned();
        return Err(ImageError::UnexpectedFile { name }.in_image(dir));
    }
    let records = container::frames(&bytes).map_err(|error| error.in_image(dir))?.len();
    let image = Image::decode(&bytes).map_err(|error| error.in_image(dir))?;
    let [records, bytes] = [records, bytes.len()].map(|number| u64::try_from(number).unwrap_or(u64::MAX));
    Ok(Checked { image, records, bytes })
}

/// A journal of files being put back: no part of the image, and no stranger.
fn is_undo(name: &OsStr) -> bool {
    let rest = name.as_encoded_bytes().strip_prefix(UNDO_FILE.as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
}

/// Reads all blocks with a few threads; gives the first error that one of them finds.
fn verify_pages(reader: &PageReader, progress: &(impl Fn(u64) + Sync)) -> Result<(), ImageError> {
    let next = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let error = Mutex::new(None);
    let work = || -> Result<(), ImageError> {
        let mut buffer = reader.buffer()?;
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= reader.blocks() {
                break;
            }
            reader.read_block(index, &mut buffer)?;
            let stored = reader.stored_length(index);
            progress(done.fetch_add(stored, Ordering::Relaxed) + stored);
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, |number| number.get().min(MAX_THREADS));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                if let Err(found) = work() {
                    failed.store(true, Ordering::Relaxed);
                    error.lock().expect("no holder of this lock panics").get_or_insert(found);
                }
            });
        }
    });
    match error.into_inner().expect("no holder of this lock panics") {
        None => Ok(()),
        Some(found) => Err(found),
    }
}
