//! The thread that got the signal: it makes the others stand still, makes the copy, and serves it until all may go.
//!
//! # Safety
//! Unsafe here: slots of threads that stand still until they are let go; raw system calls with buffers of ours.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use crate::api::{sections, words};
use crate::copy::Stacks;
use crate::mailbox::{MOST, Mailbox};
use crate::stand::{CARRIED_OUT, GO, LISTED, NOTE_SIGNALS, ORDER, ORDERS, STANDING, Slot, WALK, standing};
use crate::{SIGSTAND, again, answer, entry, later, pending, raw, stand, timer, writer};

/// A checkpoint is being made.
pub static BUSY: AtomicU32 = AtomicU32::new(0);
/// In the value of the signal that asks a thread of this process to stand still.
pub const REQUEST: u64 = 0x7265_7761 << PLACE_BITS;
/// Below it: where in the mailbox is noted what the thread was doing.
pub const PLACE_BITS: u32 = 20;
/// How long threads may take to come.
const PATIENCE: u64 = 10_000_000_000;
/// Between two looks at who is there.
const LOOK: u64 = 200_000;
const SI_QUEUE: i32 = -1;

/// Orders of the copy.
pub const WALK_ORDER: u8 = b'w';
/// All may go.
pub const GO_ORDER: u8 = b'g';
/// What came of it: an error number, and why.
pub const OUTCOME: u8 = b'o';

/// What the copy has to know; it reads it in its own memory.
pub struct Facts {
    /// The process.
    pub pid: AtomicI32,
    /// Its `/proc/self/mem`.
    pub memory: AtomicI32,
    /// Where orders are read.
    pub orders_in: AtomicI32,
    /// Where orders are given.
    pub orders_out: AtomicI32,
    /// When the first thread stood still.
    pub since: AtomicU64,
    /// What came with the signal; 0 if nobody waits for an answer.
    pub token: AtomicU64,
    /// The thread that leads asked for it itself, and waits for the outcome.
    pub here: AtomicU32,
    /// Why there are no threads standing: one that did not come.
    pub missing: AtomicI32,
}

/// Of the checkpoint that is being made.
pub static FACTS: Facts = Facts {
    pid: AtomicI32::new(0),
    memory: AtomicI32::new(-1),
    orders_in: AtomicI32::new(-1),
    orders_out: AtomicI32::new(-1),
    since: AtomicU64::new(0),
    token: AtomicU64::new(0),
    here: AtomicU32::new(0),
    missing: AtomicI32::new(0),
};

/// What is given back in the end.
struct Means {
    mailbox: Mailbox,
    stacks: Stacks,
}

/// Makes a checkpoint.
///
/// # Safety
/// The slot is the calling thread's, which stands here.
pub unsafe extern "C" fn lead(slot: *mut Slot) {
    // SAFETY: the caller's.
    let slot = unsafe { &mut *slot };
    FACTS.since.store(raw::now(), Ordering::Relaxed);
    FACTS.pid.store(raw::getpid(), Ordering::Relaxed);
    stand::open();
    slot.join();
    entry::borrow();
    let here = FACTS.here.load(Ordering::Relaxed) != 0;
    let mut last = 0;
    if let Some(means) = Means::take() {
        last = means.checkpoint(slot, here);
        means.give_back(here);
    } else {
        failed(
            here,
            libc::ENOMEM,
            b"there is no memory for it (limits of memory, or mlockall with MCL_FUTURE)",
        );
    }
    stand::close();
    entry::give_back();
    order(GO, slot);
    disperse();
    sections::open_gate();
    if here {
        await_outcome(last);
    }
}

/// There is no checkpoint: whoever asked is told, or whoever reads what the program says.
fn failed(here: bool, error: i32, why: &[u8]) {
    if here {
        words::own().outcome.store(-error, Ordering::Relaxed);
        words::own().say(why);
    } else if !answer::refuse(FACTS.token.load(Ordering::Relaxed), why, b"") {
        raw::say(b"libckpt: no checkpoint: ");
        raw::say(why);
        raw::say(b"\n");
    }
}

/// Waits until the copy has said what came of it, after its last order. The other threads go on.
fn await_outcome(last: u8) {
    let fd = FACTS.orders_in.swap(-1, Ordering::Relaxed);
    if fd < 0 {
        return;
    }
    let mut text = [0u8; 512];
    text[0] = last;
    let mut len = usize::from(last == OUTCOME);
    while len < text.len() {
        // SAFETY: within a buffer of ours.
        let at = unsafe { text.as_mut_ptr().add(len) } as u64;
        // SAFETY: as above.
        let read =
            unsafe { raw::call(libc::SYS_read, [raw::word(fd), at, (text.len() - len) as u64, 0, 0, 0]) };
        match usize::try_from(read) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(_) if read == -i64::from(libc::EINTR) => {}
            Err(_) => break,
        }
    }
    raw::close(fd);
    match &text[..len] {
        [OUTCOME, a, b, c, d, why @ ..] => {
            words::own().outcome.store(-i32::from_le_bytes([*a, *b, *c, *d]), Ordering::Relaxed);
            words::own().say(why);
        }
        _ => failed(true, libc::EIO, b"the process that wrote the image was ended"),
    }
}

/// Nobody stands any more.
pub fn disperse() {
    STANDING.store(core::ptr::null_mut(), Ordering::Release);
}

impl Means {
    fn take() -> Option<Self> {
        let mailbox = Mailbox::new()?;
        let Some(stacks) = Stacks::new() else {
            // SAFETY: nobody has it yet.
            unsafe { mailbox.unmap() };
            return None;
        };
        let mut pipe = [-1i32; 2];
        let flags = raw::word(libc::O_CLOEXEC);
        // SAFETY: two numbers of ours; a string of ours.
        let memory = unsafe {
            raw::call(libc::SYS_pipe2, [pipe.as_mut_ptr() as u64, flags, 0, 0, 0, 0]);
            let path = c"/proc/self/mem".as_ptr() as u64;
            raw::call(libc::SYS_openat, [raw::word(libc::AT_FDCWD), path, flags, 0, 0, 0])
        };
        FACTS.memory.store(i32::try_from(memory).unwrap_or(-1), Ordering::Relaxed);
        FACTS.orders_in.store(pipe[0], Ordering::Relaxed);
        FACTS.orders_out.store(pipe[1], Ordering::Relaxed);
        Some(Self { mailbox, stacks })
    }

    fn give_back(self, but_orders: bool) {
        for fd in [&FACTS.memory, &FACTS.orders_out, &FACTS.orders_in] {
            if but_orders && core::ptr::eq(fd, &raw const FACTS.orders_in) {
                continue;
            }
            let fd = fd.swap(-1, Ordering::Relaxed);
            if fd >= 0 {
                raw::close(fd);
            }
        }
        // SAFETY: the copy has its own; no thread walks any more.
        unsafe {
            self.mailbox.unmap();
            self.stacks.unmap();
        }
    }

    /// The last order of the copy, or 0.
    fn checkpoint(&self, slot: &mut Slot, here: bool) -> u8 {
        MAILBOX.store(self.mailbox.range().start, Ordering::Relaxed);
        FACTS.missing.store(self.gather(slot.tid), Ordering::Relaxed);
        stand::close();
        if each_slot(|slot| slot.pending) {
            order(NOTE_SIGNALS, slot);
            pending::note_shared();
        }
        STACKS.store(self.stacks.range().start, Ordering::Relaxed);
        // Else the copy would be left to the program, and its end be told to it.
        let subreaper = set_subreaper(false);
        // SAFETY: all that the copy does it does with memory of its own; it does not come back.
        let made = unsafe { self.stacks.copy(crate::capture::run, self.mailbox.range().start) };
        if subreaper {
            set_subreaper(true);
        }
        let end = FACTS.orders_out.swap(-1, Ordering::Relaxed);
        raw::close(end);
        if made.is_err() {
            raw::close(FACTS.orders_in.swap(-1, Ordering::Relaxed));
            failed(here, libc::EAGAIN, b"the kernel makes no process (limits of processes or memory)");
            return 0;
        }
        // The process between is gone now.
        self.tell_done();
        let last = self.serve(slot);
        writer::note(&self.mailbox);
        last
    }

    /// Makes all others stand still; the id of one that does not come in time, or 0.
    fn gather(&self, own: i32) -> i32 {
        let begin = raw::now();
        let mut before = 0;
        loop {
            let mut asked = Asked { mailbox: self.mailbox, count: 0, missing: 0 };
            let listed = each_thread(&mut |tid| {
                if tid != own && !stands(tid) {
                    asked.ask(tid);
                }
            });
            if asked.missing == 0 && listed == LISTED.load(Ordering::Acquire) && listed == before {
                // The table is the copy's from now on.
                asked.forget_all();
                return 0;
            }
            before = listed;
            if raw::now() - begin > PATIENCE {
                asked.forget_all();
                return if asked.missing == 0 { -1 } else { asked.missing };
            }
            raw::futex_wait(&LISTED, LISTED.load(Ordering::Acquire), Some(LOOK));
        }
    }

    /// Carries out the copy's orders until it lets us go, or is gone; the last of them, or 0.
    fn serve(&self, slot: &mut Slot) -> u8 {
        loop {
            let mut byte = 0u8;
            let pipe = raw::word(FACTS.orders_in.load(Ordering::Relaxed));
            // SAFETY: one byte of ours.
            let read = unsafe { raw::call(libc::SYS_read, [pipe, &raw mut byte as u64, 1, 0, 0, 0]) };
            match (read, byte) {
                (1, WALK_ORDER) => {
                    self.hand_out();
                    order(WALK, slot);
                    self.tell_done();
                }
                (read, _) if read == -i64::from(libc::EINTR) => {}
                (1, last) => return last,
                _ => return 0,
            }
        }
    }

    fn tell_done(&self) {
        self.mailbox.done().fetch_add(1, Ordering::AcqRel);
        raw::futex_wake(self.mailbox.done());
    }

    /// Gives each thread its walk, in the order of the list.
    fn hand_out(&self) {
        let mut next = STANDING.load(Ordering::Acquire);
        for at in 0.. {
            if next.is_null() {
                return;
            }
            // SAFETY: slots of threads that stand still; the table is ours while the copy waits.
            unsafe {
                (*next).walk = core::mem::take(&mut *self.mailbox.walk(at));
                next = (*next).next;
            }
        }
    }
}

/// Where the shared memory is.
pub static MAILBOX: AtomicU64 = AtomicU64::new(0);
/// Where the stacks are.
pub static STACKS: AtomicU64 = AtomicU64::new(0);

/// Makes orphans below this process its own, or not; whether they were.
fn set_subreaper(on: bool) -> bool {
    let mut before = 0i32;
    let get = [libc::PR_GET_CHILD_SUBREAPER, libc::PR_SET_CHILD_SUBREAPER].map(raw::word);
    // SAFETY: a number of ours.
    unsafe {
        raw::call(libc::SYS_prctl, [get[0], &raw mut before as u64, 0, 0, 0, 0]);
        if (before != 0) != on {
            raw::call(libc::SYS_prctl, [get[1], u64::from(on), 0, 0, 0, 0]);
        }
    }
    before != 0
}

/// Gives an order to all, takes part in it, and waits until the others have carried it out. Nobody waits for those that go.
fn order(order: u32, slot: &mut Slot) {
    CARRIED_OUT.store(0, Ordering::Release);
    ORDER.store(order, Ordering::Release);
    let others = standing() - 1;
    ORDERS.fetch_add(1, Ordering::AcqRel);
    raw::futex_wake(&ORDERS);
    match order {
        WALK => slot.carry_out(),
        NOTE_SIGNALS => pending::note(slot.tid),
        _ => {}
    }
    loop {
        let done = CARRIED_OUT.load(Ordering::Acquire);
        if done >= others {
            return;
        }
        raw::futex_wait(&CARRIED_OUT, done, Some(LOOK));
    }
}

/// Whether a thread stands still.
fn stands(tid: i32) -> bool {
    each_slot(|slot| slot.tid == tid)
}

/// Whether something holds for any thread that stands still.
fn each_slot(holds: impl Fn(&Slot) -> bool) -> bool {
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
    count: usize,
    missing: i32,
}

impl Asked {
    fn ask(&mut self, tid: i32) {
        self.missing = tid;
        let id = u64::from(tid.unsigned_abs());
        let mut at = 0;
        // SAFETY: the table is zero at first, and ours until the copy is made.
        unsafe {
            while at < MOST - 1 && (*self.mailbox.walk(at)).first != 0 {
                if (*self.mailbox.walk(at)).first == id {
                    return;
                }
                at += 1;
            }
            (*self.mailbox.walk(at)).first = id;
            *self.mailbox.doing(at) = again::doing(tid);
        }
        self.count = self.count.max(at + 1);
        // siginfo_t: signal, error, code, padding, then pid, uid, value.
        let mut info = [0u64; 16];
        info[0] = u64::from(SIGSTAND.unsigned_abs());
        info[1] = u64::from(SI_QUEUE.cast_unsigned());
        info[2] = u64::from(raw::getpid().unsigned_abs());
        info[3] = REQUEST | at as u64;
        let args = [raw::word(raw::getpid()), id, raw::word(SIGSTAND), info.as_ptr() as u64, 0, 0];
        // SAFETY: a siginfo_t of ours. One that has ended meanwhile is not there any more.
        unsafe { raw::call(libc::SYS_rt_tgsigqueueinfo, args) };
    }

    fn forget_all(&self) {
        // SAFETY: as above.
        unsafe {
            let mut at = 0;
            while at < MOST && (*self.mailbox.walk(at)).first != 0 {
                (*self.mailbox.walk(at)).first = 0;
                at += 1;
            }
        }
    }
}

/// Calls for each thread of this process; how many there are.
fn each_thread(each: &mut dyn FnMut(i32)) -> u32 {
    let flags = raw::word(libc::O_DIRECTORY | libc::O_CLOEXEC);
    let path = c"/proc/self/task".as_ptr() as u64;
    // SAFETY: a string of ours.
    let folder = unsafe { raw::call(libc::SYS_openat, [raw::word(libc::AT_FDCWD), path, flags, 0, 0, 0]) };
    let Ok(folder) = i32::try_from(folder) else { return 0 };
    let mut count = 0;
    let mut buffer = [0u64; 256];
    loop {
        let args = [raw::word(folder), buffer.as_mut_ptr() as u64, size_of_val(&buffer) as u64, 0, 0, 0];
        // SAFETY: a buffer of ours, aligned for what the kernel writes.
        let read = unsafe { raw::call(libc::SYS_getdents64, args) };
        let Ok(read @ 1..) = usize::try_from(read) else { break };
        let start = buffer.as_ptr().cast::<u8>();
        let mut at = 0;
        while at < read {
            // SAFETY: the kernel wrote records one behind the other: inode, offset, length, type, name with a zero byte at its end.
            unsafe {
                let entry = start.add(at);
                let len = usize::from(entry.add(16).cast::<u16>().read_unaligned());
                if let Some(tid) = number(entry.add(19)) {
                    each(tid);
                    count += 1;
                }
                at += len.max(1);
            }
        }
    }
    raw::close(folder);
    count
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

/// A thread that came back: in this process as it was, or in another life.
pub fn afterwards(slot: &Slot, leads: bool, since: stand::Since) {
    if since != stand::Since::Left {
        crate::recover::put_right(slot, leads, since);
    }
    if leads {
        sections::open_gate();
        timer::start();
        BUSY.store(0, Ordering::Release);
        raw::futex_wake(&BUSY);
        later::send_again();
    }
}
