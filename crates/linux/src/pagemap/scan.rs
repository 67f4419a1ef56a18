//! The `PAGEMAP_SCAN` ioctl, from the kernel's `include/uapi/linux/fs.h`.
//!
//! # Safety
//! The one unsafe block calls the ioctl with a structure of ours that names a buffer of ours and its length.

#![allow(unsafe_code, reason = "an ioctl that writes through a pointer, see Safety above")]

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

use rustix::io::Errno;

use super::{Pages, Query};

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`: the argument's size (96) stands in the number.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610;
const _: () = assert!(size_of::<ScanArgument>() == 0x60 && size_of::<Region>() == 24);

/// Regions per call: 192 KiB of results.
const REGIONS: usize = 8192;

/// `PM_SCAN_WP_MATCHING`: what is found is write-protected.
const PROTECT: u64 = 1;
/// `PM_SCAN_CHECK_WPASYNC`: EPERM where that cannot be.
const PROTECTABLE_ONLY: u64 = 2;

/// What one call asks for.
#[derive(Clone, Copy, Debug)]
struct Request {
    query: Query,
    flags: u64,
}

/// The buffer for results, and what the kernel knows.
#[derive(Debug)]
pub(super) struct Scan {
    regions: Vec<Region>,
    /// Whether `PAGE_IS_GUARD` exists (Linux 6.15).
    guard: bool,
}

impl Scan {
    /// Tries the ioctl on an empty range, with the youngest property and without.
    pub(super) fn new(file: &File) -> Result<Self, Errno> {
        let mut scan = Self { regions: vec![Region::default(); REGIONS], guard: true };
        let probe = Query { any: Pages::GUARD, ..Query::default() };
        match scan.call(file, &(0..0), Request { query: probe, flags: 0 }) {
            Ok(_) => Ok(scan),
            Err(Errno::INVAL) => {
                scan.guard = false;
                let query = Query::ANONYMOUS.without_guard();
                scan.call(file, &(0..0), Request { query, flags: 0 }).map(|_| scan)
            }
            Err(errno) => Err(errno),
        }
    }

    pub(super) const fn knows_guards(&self) -> bool {
        self.guard
    }

    /// Tells `found` about every region that matches, in order; neighbours may come apart.
    pub(super) fn run(
        &mut self,
        file: &File,
        range: Range<u64>,
        query: Query,
        found: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Errno> {
        let query = if self.guard {
            query
        } else if query.all.has(Pages::GUARD) || query.any == Pages::GUARD {
            return Ok(());
        } else {
            query.without_guard()
        };
        self.walk(file, range, Request { query, flags: 0 }, found)
    }

    /// Pages with own content that were written to, which are protected in the same step.
    pub(super) fn take_written(
        &mut self,
        file: &File,
        range: Range<u64>,
        found: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Errno> {
        let query = Query { all: Pages::WRITTEN.and(Pages::PROTECTABLE), ..Query::ANONYMOUS };
        let query = if self.guard { query } else { query.without_guard() };
        self.walk(file, range, Request { query, flags: PROTECT | PROTECTABLE_ONLY }, found)
    }

    /// Pages that are not protected: asked so, and in no other way, the kernel is quick to answer.
    pub(super) fn written(
        &mut self,
        file: &File,
        range: Range<u64>,
        found: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Errno> {
        let query = Query { all: Pages::WRITTEN, ..Query::default() };
        self.walk(file, range, Request { query, flags: PROTECTABLE_ONLY }, found)
    }

    fn walk(
        &mut self,
        file: &File,
        range: Range<u64>,
        request: Request,
        found: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Errno> {
        // Not `walk_end`: the kernel fills the buffer in batches of 512 and, when the walk comes to its end after more than one, leaves
        // there where the last batch began (seen on 6.18). A buffer that is not full is what tells that the walk is complete.
        let mut rest = range;
        loop {
            let filled = self.call(file, &rest, request)?;
            for region in &self.regions[..filled] {
                found(region.start, region.end);
            }
            match self.regions[..filled].last() {
                Some(last) if filled == self.regions.len() && last.end < rest.end => rest.start = last.end,
                _ => return Ok(()),
            }
        }
    }

    /// One call: how many regions were filled.
    fn call(&mut self, file: &File, range: &Range<u64>, request: Request) -> Result<usize, Errno> {
        let Request { query, flags } = request;
        let mut argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            flags,
            start: range.start,
            end: range.end,
            regions: self.regions.as_mut_ptr().expose_provenance() as u64,
            regions_len: self.regions.len() as u64,
            category_inverted: query.none.0,
            category_mask: query.all.0 | query.none.0,
            category_anyof_mask: query.any.0,
            // Runs are split where the properties returned differ: those that all have split none.
            return_mask: query.all.0,
            ..ScanArgument::default()
        };
        loop {
            // SAFETY: the argument has the layout and size of struct pm_scan_arg, and names a buffer of `regions_len` regions that we
            // borrow mutably; the kernel writes to nothing else.
            let result = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            match usize::try_from(result) {
                Ok(filled) => return Ok(filled.min(self.regions.len())),
                Err(_) => match Errno::from_io_error(&std::io::Error::last_os_error()) {
                    Some(Errno::INTR) => {}
                    errno => return Err(errno.unwrap_or(Errno::IO)),
                },
            }
        }
    }
}

impl Query {
    /// The same question to a kernel that knows no guard pages.
    const fn without_guard(self) -> Self {
        Self {
            all: self.all.without(Pages::GUARD),
            none: self.none.without(Pages::GUARD),
            any: self.any.without(Pages::GUARD),
        }
    }
}
