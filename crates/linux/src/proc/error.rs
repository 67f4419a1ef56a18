//! What can go wrong with a file of `/proc/PID`.

use std::io;

use rustix::io::Errno;

/// A failure that names the process and the file below `/proc/PID`.
///
/// `pid` is the id of a thread when the file was read through a thread's directory.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// The process (or thread) ended.
    #[error("reading /proc failed for pid {pid} ({file}): no such process")]
    Gone {
        /// Process or thread.
        pid: i32,
        /// File below `/proc/PID`; empty for the directory itself.
        file: String,
    },
    /// The process exists, the file does not: not built into this kernel, or a descriptor that was closed meanwhile.
    #[error("reading /proc failed for pid {pid} ({file}): no such file")]
    Missing {
        /// Process or thread.
        pid: i32,
        /// File below `/proc/PID`.
        file: String,
    },
    /// We have not the right: another user's process, or one that made itself not dumpable.
    #[error(
        "reading /proc failed for pid {pid} ({file}): {source}\nrun as the user who owns the process, or as root"
    )]
    Denied {
        /// Process or thread.
        pid: i32,
        /// File below `/proc/PID`.
        file: String,
        /// EACCES or EPERM.
        source: io::Error,
    },
    /// Any other error of the system.
    #[error("reading /proc failed for pid {pid} ({file}): {source}")]
    Io {
        /// Process or thread.
        pid: i32,
        /// File below `/proc/PID`.
        file: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The text is not what is known of Linux.
    #[error("reading /proc failed for pid {pid} ({file}): unexpected content: {detail}")]
    Malformed {
        /// Process or thread.
        pid: i32,
        /// File below `/proc/PID`.
        file: String,
        /// What was expected or found.
        detail: String,
    },
}

impl ProcError {
    /// Sorts an error number.
    pub(crate) fn new(pid: i32, file: impl Into<String>, errno: Errno) -> Self {
        let file = file.into();
        match errno {
            Errno::SRCH => Self::Gone { pid, file },
            Errno::NOENT => Self::Missing { pid, file },
            Errno::ACCESS | Errno::PERM => Self::Denied { pid, file, source: errno.into() },
            _ => Self::Io { pid, file, source: errno.into() },
        }
    }

    /// Sorts an error of the standard library.
    pub(crate) fn from_io(pid: i32, file: impl Into<String>, source: io::Error) -> Self {
        match Errno::from_io_error(&source) {
            Some(errno) => Self::new(pid, file, errno),
            None => Self::Io { pid, file: file.into(), source },
        }
    }

    /// Whether the process (or thread) ended.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }

    /// Whether the file does not exist although the process does.
    #[must_use]
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }

    /// Whether the kernel refused for lack of rights.
    #[must_use]
    pub const fn is_denied(&self) -> bool {
        matches!(self, Self::Denied { .. })
    }
}
