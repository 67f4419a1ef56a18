//! The thread that got the signal: it makes the others stand still, makes the copy, and serves it until all may go.
//!
//! # Safety
//! Unsafe here: slots of threads that stand still until they are let go; raw system calls with buffers of ours.

#![allow(unsafe_code, reason = "see Safety above")]

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use crate::api::{sections, words};
use crate::copy::Stacks;
use crate::gather::{Gathered, each_slot, gather, threads_about};
use crate::mailbox::Mailbox;
use crate::stand::{CARRIED_OUT, GO, NOTE_SIGNALS, ORDER, ORDERS, STANDING, Slot, WALK, standing};
use crate::voice::Line;
use crate::{answer, complaint, entry, helper, later, lineage, pending, raw, stand, timer, writer};

/// A checkpoint is being made.
#[unsafe(link_section = ".data.rewake_forks")]
pub static BUSY: AtomicU32 = AtomicU32::new(0);
/// Between two looks at who has carried out an order.
const LOOK: u64 = 200_000;

/// Orders of the copy.
pub const WALK_ORDER: u8 = b'w';
/// All may go.
pub const GO_ORDER: u8 = b'g';
/// All may go, as there will be no image; the copy has said why.
pub const FAILED_ORDER: u8 = b'f';

/// All may go, as there is no memory for an image; the copy has told nobody.
pub const NO_MEMORY_ORDER: u8 = b'm';

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
    /// The timer asked.
    pub at_interval: AtomicU32,
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
    at_interval: AtomicU32::new(0),
};

/// What is needed for it, and given back when nobody stands any more.
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
    writer::reap();
    lineage::take();
    stand::open();
    slot.join();
    entry::borrow();
    let (mut all_came, mut writes) = (true, false);
    let means = Means::take();
    if let Some(means) = &means {
        MAILBOX.store(means.mailbox.range().start, Ordering::Release);
        let mut task = Task { means, slot: &mut *slot, all_came: true, writes: false };
        let task = &raw mut task;
        // SAFETY: the stack is for this; there may be little room on that of the program.
        (all_came, writes) = unsafe {
            helper::on_stack(means.stacks.leader(), checkpoint, task as u64);
            ((*task).all_came, (*task).writes)
        };
    } else {
        failed(libc::ENOMEM, &[NO_MEMORY], b"");
    }
    stand::close();
    if all_came {
        // Else somebody may take the signal yet, and must find a handler.
        entry::give_back();
    }
    order(GO, slot);
    disperse();
    sections::open_gate();
    if let Some(Means { mailbox, stacks }) = means {
        if writes && here() {
            await_outcome(mailbox);
        }
        // SAFETY: the copy has its own; no thread uses them any more.
        unsafe {
            mailbox.unmap();
            stacks.unmap();
        }
    }
}

/// Whether the timer asked.
#[must_use]
pub fn at_interval() -> bool {
    FACTS.at_interval.load(Ordering::Relaxed) != 0
}

fn here() -> bool {
    FACTS.here.load(Ordering::Relaxed) != 0
}

/// There is no checkpoint: whoever asked is told, or whoever reads what the program says. The remedy is one line, or empty.
fn failed(error: i32, why: &[&[u8]], remedy: &[u8]) {
    let mut line = Line::new(b"");
    why.iter().for_each(|part| line.text(part));
    if here() {
        words::own().outcome.store(-error, Ordering::Relaxed);
        words::own().say(line.as_bytes());
    } else if !answer::refuse(FACTS.token.load(Ordering::Relaxed), line.as_bytes(), remedy) {
        let mut whole = Line::new(b"libckpt: no checkpoint: ");
        whole.text(line.as_bytes());
        let short = complaint::short(whole.as_bytes());
        if !at_interval() || !complaint::is_known(short) {
            whole.say();
            if !remedy.is_empty() {
                let mut advice = Line::new(b"  ");
                advice.text(remedy);
                advice.say();
            }
        }
        complaint::note(short);
    }
}

/// Waits until the copy has said what came of it, after its last order. The other threads go on.
fn await_outcome(mailbox: Mailbox) {
    match mailbox.answer().wait() {
        Some((number, why)) => {
            words::own().outcome.store(-number, Ordering::Relaxed);
            words::own().say(why);
        }
        None => failed(libc::EIO, &[KILLED], b""),
    }
}

/// Nobody stands any more.
pub fn disperse() {
    STANDING.store(core::ptr::null_mut(), Ordering::Release);
}

/// What is done on a stack of our own.
struct Task<'a> {
    means: &'a Means,
    slot: &'a mut Slot,
    all_came: bool,
    /// There is a copy, which will say what came of it.
    writes: bool,
}

extern "C" fn checkpoint(task: u64) {
    // SAFETY: it is the caller's, who waits for our return.
    let task = unsafe { &mut *(task as *mut Task<'_>) };
    let gathered = gather(task.means.mailbox, &task.means.stacks, task.slot.tid);
    task.all_came = !matches!(gathered, Gathered::Missing(_) | Gathered::FirstEnded);
    stand::close();
    match gathered {
        Gathered::All => match open_files() {
            Ok(()) => task.writes = task.means.capture(task.slot),
            Err(error) => {
                // The answer takes one.
                close_files();
                if matches!(error, libc::EACCES | libc::EPERM) {
                    failed(error, &[NOT_DUMPABLE], DUMPABLE);
                } else {
                    failed(error, &[b"no three descriptors are free"], b"");
                }
            }
        },
        Gathered::Unlisted => failed(libc::ENOENT, &[NO_PROC], b""),
        Gathered::NoHelper => failed(libc::EAGAIN, &[NO_PROCESS], b""),
        Gathered::FirstEnded => failed(libc::ENOTSUP, &[FIRST_ENDED], FROM_OUTSIDE),
        Gathered::Missing(tid) => {
            let mut number = Line::new(b"");
            number.number(tid.unsigned_abs().into());
            failed(libc::EAGAIN, &[b"thread ", number.as_bytes(), MISSING], b"");
        }
    }
    close_files();
}

const NO_PROCESS: &[u8] = b"the kernel makes no process (limits of processes or memory)";
const NO_PROC: &[u8] = b"its threads cannot be listed: there is no /proc, or it may open no file";
const MISSING: &[u8] = b" does not take signals, or there are new threads all the time";
const NO_MEMORY: &[u8] = b"there is no memory for it (limits of memory, or of locked memory)";
const NOT_DUMPABLE: &[u8] =
    b"it may not look at its own memory: it has changed its rights (setresuid), or called prctl(PR_SET_DUMPABLE, 0)";
const DUMPABLE: &[u8] = b"call prctl(PR_SET_DUMPABLE, 1) in the program when it has changed its rights";
const FIRST_ENDED: &[u8] = b"its first thread has ended while others run, which is not supported from inside";
const FROM_OUTSIDE: &[u8] = b"capture the program from outside instead (chkpnt)";
const KILLED: &[u8] = b"the process that was writing the image was killed";

/// Opens what the copy needs of this process; an error number where that fails. Nobody runs who could close it, or miss the numbers.
fn open_files() -> Result<(), i32> {
    let mut pipe = [-1i32; 2];
    let flags = raw::word(libc::O_CLOEXEC);
    // SAFETY: two numbers of ours.
    let piped = unsafe { raw::call(libc::SYS_pipe2, [pipe.as_mut_ptr() as u64, flags, 0, 0, 0, 0]) };
    let memory = raw::open(b"/proc/self/mem\0", 0);
    FACTS.memory.store(memory, Ordering::Relaxed);
    FACTS.orders_in.store(pipe[0], Ordering::Relaxed);
    FACTS.orders_out.store(pipe[1], Ordering::Relaxed);
    match i32::try_from(piped) {
        Ok(0) if memory >= 0 => Ok(()),
        Ok(0) => Err(-memory),
        _ => Err(libc::EMFILE),
    }
}

fn close_files() {
    for fd in [&FACTS.memory, &FACTS.orders_in, &FACTS.orders_out] {
        let fd = fd.swap(-1, Ordering::Relaxed);
        if fd >= 0 {
            raw::close(fd);
        }
    }
}

impl Means {
    fn take() -> Option<Self> {
        let mailbox = Mailbox::new(threads_about())?;
        let Some(stacks) = Stacks::new() else {
            // SAFETY: nobody has it yet.
            unsafe { mailbox.unmap() };
            return None;
        };
        Some(Self { mailbox, stacks })
    }

    /// All stand still. Whether there is a copy that writes the image, or says why it does not.
    fn capture(&self, slot: &mut Slot) -> bool {
        if each_slot(|slot| slot.pending) {
            order(NOTE_SIGNALS, slot);
        }
        STACKS.store(self.stacks.range().start, Ordering::Relaxed);
        // Else the copy would be left to the program, and its end be told to it.
        let subreaper = set_subreaper(false);
        // SAFETY: all that the copy does it does with memory of its own; it does not come back.
        let made = unsafe { self.stacks.copy(crate::capture::run, self.mailbox.range().start) };
        if subreaper {
            set_subreaper(true);
        }
        if made.is_err() {
            failed(libc::EAGAIN, &[NO_PROCESS], b"");
            return false;
        }
        let end = FACTS.orders_out.swap(-1, Ordering::Relaxed);
        raw::close(end);
        // The process between is gone now.
        self.tell_done();
        let last = self.serve(slot);
        if last {
            complaint::note(self.mailbox.complaint().load(Ordering::Acquire));
        }
        writer::note(&self.mailbox);
        last
    }

    /// Carries out the copy's orders until it lets us go; false when it is gone instead.
    fn serve(&self, slot: &mut Slot) -> bool {
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
                (1, GO_ORDER | FAILED_ORDER) => return true,
                (1, NO_MEMORY_ORDER) => {
                    failed(libc::ENOMEM, &[NO_MEMORY], b"");
                    return false;
                }
                (read, _) if read == -i64::from(libc::EINTR) => {}
                _ => {
                    failed(libc::EIO, &[KILLED], b"");
                    return false;
                }
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
        for at in 0..self.mailbox.most() {
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
        NOTE_SIGNALS => pending::note_all(slot.tid),
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

/// A thread that came back: in this process as it was, or in another life.
pub fn afterwards(slot: &Slot, leads: bool, since: stand::Since) {
    if since != stand::Since::Left {
        crate::recover::put_right(slot, leads, since);
    }
    if leads {
        sections::open_gate();
        timer::start();
        BUSY.store(0, Ordering::SeqCst);
        raw::futex_wake(&BUSY);
        later::send_again();
    }
}
