//! The file `pages`: memory, cut into blocks of 1 MiB that are compressed and checksummed one by one.
//!
//! The stream is all extents one behind the other. Block *i* holds its bytes from *i* MiB on; the last block may be shorter. Not
//! compressed, a byte's place in the file is its place in the stream, so a program can be woken by reads straight from the file.
//! Compressed, the blocks lie one behind the other in order; one that compression does not shorten is stored as it is.
//!
//! Blocks are worked on by several threads at once, at both ends. Nothing here happens page by page.

mod codec;
mod file;
mod reader;
mod writer;

pub use file::AlignedBuffer;
pub use reader::{BlockBuffer, PageReader};
pub use writer::PageWriter;

use crate::records::PageStream;

/// Bytes of memory in a block, but for the last one.
pub const BLOCK_SIZE: usize = 1 << 20;
/// [`BLOCK_SIZE`] as a number of the stream.
pub const BLOCK_SIZE_U64: u64 = 1 << 20;
/// Most blocks in a stream: 16 TiB of memory.
pub const MAX_BLOCKS: u64 = 1 << 24;

/// How many blocks a stream of that many bytes is cut into.
#[must_use]
pub const fn block_count(stream_length: u64) -> u64 {
    stream_length.div_ceil(BLOCK_SIZE_U64)
}

/// Bytes of memory in block `index`; 0 behind the end.
#[must_use]
pub fn block_length(stream: &PageStream, index: u64) -> u64 {
    let start = index.saturating_mul(BLOCK_SIZE_U64);
    stream.stream_length.saturating_sub(start).min(BLOCK_SIZE_U64)
}
