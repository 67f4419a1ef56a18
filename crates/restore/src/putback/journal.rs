//! The undo journal: what files were before they were put back, as much of them as will change.
//!
//! | part | content |
//! |---|---|
//! | header | magic, version, number of files, its own inode, checksum |
//! | progress | one byte for each file, the only part that changes later: [`Progress`] |
//! | data | for each chunk the old bytes (unless they are zeros) and the checksums of the new pages |
//! | index | what the files were and are to be, and their chunks |
//! | trailer | where the index lies, its checksum |
//!
//! It is written as `undo.new` and takes the name `undo` when it is on the disk as a whole: from then on, files may be changed. All
//! numbers are little-endian. It is hostile input, as everything in an image: what [`Journal::parse`] accepts is bounded and makes
//! sense, and bytes are compared with their checksums before they are written anywhere.

mod index;
mod write;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

pub use write::{JournalWriter, padded_crc};

/// Name of the journal in the image.
pub const NAME: &str = rewake_image::UNDO_FILE;
/// Its name while it is being written.
pub const NEW_NAME: &str = "undo.new";
/// Bytes compared, journaled and written at once.
pub const BLOCK: u32 = 64 << 10;
/// Checksums of new content are those of pages.
pub const PAGE: usize = 4096;

const MAGIC: [u8; 8] = *b"RWKUNDO\n";
const TRAILER_MAGIC: [u8; 8] = *b"RWKUEND\n";
const VERSION: u32 = 1;
const HEADER: u64 = 32;
const HEADER_LEN: usize = 32;
const TRAILER: u64 = 32;
const TRAILER_LEN: usize = 32;
/// Most files in a journal.
pub const MAX_FILES: u32 = 1 << 16;
/// Most bytes of an index: some 200 GB of differences.
pub const MAX_INDEX: u64 = 128 << 20;

/// How far a file is. What is not known for sure (after a loss of power) is told by its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// As it was.
    Untouched,
    /// Being put back.
    Applying,
    /// Put back.
    Applied,
    /// On the way to what it was.
    Undoing,
    /// As it was again.
    Undone,
}

impl Progress {
    const ALL: [Self; 5] = [Self::Untouched, Self::Applying, Self::Applied, Self::Undoing, Self::Undone];

    fn byte(self) -> u8 {
        match self {
            Self::Untouched => 0,
            Self::Applying => 1,
            Self::Applied => 2,
            Self::Undoing => 3,
            Self::Undone => 4,
        }
    }
}

/// Size, time of change and mode of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Bytes.
    pub size: u64,
    /// Time of last change, seconds since 1970.
    pub mtime_s: i64,
    /// Nanoseconds of that time.
    pub mtime_ns: u32,
    /// Permission bits.
    pub mode: u32,
}

/// The file that was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Old {
    /// Its device, which means something until the next boot.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// What it was.
    pub state: State,
}

/// A file that is put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is, absolute.
    pub path: PathBuf,
    /// What was there before; nothing if it is made anew.
    pub old: Option<Old>,
    /// What it is to be.
    pub new: State,
    /// What differs, in order of offset.
    pub chunks: Vec<Chunk>,
}

/// Up to [`BLOCK`] bytes of a file that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where in the file, a multiple of [`BLOCK`].
    pub offset: u64,
    /// Bytes the file had there.
    pub old_len: u32,
    /// Bytes it is to have there.
    pub new_len: u32,
    /// Where its old bytes lie in the journal, followed by the checksums of the new pages.
    pub data: u64,
    /// Checksum of both.
    pub checksum: u32,
    /// The old bytes are zeros and not there.
    pub zeros: bool,
}

impl Chunk {
    fn stored_old(&self) -> u64 {
        if self.zeros { 0 } else { self.old_len.into() }
    }

    fn new_pages(&self) -> u64 {
        u64::from(self.new_len).div_ceil(PAGE as u64)
    }

    /// Bytes it has in the journal.
    fn stored(&self) -> u64 {
        self.stored_old() + 4 * self.new_pages()
    }
}

/// The old bytes of a chunk, and the checksums of its new pages, filled up with zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkData {
    /// As many as the file had.
    pub old: Vec<u8>,
    /// One for each page.
    pub new: Vec<u32>,
}

/// Where a journal's bytes are.
pub trait Source {
    /// How many there are.
    ///
    /// # Errors
    /// When that cannot be known.
    fn length(&self) -> io::Result<u64>;
    /// Fills the buffer from an offset on.
    ///
    /// # Errors
    /// Also when there are not so many.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Source for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl Source for [u8] {
    fn length(&self) -> io::Result<u64> {
        u64::try_from(self.len()).map_err(io::Error::other)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let found = start.and_then(|start| self.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Where and when a journal was written: elsewhere its paths mean other files, and after a boot devices have other numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The machine's id, or its name where it has none.
    pub host: String,
    /// The boot's id.
    pub boot: String,
}

/// A whole journal, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Inode it was written as: a copy has another one, and is none.
    pub inode: u64,
    /// Where and when it was written.
    pub origin: Origin,
    /// The files.
    pub entries: Vec<Entry>,
    /// How far each is.
    pub progress: Vec<Progress>,
}

impl Journal {
    /// Parses a journal that is in memory.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] or [`io::ErrorKind::UnexpectedEof`] for what is none.
    pub fn parse(bytes: &[u8]) -> io::Result<Self> {
        Self::read(bytes)
    }

    /// Reads all of a journal but its data.
    ///
    /// # Errors
    /// As [`Journal::parse`], and those of reading.
    pub fn read(source: &(impl Source + ?Sized)) -> io::Result<Self> {
        let length = source.length()?;
        let (files, inode) = header(source)?;
        let first_data = HEADER + u64::from(files);
        let mut trailer = [0; TRAILER_LEN];
        let trailer_at = length.checked_sub(TRAILER).filter(|at| *at >= first_data).ok_or_else(cut_off)?;
        source.read(&mut trailer, trailer_at)?;
        let mut fields = index::Fields::new(&trailer);
        let (magic, at, size, checksum) =
            (fields.array()?, fields.number()?, fields.number()?, fields.short()?);
        ensure(magic == TRAILER_MAGIC && fields.short()? == crc32c::crc32c(&trailer[..28]), "its end")?;
        ensure(size <= MAX_INDEX && at >= first_data, "the place of its index")?;
        ensure(at.checked_add(size) == Some(trailer_at), "the place of its index")?;
        let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
        source.read(&mut bytes, at)?;
        ensure(crc32c::crc32c(&bytes) == checksum, "the checksum of its index")?;
        let (origin, entries) = index::decode(&bytes, files, first_data..at)?;
        let mut progress = vec![0; usize::try_from(files).map_err(io::Error::other)?];
        source.read(&mut progress, HEADER)?;
        let known = |byte: &u8| Progress::ALL.into_iter().find(|state| state.byte() == *byte);
        let progress: Option<Vec<Progress>> = progress.iter().map(known).collect();
        Ok(Self { inode, origin, entries, progress: progress.ok_or_else(|| wrong("its progress"))? })
    }

    /// Reads the data of a chunk and compares its checksum.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when it differs, and those of reading.
    pub fn data(source: &(impl Source + ?Sized), chunk: &Chunk) -> io::Result<ChunkData> {
        let mut bytes = vec![0; usize::try_from(chunk.stored()).map_err(io::Error::other)?];
        source.read(&mut bytes, chunk.data)?;
        ensure(crc32c::crc32c(&bytes) == chunk.checksum, "the checksum of old bytes")?;
        let stored = usize::try_from(chunk.stored_old()).map_err(io::Error::other)?;
        let new = bytes[stored..].chunks_exact(4).filter_map(|word| word.first_chunk::<4>());
        let new = new.map(|word| u32::from_le_bytes(*word)).collect();
        bytes.truncate(stored);
        bytes.resize(usize::try_from(chunk.old_len).map_err(io::Error::other)?, 0);
        Ok(ChunkData { old: bytes, new })
    }

    /// Notes how far a file is.
    ///
    /// # Errors
    /// Those of writing.
    pub fn note(&mut self, file: &File, index: usize, progress: Progress) -> io::Result<()> {
        let at = HEADER + u64::try_from(index).map_err(io::Error::other)?;
        file.write_all_at(&[progress.byte()], at)?;
        if let Some(noted) = self.progress.get_mut(index) {
            *noted = progress;
        }
        Ok(())
    }
}

fn header(source: &(impl Source + ?Sized)) -> io::Result<(u32, u64)> {
    let mut header = [0; HEADER_LEN];
    source.read(&mut header, 0)?;
    let mut fields = index::Fields::new(&header);
    ensure(fields.array()? == MAGIC, "its beginning")?;
    let (version, files, inode) = (fields.short()?, fields.short()?, fields.number()?);
    ensure(fields.short()? == crc32c::crc32c(&header[..24]), "its header")?;
    ensure(version == VERSION, "its version")?;
    ensure(files <= MAX_FILES, "the number of its files")?;
    Ok((files, inode))
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is not that of an undo journal"))
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it is too short for an undo journal")
}

fn ensure(holds: bool, what: &str) -> io::Result<()> {
    if holds { Ok(()) } else { Err(wrong(what)) }
}

#[cfg(test)]
mod tests;
