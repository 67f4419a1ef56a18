//! The golden image of format 1, `tests/golden/v1`, written once: it must be understood, and written again byte for byte, as long as
//! this program claims to read and write format 1.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use rewake_image::{
    BLOCK_SIZE, Compression, Image, PAGES_FILE, PageReader, RECORDS_FILE, container, header, sample, verify,
};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

#[test]
fn constants_of_format_1() {
    assert_eq!(&header::MAGIC, b"REWAKE\0\0");
    assert_eq!(header::FORMAT_VERSION, 1);
    assert_eq!(header::ENDIANNESS_MARK, 0x0a0b_0c0d);
    assert_eq!(header::HEADER_LENGTH, 48);
    assert_eq!(container::FRAME_HEADER_LENGTH, 24);
    assert_eq!(container::FRAME_ALIGNMENT, 8);
    assert_eq!(container::MANDATORY, 1);
    assert_eq!(BLOCK_SIZE, 1_048_576);
    assert_eq!((RECORDS_FILE, PAGES_FILE), ("records", "pages"));
    let kinds = rewake_image::records::RecordKind::ALL.map(|kind| (kind.number(), kind.name()));
    let expected = [
        (1, "Manifest"),
        (2, "Process"),
        (3, "MappedFile"),
        (4, "SharedMemory"),
        (5, "OpenFile"),
        (6, "Pipe"),
        (7, "PageStream"),
        (8, "FileContent"),
        (9, "SeccompFilter"),
        (10, "RemovedFile"),
        (20, "SemaphoreSet"),
        (21, "MessageQueue"),
        (22, "PosixQueue"),
        (30, "UnixSocket"),
        (31, "UnixName"),
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn header_bytes_of_format_1() {
    let bytes = std::fs::read(golden().join(RECORDS_FILE)).unwrap();
    let length = u64::try_from(bytes.len()).unwrap();
    assert_eq!(&bytes[..8], b"REWAKE\0\0");
    assert_eq!(&bytes[8..16], [1, 0, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a]);
    assert_eq!(&bytes[16..24], [48, 0, 0, 0, 24, 0, 0, 0]);
    assert_eq!(&bytes[24..32], length.to_le_bytes());
    assert_eq!(&bytes[40..44], crc32c::crc32c(&bytes[..40]).to_le_bytes());
}

#[test]
fn golden_image_is_understood_and_written_again_as_it_is() {
    let summary = verify(&golden(), |_, _| ()).unwrap();
    assert_eq!((summary.files, summary.records, summary.blocks), (2, 12, 1));
    let image = Image::open(&golden()).unwrap();
    assert_eq!(image, sample::image());
    let bytes = std::fs::read(golden().join(RECORDS_FILE)).unwrap();
    assert!(image.encode().unwrap() == bytes, "the encoding of format 1 has changed");
    let reader = PageReader::open(&golden(), &image.stream).unwrap();
    let mut buffer = reader.buffer().unwrap();
    assert!(reader.read_block(0, &mut buffer).unwrap() == sample::pages());
}

/// Run once, by hand, when format 1 was made: `cargo test -p rewake-image --test golden -- --ignored`.
#[test]
#[ignore = "makes the golden image, which never changes again"]
fn make_golden_image() {
    sample::write(&golden(), Compression::None).unwrap();
}
