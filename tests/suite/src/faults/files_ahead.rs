//! Contents of files that are copied while the program runs: what is in the image is of one moment with the program's memory, however the
//! files are changed meanwhile; and files that nobody changes do not stretch the pause.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::storms::pause;
use crate::process::{self, PATIENCE, Running};
use crate::random::Random;
use crate::report::Report;
use crate::subject::Subject;
use crate::workshop::Workshop;

/// Captures of a program for each way, in each of which it changes its file once.
const CAPTURES: u64 = 2;
/// Captures of which the shortest pause counts.
const PAUSES: u32 = 2;
/// What was changed that long ago is not changed all the time.
const QUIET: Duration = Duration::from_millis(1300);
/// How the program changes its file, and what it is called in the report.
const WAYS: [(&str, &str); 7] = [
    ("pwrite", "written to in its midst"),
    ("mapped-before", "written to through a mapping made before"),
    ("mapped-after", "written to through a mapping made and gone meanwhile"),
    ("protected", "written to through a mapping that was read-only before"),
    ("truncated", "cut off and written anew"),
    ("appended", "added to all the time"),
    ("rewritten", "a log, cut off and written anew"),
];

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    for (way, means) in WAYS {
        let name = format!("a file copied ahead, {means}: resume -o gives what memory says");
        report.test(&name, || changed(workshop, way, 1, &[]));
    }
    report.test("files copied ahead of a tree of three, written to meanwhile", || {
        changed(workshop, "pwrite", 3, &[])
    });
    report.test("a log copied ahead, compressed: resume -o gives what memory says", || {
        changed(workshop, "appended", 1, &["--compress", "zstd"])
    });
    report.test("a large file that nobody changes does not stretch the pause", || quiet(workshop));
}

fn start(workshop: &Workshop, name: &str, way: &str, processes: u64) -> Result<Subject> {
    let program = workshop.compile("files_ahead", &[])?;
    Subject::start(&program, &[way, &processes.to_string()], workshop.folder(name)?)
}

/// Saves it with its files' contents, left running. How long it stood still.
fn save(workshop: &Workshop, subject: &Subject, image: &str, options: &[&str]) -> Result<Duration> {
    let mut save = workshop.command(["save", "-p", &subject.pid().to_string(), "--files", "2", "--json"]);
    save.args(options).arg("-d").arg(subject.folder.join(image));
    let saved = process::run(save, &subject.folder, "save")?;
    saved.expect_code("save", 0)?;
    pause(&saved.output)
}

/// Captures a program that changes its files at random moments meanwhile; then it is killed, its files are spoilt, and each image resumed.
fn changed(workshop: &Workshop, way: &str, processes: u64, options: &[&str]) -> Result<()> {
    let mut random = Random::new(processes);
    let mut subject =
        start(workshop, &format!("ahead-{way}-{processes}{}", options.concat()), way, processes)?;
    let begun = Instant::now();
    save(workshop, &subject, "image-0", options)?;
    let long = u64::try_from(begun.elapsed().as_millis())?;
    for capture in 1..=CAPTURES {
        std::thread::sleep(QUIET);
        for process in 0..processes {
            let moment = random.below(long);
            let change = subject.folder.join(format!("change-{process}"));
            fs::write(change.with_extension("new"), moment.to_string())?;
            fs::rename(change.with_extension("new"), change)?;
        }
        save(workshop, &subject, &format!("image-{capture}"), options)?;
        let waits = || (0..processes).any(|one| subject.folder.join(format!("change-{one}")).exists());
        process::await_some(PATIENCE, || (!waits()).then_some(())).context("it changes nothing")?;
        // The last one that was asked may still wait for its moment.
        std::thread::sleep(Duration::from_millis(long));
    }
    subject.end();
    process::nothing_left(&[], Duration::from_secs(5))?;
    for capture in 0..=CAPTURES {
        resumed(workshop, &subject, &format!("image-{capture}"), processes)
            .with_context(|| format!("capture {capture}"))?;
    }
    process::nothing_left(&[], Duration::from_secs(5))
}

/// Spoils its files, resumes it, lets it compare them.
fn resumed(workshop: &Workshop, subject: &Subject, image: &str, processes: u64) -> Result<()> {
    subject.rewind()?;
    for process in 0..processes {
        fs::write(subject.folder.join(format!("state-{process}")), "spoilt")?;
    }
    let mut resume = workshop.command(["resume", "-o", "-d"]);
    resume.arg(subject.folder.join(image)).current_dir(&subject.folder);
    let resumed = Running::start(resume, &subject.folder, "resume")?;
    subject.go()?;
    let finished = resumed.finish(PATIENCE).context("resume -o")?;
    subject.expect_pass(finished.status, &finished.errors)
}

/// The shortest of some pauses.
fn shortest(workshop: &Workshop, way: &str) -> Result<Duration> {
    let mut subject = start(workshop, &format!("ahead-{way}"), way, 1)?;
    let mut shortest = Duration::MAX;
    for _ in 0..PAUSES {
        shortest = shortest.min(save(workshop, &subject, "image", &[])?);
        fs::remove_dir_all(subject.folder.join("image"))?;
    }
    subject.pass()?;
    Ok(shortest)
}

fn quiet(workshop: &Workshop) -> Result<()> {
    let (busy, quiet) = (shortest(workshop, "busy")?, shortest(workshop, "quiet")?);
    println!("         changed all the time: {busy:.1?}; by nobody: {quiet:.1?}");
    ensure!(quiet < busy / 3, "{quiet:?} with a file that nobody changes, {busy:?} with one that is changed");
    Ok(())
}
