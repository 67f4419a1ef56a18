//! A program with the library preloaded: it captures itself when asked by a signal, and becomes its image again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
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
    library: Option<PathBuf>,
    program: PathBuf,
    store: PathBuf,
}

impl Inside {
    /// For a program that works in this folder.
    #[must_use]
    pub fn new(library: &Path, program: &Path, folder: &Path) -> Self {
        Self { library: Some(library.to_owned()), ..Self::linked(program, folder) }
    }

    /// For a program that is linked with it.
    #[must_use]
    pub fn linked(program: &Path, folder: &Path) -> Self {
        Self { library: None, program: program.to_owned(), store: folder.join("store") }
    }

    /// Where its images go.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The program, with the library before it, as whoever the workshop is for.
    #[must_use]
    pub fn command(&self, workshop: &Workshop) -> Command {
        let mut command = workshop.program(Path::new("env"));
        if let Some(library) = &self.library {
            command.arg(format!("LD_PRELOAD={}", library.display()));
        }
        command.arg(format!("CKPT_DIRECTORY={}", self.store.display())).arg("REWAKE_OTHER_IDS=1");
        command.arg(&self.program);
        command
    }

    /// Has the program capture itself; it goes on.
    ///
    /// # Errors
    /// What it said instead, or that it said nothing.
    pub fn save(&self, subject: &mut Subject) -> Result<()> {
        let latest = || fs::read_link(self.store.join("latest")).ok();
        let before = latest();
        let words = [format!("-{SIGFREEZE}"), subject.pid().to_string()];
        let sent = Command::new("kill").args(words).status();
        ensure!(sent.context("kill")?.success(), "the program is gone");
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
