//! Images of other machines and of other versions: refused by name, before anything is created.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rewake_image::Image;

use super::refusals::start;
use crate::edit;
use crate::process::{self, PATIENCE, Running};
use crate::report::Report;
use crate::subject::Subject;
use crate::workshop::Workshop;

const SOON: Duration = Duration::from_secs(5);

/// What is changed in the image, how, and words of the refusal, all of which must be there.
type Case = (&'static str, fn(&mut Image), &'static [&'static str]);

const CASES: &[Case] = &[
    ("a CPU with a feature more", one_more_feature, &["cpu", "lacks", "time_travel", "remedy"]),
    ("a CPU with another xsave layout", another_layout, &["cpu", "lacks", "xsave state component 2"]),
    ("a machine with larger pages", larger_pages, &["page size 16384"]),
    ("a machine of another architecture", another_architecture, &["architecture", "aarch64"]),
];

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    for (name, change, words) in CASES {
        report.test(&format!("image of {name} is refused"), || {
            let subject = captured(workshop, name)?;
            edit::image(&subject.image(), change)?;
            refused_before_anything(workshop, &subject, words)
        });
    }
    report.test("a host that was started anew is told of, unless clocks are kept", || started_anew(workshop));
    report.test("image of a newer version is refused", || {
        let subject = captured(workshop, "newer")?;
        edit::format_version(&subject.image(), 2)?;
        refused_before_anything(workshop, &subject, &["newer", "format 2", "remedy"])
    });
}

fn captured(workshop: &Workshop, name: &str) -> Result<Subject> {
    let mut subject = start(workshop, name, "busy", &["1"])?;
    subject.save_and_kill(workshop)?;
    Ok(subject)
}

/// `resume` says all of these words and ends with 125, and at no time is there a process of the image's id.
fn refused_before_anything(workshop: &Workshop, subject: &Subject, words: &[&str]) -> Result<()> {
    let mut running = Running::start(subject.resume_command(workshop), &subject.folder, "resume")?;
    let ended = process::await_some(PATIENCE, || {
        let appeared = process::glimpse(subject.pid()).is_some();
        (appeared || running.child.try_wait().ok().flatten().is_some()).then_some(appeared)
    });
    let finished = running.finish(PATIENCE)?;
    ensure!(!ended.context("resume does not end")?, "a process was created");
    finished.expect_code("resume", 125)?;
    for word in words {
        finished.expect_words("resume", &[word])?;
    }
    process::nothing_left(&[], SOON)
}

fn started_anew(workshop: &Workshop) -> Result<()> {
    const WORDS: &str = "CLOCK_MONOTONIC";
    let subject = captured(workshop, "started-anew")?;
    edit::image(&subject.image(), |image| {
        image.manifest.host.iter_mut().for_each(|host| "another-start".clone_into(&mut host.boot_id));
    })?;
    for (clock, told) in [("go", true), ("keep", false)] {
        let mut command = subject.resume_command(workshop);
        command.args(["--on-changed", "as-is", "--clock", clock]);
        let resumed = Running::start(command, &subject.folder, "resume")?;
        subject.go()?;
        let finished = resumed.finish(PATIENCE)?;
        subject.expect_pass(finished.status, &finished.errors).context(clock)?;
        ensure!(finished.errors.contains(WORDS) == told, "--clock {clock}: {}", finished.errors);
        subject.rewind()?;
    }
    process::nothing_left(&[], SOON)
}

fn one_more_feature(image: &mut Image) {
    image.manifest.cpu.iter_mut().for_each(|cpu| cpu.features.push("time_travel".to_owned()));
}

/// Component 2 is the upper half of the AVX registers; a program that uses them knows where they were saved only through the kernel.
fn another_layout(image: &mut Image) {
    for part in image.manifest.cpu.iter_mut().flat_map(|cpu| &mut cpu.components) {
        if part.index == 2 {
            part.offset -= 64;
        }
    }
    for thread in &mut image.processes[0].threads {
        thread.xstate[512] |= 1 << 2;
    }
}

fn larger_pages(image: &mut Image) {
    image.manifest.page_size = 16384;
}

fn another_architecture(image: &mut Image) {
    image.manifest.host.iter_mut().for_each(|host| "aarch64".clone_into(&mut host.architecture));
}
