//! The end of a handler of the program's: what it leaves is noted, since a signal of ours may come before the program's next instruction.
//!
//! The kernel then shows the registers of a call that was interrupted, and not by whom: a call that a handler of the program's has ended must
//! not be made again ([`again`](crate::again)), and one that is just being made again must end when a handler has run before it.
//!
//! # Safety
//! Unsafe here: the registers of a signal frame that a handler has just left, which are the calling thread's own; its thread-local words.

#![allow(unsafe_code, reason = "see Safety above")]

use core::arch::global_asm;

use crate::again::{EINTR, is_ended_by_handlers, notes};
use crate::entry::{Action, SA_RESTORER};
use crate::pending::has_handler;
use crate::raw;

/// Where a thread goes on, and its stack there. All else than equality is nobody's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Place {
    instruction: i64,
    stack: i64,
}

type Registers = [libc::greg_t; 23];

impl Place {
    pub(crate) const NOWHERE: Self = Self { instruction: 0, stack: 0 };

    pub(crate) const fn of(registers: &Registers) -> Self {
        Self { instruction: registers[libc::REG_RIP as usize], stack: registers[libc::REG_RSP as usize] }
    }
}

/// What a thread notes of itself.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Notes {
    /// Behind a call that a handler of the program's has ended.
    pub(crate) ended: Place,
    /// When that one returned, in nanoseconds.
    pub(crate) returned: u64,
    /// At a call that is made again after a checkpoint.
    pub(crate) again: Place,
    /// The number of that call.
    pub(crate) number: i64,
}

/// Where the kernel's `siginfo_t` is, from its `ucontext`.
const INFO: usize = 304;

// Where handlers of the program's return to: the stack pointer is at the context. What unwinders find about it is what libc says of its own
// (they know that one by its bytes too, which this one cannot have): each register is where the context has it. The byte before it is for
// those that look for the place of a call, before that of its return.
global_asm!(
    ".macro rewake_ckpt_saved number, place",
    // DW_CFA_expression: DW_OP_breg7, of two bytes.
    ".cfi_escape 0x10, \\number, 3, 0x77, (\\place & 0x7f) | 0x80, \\place >> 7",
    ".endm",
    ".pushsection .text.rewake_ckpt, \"ax\"",
    ".cfi_startproc simple",
    ".cfi_signal_frame",
    // DW_CFA_def_cfa_expression: DW_OP_breg7 160, DW_OP_deref.
    ".cfi_escape 0x0f, 4, 0x77, 0xa0, 0x01, 0x06",
    "rewake_ckpt_saved 8, 40",
    "rewake_ckpt_saved 9, 48",
    "rewake_ckpt_saved 10, 56",
    "rewake_ckpt_saved 11, 64",
    "rewake_ckpt_saved 12, 72",
    "rewake_ckpt_saved 13, 80",
    "rewake_ckpt_saved 14, 88",
    "rewake_ckpt_saved 15, 96",
    "rewake_ckpt_saved 5, 104",
    "rewake_ckpt_saved 4, 112",
    "rewake_ckpt_saved 6, 120",
    "rewake_ckpt_saved 3, 128",
    "rewake_ckpt_saved 1, 136",
    "rewake_ckpt_saved 0, 144",
    "rewake_ckpt_saved 2, 152",
    "rewake_ckpt_saved 7, 160",
    "rewake_ckpt_saved 16, 168",
    "nop",
    // By this address it is known that the program did not ask for what is said with a signal.
    ".globl rewake_ckpt_end_of_plain_handler",
    ".hidden rewake_ckpt_end_of_plain_handler",
    ".type rewake_ckpt_end_of_plain_handler, @function",
    "rewake_ckpt_end_of_plain_handler:",
    "nop",
    ".globl rewake_ckpt_end_of_handler",
    ".hidden rewake_ckpt_end_of_handler",
    ".type rewake_ckpt_end_of_handler, @function",
    "rewake_ckpt_end_of_handler:",
    "mov rdi, rsp",
    "call {ends}",
    "mov eax, 15",
    "syscall",
    ".cfi_endproc",
    ".size rewake_ckpt_end_of_handler, . - rewake_ckpt_end_of_handler",
    ".popsection",
    ".purgem rewake_ckpt_saved",
    ends = sym ends,
);

unsafe extern "C" {
    fn rewake_ckpt_end_of_handler();
    fn rewake_ckpt_end_of_plain_handler();
}

/// Flag of handlers that are told more than the signal's number.
pub(crate) const SA_SIGINFO: u64 = 4;

/// What the kernel is told to do about a signal, given what the program wants done with it: its handler returns to here, and the signal is
/// said to it in any case, as the kernel puts its number on the stack only then.
#[must_use]
pub fn returning_here([handler, flags, restorer, blocked]: Action) -> Action {
    if handler <= libc::SIG_IGN as u64 {
        return [handler, flags, restorer, blocked];
    }
    let end =
        if flags & SA_SIGINFO == 0 { rewake_ckpt_end_of_plain_handler } else { rewake_ckpt_end_of_handler };
    [handler, flags | SA_SIGINFO | SA_RESTORER, end as *const () as u64, blocked]
}

/// What the program wanted, given what the kernel was told.
#[must_use]
pub fn as_wanted([handler, flags, restorer, blocked]: Action) -> Action {
    let plain = restorer == rewake_ckpt_end_of_plain_handler as *const () as u64;
    [handler, if plain { flags & !SA_SIGINFO } else { flags }, restorer, blocked]
}

/// A handler has returned; what it leaves is at `context`.
unsafe extern "C" fn ends(context: *mut libc::ucontext_t) {
    // SAFETY: the kernel put it there for the calling thread, with the siginfo_t behind it; a signal's number comes first in that.
    let (registers, notes, signal) = unsafe {
        (&mut (*context).uc_mcontext.gregs, notes(), context.cast::<u8>().add(INFO).cast::<i32>().read())
    };
    let number = registers[libc::REG_RAX as usize];
    if number != EINTR {
        let is_made_again = notes.again == Place::of(registers) && notes.number == number;
        if !is_made_again || !has_handler(signal, is_ended_by_handlers(number)) {
            return;
        }
        registers[libc::REG_RAX as usize] = EINTR;
        registers[libc::REG_RIP as usize] += 2;
        notes.again = Place::NOWHERE;
    }
    (notes.ended, notes.returned) = (Place::of(registers), raw::now());
}
