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
use core::ops::Range;
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
    /// Pieces that are mappings of their own, the last one first.
    large: *mut Large,
    /// The last piece that code in C was given, which leads to the one before.
    #[cfg(feature = "standalone")]
    pieces: *mut u8,
}

const NOTHING: State = State {
    free: [null_mut(); CLASSES],
    at: 0,
    end: 0,
    chunks: null_mut(),
    large: null_mut(),
    #[cfg(feature = "standalone")]
    pieces: null_mut(),
};

/// A piece that is a mapping of its own.
struct Large {
    next: *mut Large,
    start: *mut u8,
    len: usize,
}

/// The allocator. Its state is lost on purpose when a program is woken: see [`forget`].
pub struct Arena(UnsafeCell<State>);

// SAFETY: used by one thread at a time, as the module says.
unsafe impl Sync for Arena {}

#[cfg_attr(feature = "standalone", global_allocator)]
static ARENA: Arena = Arena(UnsafeCell::new(NOTHING));

/// Forgets everything, without giving it back: what was there is not in the image.
///
/// # Safety
/// Nothing of it is used any more.
pub unsafe fn forget() {
    // SAFETY: the caller's.
    unsafe { *ARENA.0.get() = NOTHING };
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

/// Calls for all memory that belongs to it: chunks, and pieces that are mappings of their own.
///
/// # Safety
/// Called by the one thread that uses it.
pub unsafe fn each_range(call: &mut dyn FnMut(Range<u64>)) {
    // SAFETY: the caller's.
    unsafe { (*ARENA.0.get()).each_range(call) };
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

    /// A mapping of its own, and a note of it.
    unsafe fn large(&mut self, len: usize) -> *mut u8 {
        let (class, size) = class(Layout::new::<Large>());
        // SAFETY: a piece of that size; the list is ours.
        unsafe {
            let note = self.piece(class, size).cast::<Large>();
            if note.is_null() {
                return null_mut();
            }
            let Some(start) = raw::map(len, libc::MAP_PRIVATE) else {
                self.give_back(note.cast(), class);
                return null_mut();
            };
            note.write(Large { next: self.large, start, len });
            self.large = note;
            start
        }
    }

    unsafe fn unmap_large(&mut self, start: *mut u8, len: usize) {
        // SAFETY: notes of pieces that are given out; this is one of them.
        unsafe {
            let mut place = &raw mut self.large;
            while !(*place).is_null() && (**place).start != start {
                place = &raw mut (**place).next;
            }
            let note = *place;
            if !note.is_null() {
                *place = (*note).next;
                self.give_back(note.cast(), class(Layout::new::<Large>()).0);
            }
            raw::unmap(start, len);
        }
    }

    unsafe fn give_back(&mut self, piece: *mut u8, class: usize) {
        // SAFETY: a piece of this class, which nobody uses any more.
        unsafe { piece.cast::<*mut u8>().write(self.free[class]) };
        self.free[class] = piece;
    }

    unsafe fn each_range(&self, call: &mut dyn FnMut(Range<u64>)) {
        let (mut chunk, mut large) = (self.chunks, self.large);
        // SAFETY: lists of ours.
        unsafe {
            while !chunk.is_null() {
                call(chunk as u64..chunk as u64 + CHUNK as u64);
                chunk = chunk.cast::<*mut u8>().read();
            }
            while !large.is_null() {
                let start = (*large).start as u64;
                call(start..start + (*large).len.next_multiple_of(4096) as u64);
                large = (*large).next;
            }
        }
    }
}

// SAFETY: pieces are as large as asked for, aligned to their size or a page, and given out once.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (class, size) = class(layout);
        // SAFETY: one thread at a time.
        unsafe {
            let state = &mut *self.0.get();
            if size >= LARGE || layout.align() > 4096 {
                return state.large(layout.size());
            }
            state.piece(class, size)
        }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        let (class, size) = class(layout);
        // SAFETY: the caller gives back what `alloc` gave for this layout; one thread at a time.
        unsafe {
            let state = &mut *self.0.get();
            if size >= LARGE || layout.align() > 4096 {
                return state.unmap_large(piece, layout.size());
            }
            state.give_back(piece, class);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_apart_and_come_again() {
        let arena = Arena(UnsafeCell::new(NOTHING));
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
            let (first, second) = (arena.alloc(large), arena.alloc(large));
            first.write_bytes(7, large.size());
            let is_ours = |piece: *mut u8| {
                let mut ours = false;
                (*arena.0.get()).each_range(&mut |range| ours |= range.contains(&(piece as u64)));
                ours
            };
            assert!(is_ours(first) && is_ours(second) && is_ours(last) && is_ours(last.add(of.size() - 1)));
            arena.dealloc(first, large);
            assert!(!is_ours(first) && is_ours(second));
            arena.dealloc(second, large);
            assert!(!is_ours(second) && is_ours(last));
        }
    }
}
