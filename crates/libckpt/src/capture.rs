//! The copy: it asks the threads that stand still, writes the image, and lets them go as soon as nothing of them is needed any more.
//!
//! # Safety
//! Unsafe here: slots and signal frames in our own copy of the stacks of threads that stand still; shared memory of ours.

#![allow(unsafe_code, reason = "see Safety above")]

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rewake_capture::own::{Ceiling, Company, Counted, StandingThread};
use rewake_capture::{CaptureError, Options, Summary};
use rewake_linux::addr::RemoteAddr;
use rewake_linux::cgroup;
use rewake_linux::program::{Accept, Program, TrackRef};
use rewake_linux::remote::Outcome;
use rewake_linux::twin::{self, Twin};

use crate::answer::{Asker, BEGUN};
use crate::copy::Stacks;
use crate::lead::{FACTS, FAILED_ORDER, GO_ORDER, MAILBOX, NO_MEMORY_ORDER, STACKS, WALK_ORDER};
use crate::mailbox::{Mailbox, Walk};
use crate::snapshot;
use crate::stand::{BY_OTHERS, STANDING, woken};
use crate::{
    ceilings, complaint, entry, helper, lead, lineage, mark, raw, remedy, settings, store, voice, writer,
};

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
const NO_FOLDER_REMEDY: &str =
    "a file is there, and no folder: name another store (directory in .ckptrc, or CKPT_DIRECTORY)";
/// Between two looks whether the process is still there.
const LOOK: u64 = 100_000_000;

/// What the kernel takes as the worst there is when memory is short.
const FIRST_TO_GO: &[u8] = b"1000";

/// Bytes of the copy's stack.
const OWN_STACK: usize = 16 << 20;

/// Begins in the copy, on a stack that is small, since the process had it too; nothing that is mapped here is locked in memory.
pub extern "C" fn run(mailbox: u64) -> ! {
    be_nobody();
    match raw::map(OWN_STACK, libc::MAP_PRIVATE | libc::MAP_NORESERVE) {
        // SAFETY: new memory, which nobody else knows.
        Some(stack) => unsafe { helper::on_stack(stack as u64 + OWN_STACK as u64, run_there, mailbox) },
        // The process tells whoever asked, and is told nothing if it is gone.
        None => drop(order(NO_MEMORY_ORDER)),
    }
    end(1)
}

/// Whatever goes wrong here, no handler of the program's runs, and no core is dumped that would be taken for the program's. What is made
/// here can be used by whom it belongs to, whatever the program's umask. Where memory comes to its end this is ended before the program.
fn be_nobody() {
    let score = raw::open(b"/proc/self/oom_score_adj\0", libc::O_WRONLY);
    if score >= 0 {
        raw::write(score, FIRST_TO_GO);
        raw::close(score);
    }
    let default = entry::Action::default();
    let _valid = entry::set_action(libc::SIGABRT, Some(&default));
    let none = [0u64; 2];
    // SAFETY: two numbers of ours.
    unsafe {
        let core = u64::from(libc::RLIMIT_CORE);
        raw::call(libc::SYS_prlimit64, [0, core, none.as_ptr() as u64, 0, 0, 0]);
        let others = 0o077;
        let mask = raw::call(libc::SYS_umask, [others, 0, 0, 0, 0, 0]).cast_unsigned();
        raw::call(libc::SYS_umask, [mask & others, 0, 0, 0, 0, 0]);
    }
}

fn end(status: u64) -> ! {
    // SAFETY: it never returns.
    unsafe { raw::call(libc::SYS_exit_group, [status, 0, 0, 0, 0, 0]) };
    unreachable!("the process has ended")
}

extern "C" fn run_there(mailbox: u64) {
    std::panic::set_hook(Box::new(|error| {
        voice::write(format!("libckpt: no checkpoint: {error}\n").as_bytes());
    }));
    writer::take_name();
    // Nothing may be done before that has the arena change: what the keeper has is what the image has.
    let snapshot = if settings::forks() { snapshot::keep() } else { None };
    let (memory, keeper) = snapshot.map(|snapshot| (snapshot.memory, snapshot.keeper)).unzip();
    let memory = memory.filter(|_| may_be_there_twice());
    let shared = Mailbox::at(mailbox);
    let answer = shared.answer();
    answer.begin();
    writer::introduce(&shared, keeper);
    let asker = Asker::of(FACTS.token.load(Ordering::Relaxed));
    if let Some(asker) = &asker {
        asker.say(BEGUN);
    }
    let result = checkpoint(mailbox, memory, keeper);
    if FACTS.here.load(Ordering::Relaxed) != 0 {
        let (number, text) =
            result.as_ref().map_or_else(|error| (number_of(error), told(error)), |_| (0, String::new()));
        answer.give(number, text.as_bytes());
    }
    shared.complaint().store(report(&result, asker.as_ref()), Ordering::Release);
    if result.is_err() {
        let _gone_already = order(FAILED_ORDER);
    }
    end(u64::from(result.is_err()))
}

/// Whether the program's memory may be there twice: where its control groups leave no room for that the kernel would end the program, and
/// so it stands still instead, until its memory is written. Asked by who writes, when the keeper is there: it changes nothing yet.
fn may_be_there_twice() -> bool {
    let pid = FACTS.pid.load(Ordering::Relaxed);
    let (Some(left), Some(own)) = (cgroup::memory_left(pid), cgroup::anonymous_memory(pid)) else {
        return true;
    };
    if own > left && settings::verbose() {
        let (own, left) = (own.div_ceil(1_000_000), left / 1_000_000);
        let text = format!(
            "libckpt: mode stop instead of fork: {own} MB cannot be there twice, its control groups and the machine leave {left} MB"
        );
        voice::say(text.as_bytes());
    }
    own <= left
}

fn told(error: &CaptureError) -> String {
    error.remedy().map_or_else(|| error.to_string(), |remedy| format!("{error}\n  {}", remedy::here(&remedy)))
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

/// Tells whoever asked, or everybody, what came of it; in short what everybody was told of what is in the way.
fn report(result: &Result<Summary, CaptureError>, asker: Option<&Asker>) -> u64 {
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
                let text = format!(
                    "libckpt: saved pid {pid} to {path}: {threads} threads, {mb} MB, paused {:.1} ms, total {:.0} ms",
                    made.paused.as_secs_f64() * 1e3,
                    made.total.as_secs_f64() * 1e3
                );
                voice::say(text.as_bytes());
            }
            0
        }
        Err(error) => {
            let line = |text: String| text.replace('\n', " ");
            let (cause, advice) =
                (line(error.to_string()), line(remedy::here(&error.remedy().unwrap_or_default())));
            let text = format!("failed\n{cause}\n{advice}\n.");
            let heard = asker.is_some_and(|asker| asker.say(text.as_bytes()))
                || FACTS.here.load(Ordering::Relaxed) != 0;
            let told = format!("libckpt: {}\n", told(error));
            let short = complaint::short(told.as_bytes());
            let known = lead::at_interval() && complaint::is_known(short);
            if (!heard || settings::verbose()) && !known {
                voice::write(told.as_bytes());
            }
            short
        }
    }
}

/// Tells the process what to do.
fn order(order: u8) -> io::Result<()> {
    let pipe = raw::word(FACTS.orders_out.load(Ordering::Relaxed));
    // SAFETY: one byte of ours.
    match unsafe { raw::call(libc::SYS_write, [pipe, &raw const order as u64, 1, 0, 0, 0]) } {
        1 => Ok(()),
        error => Err(io::Error::from_raw_os_error(i32::try_from(-error).unwrap_or(libc::EIO))),
    }
}

fn checkpoint(mailbox: u64, snapshot: Option<File>, keeper: Option<i32>) -> Result<Summary, CaptureError> {
    let pid = FACTS.pid.load(Ordering::Relaxed);
    // SAFETY: opened by the process for its copy.
    let memory = unsafe { File::from_raw_fd(FACTS.memory.load(Ordering::Relaxed)) };
    let descriptors = [&FACTS.memory, &FACTS.orders_in, &FACTS.orders_out];
    let twin = Twin {
        of: pid,
        memory,
        snapshot,
        // Those of earlier checkpoints, too.
        kin: keeper.into_iter().chain(writer::others()).collect(),
        descriptors: descriptors.map(|fd| fd.load(Ordering::Relaxed)).to_vec(),
        mappings: [Mailbox::at(mailbox).range(), Stacks::at(STACKS.load(Ordering::Relaxed)).range()]
            .into_iter()
            .chain(mark::range())
            .collect(),
    };
    twin::is_copy_of(twin).expect("a copy is made once");
    let mut standing = Standing::new(pid, Mailbox::at(MAILBOX.load(Ordering::Relaxed)));
    standing.check_signals()?;
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
        move |source: io::Error| {
            let remedy = store_remedy(source.kind());
            CaptureError::of(operation, pid, &shown, source).with_remedy(remedy)
        }
    };
    if let Some(reason) = settings::too_long(&store) {
        return Err(failed("create")(io::Error::other(reason)));
    }
    let new = store::New::make(&store).map_err(failed("create"))?;
    let numbering = store::numbering(&store);
    let dir = store::next(&store).map_err(failed("read"))?;
    let options = Options {
        mode: rewake_capture::Mode::Stop,
        compression: settings::compression(),
        file_level: settings::level(),
        excluded: crate::api::excluded::ranges(),
        lineage: lineage::own().to_vec(),
        ..Options::new(pid, dir)
    };
    let pending = rewake_capture::own::create(&options)?;
    drop(numbering);
    let summary = rewake_capture::own::capture(&options, pending, &ceilings(), &mut standing)?;
    new.stay();
    store::point_to(&store, &summary.dir).map_err(failed("link"))?;
    if let Some(keep) = settings::keep()
        && let Err(error) = store::prune(&store, &summary.dir, keep, &lineage::own())
    {
        let store = store.display();
        let text =
            format!("libckpt: not all images that are too old could be removed from {store}: {error}\n");
        voice::write(text.as_bytes());
    }
    Ok(summary)
}

/// What to do about a store that cannot be made or used.
fn store_remedy(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => NO_FOLDER_REMEDY,
        _ => STORE_REMEDY,
    }
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
    threads: Vec<StandingThread>,
    pending: Vec<Vec<u8>>,
}

impl Standing {
    fn new(pid: i32, mailbox: Mailbox) -> Self {
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
        Self { pid, mailbox, threads, pending: pending(mailbox, 0) }
    }

    /// Waits until the process has done one thing more than these.
    fn await_done(&self, before: u32) -> io::Result<()> {
        while self.mailbox.done().load(Ordering::Acquire) == before {
            raw::futex_wait(self.mailbox.done(), before, Some(LOOK));
            // Nobody may have waited for it yet.
            if rewake_capture::own::is_over(self.pid) {
                return Err(io::Error::other("the process is gone"));
            }
        }
        Ok(())
    }

    /// All that are pending must have been noted.
    fn check_signals(&self) -> Result<(), CaptureError> {
        let (noted, room) = (self.mailbox.signals().load(Ordering::Acquire), self.mailbox.most_signals());
        if usize::try_from(noted).is_ok_and(|noted| noted <= room) {
            return Ok(());
        }
        let reason =
            format!("more than {room} signals are pending, or there is little memory that may be locked");
        Err(CaptureError::of("capture", self.pid, "signals", io::Error::other(reason))
            .with_remedy("make the checkpoint when the program has taken them"))
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
        order(WALK_ORDER)?;
        self.await_done(before)?;
        Ok(Outcome::new(assembled, shared.to_vec()))
    }

    fn since_stop(&self) -> Duration {
        Duration::from_nanos(raw::now() - FACTS.since.load(Ordering::Relaxed))
    }

    fn let_go(&mut self) -> io::Result<Duration> {
        order(GO_ORDER)?;
        Ok(self.since_stop())
    }
}

/// The signals noted for a thread, or for the process (0).
fn pending(mailbox: Mailbox, tid: i32) -> Vec<Vec<u8>> {
    let count =
        usize::try_from(mailbox.signals().load(Ordering::Acquire)).unwrap_or(0).min(mailbox.most_signals());
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
