//! Frames: how records lie behind one another in the file `records`.
//!
//! A frame is `kind u32, flags u32, length u64, reserved u32, checksum u32`, then `length` bytes of payload, then zeros up to a
//! multiple of 8. The checksum (CRC-32C) covers the frame's header up to itself, and the payload. A reader that does not know
//! a kind must refuse the image if bit 0 of the flags is set, and otherwise keeps the frame as it is.

use crate::ImageError;
use crate::header::{HEADER_LENGTH, Header, get_u32, get_u64};
use crate::records::RecordKind;

/// Flag of records without which the image cannot be understood.
pub const MANDATORY: u32 = 1;

const KIND_AT: usize = 0;
const FLAGS_AT: usize = KIND_AT + size_of::<u32>();
const LENGTH_AT: usize = FLAGS_AT + size_of::<u32>();
const RESERVED_AT: usize = LENGTH_AT + size_of::<u64>();
const CHECKSUM_AT: usize = RESERVED_AT + size_of::<u32>();

/// Bytes of a frame in front of its payload.
pub const FRAME_HEADER_LENGTH: usize = CHECKSUM_AT + size_of::<u32>();
/// Frames begin at multiples of this.
pub const FRAME_ALIGNMENT: usize = 8;

/// A frame in a file that has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'file> {
    /// Number of the record's kind; see [`RecordKind`].
    pub kind: u32,
    /// [`MANDATORY`], or nothing.
    pub flags: u32,
    /// Where the frame begins in the file, for messages.
    pub offset: u64,
    /// The encoded message.
    pub payload: &'file [u8],
}

/// A record of a kind that this version does not know, to be written again as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownRecord {
    /// Number of the kind.
    pub kind: u32,
    /// The frame's flags; never [`MANDATORY`] in an image that has been decoded.
    pub flags: u32,
    /// The encoded message.
    pub payload: Vec<u8>,
}

/// Builds the file `records` in memory.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    count: u32,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// A file without frames so far.
    #[must_use]
    pub fn new() -> Self {
        Self { bytes: vec![0; HEADER_LENGTH], count: 0 }
    }

    /// Appends a frame; `encode` appends the payload to what it is given.
    pub fn frame(&mut self, kind: u32, flags: u32, encode: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.resize(start + FRAME_HEADER_LENGTH, 0);
        encode(&mut self.bytes);
        let payload = start + FRAME_HEADER_LENGTH;
        let length = u64::try_from(self.bytes.len() - payload).unwrap_or(u64::MAX);
        let header = &mut self.bytes[start..payload];
        header[KIND_AT..FLAGS_AT].copy_from_slice(&kind.to_le_bytes());
        header[FLAGS_AT..LENGTH_AT].copy_from_slice(&flags.to_le_bytes());
        header[LENGTH_AT..RESERVED_AT].copy_from_slice(&length.to_le_bytes());
        let checksum = frame_checksum(&self.bytes[start..payload], &self.bytes[payload..]);
        self.bytes[start + CHECKSUM_AT..payload].copy_from_slice(&checksum.to_le_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(FRAME_ALIGNMENT), 0);
        self.count += 1;
    }

    /// The whole file.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let file_length = u64::try_from(self.bytes.len()).unwrap_or(u64::MAX);
        let header = Header { file_length, count: self.count };
        self.bytes[..HEADER_LENGTH].copy_from_slice(&header.encode());
        self.bytes
    }
}

/// Takes the file apart, having checked every byte of it but the sense of the payloads.
///
/// # Errors
/// Whatever [`Header::decode`] finds; [`ImageError::Damaged`] naming the frame.
pub fn frames(file: &[u8]) -> Result<Vec<Frame<'_>>, ImageError> {
    let header = Header::decode(file)?;
    let mut frames = Vec::new();
    let mut at = HEADER_LENGTH;
    while at < file.len() {
        let (frame, next) = frame_at(file, at, frames.len())?;
        frames.push(frame);
        at = next;
    }
    if u32::try_from(frames.len()) != Ok(header.count) {
        let detail = format!("{} frames found, {} expected", frames.len(), header.count);
        return Err(damaged("header".to_owned(), 0, detail));
    }
    Ok(frames)
}

/// The frame that begins at byte `at`, and where the next one begins.
fn frame_at(file: &[u8], at: usize, number: usize) -> Result<(Frame<'_>, usize), ImageError> {
    let offset = u64::try_from(at).unwrap_or(u64::MAX);
    let rest = &file[at..];
    let Some(header) = rest.first_chunk::<FRAME_HEADER_LENGTH>() else {
        return Err(damaged(format!("frame {number}"), offset, "cut off".to_owned()));
    };
    let kind = get_u32(header, KIND_AT);
    let part = || match RecordKind::from_number(kind) {
        Some(known) => format!("frame {number} ({})", known.name()),
        None => format!("frame {number} (kind {kind})"),
    };
    let length = get_u64(header, LENGTH_AT);
    let body = &rest[FRAME_HEADER_LENGTH..];
    // Frames begin at multiples of the alignment and the padding is inside the file: both lengths are bounded by the file's.
    let sizes = usize::try_from(length).ok().filter(|length| *length <= body.len()).and_then(|length| {
        let padded = length.checked_next_multiple_of(FRAME_ALIGNMENT)?;
        (padded <= body.len()).then_some((length, padded))
    });
    let Some((length, padded)) = sizes else {
        return Err(damaged(part(), offset, format!("{length} bytes of payload do not fit into the file")));
    };
    let payload = &body[..length];
    if get_u32(header, CHECKSUM_AT) != frame_checksum(header, payload) {
        return Err(damaged(part(), offset, "checksum differs".to_owned()));
    }
    if get_u32(header, RESERVED_AT) != 0 || body[length..padded].iter().any(|byte| *byte != 0) {
        return Err(damaged(part(), offset, "bytes that must be zero are not".to_owned()));
    }
    let flags = get_u32(header, FLAGS_AT);
    if flags & !MANDATORY != 0 {
        return Err(damaged(part(), offset, format!("unknown flags {flags:#x}")));
    }
    Ok((Frame { kind, flags, offset, payload }, at + FRAME_HEADER_LENGTH + padded))
}

fn frame_checksum(header: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..CHECKSUM_AT]), payload)
}

fn damaged(part: String, offset: u64, detail: String) -> ImageError {
    ImageError::Damaged { file: crate::RECORDS_FILE, part, offset, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new();
        writer.frame(7, MANDATORY, |bytes| bytes.extend_from_slice(b"abc"));
        writer.frame(4711, 0, |_| ());
        writer.finish()
    }

    #[test]
    fn round_trip() {
        let file = sample();
        assert_eq!(file.len() % FRAME_ALIGNMENT, 0);
        let frames = frames(&file).unwrap();
        assert_eq!(frames.len(), 2);
        assert_eq!((frames[0].kind, frames[0].flags, frames[0].payload), (7, MANDATORY, &b"abc"[..]));
        assert_eq!((frames[1].kind, frames[1].flags, frames[1].payload), (4711, 0, &b""[..]));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let file = sample();
        for bit in 0..file.len() * 8 {
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(frames(&damaged).is_err(), "bit {bit} of {}", file.len() * 8);
        }
    }

    #[test]
    fn every_cut_is_found() {
        let file = sample();
        for length in 0..file.len() {
            assert!(frames(&file[..length]).is_err(), "{length} bytes");
        }
    }
}
