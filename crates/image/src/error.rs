//! What can go wrong with an image, told so that the user knows which file, which record and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// A failure to write, read or believe an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The operating system refused something.
    #[error("{operation} failed ({}): {source}", path.display())]
    Io {
        /// What was tried, as a verb or the system call's name.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An error, with the image it belongs to.
    #[error("image {}: {source}", image.display())]
    In {
        /// The image's directory.
        image: PathBuf,
        /// What is wrong with it.
        source: Box<ImageError>,
    },
    /// The directory or file is something else altogether.
    #[error("not a Rewake image: {detail}")]
    NotAnImage {
        /// What made that clear.
        detail: String,
    },
    /// A later version of the format.
    #[error("made by a newer rewake: format {found}, this one reads {supported}")]
    NewerFormat {
        /// The version in the image.
        found: u32,
        /// The version this program reads.
        supported: u32,
    },
    /// A record that must be understood and is not.
    #[error("records: record of unknown kind {kind} at byte {offset}, which its writer marked mandatory")]
    UnknownMandatory {
        /// The number of the kind.
        kind: u32,
        /// Where its frame begins in the file `records`.
        offset: u64,
    },
    /// Bytes are not what was written: a checksum or an exact value differs, or something is cut off.
    #[error("{file}: {part} at byte {offset}: {detail}")]
    Damaged {
        /// `records` or `pages`.
        file: &'static str,
        /// Header, frame or block, with its number and kind.
        part: String,
        /// Where it begins in the file.
        offset: u64,
        /// How it shows.
        detail: String,
    },
    /// A record whose checksum is right but which is no message of its kind.
    #[error("records: record {kind} at byte {offset} cannot be decoded: {source}")]
    Undecodable {
        /// The message's name.
        kind: &'static str,
        /// Where its frame begins in the file `records`.
        offset: u64,
        /// What the decoder says.
        source: prost::DecodeError,
    },
    /// A record that must be there exactly once is missing or there twice.
    #[error("records: {count} records {kind}, exactly one expected")]
    Count {
        /// The message's name.
        kind: &'static str,
        /// How many there are.
        count: usize,
    },
    /// A record that contradicts itself or another one.
    #[error("records: {record}: {detail}")]
    Invalid {
        /// Which record, with its number where there are several.
        record: String,
        /// What is wrong.
        detail: String,
    },
    /// A file that does not belong to an image.
    #[error("unexpected file {name:?}")]
    UnexpectedFile {
        /// Its name in the image's directory.
        name: String,
    },
    /// Something is already there where the image is to be.
    #[error("{} exists already", path.display())]
    Exists {
        /// Where the image was to be.
        path: PathBuf,
    },
    /// The page writer was used wrongly, or an image is too large for the format.
    #[error("pages: {detail}")]
    Pages {
        /// What is wrong.
        detail: String,
    },
    /// A store without a complete image.
    #[error("{}: no complete image in this store", store.display())]
    NoCompleteImage {
        /// The store's directory.
        store: PathBuf,
    },
}

impl ImageError {
    /// For `map_err`: an error of the operating system, with what was tried on what.
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source: source.into() }
    }

    /// Names the image an error belongs to, unless the error names a path already.
    pub(crate) fn in_image(self, image: &Path) -> Self {
        match self {
            Self::Io { .. } | Self::In { .. } | Self::Exists { .. } | Self::NoCompleteImage { .. } => self,
            other => Self::In { image: image.to_owned(), source: Box::new(other) },
        }
    }

    /// What the user can do about it, in one line, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::In { source, .. } => source.remedy(),
            Self::Io { source, .. } => io_remedy(source),
            Self::NotAnImage { .. } => {
                Some("give the directory that chkpnt -d made, or a folder of such directories")
            }
            Self::NewerFormat { .. } | Self::UnknownMandatory { .. } => {
                Some("resume with the version of rewake that made the image, or a later one")
            }
            Self::Damaged { .. } | Self::Undecodable { .. } | Self::Count { .. } => {
                Some("the image is damaged: use another copy, or an earlier image of the program")
            }
            Self::Invalid { .. } => {
                Some("the image makes no sense: use another one, and report this if rewake made it like that")
            }
            Self::UnexpectedFile { .. } => Some("move the file out of the image's directory"),
            Self::Exists { .. } => Some("choose another directory with -d, or remove this one"),
            Self::NoCompleteImage { .. } => Some("rewake list shows what is wrong with each image"),
            Self::Pages { .. } => None,
        }
    }
}

/// The remedies that hold wherever the operating system says so.
fn io_remedy(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("free some space, or choose a directory on another file system with -d")
        }
        io::ErrorKind::FileTooLarge => Some("raise the limit of file sizes: ulimit -f unlimited"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Some("choose a directory that you may write to with -d")
        }
        _ => None,
    }
}
