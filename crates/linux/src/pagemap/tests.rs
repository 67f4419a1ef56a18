//! Tests on our own memory: every question is put both ways, and the answers must agree.
//!
//! # Safety
//! The unsafe blocks map fresh memory, touch it within its bounds and unmap it; nobody else knows of it.

#![allow(unsafe_code, reason = "memory mapped for the test, see Safety above")]

use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use super::*;

const PAGE: usize = 4096;

/// Memory mapped for a test.
struct Memory {
    start: *mut u8,
    length: usize,
}

impl Memory {
    fn map(pages: usize, sharing: i32, file: Option<RawFd>) -> Self {
        let length = pages * PAGE;
        let kind = if file.is_some() { sharing } else { sharing | libc::MAP_ANONYMOUS };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses a free place.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, kind, file.unwrap_or(-1), 0) };
        assert_ne!(start, libc::MAP_FAILED);
        Self { start: start.cast(), length }
    }

    fn write(&self, page: usize, byte: u8) {
        assert!(page * PAGE < self.length);
        // SAFETY: within the mapping, as just checked.
        unsafe { self.start.add(page * PAGE).write_volatile(byte) }
    }

    fn read(&self, page: usize) -> u8 {
        assert!(page * PAGE < self.length);
        // SAFETY: within the mapping, as just checked.
        unsafe { self.start.add(page * PAGE).read_volatile() }
    }

    fn advise(&self, advice: i32) -> bool {
        self.advise_pages(0..self.length / PAGE, advice)
    }

    fn advise_pages(&self, pages: Range<usize>, advice: i32) -> bool {
        assert!(pages.end * PAGE <= self.length);
        // SAFETY: within the mapping, as just checked; nobody holds references into it.
        unsafe { libc::madvise(self.start.add(pages.start * PAGE).cast(), pages.len() * PAGE, advice) == 0 }
    }

    fn protect(&self, protection: i32) {
        // SAFETY: our own mapping; nobody holds references into it.
        let result = unsafe { libc::mprotect(self.start.cast(), self.length, protection) };
        assert_eq!(result, 0);
    }

    fn range(&self) -> Range<RemoteAddr> {
        let start = RemoteAddr::new(u64::try_from(self.start.addr()).unwrap());
        start..start + u64::try_from(self.length).unwrap()
    }

    /// What the query finds, as numbers of the first page and of the page behind the last; both ways must agree.
    fn pages(&self, query: Query) -> Vec<(u64, u64)> {
        let pid = std::process::id().cast_signed();
        let mut new = PageMap::open(pid).unwrap();
        let mut old = PageMap::open_entries(pid).unwrap();
        let runs = old.scan(self.range(), query).unwrap();
        assert!(matches!(old.method, Method::Entries(_)));
        let other = new.scan(self.range(), query).unwrap();
        if let Some(place) =
            (0..runs.len().max(other.len())).find(|&place| runs.get(place) != other.get(place))
        {
            panic!("run {place}: entries {:?}, scan {:?}", runs.get(place), other.get(place));
        }
        let page = |address: RemoteAddr| (address.get() - self.range().start.get()) / PAGE_SIZE;
        runs.iter().map(|run| (page(run.start), page(run.end()))).collect()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: our own mapping, used no more.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}

/// Whether entries tell the zero page here.
fn sees_frames() -> bool {
    crate::host::CapabilitySet::own_effective().unwrap().has(crate::host::Capability::SysAdmin)
}

#[test]
fn private_anonymous_and_zero_pages() {
    if !sees_frames() {
        return;
    }
    let memory = Memory::map(64, libc::MAP_PRIVATE, None);
    memory.advise(libc::MADV_NOHUGEPAGE);
    for page in [1, 2, 3, 10, 63] {
        memory.write(page, 7);
    }
    for page in [4, 5, 20, 62] {
        assert_eq!(memory.read(page), 0);
    }
    assert_eq!(memory.pages(Query::ANONYMOUS), [(1, 4), (10, 11), (63, 64)]);
    assert_eq!(memory.pages(Query::RESIDENT), [(1, 6), (10, 11), (20, 21), (62, 64)]);
    let zero = Query { all: Pages::ZERO, ..Query::default() };
    assert_eq!(memory.pages(zero), [(4, 6), (20, 21), (62, 63)]);
}

#[test]
fn private_file_mapping_with_changed_pages() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![1; 16 * PAGE]).unwrap();
    let memory = Memory::map(16, libc::MAP_PRIVATE, Some(file.as_raw_fd()));
    for page in 0..16 {
        assert_eq!(memory.read(page), 1);
    }
    memory.write(3, 9);
    memory.write(4, 9);
    assert_eq!(memory.pages(Query::ANONYMOUS), [(3, 5)]);
    assert_eq!(memory.pages(Query::RESIDENT), [(0, 16)]);
}

#[test]
fn protected_after_writing() {
    let memory = Memory::map(8, libc::MAP_PRIVATE, None);
    memory.write(2, 1);
    memory.write(5, 1);
    memory.protect(libc::PROT_NONE);
    assert_eq!(memory.pages(Query::ANONYMOUS), [(2, 3), (5, 6)]);
}

#[test]
fn huge_pages() {
    // 2 MiB aligned parts of it may become huge pages; what was not touched must never be left out of what was.
    let memory = Memory::map(2048, libc::MAP_PRIVATE, None);
    memory.advise(libc::MADV_HUGEPAGE);
    for page in 0..2048 {
        memory.write(page, 1);
    }
    assert_eq!(memory.pages(Query::ANONYMOUS), [(0, 2048)]);
}

#[test]
fn shared_memory_shows_only_what_was_touched_here() {
    let file = rustix::fs::memfd_create("rewake-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 32 * PAGE_SIZE).unwrap();
    rustix::io::pwrite(&file, &[1], 20 * PAGE_SIZE).unwrap();
    let memory = Memory::map(32, libc::MAP_SHARED, Some(file.as_raw_fd()));
    memory.write(5, 1);
    memory.write(6, 1);
    assert_eq!(memory.pages(Query::ANONYMOUS), []);
    assert_eq!(memory.pages(Query::RESIDENT), [(5, 7)]);
    let page = |number: u64| number * PAGE_SIZE;
    assert_eq!(data_runs(&file, 0..page(32)).unwrap(), [page(5)..page(7), page(20)..page(21)]);
    assert_eq!(data_runs(&file, page(6)..page(20) + 1).unwrap(), [page(6)..page(7), page(20)..page(20) + 1]);

    let proc = Proc::own().unwrap();
    let maps = proc.maps().unwrap();
    let mapping = maps.iter().find(|mapping| mapping.start == memory.range().start).unwrap();
    assert_eq!(mapping.kind(), crate::proc::MappingKind::Memfd(b"rewake-test"));
    match proc.open_mapped_file(mapping, OFlags::RDONLY) {
        Ok(again) => assert_eq!(data_runs(&again, 0..page(32)).unwrap().len(), 2),
        Err(error) => assert!(error.is_denied(), "{error}"),
    }
}

#[test]
fn guard_regions() {
    const MADV_GUARD_INSTALL: i32 = 102;
    let memory = Memory::map(8, libc::MAP_PRIVATE, None);
    memory.write(0, 1);
    memory.write(7, 1);
    if !memory.advise_pages(2..4, MADV_GUARD_INSTALL) {
        return;
    }
    let mut map = PageMap::open(std::process::id().cast_signed()).unwrap();
    if map.guard_pages(memory.range()).unwrap().is_empty() {
        return;
    }
    assert_eq!(memory.pages(Query::GUARD), [(2, 4)]);
    assert_eq!(memory.pages(Query::ANONYMOUS), [(0, 1), (7, 8)]);
}

#[test]
fn more_runs_than_the_buffer_holds() {
    let memory = Memory::map(40_000, libc::MAP_PRIVATE, None);
    memory.advise(libc::MADV_NOHUGEPAGE);
    for page in (0..40_000).step_by(2) {
        memory.write(page, 1);
    }
    let began = Instant::now();
    let pages = memory.pages(Query::ANONYMOUS);
    println!("20000 runs in {:?}, both ways", began.elapsed());
    assert_eq!(pages.len(), 20_000);
    assert!(pages.iter().zip(0..).all(|(found, place)| *found == (place * 2, place * 2 + 1)));
}

#[test]
fn ranges_at_the_edges() {
    let mut map = PageMap::open(std::process::id().cast_signed()).unwrap();
    assert_eq!(map.scan(RemoteAddr::new(0)..RemoteAddr::new(0), Query::ANONYMOUS).unwrap(), []);
    assert_eq!(map.scan(RemoteAddr::new(4096)..RemoteAddr::new(4096), Query::ANONYMOUS).unwrap(), []);
    // The whole address space at once.
    let memory = Memory::map(1, libc::MAP_PRIVATE, None);
    memory.write(0, 1);
    let all = map.scan(RemoteAddr::new(0)..RemoteAddr::new(0x7fff_ffff_f000), Query::ANONYMOUS).unwrap();
    let start = memory.range().start;
    assert!(all.iter().any(|run| run.start <= start && start < run.end()));
    assert!(all.is_sorted_by_key(|run| run.start));
    // Appending never touches what was there.
    let mut runs = vec![Run { start: RemoteAddr::new(start.get() - 4096), len: 4096 }];
    map.scan_into(memory.range(), Query::ANONYMOUS, &mut runs).unwrap();
    assert_eq!(runs.len(), 2);
    // Entries cannot tell this property.
    let written = Query { all: Pages::WRITTEN, ..Query::default() };
    assert!(
        PageMap::open_entries(std::process::id().cast_signed())
            .unwrap()
            .scan(memory.range(), written)
            .is_err()
    );
}

#[test]
fn another_process() {
    let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    let pid = child.id().cast_signed();
    while Proc::open(pid).unwrap().comm().unwrap() != b"sleep" {
        std::thread::yield_now();
    }
    let proc = Proc::open(pid).unwrap();
    let stack = proc.maps().unwrap().into_iter().find(|mapping| mapping.name == b"[stack]").unwrap();
    let mut map = PageMap::of(&proc).unwrap();
    assert!(!map.anonymous_pages(stack.start..stack.end).unwrap().is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
}
