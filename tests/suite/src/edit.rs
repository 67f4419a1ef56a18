//! Images changed by hand: decoded, altered, and written again with the right checksums, as somebody would who wants `resume` to
//! do what it should not. Nothing is checked for sense on the way: that is the business of what reads the image.
//!
//! The one place where the suite knows the product from inside: the format is public, and only its own crate writes it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rewake_image::{Image, RECORDS_FILE, hostile};

/// Where the header keeps the version of the format, and the checksum of all before it.
const VERSION_AT: usize = 8;
const CHECKSUM_AT: usize = 40;

/// Lets `change` alter the records of the image in the folder `dir`.
///
/// # Errors
/// Fails when the image cannot be read as one, or not be written.
pub fn image(dir: &Path, change: impl FnOnce(&mut Image)) -> Result<()> {
    let mut image = Image::open(dir).context("the image to be edited")?;
    let before = image.clone();
    change(&mut image);
    ensure!(image != before, "the edit changes nothing: the test would prove nothing");
    write(dir, &hostile::encode(&image))
}

/// Says in the header that the image is of another version of the format.
///
/// # Errors
/// Fails when the file cannot be read or written.
pub fn format_version(dir: &Path, version: u32) -> Result<()> {
    let mut bytes = fs::read(dir.join(RECORDS_FILE)).context("reading the records")?;
    ensure!(bytes.len() > CHECKSUM_AT + 4, "the file of records has no header");
    bytes[VERSION_AT..VERSION_AT + 4].copy_from_slice(&version.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    write(dir, &bytes)
}

fn write(dir: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(dir.join(RECORDS_FILE), bytes).context("writing the records")
}
