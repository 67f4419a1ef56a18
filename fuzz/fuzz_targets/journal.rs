//! The undo journal of `resume -o`, with right checksums around a hostile index: the first byte says how many files there are, the
//! second how much data; then come how far each file is, the data, and the index.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rewake_image::hostile::checksum;
use rewake_restore::putback::journal::Journal;

fn journal(files: u8, data: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"RWKUNDO\n".to_vec();
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(u32::from(files).to_le_bytes());
    bytes.extend(42u64.to_le_bytes());
    let sum = checksum(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes.extend([0; 4]);
    let index = (usize::from(files) + usize::from(data)).min(rest.len());
    let at = u64::try_from(bytes.len() + index).expect("64 bits");
    bytes.extend_from_slice(rest);
    let size = u64::try_from(rest.len() - index).expect("64 bits");
    let mut trailer = b"RWKUEND\n".to_vec();
    trailer.extend(at.to_le_bytes());
    trailer.extend(size.to_le_bytes());
    trailer.extend(checksum(&rest[index..]).to_le_bytes());
    let sum = checksum(&trailer);
    trailer.extend(sum.to_le_bytes());
    bytes.extend(trailer);
    bytes
}

fuzz_target!(|data: &[u8]| {
    // As it is, and put into a journal.
    let _ = Journal::parse(data);
    let Some(([files, length], rest)) = data.split_first_chunk::<2>() else { return };
    let bytes = journal(*files, *length, rest);
    let Ok(journal) = Journal::parse(&bytes) else { return };
    assert_eq!(journal.progress.len(), usize::from(*files), "one byte of progress for each file");
    for chunk in journal.entries.iter().flat_map(|entry| &entry.chunks) {
        let _ = Journal::data(&bytes[..], chunk);
    }
});
