//! Why files could not be put back, or a putting back not undone.

use std::io;
use std::path::{Path, PathBuf};

use rewake_image::ImageError;

/// One cause.
#[derive(Debug, thiserror::Error)]
pub enum PutBackError {
    /// The image's content cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The operating system refused something.
    #[error("{operation} failed ({}): {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others have the file open for writing.
    #[error("put back failed ({}): it is open for writing by {who}", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
        /// Pids and names.
        who: String,
    },
    /// Somebody changed the file meanwhile.
    #[error("put back failed ({}): it changed while this went on", path.display())]
    Moving {
        /// The file.
        path: PathBuf,
    },
    /// Another `resume` of the image puts files back just now.
    #[error("put back failed ({}): another resume puts the files of this image back just now", image.display())]
    Locked {
        /// The image.
        image: PathBuf,
    },
    /// There is a journal that is not ours to carry out.
    #[error(
        "an earlier resume of {} did not come to an end, and its files wait to be as they were: its journal belongs to user {owner}",
        image.display()
    )]
    NotOurs {
        /// The image.
        image: PathBuf,
        /// The owner of the journal.
        owner: u32,
    },
    /// There is a journal for the files of another host.
    #[error(
        "an earlier resume of {} did not come to an end, and its files wait to be as they were on the host {host:?}",
        image.display()
    )]
    Elsewhere {
        /// The image.
        image: PathBuf,
        /// Its machine id or name.
        host: String,
    },
    /// A journal could not be carried out.
    #[error(
        "an earlier resume of {} did not come to an end, and its files cannot be made as they were: {source}",
        image.display()
    )]
    Stuck {
        /// The image.
        image: PathBuf,
        /// What stands in the way.
        source: Box<PutBackError>,
    },
    /// A signal asked for the end.
    #[error("put back failed: interrupted by signal {signal}")]
    Interrupted {
        /// Its number.
        signal: i32,
    },
    /// Set-user-id and set-group-id binaries do not touch files for others.
    #[error("put back failed: this binary runs with the ids of somebody else than its caller (set-user-id)")]
    SetUserId,
}

impl PutBackError {
    /// For `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source: source.into() }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Image(source) => source.remedy(),
            Self::Io { source, .. } => io_remedy(source),
            Self::Busy { .. } => Some("end those processes or let them close the file, then resume again"),
            Self::Moving { .. } => Some("keep others from writing to it, then resume again"),
            Self::Locked { .. } => Some("wait until that resume has woken its program, or end it"),
            Self::NotOurs { .. } => Some("run any rewake command as that user"),
            Self::Elsewhere { .. } => Some("run any rewake command there"),
            Self::Stuck { source, .. } => source.remedy().or(Some(
                "remove what stands in the way, then run the command again; or give the old bytes up by removing the file `undo` of the image",
            )),
            Self::Interrupted { .. } => Some("resume again"),
            Self::SetUserId => Some("take the set-user-id bit off the binary"),
        }
    }
}

fn io_remedy(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(
            "free some space: the image's file system must hold the old bytes of what changed, the files' the new ones",
        ),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Some(
            "resume as a user who may change the file and write to the image's folder, or go on with the files as they are: --on-changed as-is",
        ),
        io::ErrorKind::NotFound => Some("make its folder again, then resume again"),
        _ => None,
    }
}
