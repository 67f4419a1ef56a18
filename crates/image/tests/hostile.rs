//! An image is hostile input: whatever its bytes are, reading it ends with an image that makes sense, or an error.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use rewake_image::container::{self, MANDATORY, UnknownRecord, Writer};
use rewake_image::records::{Extent, Message, PageStream, RecordKind};
use rewake_image::{BLOCK_SIZE, Compression, Image, ImageError, PAGE_SIZE, hostile, sample};

/// A valid image that differs from the sample in many numbers.
fn images() -> impl Strategy<Value = Image> {
    let memory = (vec((0u64..4, 1u64..600), 0..20), any::<[u8; 32]>());
    let process = (any::<(u64, u64, u32, bool)>(), vec(any::<u64>(), 27), vec(any::<u8>(), 576..3000));
    let files = (any::<(u64, u64, i64)>(), vec(any::<u8>(), 0..100), "/[a-zäöü ]{0,40}");
    let unknown = vec((100u32..200, vec(any::<u8>(), 0..50)), 0..4);
    (memory, process, files, unknown).prop_map(|(memory, process, files, unknown)| {
        let mut image = sample::everything();
        image.manifest.created_unix_ns = process.0.0;
        let thread = &mut image.processes[0].threads[1];
        (thread.signal_mask, thread.timer_slack_ns) = (process.0.0, process.0.1);
        (thread.registers, thread.xstate) = (process.1, process.2);
        image.processes[0].personality = process.0.2;
        image.processes[0].dumpable = process.0.3;
        let identity = image.mapped_files[0].identity.as_mut().unwrap();
        (identity.device, identity.inode, identity.mtime_s) = files.0;
        identity.path = files.2.into_bytes();
        image.pipes[0].content = files.1;
        image.unknown =
            unknown.into_iter().map(|(kind, payload)| UnknownRecord { kind, flags: 0, payload }).collect();
        more_memory(&mut image, &memory.0);
        image
    })
}

/// Adds extents, with gaps between them, to the shared memory.
fn more_memory(image: &mut Image, runs: &[(u64, u64)]) {
    let object = &mut image.shared_memory[0];
    let mut stream_end = image.stream.stream_length;
    for (gap, pages) in runs {
        let address = object.pages.last().unwrap().end().unwrap() + gap * PAGE_SIZE;
        let length = pages * PAGE_SIZE;
        object.pages.push(Extent { address, length, stream_offset: stream_end });
        stream_end += length;
        object.size = address + length;
    }
    let blocks = usize::try_from(stream_end).unwrap().div_ceil(BLOCK_SIZE);
    image.stream.stream_length = stream_end;
    image.stream.file_length = stream_end;
    image.stream.checksums = vec![0xdead_beef; blocks];
}

/// Arbitrary bytes as the payload of a frame whose checksum is right.
fn with_payload(kind: u32, payload: &[u8]) -> Vec<u8> {
    let image = sample::everything();
    let mut writer = Writer::new();
    for frame in container::frames(&image.encode().unwrap()).unwrap() {
        let payload = if frame.kind == kind { payload } else { frame.payload };
        writer.frame(frame.kind, frame.flags, |bytes| bytes.extend_from_slice(payload));
    }
    writer.finish()
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(image in images()) {
        let bytes = image.encode().unwrap();
        let decoded = Image::decode(&bytes).unwrap();
        prop_assert_eq!(&decoded, &image);
        prop_assert!(decoded.encode().unwrap() == bytes);
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in vec(any::<u8>(), 0..4000)) {
        prop_assert!(Image::decode(&bytes).is_err());
    }

    #[test]
    fn arbitrary_payloads_do_not_panic(kind in 1u32..10, payload in vec(any::<u8>(), 0..600)) {
        if let Ok(image) = Image::decode(&with_payload(kind, &payload)) {
            prop_assert!(image.encode().is_ok());
        }
    }

    #[test]
    fn mutated_payloads_do_not_panic(
        kind in 1u32..10,
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let bytes = sample::everything().encode().unwrap();
        let frames = container::frames(&bytes).unwrap();
        let mut payload = frames.iter().find(|frame| frame.kind == kind).unwrap().payload.to_vec();
        for (place, byte) in changes {
            let place = place.index(payload.len());
            payload[place] = byte;
        }
        if let Ok(image) = Image::decode(&with_payload(kind, &payload)) {
            // What passes the checks can be written, read and described.
            prop_assert_eq!(&Image::decode(&image.encode().unwrap()).unwrap(), &image);
            let description = rewake_image::describe::Description::of(&image);
            prop_assert!(serde_json::to_string(&description).is_ok());
        }
    }

    /// Fields of messages changed, added, removed, exchanged; several generations, as a fuzzer would.
    #[test]
    fn images_with_hostile_fields_are_refused_or_make_sense(seeds in vec(any::<u64>(), 1..6)) {
        let mut file = sample::everything().encode().unwrap();
        for seed in seeds {
            let changed = hostile::mutate(&file, seed);
            if let Ok(image) = Image::decode(&changed) {
                prop_assert_eq!(&Image::decode(&image.encode().unwrap()).unwrap(), &image);
                let description = rewake_image::describe::Description::of(&image);
                prop_assert!(serde_json::to_string(&description).is_ok());
                file = changed;
            }
        }
    }

    #[test]
    fn mutated_files_are_refused(place in any::<prop::sample::Index>(), change in 1u8..=255) {
        let mut bytes = sample::image().encode().unwrap();
        let place = place.index(bytes.len());
        bytes[place] ^= change;
        prop_assert!(Image::decode(&bytes).is_err());
    }

    #[test]
    fn cut_files_are_refused(length in any::<prop::sample::Index>()) {
        let bytes = sample::image().encode().unwrap();
        prop_assert!(Image::decode(&bytes[..length.index(bytes.len())]).is_err());
    }
}

#[test]
fn unknown_mandatory_records_are_named() {
    let image = sample::image();
    let mut writer = Writer::new();
    for frame in container::frames(&image.encode().unwrap()).unwrap() {
        writer.frame(frame.kind, frame.flags, |bytes| bytes.extend_from_slice(frame.payload));
    }
    writer.frame(99, MANDATORY, |bytes| bytes.extend_from_slice(b"from the future"));
    let error = Image::decode(&writer.finish()).unwrap_err();
    assert!(matches!(error, ImageError::UnknownMandatory { kind: 99, .. }), "{error}");
    assert!(error.to_string().contains("unknown kind 99"), "{error}");
    assert!(error.remedy().is_some());
}

#[test]
fn unknown_optional_records_are_kept() {
    let mut image = sample::image();
    image.unknown.push(UnknownRecord { kind: 99, flags: 0, payload: b"from the future".to_vec() });
    let decoded = Image::decode(&image.encode().unwrap()).unwrap();
    assert_eq!(decoded.unknown, image.unknown);
}

#[test]
fn missing_and_repeated_records_are_named() {
    let bytes = sample::image().encode().unwrap();
    let stream = RecordKind::PageStream.number();
    for copies in [0, 2] {
        let mut writer = Writer::new();
        for frame in container::frames(&bytes).unwrap() {
            let times = if frame.kind == stream { copies } else { 1 };
            for _ in 0..times {
                writer.frame(frame.kind, frame.flags, |bytes| bytes.extend_from_slice(frame.payload));
            }
        }
        let error = Image::decode(&writer.finish()).unwrap_err();
        assert!(matches!(error, ImageError::Count { kind: "PageStream", .. }), "{error}");
    }
}

/// What the fuzz targets begin with, and inputs that once were a finding.
fn seeds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/records")
}

#[test]
fn seeds_of_the_fuzz_targets_do_no_harm() {
    let mut good = 0;
    for entry in std::fs::read_dir(seeds()).unwrap() {
        if let Ok(image) = Image::decode(&std::fs::read(entry.unwrap().path()).unwrap()) {
            assert_eq!(Image::decode(&image.encode().unwrap()).unwrap(), image);
            good += 1;
        }
    }
    assert!(good >= 2, "the seeds are no images any more: make them anew with the test below");
}

/// Run by hand when the samples have changed: `cargo test -p rewake-image --test hostile -- --ignored`.
#[test]
#[ignore = "writes the seeds of the fuzz targets"]
fn make_seeds() {
    std::fs::create_dir_all(seeds()).unwrap();
    for (name, image) in [("sample", sample::image()), ("everything", sample::everything())] {
        let mut small = image;
        // The rest of the extended state is zeros.
        small.processes[0].threads.iter_mut().for_each(|thread| thread.xstate.truncate(576));
        std::fs::write(seeds().join(name), small.encode().unwrap()).unwrap();
    }
}

#[test]
fn a_huge_stream_is_refused_before_anything_is_allocated_for_it() {
    for compression in [Compression::None, Compression::Zstd] {
        let stream = PageStream {
            compression: compression.into(),
            block_size: 1 << 20,
            stream_length: !(PAGE_SIZE - 1),
            file_length: !(PAGE_SIZE - 1),
            ..PageStream::default()
        };
        let file = with_payload(RecordKind::PageStream.number(), &stream.encode_to_vec());
        assert!(matches!(Image::decode(&file), Err(ImageError::Invalid { .. })));
    }
}
