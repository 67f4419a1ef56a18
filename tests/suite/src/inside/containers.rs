//! Programs in containers: their first process, and ids of threads that are as small as everyday numbers.

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::Bench;
use crate::process::{self, PATIENCE};
use crate::report::{Report, Skip};
use crate::subject::{Inside, Subject};

/// A pid namespace, whose first process the program is.
const CONTAINER: [&str; 5] = ["unshare", "--user", "--pid", "--fork", "--mount-proc"];
const CHECKPOINTS: u32 = 3;

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    report.test("checkpoints of the first process of a container", || first_process(bench));
    report.test("a lock that cannot be told from numbers", || small_ids(bench));
}

fn start(bench: &Bench<'_>, name: &str, call: &[&str]) -> Result<(Inside, Subject, u32)> {
    let mut probe = bench.workshop.program(CONTAINER[0].as_ref());
    let made = probe.args(&CONTAINER[1..]).arg("true").output();
    if !made.is_ok_and(|made| made.status.success()) {
        return Err(Skip("no namespaces can be made here".to_owned()).into());
    }
    let program = bench.workshop.compile(call[0], &[])?;
    let folder = bench.workshop.folder(name)?;
    let wrapped = CONTAINER.map(str::to_owned).to_vec();
    let inside = Inside::new(&bench.library, &program, &folder).within(wrapped);
    let subject = Subject::start_inside(&inside, bench.workshop, &call[1..], folder)?;
    let first = process::children(subject.pid()).first().copied().context("no first process")?;
    Ok((inside, subject, first))
}

/// Who is orphaned in a container is left to its first process: the copies that write images, when that is the program. It takes leave
/// of those that have ended whenever the next checkpoint begins.
fn first_process(bench: &Bench<'_>) -> Result<()> {
    let (inside, mut subject, first) = start(bench, "first process", &["tls"])?;
    let mut ended = Vec::new();
    for number in 1..=CHECKPOINTS {
        inside.ask(first)?;
        let image = inside.store().join(number.to_string()).join("records");
        process::await_some(PATIENCE, || image.exists().then_some(()))
            .with_context(|| format!("checkpoint {number}: {}", said(&subject)))?;
        let left = process::children(first);
        ensure!(
            !left.iter().any(|copy| ended.contains(copy)),
            "copies are left that were not waited for: {left:?} of {ended:?}"
        );
        ended = process::await_some(PATIENCE, || all_ended(first)).context("a copy does not end")?;
    }
    ensure!(!ended.is_empty(), "the copies were not left to the first process of the container");
    process::signal(first, Signal::KILL);
    subject.end();
    Ok(())
}

/// The children of `first`, when all of them have ended.
fn all_ended(first: u32) -> Option<Vec<u32>> {
    let copies = process::children(first);
    let has_ended = |copy: &u32| process::glimpse(*copy).is_none_or(|seen| seen.state == 'Z');
    copies.iter().all(has_ended).then_some(copies)
}

/// Where such words could be a lock or not nothing is recovered, and nothing has run.
fn small_ids(bench: &Bench<'_>) -> Result<()> {
    let (inside, mut subject, first) = start(bench, "small ids", &["locks"])?;
    inside.ask(first)?;
    let image = inside.store().join("1/records");
    process::await_some(PATIENCE, || image.exists().then_some(())).with_context(|| said(&subject))?;
    process::signal(first, Signal::KILL);
    subject.wait_for_end()?;
    let mut command = inside.command(bench.workshop);
    let folder = subject.folder.clone();
    command.arg("=recover").current_dir(&folder);
    let finished = process::run(command, &folder, "recover")?;
    finished.expect_code("=recover", 125)?;
    finished.expect_words("=recover", &["may hold a lock near", "resume -d"])
}

fn said(subject: &Subject) -> String {
    fs::read_to_string(subject.folder.join("program.err")).unwrap_or_default()
}
