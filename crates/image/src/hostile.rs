//! Images as an enemy would write them: valid ones with something changed, framed again with the right checksums, so that what is
//! behind the checksums is reached. For the property tests and the fuzz targets; the same seed gives the same change.

mod wire;

use crate::container::{self, Frame, MANDATORY, Writer};
use crate::header::HEADER_LENGTH;
use crate::pages::{BLOCK_SIZE, BLOCK_SIZE_U64};
use crate::records::page_stream::Compression;
use crate::records::{Extent, PageStream};
use crate::{Image, sample};
use wire::Tree;

/// Changes made at once, at most.
const CHANGES: u64 = 4;
/// Blocks that [`with_fitting_stream`] makes up, at most.
const BLOCKS: u64 = 4096;

/// Numbers out of nothing: the same ones for the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins with a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (splitmix64).
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`, or 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// A place in something of that length.
    pub fn place(&mut self, length: usize) -> usize {
        usize::try_from(self.below(u64::try_from(length).unwrap_or(u64::MAX))).unwrap_or(0)
    }
}

/// A record: kind, flags, payload.
type Record = (u32, u32, Vec<u8>);

/// The content of a file `records` that differs from `file` in one to four places, with right checksums. What is no such file becomes
/// the sample's.
#[must_use]
pub fn mutate(file: &[u8], seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut records = records_of(file);
    for _ in 0..=random.below(CHANGES) {
        change(&mut records, &mut random);
    }
    let file = framed(&records);
    match random.below(3) {
        0 => file,
        // Extents that were changed would not fit the stream, and nothing behind that check would ever be reached.
        _ => Image::decode_unchecked(&file).ok().map_or(file, |image| encode(&with_fitting_stream(image))),
    }
}

/// `file` with its payloads run through `change`, one of them chosen by `seed`, and framed again.
#[must_use]
pub fn with_payload_changed(file: &[u8], seed: u64, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut records = records_of(file);
    let place = Random::new(seed).place(records.len());
    if let Some((_, _, payload)) = records.get_mut(place) {
        change(payload);
    }
    framed(&records)
}

/// The records encoded as [`Image::encode`] does, whether they make sense or not.
#[must_use]
pub fn encode(image: &Image) -> Vec<u8> {
    image.encode_unchecked()
}

/// The same image with a page stream that its extents fill: each has its place there, one behind the other.
#[must_use]
pub fn with_fitting_stream(mut image: Image) -> Image {
    image.manifest.root_pid = image.processes.first().map_or(0, |root| root.pid);
    let memories = image.processes.iter_mut().filter_map(|process| process.memory.as_mut());
    let owned = memories.flat_map(|memory| &mut memory.pages);
    let shared = image.shared_memory.iter_mut().flat_map(|object| &mut object.pages);
    let files = image.file_contents.iter_mut().flat_map(|content| &mut content.pages);
    let mut end = 0u64;
    let extents: Vec<&mut Extent> = owned.chain(shared).chain(files).collect();
    for extent in extents {
        extent.stream_offset = end;
        end = end.saturating_add(extent.length);
    }
    let blocks = end.div_ceil(BLOCK_SIZE_U64).min(BLOCKS);
    image.stream = PageStream {
        spare: Vec::new(),
        compression: Compression::None.into(),
        block_size: u32::try_from(BLOCK_SIZE).unwrap_or(0),
        stream_length: end,
        file_length: end,
        checksums: vec![0; usize::try_from(blocks).unwrap_or(0)],
        stored_lengths: Vec::new(),
    };
    image
}

/// The checksum of a block.
#[must_use]
pub fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c(block)
}

fn records_of(file: &[u8]) -> Vec<Record> {
    let own = |frames: Vec<Frame<'_>>| -> Vec<Record> {
        frames.iter().map(|frame| (frame.kind, frame.flags, frame.payload.to_vec())).collect()
    };
    match container::frames(file) {
        Ok(frames) if file.len() > HEADER_LENGTH => own(frames),
        _ => {
            let sample = encode(&sample::image());
            container::frames(&sample).map(own).unwrap_or_default()
        }
    }
}

fn framed(records: &[Record]) -> Vec<u8> {
    let mut writer = Writer::new();
    for (kind, flags, payload) in records {
        writer.frame(*kind, *flags, |bytes| bytes.extend_from_slice(payload));
    }
    writer.finish()
}

fn change(records: &mut Vec<Record>, random: &mut Random) {
    let place = random.place(records.len());
    let Some((kind, flags, payload)) = records.get_mut(place) else { return };
    match random.below(40) {
        0 => *kind = u32::try_from(random.below(24)).unwrap_or(0),
        1 => *flags ^= MANDATORY,
        2 => drop(records.remove(place)),
        3 => {
            let copy = records[place].clone();
            records.push(copy);
        }
        4 => {
            let other = random.place(records.len());
            records.swap(place, other);
        }
        5 => {
            let other = random.place(records.len());
            records[place].2 = records[other].2.clone();
        }
        6 => {
            let (at, byte) = (random.place(payload.len()), random.next().to_le_bytes()[0]);
            payload.get_mut(at).into_iter().for_each(|old| *old = byte);
        }
        7 => payload.truncate(random.place(payload.len())),
        _ => {
            let mut tree = Tree::parse(payload);
            tree.change(random);
            *payload = tree.encode();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_image() {
        let sample = encode(&sample::image());
        for seed in 0..200 {
            assert!(mutate(&sample, seed) == mutate(&sample, seed));
        }
    }

    #[test]
    fn checksums_are_right_and_some_images_make_sense() {
        let sample = encode(&sample::image());
        let mutated: Vec<Vec<u8>> = (0..2000).map(|seed| mutate(&sample, seed)).collect();
        for file in &mutated {
            assert!(matches!(container::frames(file), Ok(_) | Err(crate::ImageError::Damaged { .. })));
        }
        let good = mutated.iter().filter(|file| Image::decode(file).is_ok()).count();
        let other = mutated.iter().filter(|file| **file != sample).count();
        assert!(good > 100 && good < 1900, "{good} of 2000 pass: too many or too few to find anything");
        assert!(other > 1800, "{other} of 2000 differ");
    }
}
