//! Checkpoints at bad moments: before `main`, while the program ends, in handlers on small stacks, while children are made and other
//! programs begin, and asked for by many at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::killed::all_whole;
use crate::process::{self, PATIENCE, Running};
use crate::report::{Report, Skip};
use crate::subject::{Inside, Subject};

/// Who ask at once, how often each, and signals of each in between.
const SENDERS: usize = 20;
const REQUESTS: usize = 2;
const SIGNALS: usize = 10;

/// Variants of the program, and what they are about.
const MOMENTS: &[(&str, &str)] = &[
    ("exit", "a checkpoint in a function of atexit"),
    ("destructor", "a checkpoint in a destructor"),
    ("small", "a checkpoint in a handler on a small alternate stack"),
    ("forks", "children that are made in the midst of checkpoints"),
    ("execs", "checkpoints of a program that becomes another one"),
];

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    for (variant, what) in MOMENTS {
        report.test(what, || {
            let program = bench.workshop.compile("moments", &[])?;
            let (inside, mut subject) = bench.start(&format!("moments {variant}"), &program, &[variant])?;
            inside.prove(&mut subject, bench.workshop)
        });
    }
    report.test("the signal in a library that begins before this one, blocked by the starter", || {
        early(bench, true)
    });
    report.test("the signal in a library that begins after this one", || early(bench, false));
    report.test("signals that come during a checkpoint are one", || coalesced(bench));
    report.test("twenty who ask at once, by ckpt and by kill", || senders(bench));
}

/// Asked for before `main`; then recovered, which goes on in the middle of that library's start.
fn early(bench: &Bench<'_>, before: bool) -> Result<()> {
    let program = bench.workshop.compile("moments", &[])?;
    let other = bench.workshop.compile("library/early", &["-shared", "-fPIC"])?;
    let folder = bench.workshop.folder(if before { "early before" } else { "early after" })?;
    let inside = if before {
        let blocked = ["env", "--block-signal=34"].map(str::to_owned).to_vec();
        let known = Command::new("env").args(["--block-signal=34", "true"]).status().context("env")?;
        if !known.success() {
            return Err(Skip("env cannot block signals".into()).into());
        }
        let waits = ["env".to_owned(), "EARLY_WAITS=1".to_owned()];
        // Of two, the last one begins first.
        Inside::new(&bench.library, &program, &folder).with(&other).within([&blocked[..], &waits].concat())
    } else {
        let both = PathBuf::from(format!("{}:{}", other.display(), bench.library.display()));
        Inside::new(&both, &program, &folder)
    };
    let mut subject = Subject::start_inside(&inside, bench.workshop, &["early"], folder)?;
    let made = process::await_some(PATIENCE, || inside.store().join("latest").exists().then_some(()));
    made.context("no image of what was asked for before main")?;
    process::signal(subject.pid(), rustix::process::Signal::KILL);
    subject.wait_for_end()?;
    fs::write(subject.folder.join("program.out"), "")?;
    inside.recover_and_pass(&subject, bench.workshop)
}

/// A program of one thread: the kernel keeps each of the signals.
fn coalesced(bench: &Bench<'_>) -> Result<()> {
    let program = bench.workshop.compile("moments", &[])?;
    let (inside, mut subject) = bench.start("coalesced", &program, &["early"])?;
    let pid = subject.pid().to_string();
    let many = [["-34"].as_slice(), &[pid.as_str(); 500]].concat();
    ensure!(Command::new("kill").args(&many).status().context("kill")?.success(), "it is gone");
    inside.save(&mut subject)?;
    // Whatever is asked for by now is served when this one is.
    let mut command = bench.workshop.command(["ckpt", &pid]);
    command.arg("--json");
    process::run(command, &subject.folder, "ckpt")?.expect_code("ckpt", 0)?;
    let images = fs::read_dir(inside.store())?.count();
    // Some may come before the first of them is taken.
    ensure!(images < 50, "{images} images of 500 signals");
    inside.prove(&mut subject, bench.workshop)
}

/// Each is answered, and whole images are all there is.
fn senders(bench: &Bench<'_>) -> Result<()> {
    let program = bench.workshop.compile("endure", &[])?;
    let (inside, mut subject) = bench.start("senders", &program, &["malloc"])?;
    let pid = subject.pid();
    let (inside_now, folder) = (&inside, &subject.folder);
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..SENDERS)
            .map(|sender| scope.spawn(move || asks(bench, inside_now, folder, pid, sender)))
            .collect();
        started.into_iter().map(|one| one.join().expect("a sender panicked")).collect()
    });
    outcomes.into_iter().collect::<Result<()>>()?;
    all_whole(bench, &inside)?;
    let images = fs::read_dir(inside.store())?.count();
    ensure!(images > SENDERS * REQUESTS, "each ckpt has an image of its own: {images} entries of the store");
    ensure!(subject.lives(), "it ended");
    inside.live_on(&mut subject, bench.workshop)?;
    subject.pass()
}

fn asks(bench: &Bench<'_>, inside: &Inside, folder: &Path, pid: u32, sender: usize) -> Result<()> {
    for request in 0..REQUESTS {
        for _ in 0..SIGNALS {
            inside.ask(pid)?;
        }
        let mut command = bench.workshop.command(["ckpt", &pid.to_string()]);
        command.args(["--timeout", "120"]);
        let asking = Running::start(command, folder, &format!("ckpt-{sender}-{request}"))?;
        asking.finish(PATIENCE)?.expect_code("ckpt", 0)?;
    }
    Ok(())
}
