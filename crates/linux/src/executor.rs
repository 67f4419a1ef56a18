//! The executor: position-independent code, without relocations or stack, that walks the entries of an assembled program.
//!
//! It is copied into the target (page 0 of the assembled bytes) and entered with
//! `r12` = first entry, `r13` = context of the track. It never returns: a program ends with a call that does not come back.
//! Barriers wait on a shared futex, so that threads of other processes (the tracer) can take part.
//!
//! # Safety
//! The one unsafe block makes a slice of the code between two symbols of the same assembly block.

#![allow(unsafe_code, reason = "a slice of our own code, see Safety above")]

std::arch::global_asm!(include_str!("arch/x86_64_executor.s"), options(att_syntax, raw));

unsafe extern "C" {
    static rewake_executor_start: u8;
    static rewake_executor_end: u8;
}

/// The executor's machine code.
#[must_use]
pub fn code() -> &'static [u8] {
    let start = &raw const rewake_executor_start;
    let end = &raw const rewake_executor_end;
    // SAFETY: the assembly block defines both symbols in one section, end after start, and nothing writes there.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}
