//! The same memory for code in C that is part of the library (zstd), and for the little that takes it by libc's names: the linker leads
//! calls of `malloc` and its kin from within the library here (`--wrap`).
//!
//! # Safety
//! Unsafe here: a header before each piece tells its size, and that it is ours; what is not ours goes to libc.

#![allow(unsafe_code, reason = "see Safety above")]

use core::alloc::{GlobalAlloc as _, Layout};
use core::ptr::null_mut;

use super::ARENA;

/// Bytes before a piece: a word by which it is known, and its size.
const HEADER: usize = 16;
const OURS: u64 = 0x7265_7761_6b65_2163;

unsafe extern "C" {
    fn __real_free(piece: *mut u8);
    fn __real_realloc(piece: *mut u8, size: usize) -> *mut u8;
}

fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.checked_add(HEADER)?, HEADER).ok()
}

/// Where the header of a piece of ours is, and the size it was asked for with.
///
/// # Safety
/// A piece of ours or of libc's, which has as many bytes before each.
unsafe fn header(piece: *mut u8) -> Option<(*mut u8, usize)> {
    // SAFETY: the caller's.
    unsafe {
        let begin = piece.sub(HEADER).cast::<u64>();
        let known = begin.read() == OURS ^ piece as u64;
        known.then(|| (begin.cast(), usize::try_from(begin.add(1).read()).unwrap_or(0)))
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
        let piece = begin.add(HEADER);
        begin.cast::<u64>().write(OURS ^ piece as u64);
        begin.cast::<u64>().add(1).write(size as u64);
        piece
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
        match header(piece).and_then(|(begin, size)| Some((begin, layout(size)?))) {
            Some((begin, layout)) => {
                begin.cast::<u64>().write(0);
                ARENA.dealloc(begin, layout);
            }
            None => __real_free(piece),
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
        let Some((_, before)) = header(piece) else { return __real_realloc(piece, size) };
        let new = __wrap_malloc(size);
        if !new.is_null() {
            new.copy_from_nonoverlapping(piece, before.min(size));
            __wrap_free(piece);
        }
        new
    }
}
