//! `verify` looks at every bit: whichever one of an image is flipped, it finds it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rewake_image::{Compression, FILES, Image, PAGE_SIZE, PageWriter, PendingImage, sample, verify};

/// Bits flipped per image, one at a time.
const FLIPS: u64 = 2000;
/// Pages of shared memory in the image, besides those of the sample: some blocks and a half.
const PAGES: u64 = 3 * 256 + 128;

/// The same sequence in every run (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// An image with several blocks of memory that compresses half-way, in `target`.
fn write_image(target: &Path, compression: Compression) {
    let mut rng = Random(7);
    let mut memory = sample::pages();
    for page in 0..PAGES {
        let mut bytes = [u8::try_from(page % 251).unwrap(); 4096];
        let noise = if page % 512 < 256 { 2048 } else { 4096 };
        bytes[..noise].chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&rng.next().to_le_bytes()));
        memory.extend_from_slice(&bytes);
    }
    let pending = PendingImage::create(target).unwrap();
    let writer = PageWriter::create(&pending, compression).unwrap();
    for (index, block) in (0..).zip(memory.chunks(rewake_image::BLOCK_SIZE)) {
        writer.block(index, block).unwrap();
    }
    let mut image = Image { stream: writer.finish().unwrap(), ..sample::image() };
    let object = &mut image.shared_memory[0];
    object.size = (2 + PAGES) * PAGE_SIZE;
    object.pages[0].length += PAGES * PAGE_SIZE;
    pending.write_records(&image).unwrap();
    pending.commit().unwrap();
}

fn every_flipped_bit_is_found(compression: Compression) {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("image");
    write_image(&target, compression);
    let whole = verify(&target, |_, _| ()).unwrap();
    let files = FILES.map(|name| {
        let path = target.join(name);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let bits = file.metadata().unwrap().len() * 8;
        (name, file, bits)
    });
    assert_eq!(files.iter().map(|(_, _, bits)| bits / 8).sum::<u64>(), whole.bytes);
    let mut rng = Random(1);
    for flip in 0..FLIPS {
        // Half of them in the records, which are so much smaller.
        let (name, file, bits) = &files[usize::try_from(flip % 2).unwrap()];
        let bit = rng.next() % bits;
        let mut byte = [0];
        file.read_exact_at(&mut byte, bit / 8).unwrap();
        let flipped = [byte[0] ^ (1 << (bit % 8))];
        file.write_all_at(&flipped, bit / 8).unwrap();
        let result = verify(&target, |_, _| ());
        file.write_all_at(&byte, bit / 8).unwrap();
        assert!(result.is_err(), "{name}: bit {} of byte {}", bit % 8, bit / 8);
    }
    assert_eq!(verify(&target, |_, _| ()).unwrap(), whole);
}

#[test]
fn raw() {
    every_flipped_bit_is_found(Compression::None);
}

#[test]
fn lz4() {
    every_flipped_bit_is_found(Compression::Lz4);
}

#[test]
fn zstd() {
    every_flipped_bit_is_found(Compression::Zstd);
}
