//! Standing still: every thread waits in the handler of the signal, in a function that can also be come back to from an image.
//!
//! A [`Slot`] on the stack of each says where. The slots of those that stand make a list, which the copy reads in its own memory.
//!
//! # Safety
//! Unsafe here: a slot on the stack of a thread that stands as long as it is used; assembly that keeps what its callers may count on.

#![allow(unsafe_code, reason = "see Safety above")]

use core::arch::global_asm;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};

use crate::lead::MAILBOX;
use crate::mailbox::Mailbox;
use crate::{pending, raw};

/// See [`Slot::asked_at`].
pub const NOWHERE: usize = usize::MAX;

/// A thread that stands still.
#[derive(Debug)]
#[repr(C)]
pub struct Slot {
    /// Its stack pointer; at offset 0, where the assembly writes it.
    pub stack: u64,
    /// Its id.
    pub tid: i32,
    /// What its thread-local memory is found by.
    pub fs_base: u64,
    /// The base of its other segment.
    pub gs_base: u64,
    /// The extended state in its signal frame.
    pub xstate: *const u8,
    /// The one that came before it.
    pub next: *mut Slot,
    /// Orders carried out so far.
    pub orders: u32,
    /// What it is to walk, set by who leads.
    pub walk: crate::mailbox::Walk,
    /// The call it was in, if that is known.
    pub doing: crate::mailbox::Doing,
    /// Where that is noted in the mailbox; [`NOWHERE`] if it is not.
    pub asked_at: usize,
    /// Signals are pending for it or its process.
    pub pending: bool,
    /// Its id in another life.
    pub tid_now: AtomicI32,
}

/// What became of a thread that stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// It goes on in the process it was in.
    Left,
    /// It was woken from an image, by somebody outside.
    Woken,
    /// It was woken from an image by this process itself, whose restore lies at this address, so many bytes.
    Recovered(u64, u64),
}

/// In the registers of one that is woken from outside.
pub const BY_OTHERS: u64 = 1;

// A pair of registers: where the thread found itself.
#[repr(C)]
struct Found {
    stage: u64,
    len: u64,
}

unsafe extern "C" {
    fn rewake_ckpt_stand(slot: *mut Slot, wait: unsafe extern "C" fn(*mut Slot)) -> Found;
    /// Where a woken thread begins, with its stack pointer as in its slot.
    fn rewake_ckpt_woken();
}

global_asm!(
    ".pushsection .text.rewake_ckpt, \"ax\"",
    ".globl rewake_ckpt_stand",
    ".globl rewake_ckpt_woken",
    ".hidden rewake_ckpt_stand",
    ".hidden rewake_ckpt_woken",
    "rewake_ckpt_stand:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "mov [rdi], rsp",
    "call rsi",
    "xor eax, eax",
    "xor edx, edx",
    "2:",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    "rewake_ckpt_woken:",
    "cld",
    "mov rax, rdi",
    "mov rdx, rsi",
    "jmp 2b",
    ".popsection",
);

/// Address of the first instruction of a woken thread.
#[must_use]
pub fn woken() -> u64 {
    rewake_ckpt_woken as *const () as u64
}

/// The slots of those that stand, the last one first.
pub static STANDING: AtomicPtr<Slot> = AtomicPtr::new(core::ptr::null_mut());
/// How many came, with the highest bit when nobody may come any more.
pub static COUNT: AtomicU32 = AtomicU32::new(CLOSED);
/// How many of them are in the list.
pub static LISTED: AtomicU32 = AtomicU32::new(0);
const CLOSED: u32 = 1 << 31;
/// Counts orders; changes when there is one.
pub static ORDERS: AtomicU32 = AtomicU32::new(0);
/// The order: walk what the slot says, or go.
pub static ORDER: AtomicU32 = AtomicU32::new(0);
/// How many have carried it out.
pub static CARRIED_OUT: AtomicU32 = AtomicU32::new(0);

/// Walk what the slot says.
pub const WALK: u32 = 1;
/// Go.
pub const GO: u32 = 2;
/// Note the signals that are pending.
pub const NOTE_SIGNALS: u32 = 3;

impl Slot {
    /// For the calling thread, whose signal frame's context is this.
    ///
    /// # Safety
    /// `context` is the third argument of a signal handler.
    #[must_use]
    pub unsafe fn new(context: *const libc::ucontext_t) -> Self {
        // SAFETY: the kernel filled it in.
        let xstate = unsafe { (*context).uc_mcontext.fpregs }.cast::<u8>();
        Self {
            stack: 0,
            tid: raw::gettid(),
            fs_base: base(ARCH_GET_FS),
            gs_base: base(ARCH_GET_GS),
            xstate,
            next: core::ptr::null_mut(),
            orders: 0,
            walk: crate::mailbox::Walk::default(),
            doing: crate::mailbox::Doing::NOTHING,
            asked_at: NOWHERE,
            pending: pending::any(),
            tid_now: AtomicI32::new(0),
        }
    }

    /// Joins those that stand, while the function runs; or, in another life, until woken.
    pub fn stand(&mut self, wait: unsafe extern "C" fn(*mut Slot)) -> Since {
        self.orders = ORDERS.load(Ordering::Acquire);
        // SAFETY: the slot outlives the call, and the stack above it stays as it is.
        let found = unsafe { rewake_ckpt_stand(self, wait) };
        match found.stage {
            0 => Since::Left,
            BY_OTHERS => Since::Woken,
            stage => Since::Recovered(stage, found.len),
        }
    }

    /// Adds it to the list; false if it comes too late.
    pub fn join(&mut self) -> bool {
        let may_come = |count: u32| (count & CLOSED == 0).then_some(count + 1);
        if COUNT.fetch_update(Ordering::AcqRel, Ordering::Acquire, may_come).is_err() {
            return false;
        }
        if self.asked_at != NOWHERE {
            // SAFETY: who leads noted it there before it asked, and keeps the mailbox until those that were counted have gone.
            self.doing = unsafe { *Mailbox::at(MAILBOX.load(Ordering::Acquire)).doing(self.asked_at) };
        }
        let mut first = STANDING.load(Ordering::Acquire);
        loop {
            self.next = first;
            match STANDING.compare_exchange(first, self, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => first = now,
            }
        }
        LISTED.fetch_add(1, Ordering::AcqRel);
        raw::futex_wake(&LISTED);
        true
    }
}

/// How many stand still.
#[must_use]
pub fn standing() -> u32 {
    COUNT.load(Ordering::Acquire) & !CLOSED
}

/// Lets threads come.
pub fn open() {
    STANDING.store(core::ptr::null_mut(), Ordering::Release);
    LISTED.store(0, Ordering::Release);
    COUNT.store(0, Ordering::Release);
}

/// Lets no more come; those that came are in the list then.
pub fn close() {
    let count = COUNT.fetch_or(CLOSED, Ordering::AcqRel) & !CLOSED;
    loop {
        let listed = LISTED.load(Ordering::Acquire);
        if listed >= count {
            return;
        }
        raw::futex_wait(&LISTED, listed, None);
    }
}

/// What a thread does that does not lead: it carries out orders until it may go.
///
/// # Safety
/// The slot is the calling thread's, which stands here.
pub unsafe extern "C" fn wait(slot: *mut Slot) {
    // SAFETY: the caller's.
    let slot = unsafe { &mut *slot };
    if !slot.join() {
        return;
    }
    loop {
        let now = ORDERS.load(Ordering::Acquire);
        if now == slot.orders {
            raw::futex_wait(&ORDERS, now, None);
            continue;
        }
        slot.orders = now;
        let order = ORDER.load(Ordering::Acquire);
        match order {
            WALK => slot.carry_out(),
            NOTE_SIGNALS => pending::note(slot.tid),
            _ => {}
        }
        CARRIED_OUT.fetch_add(1, Ordering::AcqRel);
        raw::futex_wake(&CARRIED_OUT);
        if order == GO {
            return;
        }
    }
}

impl Slot {
    /// Walks what it was told to.
    pub fn carry_out(&mut self) {
        let crate::mailbox::Walk { first, context } = core::mem::take(&mut self.walk);
        if first != 0 {
            // SAFETY: who leads gives the tracks of a program that the copy assembled for the place it lies at.
            unsafe { rewake_linux::walk::walk(first as *mut u64, context as *mut u64) };
        }
    }
}

const ARCH_GET_FS: u64 = 0x1003;
const ARCH_GET_GS: u64 = 0x1004;

fn base(which: u64) -> u64 {
    let mut base = 0u64;
    // SAFETY: the kernel writes one word of ours.
    unsafe { raw::call(libc::SYS_arch_prctl, [which, &raw mut base as u64, 0, 0, 0, 0]) };
    base
}
