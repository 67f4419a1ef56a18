//! A whole image in a folder: records with right checksums and hostile fields, and a file of pages as long as they say, or not.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use rewake_image::{Image, PAGES_FILE, RECORDS_FILE, sample, store, verify};

/// A file of pages is made no longer than this.
const LONGEST: u64 = 4 << 20;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    rewake_fuzz::mutate_records(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| rewake_fuzz::folder("directory"));
    let length = Image::decode(data).map_or(0, |image| image.stream.file_length.min(LONGEST));
    let mut pages = sample::pages();
    pages.resize(usize::try_from(length).expect("it is short"), 0);
    fs::write(folder.join(RECORDS_FILE), data).expect("a file in memory");
    fs::write(folder.join(PAGES_FILE), pages).expect("a file in memory");
    let opened = Image::open(folder);
    if verify(folder, |_, _| ()).is_ok() {
        assert!(opened.is_ok(), "verified, but cannot be opened");
    }
    for image in store::list(folder).expect("a folder that can be read") {
        if let Some(facts) = image.facts() {
            assert!(opened.is_ok(), "listed with facts, but cannot be opened: {facts:?}");
        }
    }
});
