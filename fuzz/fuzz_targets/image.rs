//! Records with right checksums and hostile fields: decoding, the checks for sense, describing, writing again.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use rewake_image::Image;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    rewake_fuzz::mutate_records(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    if let Ok(image) = Image::decode(data) {
        rewake_fuzz::accepted(&image);
    }
});
