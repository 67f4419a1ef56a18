//! Named pipes: whether all that has one open is in the target. Whatever is done to find out leaves alone who waits to open it: no end
//! is opened, only those that the target has are looked at.

use std::os::fd::{AsFd, OwnedFd};

use rewake_linux::attributes;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FileType;
use rustix::pipe::SpliceFlags;

use super::Seen;
use super::kind::{LET_FINISH, refuse};
use super::removed::Removed;
use crate::findings::Refusal;

/// Standard error.
const HIGHEST_STREAM: i32 = 2;

/// Whether it is a fifo that can be found again, or made.
pub(super) fn is_one(one: &Seen, removed: &Removed) -> bool {
    FileType::from_raw_mode(one.link.stat.mode) == FileType::Fifo
        && (one.link.reachable || removed.id(&one.link).is_some())
}

/// Whether the ends that the target has may be all there are. What another process is seen to hold is asked elsewhere.
pub(super) fn may_be_inside(ends: &[&Seen]) -> bool {
    let stream = |one: &&&Seen| one.fd <= HIGHEST_STREAM && (one.reads() || one.writes());
    let stream = ends.iter().find(stream).is_some();
    let reader = ends.iter().find(|one| one.reads());
    let writer = ends.iter().find(|one| one.writes());
    match (reader, writer) {
        (Some(_), Some(_)) | (None, None) => true,
        // A standard stream that nobody reads any more becomes resume's; one that nobody writes to any more keeps what is in it.
        (Some(reader), None) if stream => polls(reader, PollFlags::HUP),
        (None, Some(_)) if stream => false,
        (Some(reader), None) => has_no_writer(reader),
        (None, Some(writer)) => polls(writer, PollFlags::ERR),
    }
}

/// Whether a reading end still waits for its first writer. To one that had any, their end is a hang-up.
pub(super) fn awaits_writer(one: &Seen, all: &[Seen]) -> bool {
    let has_writer = || all.iter().any(|other| other.inode() == one.inode() && other.writes());
    one.reads() && !has_writer() && !polls(one, PollFlags::HUP)
}

/// Why a fifo cannot be captured.
pub(super) fn refusal<T>(one: &Seen) -> Result<T, Refusal> {
    if one.link.deleted {
        let reason = "the fifo was removed, or lives on under another name that cannot be found";
        return refuse(reason, LET_FINISH);
    }
    if !one.link.reachable {
        return refuse("the fifo cannot be found under its name", "make it reachable under that name");
    }
    refuse(
        "another process has this fifo open too, outside the captured tree, and it is no standard stream",
        "end that process first, or let the program close the descriptor",
    )
}

fn polls(one: &Seen, what: PollFlags) -> bool {
    attributes::duplicate(one.pid, one.fd).is_ok_and(|own| says(&own, what))
}

fn says(end: &OwnedFd, what: PollFlags) -> bool {
    let mut polled = [PollFd::new(end, PollFlags::IN | PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(what)
}

/// A reading end that hangs up tells it. One that does not may never have had a writer: then there is nothing to be had from it,
/// where with a writer it would be worth waiting.
fn has_no_writer(one: &Seen) -> bool {
    let Ok(own) = attributes::duplicate(one.pid, one.fd) else { return false };
    says(&own, PollFlags::HUP)
        || rustix::io::ioctl_fionread(&own).is_ok_and(|waiting| waiting > 0)
        || nothing_to_come(own.as_fd()).unwrap_or(false)
}

fn nothing_to_come(end: impl AsFd) -> std::io::Result<bool> {
    let (_reader, writer) = std::io::pipe()?;
    match rustix::pipe::tee(end, &writer, 1, SpliceFlags::NONBLOCK) {
        Ok(copied) => Ok(copied == 0),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    use rustix::fs::{CWD, Mode};

    use rewake_linux::proc::Proc;

    use super::*;

    #[test]
    fn who_may_have_the_other_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let open = |read: bool, write: bool| {
            let mut options = File::options();
            options.read(read).write(write).custom_flags(libc::O_NONBLOCK).open(&path).unwrap()
        };
        let proc = Proc::own().unwrap();
        let seen = |file: &File| {
            let fd = file.as_raw_fd();
            Seen {
                pid: proc.id(),
                fd,
                link: proc.link(&format!("fd/{fd}")).unwrap(),
                info: proc.fdinfo(fd).unwrap(),
                in_flight: false,
            }
        };
        let reader = open(true, false);
        let alone = || may_be_inside(&[&seen(&reader)]);
        let awaits = || awaits_writer(&seen(&reader), &[seen(&reader)]);
        assert!(alone() && awaits(), "nobody ever wrote");
        let writer = open(false, true);
        assert!(!alone(), "a writer that is not among the ends");
        assert!(!may_be_inside(&[&seen(&writer)]), "a reader that is not among the ends");
        assert!(may_be_inside(&[&seen(&reader), &seen(&writer)]));
        assert!(!awaits_writer(&seen(&reader), &[seen(&reader), seen(&writer)]));
        drop(writer);
        assert!(alone() && !awaits(), "it has hung up");
    }
}
