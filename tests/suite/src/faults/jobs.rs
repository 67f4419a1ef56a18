//! What a shell sees of a program that recovers itself: the same process in the foreground of its terminal, and how it ends.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::linked::{compile, folder};
use crate::process::{self, PATIENCE};
use crate::report::{Report, Skip};
use crate::subject::{Inside, Subject};
use crate::workshop::{Workshop, root};

/// What the program is told, what is typed when it waits, and what the shell saw: exit codes, 128 and the signal's number.
const WAYS: &[(&str, &str, &[u8], &str)] = &[
    ("its exit status is the shell's", "exit", b"", "7\n"),
    ("its death by a signal is the shell's", "term", b"", "143\n"),
    ("Ctrl-C ends it", "wait", b"\x03", "130\n"),
    ("Ctrl-Z stops it, fg has it go on", "wait", b"\x1a", "148\n8\n"),
];

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    for (at, (what, told, typed, status)) in WAYS.iter().enumerate() {
        for control in [true, false] {
            // Without job control the shell stops together with it.
            if !control && typed == b"\x1a" {
                continue;
            }
            let shell = if control { "a shell with job control" } else { "a script" };
            report.test(&format!("libckpt: =recover in the foreground of {shell}: {what}"), || {
                job(workshop, &format!("job-{at}-{control}"), control, (told, typed, status))
            });
        }
    }
}

fn job(
    workshop: &Workshop,
    name: &str,
    control: bool,
    (told, typed, status): (&str, &[u8], &str),
) -> Result<()> {
    let folder = folder(workshop, name)?;
    let source = root().join("tests/programs/library/job.c");
    compile(&folder, &format!("gcc -O2 -o job {} libckpt.a cmain.o -ldl -lrt", source.display()))?;
    let inside = Inside::linked(&folder.join("job"), &folder);
    let mut subject = Subject::start_inside(&inside, workshop, &[], folder.clone())?;
    inside.save(&mut subject)?;
    process::signal(subject.pid(), Signal::KILL);
    subject.wait_for_end()?;
    fs::write(folder.join("go"), told)?;
    let mut shell = terminal(&folder, &inside, control)?;
    if !typed.is_empty() {
        let waits = process::await_some(PATIENCE, || folder.join("waits").exists().then_some(()));
        let first = status.split_inclusive('\n').next().unwrap_or_default();
        let heard = || fs::read_to_string(folder.join("status")).is_ok_and(|seen| seen.starts_with(first));
        let typing = waits.context("it never waited").and_then(|()| type_in(&mut shell, typed));
        // What was typed takes its way through the terminal; the program would end before, if it might.
        let typing = typing.and_then(|()| {
            process::await_some(PATIENCE, || heard().then_some(()))
                .context("the shell saw nothing of what was typed")
        });
        fs::write(folder.join("done"), "")?;
        if let Err(error) = typing {
            shell.kill().context("killing the terminal")?;
            return Err(error);
        }
    }
    let ended = process::wait(&mut shell, PATIENCE);
    if ended.is_none() {
        shell.kill().context("killing the terminal")?;
    }
    let seen = fs::read_to_string(folder.join("status")).unwrap_or_default();
    let log = fs::read_to_string(folder.join("terminal.log")).unwrap_or_default();
    ensure!(seen == status, "the shell saw {seen:?}, not {status:?}: {log}");
    ensure!(ended.is_some(), "the shell never ended: {log}");
    Ok(())
}

/// A shell in a terminal of its own that recovers the program. By itself it would end of Ctrl-C as well.
fn terminal(folder: &Path, inside: &Inside, control: bool) -> Result<Child> {
    let store = inside.store().display();
    let line = format!(
        "trap : INT; set {}m; export CKPT_DIRECTORY={store}; ./job =recover; echo $? >> status; [ $(tail -n1 status) != 148 ] || {{ fg; echo $? >> status; }}",
        if control { "-" } else { "+" }
    );
    fs::write(folder.join("recover.sh"), line)?;
    let mut script = Command::new("script");
    script.args(["-qc", "sh recover.sh", "terminal.log"]).current_dir(folder);
    script.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    script.spawn().map_err(|error| Skip(format!("no program script(1) here: {error}")).into())
}

fn type_in(shell: &mut Child, keys: &[u8]) -> Result<()> {
    let mut keyboard = shell.stdin.as_ref().context("its keyboard")?;
    keyboard.write_all(keys).and_then(|()| keyboard.flush()).context("typing")
}
