//! The page stream: written by several threads in any order, read by several.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rewake_image::records::PageStream;
use rewake_image::{BLOCK_SIZE, Compression, ImageError, PAGES_FILE, PageReader, PageWriter, PendingImage};

const ALL: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

/// Memory of five and a half blocks: zeros, noise and what lies between.
fn memory() -> &'static [u8] {
    static MEMORY: LazyLock<Vec<u8>> = LazyLock::new(make_memory);
    &MEMORY
}

fn make_memory() -> Vec<u8> {
    let mut state = 1u32;
    let noise = (0..BLOCK_SIZE * 11 / 2).map(|at| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match at / BLOCK_SIZE {
            0 => 0,
            1 | 5 => state.to_be_bytes()[0],
            _ => state.to_be_bytes()[0] & 3,
        }
    });
    noise.collect()
}

fn pending(folder: &Path) -> PendingImage {
    PendingImage::create(&folder.join("image")).unwrap()
}

/// Writes with some threads, which take the blocks in the given order.
fn write(pending: &PendingImage, compression: Compression, order: &[usize], threads: usize) -> PageStream {
    let memory = memory();
    let blocks: Vec<&[u8]> = memory.chunks(BLOCK_SIZE).collect();
    let writer = PageWriter::create(pending, compression).unwrap();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    writer.block(u64::try_from(*index).unwrap(), blocks[*index]).unwrap();
                }
            });
        }
    });
    writer.finish().unwrap()
}

fn read(pending: &PendingImage, stream: &PageStream) -> Vec<u8> {
    let reader = PageReader::open(pending.path(), stream).unwrap();
    let mut buffer = reader.buffer().unwrap();
    let mut memory = Vec::new();
    for index in 0..reader.blocks() {
        reader.verify_block(index, &mut buffer).unwrap();
        let block = reader.read_block(index, &mut buffer).unwrap();
        let range = reader.stream_range(index);
        assert_eq!(u64::try_from(block.len()).unwrap(), range.end - range.start);
        memory.extend_from_slice(block);
    }
    assert!(matches!(reader.read_block(reader.blocks(), &mut buffer), Err(ImageError::Pages { .. })));
    memory
}

#[test]
fn what_is_written_is_read_whatever_the_order() {
    let orders = [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [1, 0, 3, 5, 2, 4]];
    for compression in ALL {
        for order in orders {
            for threads in [1, 3] {
                let folder = tempfile::tempdir().unwrap();
                let pending = pending(folder.path());
                let stream = write(&pending, compression, &order, threads);
                assert!(read(&pending, &stream) == memory(), "{compression:?} {order:?} {threads}");
                assert_eq!(stream.compression(), compression);
            }
        }
    }
}

#[test]
fn the_file_does_not_depend_on_the_order() {
    for compression in ALL {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let orders = [[0, 1, 2, 3, 4, 5], [5, 1, 4, 3, 0, 2]];
        let [first, second] = [0, 1].map(|place: usize| {
            let pending = pending(folders[place].path());
            let stream = write(&pending, compression, &orders[place], 2);
            (stream, std::fs::read(pending.path().join(PAGES_FILE)).unwrap())
        });
        assert!(first == second, "{compression:?}");
    }
}

#[test]
fn not_compressed_the_file_is_the_stream() {
    let folder = tempfile::tempdir().unwrap();
    let pending = pending(folder.path());
    write(&pending, Compression::None, &[0, 1, 2, 3, 4, 5], 2);
    assert!(std::fs::read(pending.path().join(PAGES_FILE)).unwrap() == memory());
}

#[test]
fn noise_is_stored_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let pending = pending(folder.path());
    let stream = write(&pending, Compression::Zstd, &[0, 1, 2, 3, 4, 5], 2);
    let full = u32::try_from(BLOCK_SIZE).unwrap();
    assert!(stream.stored_lengths[0] < 1000);
    assert_eq!(stream.stored_lengths[1], full);
    assert!(stream.stored_lengths[2] < full / 2);
    assert_eq!(stream.stored_lengths[5], full / 2);
    assert!(stream.file_length < stream.stream_length);
}

#[test]
fn an_empty_stream_is_fine() {
    for compression in ALL {
        let folder = tempfile::tempdir().unwrap();
        let pending = pending(folder.path());
        let stream = PageWriter::create(&pending, compression).unwrap().finish().unwrap();
        assert_eq!((stream.stream_length, stream.file_length), (0, 0));
        assert!(read(&pending, &stream).is_empty());
    }
}

#[test]
fn misuse_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let block = vec![1; BLOCK_SIZE];
    let name = |error: ImageError| error.to_string();
    let writer = |compression| {
        let place = tempfile::tempdir_in(folder.path()).unwrap().keep();
        let pending = pending(&place);
        (PageWriter::create(&pending, compression).unwrap(), pending)
    };
    for compression in ALL {
        let (twice, _pending) = writer(compression);
        twice.block(0, &block).unwrap();
        assert_eq!(name(twice.block(0, &block).unwrap_err()), "pages: block 0 was written twice");
        assert!(twice.block(1, &[]).is_err());
        assert!(twice.block(u64::MAX, &block).is_err());
        let (gap, _pending) = writer(compression);
        gap.block(1, &block).unwrap();
        assert_eq!(name(gap.finish().unwrap_err()), "pages: block 0 was never written");
        let (short, _pending) = writer(compression);
        short.block(0, &block[..4096]).unwrap();
        short.block(1, &block).unwrap();
        assert_eq!(name(short.finish().unwrap_err()), "pages: block 0 is short and not the last");
    }
}

#[test]
fn blocks_that_decompress_to_something_else_are_refused() {
    for compression in [Compression::Lz4, Compression::Zstd] {
        let folder = tempfile::tempdir().unwrap();
        let pending = pending(folder.path());
        let writer = PageWriter::create(&pending, compression).unwrap();
        writer.block(0, &vec![0; 8 * 4096]).unwrap();
        let stream = writer.finish().unwrap();
        // The checksum is right, but the memory is said to be shorter, or longer, than it is.
        for pages in [7, 9] {
            let stream = PageStream { stream_length: pages * 4096, ..stream.clone() };
            let reader = PageReader::open(pending.path(), &stream).unwrap();
            let mut buffer = reader.buffer().unwrap();
            reader.verify_block(0, &mut buffer).unwrap();
            let error = reader.read_block(0, &mut buffer).unwrap_err();
            assert!(matches!(error, ImageError::In { .. }), "{error}");
        }
    }
}

#[test]
fn garbage_with_a_right_checksum_does_not_panic() {
    for compression in [Compression::Lz4, Compression::Zstd] {
        for length in [1, 5, 100, 4000] {
            let folder = tempfile::tempdir().unwrap();
            let garbage = &memory()[BLOCK_SIZE..][..length];
            std::fs::write(folder.path().join(PAGES_FILE), garbage).unwrap();
            let stored = u32::try_from(length).unwrap();
            let stream = PageStream {
                spare: Vec::new(),
                compression: compression.into(),
                block_size: 1 << 20,
                stream_length: 1 << 20,
                file_length: stored.into(),
                checksums: vec![crc32c::crc32c(garbage)],
                stored_lengths: vec![stored],
            };
            let reader = PageReader::open(folder.path(), &stream).unwrap();
            let mut buffer = reader.buffer().unwrap();
            assert!(reader.read_block(0, &mut buffer).is_err());
        }
    }
}

#[test]
fn a_block_is_known_again_and_no_other_is() {
    for compression in ALL {
        let folder = tempfile::tempdir().unwrap();
        let writer = PageWriter::create(&pending(folder.path()), compression).unwrap();
        let blocks: Vec<&[u8]> = memory().chunks(BLOCK_SIZE).take(5).collect();
        for (index, block) in (0..).zip(&blocks) {
            writer.block(index, block).unwrap();
        }
        for (index, block) in (0..).zip(&blocks) {
            assert!(writer.is_block(index, block).unwrap(), "block {index}, {compression:?}");
            let mut other = block.to_vec();
            other[BLOCK_SIZE / 2] ^= 1;
            assert!(!writer.is_block(index, &other).unwrap(), "another than block {index}, {compression:?}");
        }
        assert!(!writer.is_block(5, blocks[0]).unwrap(), "one that was never written");
    }
}
