//! Programs with `/dev/tty` open get the terminal of `resume`; where that has none, they are not resumed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{self, PATIENCE, Running};
use crate::report::{Report, Skip};
use crate::subject::save_command;
use crate::workshop::Workshop;

const SOON: Duration = Duration::from_secs(5);
/// What the program has said when it is ready, and when it has passed.
const SAID: (&str, &str) = ("READY\n", "READY\nPASS\n");

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test("/dev/tty open in a program of a shell", || open(workshop, "tty-member", "; true"));
    report.test("/dev/tty open in the leader of a session", || open(workshop, "tty-leader", ""));
}

fn open(workshop: &Workshop, name: &str, after: &str) -> Result<()> {
    let folder = workshop.folder(name)?;
    let program = workshop.compile("tty", &[])?;
    let exec = if after.is_empty() { "exec " } else { "" };
    let go = folder.join("go");
    let line = format!("{exec}{} {} < /dev/null > said 2> /dev/null{after}", program.display(), go.display());
    let first = in_terminal(&folder, &line, "first")?;
    let said = || fs::read_to_string(folder.join("said")).unwrap_or_default();
    let ready = process::await_some(PATIENCE, || (said() == SAID.0).then_some(()));
    ready.context("the program never said READY")?;
    let pid = fs::read_to_string(folder.join("pid"))?.trim().parse()?;
    let image = folder.join("image");
    let mut save = save_command(workshop, pid, &image);
    save.arg("--kill");
    process::run(save, &folder, "save")?.expect_code("save", 0)?;
    first.finish(PATIENCE).context("the terminal of the program")?;

    let mut resume = workshop.command(["resume", "-d"]);
    resume.arg(&image);
    // A session of its own has no terminal, whatever ours has.
    let mut without = Command::new("setsid");
    without.arg("--wait").arg(resume.get_program()).args(resume.get_args());
    let refused = process::run(without, &folder, "resume")?;
    refused.expect_code("resume", 125)?;
    refused.expect_words("resume", &["resume in a terminal"])?;
    process::nothing_left(&[], SOON)?;

    fs::write(&go, "")?;
    let rewake = PathBuf::from(resume.get_program());
    let line = format!("{} resume -d {} < /dev/null > woken 2>&1", rewake.display(), image.display());
    in_terminal(&folder, &line, "second")?.finish(PATIENCE).context("the terminal of resume")?;
    let woken = fs::read_to_string(folder.join("woken")).unwrap_or_default();
    ensure!(said() == SAID.1, "the program said {:?}, resume {woken:?}", said());
    let seen = fs::read_to_string(folder.join("second.log"))?;
    ensure!(seen.contains("after"), "nothing came out of the terminal of resume: {seen:?}");
    process::nothing_left(&[], SOON)
}

/// A shell with a terminal of its own, which writes down what comes out of it.
fn in_terminal(folder: &Path, line: &str, name: &str) -> Result<Running> {
    let mut script = Command::new("script");
    script.args(["-qec", line, &format!("{name}.log")]).current_dir(folder).stdin(Stdio::null());
    Running::start(script, folder, name)
        .map_err(|error| Skip(format!("no program script(1) here: {error:#}")).into())
}
