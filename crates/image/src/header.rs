//! The fixed beginning of the file `records`.
//!
//! These bytes keep their places in every version of the format, so that any version can tell damage from novelty. All numbers
//! are little-endian.

use crate::ImageError;

/// First bytes of the file.
pub const MAGIC: [u8; 8] = *b"REWAKE\0\0";
/// The version of the format that this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;
/// Reads as another number on a machine with another byte order.
pub const ENDIANNESS_MARK: u32 = 0x0A0B_0C0D;

const VERSION_AT: usize = MAGIC.len();
const ENDIANNESS_AT: usize = VERSION_AT + size_of::<u32>();
const HEADER_LENGTH_AT: usize = ENDIANNESS_AT + size_of::<u32>();
const FRAME_HEADER_LENGTH_AT: usize = HEADER_LENGTH_AT + size_of::<u32>();
const FILE_LENGTH_AT: usize = FRAME_HEADER_LENGTH_AT + size_of::<u32>();
const COUNT_AT: usize = FILE_LENGTH_AT + size_of::<u64>();
const RESERVED_AT: usize = COUNT_AT + size_of::<u32>();
const CHECKSUM_AT: usize = RESERVED_AT + size_of::<u32>();

/// Bytes of the header; the first frame lies behind it.
pub const HEADER_LENGTH: usize = CHECKSUM_AT + size_of::<u32>() + RESERVED_TAIL;
/// Zeros that make the header's length a multiple of 8.
const RESERVED_TAIL: usize = 4;

/// Longest file `records` that is read, in bytes: 100,000 threads with the largest registers, or 16 million runs of pages.
pub const MAX_RECORDS_LENGTH: u64 = 1 << 30;

/// What the header says about the rest of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes in the whole file, header included.
    pub file_length: u64,
    /// How many frames follow.
    pub count: u32,
}

impl Header {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[..VERSION_AT].copy_from_slice(&MAGIC);
        put_u32(&mut bytes, VERSION_AT, FORMAT_VERSION);
        put_u32(&mut bytes, ENDIANNESS_AT, ENDIANNESS_MARK);
        put_u32(&mut bytes, HEADER_LENGTH_AT, length_u32(HEADER_LENGTH));
        put_u32(&mut bytes, FRAME_HEADER_LENGTH_AT, length_u32(crate::container::FRAME_HEADER_LENGTH));
        bytes[FILE_LENGTH_AT..COUNT_AT].copy_from_slice(&self.file_length.to_le_bytes());
        put_u32(&mut bytes, COUNT_AT, self.count);
        let checksum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
        put_u32(&mut bytes, CHECKSUM_AT, checksum);
        bytes
    }

    /// Reads the header and checks everything about it, against the length of the file too.
    ///
    /// # Errors
    /// [`ImageError::NotAnImage`] without the magic, [`ImageError::NewerFormat`] for a later version, [`ImageError::Damaged`]
    /// for the rest.
    pub fn decode(file: &[u8]) -> Result<Self, ImageError> {
        if file.len() < MAGIC.len() || file[..MAGIC.len()] != MAGIC {
            let detail = "the file `records` does not begin with the magic bytes REWAKE".to_owned();
            return Err(ImageError::NotAnImage { detail });
        }
        let Some(bytes) = file.first_chunk::<HEADER_LENGTH>() else {
            return Err(damaged(format!("cut off after {} of {HEADER_LENGTH} bytes", file.len())));
        };
        if get_u32(bytes, CHECKSUM_AT) != crc32c::crc32c(&bytes[..CHECKSUM_AT]) {
            return Err(damaged("checksum differs".to_owned()));
        }
        let version = get_u32(bytes, VERSION_AT);
        if version > FORMAT_VERSION {
            return Err(ImageError::NewerFormat { found: version, supported: FORMAT_VERSION });
        }
        check_constants(bytes, version)?;
        let header = Self { file_length: get_u64(bytes, FILE_LENGTH_AT), count: get_u32(bytes, COUNT_AT) };
        let actual = u64::try_from(file.len()).unwrap_or(u64::MAX);
        if header.file_length != actual {
            let expected = header.file_length;
            return Err(damaged(format!("the file has {actual} bytes, {expected} expected")));
        }
        Ok(header)
    }
}

/// Everything in the header that is always the same in this version.
fn check_constants(bytes: &[u8; HEADER_LENGTH], version: u32) -> Result<(), ImageError> {
    let expected = [
        ("version", version, FORMAT_VERSION),
        ("endianness mark", get_u32(bytes, ENDIANNESS_AT), ENDIANNESS_MARK),
        ("header length", get_u32(bytes, HEADER_LENGTH_AT), length_u32(HEADER_LENGTH)),
        (
            "frame header length",
            get_u32(bytes, FRAME_HEADER_LENGTH_AT),
            length_u32(crate::container::FRAME_HEADER_LENGTH),
        ),
        ("reserved word", get_u32(bytes, RESERVED_AT), 0),
        ("reserved tail", get_u32(bytes, HEADER_LENGTH - RESERVED_TAIL), 0),
    ];
    match expected.into_iter().find(|(_, found, wanted)| found != wanted) {
        None => Ok(()),
        Some((name, found, wanted)) => Err(damaged(format!("{name} is {found:#x}, {wanted:#x} expected"))),
    }
}

fn damaged(detail: String) -> ImageError {
    ImageError::Damaged { file: crate::RECORDS_FILE, part: "header".to_owned(), offset: 0, detail }
}

/// A length among the format's constants as the number that stands in the file.
const fn length_u32(length: usize) -> u32 {
    assert!(length <= 4096, "a fixed part of the format is small");
    #[expect(clippy::cast_possible_truncation, reason = "at most 4096; TryFrom is not const")]
    {
        length as u32
    }
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + size_of::<u32>()].copy_from_slice(&value.to_le_bytes());
}

/// Reads a number from a place that the caller has checked to be inside.
pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let word = bytes[at..].first_chunk().expect("fixed offset within a checked length");
    u32::from_le_bytes(*word)
}

/// Reads a number from a place that the caller has checked to be inside.
pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    let word = bytes[at..].first_chunk().expect("fixed offset within a checked length");
    u64::from_le_bytes(*word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: Header) -> Vec<u8> {
        header.encode().to_vec()
    }

    #[test]
    fn round_trip() {
        let header = Header { file_length: HEADER_LENGTH.try_into().unwrap(), count: 0 };
        assert_eq!(Header::decode(&file(header)).unwrap(), header);
    }

    #[test]
    fn another_file_is_not_an_image() {
        for bytes in
            [&b""[..], b"REWAKE", b"\x7fELF and so on, long enough to hold a header of an image, surely"]
        {
            let error = Header::decode(bytes).unwrap_err();
            assert!(matches!(error, ImageError::NotAnImage { .. }), "{error}");
        }
    }

    #[test]
    fn newer_version_is_named() {
        let mut bytes = file(Header { file_length: HEADER_LENGTH.try_into().unwrap(), count: 0 });
        put_u32(&mut bytes, VERSION_AT, 2);
        let checksum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
        put_u32(&mut bytes, CHECKSUM_AT, checksum);
        let error = Header::decode(&bytes).unwrap_err();
        assert_eq!(error.to_string(), "made by a newer rewake: format 2, this one reads 1");
        assert!(error.remedy().is_some());
    }

    #[test]
    fn cut_off_or_grown_files_are_found() {
        let bytes = file(Header { file_length: HEADER_LENGTH.try_into().unwrap(), count: 0 });
        assert!(matches!(Header::decode(&bytes[..20]), Err(ImageError::Damaged { .. })));
        let mut grown = bytes.clone();
        grown.push(0);
        assert!(matches!(Header::decode(&grown), Err(ImageError::Damaged { .. })));
    }
}
