//! `cargo xtask bench`: how long the program stands still, how long a checkpoint and a wake-up take, beside the
//! speed of memory and disk measured in the same run.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rewake_suite::process::{self, Running};
use rewake_suite::subject::{PASSED, READY, Subject, save_command};
use rewake_suite::workshop::Workshop;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::bench_table;

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Calm between two steps, so that a gap in the program's clock is the checkpoint's.
const CALM: Duration = Duration::from_millis(200);

/// Median and worst of a measurement, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Figure {
    /// The middle of all runs.
    pub median_ms: f64,
    /// The longest of all runs.
    pub worst_ms: f64,
}

/// All figures for one size.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Memory of the program in megabytes of 2^20 bytes, filled with random data.
    pub megabytes: usize,
    /// Copying that much memory.
    pub memcpy: Figure,
    /// Writing that much to a new file and waiting until it is durable.
    pub durable_write: Figure,
    /// How long the program stood still, by its own clock.
    pub pause: Figure,
    /// The whole command, the program left running.
    pub save: Figure,
    /// The whole command, the program killed.
    pub save_and_kill: Figure,
    /// From the start of `resume` until the program's first instruction, by its own clock; the image on the disk.
    pub awake: Figure,
    /// The same, the image in the page cache.
    pub awake_cached: Figure,
    /// Reading the image from the page cache into new memory, by one thread.
    pub fresh_read: Figure,
    /// Size of the image.
    pub image_bytes: u64,
}

/// Measures and prints.
///
/// # Errors
/// Fails when a checkpoint or resume fails.
pub fn run(sizes: &[usize], runs: usize, json: bool) -> Result<()> {
    ensure!(runs > 0, "at least one run is needed");
    let workshop = Workshop::open("bench")?;
    process::become_subreaper()?;
    let mut all = Vec::new();
    for &megabytes in sizes {
        eprintln!("measuring {megabytes} MB, {runs} runs ...");
        all.push(measure(&workshop, megabytes, runs)?);
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&all).context("writing JSON")?);
    } else {
        println!("{}", bench_table::render(&all, runs));
    }
    Ok(())
}

/// Nanoseconds of the clock that the measured program reads too.
fn now() -> i128 {
    let time = clock_gettime(ClockId::Monotonic);
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

#[derive(Default)]
struct Samples {
    memcpy: Vec<Duration>,
    durable_write: Vec<Duration>,
    pause: Vec<Duration>,
    save: Vec<Duration>,
    save_and_kill: Vec<Duration>,
    awake: Vec<Duration>,
    awake_cached: Vec<Duration>,
    fresh_read: Vec<Duration>,
    image_bytes: u64,
}

fn measure(workshop: &Workshop, megabytes: usize, runs: usize) -> Result<Figures> {
    let program = workshop.compile("pause", &[])?;
    let mut samples = Samples::default();
    let scratch = workshop.folder("disk")?;
    let data = random_bytes(megabytes << 20);
    let mut copy = vec![1_u8; data.len()];
    for _ in 0..runs {
        let begun = Instant::now();
        copy.copy_from_slice(black_box(&data));
        black_box(&copy);
        samples.memcpy.push(begun.elapsed());
        samples.durable_write.push(durable_write(&scratch, &data)?);
    }
    drop((data, copy));
    for _ in 0..runs {
        let folder = workshop.folder("program")?;
        let subject = Subject::start(&program, &[&megabytes.to_string()], folder)?;
        left_running(workshop, subject, &mut samples)?;
        let folder = workshop.folder("program")?;
        let subject = Subject::start(&program, &[&megabytes.to_string()], folder)?;
        killed(workshop, subject, &mut samples)?;
    }
    Ok(Figures {
        megabytes,
        memcpy: figure(samples.memcpy),
        durable_write: figure(samples.durable_write),
        pause: figure(samples.pause),
        save: figure(samples.save),
        save_and_kill: figure(samples.save_and_kill),
        awake: figure(samples.awake),
        awake_cached: figure(samples.awake_cached),
        fresh_read: figure(samples.fresh_read),
        image_bytes: samples.image_bytes,
    })
}

fn random_bytes(length: usize) -> Vec<u8> {
    let mut random = rewake_suite::random::Random::new(8);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next_u64().to_ne_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn durable_write(folder: &Path, data: &[u8]) -> Result<Duration> {
    let path = folder.join("written");
    let begun = Instant::now();
    let mut file = File::create(&path).context("creating a file")?;
    file.write_all(data).and_then(|()| file.sync_all()).context("writing a file")?;
    let took = begun.elapsed();
    fs::remove_file(&path).context("removing a file")?;
    Ok(took)
}

/// Median and worst.
pub fn figure(mut samples: Vec<Duration>) -> Figure {
    samples.sort();
    let milliseconds = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    Figure { median_ms: milliseconds(samples.get(samples.len() / 2)), worst_ms: milliseconds(samples.last()) }
}

fn timed_save(workshop: &Workshop, subject: &Subject, options: &[&str]) -> Result<Duration> {
    std::thread::sleep(CALM);
    let mut command = save_command(workshop, subject.pid(), &subject.image());
    command.args(options);
    let begun = Instant::now();
    let running = Running::start(command, &subject.folder, "save")?;
    let ended = running.finish(PATIENCE)?;
    let took = begun.elapsed();
    ended.expect_code("save", 0)?;
    std::thread::sleep(CALM);
    Ok(took)
}

fn left_running(workshop: &Workshop, mut subject: Subject, samples: &mut Samples) -> Result<()> {
    samples.save.push(timed_save(workshop, &subject, &[])?);
    samples.image_bytes = bytes_of(&subject.image())?;
    subject.go()?;
    subject.wait_for_end()?;
    let (begin, end) = gap(&subject)?;
    samples.pause.push(span(begin, end));
    Ok(())
}

fn killed(workshop: &Workshop, mut subject: Subject, samples: &mut Samples) -> Result<()> {
    samples.save_and_kill.push(timed_save(workshop, &subject, &["--kill"])?);
    subject.wait_for_end()?;
    samples.awake.push(woken(workshop, &subject, &[])?);
    // Now it is in the page cache, all of it, as whoever looks at it again sees.
    samples.fresh_read.push(fresh_read(&subject.image())?);
    subject.rewind()?;
    samples.awake_cached.push(woken(workshop, &subject, &["--on-changed", "as-is"])?);
    Ok(())
}

/// Wakes the program and lets it end: the time until its first instruction.
fn woken(workshop: &Workshop, subject: &Subject, options: &[&str]) -> Result<Duration> {
    let mut command = subject.resume_command(workshop);
    command.args(options);
    let begun = now();
    let running = Running::start(command, &subject.folder, "resume")?;
    std::thread::sleep(CALM);
    subject.go()?;
    running.finish(PATIENCE)?.expect_code("resume", 0)?;
    let (_, end) = gap(subject)?;
    Ok(span(begun, end))
}

/// Reads the files of an image into memory that was not there before.
fn fresh_read(image: &Path) -> Result<Duration> {
    let mut took = Duration::ZERO;
    for entry in fs::read_dir(image).context("reading the image's folder")? {
        let path = entry?.path();
        fs::read(&path).context("reading a file into the cache")?;
        let begun = Instant::now();
        black_box(fs::read(&path).context("reading a file")?);
        took += begun.elapsed();
    }
    Ok(took)
}

fn span(begin: i128, end: i128) -> Duration {
    Duration::from_nanos(u64::try_from(end - begin).unwrap_or(0))
}

/// What the program found: beginning and end of the longest time its clock stood still.
fn gap(subject: &Subject) -> Result<(i128, i128)> {
    let said = subject.said();
    let line = said.lines().find_map(|line| line.strip_prefix("GAP ")).context("the program tells no gap")?;
    ensure!(said.ends_with(PASSED.trim_start_matches(READY)), "the program did not pass: {said}");
    let (begin, end) = line.split_once(' ').context("a gap has two ends")?;
    Ok((begin.parse()?, end.parse()?))
}

/// Bytes of all files of an image.
///
/// # Errors
/// When the folder cannot be read.
pub fn bytes_of(image: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(image).context("reading the image's folder")? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
