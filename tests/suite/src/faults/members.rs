//! Members of a tree that cannot be stopped, or are gone before they could be: an error that names them, and all others go on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::process::{self, Glimpse, PATIENCE, Running};
use crate::report::Report;
use crate::subject::{Subject, save_command};
use crate::workshop::Workshop;

/// Instants at which the root is killed.
const SHOTS: u32 = 60;
const SOON: Duration = Duration::from_secs(5);

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test("a member that waits in the kernel (state D) is named in time, and all go on", || {
        device(workshop)
    });
    report
        .test("a process that left the tree keeps its group: named by the capture and by the resume", || {
            escaped(workshop)
        });
    report.test(&format!("SIGKILL to the root of a tree at {SHOTS} instants of its capture"), || {
        root_killed(workshop)
    });
}

/// It is not below the program any more when its parent has ended.
fn escaped(workshop: &Workshop) -> Result<()> {
    let program = workshop.compile("escaped", &[])?;
    let mut subject = Subject::start(&program, &[], workshop.folder("escaped")?)?;
    let root = subject.pid();
    let escaped = process::children(std::process::id()).into_iter().find(|pid| *pid != root);
    let escaped = escaped.context("the process that left is not this one's child")?;
    let mut command = save_command(workshop, root, &subject.image());
    command.arg("--kill");
    let saved = process::run(command, &subject.folder, "save")?;
    saved.expect_code("save", 0)?;
    saved.expect_words("save", &[&format!("process {escaped} (escaped)"), "not below it any more"])?;
    subject.expect_killed_alone()?;
    let resumed = subject.resume(workshop)?;
    resumed.expect_code("resume", 125)?;
    resumed.expect_words("resume", &[&format!("group that process {escaped}"), "--pids namespace"])?;
    std::fs::write(subject.folder.join("over"), "")?;
    process::nothing_left(&[], SOON)?;
    subject.resume_and_pass(workshop, &[])?;
    process::nothing_left(&[], SOON)
}

/// One that asks a file system which never answers cannot be stopped.
fn device(workshop: &Workshop) -> Result<()> {
    let silent = workshop.compile("silent_files", &[])?;
    let folder = workshop.folder("silent-files")?;
    let mount = folder.join("mount").display().to_string();
    let mut files = Subject::start(&silent, &[&mount], folder)?;
    let tried = member_of_device(workshop, &mount);
    // Whoever still waits is let go by this.
    files.pass().context("taking the files away")?;
    let mut subject = tried?;
    subject.pass().context("the tree at the end")?;
    process::nothing_left(&[], SOON)
}

fn member_of_device(workshop: &Workshop, mount: &str) -> Result<Subject> {
    let program = workshop.compile("tree_device", &[])?;
    let subject = Subject::start(&program, &[mount], workshop.folder("tree-device")?)?;
    match refused_in_time(workshop, &subject) {
        Ok(()) => Ok(subject),
        Err(error) => {
            process::kill_tree(subject.pid());
            Err(error)
        }
    }
}

fn refused_in_time(workshop: &Workshop, subject: &Subject) -> Result<()> {
    let waits = |pid: &u32| process::glimpse(*pid).is_some_and(|seen| seen.state == 'D');
    let member = process::tree(subject.pid()).into_iter().find(waits).context("who waits")?;
    let begun = Instant::now();
    let command = save_command(workshop, subject.pid(), &subject.image());
    let ended = process::run(command, &subject.folder, "save")?;
    let took = begun.elapsed();
    ended.expect_code("save", 1)?;
    let named = format!("pid {member} (thread {member} in state D at fuse");
    ended.expect_words("save", &[&named, "did not stop within 10 s", "remedy: "])?;
    ensure!(took < Duration::from_secs(20), "it took {took:.1?}");
    ensure!(!subject.image().exists(), "an image is left");
    let free = |seen: &Glimpse| seen.tracer == 0 && !matches!(seen.state, 't' | 'T');
    let all_free = || process::threads_of_tree(subject.pid()).iter().all(free).then_some(());
    process::await_some(SOON, all_free).context("some are still held")?;
    Ok(())
}

/// The command may be too late or come to its end before; whatever it says, it says it in words, and those left are free.
fn root_killed(workshop: &Workshop) -> Result<()> {
    let (mut whole, mut failed) = (0, 0);
    let span = measure(workshop)?;
    for shot in 0..SHOTS {
        let delay = span.mul_f64(f64::from(shot % 20) * 1.5 / 20.0);
        let what = || format!("shot {shot}, after {delay:?} of {span:?}");
        if shoot_root(workshop, delay).with_context(what)? {
            whole += 1;
        } else {
            failed += 1;
        }
    }
    println!("         {whole} images were whole, {failed} captures failed");
    ensure!(failed > SHOTS / 10, "the root was hardly ever killed in time");
    Ok(())
}

fn tree(workshop: &Workshop) -> Result<Subject> {
    let program = workshop.compile("tree", &[])?;
    Subject::start(&program, &["children", "20"], workshop.folder("killed-root")?)
}

/// How long an undisturbed capture takes.
fn measure(workshop: &Workshop) -> Result<Duration> {
    let mut subject = tree(workshop)?;
    let begun = Instant::now();
    subject.save(workshop)?;
    let took = begun.elapsed();
    subject.pass()?;
    Ok(took)
}

fn shoot_root(workshop: &Workshop, delay: Duration) -> Result<bool> {
    let mut subject = tree(workshop)?;
    let members = process::tree(subject.pid());
    let command = save_command(workshop, subject.pid(), &subject.image());
    let running = Running::start(command, &subject.folder, "save")?;
    std::thread::sleep(delay);
    process::signal(subject.pid(), Signal::KILL);
    let ended = running.finish(PATIENCE)?;
    let held = |pid: &u32| {
        process::glimpse(*pid).is_some_and(|seen| seen.tracer != 0 || matches!(seen.state, 't' | 'T'))
    };
    let free = process::await_some(SOON, || (!members.iter().any(held)).then_some(()));
    members.iter().for_each(|pid| process::signal(*pid, Signal::KILL));
    subject.end();
    process::nothing_left(&[], SOON)?;
    ensure!(free.is_some(), "some are still held");
    ensure!(!ended.errors.contains("panicked"), "it panics: {}", ended.errors);
    match ended.status.code() {
        Some(0) => ensure!(subject.image().exists(), "no image"),
        Some(1) => {
            ended.expect_words("save", &["rewake save: "])?;
            ensure!(!subject.image().exists(), "an image is left: {}", ended.errors);
        }
        _ => bail!("chkpnt ended with {}: {}", process::describe(ended.status), ended.errors),
    }
    Ok(ended.status.success())
}
