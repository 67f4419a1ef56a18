//! `/proc/PID`: what the kernel tells about a process without its help.
//!
//! A [`Proc`] holds the directory open, so that it never speaks of another process that got the same id later: once its process is
//! gone, every read fails with [`ProcError::Gone`]. The same type stands for a thread (`/proc/PID/task/TID`).
//! When the first thread of a process has ended (a zombie while others go on), `/proc/PID` shows no memory, links or descriptors:
//! [`Proc::open_living`] looks through a thread that lives.
//!
//! Parsing is kept apart from reading: every file has a `parse` function that takes bytes.

mod clocks;
mod error;
mod fdinfo;
mod fds;
mod holders;
mod limits;
mod link;
mod maps;
mod misc;
mod sched;
mod stat;
mod status;
mod task;
mod text;
mod timers;

pub use clocks::ClockOffsets;
pub use error::ProcError;
pub use fdinfo::{FdInfo, Lock, LockKind};
pub use fds::Fd;
pub use holders::holders;
pub use limits::{Limit, RESOURCES, parse_limits};
pub use link::{FileStat, Link};
pub use maps::{Mapping, MappingKind, VmFlags, parse_maps, parse_smaps};
pub use sched::Sched;
pub use stat::Stat;
pub use status::{Capabilities, Status};
pub use task::{children_by_scan, descendants, processes};
pub use text::ParseError;
pub use timers::{PosixTimer, parse_timers};

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The directory of a process or a thread, held open.
#[derive(Debug)]
pub struct Proc {
    id: i32,
    /// The thread through which memory, links and descriptors are seen.
    living: i32,
    directory: OwnedFd,
}

impl Proc {
    /// Opens `/proc/PID`.
    ///
    /// # Errors
    /// [`ProcError::Gone`] when there is no such process.
    pub fn open(pid: i32) -> Result<Self, ProcError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()) {
            Ok(directory) => Ok(Self { id: pid, living: pid, directory }),
            Err(Errno::NOENT | Errno::SRCH) => Err(ProcError::Gone { pid, file: String::new() }),
            Err(errno) => Err(ProcError::new(pid, "", errno)),
        }
    }

    /// Opens the directory of a process in a way that shows its memory, links and descriptors even when its first thread has ended:
    /// then it is `/proc/TID` of a thread that lives, [`Proc::living`]. For a zombie it is the zombie's.
    ///
    /// # Errors
    /// [`ProcError::Gone`] when there is no such process; otherwise as [`ProcError`] tells apart.
    pub fn open_living(pid: i32) -> Result<Self, ProcError> {
        let ended = |state| matches!(state, 'Z' | 'X');
        let leader = Self::open(pid)?;
        if !ended(leader.stat()?.state) {
            return Ok(leader);
        }
        for tid in leader.threads()? {
            // Every thread has a directory there, though listings of /proc leave them out.
            match Self::open(tid).and_then(|thread| Ok((thread.status()?, thread))) {
                Ok((status, thread)) if status.tgid == pid && !ended(char::from(status.state)) => {
                    return Ok(Self { id: pid, ..thread });
                }
                Ok(_) => {}
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(leader)
    }

    /// Opens `/proc/self`.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn own() -> Result<Self, ProcError> {
        Self::open(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// Opens the thread `tid` of this process (`task/TID`).
    ///
    /// # Errors
    /// [`ProcError::Gone`] when the thread or the process is gone.
    pub fn thread(&self, tid: i32) -> Result<Self, ProcError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = format!("task/{tid}");
        match rustix::fs::openat(&self.directory, &file, flags, Mode::empty()) {
            Ok(directory) => Ok(Self { id: tid, living: tid, directory }),
            Err(Errno::NOENT | Errno::SRCH) => Err(ProcError::Gone { pid: self.id, file }),
            Err(errno) => Err(ProcError::new(self.id, file, errno)),
        }
    }

    /// The id this was opened with: of the process, or of the thread.
    #[must_use]
    pub const fn id(&self) -> i32 {
        self.id
    }

    /// The thread by whose id the kernel is asked for what threads share: the first one, unless that has ended.
    #[must_use]
    pub const fn living(&self) -> i32 {
        self.living
    }

    /// Whether the process (or thread) still exists; a zombie does.
    #[must_use]
    pub fn exists(&self) -> bool {
        rustix::fs::accessat(
            &self.directory,
            "stat",
            rustix::fs::Access::EXISTS,
            rustix::fs::AtFlags::empty(),
        )
        .is_ok()
    }

    /// Opens a file of the directory, for instance `mem` or `pagemap`. Close-on-exec is added to `flags`.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn open_file(&self, file: &str, flags: OFlags) -> Result<File, ProcError> {
        rustix::fs::openat(&self.directory, file, flags | OFlags::CLOEXEC, Mode::empty())
            .map(File::from)
            .map_err(|errno| self.error(file, errno))
    }

    /// The whole of a file of the directory.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn read(&self, file: &str) -> Result<Vec<u8>, ProcError> {
        let mut bytes = Vec::new();
        self.read_into(file, &mut bytes)?;
        Ok(bytes)
    }

    /// Like [`Proc::read`], into a buffer that is cleared first and can be used again.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn read_into(&self, file: &str, bytes: &mut Vec<u8>) -> Result<(), ProcError> {
        bytes.clear();
        let mut opened = self.open_file(file, OFlags::RDONLY)?;
        opened.read_to_end(bytes).map_err(|source| ProcError::from_io(self.id, file, source))?;
        Ok(())
    }

    /// Names this process and `file` in the error of a system call; finds out what a missing file means.
    fn error(&self, file: &str, errno: Errno) -> ProcError {
        if errno == Errno::NOENT && !self.exists() {
            return ProcError::Gone { pid: self.id, file: file.to_owned() };
        }
        ProcError::new(self.id, file, errno)
    }

    /// Names this process and `file` in what a parser could not understand.
    fn malformed(&self, file: &str) -> impl FnOnce(ParseError) -> ProcError + use<> {
        let (pid, file) = (self.id, file.to_owned());
        move |ParseError(detail)| ProcError::Malformed { pid, file, detail }
    }
}

impl AsFd for Proc {
    /// The directory (`O_PATH`).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ended_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let proc = Proc::open(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(proc.exists());
        assert!(matches!(proc.read("no_such_file"), Err(ProcError::Missing { .. })));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!proc.exists());
        let error = proc.read("stat").unwrap_err();
        assert!(error.is_gone(), "{error}");
        assert!(proc.stat().unwrap_err().is_gone());
        assert!(proc.threads().unwrap_err().is_gone());
        assert!(Proc::open(proc.id()).unwrap_err().is_gone());
        assert!(error.to_string().contains(&format!("pid {}", proc.id())), "{error}");
    }

    #[test]
    fn a_zombie_has_nothing_left() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let proc = Proc::open(i32::try_from(child.id()).unwrap()).unwrap();
        while proc.stat().unwrap().state != 'Z' {
            std::thread::yield_now();
        }
        assert!(proc.exists());
        assert_eq!(proc.maps().unwrap(), []);
        let status = proc.status().unwrap();
        assert_eq!((status.state, status.has_memory, status.umask), (b'Z', false, None));
        assert_eq!(proc.cmdline().unwrap(), b"");
        assert!(!proc.exe().unwrap_err().is_gone());
        assert_eq!(Proc::open_living(proc.id()).unwrap().id(), proc.id());
        child.wait().unwrap();
    }

    #[test]
    fn permission_denied_is_told_apart() {
        assert!(ProcError::new(1, "mem", Errno::ACCESS).is_denied());
        assert!(ProcError::new(1, "mem", Errno::PERM).is_denied());
        assert!(!ProcError::new(1, "mem", Errno::IO).is_denied());
        assert!(ProcError::new(1, "mem", Errno::SRCH).is_gone());
    }
}
