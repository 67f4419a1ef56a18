//! What the fuzz targets share: a mutator that knows what an image is, a place for files.

use std::fs;
use std::path::{Path, PathBuf};

use rewake_image::describe::Description;
use rewake_image::{Image, hostile};

/// The mutator of targets whose input is a file `records`: libFuzzer's own changes to one payload, or ours to fields of messages;
/// the checksums are right afterwards.
pub fn mutate_records(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let file = if seed % 4 == 0 {
        hostile::with_payload_changed(&data[..size], u64::from(seed >> 2), |payload| {
            let length = payload.len();
            payload.resize(length + 64, 0);
            let length = libfuzzer_sys::fuzzer_mutate(payload, length, length + 64);
            payload.truncate(length);
        })
    } else {
        hostile::mutate(&data[..size], seed.into())
    };
    if file.len() > max_size {
        return size;
    }
    data[..file.len()].copy_from_slice(&file);
    file.len()
}

/// What holds of every image that is accepted: it is written and read again as it is, and can be described.
pub fn accepted(image: &Image) {
    let bytes = image.encode().expect("an image that was accepted is accepted again");
    assert!(Image::decode(&bytes).expect("and read again") == *image, "it is another one when read again");
    let _ = format!("{:?}", Description::of(image));
}

/// A folder in memory that is this process's own.
#[must_use]
pub fn folder(name: &str) -> PathBuf {
    let base = Path::new("/dev/shm");
    let base = if base.is_dir() { base.to_owned() } else { std::env::temp_dir() };
    let folder = base.join(format!("rewake-fuzz-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for the target's files");
    folder
}
