//! The same memory for code in C that is part of the library (zstd), and for the little that takes it by libc's names: the linker leads
//! calls of `malloc` and its kin from within the library here (`--wrap`).
//!
//! # Safety
//! Unsafe here: a header before each piece of ours tells its size and leads to the next one. What is not in that list goes to libc
//! unseen: nobody says what is before a piece of the program's malloc, or whether anything is.

#![allow(unsafe_code, reason = "see Safety above")]

use core::alloc::{GlobalAlloc as _, Layout};
use core::ptr::null_mut;

use super::ARENA;

/// Before a piece. There are few at a time: zstd takes some large ones.
#[repr(C, align(16))]
struct Header {
    /// The header of the piece that was given out before.
    next: *mut Header,
    /// What was asked for.
    size: usize,
}

const HEADER: usize = size_of::<Header>();

unsafe extern "C" {
    fn __real_free(piece: *mut u8);
    fn __real_realloc(piece: *mut u8, size: usize) -> *mut u8;
}

fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.checked_add(HEADER)?, HEADER).ok()
}

/// What leads to the header of this piece, if the piece is ours.
///
/// # Safety
/// One thread at a time, as everywhere here.
unsafe fn leading_to(piece: *mut u8) -> Option<*mut *mut Header> {
    // SAFETY: the list has headers of pieces that are given out, and ends with null.
    unsafe {
        let mut place = (&raw mut (*ARENA.0.get()).pieces).cast::<*mut Header>();
        while !(*place).is_null() {
            if (*place).cast::<u8>().wrapping_add(HEADER) == piece {
                return Some(place);
            }
            place = &raw mut (**place).next;
        }
        None
    }
}

/// See malloc(3).
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_malloc(size: usize) -> *mut u8 {
    let Some(layout) = layout(size) else { return null_mut() };
    // SAFETY: a layout of more than zero bytes; the header lies in the piece.
    unsafe {
        let begin = ARENA.alloc(layout);
        if begin.is_null() {
            return begin;
        }
        let header = begin.cast::<Header>();
        let pieces = &raw mut (*ARENA.0.get()).pieces;
        header.write(Header { next: (*pieces).cast(), size });
        *pieces = begin;
        begin.add(HEADER)
    }
}

/// See calloc(3).
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_calloc(count: usize, each: usize) -> *mut u8 {
    let Some(size) = count.checked_mul(each) else { return null_mut() };
    // SAFETY: a piece of that size.
    unsafe {
        let piece = __wrap_malloc(size);
        if !piece.is_null() {
            piece.write_bytes(0, size);
        }
        piece
    }
}

/// See free(3).
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_free(piece: *mut u8) {
    if piece.is_null() {
        return;
    }
    // SAFETY: the caller's.
    unsafe {
        let Some(place) = leading_to(piece) else { return __real_free(piece) };
        let begin = *place;
        let Header { next, size } = begin.read();
        *place = next;
        if let Some(layout) = layout(size) {
            ARENA.dealloc(begin.cast(), layout);
        }
    }
}

/// See realloc(3).
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_realloc(piece: *mut u8, size: usize) -> *mut u8 {
    // SAFETY: the caller's; both pieces are there while one is copied to the other.
    unsafe {
        if piece.is_null() {
            return __wrap_malloc(size);
        }
        let Some(place) = leading_to(piece) else { return __real_realloc(piece, size) };
        let before = (**place).size;
        let new = __wrap_malloc(size);
        if !new.is_null() {
            new.copy_from_nonoverlapping(piece, before.min(size));
            __wrap_free(piece);
        }
        new
    }
}
