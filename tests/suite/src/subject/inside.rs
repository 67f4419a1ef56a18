//! A program with the library preloaded: it captures itself when asked by a signal, and becomes its image again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::Subject;
use crate::process::{self, PATIENCE, Running};
use crate::workshop::Workshop;

/// The signal that makes a program capture itself.
const SIGFREEZE: i32 = 34;

/// How a program is started with the library.
#[derive(Clone, Debug)]
pub struct Inside {
    /// Preloaded; else it is linked in.
    preloaded: Option<String>,
    program: PathBuf,
    store: PathBuf,
    /// What starts it.
    wrapped: Vec<String>,
}

impl Inside {
    /// For a program that works in this folder.
    #[must_use]
    pub fn new(library: &Path, program: &Path, folder: &Path) -> Self {
        Self { preloaded: Some(library.display().to_string()), ..Self::linked(program, folder) }
    }

    /// For a program that is linked with it.
    #[must_use]
    pub fn linked(program: &Path, folder: &Path) -> Self {
        Self {
            preloaded: None,
            program: program.to_owned(),
            store: folder.join("store"),
            wrapped: Vec::new(),
        }
    }

    /// With one more library after it.
    #[must_use]
    pub fn with(mut self, other: &Path) -> Self {
        let others = self.preloaded.unwrap_or_default();
        self.preloaded = Some(format!("{others}:{}", other.display()));
        self
    }

    /// With another store.
    #[must_use]
    pub fn storing_in(mut self, store: &Path) -> Self {
        store.clone_into(&mut self.store);
        self
    }

    /// Started by another command, with these words before its own.
    #[must_use]
    pub fn within(mut self, words: Vec<String>) -> Self {
        self.wrapped = words;
        self
    }

    /// Where its images go.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The program, with the library before it, as whoever the workshop is for.
    #[must_use]
    pub fn command(&self, workshop: &Workshop) -> Command {
        let mut command = match self.wrapped.split_first() {
            None => workshop.program(Path::new("env")),
            Some((first, others)) => {
                let mut command = workshop.program(Path::new(first));
                command.args(others).arg("env");
                command
            }
        };
        if let Some(preloaded) = &self.preloaded {
            command.arg(format!("LD_PRELOAD={preloaded}"));
        }
        command.arg(format!("CKPT_DIRECTORY={}", self.store.display())).arg("REWAKE_OTHER_IDS=1");
        command.arg(&self.program);
        command
    }

    /// Sends the signal, and waits for nothing.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn ask(&self, pid: u32) -> Result<()> {
        let words = [format!("-{SIGFREEZE}"), pid.to_string()];
        let sent = Command::new("kill").args(words).stderr(Stdio::null()).status();
        ensure!(sent.context("kill")?.success(), "the program is gone");
        Ok(())
    }

    /// Has the program capture itself; it goes on.
    ///
    /// # Errors
    /// What it said instead, or that it said nothing.
    pub fn save(&self, subject: &mut Subject) -> Result<()> {
        let latest = || fs::read_link(self.store.join("latest")).ok();
        let before = latest();
        self.ask(subject.pid())?;
        let said = || fs::read_to_string(subject.folder.join("program.err")).unwrap_or_default();
        let done = process::await_some(PATIENCE, || {
            let ended = process::glimpse(subject.pid()).is_none_or(|seen| seen.state == 'Z');
            (latest() != before || said().contains("libckpt:") || ended).then_some(())
        });
        if latest() != before {
            return Ok(());
        }
        match done {
            Some(()) => bail!("no image: {}{}", said().trim(), subject.said().trim()),
            None => bail!("no image, and not a word"),
        }
    }

    /// Recovers the program, lets it check itself and end.
    ///
    /// # Errors
    /// Fails unless it passes.
    pub fn recover_and_pass(&self, subject: &Subject, workshop: &Workshop) -> Result<()> {
        let mut command = self.command(workshop);
        command.arg("=recover").current_dir(&subject.folder);
        let recovered = Running::start(command, &subject.folder, "recover")?;
        std::thread::sleep(Duration::from_millis(40));
        subject.go()?;
        let finished = recovered.finish(PATIENCE).context("=recover")?;
        subject.expect_pass(finished.status, &finished.errors).context("=recover")
    }

    /// Starts the recovery of a program that has ended: its process is the subject from now on.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn begin_again(&self, subject: &mut Subject, workshop: &Workshop) -> Result<()> {
        let mut command = self.command(workshop);
        command.arg("=recover").current_dir(&subject.folder);
        subject.running = Running::start(command, &subject.folder, "recover")?;
        Ok(())
    }

    /// Whether the subject has a handler for the signal: one that is being recovered has it as soon as it is the program.
    #[must_use]
    pub fn catches(&self, subject: &Subject) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", subject.pid())).unwrap_or_default();
        let caught = status
            .lines()
            .find_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok());
        caught.is_some_and(|set| set & 1 << (SIGFREEZE - 1) != 0)
    }

    /// Kills the program and recovers it: the new process is the subject from now on.
    ///
    /// # Errors
    /// When it cannot be started, or ends at once.
    pub fn live_on(&self, subject: &mut Subject, workshop: &Workshop) -> Result<()> {
        process::signal(subject.pid(), Signal::KILL);
        subject.wait_for_end()?;
        self.begin_again(subject, workshop)?;
        // It takes the signal as soon as it is the program.
        process::await_some(PATIENCE, || {
            let ended = process::glimpse(subject.pid()).is_none_or(|seen| seen.state == 'Z');
            (ended || self.catches(subject)).then_some(())
        });
        let errors = || fs::read_to_string(subject.folder.join("recover.err")).unwrap_or_default();
        ensure!(
            process::glimpse(subject.pid()).is_some_and(|seen| seen.state != 'Z'),
            "=recover ended: {}{}",
            errors(),
            subject.said()
        );
        Ok(())
    }

    /// Captures it twice, kills it, and recovers it.
    ///
    /// # Errors
    /// Fails unless it passes then.
    pub fn prove(&self, subject: &mut Subject, workshop: &Workshop) -> Result<()> {
        self.save(subject)?;
        self.save(subject).context("once more")?;
        process::signal(subject.pid(), Signal::KILL);
        subject.wait_for_end()?;
        self.recover_and_pass(subject, workshop)
    }
}
