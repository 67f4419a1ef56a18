//! Whether what looks like a held lock in an image can be taken for one.

use rewake_image::records::Extent;
use rewake_image::{Image, ImageError, PageReader};

use super::{Ids, SMALL, WORDS};

/// The address near words in an image that may be a lock held by a thread, or not, where ids are too small to tell.
///
/// # Errors
/// When its pages cannot be read.
pub fn doubtful(image: &Image, reader: &PageReader) -> Result<Option<u64>, ImageError> {
    let threads = || image.root().threads.iter().map(|thread| thread.tid);
    if threads().all(|tid| tid >= SMALL) {
        return Ok(None);
    }
    let mut search = Search {
        ids: Ids::new(threads().map(|tid| (tid, tid + 1))),
        reader,
        block_size: u64::from(image.stream.block_size).max(1),
        block: Vec::new(),
        number: None,
        words: Vec::new(),
        end: 0,
    };
    for extent in image.root().memory.iter().flat_map(|memory| &memory.pages) {
        if let Some(address) = search.look_through(extent)? {
            return Ok(Some(address));
        }
    }
    Ok(None)
}

struct Search<'a> {
    ids: Ids,
    reader: &'a PageReader,
    block_size: u64,
    /// What was read last, and which one it is.
    block: Vec<u8>,
    number: Option<u64>,
    /// What was looked through last, and where it ended: locks may reach from one piece of memory into the next.
    words: Vec<u32>,
    end: u64,
}

impl Search<'_> {
    fn look_through(&mut self, extent: &Extent) -> Result<Option<u64>, ImageError> {
        let mut done = 0;
        while done < extent.length {
            let (address, from) = (extent.address + done, extent.stream_offset + done);
            self.read(from / self.block_size)?;
            let within = usize::try_from(from % self.block_size).unwrap_or(usize::MAX);
            let left = usize::try_from(extent.length - done).unwrap_or(usize::MAX);
            let piece = self.block.get(within..).unwrap_or_default();
            let piece = &piece[..left.min(piece.len())];
            if piece.is_empty() {
                return Ok(None);
            }
            done += piece.len() as u64;
            let kept = if address == self.end { self.words.len().min(WORDS) } else { 0 };
            self.words.drain(..self.words.len() - kept);
            let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
            self.words.extend(piece.chunks_exact(4).map(word));
            self.end = extent.address + done;
            let mut found = false;
            self.ids.each(&mut self.words, &mut |_, words| found |= self.ids.is_doubtful(words));
            if found {
                return Ok(Some(address));
            }
        }
        Ok(None)
    }

    fn read(&mut self, number: u64) -> Result<(), ImageError> {
        if self.number != Some(number) {
            let mut buffer = self.reader.buffer()?;
            self.block = self.reader.read_block(number, &mut buffer)?.to_vec();
            self.number = Some(number);
        }
        Ok(())
    }
}
