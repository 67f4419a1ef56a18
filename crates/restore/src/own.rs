//! This very process becomes the program of an image: no tracer, no parent, no rights.
//!
//! The phases are those of [`crate::resume`] up to the run. Then a *companion* is made, a copy of this process that is not its child: it
//! verifies the page stream, keeps the transaction of the files, and names the entry that fails, while this process walks the program
//! itself; it has the last word when all threads are ready.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rewake_image::Image;
use rewake_linux::fork::{self, Forked};
use rewake_linux::proc::Proc;
use rewake_linux::program::Assembled;
use rewake_linux::seed::SharedStage;
use rustix::process::{Pid, test_kill_process};

use crate::error::RestoreError;
use crate::plan::{Plan, Site};
use crate::release::LastSteps as _;
use crate::spaces::Spaces;
use crate::transaction::{self, Transaction};
use crate::{Examined, Options, Phases, Progress, contents, examine, run, spaces, streams, survey};

/// Status of a process that could not become the program.
const FAILED: i32 = 125;
/// Pause between two looks at the process.
const POLL: Duration = Duration::from_micros(100);
/// How long a process that was told to end may sleep.
const ASLEEP: Duration = Duration::from_secs(1);
/// How long it may take.
const LAST_PATIENCE: Duration = Duration::from_secs(60);

/// Becomes the program of the image. Nothing of this process is needed any more.
///
/// `note` is told what else people should know, when all is checked and nothing is done yet. `alone` is called last, and has to end all other threads; if it cannot, this process ends. `failed` is called in the companion, should
/// anything go wrong after this process has given itself up; the process then ends with status 125.
///
/// # Errors
/// One cause, when this process is as it was before, as are all files.
pub fn become_program(
    options: &Options,
    note: &mut dyn FnMut(&str),
    alone: &mut dyn FnMut() -> bool,
    failed: &mut dyn FnMut(&RestoreError),
) -> Result<Infallible, RestoreError> {
    let quiet = &mut |_: Progress| {};
    let mut phase = Phases::new(quiet);
    let Examined { image, reader, decisions, streams } = examine(options, &mut phase)?;
    let prepared = contents::prepare(&image, &reader, &options.dir, &decisions.private)?;
    let spaces = Spaces::ours(options, &image)?;
    let (plan, site) = survey::plan_here(&image, options, &prepared, &spaces, &streams)?;
    transaction::refuse_unprepared(&image, &site, &decisions)?;
    let pages = run::page_source(&image, &reader)?;
    let notes: Vec<String> = match streams::stderr_is_the_programs(&image) {
        // What is said there goes, or comes between.
        true => Vec::new(),
        false => {
            let clocks = spaces::clock_note(&image, &spaces).into_iter();
            let told = spaces.note.iter().chain(&spaces.ipc.note).map(ToString::to_string).chain(clocks);
            told.chain(streams::notes(&image, &streams, &decisions)).collect()
        }
    };
    let transaction = Transaction::begin(&options.dir, &image, &reader, &decisions, &streams)?;
    let system = |operation, object: &str, source| RestoreError::System {
        operation,
        pid: image.root().pid,
        object: object.into(),
        source,
    };
    let (word, speaker) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|source| system("pipe", "word of the companion", source.into()))?;
    let helpers = run::helper_descriptors(&site, &pages, Some(&word), &prepared)
        .map_err(|source| system("dup", "descriptors", source))?;
    let assembled = plan.program.assemble(site.stage);
    let stage = SharedStage::map(site.stage, site.stage_len, &assembled)
        .map_err(|source| system("mmap", "program of the restore", source))?;
    let pid = rustix::process::getpid();
    notes.iter().for_each(|text| note(text));
    match fork::fork_apart().map_err(|source| system("fork", "companion", source))? {
        Forked::Child => {
            // The numbers are the process's; what they lead to is not ours to keep open.
            drop((helpers, prepared, word));
            let companion = Companion { pid, image: &image, plan: &plan, site: &site, assembled, stage };
            let outcome = companion.accompany(&reader, transaction, &speaker);
            if let Err(error) = &outcome {
                failed(error);
                drop(speaker);
                companion.await_end();
            }
            fork::leave(i32::from(outcome.is_err()))
        }
        Forked::Parent(_) => {
            drop((word, speaker));
            std::mem::forget((helpers, prepared, transaction));
            if !alone() {
                fork::leave(FAILED);
            }
            stage.enter(&assembled, plan.leader)
        }
    }
}

/// What watches over a process that becomes the program.
struct Companion<'a> {
    pid: Pid,
    image: &'a Image,
    plan: &'a Plan,
    site: &'a Site,
    assembled: Assembled,
    stage: SharedStage,
}

impl Companion<'_> {
    /// Watches over the process until it goes on. Where that fails, files are as they were before this returns; the process waits yet.
    fn accompany(
        &self,
        reader: &rewake_image::PageReader,
        mut transaction: Transaction,
        speaker: &OwnedFd,
    ) -> Result<(), RestoreError> {
        let outcome = self.watch(reader, &mut transaction, speaker);
        transaction.end(outcome)?;
        self.say(speaker)
    }

    /// It ends by itself when it hears nothing any more; it may be in the midst of a long read. If it sleeps, it waits for somebody who failed.
    fn await_end(&self) {
        let mut awake = Instant::now();
        let begin = awake;
        while begin.elapsed() < LAST_PATIENCE && awake.elapsed() < ASLEEP {
            if test_kill_process(self.pid).is_err() {
                return;
            }
            match Proc::open(self.id()).and_then(|process| process.stat()).map(|stat| stat.state) {
                Ok('Z' | 'X') => return,
                Ok('S') => {}
                _ => awake = Instant::now(),
            }
            std::thread::sleep(POLL);
        }
        let _gone_already = rustix::process::kill_process(self.pid, rustix::process::Signal::KILL);
    }

    fn say(&self, speaker: &OwnedFd) -> Result<(), RestoreError> {
        match rustix::io::write(speaker, &[1]) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.died()),
        }
    }

    fn watch(
        &self,
        reader: &rewake_image::PageReader,
        transaction: &mut Transaction,
        speaker: &OwnedFd,
    ) -> Result<(), RestoreError> {
        transaction.apply(self.image, reader)?;
        self.say(speaker)?;
        run::verify(self.image, reader, &|| transaction.check(), &mut |_| {})?;
        let threads = u32::try_from(self.image.thread_count()).expect("image counts are checked");
        while self.stage.arrived(&self.assembled, self.plan.parked) < threads {
            transaction.check()?;
            if let Some(failure) = run::failure_of(self.plan, &self.stage, &self.assembled, self.id()) {
                return Err(failure);
            }
            if test_kill_process(self.pid).is_err() {
                return Err(self.died());
            }
            std::thread::sleep(POLL);
        }
        transaction.let_signals_through()?;
        transaction.commit()
    }

    fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    fn died(&self) -> RestoreError {
        let reason = format!("it is gone; its program lay at {}", self.site.stage);
        RestoreError::Died { pid: self.id(), reason }
    }
}
