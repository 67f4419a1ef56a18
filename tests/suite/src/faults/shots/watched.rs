//! A program whose memory is watched while it is copied waits for nobody who may stand still: the command is stopped in that time, and
//! the program goes on to map, unmap and move memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::process::{self, PATIENCE, Running};
use crate::report::Report;
use crate::subject::{Subject, save_command};
use crate::workshop::Workshop;

/// So much memory that the command is met while it copies.
const MEGABYTES: &str = "400";
/// How long the command is stopped.
const STOPPED: Duration = Duration::from_secs(2);
/// A call may take no longer, whoever else is at work on this machine: had it waited for the command, it would have taken all that time.
const LONGEST: Duration = Duration::from_millis(400);
const TRIES: u32 = 5;

/// Where `dirty` tells how many rounds of calls it has made, and how long the longest took, in nanoseconds.
const CALLS: u64 = 24;
const LONGEST_CALL: u64 = 32;

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test("chkpnt is stopped while it copies: the program's calls do not wait for it", || {
        stopped(workshop)
    });
}

fn stopped(workshop: &Workshop) -> Result<()> {
    let program = workshop.compile("dirty", &[])?;
    let mut subject = Subject::start(&program, &[MEGABYTES, "2000", "calls"], workshop.folder("watched")?)?;
    let progress = File::options().read(true).write(true).open(subject.folder.join("progress"))?;
    let (mut hits, mut longest, mut calls) = (0, Duration::ZERO, 0);
    for _ in 0..TRIES {
        let mut command = save_command(workshop, subject.pid(), &subject.image());
        command.args(["--mode", "precopy"]);
        let running = Running::start(command, &subject.folder, "save")?;
        let front = running.child.id();
        let watched = process::await_some(Duration::from_secs(1), || is_watched(subject.pid()).then_some(()));
        process::signal(front, Signal::STOP);
        std::thread::sleep(Duration::from_millis(20));
        let before = number(&progress, CALLS)?;
        progress.write_all_at(&[0; 8], LONGEST_CALL)?;
        std::thread::sleep(STOPPED);
        // It may have been met when it was about to end, and the watch with it.
        if watched.is_some() && is_watched(subject.pid()) {
            hits += 1;
            calls += number(&progress, CALLS)? - before;
            longest = longest.max(Duration::from_nanos(number(&progress, LONGEST_CALL)?));
        }
        process::signal(front, Signal::CONT);
        running.finish(PATIENCE)?.expect_code("save, which was stopped", 0)?;
        fs::remove_dir_all(subject.image()).context("removing the image")?;
        ensure!(!is_watched(subject.pid()), "the program's memory is watched after the command");
    }
    ensure!(hits > 0, "in none of {TRIES} tries the command was met while it copied");
    println!("         in {hits} times {STOPPED:?}: {calls} rounds of calls, the longest {longest:.1?}");
    ensure!(calls > 0 && longest < LONGEST, "{calls} rounds of calls; the longest took {longest:?}");
    subject.save_and_kill(workshop)?;
    subject.resume_and_pass(workshop, &["--on-changed", "as-is"])
}

/// A number of the file in which the program tells how it fares.
fn number(progress: &File, at: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    progress.read_exact_at(&mut bytes, at).context("reading the progress file")?;
    Ok(u64::from_ne_bytes(bytes))
}

fn is_watched(pid: u32) -> bool {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    smaps.lines().any(|line| line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "uw"))
}
