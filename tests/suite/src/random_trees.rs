//! Trees that chance made, captured and resumed: what the kernel tells of them is the same as before.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use rustix::process::Signal;

use crate::process::{self, PATIENCE, Running};
use crate::report::Report;
use crate::subject::Subject;
use crate::workshop::Workshop;

/// Trees of one test, and tests.
const TREES: u64 = 20;
const TESTS: u64 = 3;
const SEED: &str = "REWAKE_TREE_SEED";

/// Runs all; the seed of a tree that failed, given in the environment, makes it alone.
pub fn run(workshop: &Workshop, report: &mut Report) {
    if let Some(seed) = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()) {
        report.measured(&format!("random tree {seed}"), || all(workshop, seed..seed + 1));
        return;
    }
    for test in 0..TESTS {
        let seeds = test * TREES..(test + 1) * TREES;
        let name =
            format!("random trees {} to {}: as they were, by /proc and kcmp", seeds.start, seeds.end - 1);
        report.measured(&name, || all(workshop, seeds.clone()));
    }
}

fn all(workshop: &Workshop, seeds: std::ops::Range<u64>) -> Result<String> {
    let print = workshop.compile("fingerprint", &[])?;
    let mut processes = 0;
    for seed in seeds {
        processes += one(workshop, &print, seed).with_context(|| format!("tree of {SEED}={seed}"))?;
    }
    Ok(format!("{processes} processes"))
}

/// How many processes it had.
fn one(workshop: &Workshop, print: &Path, seed: u64) -> Result<usize> {
    let program = workshop.compile("tree_random", &[])?;
    let folder = workshop.folder(&format!("tree-{seed}"))?;
    let mut subject = Subject::start(&program, &[&seed.to_string()], folder)?;
    let before = fingerprint(print, subject.pid())?;
    fs::write(subject.folder.join("before"), &before).context("noting what it was")?;
    let saved = subject.save_and_kill(workshop);
    if saved.is_err() {
        process::kill_tree(subject.pid());
        subject.end();
        process::nothing_left(&[], Duration::from_secs(5))?;
    }
    saved?;
    let mut running = Running::start(subject.resume_command(workshop), &subject.folder, "resume")?;
    let told = subject.folder.join("resume.err");
    let woken = process::await_some(PATIENCE, || {
        let over = running.child.try_wait().ok().flatten().is_some();
        let woken = fs::read_to_string(&told).is_ok_and(|told| told.contains("woke "));
        (woken || over).then_some(woken)
    });
    let after = fingerprint(print, subject.pid());
    // Not stopped before: `resume` would stop with it.
    process::tree(subject.pid()).into_iter().for_each(|pid| process::signal(pid, Signal::KILL));
    let ended = running.finish(PATIENCE)?;
    process::nothing_left(&[], Duration::from_secs(5))?;
    ensure!(woken == Some(true), "it does not wake: {}", ended.errors);
    same(&before, &after?)?;
    Ok(before.lines().filter(|line| line.starts_with("process")).count())
}

fn fingerprint(print: &Path, pid: u32) -> Result<String> {
    let told = Command::new(print).arg(pid.to_string()).output().context("fingerprint")?;
    ensure!(told.status.success(), "fingerprint: {}", String::from_utf8_lossy(&told.stderr));
    String::from_utf8(told.stdout).context("fingerprint")
}

fn same(before: &str, after: &str) -> Result<()> {
    let lines = before.lines().zip(after.lines().chain(std::iter::repeat("")));
    let differing = lines
        .filter(|(before, after)| before != after)
        .map(|(before, after)| format!("was {:?}, is {:?}", before.trim(), after.trim()));
    let differing: Vec<String> = differing.take(3).collect();
    ensure!(
        differing.is_empty() && before.lines().count() == after.lines().count(),
        "{}",
        differing.join("; ")
    );
    Ok(())
}
