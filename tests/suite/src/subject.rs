//! A self-checking program under test and what is done to it.

mod inside;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::process::{self, Finished, PATIENCE, Running};
use crate::report::Skip;
use crate::workshop::Workshop;

pub use inside::Inside;

/// What a program writes once its state is set up.
pub const READY: &str = "READY\n";
/// All that a program writes when all is well.
pub const PASSED: &str = "READY\nPASS\n";

/// The command that captures a process into an image.
#[must_use]
pub fn save_command(workshop: &Workshop, pid: u32, image: &Path) -> Command {
    let mut command = workshop.command(["save", "-p", &pid.to_string(), "--files", "0", "-d"]);
    command.arg(image);
    command
}

/// A self-checking program in a folder of its own.
#[derive(Debug)]
pub struct Subject {
    running: Running,
    /// Its working folder.
    pub folder: PathBuf,
}

impl Subject {
    /// Starts a program and waits until it says READY.
    ///
    /// # Errors
    /// Fails when it ends early; its SKIP becomes a [`Skip`].
    pub fn start(program: &Path, arguments: &[&str], folder: PathBuf) -> Result<Self> {
        Self::start_with(Command::new(program), arguments, folder)
    }

    /// Starts a program as whoever the workshop is for and waits until it says READY.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(
        workshop: &Workshop,
        program: &Path,
        arguments: &[&str],
        folder: PathBuf,
    ) -> Result<Self> {
        Self::start_with(workshop.program(program), arguments, folder)
    }

    /// Starts a program with the library inside and waits until it says READY.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_inside(
        inside: &Inside,
        workshop: &Workshop,
        arguments: &[&str],
        folder: PathBuf,
    ) -> Result<Self> {
        Self::start_with(inside.command(workshop), arguments, folder)
    }

    /// Starts a program by a command and waits until it says READY.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(mut command: Command, arguments: &[&str], folder: PathBuf) -> Result<Self> {
        command.arg(folder.join("go")).args(arguments).current_dir(&folder);
        let running = Running::start(command, &folder, "program")?;
        let mut subject = Subject { running, folder };
        let ready = process::await_some(PATIENCE, || {
            let over = subject.running.child.try_wait().ok().flatten();
            let said = subject.said();
            (said.contains(READY) || over.is_some()).then_some((said, over))
        });
        match ready {
            Some((_, None)) => Ok(subject),
            Some((said, Some(status))) => match said.strip_prefix("SKIP: ") {
                Some(reason) => Err(Skip(reason.trim().to_owned()).into()),
                None => {
                    bail!("the program ended before READY: {} {}", process::describe(status), said.trim())
                }
            },
            None => {
                subject.end();
                bail!("the program never said READY")
            }
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// Where its image goes.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    /// What it has written.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder.join("program.out")).unwrap_or_default()
    }

    /// Puts its output back to what it was at the checkpoint, and takes the flag file away.
    ///
    /// # Errors
    /// Fails when the files cannot be changed.
    pub fn rewind(&self) -> Result<()> {
        let go = self.folder.join("go");
        if go.exists() {
            fs::remove_file(&go).context("taking the flag file away")?;
        }
        let output = fs::OpenOptions::new().write(true).open(self.folder.join("program.out"))?;
        output.set_len(READY.len().try_into()?).context("shortening the output")
    }

    /// Lets it check itself.
    ///
    /// # Errors
    /// Fails when the flag file cannot be made.
    pub fn go(&self) -> Result<()> {
        fs::write(self.folder.join("go"), "").context("making the flag file")
    }

    /// Captures it into its image and leaves it running.
    ///
    /// # Errors
    /// Fails unless the command ends with 0 and the image is there.
    pub fn save(&self, workshop: &Workshop) -> Result<()> {
        self.save_with(workshop, &[])
    }

    /// Captures it into its image and has the checkpoint kill it.
    ///
    /// # Errors
    /// Fails unless the command ends with 0, the image is there and the program has died of SIGKILL.
    pub fn save_and_kill(&mut self, workshop: &Workshop) -> Result<()> {
        self.save_with(workshop, &["--kill"])?;
        self.expect_killed()
    }

    /// Waits for its end by a checkpoint with `--kill`.
    ///
    /// # Errors
    /// Fails unless it has died of SIGKILL.
    pub fn expect_killed(&mut self) -> Result<()> {
        self.expect_killed_alone()?;
        // Those below it are ours now, and keep their ids until somebody waits for them.
        process::reap_all(&process::children(std::process::id()));
        Ok(())
    }

    /// The same where something that was below it lives on.
    ///
    /// # Errors
    /// Fails unless it has died of SIGKILL.
    pub fn expect_killed_alone(&mut self) -> Result<()> {
        let status =
            process::wait(&mut self.running.child, PATIENCE).context("the program outlived --kill")?;
        ensure!(
            status.signal() == Some(9),
            "--kill, but the program ended with {}",
            process::describe(status)
        );
        Ok(())
    }

    /// Captures it with further options.
    ///
    /// # Errors
    /// As [`Subject::save`].
    pub fn save_with(&self, workshop: &Workshop, options: &[&str]) -> Result<()> {
        let mut command = save_command(workshop, self.pid(), &self.image());
        command.args(options);
        process::run(command, &self.folder, "save")?.expect_code("save", 0)?;
        ensure!(self.image().is_dir(), "save ended with 0, but {} is not there", self.image().display());
        Ok(())
    }

    /// Waits for the end of the program left running.
    ///
    /// # Errors
    /// Fails unless it passes.
    pub fn pass(&mut self) -> Result<()> {
        self.go()?;
        let status = process::wait(&mut self.running.child, PATIENCE).context("it never ended")?;
        self.expect_pass(status, "")
    }

    /// Fails unless the program ended with 0 and wrote nothing but READY and PASS.
    ///
    /// # Errors
    /// Says what it wrote instead.
    pub fn expect_pass(&self, status: ExitStatus, errors: &str) -> Result<()> {
        let said = self.said();
        if status.success() && said == PASSED {
            return Ok(());
        }
        let said = said.strip_prefix(READY).unwrap_or(&said).trim().to_owned();
        let errors: Vec<&str> = errors.lines().take(6).collect();
        bail!("{}; program: '{said}' {}", process::describe(status), errors.join("\n"))
    }

    /// The command that resumes its image.
    #[must_use]
    pub fn resume_command(&self, workshop: &Workshop) -> Command {
        let mut command = workshop.command(["resume", "-d"]);
        command.arg(self.image()).current_dir(&self.folder);
        command
    }

    /// Tries to resume its image, which is expected to be refused.
    ///
    /// # Errors
    /// Fails when the command cannot be run or hangs.
    pub fn resume(&self, workshop: &Workshop) -> Result<Finished> {
        process::run(self.resume_command(workshop), &self.folder, "resume")
    }

    /// Resumes the image in the foreground, lets the program check itself and end.
    ///
    /// # Errors
    /// Fails unless it passes.
    pub fn resume_and_pass(&self, workshop: &Workshop, options: &[&str]) -> Result<()> {
        let mut command = self.resume_command(workshop);
        command.args(options);
        let resumed = Running::start(command, &self.folder, "resume")?;
        std::thread::sleep(Duration::from_millis(40));
        self.go()?;
        let finished = resumed.finish(PATIENCE).context("resume")?;
        self.expect_pass(finished.status, &finished.errors).context("resume")
    }

    /// Waits until all of it is stopped by job control, traced by nobody, and looks that it stays so.
    ///
    /// # Errors
    /// Fails when it runs.
    pub fn await_stop(&self) -> Result<()> {
        let stopped = || {
            let threads = process::threads(self.pid());
            let still = |seen: &process::Glimpse| seen.state == 'T' && seen.tracer == 0;
            (!threads.is_empty() && threads.iter().all(still)).then_some(())
        };
        process::await_some(Duration::from_secs(10), stopped).context("it is not stopped")?;
        std::thread::sleep(Duration::from_millis(50));
        stopped().context("it did not stay stopped")
    }

    /// Resumes an image of a stopped program: it is stopped, and so is `resume`; whoever continues that continues the program.
    ///
    /// # Errors
    /// Fails unless it passes then.
    pub fn resume_stopped_and_pass(&self, workshop: &Workshop) -> Result<()> {
        // In a group of its own, as a shell would have it: an orphaned one cannot be stopped from a terminal.
        let resume = self.resume_command(workshop);
        let mut command = Command::new("perl");
        command.args(["-e", "setpgrp(0, 0); exec { $ARGV[0] } @ARGV"]).arg(resume.get_program());
        command.args(resume.get_args()).args(["--on-changed", "as-is"]).current_dir(&self.folder);
        let resumed = Running::start(command, &self.folder, "resume")?;
        let waits = || process::glimpse(resumed.child.id()).filter(|seen| seen.state == 'T').map(|_| ());
        let result = process::await_some(Duration::from_secs(10), waits).context("resume does not stop too");
        // In a namespace of its own it has another id out here.
        let result = match process::glimpse(self.pid()) {
            Some(_) => result.and_then(|()| self.await_stop().context("resumed")),
            None => result,
        };
        self.go()?;
        process::signal(resumed.child.id(), Signal::CONT);
        let finished = resumed.finish(PATIENCE).context("resume")?;
        self.expect_pass(finished.status, &finished.errors).context("resume")?;
        result
    }

    /// Waits for its end, whatever that is.
    ///
    /// # Errors
    /// Fails when it lives on.
    pub fn wait_for_end(&mut self) -> Result<ExitStatus> {
        process::wait(&mut self.running.child, PATIENCE).context("the program does not end")
    }

    /// Is it still there (not even a zombie)?
    pub fn lives(&mut self) -> bool {
        matches!(self.running.child.try_wait(), Ok(None))
    }

    /// Ends the program if it is still there.
    pub fn end(&mut self) {
        if self.lives() {
            process::kill_tree(self.pid());
            process::wait(&mut self.running.child, PATIENCE);
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.end();
    }
}
