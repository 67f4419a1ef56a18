//! From a live process to an image of it.
//!
//! [`capture`] runs the phases in order: preflight, freeze, ask, memory, files, pages, thaw, commit. It leaves the target as it was,
//! whatever fails and whoever is killed meanwhile: the process that holds the target is not the caller but its guardian.

mod ahead;
mod ask;
mod capture;
mod commit;
mod contents;
mod error;
mod family;
mod files;
mod findings;
mod freeze;
mod guardian;
mod ipc;
mod kin;
mod memory;
pub mod own;
mod pages;
mod preflight;
mod process;
mod relations;
mod seccomp;
mod signals;
mod spaces;
mod still;
mod threads;
mod timers;
mod waiting;
mod watch;

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

pub use error::{CaptureError, Obstacle};
pub use rewake_image::Compression;

/// What to capture, and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// The process.
    pub pid: i32,
    /// The image: a directory that does not exist yet, in one that does.
    pub dir: PathBuf,
    /// Kill the process as soon as the image is durable; otherwise it goes on.
    pub kill: bool,
    /// Whose content goes into the image besides memory: 0 none, 1 files open for writing, 2 all open regular files, 3 mapped files
    /// too. Files without a name go in at every level.
    pub file_level: u8,
    /// How pages are stored.
    pub compression: Compression,
    /// How the target is kept from standing still for long.
    pub mode: Mode,
    /// How long to wait for a thread to come to rest before giving up.
    pub freeze_timeout: Duration,
    /// Addresses in private memory that need not be kept, where they also carry the advice `MADV_DONTDUMP`.
    pub excluded: Vec<Range<u64>>,
    /// What images of this program's lives have in common; nothing if nobody says.
    pub lineage: Vec<u8>,
}

impl Options {
    /// The defaults: the process goes on, pages are stored as they are.
    #[must_use]
    pub fn new(pid: i32, dir: impl Into<PathBuf>) -> Self {
        Self {
            pid,
            dir: dir.into(),
            kill: false,
            file_level: 1,
            compression: Compression::None,
            mode: Mode::Auto,
            freeze_timeout: Duration::from_secs(10),
            excluded: Vec::new(),
            lineage: Vec::new(),
        }
    }
}

/// How memory is saved of a target that goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// What harms no target: that it stands still, for now.
    #[default]
    Auto,
    /// It stands still until all of its memory is written.
    Stop,
    /// Memory is copied while it runs; it stands still for what it wrote to in the meantime. What cannot be is refused.
    PreCopy,
}

/// What was captured.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The image.
    pub dir: PathBuf,
    /// Processes in it.
    pub pids: usize,
    /// Threads in it.
    pub threads: usize,
    /// Size of the image on disk, in bytes.
    pub bytes: u64,
    /// Memory in it before compression, in bytes.
    pub memory: u64,
    /// Files that the program has open for writing, and whose content is not in the image.
    pub files_for_writing: usize,
    /// Files whose content is in the image.
    pub files_stored: usize,
    /// Contexts of asynchronous I/O (io_setup) of the program: requests that were still in flight are not in the image, and whether
    /// there were any cannot be seen.
    pub aio_contexts: usize,
    /// Addresses of sockets of other programs, to which the program sends datagrams (the system log): it is connected to them again when
    /// it is resumed.
    pub outside_sockets: Vec<String>,
    /// Processes, by id and name, in a group or session of the target's that are not below it any more, because their parent ended: they
    /// are not in the image, and keep the ids of those groups and sessions.
    pub strays: Vec<String>,
    /// From the first interruption to the last release.
    pub paused: Duration,
    /// From the call of [`capture`] to the durable image.
    pub total: Duration,
}

/// What [`capture`] tells while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The phase that begins.
    Phase(&'static str),
    /// Bytes of memory written so far, and in all.
    Pages {
        /// So far.
        done: u64,
        /// In all.
        total: u64,
    },
}

/// Captures a process. Exits nothing, prints nothing.
///
/// It forks, and so must be called while the caller has a single thread. It leaves `SIGXFSZ` ignored: a limit of file sizes becomes an
/// error like others. Stop signals of the terminal take effect when the target is released.
///
/// # Errors
/// When there is no image: the target has state that cannot be captured, or a step failed. The target then goes on as if nothing had
/// happened.
pub fn capture(options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Summary, CaptureError> {
    capture::run(options, progress)
}

/// Everything that can be known to stand in the way of a capture, without touching the target. What only the freeze can tell (state
/// that changes meanwhile) is checked again by [`capture`].
///
/// # Errors
/// When the look itself fails.
pub fn obstacles(options: &Options) -> Result<Vec<Obstacle>, CaptureError> {
    preflight::look(options)
}

/// Where the image of `pid` goes when nobody says: `./rewake-PID-N`, with the first N from 1 that is free.
#[must_use]
pub fn default_dir(pid: i32) -> PathBuf {
    (1u64..)
        .map(|n| PathBuf::from(format!("rewake-{pid}-{n}")))
        .find(|dir| dir.symlink_metadata().is_err())
        .expect("some number is free")
}
