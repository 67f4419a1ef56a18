//! System V objects: somebody else's are never taken for the program's, and nothing is left of what a resume made in vain.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::refusals::Mounted;
use crate::edit;
use crate::process::{self, Running};
use crate::random::Random;
use crate::report::Report;
use crate::subject::{Subject, save_command};
use crate::workshop::Workshop;

const SOON: Duration = Duration::from_secs(5);
/// Instants at which `resume` is killed.
const KILLS: u32 = 30;
/// Instants at which `chkpnt` or its guardian are killed, with so many programs, and when the last of them are.
const SHOTS: u32 = 60;
const ROUNDS: u32 = 6;
const SPAN_US: u64 = 60_000;

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report
        .test("a key taken meanwhile is told, and --ipc namespace resumes all the same", || taken(workshop));
    report.test("saved again out of an IPC namespace of its own (--ipc namespace)", || again(workshop));
    report.test(
        &format!(
            "SIGKILL to resume at {KILLS} instants: the next one uses the System V objects that are left"
        ),
        || shot(workshop),
    );
    for (who, front, guardian) in
        [("chkpnt", true, false), ("the guardian", false, true), ("chkpnt and its guardian", true, true)]
    {
        report.test(
            &format!("SIGKILL to {who} at {SHOTS} instants loses no message of POSIX queues, nor news"),
            || shot_at_queues(workshop, front, guardian),
        );
    }
    report.test("a POSIX queue that the program left running still uses is not taken from it", || {
        used(workshop)
    });
    report.test("a restore that fails late leaves no System V object and no queue behind", || late(workshop));
    report.test("an attachment from outside is refused by name", || attached(workshop));
}

fn used(workshop: &Workshop) -> Result<()> {
    let program = workshop.compile("mqueue", &[])?;
    let mut subject = Subject::start(&program, &["messages"], workshop.folder("queue-used")?)?;
    subject.save(workshop)?;
    let mut command = subject.resume_command(workshop);
    command.args(["--pids", "namespace"]);
    let resumed = process::run(command, &subject.folder, "resume")?;
    resumed.expect_code("resume", 125)?;
    resumed.expect_words("resume", &["it is still there, and process", "uses it", "--ipc namespace"])?;
    subject.pass()
}

/// With registers that no processor takes, it fails when everything is made.
fn late(workshop: &Workshop) -> Result<()> {
    let place = workshop.folder("queues")?;
    let _mounted = Mounted::new(&["-t", "mqueue", "mqueue"], &place)?;
    for (name, what) in
        [("sysv", "shm"), ("sysv", "sem"), ("sysv", "msg"), ("mqueue", "messages"), ("mqueue", "unlinked")]
    {
        let before = (objects()?, queues(&place)?);
        let program = workshop.compile(name, &[])?;
        let mut subject =
            Subject::start(&program, &[what], workshop.folder(&format!("late-{name}-{what}"))?)?;
        subject.save_and_kill(workshop)?;
        let left: Vec<Listed> = objects()?.into_iter().filter(|one| !before.0.contains(one)).collect();
        remove(&left)?;
        for queue in queues(&place)?.into_iter().filter(|queue| !before.1.contains(queue)) {
            fs::remove_file(place.join(queue)).context("the queue that it left")?;
        }
        let mut xstate = Vec::new();
        edit::image(&subject.image(), |image| {
            xstate = std::mem::take(&mut image.processes[0].threads[0].xstate);
            image.processes[0].threads[0].xstate = vec![0xff; xstate.len()];
        })?;
        let resumed = subject.resume(workshop)?;
        resumed.expect_code("resume", 125)?;
        process::nothing_left(&[], SOON)?;
        ensure!(!resumed.errors.contains("not a valid image"), "refused before: {}", resumed.errors);
        let after = (objects()?, queues(&place)?);
        ensure!(after == before, "{name} {what}: {after:?} is left, there was {before:?}");
        edit::image(&subject.image(), |image| image.processes[0].threads[0].xstate = xstate)?;
        subject.resume_and_pass(workshop, &[]).with_context(|| format!("{name} {what}"))?;
    }
    Ok(())
}

/// POSIX queues, which are files in this folder.
fn queues(place: &Path) -> Result<Vec<OsString>> {
    let mut names: Vec<_> = fs::read_dir(place)?.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    Ok(names)
}

/// The program has many queues with messages, and is told of every second one: it stands still for that most of the time.
fn shot_at_queues(workshop: &Workshop, front: bool, guardian: bool) -> Result<()> {
    let program = workshop.compile("mqueue", &[])?;
    let mut random = Random::new(7);
    let mut hits = 0;
    for round in 0..ROUNDS {
        let folder = workshop.folder(&format!("queues-shot-{front}-{guardian}-{round}"))?;
        let mut subject = Subject::start(&program, &["many", "60"], folder)?;
        for shot in 0..SHOTS / ROUNDS {
            let image = subject.folder.join(format!("image-{shot}"));
            let command = save_command(workshop, subject.pid(), &image);
            let running = Running::start(command, &subject.folder, "save")?;
            std::thread::sleep(Duration::from_micros(random.below(SPAN_US)));
            let guardians = process::children(running.child.id());
            if guardian {
                guardians.iter().for_each(|pid| process::signal(*pid, Signal::KILL));
            }
            if front {
                process::signal(running.child.id(), Signal::KILL);
            }
            let ended = running.finish(SOON)?;
            hits += u32::from(!ended.status.success());
            process::nothing_left(&[subject.pid()], SOON).with_context(|| format!("shot {shot}"))?;
        }
        subject.pass().with_context(|| format!("after round {round}"))?;
        process::nothing_left(&[], SOON)?;
    }
    ensure!(hits > SHOTS / 10, "only {hits} of {SHOTS} came in time");
    println!("         {hits} of {SHOTS} came in time");
    Ok(())
}

/// An object as `/proc/sysvipc` lists it: `shm`, `sem` or `msg`, id and key.
type Listed = (&'static str, i32, i32);

fn objects() -> Result<Vec<Listed>> {
    let mut objects = Vec::new();
    for kind in ["shm", "sem", "msg"] {
        let text = fs::read_to_string(format!("/proc/sysvipc/{kind}")).context("System V objects")?;
        for line in text.lines().skip(1) {
            let mut numbers = line.split_whitespace().map(str::parse::<i32>);
            if let (Some(Ok(key)), Some(Ok(id))) = (numbers.next(), numbers.next()) {
                objects.push((kind, id, key));
            }
        }
    }
    Ok(objects)
}

fn remove(objects: &[Listed]) -> Result<()> {
    for (kind, id, _) in objects {
        let option = match *kind {
            "shm" => "-m",
            "sem" => "-s",
            _ => "-q",
        };
        let removed = Command::new("ipcrm").args([option, &id.to_string()]).status().context("ipcrm")?;
        ensure!(removed.success(), "ipcrm {option} {id}");
    }
    Ok(())
}

/// A program that was saved and killed, with what it left behind.
fn killed(workshop: &Workshop, what: &str, name: &str) -> Result<(Subject, Vec<Listed>)> {
    let before = objects()?;
    let program = workshop.compile("sysv", &[])?;
    let mut subject = Subject::start(&program, &[what], workshop.folder(name)?)?;
    subject.save_and_kill(workshop)?;
    let left: Vec<Listed> = objects()?.into_iter().filter(|one| !before.contains(one)).collect();
    ensure!(!left.is_empty(), "it left nothing behind");
    Ok((subject, left))
}

fn taken(workshop: &Workshop) -> Result<()> {
    for what in ["msg", "sem", "shm"] {
        let (subject, left) = killed(workshop, what, &format!("ipc-taken-{what}"))?;
        remove(&left)?;
        let (_, _, key) = left.iter().find(|(_, _, key)| *key != 0).context("none has a key")?;
        let program = workshop.compile("sysv", &[])?;
        let folder = workshop.folder(&format!("ipc-taker-{what}"))?;
        let mut taker = Subject::start(&program, &["take", what, &key.to_string()], folder)?;
        let before = objects()?;
        let resumed = subject.resume(workshop)?;
        resumed.expect_code("resume", 125)?;
        resumed.expect_words("resume", &["its key belongs to one with id"])?;
        resumed.expect_words("resume", &["--ipc namespace"])?;
        ensure!(objects()? == before, "something was made or removed: {:?}, was {before:?}", objects()?);
        process::nothing_left(&[taker.pid()], SOON)?;
        subject.resume_and_pass(workshop, &["--ipc", "namespace"])?;
        ensure!(objects()? == before, "something is left outside: {:?}, was {before:?}", objects()?);
        taker.pass()?;
    }
    Ok(())
}

/// What is left is found again, or removed before the next shot.
fn shot(workshop: &Workshop) -> Result<()> {
    let before = objects()?;
    let (subject, left) = killed(workshop, "shm", "ipc-shot")?;
    remove(&left)?;
    for shot in 0..KILLS {
        let running = Running::start(subject.resume_command(workshop), &subject.folder, "resume")?;
        std::thread::sleep(Duration::from_micros(300) * shot);
        process::signal(running.child.id(), Signal::KILL);
        running.finish(SOON).with_context(|| format!("shot {shot}"))?;
        // One that was let go already lives on.
        process::signal(subject.pid(), Signal::KILL);
        process::nothing_left(&[], SOON).with_context(|| format!("shot {shot}"))?;
        let made: Vec<Listed> = objects()?.into_iter().filter(|one| !before.contains(one)).collect();
        ensure!(
            made.iter().all(|one| left.contains(one)),
            "shot {shot}: others are left: {made:?}, not {left:?}"
        );
        if shot % 2 == 1 {
            remove(&made)?;
        }
    }
    subject.resume_and_pass(workshop, &[])?;
    ensure!(objects()? == before, "something is left: {:?}, was {before:?}", objects()?);
    Ok(())
}

/// From outside, twice.
fn again(workshop: &Workshop) -> Result<()> {
    for what in ["shm", "undo", "msg"] {
        let (subject, left) = killed(workshop, what, &format!("ipc-again-{what}"))?;
        remove(&left)?;
        let mut command = subject.resume_command(workshop);
        command.args(["--ipc", "namespace", "--detach"]);
        process::run(command, &subject.folder, "resume")?.expect_code("resume", 0)?;
        fs::remove_dir_all(subject.image()).context("the image before")?;
        let mut save = save_command(workshop, subject.pid(), &subject.image());
        save.arg("--kill");
        process::run(save, &subject.folder, "save")?.expect_code("save", 0)?;
        process::nothing_left(&[], SOON)?;
        subject.resume_and_pass(workshop, &[])?;
    }
    Ok(())
}

fn attached(workshop: &Workshop) -> Result<()> {
    let before = objects()?;
    let program = workshop.compile("sysv", &[])?;
    let mut subject = Subject::start(&program, &["shm"], workshop.folder("ipc-attached")?)?;
    let new = objects()?.into_iter().find(|one| !before.contains(one) && one.0 == "shm" && one.2 != 0);
    let (_, id, _) = new.context("it has no segment")?;
    let folder = workshop.folder("ipc-attached-other")?;
    let mut other = Subject::start(&program, &["attach", &id.to_string()], folder)?;
    let command = save_command(workshop, subject.pid(), &subject.image());
    let saved = process::run(command, &subject.folder, "save")?;
    saved.expect_code("save", 1)?;
    saved.expect_words("save", &["outside of the captured tree has it attached too"])?;
    other.pass()?;
    subject.save(workshop)?;
    subject.pass()
}
