//! A passing thread of this process with descriptors of its own: what it opens, no other thread can close or stumble over.
//!
//! # Safety
//! Unsafe here: a thread on a stack of its own, without thread-local memory of its own, which never comes back to the code of the
//! handler.

#![allow(unsafe_code, reason = "see Safety above")]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::raw;

unsafe extern "C" {
    fn rewake_ckpt_help(stack: u64, run: extern "C" fn(u64), told: u64, done: *const AtomicU32) -> i64;
    fn rewake_ckpt_on_stack(stack: u64, run: extern "C" fn(u64), told: u64);
}

global_asm!(
    ".pushsection .text.rewake_ckpt, \"ax\"",
    ".globl rewake_ckpt_help",
    ".hidden rewake_ckpt_help",
    ".globl rewake_ckpt_on_stack",
    ".hidden rewake_ckpt_on_stack",
    "rewake_ckpt_help:",
    "push rbx",
    "push r12",
    "mov rbx, rsi",
    "mov r12, rdx",
    "mov r10, rcx",
    "mov rsi, rdi",
    "mov edi, 0x250b00", // all that a thread shares, but for descriptors; a word is cleared at its end
    "xor edx, edx",
    "xor r8d, r8d",
    "mov eax, 56",
    "syscall",
    "test rax, rax",
    "jnz 2f",
    "xor ebp, ebp",
    "mov rdi, r12",
    "call rbx",
    "xor edi, edi",
    "mov eax, 60",
    "syscall",
    "2:",
    "pop r12",
    "pop rbx",
    "ret",
    "rewake_ckpt_on_stack:",
    "push rbp",
    "mov rbp, rsp",
    "mov rsp, rdi",
    "mov rdi, rdx",
    "call rsi",
    "mov rsp, rbp",
    "pop rbp",
    "ret",
    ".popsection",
);

/// Calls a function on another stack, whose end this is.
///
/// # Safety
/// Nobody else uses that stack, and there is room for the function.
pub unsafe fn on_stack(end: u64, run: extern "C" fn(u64), told: u64) {
    // SAFETY: the caller's.
    unsafe { rewake_ckpt_on_stack(end, run, told) };
}

/// Has a thread with descriptors of its own, none of which is open, run a function on the stack that ends here, and waits until it is
/// gone. False when the kernel makes none.
///
/// # Safety
/// Nobody else uses that stack; the function keeps to raw system calls, as it has the calling thread's thread-local memory.
#[must_use]
pub unsafe fn run(end: u64, run: extern "C" fn(u64), told: u64) -> bool {
    let task = Task { run, told };
    let done = AtomicU32::new(1);
    // SAFETY: the caller's; what it is told lives until it is gone.
    let tid = unsafe { rewake_ckpt_help(end, begin, (&raw const task) as u64, &raw const done) };
    if tid < 0 {
        return false;
    }
    while done.load(Ordering::Acquire) != 0 {
        raw::futex_wait(&done, 1, None);
    }
    // The word is cleared a moment before the kernel forgets the thread.
    let gone = |tid: i64| {
        let args = [raw::word(raw::getpid()), tid.cast_unsigned(), 0, 0, 0, 0];
        // SAFETY: no signal is sent.
        unsafe { raw::call(libc::SYS_tgkill, args) < 0 }
    };
    while !gone(tid) {
        // SAFETY: no arguments.
        unsafe { raw::call(libc::SYS_sched_yield, [0; 6]) };
    }
    true
}

struct Task {
    run: extern "C" fn(u64),
    told: u64,
}

extern "C" fn begin(task: u64) {
    // SAFETY: it lives until this thread is gone. The descriptors closed are this thread's own.
    unsafe {
        raw::call(libc::SYS_close_range, [0, u32::MAX.into(), 0, 0, 0, 0]);
        let task = &*(task as *const Task);
        (task.run)(task.told);
    }
}
