//! kcmp(2): whether two tasks share a kernel object.
//!
//! # Safety
//! Unsafe here: system calls that take and return numbers, or read an event of ours; the one kind that reads memory of ours reads a local variable.

#![allow(unsafe_code, reason = "kcmp has no safe wrapper, see Safety above")]

use std::cmp::Ordering;
use std::io;

use crate::twin;

/// What two tasks may share. The numbers are the kernel's `KCMP_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Shared {
    /// Address space.
    Memory = 1,
    /// Table of file descriptors.
    Files = 2,
    /// Working directory, root and umask.
    Fs = 3,
    /// Signal handlers.
    SignalHandlers = 4,
    /// I/O context.
    Io = 5,
    /// System V semaphore undo list.
    SemaphoreUndo = 6,
}

const KCMP_FILE: u8 = 0;
const KCMP_EPOLL_TFD: u8 = 7;

/// `struct kcmp_epoll_slot`.
#[repr(C)]
struct EpollSlot {
    epoll: u32,
    fd: u32,
    offset: u32,
}

/// Compares the objects two tasks (process or thread ids) have: equal means one and the same.
///
/// The order is arbitrary but total until the next boot, so that many can be sorted instead of compared in pairs.
///
/// # Errors
/// `ESRCH` when a task is gone, `EPERM` when we may not trace both, `ENOSYS` on a kernel without kcmp.
pub fn compare(what: Shared, first: i32, second: i32) -> io::Result<Ordering> {
    kcmp(first, second, what as u8, 0, 0)
}

/// Whether two descriptors refer to the same open file description, as an order to sort by: equal means the same.
///
/// # Errors
/// As [`compare`]; `EBADF` when a descriptor is not open.
pub fn same_file(first: i32, first_fd: i32, second: i32, second_fd: i32) -> io::Result<Ordering> {
    let number = |fd| u64::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF));
    kcmp(first, second, KCMP_FILE, number(first_fd)?, number(second_fd)?)
}

/// Whether a descriptor (of a process, by number) is what the epoll instance at another one watches under number `watched`: the one that
/// comes `offset` behind the first of that number, in the order of fdinfo.
///
/// # Errors
/// As [`compare`]; `EBADF` when a descriptor is not open, `ENOENT` when there is no such watch.
pub fn same_as_watched(
    (holder, fd): (i32, i32),
    (pid, epoll): (i32, i32),
    watched: i32,
    offset: usize,
) -> io::Result<Ordering> {
    let number = |fd| u32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF));
    let offset = u32::try_from(offset).map_err(io::Error::other)?;
    let slot = EpollSlot { epoll: number(epoll)?, fd: number(watched)?, offset };
    let address = (&raw const slot).expose_provenance();
    let address = u64::try_from(address).map_err(io::Error::other)?;
    kcmp(holder, pid, KCMP_EPOLL_TFD, number(fd)?.into(), address)
}

/// Whether an error says that this kernel, or a filter, does not let anybody compare.
#[must_use]
pub fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS | libc::EACCES))
}

/// Whether a thread shares something with its process. A copy of the process knows it otherwise, where nobody may compare.
///
/// # Errors
/// As [`compare`].
pub fn shared_with_thread(what: Shared, pid: i32, tid: i32) -> io::Result<bool> {
    match compare(what, pid, tid) {
        Err(error) if is_refused(&error) => {
            if pid == tid {
                Ok(true)
            } else {
                twin::shares(what, pid, tid).ok_or(error)
            }
        }
        order => order.map(Ordering::is_eq),
    }
}

/// Whether two descriptors of a process that this one is a copy of refer to the same open file description: asked of its own, for which
/// nobody needs a right.
///
/// # Errors
/// The kernel's: one before Linux 6.10 does not tell.
pub fn same_in_copy(first: i32, second: i32) -> io::Result<bool> {
    /// `F_DUPFD_QUERY`
    const QUERY: libc::c_int = 1024 + 3;
    // SAFETY: fcntl takes numbers only, which the kernel checks.
    match unsafe { libc::fcntl(first, QUERY, second) } {
        -1 => Err(io::Error::last_os_error()),
        same => Ok(same == 1),
    }
}

/// Whether a descriptor of a process that this one is a copy of is what its epoll instance watches under that number: the kernel does not
/// let it be added once more.
///
/// # Errors
/// The kernel's.
pub fn watched_in_copy(epoll: i32, fd: i32) -> io::Result<bool> {
    let mut nothing = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: an event of ours.
    let mut change = |operation| match unsafe { libc::epoll_ctl(epoll, operation, fd, &raw mut nothing) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    match change(libc::EPOLL_CTL_ADD) {
        Ok(()) => change(libc::EPOLL_CTL_DEL).map(|()| false),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(true),
        Err(error) => Err(error),
    }
}

fn kcmp(first: i32, second: i32, what: u8, index1: u64, index2: u64) -> io::Result<Ordering> {
    // SAFETY: kcmp takes numbers only, which the kernel checks; for KCMP_EPOLL_TFD `index2` is the address of a slot that lives in our
    // caller until the call is over, and is only read.
    let result =
        unsafe { libc::syscall(libc::SYS_kcmp, first, second, libc::c_int::from(what), index1, index2) };
    match result {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        -1 => Err(io::Error::last_os_error()),
        // 3: different, but in no order.
        _ => Err(io::Error::other("kcmp gives no order")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn duplicates_are_the_same_file() {
        let own = std::process::id().cast_signed();
        let (reader, writer) = io::pipe().unwrap();
        let twin = reader.try_clone().unwrap();
        let same = |a: i32, b: i32| same_file(own, a, own, b).unwrap();
        assert_eq!(same(reader.as_raw_fd(), twin.as_raw_fd()), Ordering::Equal);
        let order = same(reader.as_raw_fd(), writer.as_raw_fd());
        assert_ne!(order, Ordering::Equal);
        assert_eq!(same(writer.as_raw_fd(), reader.as_raw_fd()), order.reverse());
        let error = same_file(own, 999_999, own, 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        assert!(same_file(own, -1, own, 0).is_err());
    }

    #[test]
    fn what_an_epoll_watches_is_known_behind_any_number() {
        use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
        let own = std::process::id().cast_signed();
        let (reader, writer) = io::pipe().unwrap();
        let twin = reader.try_clone().unwrap();
        let instance = epoll::create(CreateFlags::CLOEXEC).unwrap();
        epoll::add(&instance, &reader, EventData::new_u64(1), EventFlags::IN).unwrap();
        let (number, epoll) = (reader.as_raw_fd(), instance.as_raw_fd());
        drop(reader);
        let watched = |fd: i32, offset| same_as_watched((own, fd), (own, epoll), number, offset);
        assert_eq!(watched(twin.as_raw_fd(), 0).unwrap(), Ordering::Equal);
        assert_ne!(watched(writer.as_raw_fd(), 0).unwrap(), Ordering::Equal);
        assert_eq!(watched(twin.as_raw_fd(), 1).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn a_copy_knows_duplicates_by_its_own() {
        let (reader, writer) = io::pipe().unwrap();
        let twin = reader.try_clone().unwrap();
        match same_in_copy(reader.as_raw_fd(), twin.as_raw_fd()) {
            Ok(same) => {
                assert!(same);
                assert!(!same_in_copy(reader.as_raw_fd(), writer.as_raw_fd()).unwrap());
                assert!(same_in_copy(reader.as_raw_fd(), 999_999).is_err());
            }
            // Before Linux 6.10.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINVAL)),
        }
    }

    #[test]
    fn threads_share_and_children_do_not() {
        let own = std::process::id().cast_signed();
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id().cast_signed();
        for what in [Shared::Memory, Shared::Files, Shared::Fs, Shared::SignalHandlers] {
            assert_eq!(compare(what, own, tid).unwrap(), Ordering::Equal);
            assert_ne!(compare(what, own, pid).unwrap(), Ordering::Equal);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(compare(Shared::Memory, own, pid).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
