//! Programs that nobody here wrote, interrupted half way: what they write is, byte for byte, what an uninterrupted
//! run writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::process::{self, PATIENCE, Running};
use crate::report::{Report, Skip};
use crate::subject::save_command;
use crate::workshop::{Workshop, root};

/// A program and its arguments; relative paths are in `tests/programs/real`.
struct Real {
    name: &'static str,
    make: fn(&Workshop) -> Result<Command>,
}

const PROGRAMS: &[Real] = &[
    Real { name: "python3", make: python },
    Real { name: "perl", make: perl },
    Real { name: "sqlite3", make: sqlite },
    Real { name: "OpenBLAS, two threads", make: openblas },
];

/// Runs the group.
pub fn run(workshop: &Workshop, report: &mut Report) {
    for program in PROGRAMS {
        for killed in [true, false] {
            let way = if killed { "killed, resumed" } else { "left running, resumed too" };
            let name = format!("{} ({way})", program.name);
            report.test(&name, || interrupted(workshop, program, killed, &name));
        }
    }
}

/// The path of an installed program, the system's own first.
///
/// # Errors
/// A program that is not there is a [`Skip`].
pub fn installed(name: &str) -> Result<PathBuf> {
    let searched = std::env::var_os("PATH").unwrap_or_default();
    let folders = ["/usr/bin", "/bin"].iter().map(PathBuf::from).chain(std::env::split_paths(&searched));
    folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| Skip(format!("{name} is not installed")).into())
}

fn script(name: &str) -> PathBuf {
    root().join("tests/programs/real").join(name)
}

fn python(_: &Workshop) -> Result<Command> {
    let mut command = Command::new(installed("python3")?);
    command.arg(script("primes.py")).arg("700000");
    Ok(command)
}

fn perl(_: &Workshop) -> Result<Command> {
    let mut command = Command::new(installed("perl")?);
    command.arg(script("words.pl")).arg("18");
    Ok(command)
}

fn sqlite(_: &Workshop) -> Result<Command> {
    let mut command = Command::new(installed("sqlite3")?);
    command.args(["-batch", "-init"]).arg(script("recursive.sql")).args([":memory:", "select 'done';"]);
    Ok(command)
}

fn openblas(workshop: &Workshop) -> Result<Command> {
    let program = workshop.compile("real/matmul", &["-lopenblas"])?;
    let mut command = Command::new(program);
    command.args(["768", "60"]).env("OPENBLAS_NUM_THREADS", "2");
    Ok(command)
}

fn start(workshop: &Workshop, program: &Real, folder: &Path) -> Result<Running> {
    let mut command = (program.make)(workshop)?;
    command.current_dir(folder).env("LC_ALL", "C");
    Running::start(command, folder, "program")
}

fn written(folder: &Path) -> Result<Vec<u8>> {
    fs::read(folder.join("program.out")).context("reading the output")
}

/// Fails with the first line that differs.
fn same(what: &str, expected: &[u8], got: &[u8]) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    let (expected, got) = (String::from_utf8_lossy(expected), String::from_utf8_lossy(got));
    let line = expected.lines().zip(got.lines()).position(|(a, b)| a != b);
    bail!("{what}: the output differs ({} bytes, not {}), first in line {line:?}", got.len(), expected.len())
}

fn interrupted(workshop: &Workshop, program: &Real, killed: bool, name: &str) -> Result<()> {
    let folder = workshop.folder(name)?;
    let begun = Instant::now();
    start(workshop, program, &folder)?.finish(PATIENCE)?.expect_code("uninterrupted", 0)?;
    let took = begun.elapsed();
    let expected = written(&folder)?;
    ensure!(!expected.is_empty(), "the program writes nothing");
    let folder = workshop.folder(name)?;
    let mut running = start(workshop, program, &folder)?;
    std::thread::sleep(took / 2);
    let result = save_and_resume(workshop, &folder, &mut running, killed, &expected);
    if matches!(running.child.try_wait(), Ok(None)) {
        running.child.kill().context("ending the program")?;
        running.child.wait().context("ending the program")?;
    }
    result.and(process::nothing_left(&[], Duration::from_secs(5)))
}

fn save_and_resume(
    workshop: &Workshop,
    folder: &Path,
    running: &mut Running,
    killed: bool,
    expected: &[u8],
) -> Result<()> {
    ensure!(running.child.try_wait()?.is_none(), "the program ended before it could be interrupted");
    let image = folder.join("image");
    let mut save = save_command(workshop, running.child.id(), &image);
    if killed {
        save.arg("--kill");
    }
    process::run(save, folder, "save")?.expect_code("save", 0)?;
    let half = written(folder)?;
    let status = process::wait(&mut running.child, PATIENCE).context("the program does not end")?;
    let mut resume = workshop.command(["resume", "-d"]);
    resume.arg(&image).current_dir(folder);
    if killed {
        ensure!(half.len() < expected.len(), "the program was not interrupted half way");
    } else {
        ensure!(status.success(), "left running, it ended with {}", process::describe(status));
        same("left running", expected, &written(folder)?)?;
        // Its output has changed since: it writes the same bytes once more, from the position it had.
        resume.args(["--on-changed", "as-is"]);
    }
    process::run(resume, folder, "resume")?.expect_code("resume", 0)?;
    same("resumed", expected, &written(folder)?)
}
