//! Calls that the signal interrupted are made again, so that the program sees nothing of it: those that the kernel does not restart
//! when a handler has run, for the time that was left.
//!
//! # Safety
//! Unsafe here: registers of a signal frame, which are the calling thread's own, and thread-local words of ours; raw system calls
//! with buffers of ours.

#![allow(unsafe_code, reason = "see Safety above")]

use core::arch::global_asm;

use crate::mailbox::Doing;
use crate::returns::{Notes, Place};
use crate::{pending, raw};

/// Places in the registers of a signal frame.
const R10: usize = libc::REG_R10 as usize;
const RDI: usize = libc::REG_RDI as usize;
const RSI: usize = libc::REG_RSI as usize;
const RDX: usize = libc::REG_RDX as usize;
const RAX: usize = libc::REG_RAX as usize;
const RIP: usize = libc::REG_RIP as usize;
const RSP: usize = libc::REG_RSP as usize;

/// Calls made again as they were: without a time-out, with one that the kernel has updated, or with an absolute one.
const AS_THEY_ARE: &[i64] = &[
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_epoll_pwait2,
    libc::SYS_futex,
    libc::SYS_pause,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_io_getevents,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_connect,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_sendmmsg,
    libc::SYS_futex_waitv,
    FUTEX_WAIT,
    IO_PGETEVENTS,
];

/// Of all these, those that a handler always ends, whatever it was set with (signal(7)).
const ENDED_BY_HANDLERS: &[i64] = &[
    libc::SYS_pause,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_io_getevents,
    IO_PGETEVENTS,
];

/// Not in libc.
const IO_PGETEVENTS: i64 = 333;
const FUTEX_WAIT: i64 = 455;

pub(crate) const EINTR: i64 = -4;
const MILLISECOND: u64 = 1_000_000;

// Of each thread: when its wait began, by our own functions of that name (0: it is in none of them); our signal, if it believes to block it;
// room for the time that is left; and the notes of `returns`.
global_asm!(
    ".pushsection .tbss.rewake_ckpt, \"awT\", @nobits",
    ".balign 16",
    ".hidden rewake_ckpt_wait",
    ".globl rewake_ckpt_wait",
    "rewake_ckpt_wait:",
    ".zero 80",
    ".popsection",
);

// libc's function that makes any system call, with the number still to be seen when it was interrupted.
#[cfg(feature = "standalone")]
global_asm!(
    ".pushsection .text.rewake_ckpt, \"ax\"",
    ".globl syscall",
    ".globl rewake_ckpt_after_call",
    ".hidden rewake_ckpt_after_call",
    ".type syscall, @function",
    "syscall:",
    ".cfi_startproc",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "mov r10, r8",
    "mov r8, r9",
    "mov r9, [rsp + 8]",
    "push rax",
    ".cfi_adjust_cfa_offset 8",
    "syscall",
    "rewake_ckpt_after_call:",
    "lea rsp, [rsp + 8]",
    ".cfi_adjust_cfa_offset -8",
    "cmp rax, -4095",
    "jae 2f",
    "ret",
    "2:",
    "neg eax",
    "push rax",
    "sub rsp, 16",
    ".cfi_adjust_cfa_offset 24",
    "call __errno_location@PLT",
    "mov ecx, [rsp + 16]",
    "mov [rax], ecx",
    "add rsp, 24",
    ".cfi_adjust_cfa_offset -24",
    "mov rax, -1",
    "ret",
    ".cfi_endproc",
    ".popsection",
);

#[cfg(not(feature = "standalone"))]
global_asm!(
    ".pushsection .text.rewake_ckpt, \"ax\"",
    ".globl rewake_ckpt_after_call",
    ".hidden rewake_ckpt_after_call",
    "rewake_ckpt_after_call: ret",
    ".popsection",
);

unsafe extern "C" {
    fn rewake_ckpt_after_call();
}

/// What a thread of this process is doing now.
#[must_use]
pub fn doing(tid: i32) -> Doing {
    let mut path = *b"/proc/self/task/..........:/syscall\0";
    let mut digits = [0u8; 10];
    let (mut rest, mut len) = (tid.unsigned_abs(), 0);
    while rest > 0 {
        digits[len] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        (rest, len) = (rest / 10, len + 1);
    }
    for (at, digit) in digits[..len].iter().rev().enumerate() {
        path[16 + at] = *digit;
    }
    path[16 + len..][..9].copy_from_slice(b"/syscall\0");
    let mut text = [0u8; 256];
    let (at, flags) = (raw::now(), raw::word(libc::O_CLOEXEC));
    // SAFETY: a string and a buffer of ours; the text ends with a zero byte, as not all of it is filled.
    unsafe {
        let args = [raw::word(libc::AT_FDCWD), path.as_ptr() as u64, flags, 0, 0, 0];
        let Ok(file @ 0..) = i32::try_from(raw::call(libc::SYS_openat, args)) else { return Doing::NOTHING };
        let args = [raw::word(file), text.as_mut_ptr() as u64, 255, 0, 0, 0];
        let read = raw::call(libc::SYS_read, args);
        raw::close(file);
        if read <= 0 {
            return Doing::NOTHING;
        }
        parse(&text, at).unwrap_or(Doing::NOTHING)
    }
}

/// `number arg*6 stack place`, the number in decimal, all else in hexadecimal.
fn parse(text: &[u8], at: u64) -> Option<Doing> {
    let line = text.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| *byte == b' ');
    // -1 where it is in none; and `running`.
    let number = words.next()?.iter().try_fold(0i64, |sum, byte| {
        let digit = char::from(*byte).to_digit(10)?;
        sum.checked_mul(10)?.checked_add(digit.into())
    })?;
    let mut last = [0u64; 2];
    let mut count = 0;
    for word in words {
        let digits = word.strip_prefix(b"0x")?;
        let value = digits.iter().try_fold(0u64, |sum, byte| {
            let digit = char::from(*byte).to_digit(16)?;
            Some(sum << 4 | u64::from(digit))
        })?;
        last = [last[1], value];
        count += 1;
    }
    (count == 8).then_some(Doing { number, stack: last[0], place: last[1], at })
}

/// The words of the calling thread: beginning of the wait, our signal if it believes to block it, seconds and nanoseconds that are left;
/// the rest is of [`returns`](crate::returns).
fn words() -> *mut [u64; 10] {
    let at: u64;
    // SAFETY: the address of this thread's copy, by the model that programs and libraries loaded at the start use.
    unsafe {
        core::arch::asm!(
            "mov {at}, fs:0",
            "add {at}, [rip + rewake_ckpt_wait@gottpoff]",
            at = out(reg) at,
            options(nostack, readonly),
        );
    }
    at as *mut [u64; 10]
}

/// What the calling thread notes for the ends of handlers.
///
/// # Safety
/// For this thread, while it lives, and not twice at a time.
pub(crate) unsafe fn notes<'a>() -> &'a mut Notes {
    const _: () = assert!(size_of::<Notes>() <= 6 * size_of::<u64>(), "they are behind four words of ten");
    // SAFETY: this thread's own words, which are numbers.
    unsafe { &mut *words().cast::<u64>().add(4).cast::<Notes>() }
}

/// The bit of our signal, if the calling thread believes to block it.
///
/// # Safety
/// For this thread, while it lives.
pub unsafe fn blocks_ours<'a>() -> &'a mut u64 {
    // SAFETY: this thread's own words.
    unsafe { &mut (*words())[1] }
}

/// Notes that a wait begins; the value before, to be put back.
#[must_use]
pub fn begin_wait() -> u64 {
    let words = words();
    // SAFETY: this thread's own words.
    unsafe {
        let before = (*words)[0];
        (*words)[0] = raw::now();
        notes().ended = Place::NOWHERE;
        before
    }
}

/// The wait is over.
pub fn end_wait(before: u64) {
    // SAFETY: this thread's own words.
    unsafe { (*words())[0] = before };
}

/// Has the interrupted call made again when the handler returns; `doing` is what the thread was seen doing before, if it was seen.
/// Its time is counted up to when it `stood` still.
///
/// # Safety
/// `context` is the third argument of the signal handler that this thread is in.
pub unsafe fn restart(context: *mut libc::ucontext_t, doing: Doing, stood: u64) {
    // SAFETY: the caller's.
    let (registers, notes) = unsafe { (&mut (*context).uc_mcontext.gregs, notes()) };
    let after = if registers[RAX] == EINTR { registers[RIP] } else { registers[RIP] + 2 };
    // One that was woken for nothing (another thread took the signal) is in restart_syscall: its arguments are those of the call before.
    let seen = doing.number >= 0
        && doing.number != libc::SYS_restart_syscall
        && (doing.stack, doing.place) == (registers[RSP].cast_unsigned(), after.cast_unsigned());
    if registers[RAX] != EINTR {
        if seen && registers[RAX] == doing.number {
            // The kernel makes it again by itself.
            (notes.again, notes.number) = (Place::of(registers), doing.number);
        }
        return;
    }
    // The handler that has ended this call has just returned; or long ago, if the thread was seen in it since.
    if notes.ended == Place::of(registers) && !(seen && notes.returned < doing.at) {
        return;
    }
    // SAFETY: the thread has just executed what lies before its instruction pointer.
    let shown = || unsafe { system_call_before(registers[RIP] as *const u8, registers[RSP] as *const u64) };
    let Some(number) = Some(doing.number).filter(|_| seen).or_else(shown) else { return };
    // A signal that has come meanwhile is delivered before the call is made again, and would not end it.
    // SAFETY: the caller's; a set of signals begins with those there are.
    let mask = unsafe { (&raw const (*context).uc_sigmask).cast::<u64>().read() };
    if pending::will_be_handled(mask, is_ended_by_handlers(number)) {
        return;
    }
    // Counted up to the checkpoint, whenever the thread goes on; from then on anew.
    let left = |whole: u64| {
        // SAFETY: this thread's own words.
        let began = unsafe { (*words())[0] };
        if began == 0 { whole } else { whole.saturating_sub(stood.saturating_sub(began)) }
    };
    let milliseconds = |register: &mut i64| {
        if let Ok(whole @ 1..) = u64::try_from(i64::from(low(*register))) {
            let rest = left(whole * MILLISECOND).div_ceil(MILLISECOND);
            *register = i64::try_from(rest).unwrap_or(*register);
        }
    };
    match number {
        libc::SYS_poll => milliseconds(&mut registers[RDX]),
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => milliseconds(&mut registers[R10]),
        // The kernel wrote the rest where it was asked to.
        libc::SYS_nanosleep if registers[RSI] != 0 => registers[RDI] = registers[RSI],
        libc::SYS_clock_nanosleep if registers[RSI] & i64::from(libc::TIMER_ABSTIME) != 0 => {}
        libc::SYS_clock_nanosleep if registers[R10] != 0 => registers[RDX] = registers[R10],
        // SAFETY: the register holds the address of the time the call was made with.
        libc::SYS_nanosleep => unsafe { shorten(&mut registers[RDI], left) },
        // SAFETY: as above.
        libc::SYS_clock_nanosleep => unsafe { shorten(&mut registers[RDX], left) },
        // SAFETY: as above.
        libc::SYS_epoll_pwait2 if registers[R10] != 0 => unsafe { shorten(&mut registers[R10], left) },
        _ if AS_THEY_ARE.contains(&number) => {}
        _ => return,
    }
    // SAFETY: this thread's own words.
    unsafe {
        if (*words())[0] != 0 {
            (*words())[0] = raw::now();
        }
    }
    registers[RAX] = number;
    registers[RIP] -= 2;
    (notes.again, notes.number) = (Place::of(registers), number);
}

/// Whether a handler ends this call also if it was set with `SA_RESTART`.
pub(crate) fn is_ended_by_handlers(number: i64) -> bool {
    ENDED_BY_HANDLERS.contains(&number)
}

/// The 32 bits that the kernel looks at.
fn low(register: i64) -> i32 {
    let [a, b, c, d, ..] = register.to_le_bytes();
    i32::from_le_bytes([a, b, c, d])
}

/// Makes a register lead to the time that is left of the one it leads to.
///
/// # Safety
/// It holds the address of a `timespec`.
unsafe fn shorten(register: &mut i64, left: impl Fn(u64) -> u64) {
    const SECOND: u64 = 1_000_000_000;
    // SAFETY: the caller's; this thread's own words.
    unsafe {
        let [seconds, rest] = (*register as *const [u64; 2]).read_unaligned();
        let Some(whole) = seconds.checked_mul(SECOND).and_then(|all| all.checked_add(rest)) else { return };
        let now = left(whole);
        if now != whole {
            let words = words();
            ((*words)[2], (*words)[3]) = (now / SECOND, now % SECOND);
            *register = (&raw const (*words)[2]) as i64;
        }
    }
}

/// The number of the system call that was made right before `after`, where the code says it right there.
///
/// # Safety
/// `after` lies behind code that was executed.
unsafe fn system_call_before(after: *const u8, stack: *const u64) -> Option<i64> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    /// `mov eax, imm32`
    const MOVE: u8 = 0xb8;
    // SAFETY: the caller's; the instruction before is in the same page or in one that is there as well: it was executed.
    unsafe {
        if after as u64 == rewake_ckpt_after_call as *const () as u64 {
            return Some(stack.read().cast_signed());
        }
        if after.sub(2).cast::<[u8; 2]>().read() != SYSCALL || after.sub(7).read() != MOVE {
            return None;
        }
        Some(i64::from(after.sub(6).cast::<i32>().read_unaligned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_seen() {
        let seen =
            |text: &[u8]| parse(text, 5).map(|doing| (doing.number, doing.stack, doing.place, doing.at));
        let read = b"0 0x3 0x7ffe1 0x1 0x0 0x0 0x0 0x7ffe0 0x55f1\n\0\0";
        assert_eq!(seen(read), Some((0, 0x7ffe0, 0x55f1, 5)));
        let wait = b"202 0x3 0x0 0x1 0x0 0x0 0x0 0x7ffe0 0x55f1\n\0";
        assert_eq!(seen(wait), Some((202, 0x7ffe0, 0x55f1, 5)));
        for none in [&b"running\n\0"[..], b"-1 0x7ffe0 0x55f1\n\0", b"0 0x7ffe0 0x55f1\n\0", b"\0"] {
            assert_eq!(seen(none), None);
        }
    }
}
