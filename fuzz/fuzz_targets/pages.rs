//! The page stream: hostile records of it and a hostile file, all compressions. The first byte chooses, the next two say how long the
//! stream says it is; checksums are put right half of the time, so that decompression is reached.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use rewake_image::records::{Message, PageStream};
use rewake_image::{BLOCK_SIZE, PAGE_SIZE, PAGES_FILE, PageReader};

fn stream(choice: u8, length: u16, file: &[u8]) -> PageStream {
    let file_length = u64::try_from(file.len()).expect("64 bits");
    let sound = choice & 1 == 0;
    let compression = i32::from(choice >> 1 & 3);
    let stream_length = if compression == 0 { file_length } else { (1 + u64::from(length)) * PAGE_SIZE };
    let blocks = usize::try_from(stream_length.div_ceil(1 << 20)).expect("few");
    // All but the last block take as much as there is for each.
    let part = (file.len() / blocks.max(1)).min(BLOCK_SIZE);
    let parts = (0..blocks).map(|block| {
        let start = (block * part).min(file.len());
        let end = if block + 1 == blocks { file.len() } else { start + part };
        &file[start..end]
    });
    let parts: Vec<&[u8]> = parts.collect();
    let checksum = |part: &&[u8]| if sound { rewake_image::hostile::checksum(part) } else { 7 };
    let stored = parts.iter().map(|part| u32::try_from(part.len()).expect("32 bits"));
    PageStream {
        spare: Vec::new(),
        compression,
        block_size: 1 << 20,
        stream_length,
        file_length,
        checksums: parts.iter().map(checksum).collect(),
        stored_lengths: if compression == 0 { Vec::new() } else { stored.collect() },
    }
}

fuzz_target!(|data: &[u8]| {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| rewake_fuzz::folder("pages"));
    let Some(([choice, low, high], rest)) = data.split_first_chunk::<3>() else { return };
    let stream = if choice & 0x80 == 0 {
        stream(*choice, u16::from_le_bytes([*low, *high]), rest)
    } else {
        // The record itself is the hostile part, and as long as its two bytes say.
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let Ok(stream) = PageStream::decode(&rest[..length]) else { return };
        stream
    };
    fs::write(folder.join(PAGES_FILE), rest).expect("a file in memory");
    let Ok(reader) = PageReader::open(folder, &stream) else { return };
    let Ok(mut buffer) = reader.buffer() else { return };
    for block in 0..=reader.blocks().min(16) {
        if let Ok(bytes) = reader.read_block(block, &mut buffer) {
            let range = reader.stream_range(block);
            assert_eq!(u64::try_from(bytes.len()).ok(), Some(range.end - range.start));
        }
        let _ = reader.verify_block(block, &mut buffer);
    }
});
