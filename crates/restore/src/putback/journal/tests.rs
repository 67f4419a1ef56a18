//! The journal, to bytes and back; bytes that somebody made up.

use std::io::{Seek, SeekFrom};

use proptest::prelude::*;

use super::*;

/// A journal of two files, as bytes.
fn sample() -> (Vec<u8>, Journal) {
    let file = tempfile::tempfile().expect("a file");
    let mut writer = JournalWriter::begin(file, 3).expect("begun");
    let chunks = vec![
        writer.chunk(0, b"old bytes", b"new").expect("written"),
        writer.chunk(u64::from(BLOCK), &[0; 5000], &[7; 4097]).expect("written"),
    ];
    let state = |size| State { size, mtime_s: -5, mtime_ns: 999_999_999, mode: 0o644 };
    let old = Some(Old { device: 1, inode: 2, state: state(u64::from(BLOCK) + 5000) });
    let new = state(u64::from(BLOCK) + 4097);
    writer.entry(Entry { path: "/some/file".into(), old, new, chunks });
    let chunks = vec![writer.chunk(0, b"", b"all new").expect("written")];
    writer.entry(Entry { path: "/another".into(), old: None, new: state(7), chunks });
    let origin = Origin { host: "here".into(), boot: "now".into() };
    let (mut file, journal) = writer.finish(origin).expect("finished");
    file.seek(SeekFrom::Start(0)).expect("the beginning");
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut file, &mut bytes).expect("its bytes");
    (bytes, journal)
}

#[test]
fn what_was_written_is_read() {
    let (bytes, journal) = sample();
    assert_eq!(Journal::parse(&bytes).expect("a journal"), journal);
    let chunks = &journal.entries[0].chunks;
    let first = Journal::data(&bytes[..], &chunks[0]).expect("its data");
    assert_eq!((first.old.as_slice(), first.new.len()), (&b"old bytes"[..], 1));
    assert!(chunks[1].zeros);
    let second = Journal::data(&bytes[..], &chunks[1]).expect("its data");
    assert_eq!((second.old, second.new.len()), (vec![0; 5000], 2));
}

#[test]
fn progress_is_noted_in_place() {
    let file = tempfile::tempfile().expect("a file");
    let mut writer = JournalWriter::begin(file, 1).expect("begun");
    let new = State::default();
    writer.entry(Entry { path: "/a".into(), old: None, new, chunks: Vec::new() });
    let (file, mut journal) = writer.finish(Origin::default()).expect("finished");
    journal.note(&file, 0, Progress::Applied).expect("noted");
    assert_eq!(Journal::read(&file).expect("a journal").progress, [Progress::Applied]);
}

#[test]
fn a_journal_cut_off_anywhere_is_none() {
    let (bytes, _) = sample();
    for length in 0..bytes.len() {
        assert!(Journal::parse(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
}

#[test]
fn any_flipped_bit_is_noticed() {
    let (bytes, journal) = sample();
    let progress = usize::try_from(HEADER).expect("small")..usize::try_from(HEADER + 2).expect("small");
    for at in (0..bytes.len()).filter(|at| !progress.contains(at)) {
        for bit in 0..8 {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            let Ok(found) = Journal::parse(&bytes) else { continue };
            let chunks = journal.entries.iter().flat_map(|entry| &entry.chunks);
            let damaged = chunks.into_iter().any(|chunk| Journal::data(&bytes[..], chunk).is_err());
            // Room for the progress of files that are not there, and the filling of the header.
            assert!(damaged || found == journal, "bit {bit} of byte {at}");
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = Journal::parse(&bytes);
    }

    /// Past the checksums: an index that its owner made up.
    #[test]
    fn an_arbitrary_index_never_panics(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let (mut bytes, _) = sample();
        let trailer = bytes.len() - usize::try_from(TRAILER).expect("small");
        let at = usize::try_from(u64::from_le_bytes(bytes[trailer + 8..trailer + 16].try_into().expect("8 bytes")))
            .expect("small");
        for (place, byte) in edits {
            bytes[at + place.index(trailer - at)] = byte;
        }
        let index = crc32c::crc32c(&bytes[at..trailer]).to_le_bytes();
        bytes[trailer + 24..trailer + 28].copy_from_slice(&index);
        let end = crc32c::crc32c(&bytes[trailer..trailer + 28]).to_le_bytes();
        bytes[trailer + 28..].copy_from_slice(&end);
        if let Ok(journal) = Journal::parse(&bytes) {
            for chunk in journal.entries.iter().flat_map(|entry| &entry.chunks) {
                let _ = Journal::data(&bytes[..], chunk);
            }
        }
    }
}
