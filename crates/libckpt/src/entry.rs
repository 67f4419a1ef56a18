//! The handler of the signal.
//!
//! # Safety
//! Unsafe here: what the kernel gives a signal handler, and handlers that are ours or libc's.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::api::{callbacks, sections, words};
use crate::lead::{BUSY, FACTS, afterwards, lead};
use crate::mailbox::Doing;
use crate::stand::{self, Since, Slot};
use crate::{SIGSTAND, again, answer, api, gather, home, later, mark, raw, settings, timer, writer};

/// Flag of the kernel's for handlers that say themselves how to return.
pub(crate) const SA_RESTORER: u64 = 0x0400_0000;
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

/// Takes the signal. Whoever started the program may have had it blocked.
pub fn install() {
    let signal = settings::signal();
    let _valid = set_action(signal, Some(&action(on_signal)));
    mark::set(signal);
    timer::start();
    let (ours, mut before) = (1u64 << (settings::signal() - 1), 0u64);
    let args = [raw::word(libc::SIG_UNBLOCK), &raw const ours as u64, &raw mut before as u64, 8, 0, 0];
    // SAFETY: two sets of ours; this thread's own words.
    unsafe {
        raw::call(libc::SYS_rt_sigprocmask, args);
        *again::blocks_ours() = before & ours;
    }
}

/// Whoever asks now asks the program that this process is about to become.
pub fn put_off() {
    let ours = 1u64 << (settings::signal() - 1);
    let args = [raw::word(libc::SIG_BLOCK), &raw const ours as u64, 0, 8, 0, 0];
    // SAFETY: a set of ours.
    unsafe { raw::call(libc::SYS_rt_sigprocmask, args) };
}

/// In a process that was made by fork(2), which may have been called in the midst of a checkpoint: that is none of its, nor are requests
/// that wait for the end of it.
#[inline]
pub fn forked() {
    // Only what is not so already is written, since that is copied for the child.
    if BUSY.load(Ordering::Acquire) != 0 {
        BUSY.store(0, Ordering::Release);
        give_back();
    }
    sections::in_child();
    later::forget();
}

/// Makes threads end that are asked to, at once and without a word to libc: for those that others have started in a process that is to
/// become another program.
pub fn let_threads_end() {
    let _valid = set_action(SIGSTAND, Some(&action(on_end)));
}

extern "C" fn on_end(_: i32, _: *const libc::siginfo_t, _: *mut libc::ucontext_t) {
    // SAFETY: the thread is gone; what it held goes with the memory of this process.
    unsafe { raw::call(libc::SYS_exit, [0; 6]) };
}

/// What libc does about [`SIGSTAND`], while it is ours.
static LIBCS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Takes the signal by which threads are asked to stand still, for the time of a checkpoint.
pub fn borrow() {
    let ours = action(on_request);
    // It is still ours when somebody did not come the last time.
    if let Ok(old) = set_action(SIGSTAND, Some(&ours))
        && old[0] != ours[0]
    {
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
    if code < 0 && sender == raw::getpid() && gather::is_request(value) {
        // SAFETY: as above.
        let mut slot = unsafe { Slot::new(context) };
        // One that comes late was asked for a checkpoint that is over.
        let mut since = raw::now();
        if let Some(place) = gather::place(value)
            && BUSY.load(Ordering::Acquire) != 0
        {
            slot.asked_at = place;
            let stood = slot.stand(stand::wait);
            since = FACTS.since.load(Ordering::Relaxed);
            afterwards(&slot, false, stood);
        }
        // SAFETY: as above.
        unsafe { again::restart(context, slot.doing, since) };
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

/// How signals come that ask: by kill, sigqueue and tgkill, or the kernel itself.
const ASKS: [i32; 4] = [0, -1, -6, 0x80];

/// What a signal asks for.
#[derive(Clone, Copy)]
struct Request {
    /// Who asked.
    by: i32,
    /// What came with it; 0 if nobody waits for an answer.
    token: u64,
    /// A thread of ours asked, this one, and waits for the outcome.
    here: bool,
    /// Our timer asked.
    at_interval: bool,
}

impl Request {
    /// # Safety
    /// The kernel's.
    unsafe fn of(info: *const libc::siginfo_t) -> Self {
        // SAFETY: the caller's.
        let (code, by, value) = unsafe { (info.cast::<i32>().add(2).read(), sender(info), told(info)) };
        let put_off = |here| Self {
            by: sections::BY.load(Ordering::SeqCst),
            token: sections::TOKEN.load(Ordering::SeqCst),
            here,
            at_interval: false,
        };
        let plain = Self { by, token: 0, here: false, at_interval: false };
        let ours = code == libc::SI_QUEUE && by == raw::getpid();
        match value {
            timer::VALUE if code == libc::SI_TIMER => Self { at_interval: true, ..plain },
            api::HERE if ours => Self { here: true, ..plain },
            _ if ours && value == api::HERE | api::FOR_OTHERS => put_off(true),
            api::AGAIN if ours => put_off(false),
            _ => Self { token: if code == libc::SI_QUEUE { value } else { 0 }, ..plain },
        }
    }

    /// Whether the calling thread leads a checkpoint now; else somebody else will, or nobody.
    fn begins(&self) -> bool {
        let no = |error: i32| {
            if self.here {
                words::own().outcome.store(-error, Ordering::Relaxed);
            }
            false
        };
        if ON.load(Ordering::Relaxed) == 0 {
            words::own().say(b"checkpointing is switched off");
            answer::refuse(
                self.token,
                b"checkpointing is off in this program",
                b"switch it on (checkpointing on in .ckptrc)",
            );
            return no(libc::ECANCELED);
        }
        // The last one may not be on the disk yet.
        if self.at_interval && writer::is_busy() {
            return false;
        }
        if !self.here && callbacks::hand_over(self.by, self.token) {
            return false;
        }
        loop {
            if BUSY.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire).is_err() {
                if !self.here && !self.at_interval {
                    later::remember(self.token);
                }
                return no(libc::EBUSY);
            }
            if sections::close_gate() {
                break;
            }
            BUSY.store(0, Ordering::Release);
            if self.here {
                return no(libc::EAGAIN);
            }
            if sections::put_off(self.by, self.token) {
                return false;
            }
        }
        FACTS.token.store(self.token, Ordering::Relaxed);
        FACTS.here.store(u32::from(self.here), Ordering::Relaxed);
        FACTS.at_interval.store(u32::from(self.at_interval), Ordering::Relaxed);
        timer::stop();
        true
    }
}

/// Most requests that are taken at a time.
const MANY: usize = 1 << 16;

/// Takes requests that have come by now: this checkpoint is what those wanted that nobody waits for. The kernel keeps each of them, so
/// that a program of one thread would serve one after the other. Not inlined: there may be little room on the stack of who goes on.
#[inline(never)]
fn join_others() {
    let (ours, now) = (1u64 << (settings::signal() - 1), [0u64; 2]);
    let mut info = [0u64; 16];
    for _ in 0..MANY {
        let args = [&raw const ours as u64, info.as_mut_ptr() as u64, now.as_ptr() as u64, 8, 0, 0];
        // SAFETY: a set, room for a siginfo_t, and a time of ours; then what the kernel wrote.
        let (request, code) = unsafe {
            if raw::call(libc::SYS_rt_sigtimedwait, args) <= 0 {
                return;
            }
            let info = info.as_ptr().cast::<libc::siginfo_t>();
            (Request::of(info), info.cast::<i32>().add(2).read())
        };
        if request.here {
            // This thread's own, which waits for its outcome.
            return api::queue_for_myself(api::HERE);
        }
        if ASKS.contains(&code) && !request.at_interval && request.token != 0 {
            later::remember(request.token);
        }
    }
}

extern "C" fn on_signal(_: i32, info: *const libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel gave it.
    let request = unsafe { Request::of(info) };
    // Others are timers of the program's, say, that use the number.
    // SAFETY: as above.
    if !request.at_interval && !ASKS.contains(&unsafe { info.cast::<i32>().add(2).read() }) {
        // SAFETY: as above.
        return unsafe { again::restart(context, Doing::NOTHING, raw::now()) };
    }
    // A child may make an image by its own wish, but is not the program that others ask.
    if !request.here && !home::is_here(request.token) || !request.begins() {
        // SAFETY: as above.
        unsafe { again::restart(context, Doing::NOTHING, raw::now()) };
        return;
    }
    join_others();
    // SAFETY: as above.
    let mut slot = unsafe { Slot::new(context) };
    let since = slot.stand(lead);
    afterwards(&slot, true, since);
    if request.here && since != Since::Left {
        words::own().outcome.store(1, Ordering::Relaxed);
    }
    // SAFETY: as above.
    unsafe { again::restart(context, slot.doing, FACTS.since.load(Ordering::Relaxed)) };
}
