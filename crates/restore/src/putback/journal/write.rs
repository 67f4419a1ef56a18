//! A journal while it is written.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;

use super::{
    Chunk, Entry, HEADER, Journal, MAGIC, MAX_FILES, MAX_INDEX, Origin, PAGE, Progress, TRAILER_MAGIC,
    VERSION, index,
};

/// Appends to a journal's file.
#[derive(Debug)]
pub struct JournalWriter {
    file: File,
    inode: u64,
    files: u32,
    at: u64,
    entries: Vec<Entry>,
}

impl JournalWriter {
    /// Begins in an empty file, with room for the progress of at most so many files.
    ///
    /// # Errors
    /// Those of writing.
    pub fn begin(mut file: File, files: usize) -> io::Result<Self> {
        let files = u32::try_from(files).ok().filter(|files| *files <= MAX_FILES);
        let files = files.ok_or_else(|| io::Error::other("too many files for one journal"))?;
        let inode = file.metadata()?.ino();
        // The header comes last, when the number of files is known.
        file.write_all(&vec![0; usize::try_from(HEADER + u64::from(files)).map_err(io::Error::other)?])?;
        Ok(Self { file, inode, files, at: HEADER + u64::from(files), entries: Vec::new() })
    }

    /// Writes the old bytes of a chunk and the checksums of the new ones.
    ///
    /// # Errors
    /// Those of writing.
    pub fn chunk(&mut self, offset: u64, old: &[u8], new: &[u8]) -> io::Result<Chunk> {
        let zeros = old.iter().all(|byte| *byte == 0);
        let mut bytes = if zeros { Vec::new() } else { old.to_vec() };
        bytes.extend(new.chunks(PAGE).flat_map(|page| padded_crc(page).to_le_bytes()));
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
        let chunk = Chunk {
            offset,
            old_len: length(old)?,
            new_len: length(new)?,
            data: self.at,
            checksum: crc32c::crc32c(&bytes),
            zeros,
        };
        self.file.write_all(&bytes)?;
        self.at += chunk.stored();
        Ok(chunk)
    }

    /// Adds a file, whose chunks are written.
    pub fn entry(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Whether there is no file in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Writes the rest and waits until all of it is on the disk.
    ///
    /// # Errors
    /// Those of writing; more than fits an index.
    pub fn finish(mut self, origin: Origin) -> io::Result<(File, Journal)> {
        let count = u32::try_from(self.entries.len()).ok().filter(|count| *count <= self.files);
        let count =
            count.ok_or_else(|| io::Error::other("the journal has more files than it was made for"))?;
        let bytes = index::encode(&origin, &self.entries)?;
        let size = u64::try_from(bytes.len()).map_err(io::Error::other)?;
        if size > MAX_INDEX {
            return Err(io::Error::other("the files differ in more than a journal can hold"));
        }
        self.file.write_all(&bytes)?;
        let mut trailer = TRAILER_MAGIC.to_vec();
        trailer.extend_from_slice(&self.at.to_le_bytes());
        trailer.extend_from_slice(&size.to_le_bytes());
        trailer.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        trailer.extend_from_slice(&crc32c::crc32c(&trailer).to_le_bytes());
        self.file.write_all(&trailer)?;
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&count.to_le_bytes());
        header.extend_from_slice(&self.inode.to_le_bytes());
        header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        std::os::unix::fs::FileExt::write_all_at(&self.file, &header, 0)?;
        self.file.sync_all()?;
        let progress = vec![Progress::Untouched; self.entries.len()];
        let journal = Journal { inode: self.inode, origin, entries: self.entries, progress };
        Ok((self.file, journal))
    }
}

/// Checksum of a page, filled up with zeros.
pub fn padded_crc(page: &[u8]) -> u32 {
    if page.len() == PAGE {
        return crc32c::crc32c(page);
    }
    let mut whole = [0; PAGE];
    whole[..page.len()].copy_from_slice(page);
    crc32c::crc32c(&whole)
}
