//! Compression of single blocks. A block that compression does not shorten is stored as it is.

use std::io;

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use zstd::bulk::{Compressor, Decompressor};

use super::BLOCK_SIZE;
use crate::records::page_stream::Compression;

/// Memory compresses well enough at the fastest level, and a program waits for it.
const ZSTD_LEVEL: i32 = 1;

/// What one thread needs to compress blocks.
pub(super) struct Encoder {
    kind: EncoderKind,
    output: Vec<u8>,
}

enum EncoderKind {
    None,
    Lz4(CompressTable),
    Zstd(Compressor<'static>),
}

impl Encoder {
    pub(super) fn new(compression: Compression) -> io::Result<Self> {
        let (kind, room) = match compression {
            Compression::None => (EncoderKind::None, 0),
            Compression::Lz4 => {
                (EncoderKind::Lz4(CompressTable::large()), get_maximum_output_size(BLOCK_SIZE))
            }
            Compression::Zstd => {
                (EncoderKind::Zstd(Compressor::new(ZSTD_LEVEL)?), zstd::compress_bound(BLOCK_SIZE))
            }
        };
        Ok(Self { kind, output: vec![0; room] })
    }

    /// The bytes to store for a block of at most [`BLOCK_SIZE`] bytes: fewer than it has, or the block itself.
    pub(super) fn encode<'a>(&'a mut self, block: &'a [u8]) -> io::Result<&'a [u8]> {
        let output = self.output.as_mut_slice();
        let length = match &mut self.kind {
            EncoderKind::None => return Ok(block),
            EncoderKind::Lz4(table) => {
                compress_into_with_table(block, output, table).map_err(io::Error::other)?
            }
            EncoderKind::Zstd(compressor) => compressor.compress_to_buffer(block, output)?,
        };
        Ok(if length < block.len() { &self.output[..length] } else { block })
    }
}

/// What one thread needs to decompress blocks.
pub(super) struct Decoder {
    kind: DecoderKind,
}

enum DecoderKind {
    None,
    Lz4,
    Zstd(Decompressor<'static>),
}

impl Decoder {
    pub(super) fn new(compression: Compression) -> io::Result<Self> {
        let kind = match compression {
            Compression::None => DecoderKind::None,
            Compression::Lz4 => DecoderKind::Lz4,
            Compression::Zstd => DecoderKind::Zstd(Decompressor::new()?),
        };
        Ok(Self { kind })
    }

    /// Fills `block` exactly from a stored block that is shorter than it, or says why not.
    pub(super) fn decode(&mut self, stored: &[u8], block: &mut [u8]) -> Result<(), String> {
        let length = match &mut self.kind {
            DecoderKind::None => return Err("shorter than its memory although not compressed".to_owned()),
            DecoderKind::Lz4 => decompress_into(stored, block).map_err(|error| error.to_string())?,
            DecoderKind::Zstd(decompressor) => {
                decompressor.decompress_to_buffer(stored, block).map_err(|error| error.to_string())?
            }
        };
        if length == block.len() {
            Ok(())
        } else {
            Err(format!("{length} bytes when decompressed, {} expected", block.len()))
        }
    }
}
