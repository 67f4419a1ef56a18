//! Reading and checking the file `pages`, from several threads.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::codec::Decoder;
use super::{BLOCK_SIZE, BLOCK_SIZE_U64, block_length};
use crate::image::{open_directory, open_regular};
use crate::records::PageStream;
use crate::records::page_stream::Compression;
use crate::{ImageError, PAGES_FILE, check};

/// The page stream of an image on disk. All methods take `&self` and read with pread: threads share it.
#[derive(Debug)]
pub struct PageReader {
    file: File,
    path: PathBuf,
    image: PathBuf,
    compression: Compression,
    stream: PageStream,
    /// Where each block begins in the file, and where the last one ends; empty when not compressed.
    offsets: Vec<u64>,
}

/// What one thread needs to read blocks; see [`PageReader::buffer`].
pub struct BlockBuffer {
    decoder: Decoder,
    stored: Vec<u8>,
    block: Vec<u8>,
}

impl fmt::Debug for BlockBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockBuffer").finish_non_exhaustive()
    }
}

impl PageReader {
    /// Opens the file `pages` of the image in the directory `image`, whose records say `stream`.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] when `stream` makes no sense, [`ImageError::Damaged`] when the file's length differs, else
    /// [`ImageError::Io`].
    pub fn open(image: &Path, stream: &PageStream) -> Result<Self, ImageError> {
        Self::open_at(open_directory(image)?, image, stream)
    }

    /// The same in a directory that is open already, whatever has its name `image` by now.
    ///
    /// # Errors
    /// As [`PageReader::open`].
    pub fn open_at(directory: impl AsFd, image: &Path, stream: &PageStream) -> Result<Self, ImageError> {
        check::stream(stream).map_err(|error| error.in_image(image))?;
        let (file, length) = open_regular(directory, image, PAGES_FILE)?;
        if length != stream.file_length {
            let detail = format!("it has {length} bytes, {} expected", stream.file_length);
            let error =
                ImageError::Damaged { file: PAGES_FILE, part: "the file".to_owned(), offset: 0, detail };
            return Err(error.in_image(image));
        }
        let mut offsets = Vec::new();
        let compression = stream.compression();
        if compression != Compression::None {
            offsets.reserve_exact(stream.stored_lengths.len() + 1);
            offsets.push(0);
            let mut end = 0;
            for length in &stream.stored_lengths {
                end += u64::from(*length);
                offsets.push(end);
            }
        }
        let path = image.join(PAGES_FILE);
        Ok(Self { file, path, image: image.to_owned(), compression, stream: stream.clone(), offsets })
    }

    /// What the records say about the stream.
    #[must_use]
    pub const fn stream(&self) -> &PageStream {
        &self.stream
    }

    /// The file itself. When not compressed, offsets in it are offsets in the stream.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Whether blocks have to be decompressed.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        self.compression != Compression::None
    }

    /// How many blocks there are.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        super::block_count(self.stream.stream_length)
    }

    /// Which bytes of the stream block `index` holds; an empty range behind the end.
    #[must_use]
    pub fn stream_range(&self, index: u64) -> Range<u64> {
        let start = index.saturating_mul(BLOCK_SIZE_U64);
        start..start.saturating_add(block_length(&self.stream, index))
    }

    /// Bytes of block `index` in the file; 0 behind the end.
    #[must_use]
    pub fn stored_length(&self, index: u64) -> u64 {
        if self.is_compressed() {
            let stored = usize::try_from(index).ok().and_then(|at| self.stream.stored_lengths.get(at));
            stored.copied().map_or(0, u64::from)
        } else {
            block_length(&self.stream, index)
        }
    }

    /// A buffer for one thread.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the decompressor cannot be made.
    pub fn buffer(&self) -> Result<BlockBuffer, ImageError> {
        let decoder = Decoder::new(self.compression).map_err(ImageError::io("decompress", &self.path))?;
        let stored = if self.is_compressed() { vec![0; BLOCK_SIZE] } else { Vec::new() };
        Ok(BlockBuffer { decoder, stored, block: vec![0; BLOCK_SIZE] })
    }

    /// Compares the checksum of a block as it lies in the file.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] naming the block, [`ImageError::Io`], or [`ImageError::Pages`] behind the end.
    pub fn verify_block(&self, index: u64, buffer: &mut BlockBuffer) -> Result<(), ImageError> {
        let place = self.place(index)?;
        let stored = if self.is_compressed() { &mut buffer.stored } else { &mut buffer.block };
        self.read_stored(&place, stored).map(drop)
    }

    /// The memory in a block, its checksum compared and decompressed.
    ///
    /// # Errors
    /// As [`PageReader::verify_block`].
    pub fn read_block<'b>(&self, index: u64, buffer: &'b mut BlockBuffer) -> Result<&'b [u8], ImageError> {
        let place = self.place(index)?;
        let BlockBuffer { decoder, stored, block } = buffer;
        let block = &mut block[..place.length];
        if place.stored == place.length {
            self.read_stored(&place, block)?;
        } else {
            let stored = self.read_stored(&place, stored)?;
            decoder.decode(stored, block).map_err(|detail| self.damaged(&place, detail))?;
        }
        Ok(block)
    }

    /// Where a block lies and how long it is.
    fn place(&self, index: u64) -> Result<Place, ImageError> {
        let behind = || ImageError::Pages { detail: format!("there is no block {index}") };
        let at = usize::try_from(index).map_err(|_| behind())?;
        let checksum = *self.stream.checksums.get(at).ok_or_else(behind)?;
        let length = usize::try_from(block_length(&self.stream, index)).map_err(|_| behind())?;
        let (offset, stored) = if self.is_compressed() {
            let stored = usize::try_from(self.stream.stored_lengths[at]).map_err(|_| behind())?;
            (self.offsets[at], stored)
        } else {
            (index * BLOCK_SIZE_U64, length)
        };
        Ok(Place { index, offset, stored, length, checksum })
    }

    /// Reads a block as it lies in the file into the beginning of `buffer` and compares its checksum.
    fn read_stored<'b>(&self, place: &Place, buffer: &'b mut [u8]) -> Result<&'b [u8], ImageError> {
        let stored = &mut buffer[..place.stored];
        self.file.read_exact_at(stored, place.offset).map_err(ImageError::io("read", &self.path))?;
        if crc32c::crc32c(stored) == place.checksum {
            Ok(stored)
        } else {
            Err(self.damaged(place, "checksum differs".to_owned()))
        }
    }

    fn damaged(&self, place: &Place, detail: String) -> ImageError {
        let part = format!("block {}", place.index);
        ImageError::Damaged { file: PAGES_FILE, part, offset: place.offset, detail }.in_image(&self.image)
    }
}

/// A block in the file. `stored` and `length` are at most [`BLOCK_SIZE`]: [`check::stream`] has seen to that.
struct Place {
    index: u64,
    offset: u64,
    /// Bytes in the file.
    stored: usize,
    /// Bytes of memory.
    length: usize,
    checksum: u32,
}
