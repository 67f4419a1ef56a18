//! Programs in folders that were removed, where those cannot be made again as they were: they come back elsewhere, and `resume` says
//! so; or not at all, and nothing is left.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::refusals::Mounted;
use crate::process::{self, Running};
use crate::report::{Report, Skip};
use crate::subject::Subject;
use crate::workshop::Workshop;

const SOON: Duration = Duration::from_secs(5);
/// Instants at which `resume` is killed.
const KILLS: u32 = 60;

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test("a removed working folder, and something else is where that was", || {
        elsewhere(workshop, "removed-lost", |subject| {
            fs::remove_dir(subject.folder.join("a"))?;
            Ok(fs::write(subject.folder.join("a"), "")?)
        })
    });
    report.test("a removed working folder, and the user may no longer make it", || {
        elsewhere(&workshop.as_user()?, "removed-closed", |subject| {
            Ok(std::os::unix::fs::chown(subject.folder.join("a"), Some(0), Some(0))?)
        })
    });
    report.test("a removed working folder, and a link leads elsewhere where it was", || linked(workshop));
    report.test(&format!("SIGKILL to resume at {KILLS} instants leaves no removed folder"), || {
        killed(workshop)
    });
    report.test("a restore that fails between two removed folders leaves neither", || half(workshop));
}

fn elsewhere(workshop: &Workshop, name: &str, change: impl Fn(&Subject) -> Result<()>) -> Result<()> {
    let program = workshop.compile("removed", &[])?;
    let mut subject = Subject::start_in(workshop, &program, &["lost"], workshop.folder(name)?)?;
    subject.save_and_kill(workshop)?;
    change(&subject)?;
    subject.go()?;
    let resumed = subject.resume(workshop)?;
    resumed.expect_code("resume", 0)?;
    resumed.expect_words("resume", &["which was removed, comes back as if it had been"])?;
    process::nothing_left(&[], SOON)
}

/// Nothing is made, not for a moment, where the link leads.
fn linked(workshop: &Workshop) -> Result<()> {
    let victim = workshop.folder("removed-victim")?;
    let before = fs::metadata(&victim)?.modified()?;
    elsewhere(workshop, "removed-linked", |subject| {
        fs::remove_dir(subject.folder.join("a"))?;
        Ok(std::os::unix::fs::symlink(&victim, subject.folder.join("a"))?)
    })?;
    ensure!(fs::metadata(&victim)?.modified()? == before, "something was made where the link leads");
    Ok(())
}

/// Whatever `resume` had begun, the process it was making finishes.
fn killed(workshop: &Workshop) -> Result<()> {
    let program = workshop.compile("removed", &[])?;
    let mut subject = Subject::start(&program, &["cwd"], workshop.folder("removed-killed")?)?;
    subject.save_and_kill(workshop)?;
    let mut woken = 0;
    for shot in 0..KILLS {
        let running = Running::start(subject.resume_command(workshop), &subject.folder, "resume")?;
        std::thread::sleep(Duration::from_micros(200) * shot);
        process::signal(running.child.id(), Signal::KILL);
        running.finish(SOON).with_context(|| format!("shot {shot}"))?;
        // One that was let go already lives on.
        if process::glimpse(subject.pid()).is_some_and(|seen| seen.state != 'Z' && seen.tracer == 0) {
            woken += 1;
            process::signal(subject.pid(), Signal::KILL);
        }
        process::nothing_left(&[], SOON).with_context(|| format!("shot {shot}"))?;
        let left: Vec<_> = fs::read_dir(subject.folder.join("a"))?.flatten().collect();
        ensure!(left.is_empty(), "shot {shot}: left: {left:?}");
    }
    ensure!(woken < KILLS, "every program was woken before");
    subject.resume_and_pass(workshop, &[])
}

/// A file system that has room for one more folder, where two are needed.
fn half(workshop: &Workshop) -> Result<()> {
    let outside = workshop.folder("removed-half")?;
    let folder = outside.join("small");
    fs::create_dir(&folder)?;
    let _mounted = Mounted::new(&["-t", "tmpfs", "-o", "size=200m,nr_inodes=200", "tmpfs"], &folder)?;
    let mut subject = Subject::start(&workshop.compile("removed", &[])?, &["cwd"], folder.clone())?;
    subject.save_and_kill(workshop)?;
    let files: Vec<_> = (0..200).map(|number| folder.join(format!("fill-{number}"))).collect();
    let made = files.iter().take_while(|file| fs::write(file, "").is_ok()).count();
    if made == files.len() {
        return Err(Skip("this kernel does not count the files of a tmpfs".to_owned()).into());
    }
    fs::remove_file(&files[0])?;
    let resumed = process::run(subject.resume_command(workshop), &outside, "resume")?;
    resumed.expect_code("resume", 125)?;
    resumed.expect_words("resume", &["mkdirat"])?;
    resumed.expect_words("resume", &["space"])?;
    process::nothing_left(&[], SOON)?;
    let left: Vec<_> = fs::read_dir(folder.join("a"))?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.is_empty(), "left: {left:?}");
    files[1..made].iter().try_for_each(fs::remove_file).context("making room")?;
    subject.resume_and_pass(workshop, &[])
}
