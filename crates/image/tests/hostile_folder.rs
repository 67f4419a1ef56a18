//! A hostile page stream and a hostile folder: what the fuzz targets `pages` and `directory` ask, a few thousand times.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use rewake_image::records::PageStream;
use rewake_image::{
    BLOCK_SIZE, Compression, Image, PAGE_SIZE, PAGES_FILE, PageReader, RECORDS_FILE, hostile, sample, store,
    verify,
};

/// What the records say of a file of pages: lengths and checksums that fit, or nearly.
#[derive(Clone, Debug)]
struct Claims {
    compression: Compression,
    stream_pages: u64,
    checksum_is_right: bool,
    more: (i64, i64, usize, usize),
}

fn claims() -> impl Strategy<Value = Claims> {
    let compression = prop::sample::select(vec![Compression::None, Compression::Lz4, Compression::Zstd]);
    let near = || prop_oneof![6 => Just(0i64), 1 => -2..3i64, 1 => any::<i64>()];
    let more = (near(), near(), 0..2usize, 0..2usize);
    (compression, 0..600u64, any::<bool>(), more).prop_map(
        |(compression, stream_pages, checksum_is_right, more)| Claims {
            compression,
            stream_pages,
            checksum_is_right,
            more,
        },
    )
}

fn stream(claims: &Claims, file: &[u8]) -> PageStream {
    let stored = file.len() / usize::try_from(claims.stream_pages.div_ceil(256).max(1)).unwrap();
    let blocks: Vec<&[u8]> = if stored == 0 { vec![file] } else { file.chunks(stored).collect() };
    let sum = |block: &&[u8]| if claims.checksum_is_right { hostile::checksum(block) } else { 1 };
    let length = |block: &&[u8]| u32::try_from(block.len()).unwrap();
    let (stream_more, file_more, checksums_more, lengths_more) = claims.more;
    let mut stream = PageStream {
        spare: Vec::new(),
        compression: claims.compression.into(),
        block_size: u32::try_from(BLOCK_SIZE).unwrap(),
        stream_length: (claims.stream_pages * PAGE_SIZE).wrapping_add_signed(stream_more),
        file_length: u64::try_from(file.len()).unwrap().wrapping_add_signed(file_more),
        checksums: blocks.iter().map(sum).collect(),
        stored_lengths: blocks.iter().map(length).collect(),
    };
    if claims.compression == Compression::None {
        stream.stored_lengths.clear();
    }
    stream.checksums.extend(std::iter::repeat_n(0, checksums_more));
    stream.stored_lengths.extend(std::iter::repeat_n(u32::MAX, lengths_more));
    stream
}

/// Blocks of memory as a writer would store them, with some bytes changed.
fn files() -> impl Strategy<Value = Vec<u8>> {
    let noise = vec(any::<u8>(), 0..3000);
    let pages = (0..5usize).prop_map(|pages| vec![7; pages * 4096]);
    let compressed = (vec(any::<(prop::sample::Index, u8)>(), 0..3), 1..400usize, any::<bool>()).prop_map(
        |(changes, pages, zstd)| {
            let compression = if zstd { Compression::Zstd } else { Compression::Lz4 };
            let mut file = compressed(&vec![5; pages * 4096], compression);
            for (place, byte) in changes {
                let place = place.index(file.len());
                file[place] = byte;
            }
            file
        },
    );
    prop_oneof![noise, pages, compressed]
}

fn compressed(memory: &[u8], compression: Compression) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let pending = rewake_image::PendingImage::create(&folder.path().join("image")).unwrap();
    let writer = rewake_image::PageWriter::create(&pending, compression).unwrap();
    for (index, block) in (0..).zip(memory.chunks(BLOCK_SIZE)) {
        writer.block(index, block).unwrap();
    }
    writer.finish().unwrap();
    fs::read(pending.path().join(PAGES_FILE)).unwrap()
}

fn read_all(folder: &Path, stream: &PageStream) -> Result<(), TestCaseError> {
    let Ok(reader) = PageReader::open(folder, stream) else { return Ok(()) };
    let mut buffer = reader.buffer().unwrap();
    for index in 0..=reader.blocks() {
        let range = reader.stream_range(index);
        if let Ok(block) = reader.read_block(index, &mut buffer) {
            prop_assert_eq!(u64::try_from(block.len()).unwrap(), range.end - range.start);
        }
        prop_assert!(index < reader.blocks() || reader.verify_block(index, &mut buffer).is_err());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn hostile_page_streams_are_refused_or_as_long_as_they_say(claims in claims(), file in files()) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(PAGES_FILE), &file).unwrap();
        read_all(folder.path(), &stream(&claims, &file))?;
    }

    #[test]
    fn verify_open_and_list_agree_about_hostile_folders(seed in any::<u64>(), cut in 0..3usize) {
        let folder = tempfile::tempdir().unwrap();
        let records = hostile::mutate(&sample::image().encode().unwrap(), seed);
        let mut pages = sample::pages();
        pages.truncate(pages.len() - cut / 2 * 100);
        fs::write(folder.path().join(RECORDS_FILE), &records).unwrap();
        fs::write(folder.path().join(PAGES_FILE), pages).unwrap();
        let opened = Image::open(folder.path()).is_ok();
        prop_assert!(opened || verify(folder.path(), |_, _| ()).is_err());
        for image in store::list(folder.path()).unwrap() {
            prop_assert!(opened || image.facts().is_none());
        }
    }
}
