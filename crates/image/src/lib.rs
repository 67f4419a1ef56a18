//! The image of a frozen program: the one thing that capture and restore share.
//!
//! An image is a directory of two files. `records` is a checksummed header and checksummed frames, each with one protobuf
//! message of `proto/records.proto` ([`header`], [`container`], [`image`]). `pages` is memory and nothing else, cut into
//! blocks of 1 MiB whose checksums stand in the records ([`pages`]).
//!
//! Writing: [`PendingImage::create`], [`PageWriter`], [`PendingImage::write_records`], [`PendingImage::sync`],
//! [`SyncedImage::publish`]. Reading: [`Image::open`], [`PageReader`]. Every image is checked for sense ([`check`]) before it
//! is written and after it is read: it is hostile input, whoever made it.

#![forbid(unsafe_code)]

pub mod aio;
pub mod births;
pub mod build_id;
pub mod check;
pub mod container;
pub mod describe;
pub mod dir;
mod error;
pub mod header;
#[cfg(any(test, feature = "sample"))]
pub mod hostile;
pub mod image;
pub mod ipc;
pub mod pages;
pub mod records;
#[cfg(any(test, feature = "sample"))]
pub mod sample;
pub mod store;
pub mod verify;
mod wire;

pub use births::{Births, CannotBeMade};
pub use dir::{PendingImage, SyncedImage, clear_stale, remove_pending};
pub use error::ImageError;
pub use image::{Image, open_directory};
pub use pages::{AlignedBuffer, BLOCK_SIZE, BlockBuffer, PageReader, PageWriter};
pub use records::page_stream::Compression;
pub use verify::{VerifySummary, verify};

/// Name of the file that holds the records.
pub const RECORDS_FILE: &str = "records";
/// Name of the file that holds the page stream.
pub const PAGES_FILE: &str = "pages";
/// Every file an image consists of; a directory that holds another one is not an image.
pub const FILES: [&str; 2] = [RECORDS_FILE, PAGES_FILE];
/// Name of the journal that a resume keeps beside them while it puts files back; with a dot and more behind it, an unfinished one or
/// one kept for people to look at.
pub const UNDO_FILE: &str = "undo";
/// Bytes in a page of every machine that images of this format come from.
pub const PAGE_SIZE: u64 = 4096;
