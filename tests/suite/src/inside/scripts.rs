//! Scripts: the library is preloaded into their interpreter, and it is the script that counts.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::Bench;
use crate::account::give_to_owner_of;
use crate::process;
use crate::report::{Report, Skip};
use crate::subject::{Inside, Subject};

const INTERPRETER: &str = "/usr/bin/python3";
/// Says READY, counts until it may go on, and says PASS if it is the one it was.
const SOURCE: &str = "import os, sys, time
mine, count = NAME, 0
print('READY', flush=True)
while not os.path.exists(sys.argv[1]):
    count += 1
    time.sleep(0.005)
print('PASS' if mine == NAME and os.path.basename(os.getcwd()) == mine else 'FAIL: ' + mine, flush=True)
";

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    report.test("two scripts that share a store", || share_a_store(bench));
    report.test("a script whose interpreter env finds", || found_by_env(bench));
    report.test("a script that was never captured", || never_captured(bench));
}

fn script(folder: &Path, name: &str) -> Result<PathBuf> {
    script_of(folder, name, INTERPRETER)
}

fn script_of(folder: &Path, name: &str, interpreter: &str) -> Result<PathBuf> {
    if !Path::new(INTERPRETER).exists() {
        return Err(Skip(format!("there is no {INTERPRETER}")).into());
    }
    let path = folder.join("job.py");
    fs::write(&path, format!("#!{interpreter}\n{}", SOURCE.replace("NAME", &format!("{name:?}"))))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    give_to_owner_of(folder, &path)?;
    Ok(path)
}

/// The first one is recovered, though the second was captured later.
fn share_a_store(bench: &Bench<'_>) -> Result<()> {
    let store = bench.workshop.folder("store of scripts")?.join("store");
    let start = |name: &str| -> Result<(Inside, Subject)> {
        let folder = bench.workshop.folder(name)?;
        let inside = Inside::new(&bench.library, &script(&folder, name)?, &folder).storing_in(&store);
        let mut subject = Subject::start_inside(&inside, bench.workshop, &[], folder)?;
        inside.save(&mut subject)?;
        Ok((inside, subject))
    };
    let ((first, mut one), (second, mut other)) = (start("first-script")?, start("second-script")?);
    for subject in [&mut one, &mut other] {
        process::signal(subject.pid(), Signal::KILL);
        subject.wait_for_end()?;
    }
    for (inside, subject) in [(first, &mut one), (second, &mut other)] {
        inside.live_on(subject, bench.workshop).context("recovering")?;
        subject.pass()?;
    }
    Ok(())
}

/// The library is in `env` too, which is given the same words.
fn found_by_env(bench: &Bench<'_>) -> Result<()> {
    let folder = bench.workshop.folder("env-script")?;
    let script = script_of(&folder, "env-script", "/usr/bin/env python3")?;
    let inside = Inside::new(&bench.library, &script, &folder);
    let mut subject = Subject::start_inside(&inside, bench.workshop, &[], folder)?;
    inside.save(&mut subject)?;
    process::signal(subject.pid(), Signal::KILL);
    subject.wait_for_end()?;
    inside.live_on(&mut subject, bench.workshop).context("recovering")?;
    subject.pass()
}

/// It is not started anew, nor is another one recovered.
fn never_captured(bench: &Bench<'_>) -> Result<()> {
    let folder = bench.workshop.folder("captured-script")?;
    let inside = Inside::new(&bench.library, &script(&folder, "captured-script")?, &folder);
    let mut subject = Subject::start_inside(&inside, bench.workshop, &[], folder.clone())?;
    inside.save(&mut subject)?;
    let other = bench.workshop.folder("never-captured")?;
    let its =
        Inside::new(&bench.library, &script(&other, "never-captured")?, &other).storing_in(inside.store());
    let mut command = its.command(bench.workshop);
    command.arg("=recover").current_dir(&other);
    let finished = process::run(command, &other, "recover")?;
    finished.expect_code("=recover", 125)?;
    finished.expect_words("=recover", &["is an image of", "job.py", "name the image"])?;
    ensure!(!finished.output.contains("READY"), "it was started anew");
    subject.pass()
}
