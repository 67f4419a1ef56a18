//! What differs between a file and its saved content, written into the journal. Nothing is changed here.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rewake_image::records::FileContent;
use rustix::fs::{Access, AtFlags, CWD};

use super::error::PutBackError;
use super::journal::{BLOCK, Chunk, Entry, JournalWriter, Old, State};
use super::saved::{self, Saved};
use super::{file, others};
use crate::streams::Streams;

const PERMISSIONS: u32 = 0o7777;
const BLOCK_U64: u64 = BLOCK as u64;
const BLOCK_LEN: usize = BLOCK as usize;

/// What a file was when it was last looked at: any change by others shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    device: u64,
    inode: u64,
    state: State,
    ctime: (i64, i64),
}

impl Seen {
    /// Of these facts.
    #[must_use]
    pub fn of(facts: &Metadata) -> Self {
        Self {
            device: facts.dev(),
            inode: facts.ino(),
            state: file::state(facts),
            ctime: (facts.ctime(), facts.ctime_nsec()),
        }
    }
}

/// A file that differs.
#[derive(Debug)]
pub struct Different {
    /// For the journal.
    pub entry: Entry,
    /// What was looked at; nothing if there is no such file.
    pub seen: Option<Seen>,
}

/// Compares a file with its saved content, and writes what differs into the journal. `None` if nothing does.
///
/// # Errors
/// When others write to the file, when it could not be put back, and those of reading and writing.
pub fn examine(
    content: &FileContent,
    saved: &mut Saved<'_>,
    (journal, journal_path): (&mut JournalWriter, &Path),
    streams: &Streams,
) -> Result<Option<Different>, PutBackError> {
    let Some(identity) = &content.identity else { return Ok(None) };
    let path = identity.as_path();
    let new = State {
        size: identity.size,
        mtime_s: identity.mtime_s,
        mtime_ns: identity.mtime_ns,
        mode: identity.mode & PERMISSIONS,
    };
    let file = file::open(path, false).map_err(PutBackError::io("open", path))?;
    let (old, seen) = match &file {
        None => {
            check_folder(path)?;
            (None, None)
        }
        Some(file) => {
            others::refuse_writers(path, file, streams)?;
            check_changeable(path)?;
            let facts = file.metadata().map_err(PutBackError::io("stat", path))?;
            let old = Old { device: facts.dev(), inode: facts.ino(), state: file::state(&facts) };
            (Some(old), Some(Seen::of(&facts)))
        }
    };
    let mut sink = |offset, old: &[u8], new: &[u8]| {
        journal.chunk(offset, old, new).map_err(PutBackError::io("write", journal_path))
    };
    let chunks =
        differences(path, file.as_ref().zip(old.map(|old| old.state.size)), content, saved, &mut sink)?;
    if let (Some(file), Some(seen)) = (&file, seen)
        && Seen::of(&file.metadata().map_err(PutBackError::io("stat", path))?) != seen
    {
        return Err(PutBackError::Moving { path: path.to_owned() });
    }
    let same = |old: Old| State { mode: new.mode, ..old.state } == new;
    if chunks.is_empty() && old.is_some_and(same) {
        return Ok(None);
    }
    Ok(Some(Different { entry: Entry { path: path.to_owned(), old, new, chunks }, seen }))
}

/// Whether a file's bytes differ from its saved content; for those whose size and time say nothing.
///
/// # Errors
/// Those of reading.
pub fn differs(content: &FileContent, saved: &mut Saved<'_>) -> Result<bool, PutBackError> {
    let Some(identity) = &content.identity else { return Ok(false) };
    let path = identity.as_path();
    let Some(file) = file::open(path, false).map_err(PutBackError::io("open", path))? else {
        return Ok(true);
    };
    let size = file.metadata().map_err(PutBackError::io("stat", path))?.len();
    let mut found = |offset, old: &[u8], new: &[u8]| {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(BLOCK);
        let (old_len, new_len) = (length(old), length(new));
        Ok(Chunk { offset, old_len, new_len, data: 0, checksum: 0, zeros: false })
    };
    Ok(size != identity.size
        || !differences(path, Some((&file, size)), content, saved, &mut found)?.is_empty())
}

/// Takes a block that differs: its offset, its old and its new bytes.
type Sink<'a> = dyn FnMut(u64, &[u8], &[u8]) -> Result<Chunk, PutBackError> + 'a;

/// Goes over all blocks where either side has data, and hands those that differ to `sink`.
fn differences(
    path: &Path,
    old: Option<(&File, u64)>,
    content: &FileContent,
    saved: &mut Saved<'_>,
    sink: &mut Sink<'_>,
) -> Result<Vec<Chunk>, PutBackError> {
    let new_size = content.identity.as_ref().map_or(0, |identity| identity.size);
    let (mut was, mut is) = (vec![0; BLOCK_LEN], vec![0; BLOCK_LEN]);
    let (mut chunks, mut at) = (Vec::new(), 0);
    loop {
        let old_data = match old {
            Some((file, size)) => file::next_data(file, at, size).map_err(PutBackError::io("lseek", path))?,
            None => None,
        };
        let Some(next) = old_data.into_iter().chain(saved::next_data(content, at)).min() else { break };
        let offset = next - next % BLOCK_U64;
        let part =
            |size: u64| usize::try_from(size.saturating_sub(offset).min(BLOCK_U64)).unwrap_or(BLOCK_LEN);
        let (old_len, new_len) = (part(old.map_or(0, |(_, size)| size)), part(new_size));
        if let Some((file, _)) = old {
            let read =
                file::read_at(file, &mut was[..old_len], offset).map_err(PutBackError::io("read", path))?;
            if read < old_len {
                return Err(PutBackError::Moving { path: path.to_owned() });
            }
        }
        saved.read(content, offset, &mut is[..new_len])?;
        let (was, is) = (&was[..old_len], &is[..new_len]);
        // What is cut off and was zeros comes back by itself.
        if was != is && !(is.is_empty() && was.iter().all(|byte| *byte == 0)) {
            chunks.push(sink(offset, was, is)?);
        }
        at = offset + BLOCK_U64;
    }
    Ok(chunks)
}

/// A file can be made here.
fn check_folder(path: &Path) -> Result<(), PutBackError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    rustix::fs::accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(PutBackError::io("create", path))
}

/// We may write to the file and set its times; that is tried, with the time it has.
fn check_changeable(path: &Path) -> Result<(), PutBackError> {
    let file = file::open(path, true).map_err(PutBackError::io("open for writing", path))?;
    let Some(file) = file else { return Err(PutBackError::Moving { path: path.to_owned() }) };
    let facts = file.metadata().map_err(PutBackError::io("stat", path))?;
    file::set_time(&file, &file::state(&facts)).map_err(PutBackError::io("set the time", path))
}
