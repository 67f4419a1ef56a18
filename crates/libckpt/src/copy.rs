//! Making a copy of the process in the midst of a signal handler: not a child of it, with a stack of its own, all signals blocked.
//!
//! # Safety
//! Unsafe here: a process on a stack of its own, which never comes back to the code of the handler.

#![allow(unsafe_code, reason = "see Safety above")]

use core::arch::global_asm;

use crate::raw;

/// Bytes of the stacks: of the process between, of the copy when it begins, of the thread that leads, of the one that helps it. The
/// program may have all memory locked that it maps: they are no larger than they must be.
const BETWEEN: usize = 4096;
const COPY: usize = 32 << 10;
const LEADER: usize = 64 << 10;
const HELPER: usize = 16 << 10;
const ALL: usize = BETWEEN + COPY + LEADER + HELPER;

unsafe extern "C" {
    fn rewake_ckpt_copy(between: *mut u8, stack: *mut u8, run: extern "C" fn(u64) -> !, told: u64) -> i64;
}

global_asm!(
    ".pushsection .text.rewake_ckpt, \"ax\"",
    ".globl rewake_ckpt_copy",
    ".hidden rewake_ckpt_copy",
    "rewake_ckpt_copy:",
    "push rbx",
    "push r12",
    "push r13",
    "mov r12, rsi",
    "mov r13, rdx",
    "mov rbx, rcx",
    "mov rsi, rdi",
    "mov edi, 0x4100", // CLONE_VM | CLONE_VFORK: it is gone before we go on
    "xor edx, edx",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "mov eax, 56",
    "syscall",
    "test rax, rax",
    "jnz 2f",
    "xor edi, edi",
    "mov rsi, r12",
    "xor edx, edx",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "mov eax, 56",
    "syscall",
    "test rax, rax",
    "jz 3f",
    "mov rdi, rax",
    "shr rdi, 63",
    "mov eax, 60",
    "syscall",
    "3:",
    "xor ebp, ebp",
    "mov rdi, rbx",
    "call r13",
    "2:",
    "pop r13",
    "pop r12",
    "pop rbx",
    "ret",
    ".popsection",
);

/// Memory for stacks, which the copy has as well.
#[derive(Clone, Copy, Debug)]
pub struct Stacks(*mut u8);

impl Stacks {
    /// Takes it.
    #[must_use]
    pub fn new() -> Option<Self> {
        raw::map(ALL, libc::MAP_PRIVATE | libc::MAP_NORESERVE).map(Self)
    }

    /// Those that are at this address.
    #[must_use]
    pub const fn at(address: u64) -> Self {
        Self(address as *mut u8)
    }

    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> core::ops::Range<u64> {
        self.0 as u64..self.0 as u64 + ALL as u64
    }

    /// Where the stack of the thread that leads ends.
    #[must_use]
    pub fn leader(&self) -> u64 {
        self.0 as u64 + (BETWEEN + COPY + LEADER) as u64
    }

    /// Where the stack of the one that helps it ends.
    #[must_use]
    pub fn helper(&self) -> u64 {
        self.0 as u64 + ALL as u64
    }

    /// Gives it back.
    ///
    /// # Safety
    /// In the process the copy was made of, when it was made.
    pub unsafe fn unmap(self) {
        // SAFETY: the caller's.
        unsafe { raw::unmap(self.0, ALL) };
    }

    /// Makes the copy, which runs the function. An error number when there is none.
    ///
    /// # Errors
    /// The kernel's error number.
    ///
    /// # Safety
    /// The function must not come back, nor use what other threads of this process may have locked.
    pub unsafe fn copy(&self, run: extern "C" fn(u64) -> !, told: u64) -> Result<(), i64> {
        // SAFETY: both tops are aligned and within the mapping; the process between runs on a stack nobody else uses, and is gone then.
        let between = unsafe {
            let between = self.0.add(BETWEEN);
            rewake_ckpt_copy(between, between.add(COPY), run, told)
        };
        if between < 0 {
            return Err(-between);
        }
        let mut status = 0u32;
        let args = [
            between.cast_unsigned(),
            &raw mut status as u64,
            u64::from(libc::__WCLONE.cast_unsigned()),
            0,
            0,
            0,
        ];
        // SAFETY: a word of ours; it is our child, which sends no signal.
        unsafe { raw::call(libc::SYS_wait4, args) };
        if status == 0 { Ok(()) } else { Err(libc::EAGAIN.into()) }
    }
}
