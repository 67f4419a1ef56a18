//! Arbitrary bytes as the file `records`: header, frames, records.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rewake_image::{Image, container, header::Header};

fuzz_target!(|data: &[u8]| {
    let header = Header::decode(data);
    if let Ok(frames) = container::frames(data) {
        assert!(header.is_ok_and(|header| usize::try_from(header.count) == Ok(frames.len())));
    }
    if let Ok(image) = Image::decode(data) {
        rewake_fuzz::accepted(&image);
    }
});
