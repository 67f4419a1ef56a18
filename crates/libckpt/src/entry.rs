//! The handler of the signal.
//!
//! # Safety
//! Unsafe here: what the kernel gives a signal handler, and handlers that are ours or libc's.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::lead::{BUSY, FACTS, MAILBOX, PLACE_BITS, REQUEST, afterwards, lead};
use crate::mailbox::Mailbox;
use crate::stand::{self, Slot};
use crate::{SIGFREEZE, SIGSTAND, again, mark, raw};

/// Flag of the kernel's for handlers that say themselves how to return.
const SA_RESTORER: u64 = 0x0400_0000;
/// Checkpoints are made (`checkpointing on`).
pub static ON: AtomicU32 = AtomicU32::new(1);

core::arch::global_asm!(
    ".pushsection .text.rewake_ckpt, \"ax\"",
    ".globl rewake_ckpt_return",
    ".hidden rewake_ckpt_return",
    "rewake_ckpt_return:",
    // These very bytes: by them unwinders know the end of a handler.
    ".byte 0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05",
    ".popsection",
);

unsafe extern "C" {
    fn rewake_ckpt_return();
}

/// What the kernel keeps of a signal: handler, flags, restorer, mask.
pub type Action = [u64; 4];

type Handler = extern "C" fn(i32, *const libc::siginfo_t, *mut libc::ucontext_t);

/// How handlers return that are installed here.
#[must_use]
pub fn restorer() -> u64 {
    rewake_ckpt_return as *const () as u64
}

/// All other signals are blocked in such a handler, also those of libc.
fn action(handler: Handler) -> Action {
    let flags = u64::from((libc::SA_SIGINFO | libc::SA_RESTART).cast_unsigned()) | SA_RESTORER;
    [handler as *const () as u64, flags, restorer(), u64::MAX]
}

/// Sets what is done about a signal, and tells what was.
pub fn set_action(signal: i32, new: Option<&Action>) -> Result<Action, i64> {
    let mut old = [0; 4];
    let new = new.map_or(0, |new| new.as_ptr() as u64);
    let args = [raw::word(signal), new, old.as_mut_ptr() as u64, 8, 0, 0];
    // SAFETY: two of the kernel's `struct sigaction`, ours and the caller's, who answers for the functions in it.
    match unsafe { raw::call(libc::SYS_rt_sigaction, args) } {
        0 => Ok(old),
        error => Err(-error),
    }
}

/// Takes the signal.
pub fn install() {
    let _valid = set_action(SIGFREEZE, Some(&action(on_signal)));
    mark::set(SIGFREEZE);
}

/// What libc does about [`SIGSTAND`], while it is ours.
static LIBCS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Takes the signal by which threads are asked to stand still, for the time of a checkpoint.
pub fn borrow() {
    if let Ok(old) = set_action(SIGSTAND, Some(&action(on_request))) {
        for (place, word) in LIBCS.iter().zip(old) {
            place.store(word, Ordering::Relaxed);
        }
    }
}

/// Gives that signal back.
pub fn give_back() {
    let _valid = set_action(SIGSTAND, Some(&libcs()));
}

fn libcs() -> Action {
    [0, 1, 2, 3].map(|at: usize| LIBCS[at].load(Ordering::Relaxed))
}

/// A thread is asked to stand still; or libc, in the midst of a checkpoint, wants something of it.
extern "C" fn on_request(signal: i32, info: *const libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel gave both.
    let (value, code, sender) = unsafe { (told(info), info.cast::<i32>().add(2).read(), sender(info)) };
    if code < 0 && sender == raw::getpid() && value >> PLACE_BITS == REQUEST >> PLACE_BITS {
        // One that comes late was asked for a checkpoint that is over.
        if BUSY.load(Ordering::Acquire) != 0 {
            // SAFETY: as above.
            let mut slot = unsafe { Slot::new(context) };
            let at = usize::try_from(value & ((1 << PLACE_BITS) - 1)).unwrap_or(0);
            // SAFETY: who leads noted it there before it asked.
            slot.doing = unsafe { *Mailbox::at(MAILBOX.load(Ordering::Relaxed)).doing(at) };
            let since = slot.stand(stand::wait);
            afterwards(&slot, false, since);
            // SAFETY: as above.
            unsafe { again::restart(context, slot.doing) };
        }
        return;
    }
    let [handler, ..] = libcs();
    if handler > 1 {
        // SAFETY: libc's own handler of this signal takes these arguments.
        let handler: Handler = unsafe { core::mem::transmute(handler) };
        handler(signal, info, context);
    }
}

/// The value that came with a signal.
///
/// # Safety
/// The kernel's.
unsafe fn told(info: *const libc::siginfo_t) -> u64 {
    // SAFETY: the caller's.
    unsafe { info.cast::<u64>().add(3).read() }
}

/// Who sent it.
///
/// # Safety
/// The kernel's.
unsafe fn sender(info: *const libc::siginfo_t) -> i32 {
    // SAFETY: the caller's.
    unsafe { info.cast::<i32>().add(4).read() }
}

extern "C" fn on_signal(_: i32, info: *const libc::siginfo_t, context: *mut libc::ucontext_t) {
    if ON.load(Ordering::Relaxed) == 0
        || BUSY.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire).is_err()
    {
        return;
    }
    // SAFETY: the kernel gave both.
    unsafe {
        let code = info.cast::<i32>().add(2).read();
        FACTS.asked_by.store(sender(info), Ordering::Relaxed);
        FACTS.token.store(if code < 0 { told(info) } else { 0 }, Ordering::Relaxed);
    }
    // SAFETY: as above.
    let mut slot = unsafe { Slot::new(context) };
    let since = slot.stand(lead);
    afterwards(&slot, true, since);
    // SAFETY: as above.
    unsafe { again::restart(context, slot.doing) };
}
