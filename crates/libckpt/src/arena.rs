//! Memory of the library's own: whoever holds the lock of the program's malloc may be standing still.
//!
//! Powers of two with a list of free pieces each; large pieces are mappings of their own. One thread at a time, as it is everywhere this
//! is used: in the copy, and at the start and the recovery of a program that has not begun yet. [`discard`] gives all of it back.
//!
//! # Safety
//! Unsafe here: memory given out from mappings of our own, by one thread at a time.

#![allow(unsafe_code, reason = "see Safety above")]

#[cfg(feature = "standalone")]
mod c;

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::null_mut;

use crate::raw;

/// Bytes taken from the kernel at once.
const CHUNK: usize = 1 << 20;
/// Pieces of this size and more are mappings of their own.
const LARGE: usize = 1 << 17;
const SMALLEST: usize = 16;
const CLASSES: usize = LARGE.trailing_zeros() as usize;

struct State {
    /// Free pieces by class, each beginning with the address of the next.
    free: [*mut u8; CLASSES],
    /// What is left of the chunk: from here, to there.
    at: usize,
    end: usize,
    /// Chunks, each beginning with the address of the one before.
    chunks: *mut u8,
}

/// The allocator. Its state is lost on purpose when a program is woken: see [`forget`].
pub struct Arena(UnsafeCell<State>);

// SAFETY: used by one thread at a time, as the module says.
unsafe impl Sync for Arena {}

#[cfg_attr(feature = "standalone", global_allocator)]
static ARENA: Arena =
    Arena(UnsafeCell::new(State { free: [null_mut(); CLASSES], at: 0, end: 0, chunks: null_mut() }));

/// Forgets everything, without giving it back: what was there is not in the image.
///
/// # Safety
/// Nothing of it is used any more.
pub unsafe fn forget() {
    // SAFETY: the caller's.
    unsafe { *ARENA.0.get() = State { free: [null_mut(); CLASSES], at: 0, end: 0, chunks: null_mut() } };
}

/// Gives all chunks back.
///
/// # Safety
/// Nothing of it is used any more; pieces that are mappings of their own have been given back.
pub unsafe fn discard() {
    // SAFETY: the caller's.
    unsafe {
        let mut chunk = (*ARENA.0.get()).chunks;
        while !chunk.is_null() {
            let before = chunk.cast::<*mut u8>().read();
            raw::unmap(chunk, CHUNK);
            chunk = before;
        }
        forget();
    }
}

fn class(layout: Layout) -> (usize, usize) {
    let size = layout.size().max(layout.align()).max(SMALLEST).next_power_of_two();
    (size.trailing_zeros() as usize, size)
}

impl State {
    unsafe fn piece(&mut self, class: usize, size: usize) -> *mut u8 {
        let free = self.free[class];
        if !free.is_null() {
            // SAFETY: a free piece begins with the address of the next.
            self.free[class] = unsafe { free.cast::<*mut u8>().read() };
            return free;
        }
        let mut at = self.at.next_multiple_of(size.min(4096));
        if at + size > self.end || self.end == 0 {
            let Some(chunk) = raw::map(CHUNK, libc::MAP_PRIVATE) else { return null_mut() };
            // SAFETY: a chunk of ours, larger than an address.
            unsafe { chunk.cast::<*mut u8>().write(self.chunks) };
            self.chunks = chunk;
            self.end = chunk as usize + CHUNK;
            at = (chunk as usize + SMALLEST).next_multiple_of(size.min(4096));
        }
        self.at = at + size;
        at as *mut u8
    }
}

// SAFETY: pieces are as large as asked for, aligned to their size or a page, and given out once.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (class, size) = class(layout);
        if size >= LARGE || layout.align() > 4096 {
            return raw::map(layout.size(), libc::MAP_PRIVATE).unwrap_or(null_mut());
        }
        // SAFETY: one thread at a time.
        unsafe { (*self.0.get()).piece(class, size) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        let (class, size) = class(layout);
        // SAFETY: the caller gives back what `alloc` gave for this layout; one thread at a time.
        unsafe {
            if size >= LARGE || layout.align() > 4096 {
                raw::unmap(piece, layout.size());
                return;
            }
            let state = &mut *self.0.get();
            piece.cast::<*mut u8>().write(state.free[class]);
            state.free[class] = piece;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_apart_and_come_again() {
        let arena =
            Arena(UnsafeCell::new(State { free: [null_mut(); CLASSES], at: 0, end: 0, chunks: null_mut() }));
        let layout = |size, align| Layout::from_size_align(size, align).unwrap();
        // SAFETY: each piece is used within its size and given back once.
        unsafe {
            let pieces: Vec<(*mut u8, Layout)> = (1..2000usize)
                .map(|at| layout(at * 37 % 9000 + 1, 1 << (at % 7)))
                .map(|layout| (arena.alloc(layout), layout))
                .collect();
            for (at, (piece, layout)) in pieces.iter().enumerate() {
                assert_eq!(piece.addr() % layout.align(), 0);
                piece.write_bytes(u8::try_from(at % 251).unwrap(), layout.size());
            }
            for (at, (piece, layout)) in pieces.iter().enumerate() {
                let bytes = std::slice::from_raw_parts(*piece, layout.size());
                assert!(bytes.iter().all(|byte| usize::from(*byte) == at % 251));
            }
            let (last, of) = pieces[pieces.len() - 1];
            arena.dealloc(last, of);
            assert_eq!(arena.alloc(of), last);
            let large = layout(LARGE * 3, 16);
            let piece = arena.alloc(large);
            piece.write_bytes(7, large.size());
            arena.dealloc(piece, large);
        }
    }
}
