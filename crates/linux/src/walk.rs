//! Walking a track in the own process, without the executor: each entry is one system call made right here.
//!
//! It allocates nothing, takes no lock and touches no thread-local memory (not even `errno`), so that a signal handler may do it.
//!
//! # Safety
//! [`walk`] trusts the entries, which its caller guarantees to be those of an assembled program of plain calls.

#![allow(unsafe_code, reason = "raw system calls, see Safety above")]

use std::arch::asm;

use crate::program::{ENTRY_SIZE, flag};

/// Words of an entry: number, six arguments, result, flags, expected result.
const WORDS: usize = ENTRY_SIZE / 8;
const RESULT: usize = 7;
const FLAGS: usize = 8;
const EXPECTED: usize = 9;
/// The smallest of the results that are errors, as the kernel returns them.
const FIRST_ERROR: u64 = (-4095i64).cast_unsigned();
const EINTR: u64 = (-4i64).cast_unsigned();

/// A system call, with its result as the kernel returns it.
///
/// # Safety
/// Whatever the call itself demands.
pub unsafe fn system_call(number: u64, args: [u64; 6]) -> u64 {
    let result;
    // SAFETY: the instruction changes what is named here; the rest is the caller's.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Walks entries up to one that leaves. Where a result is not accepted, the context gets the entry's address and is asked where to go.
///
/// # Safety
/// `first` is the first entry, and `context` the context, of a track of an assembled program that lies at the address it was made for,
/// in memory nobody else writes meanwhile; it holds plain calls only, and its failure entries end with one that leaves.
pub unsafe fn walk(first: *mut u64, context: *mut u64) {
    let mut entry = first;
    loop {
        // SAFETY: entries follow one another, ten words each, up to one that leaves.
        let words = unsafe { std::slice::from_raw_parts_mut(entry, WORDS) };
        let flags = words[FLAGS];
        if flags & flag::LEAVE != 0 {
            return;
        }
        let mut args = [0; 6];
        for (bit, arg) in args.iter_mut().enumerate() {
            *arg = words[1 + bit];
            if flags & (1 << bit) != 0 {
                // SAFETY: then the argument is the address of a word of this program.
                *arg = unsafe { (*arg as *const u64).read() };
            }
        }
        let result = loop {
            // SAFETY: the program's author answers for the calls in it.
            let result = unsafe { system_call(words[0], args) };
            if result != EINTR || flags & flag::RETRY == 0 {
                break result;
            }
        };
        words[RESULT] = result;
        let refused = flags & flag::EXACTLY != 0 && result != words[EXPECTED]
            || flags & flag::SUCCESS != 0 && result >= FIRST_ERROR && result != words[EXPECTED];
        // SAFETY: the context is two words; the second is an entry of this track.
        entry = unsafe {
            if refused {
                context.write(entry.expose_provenance() as u64);
                context.add(1).read() as *mut u64
            } else {
                entry.add(WORDS)
            }
        };
    }
}
