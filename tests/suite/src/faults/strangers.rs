//! What stands in the way from outside: processes and folders of others, a tracer, ids that are taken, limits that are lower.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::refusals::{fails, start};
use crate::edit;
use crate::process::{self, PATIENCE, Running};
use crate::report::{Report, Skip};
use crate::subject::{Subject, save_command};
use crate::workshop::Workshop;

const SOON: Duration = Duration::from_secs(5);
/// Shorter than `resume` waits for a zombie to be reaped.
const MOMENT: Duration = Duration::from_millis(300);

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test("process of another user is refused", || others_process(workshop));
    report.test("traced process is refused, its tracer named", || traced(workshop));
    report.test("save into a folder of another user", || others_folder(workshop));
    report.test("resume of an image that may not be read", || unreadable(workshop));
    report.test("resume of an image of somebody else, also by root", || somebody_elses(workshop));
    report.test("resume while the pid is a stranger's", || pid_of_a_stranger(workshop));
    report.test("resume while the pid is a zombie's", || pid_of_a_zombie(workshop));
    report.test("resume waits for a zombie to be reaped", || zombie_is_reaped(workshop));
    report.test("resume under a lower hard limit of descriptors", || few_descriptors(workshop));
    report.test("resume of a program with higher hard limits", || lower_limits(workshop));
}

/// The workshop of somebody else than root, who owns what the tests make.
fn another_user(workshop: &Workshop) -> Result<Workshop> {
    if !rustix::process::geteuid().is_root() {
        return Err(Skip("only root can become another user".to_owned()).into());
    }
    workshop.as_user()
}

fn captured(workshop: &Workshop, name: &str) -> Result<Subject> {
    let mut subject = start(workshop, name, "busy", &["1"])?;
    subject.save_and_kill(workshop)?;
    Ok(subject)
}

/// Resuming ends with 125 and all of these words, and leaves nothing.
fn refuses(command: Command, folder: &Path, words: &[&str]) -> Result<()> {
    let ended = process::run(command, folder, "resume")?;
    ended.expect_code("resume", 125)?;
    for word in words {
        ended.expect_words("resume", &[word])?;
    }
    Ok(())
}

fn others_process(workshop: &Workshop) -> Result<()> {
    let user = another_user(workshop)?;
    let subject = start(workshop, "others-process", "busy", &["1"])?;
    let folder = user.folder("others-process")?;
    let ended = process::run(save_command(&user, subject.pid(), &folder.join("image")), &folder, "save")?;
    ended.expect_code("save", 1)?;
    ended.expect_words("save", &[&subject.pid().to_string()])?;
    ended
        .expect_words("save", &["belongs to user|does not let this user", "run the command as the owner"])?;
    ensure!(!folder.join("image").exists(), "an image is left");
    let mut subject = subject;
    subject.pass().context("the target after the refusal")
}

fn traced(workshop: &Workshop) -> Result<()> {
    let subject = start(workshop, "traced", "busy", &["1"])?;
    let mut tracer = start(workshop, "tracer", "tracer", &[&subject.pid().to_string()])?;
    let image = subject.image();
    let ended = process::run(save_command(workshop, subject.pid(), &image), &subject.folder, "save")?;
    ended.expect_code("save", 1)?;
    ended.expect_words("save", &[&format!("traced by process {}", tracer.pid())])?;
    ensure!(!image.exists(), "an image is left");
    tracer.pass().context("the tracer")?;
    let mut subject = subject;
    subject.pass().context("the target after the refusal")
}

fn others_folder(workshop: &Workshop) -> Result<()> {
    let user = another_user(workshop)?;
    let closed = user.folder("closed")?;
    std::os::unix::fs::chown(&closed, Some(0), Some(0)).context("taking the folder away")?;
    let program = user.compile("busy", &[])?;
    let subject = Subject::start_in(&user, &program, &["1"], user.folder("others-folder")?)?;
    fails(&user, subject, &closed.join("image"), &["permission denied"])?;
    ensure!(fs::read_dir(&closed)?.count() == 0, "something is left in the folder");
    Ok(())
}

fn unreadable(workshop: &Workshop) -> Result<()> {
    let user = another_user(workshop)?;
    let program = user.compile("busy", &[])?;
    let mut subject = Subject::start_in(&user, &program, &["1"], user.folder("unreadable")?)?;
    subject.save_and_kill(&user)?;
    for (path, name) in [(subject.image(), "image"), (subject.image().join("records"), "records")] {
        fs::set_permissions(&path, Permissions::from_mode(0o000)).context(name)?;
        refuses(
            subject.resume_command(&user),
            &subject.folder,
            &["permission denied", &format!("{}", path.display())],
        )?;
        fs::set_permissions(&path, Permissions::from_mode(0o700)).context(name)?;
    }
    process::nothing_left(&[], SOON)
}

fn somebody_elses(workshop: &Workshop) -> Result<()> {
    let user = another_user(workshop)?;
    let account = user.account().context("the user's account")?;
    let subject = captured(workshop, "somebody-elses")?;
    let (image, records) = (subject.image(), subject.image().join("records"));
    for path in [&image, &records] {
        account.give(path)?;
        let words = [&format!("{}", path.display()), "it belongs to user", "chown"];
        refuses(subject.resume_command(workshop), &subject.folder, &words)?;
        let mut planned = subject.resume_command(workshop);
        planned.arg("--plan");
        refuses(planned, &subject.folder, &words).context("--plan")?;
        std::os::unix::fs::chown(path, Some(0), Some(0)).context("taking it back")?;
    }
    fs::set_permissions(&records, Permissions::from_mode(0o666)).context("records for all")?;
    refuses(subject.resume_command(workshop), &subject.folder, &["others may write it", "chmod"])?;
    process::nothing_left(&[], SOON)
}

/// The same image under the id of another process; its program has one thread fewer to be confused by that.
fn under_pid(subject: &Subject, pid: u32) -> Result<()> {
    let pid = i32::try_from(pid)?;
    edit::image(&subject.image(), |image| {
        (image.manifest.root_pid, image.processes[0].pid) = (pid, pid);
        image.processes[0].threads.truncate(1);
        image.processes[0].threads[0].tid = pid;
    })
}

fn ended(mut child: Child) -> Result<()> {
    child.kill().context("ending the stranger")?;
    child.wait().context("waiting for the stranger")?;
    Ok(())
}

fn pid_of_a_stranger(workshop: &Workshop) -> Result<()> {
    let subject = captured(workshop, "stranger")?;
    let stranger = Command::new("sleep").arg("1000").spawn().context("starting sleep")?;
    let pid = stranger.id();
    under_pid(&subject, pid)?;
    let result =
        refuses(same_pids(&subject, workshop), &subject.folder, &["taken by", &pid.to_string(), "sleep"]);
    let lives = process::glimpse(pid).is_some_and(|seen| seen.state == 'S');
    ended(stranger)?;
    ensure!(lives, "the stranger was not left alone");
    result.and(process::nothing_left(&[], SOON))
}

fn same_pids(subject: &Subject, workshop: &Workshop) -> Command {
    let mut command = subject.resume_command(workshop);
    command.args(["--on-changed", "as-is", "--pids", "same"]);
    command
}

fn pid_of_a_zombie(workshop: &Workshop) -> Result<()> {
    let subject = captured(workshop, "zombie-pid")?;
    let mut dead = Command::new("true").spawn().context("starting true")?;
    let pid = dead.id();
    let is_zombie = || process::glimpse(pid).filter(|seen| seen.state == 'Z');
    process::await_some(SOON, is_zombie).context("true does not end")?;
    under_pid(&subject, pid)?;
    let result = refuses(same_pids(&subject, workshop), &subject.folder, &["taken by", &pid.to_string()]);
    dead.wait()?;
    result.and(process::nothing_left(&[], SOON))
}

fn zombie_is_reaped(workshop: &Workshop) -> Result<()> {
    let mut subject = start(workshop, "zombie-reaped", "busy", &["1"])?;
    subject.save(workshop)?;
    process::signal(subject.pid(), Signal::KILL);
    let pid = subject.pid();
    let is_zombie = || process::glimpse(pid).filter(|seen| seen.state == 'Z');
    process::await_some(SOON, is_zombie).context("the program does not end")?;
    let running = Running::start(same_pids(&subject, workshop), &subject.folder, "resume")?;
    std::thread::sleep(MOMENT);
    let status = subject.wait_for_end()?;
    ensure!(status.signal() == Some(9), "the program ended with {}", process::describe(status));
    subject.go()?;
    let finished = running.finish(PATIENCE).context("resume")?;
    subject.expect_pass(finished.status, &finished.errors).context("resume")?;
    process::nothing_left(&[], SOON)
}

/// The same command under other limits; `options` are those of `prlimit`.
fn limited(command: &Command, options: &[&str]) -> Command {
    let mut limited = Command::new("prlimit");
    limited.args(options).arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        limited.current_dir(folder);
    }
    limited
}

fn few_descriptors(workshop: &Workshop) -> Result<()> {
    let subject = captured(workshop, "few-descriptors")?;
    // The program itself is content with as few: only the restore needs more, for a moment.
    edit::image(&subject.image(), |image| {
        for limit in image.processes[0].limits.iter_mut().filter(|limit| limit.resource == 7) {
            (limit.soft, limit.hard) = (32, 32);
        }
    })?;
    let command = limited(&same_pids(&subject, workshop), &["--nofile=32:32"]);
    refuses(command, &subject.folder, &["limit of descriptors", "remedy", "ulimit -Hn"])?;
    process::nothing_left(&[], SOON)
}

/// As an ordinary user, since root may be able to raise them.
fn lower_limits(workshop: &Workshop) -> Result<()> {
    let user = workshop.as_user()?;
    let program = user.compile("busy", &[])?;
    let mut subject = Subject::start_in(&user, &program, &["1"], user.folder("limits")?)?;
    subject.save_and_kill(&user)?;
    let command = limited(&subject.resume_command(&user), &["--core=0:0", "--fsize=1000000000:1000000000"]);
    let words = ["limits", "max core file size", "max file size", "remedy", "ulimit -h"];
    refuses(command, &subject.folder, &words)?;
    process::nothing_left(&[], SOON)
}
