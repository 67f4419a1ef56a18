//! One run of a program: started, watched, captured, woken, compared.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::programs::{Product, Progress, Real};
use crate::process::{self, Finished, PATIENCE, Running};
use crate::workshop::Workshop;

/// How far a program is, in thousandths of its way.
pub(super) type Permille = u64;

/// Of an uninterrupted run.
#[derive(Debug)]
pub(super) struct Expected {
    products: Vec<Product>,
    /// The size of the file that grows, at the end.
    total: u64,
}

impl Expected {
    /// Runs the program to its end.
    pub(super) fn find(workshop: &Workshop, real: &Real) -> Result<Self> {
        let unknown = Expected { products: Vec::new(), total: 0 };
        let mut job = Job::start(workshop, real, &unknown, &format!("{} (uninterrupted)", real.name))?;
        job.await_end()?;
        let products = (real.products)(workshop, &job.folder)?;
        ensure!(products.iter().all(|product| !product.content.is_empty()), "the program makes nothing");
        Ok(Expected { products, total: job.size_of_growing() })
    }
}

/// A program came to its good end before it was interrupted: what was to be tested has not been.
#[derive(Debug, Clone, Copy)]
pub(super) struct TooLate;

impl std::fmt::Display for TooLate {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("the program ended before it was interrupted")
    }
}

impl std::error::Error for TooLate {}

/// What a save measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) paused_ms: f64,
    pub(super) image_mb: f64,
}

/// A running program.
#[derive(Debug)]
pub(super) struct Job<'a> {
    workshop: &'a Workshop,
    real: &'a Real,
    expected: &'a Expected,
    pub(super) folder: PathBuf,
    /// The program, or the command that woke it.
    running: Option<Running>,
    pid: u32,
    /// The size the growing file had when the work began.
    size_at_start: u64,
}

impl<'a> Job<'a> {
    /// Starts a program in a folder of its own.
    pub(super) fn start(
        workshop: &'a Workshop,
        real: &'a Real,
        expected: &'a Expected,
        name: &str,
    ) -> Result<Self> {
        let folder = workshop.folder(&short(name))?;
        let mut command = (real.prepare)(workshop, &folder)?;
        command.current_dir(&folder).env("LC_ALL", "C").env("HOME", &folder);
        let running = Running::start(command, &folder, "program")?;
        let pid = running.child.id();
        let mut job = Job { workshop, real, expected, folder, running: Some(running), pid, size_at_start: 0 };
        (real.begin)(&job.folder)?;
        job.size_at_start = job.size_of_growing();
        Ok(job)
    }

    fn size_of_growing(&self) -> u64 {
        let Progress::Grows(name) = self.real.progress else { return 0 };
        fs::metadata(self.folder.join(name)).map_or(0, |metadata| metadata.len())
    }

    /// How far the program is.
    pub(super) fn progress(&self) -> Permille {
        let (done, all) = match self.real.progress {
            Progress::Grows(_) => {
                let all = self.expected.total.saturating_sub(self.size_at_start);
                (self.size_of_growing().saturating_sub(self.size_at_start), all)
            }
            Progress::Reads(_, done) if self.said(done) => (1, 1),
            Progress::Reads(name, _) => {
                let path = self.folder.join(name);
                let size = fs::metadata(&path).map_or(0, |metadata| metadata.len());
                (position(self.pid, &path).unwrap_or(0), size)
            }
        };
        done.min(all) * 1000 / all.max(1)
    }

    fn said(&self, words: &str) -> bool {
        fs::read_to_string(self.folder.join("program.out")).is_ok_and(|text| text.contains(words))
    }

    /// Has the program not ended?
    pub(super) fn runs(&mut self) -> bool {
        self.running.as_mut().is_some_and(|running| matches!(running.child.try_wait(), Ok(None)))
    }

    /// Waits until the program is this far.
    pub(super) fn reach(&mut self, goal: Permille) -> Result<()> {
        let reached = process::await_some(PATIENCE, || {
            let runs = self.runs();
            (self.progress() >= goal || !runs).then_some(runs)
        });
        match reached {
            Some(true) => Ok(()),
            Some(false) => self.too_late(),
            None => bail!("the program stands still at {} of 1000", self.progress()),
        }
    }

    fn complaint(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        let text = format!("{}\n{}", read("program.err"), read("resume.err"));
        text.lines().filter(|line| !line.trim().is_empty()).take(6).map(|line| format!("\n{line}")).collect()
    }

    /// Where an image of it goes.
    pub(super) fn image(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Captures it half way and leaves it running.
    pub(super) fn save(&mut self, image: &Path) -> Result<Measured> {
        self.save_with(image, &[])
    }

    /// Captures it half way, which is its end.
    pub(super) fn save_and_kill(&mut self, image: &Path) -> Result<Measured> {
        let measured = self.save_with(image, &["--kill"])?;
        self.expect_killed().context("--kill")?;
        if self.progress() >= 1000 {
            return Err(TooLate.into());
        }
        Ok(measured)
    }

    fn save_with(&mut self, image: &Path, options: &[&str]) -> Result<Measured> {
        let pid = self.pid.to_string();
        let mut command = self.workshop.command(["save", "--json", "-p", &pid, "-d"]);
        command.arg(image).args(options).current_dir(&self.folder);
        let saved = process::run(command, &self.folder, "save")?;
        if !saved.status.success() && !self.runs() {
            return self.too_late();
        }
        saved.expect_code("save", 0)?;
        let number =
            |name: &str| field(&saved.output, name).with_context(|| format!("{name} in the summary"));
        Ok(Measured { paused_ms: number("paused_ms")?, image_mb: number("image_bytes")? / 1e6 })
    }

    fn expect_killed(&mut self) -> Result<()> {
        let running = self.running.as_mut().context("the program runs")?;
        let status = process::wait(&mut running.child, PATIENCE).context("the program does not end")?;
        if status.success() {
            return self.too_late();
        }
        self.running = None;
        ensure!(status.signal() == Some(9), "the program ended with {}", process::describe(status));
        // Those below it are ours now, and keep their ids until somebody waits for them.
        process::nothing_left(&[], Duration::from_secs(5))
    }

    /// Ends it as a crash of the machine would.
    pub(super) fn kill(&mut self) -> Result<()> {
        if !self.runs() {
            return self.too_late();
        }
        process::kill_tree(self.pid);
        self.expect_killed()
    }

    /// The program has ended: well, as it would have without us, or this is another error than [`TooLate`].
    fn too_late<T>(&mut self) -> Result<T> {
        let complaint = self.complaint();
        self.finish("ended").with_context(|| format!("the program was to be interrupted{complaint}"))?;
        Err(TooLate.into())
    }

    /// What was made since the checkpoint is spoiled, so that only putting it back helps.
    pub(super) fn spoil(&self) -> Result<()> {
        use std::io::Write as _;
        for name in self.real.written {
            let path = self.folder.join(name);
            let mut file = fs::OpenOptions::new().append(true).open(&path).context("spoiling a file")?;
            file.write_all(&[b'?'; 5000]).context("spoiling a file")?;
        }
        Ok(())
    }

    /// Wakes it from an image.
    pub(super) fn resume(&mut self, image: &Path, options: &[&str]) -> Result<()> {
        let mut command = self.workshop.command(["resume", "-d"]);
        command.arg(image).args(options).current_dir(&self.folder);
        self.running = Some(Running::start(command, &self.folder, "resume")?);
        Ok(())
    }

    /// Waits until it runs on its own again, which is when it can be captured once more.
    pub(super) fn await_release(&mut self) -> Result<()> {
        let free = process::await_some(PATIENCE, || {
            let told = fs::read_to_string(self.folder.join("resume.err")).unwrap_or_default();
            let free = told.lines().any(|line| line.starts_with("woke "));
            (free || !self.runs()).then_some(free)
        });
        ensure!(free == Some(true), "the program is not let go{}", self.complaint());
        let told = fs::read_to_string(self.folder.join("resume.err")).unwrap_or_default();
        self.pid = woken(&told).unwrap_or(self.pid);
        Ok(())
    }

    /// Waits for its own end, which must be a good one.
    fn await_end(&mut self) -> Result<Finished> {
        if let Some(over) = self.real.over {
            let done = process::await_some(PATIENCE, || (!self.runs() || over(&self.folder)).then_some(()));
            done.context("the program never comes to its end")?;
            let running = self.running.as_ref().context("the program runs")?;
            process::signal(running.child.id(), Signal::TERM);
        }
        let finished = self.running.take().context("the program runs")?.finish(PATIENCE)?;
        finished.expect_code("the program", 0)?;
        Ok(finished)
    }

    /// Waits for its end and compares what it made.
    pub(super) fn finish(&mut self, way: &str) -> Result<()> {
        self.await_end().context(way.to_owned())?;
        let products = (self.real.products)(self.workshop, &self.folder)?;
        for (expected, got) in self.expected.products.iter().zip(&products) {
            same(way, expected, got)?;
        }
        ensure!(products.len() == self.expected.products.len(), "{way}: {} products", products.len());
        Ok(())
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        (self.real.tidy)(self.pid);
        let Some(mut running) = self.running.take() else { return };
        if matches!(running.child.try_wait(), Ok(None)) {
            process::kill_tree(running.child.id());
            process::wait(&mut running.child, Duration::from_secs(10));
        }
    }
}

/// The process id in `woke IMAGE: pid N`, which is another one out here when the program has a namespace of its own.
fn woken(told: &str) -> Option<u32> {
    let line = told.lines().find(|line| line.starts_with("woke "))?;
    line.split(": pid ").nth(1)?.split([' ', ',']).next()?.parse().ok()
}

/// The name of a folder in which a socket may have a name: such a path has 107 characters at most.
fn short(name: &str) -> String {
    let words = name.split_whitespace().map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()));
    words.map(|word| word.chars().take(3).collect::<String>()).collect::<Vec<_>>().join("-")
}

/// The position in a file of the process's first descriptor that leads there.
fn position(pid: u32, path: &Path) -> Option<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let entry = entries.flatten().find(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == path))?;
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", entry.file_name().to_str()?)).ok()?;
    info.lines().find_map(|line| line.strip_prefix("pos:"))?.trim().parse().ok()
}

/// The number of this name in one line of JSON.
fn field(json: &str, name: &str) -> Option<f64> {
    let (_, rest) = json.split_once(&format!("\"{name}\":"))?;
    rest.split([',', '}']).next()?.trim().parse().ok()
}

/// Fails with the first line that differs.
fn same(way: &str, expected: &Product, got: &Product) -> Result<()> {
    if expected.content == got.content {
        return Ok(());
    }
    let sizes = format!("{} bytes, not {}", got.content.len(), expected.content.len());
    let lines = |product: &Product| -> Vec<String> {
        String::from_utf8_lossy(&product.content).lines().map(str::to_owned).collect()
    };
    let (expected, of) = (lines(expected), lines(got));
    let line = expected.iter().zip(&of).position(|(a, b)| a != b);
    bail!("{way}: {} differs ({sizes}), first in line {line:?}", got.name)
}
