//! Hostile records that make sense: the plan of their restore never panics, is as long as it said, and keeps the model's rules.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use rewake_image::Image;
use rewake_restore::plan::Plan;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    rewake_fuzz::mutate_records(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let Ok(image) = Image::decode(data) else { return };
    if let Some(plan) = Plan::sample(&image) {
        let _ = plan.expect("the plan keeps the rules").program.listing();
    }
});
