//! Image to live process.
//!
//! | phase | module | what |
//! |---|---|---|
//! | open | [`rewake_image`] | header, records and their meaning are checked |
//! | host | [`host`] | CPU and files must be what the image needs |
//! | streams | [`streams`] | which of our own standard streams the program goes on with |
//! | contents | [`contents`] | files without a name are made anew, as are private copies of changed ones |
//! | survey | [`survey`] | what the plan has to know of the process it will run in |
//! | plan | [`plan`](mod@plan) | records to a program of system calls, checked against a model of the address space |
//! | files | [`putback`] | files that the program was writing are put back, if wanted: a transaction until the release |
//! | run | [`run`] | a seed process walks the program; meanwhile every block of pages is verified |
//! | release | [`release`] | the threads get their registers, the program is unmapped, all go |
//!
//! Up to the end of *release* everything can fail, and then nothing is left of the new process. This crate has no unsafe code and
//! knows nothing of the capture: only the image joins them.

pub mod contents;
pub mod credentials;
pub mod error;
pub mod host;
pub mod interrupted;
pub mod ipc;
mod notes;
pub mod own;
mod owner;
pub mod plan;
pub mod putback;
mod release;
pub mod removed;
mod run;
pub mod sockets;
mod spaces;
pub mod streams;
mod survey;
mod transaction;
pub mod vdso;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rewake_image::{Image, PageReader};
use rewake_linux::namespaces::Init;

pub use error::RestoreError;
use putback::decide::Decisions;
use spaces::Spaces;
use streams::Streams;
use transaction::Transaction;

/// What to do about files that are no longer what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnChanged {
    /// Refuse, naming them.
    #[default]
    Error,
    /// Put back the files the program had open for writing.
    Restore,
    /// Go on with the files as they are.
    AsIs,
}

/// Where the process ids come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pids {
    /// The same ids if permitted, else namespaces.
    #[default]
    Auto,
    /// The same ids or an error.
    Same,
    /// Fresh pid and user namespaces.
    Namespace,
}

/// Where System V objects (shared memory, semaphores, message queues) come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpcPolicy {
    /// The same ids if permitted, else as [`IpcPolicy::Namespace`].
    #[default]
    Auto,
    /// The same ids or an error.
    Same,
    /// The same ids, in an IPC namespace of its own.
    Namespace,
}

/// What becomes of unix sockets for datagrams that are connected to somebody else's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutsideSockets {
    /// They are connected again to whoever has that address now, or an error.
    #[default]
    Reconnect,
    /// As if whoever had it had ended.
    DeadEnd,
}

/// What the program's `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME` show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// They go on where they were.
    Keep,
    /// What the host's show.
    Go,
}

/// What to resume and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The image, not a store.
    pub dir: PathBuf,
    /// Policy for changed files.
    pub on_changed: OnChanged,
    /// Policy for process ids.
    pub pids: Pids,
    /// Policy for System V objects.
    pub ipc: IpcPolicy,
    /// Policy for sockets connected to somebody else's.
    pub outside_sockets: OutsideSockets,
    /// The program's clocks; as it had them, its own or the host's, when not said.
    pub clock: Option<Clock>,
    /// Whether the program becomes leader of a session of its own (`--detach`).
    pub new_session: bool,
}

/// How far a restore is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A phase begins.
    Phase(&'static str),
    /// What could not come back just as it was, for people: before the process is let go, and in [`Restored::notes`] then.
    Note(String),
    /// Bytes of the page stream that are verified.
    Pages {
        /// So many.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// The process is complete and about to be let go: the moment to give it the terminal.
    Ready {
        /// Its id, also of its group or session.
        pid: i32,
    },
}

/// A program that runs again.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Its id; it is our child, in a process group of its own.
    pub pid: i32,
    /// Its id as it sees it: another one in a pid namespace of its own.
    pub inner_pid: i32,
    /// Processes, with those that have ended and are to be waited for.
    pub processes: usize,
    /// Threads of all of them.
    pub threads: usize,
    /// Bytes of memory that came from the image.
    pub bytes: u64,
    /// From the call to the moment the program was let go.
    pub total: Duration,
    /// Files that were put back as they were at the capture.
    pub put_back: Vec<PathBuf>,
    /// Files that changed since and were left alone: the program has their saved content for itself.
    pub private: Vec<PathBuf>,
    /// What could not come back just as it was: all that [`Progress::Note`] told.
    pub notes: Vec<String>,
}

/// The plan as text, without carrying anything out.
///
/// # Errors
/// As [`resume`], up to the plan.
pub fn listing(options: &Options) -> Result<String, RestoreError> {
    let Examined { image, reader, decisions, streams } = examine(options, &mut Phases::new(&mut |_| ()))?;
    let spaces = Spaces::decide(options, &image)?;
    let prepared = contents::prepare(&image, &reader, &options.dir, &decisions.private)?;
    let (plan, site) = survey::plan_here(&image, options, &prepared, &spaces, &streams)?;
    transaction::refuse_unprepared(&image, &site, &decisions)?;
    Ok(plan.program.listing())
}

/// An image that may be woken here.
struct Examined {
    image: Image,
    reader: PageReader,
    decisions: Decisions,
    /// Our own standard streams that are the program's.
    streams: Streams,
}

/// All checks for which nothing has to be made.
fn examine(options: &Options, phase: &mut Phases<'_>) -> Result<Examined, RestoreError> {
    let (image, reader) = phase.run("open", || {
        transaction::refuse_waiting(&options.dir)?;
        // One directory is looked at and read, whatever gets its name meanwhile.
        let directory = rewake_image::open_directory(&options.dir)?;
        let mut image = Image::open_at(&directory, &options.dir)?;
        if options.outside_sockets == OutsideSockets::DeadEnd {
            sockets::lead_nowhere(&mut image);
        }
        owner::check(image.root().pid, &directory, &options.dir)?;
        let reader = PageReader::open_at(&directory, &options.dir, &image.stream)?;
        Ok((image, reader))
    })?;
    survey::allow_tracing();
    let mut decisions = phase.run("host", || {
        host::check_architecture(&image)?;
        host::check_limits(&image)?;
        host::check_credentials(&image)?;
        host::check_rights(&image)?;
        host::check_cpu(&image)?;
        host::check_memory(&image)?;
        host::check_terminal(&image)?;
        host::check_files(&image, &reader, options.on_changed)
    })?;
    let streams = streams::own(&image, &mut decisions);
    Ok(Examined { image, reader, decisions, streams })
}

/// Makes the image's process live again, as our child.
///
/// Must be called while this process has one thread.
///
/// # Errors
/// One cause; nothing of the new process is left, and files are as they were before.
pub fn resume(options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Restored, RestoreError> {
    let mut notes = Vec::new();
    let restored = restore(options, &mut |event| {
        if let Progress::Note(note) = &event {
            notes.push(note.clone());
        }
        progress(event);
    })?;
    Ok(Restored { notes, ..restored })
}

fn restore(options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Restored, RestoreError> {
    let started = Instant::now();
    let mut phase = Phases::new(progress);
    let Examined { image, reader, decisions, streams } = examine(options, &mut phase)?;
    let prepared =
        phase.run("contents", || contents::prepare(&image, &reader, &options.dir, &decisions.private))?;
    let mut spaces = Spaces::decide(options, &image)?;
    let init = phase.run("spaces", || spaces.enter(&image, options.clock))?;
    let (plan, site) =
        phase.run("plan", || survey::plan_here(&image, options, &prepared, &spaces, &streams))?;
    transaction::refuse_unprepared(&image, &site, &decisions)?;
    let pages = phase.run("pages", || run::page_source(&image, &reader))?;
    let mut transaction =
        phase.run("files", || Transaction::begin(&options.dir, &image, &reader, &decisions, &streams))?;
    let put_back = transaction.paths();
    let (image, plan, site, pages) = (&image, &plan, &site, &pages);
    let clocks = spaces::clock_note(image, &spaces);
    let streamed = if streams::stderr_is_the_programs(image) {
        Vec::new()
    } else {
        streams::notes(image, &streams, &decisions)
    };
    let told = spaces.note.into_iter().chain(spaces.ipc.note).map(str::to_owned);
    let notes = told.chain(clocks).chain(streamed).collect();
    let ready = Ready { image, reader: &reader, plan, site, pages, notes };
    let left = removed::Left::default();
    let woken = wake(&ready, prepared, init, &left, &mut transaction, &mut phase);
    let pid = transaction.end(left.name(woken))?;
    phase.end();
    Ok(Restored {
        pid,
        inner_pid: image.root().pid,
        processes: image.processes.len(),
        threads: image.thread_count(),
        bytes: image.stream.stream_length,
        total: started.elapsed(),
        put_back,
        private: decisions.private_paths(image),
        notes: Vec::new(),
    })
}

/// All that is known before anything is changed or made.
struct Ready<'a> {
    image: &'a Image,
    reader: &'a PageReader,
    plan: &'a plan::Plan,
    site: &'a plan::Site,
    pages: &'a OwnedFd,
    /// What is told when the process is there.
    notes: Vec<String>,
}

/// Puts the files back, makes the process and lets it go. After a failure nothing is left of the process; the files are the caller's
/// to undo.
fn wake(
    ready: &Ready<'_>,
    prepared: contents::Prepared,
    init: Option<Init>,
    left: &removed::Left,
    transaction: &mut Transaction,
    phase: &mut Phases<'_>,
) -> Result<i32, RestoreError> {
    let &Ready { image, reader, plan, site, pages, ref notes } = ready;
    phase.run("put back", || transaction.apply(image, reader))?;
    let mut seed = phase.run("start", || run::start(image, plan, site, pages, prepared, init, left))?;
    phase.begin("memory");
    run::verify(image, reader, &|| transaction.check(), &mut *phase.progress)?;
    phase.run("park", || seed.wait_parked(&|| transaction.check()))?;
    for note in notes.iter().cloned().chain(notes::of(image, site, &seed)) {
        (phase.progress)(Progress::Note(note));
    }
    phase.begin("release");
    release::release(image, seed, pages, transaction, &mut *phase.progress)
}

/// Runs and times the phases.
struct Phases<'a> {
    progress: &'a mut dyn FnMut(Progress),
    current: Option<(&'static str, Instant)>,
}

impl<'a> Phases<'a> {
    fn new(progress: &'a mut dyn FnMut(Progress)) -> Self {
        Self { progress, current: None }
    }

    fn begin(&mut self, name: &'static str) {
        self.end();
        (self.progress)(Progress::Phase(name));
        self.current = Some((name, Instant::now()));
    }

    fn end(&mut self) {
        if let Some((name, since)) = self.current.take() {
            tracing::debug!(phase = name, ms = since.elapsed().as_secs_f64() * 1e3, "done");
        }
    }

    fn run<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<T, RestoreError>,
    ) -> Result<T, RestoreError> {
        self.begin(name);
        let result = work();
        self.end();
        result
    }
}
