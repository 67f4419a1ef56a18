//! The 8-byte entries of `/proc/PID/pagemap`, for kernels before 6.7. Layout: the kernel's `admin-guide/mm/pagemap.rst`.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::io::Errno;

use super::{Frame, Pages, Query};
use crate::addr::PAGE_SIZE;

/// Entries read at once: 512 KiB, for 256 MiB of memory.
const ENTRIES: u64 = 65536;
const ENTRY_SIZE: u64 = 8;

/// Number of the page frame, for those who may see it.
const FRAME: u64 = (1 << 55) - 1;

/// Properties that entries can tell.
const KNOWN: Pages = Pages::FILE
    .and(Pages::PRESENT)
    .and(Pages::SWAPPED)
    .and(Pages::ZERO)
    .and(Pages::SOFT_DIRTY)
    .and(Pages::GUARD);

/// The buffer for entries.
#[derive(Debug)]
pub(super) struct Entries {
    buffer: Vec<u8>,
    /// Frame of the zero page; `None` when we may not see frames.
    zero_frame: Option<u64>,
}

impl Entries {
    pub(super) fn new() -> Self {
        let size = usize::try_from(ENTRIES * ENTRY_SIZE).expect("half a megabyte");
        Self { buffer: vec![0; size], zero_frame: zero_frame() }
    }

    /// Tells `found` about every page that matches, in order.
    pub(super) fn run(
        &mut self,
        file: &File,
        range: Range<u64>,
        query: Query,
        found: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Errno> {
        let asked = query.all.and(query.none).and(query.any);
        if !KNOWN.has(asked) {
            return Err(Errno::INVAL);
        }
        let mut page = range.start;
        while page < range.end {
            let pages = ((range.end - page) / PAGE_SIZE).min(ENTRIES);
            let size = usize::try_from(pages * ENTRY_SIZE).expect("at most the buffer's size");
            let filled = read(file, &mut self.buffer[..size], page / PAGE_SIZE * ENTRY_SIZE)?;
            let (entries, _) = self.buffer[..filled].as_chunks::<8>();
            for entry in entries {
                let properties = properties(u64::from_ne_bytes(*entry), self.zero_frame);
                if query.matches(properties) {
                    found(page, page + PAGE_SIZE);
                }
                page += PAGE_SIZE;
            }
            if entries.is_empty() {
                // The end of what a process can have mapped.
                break;
            }
        }
        Ok(())
    }
}

/// Of each page in `range` whose it is; fewer behind the end of the address space.
pub(super) fn frames(file: &File, range: Range<u64>) -> Result<Vec<Frame>, Errno> {
    let pages = (range.end.saturating_sub(range.start)) / PAGE_SIZE;
    let mut buffer = vec![0; usize::try_from(pages * ENTRY_SIZE).map_err(|_| Errno::INVAL)?];
    let mut filled = 0;
    while filled < buffer.len() {
        let offset = range.start / PAGE_SIZE * ENTRY_SIZE + u64::try_from(filled).unwrap_or(u64::MAX);
        match read(file, &mut buffer[filled..], offset)? {
            0 => break,
            more => filled += more,
        }
    }
    let (entries, _) = buffer[..filled].as_chunks::<8>();
    Ok(entries.iter().map(|entry| frame(u64::from_ne_bytes(*entry))).collect())
}

/// Translates an entry. One that is swapped out has its place there for a number, which no frame has.
const fn frame(entry: u64) -> Frame {
    let (present, swapped, exclusive) = (entry >> 63 & 1 != 0, entry >> 62 & 1 != 0, entry >> 56 & 1 != 0);
    match (entry & FRAME, present || swapped) {
        (_, false) => Frame::Own,
        _ if exclusive => Frame::Own,
        (0, true) => Frame::Hidden,
        (number, true) if swapped => Frame::Shared(number | 1 << 62),
        (number, true) => Frame::Shared(number),
    }
}

impl Query {
    const fn matches(self, page: Pages) -> bool {
        page.has(self.all) && page.0 & self.none.0 == 0 && (self.any.0 == 0 || page.0 & self.any.0 != 0)
    }
}

/// Reads once, as much as the kernel gives; 0 behind the end of the address space.
fn read(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    loop {
        match file.read_at(buffer, offset).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Translates the bits of an entry.
fn properties(entry: u64, zero_frame: Option<u64>) -> Pages {
    let bits = [
        (63, Pages::PRESENT),
        (62, Pages::SWAPPED),
        (61, Pages::FILE),
        (58, Pages::GUARD),
        (55, Pages::SOFT_DIRTY),
    ];
    let mut pages = Pages::NONE;
    for (bit, property) in bits {
        if entry & (1 << bit) != 0 {
            pages = pages.and(property);
        }
    }
    if pages.has(Pages::PRESENT) && zero_frame == Some(entry & FRAME) {
        pages = pages.and(Pages::ZERO);
    }
    pages
}

/// Memory that nobody writes: pages of it that were read are the zero page.
static NEVER_WRITTEN: [AtomicU8; 8 * PAGE_LENGTH] = [const { AtomicU8::new(0) }; 8 * PAGE_LENGTH];
const PAGE_LENGTH: usize = 4096;

/// Finds the frame of the zero page by reading pages of ours that were never written; `None` when we may not see frames.
fn zero_frame() -> Option<u64> {
    let file = File::open("/proc/self/pagemap").ok()?;
    let frame = |place: usize| {
        // The read puts the page into our page table.
        let byte = &NEVER_WRITTEN[place * PAGE_LENGTH];
        std::hint::black_box(byte.load(Ordering::Relaxed));
        let address = u64::try_from((&raw const *byte).addr()).ok()?;
        let mut entry = [0; 8];
        file.read_exact_at(&mut entry, address / PAGE_SIZE * ENTRY_SIZE).ok()?;
        Some(u64::from_ne_bytes(entry) & FRAME).filter(|&frame| frame != 0)
    };
    // Two pages have the same frame only when it is the zero page's. The outer ones may be shared with other variables.
    let first = frame(2)?;
    (frame(5)? == first).then_some(first)
}
