//! The copy: it asks the threads that stand still, writes the image, and lets them go as soon as nothing of them is needed any more.
//!
//! # Safety
//! Unsafe here: slots and signal frames in our own copy of the stacks of threads that stand still; shared memory of ours.

#![allow(unsafe_code, reason = "see Safety above")]

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rewake_capture::own::{Ceiling, Company, Counted, StandingThread};
use rewake_capture::{CaptureError, Options, Summary};
use rewake_linux::addr::RemoteAddr;
use rewake_linux::program::{Accept, Program, TrackRef};
use rewake_linux::remote::Outcome;
use rewake_linux::twin::{self, Twin};

use crate::answer::{Asker, BEGUN};
use crate::copy::Stacks;
use crate::lead::{FACTS, GO_ORDER, MAILBOX, OUTCOME, STACKS, WALK_ORDER};
use crate::mailbox::{MOST_SIGNALS, Mailbox, Walk};
use crate::snapshot::{self, Snapshot};
use crate::stand::{BY_OTHERS, STANDING, woken};
use crate::{ceilings, mark, raw, settings, store, writer};

/// Code and stack segment of 64-bit programs, and flags: interrupts on, everything else off.
const CODE: u64 = 0x33;
const STACK: u64 = 0x2b;
const FLAGS: u64 = 0x202;
/// Places in an xsave area as the kernel writes it into a signal frame: what was written, and how long it is.
const SOFTWARE: usize = 464;
const FEATURES: usize = 472;
const LENGTH: usize = 480;
const HEADER: usize = 512;
const STORE_REMEDY: &str =
    "make the folder writable, or name another store (directory in .ckptrc, or CKPT_DIRECTORY)";
/// Most bytes of what is told of a failure.
const MOST_TEXT: usize = 480;
/// Between two looks whether the process is still there.
const LOOK: u64 = 100_000_000;

/// Begins in the copy, on its own stack.
pub extern "C" fn run(mailbox: u64) -> ! {
    writer::take_name();
    let snapshot = if settings::forks() { snapshot::keep() } else { None };
    writer::introduce(&Mailbox::at(mailbox), snapshot.as_ref().map(|snapshot| snapshot.keeper));
    let asker = Asker::of(FACTS.token.load(Ordering::Relaxed));
    if let Some(asker) = &asker {
        asker.say(BEGUN);
    }
    let result = checkpoint(mailbox, snapshot);
    if FACTS.here.load(Ordering::Relaxed) != 0 {
        tell(&result);
    }
    report(&result, asker.as_ref());
    // SAFETY: it never returns.
    unsafe { raw::call(libc::SYS_exit_group, [result.is_err().into(), 0, 0, 0, 0, 0]) };
    unreachable!("the process has ended")
}

fn told(error: &CaptureError) -> String {
    error.remedy().map_or_else(|| error.to_string(), |remedy| format!("{error}\n  {remedy}"))
}

/// Tells the thread that waits for it what came of the checkpoint.
fn tell(outcome: &Result<Summary, CaptureError>) {
    let (number, mut text) = match outcome {
        Ok(_) => (0, String::new()),
        Err(error) => (number_of(error), told(error)),
    };
    text.truncate(text.floor_char_boundary(MOST_TEXT));
    let mut answer = vec![OUTCOME];
    answer.extend(number.to_le_bytes());
    answer.extend(text.as_bytes());
    let pipe = raw::word(FACTS.orders_out.load(Ordering::Relaxed));
    // SAFETY: bytes of ours. Should nobody read it there is nobody to tell.
    unsafe { raw::call(libc::SYS_write, [pipe, answer.as_ptr() as u64, answer.len() as u64, 0, 0, 0]) };
}

/// The error number that says it best.
fn number_of(error: &CaptureError) -> i32 {
    if !error.obstacles().is_empty() {
        return libc::ENOTSUP;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return number;
        }
        if let Some(number) = error.downcast_ref::<rustix::io::Errno>() {
            return number.raw_os_error();
        }
        cause = error.source();
    }
    libc::EIO
}

/// Tells whoever asked, or everybody, what came of it.
fn report(result: &Result<Summary, CaptureError>, asker: Option<&Asker>) {
    let pid = FACTS.pid.load(Ordering::Relaxed);
    match result {
        Ok(made) => {
            let path = made.dir.as_os_str().as_bytes();
            let Summary { threads, bytes, memory, paused, total, .. } = made;
            let (paused, total) = (paused.as_nanos(), total.as_nanos());
            let head = format!("made {threads} {bytes} {memory} {paused} {total} {}\n", path.len());
            // Who asked may be gone.
            let _ = asker.is_some_and(|asker| asker.say(&[head.as_bytes(), path].concat()));
            if settings::verbose() {
                let (path, mb) = (path.escape_ascii(), bytes.div_ceil(1_000_000));
                eprintln!(
                    "libckpt: saved pid {pid} to {path}: {threads} threads, {mb} MB, paused {:.1} ms, total {:.0} ms",
                    made.paused.as_secs_f64() * 1e3,
                    made.total.as_secs_f64() * 1e3
                );
            }
        }
        Err(error) => {
            let line = |text: String| text.replace('\n', " ");
            let (cause, advice) = (line(error.to_string()), line(error.remedy().unwrap_or_default()));
            let text = format!("failed\n{cause}\n{advice}\n.");
            let heard = asker.is_some_and(|asker| asker.say(text.as_bytes()))
                || FACTS.here.load(Ordering::Relaxed) != 0;
            if !heard || settings::verbose() {
                eprintln!("libckpt: {}", told(error));
            }
        }
    }
}

fn checkpoint(mailbox: u64, snapshot: Option<Snapshot>) -> Result<Summary, CaptureError> {
    let pid = FACTS.pid.load(Ordering::Relaxed);
    // SAFETY: opened by the process for its copy.
    let (memory, orders) = unsafe {
        let memory = File::from_raw_fd(FACTS.memory.load(Ordering::Relaxed));
        (memory, ManuallyDrop::new(File::from_raw_fd(FACTS.orders_out.load(Ordering::Relaxed))))
    };
    let descriptors = [&FACTS.memory, &FACTS.orders_in, &FACTS.orders_out];
    let (snapshot, kin) = snapshot.map(|snapshot| (snapshot.memory, snapshot.keeper)).unzip();
    let twin = Twin {
        of: pid,
        memory,
        snapshot,
        // Those of earlier checkpoints, too.
        kin: kin.into_iter().chain(writer::others()).collect(),
        descriptors: descriptors.map(|fd| fd.load(Ordering::Relaxed)).to_vec(),
        mappings: [Mailbox::at(mailbox).range(), Stacks::at(STACKS.load(Ordering::Relaxed)).range()]
            .into_iter()
            .chain(mark::range())
            .collect(),
    };
    twin::is_copy_of(twin).expect("a copy is made once");
    let mut standing = Standing::new(pid, Mailbox::at(MAILBOX.load(Ordering::Relaxed)), orders);
    let gone = |source| CaptureError::of("copy", pid, "process", source);
    standing.await_done(0).map_err(gone)?;
    if let Some(what) = crate::overrides::hidden_ipc() {
        let source = io::Error::from_raw_os_error(libc::ENOTSUP);
        let error = CaptureError::of("capture from inside", pid, what, source);
        return Err(error.with_remedy("capture the program from outside instead (chkpnt)"));
    }
    let store = store::of_this_program();
    let failed = |operation: &'static str| {
        let shown = format!("store {}", store.display());
        move |source| CaptureError::of(operation, pid, &shown, source).with_remedy(STORE_REMEDY)
    };
    if let Some(reason) = settings::too_long(&store) {
        return Err(failed("create")(io::Error::other(reason)));
    }
    std::fs::create_dir_all(&store).map_err(failed("create"))?;
    let numbering = store::numbering(&store);
    let dir = store::next(&store).map_err(failed("read"))?;
    let options = Options {
        compression: settings::compression(),
        file_level: settings::level(),
        excluded: crate::api::excluded::ranges(),
        ..Options::new(pid, dir)
    };
    let pending = rewake_capture::own::create(&options)?;
    drop(numbering);
    let summary = rewake_capture::own::capture(&options, pending, &ceilings(), &mut standing)?;
    store::point_to(&store, &summary.dir).map_err(failed("link"))?;
    if let Some(keep) = settings::keep()
        && let Err(error) = store::prune(&store, &summary.dir, keep)
    {
        eprintln!(
            "libckpt: not all images that are too old could be removed from {}: {error}",
            store.display()
        );
    }
    Ok(summary)
}

/// Those that somebody set when the library was built.
fn ceilings() -> Vec<Ceiling> {
    let all = [
        (Counted::Processes, "CKPT_MAXPROCESSES", ceilings::MAXPROCESSES),
        (Counted::SemaphoreSets, "CKPT_MAXSEM", ceilings::MAXSEM),
        (Counted::Semaphores, "CKPT_MAXSEMVECSIZE", ceilings::MAXSEMVECSIZE),
        (Counted::MessageQueues, "CKPT_MAXMSG", ceilings::MAXMSG),
        (Counted::Segments, "CKPT_MAXSHM", ceilings::MAXSHM),
    ];
    all.into_iter().filter_map(|(of, name, most)| Some(Ceiling { of, name, most: most? })).collect()
}

/// The threads that stand still.
struct Standing {
    pid: i32,
    mailbox: Mailbox,
    /// Stays open for the outcome.
    orders: ManuallyDrop<File>,
    threads: Vec<StandingThread>,
    pending: Vec<Vec<u8>>,
}

impl Standing {
    fn new(pid: i32, mailbox: Mailbox, orders: ManuallyDrop<File>) -> Self {
        let mut threads = Vec::new();
        let mut next = STANDING.load(Ordering::Acquire);
        while !next.is_null() {
            // SAFETY: slots of threads that stand still, in our copy of their stacks.
            let slot = unsafe { &*next };
            threads.push(StandingThread {
                tid: slot.tid,
                registers: registers(slot.stack, slot.fs_base, slot.gs_base),
                // SAFETY: the kernel wrote it into the signal frame.
                xstate: unsafe { xstate(slot.xstate) },
                rseq: rseq(slot.fs_base),
                pending: pending(mailbox, slot.tid),
            });
            next = slot.next;
        }
        Self { pid, mailbox, orders, threads, pending: pending(mailbox, 0) }
    }

    /// Waits until the process has done one thing more than these.
    fn await_done(&self, before: u32) -> io::Result<()> {
        while self.mailbox.done().load(Ordering::Acquire) == before {
            raw::futex_wait(self.mailbox.done(), before, Some(LOOK));
            // SAFETY: no signal is sent.
            if unsafe { raw::call(libc::SYS_kill, [raw::word(self.pid), 0, 0, 0, 0, 0]) } < 0 {
                return Err(io::Error::other("the process is gone"));
            }
        }
        Ok(())
    }

    fn order(&mut self, order: u8) -> io::Result<()> {
        use std::io::Write as _;
        self.orders.write_all(&[order])
    }
}

impl Company for Standing {
    fn pid(&self) -> i32 {
        self.pid
    }

    fn threads(&self) -> &[StandingThread] {
        &self.threads
    }

    fn pending(&self) -> &[Vec<u8>] {
        &self.pending
    }

    fn seccomp_at_start(&self) -> (u32, u32) {
        crate::start::seccomp()
    }

    fn run(&mut self, program: &Program, tracks: &[(TrackRef, i32)]) -> io::Result<Outcome> {
        let mut program = program.clone();
        for at in 0..program.tracks().len() {
            let track = TrackRef::at(at);
            program.on_failure(track);
            program.leave(track, 0.into(), 0.into(), [0.into(), 0.into()]).accept(Accept::Any);
        }
        let (place, room) = self.mailbox.stage();
        let assembled = program.assemble(RemoteAddr::new(place as u64));
        let bytes = assembled.bytes();
        if bytes.len() > room {
            return Err(io::Error::other(format!("{} questions are too many", program.len())));
        }
        // SAFETY: shared memory of ours of at least that length; the threads do not look at it yet.
        let shared = unsafe { std::slice::from_raw_parts_mut(place, bytes.len()) };
        shared.copy_from_slice(bytes);
        for (at, thread) in self.threads.iter().enumerate() {
            let track = tracks.iter().find(|(_, tid)| *tid == thread.tid);
            let walk = track.map_or_else(Walk::default, |(track, _)| Walk {
                first: assembled.first_entry(*track).get(),
                context: assembled.context(*track).get(),
            });
            // SAFETY: the table is ours while no order is given.
            unsafe { self.mailbox.walk(at).write(walk) };
        }
        let before = self.mailbox.done().load(Ordering::Acquire);
        self.order(WALK_ORDER)?;
        self.await_done(before)?;
        Ok(Outcome::new(assembled, shared.to_vec()))
    }

    fn let_go(&mut self) -> io::Result<Duration> {
        self.order(GO_ORDER)?;
        Ok(Duration::from_nanos(raw::now() - FACTS.since.load(Ordering::Relaxed)))
    }
}

/// The signals noted for a thread, or for the process (0).
fn pending(mailbox: Mailbox, tid: i32) -> Vec<Vec<u8>> {
    let count = usize::try_from(mailbox.signals().load(Ordering::Acquire)).unwrap_or(0).min(MOST_SIGNALS);
    // SAFETY: written before the copy was made.
    let noted = (0..count).map(|at| unsafe { mailbox.signal(at).read() });
    noted.filter(|one| one.tid == i64::from(tid)).map(|one| one.info.to_vec()).collect()
}

/// What a thread goes on with: where it stood, told that others woke it.
fn registers(stack: u64, fs_base: u64, gs_base: u64) -> Vec<u64> {
    let mut words = vec![0; 27];
    words[14] = BY_OTHERS;
    words[15] = u64::MAX;
    words[16] = woken();
    words[17] = CODE;
    words[18] = FLAGS;
    words[19] = stack;
    words[20] = STACK;
    words[21] = fs_base;
    words[22] = gs_base;
    words
}

/// The extended state of a signal frame, as ptrace would give it.
///
/// # Safety
/// `area` is what a signal frame points to.
unsafe fn xstate(area: *const u8) -> Vec<u8> {
    // SAFETY: the kernel wrote the length, and as much.
    let (length, features) = unsafe {
        (area.add(LENGTH).cast::<u32>().read_unaligned(), area.add(FEATURES).cast::<u64>().read_unaligned())
    };
    let length = usize::try_from(length).unwrap_or(0).max(HEADER + 64);
    // SAFETY: as above.
    let mut bytes = unsafe { std::slice::from_raw_parts(area, length) }.to_vec();
    bytes[SOFTWARE..HEADER].fill(0);
    bytes[SOFTWARE..SOFTWARE + 8].copy_from_slice(&features.to_le_bytes());
    bytes
}

/// The registration that libc made for a thread, if it did.
fn rseq(fs_base: u64) -> Option<(u64, u32, u32)> {
    const SIGNATURE: u32 = 0x5305_3053;
    let (offset, size) = crate::start::rseq()?;
    Some((fs_base.wrapping_add_signed(offset), size, SIGNATURE))
}
