//! Programs that do one thing as fast as they can, checkpointed again and again: killed and recovered on the way, more than once, and
//! run to their end.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Bench, forget_old};
use crate::library;
use crate::process::{self, PATIENCE};
use crate::report::{Report, Skip};
use crate::subject::{Inside, Subject};

/// What is endured: a variant of the program, how often it is checkpointed, and after how many it is killed and recovered.
struct Trial {
    what: &'static str,
    times: u32,
    recovered_every: u32,
}

const TRIALS: &[Trial] = &[
    Trial { what: "malloc", times: 1000, recovered_every: 170 },
    Trial { what: "printf", times: 1000, recovered_every: 170 },
    Trial { what: "descriptors", times: 500, recovered_every: 100 },
    Trial { what: "threads", times: 200, recovered_every: 40 },
    Trial { what: "dlopen", times: 200, recovered_every: 40 },
    Trial { what: "handlers", times: 200, recovered_every: 40 },
    Trial { what: "small", times: 200, recovered_every: 40 },
    Trial { what: "locks", times: 20, recovered_every: 5 },
];

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    for trial in TRIALS {
        let name = format!("{} checkpoints of a program of {}", trial.times, trial.what);
        report.measured(&name, || endured(bench, trial, &[], None));
    }
    let trial = Trial { what: "malloc", times: 1000, recovered_every: 170 };
    report.measured("1000 checkpoints of a program of malloc, that of jemalloc", || {
        let other = library::jemalloc().ok_or_else(|| Skip("libjemalloc2 is not installed".into()))?;
        endured(bench, &trial, &[], Some(other))
    });
    report.test("a malloc whose pieces have nothing before them", || guarded(bench));
    report.measured("a library that starts threads, timers and more before main", || {
        let trial = Trial { what: "printf", times: 30, recovered_every: 6 };
        let eager = bench.workshop.compile("library/eager", &["-shared", "-fPIC"])?;
        endured(bench, &trial, &[], Some(eager))
    });
    report.test("a library that starts them in the process that is recovered, and did not before", || {
        left_behind(bench)
    });
    let trial = Trial { what: "watched", times: 50, recovered_every: u32::MAX };
    report.measured("a checkpoint takes no memory of the program's malloc", || {
        endured(bench, &trial, &["-DWATCHED"], None)
    });
}

/// Threads, timers, descriptors, locked memory of a process.
fn belongings(subject: &Subject) -> (usize, usize, usize, String) {
    let place = PathBuf::from(format!("/proc/{}", subject.pid()));
    let count = |folder: &str| fs::read_dir(place.join(folder)).map_or(0, Iterator::count);
    let timers = fs::read_to_string(place.join("timers")).unwrap_or_default();
    let status = fs::read_to_string(place.join("status")).unwrap_or_default();
    let locked = status.lines().find(|line| line.starts_with("VmLck:")).unwrap_or_default().to_owned();
    (count("task"), timers.lines().filter(|line| line.starts_with("ID:")).count(), count("fd"), locked)
}

/// Nothing of what a library does before `main` is left in the program, which has never had it.
fn left_behind(bench: &Bench<'_>) -> Result<()> {
    let program = bench.workshop.compile("endure", &[])?;
    let eager = bench.workshop.compile("library/eager", &["-shared", "-fPIC"])?;
    let (inside, mut subject) = bench.start("left behind", &program, &["malloc"])?;
    let with_eager = inside.clone().with(&eager);
    for _ in 0..10 {
        inside.save(&mut subject)?;
        let before = belongings(&subject);
        with_eager.live_on(&mut subject, bench.workshop)?;
        let same = || (belongings(&subject) == before).then_some(());
        process::await_some(PATIENCE, same)
            .with_context(|| format!("{:?}, but was {before:?}", belongings(&subject)))?;
        // A timer that was left would end it.
        std::thread::sleep(Duration::from_millis(20));
        ensure!(subject.lives(), "it ended");
    }
    subject.pass()
}

/// Of a program that writes a file: when that is put back, the path that libc makes of its folder's lies in such a piece.
fn guarded(bench: &Bench<'_>) -> Result<()> {
    let program = bench.workshop.compile("endure", &[])?;
    let guarded = bench.workshop.compile("library/guarded", &["-shared", "-fPIC"])?;
    let folder = bench.workshop.folder("guarded")?;
    let inside = Inside::new(&bench.library, &program, &folder).with(&guarded);
    let mut subject = Subject::start_inside(&inside, bench.workshop, &["printf"], folder)?;
    inside.prove(&mut subject, bench.workshop)
}

fn endured(bench: &Bench<'_>, trial: &Trial, options: &[&str], other: Option<PathBuf>) -> Result<String> {
    let program = bench.workshop.compile("endure", options)?;
    let label = format!("endure {} {}", trial.what, if other.is_some() { "other malloc" } else { "" });
    let folder = bench.workshop.folder(&label)?;
    let mut inside = Inside::new(&bench.library, &program, &folder);
    if let Some(other) = other {
        inside = inside.with(&other);
    }
    // Else most of the time would be the disk's.
    let memory = InMemory::new(bench)?;
    if let Some(memory) = &memory {
        inside = inside.storing_in(&memory.0);
    }
    let mut subject = Subject::start_inside(&inside, bench.workshop, &[trial.what], folder)?;
    let result = checkpointed(bench, trial, &inside, &mut subject);
    subject.end();
    result
}

/// A store that is not on a disk, where there is a place for one; gone with this value.
struct InMemory(PathBuf);

impl InMemory {
    fn new(bench: &Bench<'_>) -> Result<Option<Self>> {
        let place = PathBuf::from("/dev/shm");
        if !place.is_dir() {
            return Ok(None);
        }
        let store = Self(place.join(format!("rewake-endure-{}", std::process::id())));
        fs::create_dir(&store.0).context("a store in memory")?;
        bench.workshop.account().map_or(Ok(()), |account| account.give(&store.0))?;
        Ok(Some(store))
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        // What is left is little, and goes with the machine.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn checkpointed(bench: &Bench<'_>, trial: &Trial, inside: &Inside, subject: &mut Subject) -> Result<String> {
    let mut spent = std::time::Duration::ZERO;
    for time in 1..=trial.times {
        let begun = Instant::now();
        inside.save(subject).with_context(|| format!("checkpoint {time}"))?;
        spent += begun.elapsed();
        forget_old(inside.store())?;
        if time % trial.recovered_every == 0 {
            inside.live_on(subject, bench.workshop).with_context(|| format!("after {time} checkpoints"))?;
        }
    }
    subject.pass()?;
    Ok(format!("{:.1} ms for each", spent.as_secs_f64() * 1e3 / f64::from(trial.times)))
}
