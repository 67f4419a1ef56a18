//! Trees that change as fast as they can while they are captured: processes and threads that are born and end, other programs, orphans, and who they are.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process;
use crate::report::Report;
use crate::subject::{Subject, save_command};
use crate::workshop::Workshop;

/// Each kind and how often it is captured in a row.
const KINDS: [(&str, u32); 7] = [
    ("processes", 100),
    ("orphans", 25),
    ("programs", 50),
    ("threads", 100),
    ("both", 25),
    ("identities", 50),
    ("connections", 20),
];
/// Of these so many may be refused, by a clear word: there is no limit to how fast a program may change.
const REFUSALS: u32 = 1;
/// The word that a command uses for what it does not capture.
const REFUSED: &str = "remedy: ";
/// A tree is to be frozen within this time, on a machine that does nothing else.
const FREEZE: Duration = Duration::from_secs(1);

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    for (kind, times) in KINDS {
        report.test(&format!("storm of {kind} captured {times} times in a row"), || {
            captured(workshop, kind, times)
        });
    }
}

fn captured(workshop: &Workshop, kind: &str, times: u32) -> Result<()> {
    let program = workshop.compile("storm", &[])?;
    let mut subject = Subject::start(&program, &[kind], workshop.folder(&format!("storm-{kind}"))?)?;
    let (mut refused, mut slow, mut paused) = (0, 0, Vec::new());
    let mut longest = Duration::ZERO;
    for time in 1..=times {
        let begun = Instant::now();
        let mut command = save_command(workshop, subject.pid(), &subject.image());
        command.arg("--json");
        let ended = process::run(command, &subject.folder, "save")?;
        longest = longest.max(begun.elapsed());
        ensure!(subject.lives(), "it ended with capture {time}: {:?}", subject.said());
        let told = format!("{}{}", ended.output, ended.errors);
        ensure!(!told.contains("not below it any more"), "a member is taken for a stray: {told}");
        if ended.status.success() {
            paused.push(pause(&ended.output)?);
            slow += u32::from(paused.last().is_some_and(|paused| *paused > FREEZE));
            fs::remove_dir_all(subject.image()).context("removing the image")?;
        } else {
            ended.expect_code("save", 1)?;
            ended.expect_words("save", &[REFUSED])?;
            println!("         capture {time}: {}", ended.errors.trim());
            refused += 1;
        }
    }
    paused.sort();
    let (median, worst) = (paused.get(paused.len() / 2).copied(), paused.last().copied());
    println!(
        "         {refused} of {times} refused; paused {:.0?} in the median, {:.0?} at most; longest command {longest:.1?}",
        median.unwrap_or_default(),
        worst.unwrap_or_default()
    );
    ensure!(refused + slow <= REFUSALS, "{refused} of {times} captures were refused, {slow} were slow");
    ensure!(median.is_some_and(|median| median < FREEZE), "frozen for {median:?}");
    subject.pass().context("self-check of the storm at the end")?;
    process::nothing_left(&[], Duration::from_secs(5))
}

/// How long the tree stood still.
pub(super) fn pause(told: &str) -> Result<Duration> {
    let number = told.split_once("\"paused_ms\":").map(|(_, rest)| rest.trim_start());
    let number = number.and_then(|rest| rest.split([',', '\n', '}']).next()).context("the pause")?;
    Ok(Duration::from_secs_f64(number.trim().parse::<f64>()? / 1e3))
}
