//! Programs with the library inside: what `.ckptrc` says is done, `ckpt` gets its answer whatever happens, and who has no library is left
//! alone.

mod asking;
mod causes;
mod settings;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::library;
use crate::process::{self, Finished, PATIENCE};
use crate::report::Report;
use crate::subject::Subject;
use crate::workshop::Workshop;

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    let library = || Ok(library::for_tests()?.join("libckpt.so"));
    settings::run(workshop, report, &library);
    asking::run(workshop, report, &library);
    causes::run(workshop, report, &library);
}

/// Where the library is; built when it is first wanted.
type Library<'a> = &'a dyn Fn() -> Result<PathBuf>;

/// A program with the library inside, in a folder of its own.
struct Inside<'a> {
    workshop: &'a Workshop,
    library: PathBuf,
    folder: PathBuf,
    subject: Subject,
    program: PathBuf,
    settings: Vec<(String, String)>,
}

impl<'a> Inside<'a> {
    /// Starts a program of the tests with these lines in `.ckptrc`.
    fn start(
        workshop: &'a Workshop,
        library: Library<'_>,
        name: &str,
        call: &str,
        lines: &str,
    ) -> Result<Self> {
        let prepare = |folder: &Path| fs::write(folder.join(".ckptrc"), lines).context("writing .ckptrc");
        Self::start_with(workshop, library, name, call, &[], prepare)
    }

    fn start_with(
        workshop: &'a Workshop,
        library: Library<'_>,
        name: &str,
        call: &str,
        settings: &[(&str, &str)],
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let folder = workshop.folder(&format!("inside-{name}"))?;
        prepare(&folder)?;
        if let Some(account) = workshop.account() {
            for entry in fs::read_dir(&folder)?.flatten() {
                account.give(&entry.path())?;
            }
        }
        let library = workshop.account().map_or_else(library, |account| account.copy(&library()?))?;
        let mut words = call.split(' ');
        let program = workshop.compile(words.next().context("empty call")?, &[])?;
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let arguments: Vec<&str> = words.collect();
        let command = command(workshop, &library, &folder, &settings, &program);
        let subject = Subject::start_with(command, &arguments, folder.clone())?;
        Ok(Self { workshop, library, folder, subject, program, settings })
    }

    fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// What the program, or the library in it, said on standard error.
    fn errors(&self) -> String {
        fs::read_to_string(self.folder.join("program.err")).unwrap_or_default()
    }

    /// Has it make a checkpoint by `ckpt`.
    fn ckpt(&self, options: &[&str]) -> Result<Finished> {
        let mut command = self.workshop.command(["ckpt", &self.subject.pid().to_string()]);
        command.args(options);
        process::run(command, &self.folder, "ckpt")
    }

    /// The same; it works, and the image is whole.
    fn saved(&self) -> Result<Finished> {
        let finished = self.ckpt(&[])?;
        finished.expect_code("ckpt", 0)?;
        verified(self.workshop, &self.folder, &self.store())?;
        Ok(finished)
    }

    /// It fails and says these words; there is no image, and the program passes.
    fn refused(mut self, store: &Path, words: &[&str]) -> Result<()> {
        let finished = self.ckpt(&[])?;
        finished.expect_code("ckpt", 1)?;
        finished.expect_words("ckpt", words)?;
        ensure!(numbers(store).is_empty(), "refused, but there is an image");
        ensure!(temporaries(store).is_empty(), "refused, but something is left of an image");
        self.subject.pass().context("after the refusal")
    }

    /// Waits until so many images are in the store.
    fn await_images(&self, count: usize, patience: Duration) -> Result<()> {
        let enough = || (numbers(&self.store()).len() >= count).then_some(());
        process::await_some(patience, enough).with_context(|| {
            format!("{:?} instead of {count} images; {}", numbers(&self.store()), self.errors().trim())
        })
    }

    /// Ends it, recovers it, and lets it check itself.
    fn recovers(mut self) -> Result<()> {
        self.subject.end();
        let mut command = command(self.workshop, &self.library, &self.folder, &self.settings, &self.program);
        command.arg("=recover").current_dir(&self.folder);
        let recovered = process::Running::start(command, &self.folder, "recover")?;
        std::thread::sleep(Duration::from_millis(40));
        self.subject.go()?;
        let finished = recovered.finish(PATIENCE).context("=recover")?;
        self.subject.expect_pass(finished.status, &finished.errors).context("=recover")
    }
}

/// The program with the library, as whoever the workshop is for.
fn command(
    workshop: &Workshop,
    library: &Path,
    folder: &Path,
    settings: &Vec<(String, String)>,
    program: &Path,
) -> Command {
    let mut command = workshop.program(Path::new("env"));
    command
        .arg(format!("LD_PRELOAD={}", library.display()))
        .arg(format!("HOME={}", folder.join("home").display()));
    command.arg("REWAKE_OTHER_IDS=1");
    for (name, value) in settings {
        command.arg(format!("{name}={value}"));
    }
    command.arg(program);
    command
}

/// The images of a store, by number.
fn numbers(store: &Path) -> Vec<u64> {
    let mut numbers: Vec<u64> = names(store).iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

fn temporaries(store: &Path) -> Vec<String> {
    names(store).into_iter().filter(|name| name.contains(".tmp-")).collect()
}

fn names(store: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(store) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn verified(workshop: &Workshop, folder: &Path, image: &Path) -> Result<()> {
    let mut command = workshop.command(["verify"]);
    command.arg(image);
    process::run(command, folder, "verify")?.expect_code("verify", 0)
}

/// Takes all rights to a file away.
fn close(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o000)).with_context(|| path.display().to_string())
}

/// Sends a signal by its number.
fn kill(signal: i32, pid: u32) -> Result<()> {
    let status =
        Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().context("kill")?;
    ensure!(status.success(), "the program is gone");
    Ok(())
}
