//! The build id of a program or library (GNU): a note that linkers put into it, equal where the same thing was built again.
//!
//! That holds of ids that are made of the content, and these have the lengths of sums. Whoever builds may write anything there
//! (`--build-id=0x1`), equal for all that he builds: an id of another length says nothing, and is none.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Bytes of ids that linkers make of the content: fast (lld), md5 and uuid, sha1, sha256.
const MADE: [usize; 4] = [8, 16, 20, 32];
/// Longest id in images.
pub const LONGEST: usize = 64;
/// More program headers no file has, and longer notes neither.
const HEADERS: usize = 128;
const NOTES: usize = 64 << 10;

/// Bytes of the ELF header and of a program header, by class.
const HEADER: usize = 64;
const PT_NOTE: u64 = 4;
const NT_GNU_BUILD_ID: u64 = 3;

/// The id of a file; nothing where it has none, is no program or library, or cannot be read.
#[must_use]
pub fn of(path: &Path) -> Vec<u8> {
    open(path).and_then(|file| of_file(&file)).unwrap_or_default()
}

/// The same, if this is still the file of this device and inode.
#[must_use]
pub fn of_same(path: &Path, file: (u64, u64)) -> Vec<u8> {
    let same = |opened: &File| opened.metadata().is_ok_and(|now| (now.dev(), now.ino()) == file);
    open(path).filter(same).and_then(|file| of_file(&file)).unwrap_or_default()
}

/// Never waits, for whatever the path leads to.
fn open(path: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).ok().map(File::from)
}

fn of_file(file: &File) -> Option<Vec<u8>> {
    let mut header = [0u8; HEADER];
    let read = file.read_at(&mut header, 0).ok()?;
    let wide = match header.get(..6)? {
        [0x7f, b'E', b'L', b'F', 2, 1] if read == HEADER => true,
        [0x7f, b'E', b'L', b'F', 1, 1] if read >= 52 => false,
        _ => return None,
    };
    let (table, size, count) = if wide {
        (number(&header, 32, 8)?, number(&header, 54, 2)?, number(&header, 56, 2)?)
    } else {
        (number(&header, 28, 4)?, number(&header, 42, 2)?, number(&header, 44, 2)?)
    };
    let (size, count) = (usize::try_from(size).ok()?, usize::try_from(count).ok()?);
    if !(32..=256).contains(&size) || count > HEADERS {
        return None;
    }
    let mut headers = vec![0u8; size * count];
    file.read_exact_at(&mut headers, table).ok()?;
    for one in headers.chunks_exact(size).filter(|one| number(one, 0, 4) == Some(PT_NOTE)) {
        let (offset, len, align) = if wide {
            (number(one, 8, 8)?, number(one, 32, 8)?, number(one, 48, 8)?)
        } else {
            (number(one, 4, 4)?, number(one, 16, 4)?, number(one, 28, 4)?)
        };
        let len = usize::try_from(len).ok().filter(|len| *len <= NOTES)?;
        let mut notes = vec![0u8; len];
        file.read_exact_at(&mut notes, offset).ok()?;
        if let Some(id) = among(&notes, if align == 8 { 8 } else { 4 }) {
            return Some(id.to_vec());
        }
    }
    None
}

/// The id among notes of this alignment.
fn among(mut notes: &[u8], align: usize) -> Option<&[u8]> {
    const HEADER: usize = 12;
    while notes.len() > HEADER {
        let name = usize::try_from(number(notes, 0, 4)?).ok()?;
        let len = usize::try_from(number(notes, 4, 4)?).ok()?;
        let content = HEADER.checked_add(name)?.checked_next_multiple_of(align)?;
        let end = content.checked_add(len)?;
        if number(notes, 8, 4)? == NT_GNU_BUILD_ID && notes.get(HEADER..HEADER + name)? == b"GNU\0" {
            return notes.get(content..end).filter(|id| MADE.contains(&id.len()));
        }
        notes = notes.get(end.checked_next_multiple_of(align)?..)?;
    }
    None
}

/// A number in little-endian order.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let mut word = [0u8; 8];
    word[..len].copy_from_slice(bytes.get(at..at.checked_add(len)?)?);
    Some(u64::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(kind: u32, name: &[u8], content: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [name.len(), content.len()] {
            note.extend(u32::try_from(word).unwrap().to_le_bytes());
        }
        note.extend(kind.to_le_bytes());
        for part in [name, content] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn the_note_is_found_among_others() {
        let id = [7u8; 20];
        let notes =
            [note(1, b"GNU\0", &[0; 16]), note(3, b"Go\0\0", &[1; 8]), note(3, b"GNU\0", &id)].concat();
        assert_eq!(among(&notes, 4), Some(&id[..]));
        assert_eq!(among(&notes[..40], 4), None);
        for cut in 0..notes.len() {
            // Whatever is missing, nothing goes wrong.
            let _ = among(&notes[..cut], 4);
        }
        assert_eq!(among(&[0xff; 100], 4), None);
        // Of these lengths linkers make them of the content; others are whatever somebody has written there.
        for len in 0..70 {
            let (note, made) = (note(3, b"GNU\0", &vec![1; len]), [8, 16, 20, 32].contains(&len));
            assert_eq!(among(&note, 4).map(<[u8]>::len), made.then_some(len));
        }
    }

    #[test]
    fn programs_have_one_and_texts_have_none() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text");
        std::fs::write(&text, "#!/bin/sh\n".repeat(20)).unwrap();
        assert!(of(&text).is_empty());
        assert!(of(folder.path()).is_empty());
        // Linkers of Debian make one by default; where there is none, there is none to find.
        let own = of(Path::new("/proc/self/exe"));
        assert!(own.is_empty() || own.len() >= 8, "{own:?}");
    }
}
