//! Which pages a running process writes to: userfaultfd(2) in its asynchronous write-protect mode (Linux 6.7).
//!
//! The object is made by the process itself and is about its memory wherever the descriptor is: whoever holds it registers mappings, and
//! [`PageMap::take_written`](crate::pagemap::PageMap::take_written) protects their pages. A write to a protected page takes the protection
//! away, in the kernel, without asking anybody. When the last descriptor is closed everything is as before.
//!
//! Registered mappings do not merge with others. So that what the process maps anew in their midst comes to be one with them before it
//! can tell, its calls that unmap some of them wait until the news is taken: whoever holds the descriptor must be quick, and registers first.
//!
//! # Safety
//! ioctl(2) with structures of ours, of the kernel's layout.
#![allow(unsafe_code, reason = "ioctls of userfaultfd, see Safety above")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::addr::RemoteAddr;

/// `UFFD_USER_MODE_ONLY`: needs no privilege. Writes by the kernel take protection away all the same.
const USER_MODE_ONLY: u64 = 1;
/// Flags of userfaultfd(2) for what is made to be handed on.
pub const FLAGS: u64 = USER_MODE_ONLY | libc::O_CLOEXEC as u64 | libc::O_NONBLOCK as u64;

/// File status flags that the object gets at once. A program has no use for O_APPEND here: so a descriptor that was left behind, because
/// whoever asked for it was killed in that moment, is known for what it is.
pub const STATUS: i32 = libc::O_NONBLOCK | libc::O_APPEND;
/// Where links of descriptors of such objects lead.
const LINK: &[u8] = b"anon_inode:[userfaultfd]";

/// Whether a descriptor is one that was left behind: of no use and no harm.
#[must_use]
pub fn is_left_over(link: &[u8], flags: u32) -> bool {
    let ours = STATUS.cast_unsigned();
    link == LINK && flags & ours == ours
}

/// `UFFD_API`.
const VERSION: u64 = 0xaa;
/// `UFFD_FEATURE_EVENT_UNMAP`, `UFFD_FEATURE_WP_UNPOPULATED`, `UFFD_FEATURE_WP_ASYNC`. Not `EVENT_REMAP`: protection would move with
/// pages, and what lies at an address now pass for what was copied from there before.
const FEATURES: u64 = 1 << 6 | 1 << 13 | 1 << 15;
/// Room for one event (`struct uffd_msg`). In more, one read would take the next call of a thread with that which it has just let go.
const EVENT: usize = 32;
/// `UFFDIO_REGISTER_MODE_WP`.
const WRITE_PROTECT: u64 = 1 << 1;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    version: u64,
    features: u64,
    calls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    calls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Span {
    start: u64,
    len: u64,
}

/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`, `_IOWR(0xaa, 0, struct uffdio_register)`, `_IOR(0xaa, 1, struct uffdio_range)`.
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01;
const _: () = assert!(size_of::<Api>() == 0x18 && size_of::<Register>() == 0x20 && size_of::<Span>() == 0x10);

/// The means to protect a process's pages.
#[derive(Debug)]
pub struct WriteTracking(OwnedFd);

impl WriteTracking {
    /// Of a descriptor fresh from userfaultfd(2).
    ///
    /// # Errors
    /// EINVAL where the kernel cannot do it.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut api = Api { version: VERSION, features: FEATURES, calls: 0 };
        // SAFETY: a structure of ours of the layout that the kernel reads and writes.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(fd)) }
    }

    /// Makes pages of all mappings in a range protectable. Those that are already cost next to nothing.
    ///
    /// # Errors
    /// EBUSY when the process does the like itself, EINVAL or EPERM for memory of a kind that cannot be, EINVAL where nothing is mapped;
    /// ESRCH when the process is gone.
    pub fn register(&self, range: &Range<RemoteAddr>) -> io::Result<()> {
        let (start, end) = (range.start.get(), range.end.get());
        let mut register = Register { start, len: end - start, mode: WRITE_PROTECT, calls: 0 };
        // SAFETY: as above.
        let done = unsafe { libc::ioctl(self.0.as_fd().as_raw_fd(), UFFDIO_REGISTER, &raw mut register) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes all of this back for a range, in one step. When the last descriptor is closed the kernel does the like, but lets calls that
    /// would have to wait pass a moment before: what they mapped does not merge with its neighbours in that moment.
    ///
    /// # Errors
    /// EINVAL where nothing is mapped, or memory of a kind that could not be registered.
    pub fn unregister(&self, range: &Range<RemoteAddr>) -> io::Result<()> {
        let (start, end) = (range.start.get(), range.end.get());
        let span = Span { start, len: end - start };
        // SAFETY: as above; this one is only read.
        let done = unsafe { libc::ioctl(self.0.as_fd().as_raw_fd(), UFFDIO_UNREGISTER, &raw const span) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Lets one call of the process that waits for it go on, which has unmapped something.
    ///
    /// # Errors
    /// As read(2); that nobody waits is none.
    pub fn take_event(&self) -> io::Result<()> {
        match rustix::io::read(&self.0, &mut [0; EVENT]) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for WriteTracking {
    /// To be polled: it can be read from when calls wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd as _;

    use super::*;
    use crate::pagemap::PageMap;

    /// A descriptor of this process's own.
    fn own() -> io::Result<OwnedFd> {
        // SAFETY: numbers only; the descriptor is new and ours.
        unsafe {
            let fd = libc::syscall(libc::SYS_userfaultfd, FLAGS);
            if fd < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(OwnedFd::from_raw_fd(fd.try_into().unwrap()))
            }
        }
    }

    #[test]
    fn pages_written_since_are_told_once() {
        const PAGES: usize = 64;
        let tracking = match own().and_then(WriteTracking::new) {
            Ok(tracking) => tracking,
            // Kernels before 6.7.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => return,
            Err(error) => panic!("{error}"),
        };
        // SAFETY: new memory, given back at the end.
        let memory = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), PAGES * 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        let start = RemoteAddr::new(memory.addr() as u64);
        let write = |page: usize| {
            // SAFETY: within that memory.
            unsafe { memory.cast::<u8>().add(page * 4096).write_volatile(7) }
        };
        let range = start..start + PAGES as u64 * 4096;
        [0, 1, 2, 9].into_iter().for_each(write);
        tracking.register(&range).unwrap();
        let mut map = PageMap::open(std::process::id().try_into().unwrap()).unwrap();
        let mut taken = || {
            let mut runs = Vec::new();
            map.take_written(range.clone(), &mut runs).unwrap();
            let page = |run: &crate::pagemap::Run| ((run.start.get() - start.get()) / 4096, run.len / 4096);
            runs.iter().map(page).collect::<Vec<_>>()
        };
        assert_eq!(taken(), [(0, 3), (9, 1)]);
        assert_eq!(taken(), []);
        [1, 30].into_iter().for_each(write);
        assert_eq!(taken(), [(1, 1), (30, 1)]);
        tracking.take_event().unwrap();
        write(1);
        assert_eq!(
            map.written(range.clone()).unwrap().map(|runs| runs.iter().any(|run| run.start == start + 4096)),
            Some(true)
        );
        tracking.unregister(&range).unwrap();
        assert_eq!(map.written(range).unwrap(), None);
        // SAFETY: within that memory.
        unsafe { libc::madvise(memory, 8 * 4096, libc::MADV_DONTNEED) };
        assert_eq!([0, 9].map(|page| map.has_page(start + page * 4096).unwrap()), [false, true]);
        // SAFETY: as above.
        unsafe { libc::munmap(memory, PAGES * 4096) };
    }
}
