//! `/proc/PID/pagemap`: which pages of a process hold something.
//!
//! The `PAGEMAP_SCAN` ioctl (Linux 6.7) lists runs of pages of a kind; older kernels give one 8-byte entry per page, which are read in
//! large blocks. Both answer the same questions, except that entries tell the zero page only to `CAP_SYS_ADMIN`: without that, pages
//! that were read but never written count as own content, which costs space but nothing else.
//!
//! The page tables do not tell all of *shared* memory: pages that only another process touched, or that were swapped out, have no
//! entry. [`data_runs`] asks the file system instead.

mod entries;
mod scan;

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;

use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;

use crate::addr::{PAGE_SIZE, RemoteAddr};
use crate::proc::{Proc, ProcError};

/// Pages that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub start: RemoteAddr,
    /// Bytes, whole pages.
    pub len: u64,
}

impl Run {
    /// Behind the last byte.
    #[must_use]
    pub fn end(&self) -> RemoteAddr {
        self.start + self.len
    }
}

/// A set of properties that a page can have; the kernel's `PAGE_IS_*` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pages(u64);

impl Pages {
    /// No property.
    pub const NONE: Self = Self(0);
    /// Was written to since it was write-protected by userfaultfd's asynchronous mode. Not on kernels before 6.7.
    pub const WRITTEN: Self = Self(1 << 1);
    /// Belongs to a file or to shared memory.
    pub const FILE: Self = Self(1 << 2);
    /// Is in memory.
    pub const PRESENT: Self = Self(1 << 3);
    /// Is swapped out; also set for guard pages and other markers in the page table.
    pub const SWAPPED: Self = Self(1 << 4);
    /// Is the zero page: was read, never written.
    pub const ZERO: Self = Self(1 << 5);
    /// Is part of a huge page that is mapped as one. Not on kernels before 6.7.
    pub const HUGE: Self = Self(1 << 6);
    /// Lies in a mapping whose pages can be write-protected so. Not on kernels before 6.7.
    pub const PROTECTABLE: Self = Self(1 << 0);
    /// Was written since soft-dirty bits were cleared.
    pub const SOFT_DIRTY: Self = Self(1 << 7);
    /// Is part of a guard region (`MADV_GUARD_INSTALL`). Never set on kernels before 6.15.
    pub const GUARD: Self = Self(1 << 8);

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// Which pages to find: those with every property of `all`, none of `none`, and, unless `any` is empty, at least one of `any`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Query {
    /// Properties required.
    pub all: Pages,
    /// Properties excluded.
    pub none: Pages,
    /// Properties of which one is required.
    pub any: Pages,
}

impl Query {
    /// Private pages that hold own content: in memory or swapped out, not of a file, not the zero page, no guard.
    pub const ANONYMOUS: Self = Self {
        all: Pages::NONE,
        none: Pages::FILE.and(Pages::ZERO).and(Pages::GUARD),
        any: Pages::PRESENT.and(Pages::SWAPPED),
    };
    /// Pages that have an entry in the page table, whatever they are.
    pub const RESIDENT: Self =
        Self { all: Pages::NONE, none: Pages::GUARD, any: Pages::PRESENT.and(Pages::SWAPPED) };
    /// Guard regions.
    pub const GUARD: Self = Self { all: Pages::GUARD, none: Pages::NONE, any: Pages::NONE };
}

/// Whose a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// Nobody else has it.
    Own,
    /// Others may have it too: all that have this number have the same page, as long as they stand still.
    Shared(u64),
    /// Others may have it too, and we may not know who.
    Hidden,
}

/// How the kernel is asked.
#[derive(Debug)]
enum Method {
    Scan(scan::Scan),
    Entries(entries::Entries),
}

/// The page map of a process, with buffers that are used again and again.
#[derive(Debug)]
pub struct PageMap {
    pid: i32,
    file: File,
    method: Method,
}

impl PageMap {
    /// Opens the page map of a process; finds out which way of asking the kernel knows.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn open(pid: i32) -> Result<Self, ProcError> {
        Self::of(&Proc::open(pid)?)
    }

    /// Opens the page map of a process that is already at hand.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn of(proc: &Proc) -> Result<Self, ProcError> {
        let file = proc.open_file("pagemap", OFlags::RDONLY)?;
        let method = match scan::Scan::new(&file) {
            Ok(scan) => Method::Scan(scan),
            // The kernel does not know the ioctl; an error of any other kind will show itself in a moment.
            Err(_) => Method::Entries(entries::Entries::new()),
        };
        Ok(Self { pid: proc.id(), file, method })
    }

    /// Opens the page map so that entries are read page by page, as for kernels before 6.7.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn open_entries(pid: i32) -> Result<Self, ProcError> {
        let file = Proc::open(pid)?.open_file("pagemap", OFlags::RDONLY)?;
        Ok(Self { pid, file, method: Method::Entries(entries::Entries::new()) })
    }

    /// Whether the kernel tells guard regions from pages that are swapped out (Linux 6.15).
    #[must_use]
    pub fn knows_guards(&self) -> bool {
        matches!(&self.method, Method::Scan(scan) if scan.knows_guards())
    }

    /// Appends the runs of pages in `range` that match, in order of address; neighbours are one run.
    ///
    /// `range` may reach over several mappings and over holes; runs do too, where mappings touch. Its ends are rounded to whole pages.
    ///
    /// # Errors
    /// [`ProcError::Io`] with `EINVAL` when the kernel cannot tell a property that was asked for; otherwise as [`ProcError`] tells apart.
    pub fn scan_into(
        &mut self,
        range: Range<RemoteAddr>,
        query: Query,
        runs: &mut Vec<Run>,
    ) -> Result<(), ProcError> {
        let start = range.start.get() & !(PAGE_SIZE - 1);
        let end =
            range.end.get().checked_next_multiple_of(PAGE_SIZE).unwrap_or(range.end.get() & !(PAGE_SIZE - 1));
        if start >= end {
            return Ok(());
        }
        // What the caller collected before is never merged with: its runs may belong to another mapping.
        let first = runs.len();
        let mut found = |from: u64, to: u64| push(runs, first, from, to);
        let result = match &mut self.method {
            Method::Scan(scan) => scan.run(&self.file, start..end, query, &mut found),
            Method::Entries(entries) => entries.run(&self.file, start..end, query, &mut found),
        };
        result.map_err(|errno| ProcError::new(self.pid, "pagemap", errno))
    }

    /// Appends the runs of private pages with own content that were written to since they were write-protected, and protects them at once.
    /// All of `range` is registered with [`WriteTracking`](crate::userfault::WriteTracking).
    ///
    /// # Errors
    /// EPERM when part of it is not; EOPNOTSUPP where the kernel cannot do it.
    pub fn take_written(&mut self, range: Range<RemoteAddr>, runs: &mut Vec<Run>) -> Result<(), ProcError> {
        let first = runs.len();
        let range = range.start.get()..range.end.get();
        let taken = match &mut self.method {
            Method::Scan(scan) => {
                scan.take_written(&self.file, range, &mut |from, to| push(runs, first, from, to))
            }
            Method::Entries(_) => Err(Errno::OPNOTSUPP),
        };
        taken.map_err(|errno| ProcError::new(self.pid, "pagemap", errno))
    }

    /// The runs of pages in `range` that are not write-protected, whatever they hold; `None` when part of it is not registered.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn written(&mut self, range: Range<RemoteAddr>) -> Result<Option<Vec<Run>>, ProcError> {
        let Method::Scan(scan) = &mut self.method else { return Ok(None) };
        let mut runs = Vec::new();
        let range = range.start.get()..range.end.get();
        match scan.written(&self.file, range, &mut |from, to| push(&mut runs, 0, from, to)) {
            Ok(()) => Ok(Some(runs)),
            Err(Errno::PERM) => Ok(None),
            Err(errno) => Err(ProcError::new(self.pid, "pagemap", errno)),
        }
    }

    /// Whether there is a page, in memory or in swap, at an address.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn has_page(&mut self, address: RemoteAddr) -> Result<bool, ProcError> {
        let mut runs = Vec::new();
        self.scan_into(address..address + PAGE_SIZE, Query::RESIDENT, &mut runs)?;
        Ok(!runs.is_empty())
    }

    /// The runs of pages in `range` that match: [`PageMap::scan_into`] with a new list.
    ///
    /// # Errors
    /// As [`PageMap::scan_into`].
    pub fn scan(&mut self, range: Range<RemoteAddr>, query: Query) -> Result<Vec<Run>, ProcError> {
        let mut runs = Vec::new();
        self.scan_into(range, query, &mut runs)?;
        Ok(runs)
    }

    /// Of each page in `range`, whole pages, whose it is. Pages that hold nothing count as [`Frame::Own`].
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn frames(&self, range: Range<RemoteAddr>) -> Result<Vec<Frame>, ProcError> {
        let frames = entries::frames(&self.file, range.start.get()..range.end.get());
        frames.map_err(|errno| ProcError::new(self.pid, "pagemap", errno))
    }

    /// Private pages that hold own content ([`Query::ANONYMOUS`]): what a checkpoint must save of private mappings.
    ///
    /// # Errors
    /// As [`PageMap::scan_into`].
    pub fn anonymous_pages(&mut self, range: Range<RemoteAddr>) -> Result<Vec<Run>, ProcError> {
        self.scan(range, Query::ANONYMOUS)
    }

    /// Pages of shared memory that this process has in its page table ([`Query::RESIDENT`]). The object may hold more: see [`data_runs`].
    ///
    /// # Errors
    /// As [`PageMap::scan_into`].
    pub fn resident_pages(&mut self, range: Range<RemoteAddr>) -> Result<Vec<Run>, ProcError> {
        self.scan(range, Query::RESIDENT)
    }

    /// Guard regions: unreadable though the mapping may be readable. Empty on kernels that cannot tell (before 6.15).
    ///
    /// # Errors
    /// As [`PageMap::scan_into`].
    pub fn guard_pages(&mut self, range: Range<RemoteAddr>) -> Result<Vec<Run>, ProcError> {
        self.scan(range, Query::GUARD)
    }
}

/// Adds `from..to`, which comes after everything added before, to the runs behind `first`.
fn push(runs: &mut Vec<Run>, first: usize, from: u64, to: u64) {
    if let Some(last) = runs[first..].last_mut()
        && last.end().get() == from
    {
        last.len += to - from;
        return;
    }
    runs.push(Run { start: RemoteAddr::new(from), len: to - from });
}

/// Parts of a file, within `range`, that are not holes. For shared memory (`Proc::open_mapped_file`) these are exactly the pages that
/// hold something, in memory or swapped out, whoever touched them. The position of the description moves: open the file anew for this.
///
/// # Errors
/// What `lseek` says.
pub fn data_runs(file: impl AsFd, range: Range<u64>) -> std::io::Result<Vec<Range<u64>>> {
    let mut runs = Vec::new();
    let mut position = range.start;
    while position < range.end {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(position)) {
            Ok(start) if start < range.end => start,
            // ENXIO: only a hole follows.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        position = rustix::fs::seek(&file, SeekFrom::Hole(start))?.min(range.end);
        runs.push(start..position);
    }
    Ok(runs)
}

#[cfg(test)]
#[path = "pagemap/tests.rs"]
mod tests;
