//! Reading and writing the memory of this very process.
//!
//! # Safety
//! Unsafe here: mappings in the midst of memory that a test has allocated and never gives back.

#![allow(unsafe_code, reason = "see Safety above")]

use super::*;

#[test]
fn reads_and_writes_its_own_process() {
    let mut place = Box::new([1_u8, 2, 3, 4]);
    let address = RemoteAddr::new(place.as_mut_ptr().addr() as u64);
    let memory = ProcessMemory::open(std::process::id().cast_signed()).unwrap();
    let mut bytes = [0; 4];
    memory.read_exact_at(address, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4]);
    memory.write_all_at(address, &[5, 6]).unwrap();
    assert_eq!(std::hint::black_box(&place)[..], [5, 6, 3, 4]);
    let error = memory.read_word(RemoteAddr::new(0)).unwrap_err().to_string();
    assert!(error.contains("memory at 0x0, 8 bytes"), "{error}");
}

#[test]
fn what_lies_behind_a_gap_is_read() {
    let place = vec![7_u8; 6 * 4096];
    let begin = (place.as_ptr().addr() as u64).next_multiple_of(PAGE_SIZE);
    let page = |number: u64| RemoteAddr::new(begin + number * PAGE_SIZE);
    // Nobody maps anything there meanwhile: a file without content is mapped, pages of which nobody can read.
    let file = rustix::fs::memfd_create("empty", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    for number in [1, 2] {
        cover(page(number), &file);
    }
    let memory = ProcessMemory::open(std::process::id().cast_signed()).unwrap();
    let mut bytes = vec![9; 4 * 4096 + 100];
    assert_eq!(memory.read_there_at(page(0), &mut bytes), [page(1)..page(3)]);
    let expected = [vec![7; 4096], vec![0; 2 * 4096], vec![7; 4096 + 100]].concat();
    assert!(bytes == expected);
    assert_eq!(
        memory.read_there_at(RemoteAddr::new(0x1ff0), &mut bytes[..32]),
        [RemoteAddr::new(0x1ff0)..RemoteAddr::new(0x2010)]
    );
    assert_eq!(memory.read_there_at(page(0), &mut bytes[..5000]), [page(1)..page(0) + 5000]);
    std::mem::forget(place);
}

/// Maps this file over a page of memory that is never given back.
fn cover(at: RemoteAddr, file: &rustix::fd::OwnedFd) {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    // SAFETY: memory of the caller's, in which nobody looks any more but by the kernel.
    let mapped = unsafe {
        mmap(at.get() as *mut _, 4096, ProtFlags::READ, MapFlags::PRIVATE | MapFlags::FIXED, file, 0)
    };
    mapped.unwrap();
}
