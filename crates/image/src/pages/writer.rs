//! Writing the file `pages` from several threads.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use super::codec::Encoder;
use super::file::PagesFile;
use super::{BLOCK_SIZE, BLOCK_SIZE_U64, MAX_BLOCKS};
use crate::records::PageStream;
use crate::records::page_stream::Compression;
use crate::{ImageError, PAGES_FILE, PendingImage};

/// Writes blocks of memory; shared by the threads that read them.
///
/// Each block is handed over once, by any thread, in any order. Compressed blocks that come out before their turn wait in memory
/// for the missing one, so threads should take the blocks in order.
pub struct PageWriter {
    file: PagesFile,
    path: PathBuf,
    compression: Compression,
    blocks: Mutex<Blocks>,
    encoders: Mutex<Vec<Encoder>>,
}

impl fmt::Debug for PageWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageWriter")
            .field("path", &self.path)
            .field("compression", &self.compression)
            .finish()
    }
}

/// What is known about the blocks so far.
#[derive(Default)]
struct Blocks {
    /// By index; `None` where none has come yet.
    done: Vec<Option<Block>>,
    /// Compressed blocks that came before their turn.
    waiting: BTreeMap<u64, Vec<u8>>,
    /// The compressed block whose turn it is, and where it will lie.
    next: u64,
    end: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Block {
    checksum: u32,
    stored: u32,
    length: u32,
}

impl Block {
    /// A block of `length` bytes of memory that is stored as `stored`.
    fn new(stored: &[u8], length: usize) -> Self {
        Self {
            checksum: crc32c::crc32c(stored),
            stored: u32::try_from(stored.len()).expect("a block fits into 32 bits"),
            length: u32::try_from(length).expect("a block fits into 32 bits"),
        }
    }
}

impl PageWriter {
    /// Makes the file `pages` of an image.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn create(image: &PendingImage, compression: Compression) -> Result<Self, ImageError> {
        let file = image.create_file(PAGES_FILE)?;
        let path = image.path().join(PAGES_FILE);
        let file = PagesFile::new(file);
        Ok(Self { file, path, compression, blocks: Mutex::default(), encoders: Mutex::default() })
    }

    /// Takes room on the disk for a stream of `length` bytes that is not compressed.
    ///
    /// # Errors
    /// [`ImageError::Io`] when there is not as much.
    pub fn reserve(&self, length: u64) -> Result<(), ImageError> {
        if self.compression != Compression::None {
            return Ok(());
        }
        self.file.reserve(length).map_err(ImageError::io("write", &self.path))
    }

    /// Whether the disk has as much free, as far as it tells.
    #[must_use]
    pub fn has_room(&self, bytes: u64) -> bool {
        self.file.available().is_ok_and(|available| available >= bytes)
    }

    /// Writes block `index`: [`BLOCK_SIZE`] bytes, or fewer when it is the last.
    ///
    /// # Errors
    /// [`ImageError::Io`], for instance when the disk is full; [`ImageError::Pages`] for an impossible index or length, or a block
    /// that has come before.
    pub fn block(&self, index: u64, bytes: &[u8]) -> Result<(), ImageError> {
        if index >= MAX_BLOCKS || bytes.is_empty() || bytes.len() > BLOCK_SIZE {
            return Err(misuse(format!("block {index} of {} bytes is impossible", bytes.len())));
        }
        match self.compression {
            Compression::None => {
                let block = Block::new(bytes, bytes.len());
                self.blocks().add(index, block)?;
                self.write(bytes, index * BLOCK_SIZE_U64)
            }
            Compression::Lz4 | Compression::Zstd => self.compressed_block(index, bytes),
        }
    }

    /// Whether these are, as far as checksums tell, the bytes that were written as block `index`.
    ///
    /// # Errors
    /// [`ImageError::Io`] when they cannot be compressed.
    pub fn is_block(&self, index: u64, bytes: &[u8]) -> Result<bool, ImageError> {
        let block = match self.compression {
            Compression::None => Block::new(bytes, bytes.len()),
            Compression::Lz4 | Compression::Zstd => {
                let mut encoder = self.encoder()?;
                let stored = encoder.encode(bytes).map_err(ImageError::io("compress", &self.path))?;
                let block = Block::new(stored, bytes.len());
                self.encoders.lock().expect("no holder of this lock panics").push(encoder);
                block
            }
        };
        let written = usize::try_from(index).ok().and_then(|index| *self.blocks().done.get(index)?);
        Ok(written == Some(block))
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`ImageError::Pages`] when a block is missing, or one that is not the last is short.
    pub fn finish(self) -> Result<PageStream, ImageError> {
        let blocks = self.blocks.into_inner().expect("no holder of this lock panics");
        let mut stream = PageStream {
            compression: self.compression.into(),
            block_size: u32::try_from(BLOCK_SIZE).expect("1 MiB fits into 32 bits"),
            checksums: Vec::with_capacity(blocks.done.len()),
            ..PageStream::default()
        };
        let last = blocks.done.len().saturating_sub(1);
        for (index, block) in blocks.done.iter().enumerate() {
            let block = block.ok_or_else(|| misuse(format!("block {index} was never written")))?;
            if index != last && u64::from(block.length) != BLOCK_SIZE_U64 {
                return Err(misuse(format!("block {index} is short and not the last")));
            }
            stream.stream_length += u64::from(block.length);
            stream.file_length += u64::from(block.stored);
            stream.checksums.push(block.checksum);
            if self.compression != Compression::None {
                stream.stored_lengths.push(block.stored);
            }
        }
        Ok(stream)
    }

    /// Compresses a block and writes all blocks whose turn has come by that.
    fn compressed_block(&self, index: u64, bytes: &[u8]) -> Result<(), ImageError> {
        let mut encoder = self.encoder()?;
        let stored = encoder.encode(bytes).map_err(ImageError::io("compress", &self.path))?;
        let block = Block::new(stored, bytes.len());
        let (own, others) = {
            let mut blocks = self.blocks();
            blocks.add(index, block)?;
            blocks.take_turn(index, stored)
        };
        if let Some(offset) = own {
            self.write(stored, offset)?;
        }
        for (offset, stored) in others {
            self.write(&stored, offset)?;
        }
        self.encoders.lock().expect("no holder of this lock panics").push(encoder);
        Ok(())
    }

    /// An encoder that no other thread is using.
    fn encoder(&self) -> Result<Encoder, ImageError> {
        let idle = self.encoders.lock().expect("no holder of this lock panics").pop();
        match idle {
            Some(encoder) => Ok(encoder),
            None => Encoder::new(self.compression).map_err(ImageError::io("compress", &self.path)),
        }
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), ImageError> {
        self.file.write(bytes, offset).map_err(ImageError::io("write", &self.path))
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().expect("no holder of this lock panics")
    }
}

impl Blocks {
    /// Notes a block, once.
    fn add(&mut self, index: u64, block: Block) -> Result<(), ImageError> {
        let place = usize::try_from(index).expect("checked against MAX_BLOCKS");
        if place >= self.done.len() {
            self.done.resize(place + 1, None);
        }
        match self.done[place].replace(block) {
            None => Ok(()),
            Some(_) => Err(misuse(format!("block {index} was written twice"))),
        }
    }

    /// Gives a block its place if it is its turn, and the blocks that waited for it theirs; else lets it wait.
    fn take_turn(&mut self, index: u64, stored: &[u8]) -> (Option<u64>, Vec<(u64, Vec<u8>)>) {
        let mut others = Vec::new();
        if index != self.next {
            self.waiting.insert(index, stored.to_vec());
            return (None, others);
        }
        let own = self.advance(stored.len());
        while let Some(stored) = self.waiting.remove(&self.next) {
            others.push((self.advance(stored.len()), stored));
        }
        (Some(own), others)
    }

    /// The place of the block whose turn it is; then it is the next one's.
    fn advance(&mut self, stored: usize) -> u64 {
        let offset = self.end;
        self.end += u64::try_from(stored).expect("a block fits into 64 bits");
        self.next += 1;
        offset
    }
}

fn misuse(detail: String) -> ImageError {
    ImageError::Pages { detail }
}
