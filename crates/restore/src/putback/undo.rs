//! Changing files back into what the journal says they were.
//!
//! A file is only touched if it is what we made of it, or on the way there or back: the same inode, a size between the two, and
//! every page that differs either old or new (or the zeros that a file is made longer with). Anything else is the work of others,
//! and is left alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::error::PutBackError;
use super::file;
use super::journal::{ChunkData, Entry, Journal, Old, PAGE, Progress, Source, padded_crc};

const PAGE_U64: u64 = PAGE as u64;

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is what it was, and had been all the time.
    Untouched,
    /// It is what it was again.
    Undone,
    /// Others changed it: it was left as it is.
    Foreign(&'static str),
}

/// Makes one file what it was.
///
/// # Errors
/// What the operating system refuses; the same may be tried again.
pub fn undo(
    entry: &Entry,
    progress: Progress,
    same_boot: bool,
    data: &(impl Source + ?Sized),
) -> Result<Fate, PutBackError> {
    let work = Undo { entry, progress, same_boot, data };
    let fate = match &entry.old {
        _ if progress == Progress::Undone => Ok(Fate::Untouched),
        None => work.remove(),
        Some(old) => work.restore(old),
    };
    fate.map_err(PutBackError::io("undo", &entry.path))
}

struct Undo<'a, S: ?Sized> {
    entry: &'a Entry,
    progress: Progress,
    same_boot: bool,
    data: &'a S,
}

impl<S: Source + ?Sized> Undo<'_, S> {
    fn restore(&self, old: &Old) -> io::Result<Fate> {
        let file = match file::open(&self.entry.path, true) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Fate::Foreign("it was removed")),
            // Of another kind, or a link.
            Err(error) if error.kind() == io::ErrorKind::Other => {
                return Ok(Fate::Foreign("it was replaced"));
            }
            Err(error) => return Err(error),
        };
        let facts = file.metadata()?;
        if facts.ino() != old.inode || (self.same_boot && facts.dev() != old.device) {
            return Ok(Fate::Foreign("it was replaced"));
        }
        let now = file::state(&facts);
        let as_if = |state: &super::journal::State| {
            (now.size, now.mtime_s, now.mtime_ns) == (state.size, state.mtime_s, state.mtime_ns)
        };
        if self.progress == Progress::Untouched && as_if(&old.state) {
            return Ok(Fate::Untouched);
        }
        if self.progress == Progress::Applied && !as_if(&self.entry.new) {
            return Ok(Fate::Foreign("it was changed"));
        }
        if !self.is_ours(&file, now.size)? {
            return Ok(Fate::Foreign("it was changed"));
        }
        for chunk in self.entry.chunks.iter().filter(|chunk| chunk.old_len > 0) {
            let data = Journal::data(self.data, chunk)?;
            file::write_at(&file, &data.old, chunk.offset)?;
        }
        if file.metadata()?.len() != old.state.size {
            file.set_len(old.state.size)?;
        }
        file::set_mode(&file, old.state.mode)?;
        file::set_time(&file, &old.state)?;
        file.sync_all()?;
        Ok(Fate::Undone)
    }

    /// Takes away a file that we made.
    fn remove(&self) -> io::Result<Fate> {
        let file = match file::open(&self.entry.path, false) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Fate::Untouched),
            Err(error) if error.kind() == io::ErrorKind::Other => {
                return Ok(Fate::Foreign("it was replaced"));
            }
            Err(error) => return Err(error),
        };
        // Before our name for it was noted, only a loss of power can have let it come to be.
        let foreign = self.progress == Progress::Untouched && self.same_boot;
        if foreign || !self.is_ours(&file, file.metadata()?.len())? {
            return Ok(Fate::Foreign("it was made by somebody else"));
        }
        std::fs::remove_file(&self.entry.path)?;
        file::sync_folder(&self.entry.path)?;
        Ok(Fate::Undone)
    }

    /// Whether the file, so many bytes now, can have become what it is by us alone.
    fn is_ours(&self, file: &File, size: u64) -> io::Result<bool> {
        let sizes = self.sizes();
        if size < sizes.0.min(sizes.1) || size > sizes.0.max(sizes.1) {
            return Ok(false);
        }
        for chunk in &self.entry.chunks {
            let data = Journal::data(self.data, chunk)?;
            let pages = data.old.len().div_ceil(PAGE).max(data.new.len());
            let mut bytes = vec![0; pages * PAGE];
            file::read_at(file, &mut bytes, chunk.offset)?;
            let mut at = chunk.offset;
            for (index, page) in bytes.chunks_exact(PAGE).enumerate() {
                if !is_our_page(page, at, index, &data, sizes) {
                    return Ok(false);
                }
                at += PAGE_U64;
            }
        }
        Ok(true)
    }

    /// Before and after.
    fn sizes(&self) -> (u64, u64) {
        (self.entry.old.map_or(0, |old| old.state.size), self.entry.new.size)
    }
}

/// Whether a page, at `at` in the file and filled up with zeros, is the old or the new one, or one in between.
fn is_our_page(page: &[u8], at: u64, index: usize, data: &ChunkData, (old, new): (u64, u64)) -> bool {
    if data.new.get(index).is_some_and(|checksum| *checksum == padded_crc(page)) {
        return true;
    }
    let was = data.old.get(index * PAGE..).unwrap_or_default();
    let was = &was[..was.len().min(PAGE)];
    // Only what lies below the old size will be there in the end.
    if at < old && page[..was.len()] == *was {
        return true;
    }
    let kept = usize::try_from(new.saturating_sub(at)).unwrap_or(PAGE).min(PAGE);
    let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    // The old page, cut off at the new size.
    if at < new && at < old && kept <= was.len() && page[..kept] == was[..kept] && zero(&page[kept..]) {
        return true;
    }
    at >= old.min(new) && zero(page)
}
