//! A program whose threads can be seen to go on, one by one.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::SOON;
use crate::process::{self, Finished};
use crate::subject::{Subject, save_command};
use crate::workshop::Workshop;

/// Threads of `busy` that count.
pub(super) const COUNTERS: usize = 4;

/// How the program is when the shots come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// As most are.
    Running,
    /// By SIGSTOP, before the first shot.
    Stopped,
    /// The thread whose id is the pid has ended.
    Leaderless,
    /// Without any shared library, and with another C library.
    Musl,
    /// Processes instead of threads, and one that has ended.
    Tree,
    /// Large enough to be copied while it runs.
    Large,
}

impl Kind {
    /// Whether a thread or process of it has ended, and is still listed.
    fn has_ended_one(self) -> bool {
        matches!(self, Self::Leaderless | Self::Tree)
    }
}

/// A program whose threads can be seen to go on, one by one.
pub(super) struct Target {
    pub(super) subject: Subject,
    progress: fs::File,
    pub(super) kind: Kind,
    /// How many it has, with one that ended.
    pub(super) threads: usize,
}

impl Target {
    /// What captures it, and leaves it running.
    pub(super) fn save_command(&self, workshop: &Workshop) -> Command {
        let mut command = save_command(workshop, self.subject.pid(), &self.subject.image());
        if self.kind == Kind::Large {
            command.args(["--mode", "precopy"]);
        }
        command
    }

    pub(super) fn start(workshop: &Workshop, name: &str, kind: Kind) -> Result<Self> {
        let options: &[&str] = if kind == Kind::Musl { &["musl-gcc", "-static"] } else { &[] };
        let arguments: &[&str] = match kind {
            Kind::Leaderless => &["2", "leaderless"],
            Kind::Tree => &["2", "tree"],
            Kind::Large => &["24"],
            _ => &["2"],
        };
        let program = workshop.compile("busy", options)?;
        let subject = Subject::start(&program, arguments, workshop.folder(name)?)?;
        let progress = fs::File::open(subject.folder.join("progress")).context("progress file")?;
        // The last of them may still be about to be born.
        let all = if kind == Kind::Tree { COUNTERS + 2 } else { 0 };
        let threads = process::await_some(SOON, || {
            let threads = process::threads_of_tree(subject.pid());
            let has_ended = threads.iter().any(|thread| thread.state == 'Z');
            (threads.len() >= all && (has_ended || kind != Kind::Tree)).then_some(threads)
        });
        let threads = threads.context("the tree is not complete")?;
        let has_ended = threads.iter().any(|thread| thread.state == 'Z');
        ensure!(has_ended == kind.has_ended_one(), "its threads: {threads:?}");
        let target = Target { subject, progress, kind, threads: threads.len() };
        if kind == Kind::Stopped {
            process::signal(target.subject.pid(), Signal::STOP);
        }
        target.is_unharmed()?;
        Ok(target)
    }

    /// It is as it was: a stopped one stopped, any other going on.
    pub(super) fn is_unharmed(&self) -> Result<()> {
        if self.kind == Kind::Stopped { self.subject.await_stop() } else { self.goes_on() }
    }

    /// Lets a stopped one go on.
    pub(super) fn wake(&self) -> Result<()> {
        if self.kind == Kind::Stopped {
            process::signal(self.subject.pid(), Signal::CONT);
        }
        self.goes_on()
    }

    pub(super) fn counters(&self) -> Result<[u64; COUNTERS]> {
        let mut bytes = [0; COUNTERS * 8];
        self.progress.read_exact_at(&mut bytes, 0).context("reading the progress file")?;
        let mut counters = [0; COUNTERS];
        for (counter, chunk) in counters.iter_mut().zip(bytes.chunks_exact(8)) {
            *counter = u64::from_ne_bytes(chunk.try_into()?);
        }
        Ok(counters)
    }

    /// Every thread is there, traced by nobody, not stopped, and counts on.
    pub(super) fn goes_on(&self) -> Result<()> {
        let pid = self.subject.pid();
        let free = process::await_some(SOON, || {
            let threads = process::threads_of_tree(pid);
            let ended = threads.iter().filter(|thread| thread.state == 'Z').count();
            let free = threads.iter().all(|thread| thread.tracer == 0 && !"tTX".contains(thread.state));
            let whole = threads.len() == self.threads && ended == usize::from(self.kind.has_ended_one());
            (free && whole).then_some(())
        });
        ensure!(
            free.is_some(),
            "the target is not free: {:?}; it says {:?}",
            process::threads_of_tree(pid),
            self.subject.said()
        );
        let before = self.counters()?;
        let on = process::await_some(SOON, || {
            let now = self.counters().ok()?;
            before.iter().zip(now).all(|(before, now)| now > *before).then_some(())
        });
        ensure!(
            on.is_some(),
            "a thread of the target no longer counts: {before:?}, then {:?}",
            self.counters()?
        );
        Ok(())
    }

    /// Median time of an undisturbed command, start to end.
    pub(super) fn measure(&self, workshop: &Workshop) -> Result<Duration> {
        let mut times = Vec::new();
        for _ in 0..5 {
            let begun = Instant::now();
            self.undisturbed(workshop)?;
            times.push(begun.elapsed());
        }
        times.sort();
        Ok(times[2])
    }

    /// A whole command; afterwards its image is complete and no temporary of any command is left.
    pub(super) fn undisturbed(&self, workshop: &Workshop) -> Result<()> {
        self.subject.save(workshop).context("undisturbed")?;
        let left = userfaults(self.subject.pid())?;
        ensure!(left.is_empty(), "userfaultfds are left in the target: {left:?}");
        let left = temporaries(&self.subject.folder)?;
        ensure!(left.is_empty(), "temporaries are left after a whole command: {left:?}");
        fs::remove_dir_all(self.subject.image()).context("removing the image")
    }

    /// The image is there whole or not at all; a command that reports success has one, one that reports failure none.
    pub(super) fn image_is_whole_or_absent(&self, workshop: &Workshop, ended: &Finished) -> Result<bool> {
        let image = self.subject.image();
        let there = image.exists();
        match ended.status.code() {
            Some(0) => ensure!(there, "the command ended with 0, but there is no image"),
            Some(1) => ensure!(!there, "the command failed, but left an image"),
            _ => {}
        }
        if there {
            let mut verify = workshop.command(["verify"]);
            verify.arg(&image);
            process::run(verify, &self.subject.folder, "verify")?
                .expect_code("verify of the image left", 0)?;
            fs::remove_dir_all(&image).context("removing the image")?;
        }
        Ok(there)
    }
}

/// Descriptors that a capture takes from the target, and mappings that are watched through one.
fn userfaults(pid: u32) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        // It may be closed by now.
        let link = fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
        if link.contains("userfaultfd") {
            left.push(format!("{}: {link}", entry.file_name().to_string_lossy()));
        }
    }
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let watched = |line: &&str| line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "uw");
    left.extend(smaps.lines().filter(watched).map(str::to_owned));
    Ok(left)
}

fn temporaries(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.contains(".tmp-") {
            names.push(name);
        }
    }
    Ok(names)
}
