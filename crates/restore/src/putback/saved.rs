//! Content of files as the image has it.

use rewake_image::records::{Extent, FileContent};
use rewake_image::{BlockBuffer, ImageError, PageReader};

/// Reads saved content. Every block of the page stream is compared with its checksum before anything of it is used.
pub struct Saved<'a> {
    reader: &'a PageReader,
    buffer: BlockBuffer,
    /// The block read last, and its number.
    held: Option<(u64, Vec<u8>)>,
}

impl<'a> Saved<'a> {
    /// Reads from this page stream.
    ///
    /// # Errors
    /// When there is no decompressor.
    pub fn new(reader: &'a PageReader) -> Result<Self, ImageError> {
        Ok(Self { reader, buffer: reader.buffer()?, held: None })
    }

    /// Fills `out` with the content from `offset` on; zeros where it has a hole, and behind its end.
    ///
    /// # Errors
    /// A damaged block.
    pub fn read(&mut self, content: &FileContent, offset: u64, out: &mut [u8]) -> Result<(), ImageError> {
        out.fill(0);
        let length = u64::try_from(out.len()).unwrap_or(u64::MAX);
        let size = content.identity.as_ref().map_or(0, |identity| identity.size);
        let end = offset.saturating_add(length).min(size);
        let first = content.pages.partition_point(|extent| extent.end().is_none_or(|end| end <= offset));
        for extent in content.pages[first..].iter().take_while(|extent| extent.address < end) {
            let from = extent.address.max(offset);
            let to = extent.end().unwrap_or(from).min(end);
            let (Ok(at), Ok(until)) = (usize::try_from(from - offset), usize::try_from(to - offset)) else {
                continue;
            };
            let stream = extent.stream_offset.saturating_add(from - extent.address);
            self.stream(stream, &mut out[at..until])?;
        }
        Ok(())
    }

    /// Bytes of the page stream.
    fn stream(&mut self, mut offset: u64, mut out: &mut [u8]) -> Result<(), ImageError> {
        while !out.is_empty() {
            let index = offset / rewake_image::pages::BLOCK_SIZE_U64;
            let start = self.reader.stream_range(index).start;
            if self.held.as_ref().is_none_or(|(held, _)| *held != index) {
                let block = self.reader.read_block(index, &mut self.buffer)?.to_vec();
                self.held = Some((index, block));
            }
            let block = self.held.as_ref().map_or(&[][..], |(_, block)| block);
            let behind = || ImageError::Pages { detail: format!("there is nothing at {offset}") };
            let from = usize::try_from(offset - start).ok().filter(|from| *from < block.len());
            let from = from.ok_or_else(behind)?;
            let count = (block.len() - from).min(out.len());
            out[..count].copy_from_slice(&block[from..from + count]);
            out = &mut out[count..];
            offset = offset.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        }
        Ok(())
    }
}

/// Where the content is no hole, from `offset` on: the first byte of the next extent.
pub fn next_data(content: &FileContent, offset: u64) -> Option<u64> {
    let size = content.identity.as_ref().map_or(0, |identity| identity.size);
    let at = content.pages.partition_point(|extent| extent.end().is_none_or(|end| end <= offset));
    let next = content.pages.get(at).map(|extent: &Extent| extent.address.max(offset));
    next.filter(|next| *next < size)
}
