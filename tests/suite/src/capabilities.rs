//! Runs every program of the catalogue three ways: killed by its checkpoint and resumed; left running to its own end,
//! then resumed from the image as well; the same once more with its memory copied while it runs. An ordinary user runs each the first way.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::catalogue::{Probe, SECTIONS};
use crate::huge::HugePages;
use crate::library;
use crate::privileges::{self, Shows};
use crate::process;
use crate::random_trees;
use crate::report::{Outcome, Report, Skip};
use crate::subject::{Inside, Subject, save_command};
use crate::table::Table;
use crate::workshop::Workshop;

/// How the program is captured: it is killed, or goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Killed,
    Left,
    /// The mode is said.
    Stop,
    /// And this one it must be able to be saved in.
    PreCopy,
    /// It may not be able to be copied while it runs; that is said then.
    PreCopyOrRefused,
}

impl Way {
    const fn words(self) -> &'static str {
        match self {
            Self::Killed => "killed, resumed",
            Self::Left => "left running",
            Self::Stop => "left running, stop",
            Self::PreCopy | Self::PreCopyOrRefused => "left running, precopy",
        }
    }

    const fn options(self) -> &'static [&'static str] {
        match self {
            Self::Killed | Self::Left => &[],
            Self::Stop => &["--mode", "stop"],
            Self::PreCopy | Self::PreCopyOrRefused => &["--mode", "precopy"],
        }
    }
}

/// Kernels before it tell too little of what was written to, and what is said where memory cannot be copied ahead.
const PRECOPY_KERNEL: (u32, u32) = (6, 13);
const NO_PRECOPY: &[&str] = &["it cannot be copied while the program runs", "--mode stop"];

/// Time for guardians and the like to leave.
const LEAVING: Duration = Duration::from_secs(3);

/// Runs the group and, when nothing was left out, writes the table.
///
/// # Errors
/// Fails when the table cannot be written.
pub fn run(workshop: &Workshop, report: &mut Report) -> Result<()> {
    let mut table = Table::default();
    // One who is no root runs everything as himself.
    let root = rustix::process::geteuid().is_root();
    let user = if root { Some(workshop.as_user()?) } else { None };
    let library = library::build_for_tests()?.join("libckpt.so");
    for section in SECTIONS {
        for row in section.rows {
            let (mut own, mut users, mut inside) = (Vec::new(), Vec::new(), Vec::new());
            for probe in row.probes {
                let call = [&[probe.call], probe.options].concat().join(" ");
                for way in ways(probe) {
                    let name = format!("{call} ({})", way.words());
                    own.extend(report.measured(&name, || check(workshop, probe, way, &name)));
                }
                if let Some(user) = &user {
                    let name = format!("{call} (user)");
                    users.extend(report.measured(&name, || check_as_user(user, probe, &name)));
                    if probe.modes.contains(&"precopy") {
                        let name = format!("{call} (user, {})", Way::PreCopy.words());
                        users.extend(report.measured(&name, || check(user, probe, Way::PreCopy, &name)));
                    }
                }
                if section.inside && library::apart(probe.call).is_none() && !is_static(probe) {
                    inside.extend(way_inside(report, workshop, user.as_ref(), &library, probe));
                }
            }
            let (by_root, by_user) = if root { (own, users) } else { (Vec::new(), own) };
            table.add(section.title, row, [&by_root, &by_user, &inside]);
        }
    }
    random_trees::run(workshop, report);
    if report.is_whole() { table.write() } else { Ok(()) }
}

/// With the library inside: as an ordinary user; as root what takes a right this way as well, and what he cannot set up.
fn way_inside(
    report: &mut Report,
    workshop: &Workshop,
    user: Option<&Workshop>,
    library: &Path,
    probe: &Probe,
) -> Option<Outcome> {
    let name = format!("{} (library)", [&[probe.call], probe.options].concat().join(" "));
    let user = user.filter(|_| privileges::needed(probe.call).is_none());
    let outcome = report.measured(&name, || check_inside(user.unwrap_or(workshop), library, probe, &name))?;
    if user.is_none() || !matches!(outcome, Outcome::Skipped(_)) {
        return Some(outcome);
    }
    let name = name.replace("(library)", "(library, root)");
    report.measured(&name, || check_inside(workshop, library, probe, &name))
}

/// What each is put through.
fn ways(probe: &Probe) -> Vec<Way> {
    let mut ways = vec![Way::Killed, Way::Left];
    if probe.modes.contains(&"stop") {
        ways.push(Way::Stop);
    }
    // One that stops itself is no different for it.
    if !probe.stops {
        ways.push(if probe.modes.contains(&"precopy") { Way::PreCopy } else { Way::PreCopyOrRefused });
    }
    ways
}

/// A library cannot be loaded into it.
fn is_static(probe: &Probe) -> bool {
    probe.options.iter().any(|option| option.contains("static") || option.contains("musl"))
}

/// With the library inside, which captures it and recovers it.
fn check_inside(workshop: &Workshop, library: &Path, probe: &Probe, name: &str) -> Result<String> {
    let mut words = probe.call.split_whitespace();
    let program = workshop.compile(words.next().context("empty call")?, probe.options)?;
    let library =
        workshop.account().map_or_else(|| Ok(library.to_owned()), |account| account.copy(library))?;
    let folder = workshop.folder(name)?;
    let _pages = probe.call.starts_with("mem_huge").then(|| HugePages::set_aside(&folder));
    let inside = Inside::new(&library, &program, &folder);
    let mut subject = Subject::start_inside(&inside, workshop, &words.collect::<Vec<_>>(), folder)?;
    std::thread::sleep(Duration::from_millis(probe.settle));
    let result = inside.prove(&mut subject, workshop);
    subject.end();
    result.map(|()| String::new())
}

/// As an ordinary user it is killed and resumed, or what he cannot have is refused by name.
fn check_as_user(user: &Workshop, probe: &Probe, name: &str) -> Result<String> {
    match privileges::needed(probe.call) {
        None => check(user, probe, Way::Killed, name),
        Some(privilege) => {
            let (_pages, mut subject) = started(user, probe, name)?;
            let result = match privilege.shows {
                Shows::Refusal => refused(&mut subject, user, privilege.words),
                Shows::Limit => limited(&mut subject, user, privilege.words),
            };
            subject.end();
            result.and(process::nothing_left(&[], LEAVING))?;
            Ok(String::new())
        }
    }
}

/// `save` or `resume` says these words and ends as it must; the program is as it was.
fn refused(subject: &mut Subject, user: &Workshop, words: &str) -> Result<()> {
    let save = save_command(user, subject.pid(), &subject.image());
    let saved = process::run(save, &subject.folder, "save")?;
    if saved.status.code() == Some(1) {
        saved.expect_words("save", &[words])?;
        ensure!(!subject.image().exists(), "refused, but an image is left");
        return subject.pass().context("after the refusal");
    }
    saved.expect_code("save", 0)?;
    subject.end();
    // Should it wake after all, it need not wait.
    subject.go()?;
    let resumed = subject.resume(user)?;
    resumed.expect_code("resume", 125)?;
    resumed.expect_words("resume", &[words])
}

/// The program wakes and finds what is missing.
fn limited(subject: &mut Subject, user: &Workshop, words: &str) -> Result<()> {
    let Err(error) = kill_and_resume(subject, user) else {
        bail!("it has everything: take it out of the list of what takes a right");
    };
    ensure!(format!("{error:#}").contains(words), "{error:#}");
    Ok(())
}

/// The program, ready, and the huge pages it needs.
fn started(workshop: &Workshop, probe: &Probe, name: &str) -> Result<(Option<HugePages>, Subject)> {
    let mut words = probe.call.split_whitespace();
    let program = words.next().context("empty call")?;
    let folder = workshop.folder(name)?;
    let pages = (program == "mem_huge").then(|| HugePages::set_aside(&folder));
    let program = workshop.compile(program, probe.options)?;
    let subject = Subject::start_in(workshop, &program, &words.collect::<Vec<_>>(), folder)?;
    std::thread::sleep(Duration::from_millis(probe.settle));
    Ok((pages, subject))
}

/// What the program measured, if it did: it is in its folder.
fn check(workshop: &Workshop, probe: &Probe, way: Way, name: &str) -> Result<String> {
    let (_pages, mut subject) = started(workshop, probe, name)?;
    let result = match way {
        _ if probe.stops => stopped(&mut subject, workshop, way == Way::Killed),
        Way::Killed => kill_and_resume(&mut subject, workshop),
        _ => leave_running(&mut subject, workshop, way, probe.again),
    };
    subject.end();
    result.and(process::nothing_left(&[], LEAVING))?;
    Ok(fs::read_to_string(subject.folder.join("measured")).unwrap_or_default())
}

fn kill_and_resume(subject: &mut Subject, workshop: &Workshop) -> Result<()> {
    subject.save_and_kill(workshop)?;
    subject.resume_and_pass(workshop, &[])
}

fn leave_running(subject: &mut Subject, workshop: &Workshop, way: Way, again: bool) -> Result<()> {
    if way == Way::PreCopy && kernel_version() < PRECOPY_KERNEL {
        return Err(Skip("memory is copied ahead since Linux 6.13".to_owned()).into());
    }
    let mut save = save_command(workshop, subject.pid(), &subject.image());
    save.args(way.options());
    let saved = process::run(save, &subject.folder, "save")?;
    if way == Way::PreCopyOrRefused && saved.status.code() == Some(1) {
        saved.expect_words("save", NO_PRECOPY)?;
        ensure!(!subject.image().exists(), "refused, but an image is left");
        return subject.pass().context("after the refusal");
    }
    saved.expect_code("save", 0)?;
    std::thread::sleep(Duration::from_millis(20));
    subject.pass().context("left running")?;
    if !again {
        return Ok(());
    }
    subject.rewind()?;
    subject.resume_and_pass(workshop, &["--on-changed", "as-is"]).context("after the original ended")
}

fn kernel_version() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// It stops itself, is captured as it stands, and nobody but us lets it go on.
fn stopped(subject: &mut Subject, workshop: &Workshop, killed: bool) -> Result<()> {
    subject.await_stop().context("before the checkpoint")?;
    if killed {
        subject.save_and_kill(workshop)?;
    } else {
        subject.save(workshop)?;
        subject.await_stop().context("left running")?;
        process::signal(subject.pid(), Signal::CONT);
        subject.pass().context("left running")?;
        subject.rewind()?;
    }
    subject.resume_stopped_and_pass(workshop)
}
