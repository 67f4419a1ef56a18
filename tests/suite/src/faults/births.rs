//! Processes on their way into being: by vfork, posix_spawn and system(), by execve in a process of several threads. Each kind is captured
//! many times in a row; one that does not come to its end is named.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process;
use crate::report::Report;
use crate::subject::{Subject, save_command};
use crate::workshop::Workshop;

const TIMES: u32 = 50;
/// Of these so many may be refused, by a clear word: there is no limit to how fast a program may change.
const REFUSALS: u32 = 5;
const KINDS: [&str; 6] = ["system", "spawn", "vfork", "threads", "shells", "rebirths"];

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    for kind in KINDS {
        report
            .test(&format!("births by {kind} captured {TIMES} times in a row"), || captured(workshop, kind));
    }
    report.test("a vfork child that does not end is refused by name", || stuck(workshop));
}

fn captured(workshop: &Workshop, kind: &str) -> Result<()> {
    let program = workshop.compile("tree_spawn", &[])?;
    let mut subject = Subject::start(&program, &[kind], workshop.folder(&format!("births-{kind}"))?)?;
    let mut refused = 0;
    for time in 1..=TIMES {
        if subject.image().exists() {
            fs::remove_dir_all(subject.image()).context("removing the image")?;
        }
        let command = save_command(workshop, subject.pid(), &subject.image());
        let ended = process::run(command, &subject.folder, "save")?;
        ensure!(subject.lives(), "it ended with capture {time}: {:?}", subject.said());
        if !ended.status.success() {
            ended.expect_code("save", 1)?;
            println!("         capture {time}: {}", ended.errors.trim());
            refused += 1;
        }
    }
    ensure!(refused <= REFUSALS, "{refused} of {TIMES} captures were refused");
    subject.pass().context("left running")?;
    subject.end();
    process::nothing_left(&[], Duration::from_secs(5))
}

fn stuck(workshop: &Workshop) -> Result<()> {
    let program = workshop.compile("tree_spawn", &[])?;
    let mut subject = Subject::start(&program, &["stuck"], workshop.folder("births-stuck")?)?;
    let command = save_command(workshop, subject.pid(), &subject.image());
    let ended = process::run(command, &subject.folder, "save")?;
    ended.expect_code("save", 1)?;
    ended.expect_words("save", &["waits for its vfork child", "remedy: "])?;
    ensure!(!subject.image().exists(), "refused, but an image is left");
    subject.pass().context("after the refusal")?;
    subject.end();
    process::nothing_left(&[], Duration::from_secs(5))
}
