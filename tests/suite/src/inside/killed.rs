//! Somebody is killed at any instant: the program, the copy of it that writes the image, the companion of one that is being recovered.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::{Bench, forget_old};
use crate::process::{self, PATIENCE};
use crate::random::Random;
use crate::report::Report;
use crate::subject::{Inside, Subject};

/// How often somebody is shot at.
const SHOTS: u32 = 100;
/// The longest time before a shot, in microseconds.
const LONGEST: u64 = 25_000;
/// Recoveries whose companion is shot at, and how many of them must be hit in time.
const COMPANIONS: u32 = 40;
const HITS: u32 = 3;
/// About how long one works, in microseconds.
const WORK: u64 = 1_000;
/// Time for those who have nothing more to do.
const LEAVING: Duration = Duration::from_secs(10);

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    report.measured("100 shots at a program and its copy while images are made", || shots(bench));
    report.measured("a companion of a recovery that is killed", || companions(bench));
}

/// Those who work for a program, or are left of it: orphans of its name that are ours now.
fn helpers(subject: &Subject) -> Vec<u32> {
    let named = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        *pid != subject.pid() && name.trim() == "endure"
    };
    process::adopted().into_iter().filter(named).collect()
}

/// Every image of the store is whole, and `latest` leads to one.
pub(super) fn all_whole(bench: &Bench<'_>, inside: &Inside) -> Result<()> {
    ensure!(inside.store().join("latest").join("records").exists(), "latest leads nowhere");
    for entry in fs::read_dir(inside.store()).context("the store")?.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.parse::<u64>().is_ok()) {
            let mut command = bench.workshop.command(["verify"]);
            command.arg(entry.path());
            let done = command.output().context("verify")?;
            ensure!(
                done.status.success(),
                "{}: {}",
                entry.path().display(),
                String::from_utf8_lossy(&done.stderr)
            );
        }
    }
    Ok(())
}

fn shots(bench: &Bench<'_>) -> Result<String> {
    let program = bench.workshop.compile("endure", &[])?;
    let (inside, mut subject) = bench.start("shots", &program, &["malloc"])?;
    inside.save(&mut subject)?;
    let mut random = Random::new(34);
    let (mut programs, mut copies) = (0, 0);
    for shot in 1..=SHOTS {
        inside.ask(subject.pid())?;
        std::thread::sleep(Duration::from_micros(random.below(LONGEST)));
        if random.below(2) == 0 {
            programs += 1;
            inside.live_on(&mut subject, bench.workshop).with_context(|| format!("shot {shot}"))?;
        } else {
            for copy in helpers(&subject) {
                copies += 1;
                process::signal(copy, Signal::KILL);
            }
        }
        process::nothing_left(&[subject.pid()], LEAVING).with_context(|| format!("shot {shot}"))?;
        all_whole(bench, &inside).with_context(|| format!("shot {shot}"))?;
        forget_old(inside.store())?;
        ensure!(subject.lives(), "it ended after shot {shot}");
    }
    ensure!(programs > 0 && copies > 0, "{programs} programs and {copies} copies were hit");
    subject.pass()?;
    process::nothing_left(&[], LEAVING)?;
    Ok(format!("{programs} programs, {copies} copies hit"))
}

/// Kills the companion some time after it is seen: whether the program is recovered nevertheless, or has ended.
fn hunt(inside: &Inside, subject: &mut Subject, later: Duration) -> Option<bool> {
    let end = Instant::now() + PATIENCE;
    let mut seen = None;
    while Instant::now() < end {
        let companions = helpers(subject);
        if !companions.is_empty() && seen.get_or_insert_with(Instant::now).elapsed() >= later {
            companions.into_iter().for_each(|companion| process::signal(companion, Signal::KILL));
        }
        if inside.catches(subject) {
            return Some(true);
        }
        if !subject.lives() {
            return Some(false);
        }
        // It works for a millisecond or two: who pauses between two looks misses it.
    }
    None
}

fn companions(bench: &Bench<'_>) -> Result<String> {
    let program = bench.workshop.compile("endure", &[])?;
    let (inside, mut subject) = bench.start("companions", &program, &["malloc"])?;
    inside.save(&mut subject)?;
    let mut random = Random::new(125);
    let mut hits = 0;
    for turn in 1..=COMPANIONS {
        process::signal(subject.pid(), Signal::KILL);
        subject.wait_for_end()?;
        inside.begin_again(&mut subject, bench.workshop)?;
        let later = Duration::from_micros(if turn % 2 == 0 { 0 } else { random.below(WORK) });
        let outcome = hunt(&inside, &mut subject, later);
        match outcome {
            Some(true) => {}
            Some(false) => {
                hits += 1;
                let status = subject.wait_for_end()?;
                ensure!(
                    status.code() == Some(125),
                    "turn {turn}: it ended with {}",
                    process::describe(status)
                );
                let said = fs::read_to_string(subject.folder.join("recover.err")).unwrap_or_default();
                ensure!(said.contains("=recover has failed"), "turn {turn}: it said '{}'", said.trim());
            }
            None => bail!("turn {turn}: neither is it recovered nor has it ended"),
        }
        process::nothing_left(&[subject.pid()], LEAVING)?;
    }
    ensure!(hits >= HITS, "only {hits} companions of {COMPANIONS} were hit in time");
    inside.live_on(&mut subject, bench.workshop)?;
    subject.pass()?;
    Ok(format!("{hits} of {COMPANIONS} hit in time"))
}
