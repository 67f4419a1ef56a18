//! Having all threads come and stand still.
//!
//! While any of them runs, nothing may be opened that it could close, or whose number it could miss: a passing thread ([`helper`]) that
//! has descriptors of its own lists the threads and asks them.
//!
//! # Safety
//! Unsafe here: slots of threads that stand still until they are let go; raw system calls with buffers of ours.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use crate::copy::Stacks;
use crate::mailbox::Mailbox;
use crate::stand::{LISTED, STANDING, Slot};
use crate::{SIGSTAND, again, helper, raw};

/// In the value of the signal that asks a thread of this process to stand still.
const REQUEST: u64 = 0x7265_7761;
/// Below it: where in the mailbox is noted what the thread was doing. Above it: which checkpoint it is asked for.
pub const PLACE_BITS: u32 = 20;
const COUNT_SHIFT: u32 = 52;
/// How long threads may take to come.
const PATIENCE: u64 = 10_000_000_000;
/// Between two looks at who is there.
const LOOK: u64 = 200_000;
const SI_QUEUE: i32 = -1;

/// Counts checkpoints: a thread that comes late must not take one for another.
static TIMES: AtomicU32 = AtomicU32::new(0);

/// What a request says above the place.
fn heading() -> u64 {
    u64::from(TIMES.load(Ordering::Acquire)) << COUNT_SHIFT | REQUEST << PLACE_BITS
}

/// The place that a request names, if it belongs to the checkpoint that is being made.
#[must_use]
pub fn place(value: u64) -> Option<usize> {
    let mask = (1 << PLACE_BITS) - 1;
    (value & !mask == heading()).then(|| usize::try_from(value & mask).unwrap_or(0))
}

/// Whether a signal with this value is a request, be it for a checkpoint that is over.
#[must_use]
pub fn is_request(value: u64) -> bool {
    value << (64 - COUNT_SHIFT) >> (64 - COUNT_SHIFT + PLACE_BITS) == REQUEST
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathered {
    /// All stand still.
    All,
    /// This thread did not come.
    Missing(i32),
    /// The first thread has ended while others run: it cannot come.
    FirstEnded,
    /// Nobody was asked: who there is cannot be seen.
    Unlisted,
    /// The kernel makes no thread that could ask.
    NoHelper,
}

struct Gathering {
    mailbox: Mailbox,
    leader: i32,
    missing: AtomicI32,
    unlisted: AtomicBool,
    first_ended: AtomicBool,
}

/// Makes all threads but the calling one stand still.
pub fn gather(mailbox: Mailbox, stacks: &Stacks, leader: i32) -> Gathered {
    TIMES.fetch_add(1, Ordering::AcqRel);
    let [unlisted, first_ended] = [const { AtomicBool::new(false) }; 2];
    let gathering = Gathering { mailbox, leader, missing: AtomicI32::new(0), unlisted, first_ended };
    // SAFETY: the function takes what it is given here, and keeps to raw system calls.
    let helped = unsafe { helper::run(stacks.helper(), ask_all, (&raw const gathering) as u64) };
    if gathering.unlisted.load(Ordering::Acquire) {
        return Gathered::Unlisted;
    }
    if gathering.first_ended.load(Ordering::Acquire) {
        return Gathered::FirstEnded;
    }
    match (helped, gathering.missing.load(Ordering::Acquire)) {
        (false, _) => Gathered::NoHelper,
        (true, 0) => Gathered::All,
        (true, missing) => Gathered::Missing(missing),
    }
}

extern "C" fn ask_all(told: u64) {
    // SAFETY: the leading thread waits until this one is gone.
    let gathering = unsafe { &*(told as *const Gathering) };
    let (own, begin) = (raw::gettid(), raw::now());
    let mut before = 0;
    loop {
        let mut asked = Asked { mailbox: gathering.mailbox, missing: 0, first: false };
        let mut others = 0;
        let listed = each_thread(&mut |tid| {
            if tid == own {
                return;
            }
            others += 1;
            if tid != gathering.leader && !stands(tid) {
                asked.ask(tid);
            }
        });
        if !listed && others == 0 {
            gathering.unlisted.store(true, Ordering::Release);
            return;
        }
        let all = listed && others == LISTED.load(Ordering::Acquire);
        let missing = asked.missing;
        if missing == 0 && all && others == before {
            // The table is the copy's from now on.
            asked.forget_all();
            return;
        }
        before = others;
        let ended = asked.first && first_has_ended();
        if ended || raw::now() - begin > PATIENCE {
            asked.forget_all();
            gathering.first_ended.store(ended, Ordering::Release);
            gathering.missing.store(if missing == 0 { -1 } else { missing }, Ordering::Release);
            return;
        }
        raw::futex_wait(&LISTED, LISTED.load(Ordering::Acquire), Some(LOOK));
    }
}

/// Whether the first thread has ended; others run, or nobody would ask. For the passing thread only, as it opens a file.
fn first_has_ended() -> bool {
    matches!(raw::state_in(b"/proc/self/stat\0", |_| true), Some(b'Z' | b'X'))
}

/// Whether a thread stands still.
fn stands(tid: i32) -> bool {
    each_slot(|slot| slot.tid == tid)
}

/// Whether something holds for any thread that stands still.
pub fn each_slot(holds: impl Fn(&Slot) -> bool) -> bool {
    let mut next = STANDING.load(Ordering::Acquire);
    while !next.is_null() {
        // SAFETY: slots of threads that stand still.
        let slot = unsafe { &*next };
        if holds(slot) {
            return true;
        }
        next = slot.next;
    }
    false
}

/// Those that were asked already, in the table that is not used yet: each is asked once.
struct Asked {
    mailbox: Mailbox,
    missing: i32,
    /// The first thread is missing.
    first: bool,
}

impl Asked {
    fn ask(&mut self, tid: i32) {
        self.missing = tid;
        self.first |= tid == raw::getpid();
        let id = u64::from(tid.unsigned_abs());
        let mut at = 0;
        // SAFETY: the table is zero at first, and ours until the copy is made.
        unsafe {
            while at < self.mailbox.most() && (*self.mailbox.walk(at)).first != 0 {
                if (*self.mailbox.walk(at)).first == id {
                    return;
                }
                at += 1;
            }
            if at >= self.mailbox.most() {
                return;
            }
            (*self.mailbox.walk(at)).first = id;
            *self.mailbox.doing(at) = again::doing(tid);
        }
        // siginfo_t: signal, error, code, padding, then pid, uid, value.
        let mut info = [0u64; 16];
        info[0] = u64::from(SIGSTAND.unsigned_abs());
        info[1] = u64::from(SI_QUEUE.cast_unsigned());
        info[2] = u64::from(raw::getpid().unsigned_abs());
        info[3] = heading() | at as u64;
        let args = [raw::word(raw::getpid()), id, raw::word(SIGSTAND), info.as_ptr() as u64, 0, 0];
        // SAFETY: a siginfo_t of ours. One that has ended meanwhile is not there any more.
        unsafe { raw::call(libc::SYS_rt_tgsigqueueinfo, args) };
    }

    fn forget_all(&self) {
        // SAFETY: as above.
        unsafe {
            let mut at = 0;
            while at < self.mailbox.most() && (*self.mailbox.walk(at)).first != 0 {
                (*self.mailbox.walk(at)).first = 0;
                at += 1;
            }
        }
    }
}

/// Calls for each thread of this process; whether all were seen.
pub fn each_thread(each: &mut dyn FnMut(i32)) -> bool {
    each_number(c"/proc/self/task", &mut [0; 256], each)
}

/// Calls for each number but 0 that is a name in a folder; whether all were seen. `buffer` has room for a few names at least.
pub fn each_number(folder: &core::ffi::CStr, buffer: &mut [u64], each: &mut dyn FnMut(i32)) -> bool {
    let flags = raw::word(libc::O_DIRECTORY | libc::O_CLOEXEC);
    let path = folder.as_ptr() as u64;
    // SAFETY: a string, with the zero byte at its end.
    let folder = unsafe { raw::call(libc::SYS_openat, [raw::word(libc::AT_FDCWD), path, flags, 0, 0, 0]) };
    let Ok(folder @ 0..) = i32::try_from(folder) else { return false };
    let whole = loop {
        let args = [raw::word(folder), buffer.as_mut_ptr() as u64, size_of_val(buffer) as u64, 0, 0, 0];
        // SAFETY: a buffer of ours, aligned for what the kernel writes.
        let read = unsafe { raw::call(libc::SYS_getdents64, args) };
        let Ok(read @ 1..) = usize::try_from(read) else { break read == 0 };
        let start = buffer.as_ptr().cast::<u8>();
        let mut at = 0;
        while at < read {
            // SAFETY: the kernel wrote records one behind the other: inode, offset, length, type, name with a zero byte at its end.
            unsafe {
                let entry = start.add(at);
                let len = usize::from(entry.add(16).cast::<u16>().read_unaligned());
                if let Some(tid) = number(entry.add(19)) {
                    each(tid);
                }
                at += len.max(1);
            }
        }
    };
    raw::close(folder);
    whole
}

/// A number in decimal.
///
/// # Safety
/// A string with a zero byte at its end.
pub unsafe fn number(mut text: *const u8) -> Option<i32> {
    let mut value = 0i32;
    loop {
        // SAFETY: within the string.
        let byte = unsafe { text.read() };
        match byte {
            0 => return (value > 0).then_some(value),
            b'0'..=b'9' => value = value.checked_mul(10)?.checked_add(i32::from(byte - b'0'))?,
            _ => return None,
        }
        // SAFETY: the zero byte comes yet.
        text = unsafe { text.add(1) };
    }
}

/// How many threads there are about now, without opening anything.
#[must_use]
pub fn threads_about() -> usize {
    // SAFETY: a structure that is numbers.
    let mut seen: libc::stat = unsafe { core::mem::zeroed() };
    let path = c"/proc/self/task".as_ptr() as u64;
    // SAFETY: a string and a structure of ours.
    unsafe { raw::call(libc::SYS_stat, [path, &raw mut seen as u64, 0, 0, 0, 0]) };
    usize::try_from(seen.st_nlink).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_known_and_not_taken_for_another_one() {
        let of_this = heading() | 77;
        assert_eq!(place(of_this), Some(77));
        assert!(is_request(of_this));
        TIMES.fetch_add(1, Ordering::AcqRel);
        assert_eq!(place(of_this), None);
        assert!(is_request(of_this));
        assert!(!is_request(77));
        assert!(!is_request(u64::MAX));
    }

    #[test]
    fn own_threads_are_seen() {
        let (mut seen, own) = (Vec::new(), raw::gettid());
        assert!(each_thread(&mut |tid| seen.push(tid)));
        assert!(seen.contains(&own), "{seen:?}");
        assert!(threads_about() >= 1);
    }
}
