//! Users without any right wake their programs in namespaces of their own: with the same ids inside, again and again.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};

use crate::process::{self, PATIENCE, Running, describe};
use crate::report::{Report, Skip};
use crate::subject::{Subject, save_command};
use crate::workshop::Workshop;

const SOON: Duration = Duration::from_secs(10);
/// Checkpoints and resumes, one after the other.
const ROUNDS: usize = 10;
/// Seconds that an image waits.
const WAIT: u64 = 3;

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test("an ordinary user wakes his program without any right", || no_right(workshop));
    report.test("an ordinary user saves and wakes his program ten times", || ten_times(workshop));
    report.test("root wakes in a namespace, saves from outside, wakes with the same ids", || root(workshop));
    report.test("in a namespace, in the background", || background(workshop));
    report.test("in a namespace, signals and stops pass", || signals(workshop));
    report.test("in a namespace, a restore that fails leaves nothing", || failing(workshop));
    report.test("namespaces of others are refused by name", || others(workshop));
    report.test("clocks are kept on request", || clocks(workshop));
    report.test("in a namespace, processors of a stranger with its old id are not its own", || {
        pinned(workshop)
    });
    report.test("what the host does not allow or --detach takes away is told", || told(workshop));
}

/// A program of three threads, the user's, running.
fn threads(user: &Workshop, name: &str) -> Result<Subject> {
    Subject::start_in(user, &user.compile("threads", &[])?, &["3"], user.folder(name)?)
}

fn user(workshop: &Workshop) -> Result<Workshop> {
    let user = workshop.as_user()?;
    let mut probe = user.program("unshare".as_ref());
    probe.args(["--user", "--pid", "--fork", "true"]).stderr(std::process::Stdio::null());
    match probe.status() {
        Ok(status) if status.success() => Ok(user),
        _ => Err(Skip("ordinary users get no user namespaces here".to_owned()).into()),
    }
}

/// Resumes in the foreground; the program's id out here.
fn resume(subject: &Subject, mut command: Command, options: &[&str]) -> Result<(Running, u32)> {
    command.args(options);
    let mut running = Running::start(command, &subject.folder, "resume")?;
    let said = || fs::read_to_string(subject.folder.join("resume.err")).unwrap_or_default();
    let pid = process::await_some(PATIENCE, || {
        let over = running.child.try_wait().ok().flatten();
        let words = said();
        let pid = words.split(": pid ").nth(1).and_then(|rest| rest.split([' ', ',']).next()?.parse().ok());
        (pid.is_some() || over.is_some()).then_some(pid)
    });
    match pid.flatten() {
        Some(pid) => Ok((running, pid)),
        None => bail!("resume: it did not wake: {}", said()),
    }
}

fn status_line(pid: u32, name: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("status of the program")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.with_context(|| format!("no {name} in its status"))?.trim().to_owned())
}

fn finish(subject: &Subject, running: Running) -> Result<()> {
    subject.go()?;
    let finished = running.finish(PATIENCE).context("resume")?;
    subject.expect_pass(finished.status, &finished.errors).context("resume")
}

fn no_right(workshop: &Workshop) -> Result<()> {
    let user = user(workshop)?;
    let mut subject = threads(&user, "no-right")?;
    let pid = subject.pid();
    let bounding = status_line(pid, "CapBnd:")?;
    subject.save_and_kill(&user)?;
    let (running, outer) = resume(&subject, subject.resume_command(&user), &[])?;
    let said = fs::read_to_string(subject.folder.join("resume.err"))?;
    ensure!(said.contains("note: ") && said.contains("pid namespace"), "nothing was said of it: {said}");
    let ids = status_line(outer, "NSpid:")?;
    ensure!(ids.split_whitespace().eq([outer.to_string(), pid.to_string()]), "its ids are {ids}");
    let free = process::await_some(SOON, || (process::glimpse(outer)?.tracer == 0).then_some(()));
    ensure!(free.is_some(), "it is never let go");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        let held = status_line(outer, set)?;
        ensure!(held.bytes().all(|digit| digit == b'0'), "it was given capabilities: {set} {held}");
    }
    let now = status_line(outer, "CapBnd:")?;
    ensure!(now == bounding, "its bounding set was {bounding}, is {now}");
    let stat = fs::read_to_string(PathBuf::from(format!("/proc/{outer}/root")).join("proc/self/stat"));
    let stat = stat.unwrap_or_default();
    ensure!(stat.is_empty(), "its /proc is not its own: we are {stat} there");
    finish(&subject, running)?;
    process::nothing_left(&[], SOON)
}

fn save(workshop: &Workshop, subject: &Subject, pid: u32) -> Result<()> {
    if subject.image().exists() {
        fs::remove_dir_all(subject.image()).context("the image before")?;
    }
    let mut command = save_command(workshop, pid, &subject.image());
    command.arg("--kill").current_dir(&subject.folder);
    process::run(command, &subject.folder, "save")?.expect_code("save", 0)
}

fn ten_times(workshop: &Workshop) -> Result<()> {
    let user = user(workshop)?;
    let mut subject = threads(&user, "ten-times")?;
    subject.save_and_kill(&user)?;
    for round in 1..ROUNDS {
        let (running, outer) = resume(&subject, subject.resume_command(&user), &[])?;
        std::thread::sleep(Duration::from_millis(20));
        save(&user, &subject, outer).with_context(|| format!("round {round}"))?;
        let status = running.finish(PATIENCE)?.status;
        ensure!(describe(status) == "death by signal 9", "resume ended with {}", describe(status));
    }
    let (running, _) = resume(&subject, subject.resume_command(&user), &[])?;
    finish(&subject, running)?;
    process::nothing_left(&[], SOON)
}

fn root(workshop: &Workshop) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Skip("only root needs no user namespace".to_owned()).into());
    }
    let mut subject = threads(workshop, "root-namespace")?;
    let pid = subject.pid();
    subject.save_and_kill(workshop)?;
    let (running, outer) = resume(&subject, subject.resume_command(workshop), &["--pids", "namespace"])?;
    ensure!(outer != pid, "it has the same id outside");
    save(workshop, &subject, outer)?;
    running.finish(PATIENCE)?;
    subject.resume_and_pass(workshop, &["--pids", "same"])?;
    subject.rewind()?;
    subject.resume_and_pass(workshop, &["--pids", "namespace", "--on-changed", "as-is"])?;
    process::nothing_left(&[], SOON)
}

fn background(workshop: &Workshop) -> Result<()> {
    let user = user(workshop)?;
    let mut subject = threads(&user, "background")?;
    subject.save_and_kill(&user)?;
    let mut command = subject.resume_command(&user);
    command.arg("--detach");
    let resumed = process::run(command, &subject.folder, "resume")?;
    resumed.expect_code("resume --detach", 0)?;
    let outer: u32 = resumed.output.trim().parse().context("the id that resume printed")?;
    ensure!(process::glimpse(outer).is_some_and(|seen| seen.tracer == 0), "it does not run");
    save(&user, &subject, outer)?;
    let resumed = {
        let mut command = subject.resume_command(&user);
        command.arg("--detach");
        process::run(command, &subject.folder, "resume")?
    };
    resumed.expect_code("resume --detach, again", 0)?;
    subject.go()?;
    let passed = process::await_some(PATIENCE, || (subject.said() == crate::subject::PASSED).then_some(()));
    ensure!(passed.is_some(), "it says '{}'", subject.said());
    process::nothing_left(&[], SOON)
}

fn signals(workshop: &Workshop) -> Result<()> {
    let user = user(workshop)?;
    let mut subject = Subject::start_in(&user, &user.compile("busy", &[])?, &["1"], user.folder("signals")?)?;
    subject.save_and_kill(&user)?;
    let (running, outer) = resume(&subject, subject.resume_command(&user), &[])?;
    let resumer = running.child.id();
    let both = |state: fn(char) -> bool| {
        let is = |pid| process::glimpse(pid).is_some_and(|seen| state(seen.state));
        process::await_some(SOON, || (is(resumer) && is(outer)).then_some(()))
    };
    ensure!(both(|state| state != 'T').is_some(), "they do not run");
    process::signal(outer, Signal::STOP);
    ensure!(both(|state| state == 'T').is_some(), "the program stopped, resume did not");
    process::signal(resumer, Signal::CONT);
    ensure!(both(|state| state != 'T').is_some(), "resume was continued, the program was not");
    process::signal(resumer, Signal::TERM);
    let status = running.finish(PATIENCE)?.status;
    ensure!(describe(status) == "death by signal 15", "resume ended with {}", describe(status));
    process::nothing_left(&[], SOON)
}

fn failing(workshop: &Workshop) -> Result<()> {
    let user = user(workshop)?;
    let mut subject = threads(&user, "failing")?;
    subject.save_and_kill(&user)?;
    // Found out by the new process itself: the folder is no longer there.
    crate::edit::image(&subject.image(), |image| image.processes[0].cwd = b"/nowhere/at/all".to_vec())?;
    let account = user.account().context("the workshop is a user's")?;
    account.give(&subject.image().join("records"))?;
    let refused = subject.resume(&user)?;
    refused.expect_code("resume", 125)?;
    refused.expect_words("resume", &["/nowhere/at/all"])?;
    process::nothing_left(&[], SOON)
}

fn others(workshop: &Workshop) -> Result<()> {
    let user = user(workshop)?;
    let (program, folder) = (user.compile("threads", &[])?, user.folder("others")?);
    let mut command = user.program("unshare".as_ref());
    command.args(["--user", "--map-current-user", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    command.arg(&program).arg(folder.join("go")).arg("1").current_dir(&folder);
    let running = Running::start(command, &folder, "program")?;
    let ready = || fs::read_to_string(folder.join("program.out")).is_ok_and(|said| said.contains("READY"));
    process::await_some(PATIENCE, || ready().then_some(())).context("it never said READY")?;
    let pid = process::children(running.child.id()).into_iter().next().context("unshare has no child")?;
    let image: PathBuf = folder.join("image");
    let refused = process::run(save_command(&user, pid, &image), &folder, "save")?;
    refused.expect_code("save", 1)?;
    for kind in ["namespace pid", "namespace user", "namespace mnt"] {
        refused.expect_words("save", &[kind])?;
    }
    ensure!(!image.exists(), "an image is there");
    fs::write(folder.join("go"), "")?;
    let status = running.finish(PATIENCE)?.status;
    ensure!(status.success(), "the program was harmed: {}", describe(status));
    process::nothing_left(&[], SOON)
}

fn clocks(workshop: &Workshop) -> Result<()> {
    let user = user(workshop)?;
    let program = user.compile("clock_keeps", &[])?;
    let mut subject = Subject::start_in(&user, &program, &[&WAIT.to_string()], user.folder("clocks")?)?;
    subject.save_and_kill(&user)?;
    std::thread::sleep(Duration::from_secs(WAIT) + Duration::from_millis(100));
    let (running, outer) = resume(&subject, subject.resume_command(&user), &["--clock", "keep"])?;
    // Once kept, clocks are kept without a word.
    save(&user, &subject, outer)?;
    running.finish(PATIENCE)?;
    std::thread::sleep(Duration::from_secs(WAIT) + Duration::from_millis(100));
    subject.resume_and_pass(&user, &[])?;
    subject.rewind()?;
    let (running, _) =
        resume(&subject, subject.resume_command(&user), &["--clock", "go", "--on-changed", "as-is"])?;
    subject.go()?;
    let finished = running.finish(PATIENCE)?;
    ensure!(
        subject.said().contains("jumped"),
        "--clock go, and no clock jumped: {} {} {}",
        describe(finished.status),
        subject.said(),
        finished.errors
    );
    ensure!(finished.status.code() == Some(1), "it passed all the same");
    process::nothing_left(&[], SOON)
}

/// The original lives on, with all its ids, and may run on one processor only: the one that wakes may run on all.
fn pinned(workshop: &Workshop) -> Result<()> {
    let user = user(workshop)?;
    let mut subject = threads(&user, "pinned")?;
    let all = rustix::thread::sched_getaffinity(None).context("our processors")?;
    let Some(first) = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)) else {
        bail!("we may run nowhere")
    };
    if all.count() < 2 {
        return Err(Skip("there is only one processor".to_owned()).into());
    }
    subject.save(&user)?;
    let mut one = rustix::thread::CpuSet::new();
    one.set(first);
    for thread in fs::read_dir(format!("/proc/{}/task", subject.pid()))?.flatten() {
        let id = thread.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
        rustix::thread::sched_setaffinity(id, &one).context("pinning the original")?;
    }
    let command = subject.resume_command(&user);
    let (running, outer) = resume(&subject, command, &["--pids", "namespace", "--on-changed", "as-is"])?;
    let said = fs::read_to_string(subject.folder.join("resume.err"))?;
    ensure!(!said.contains("processors"), "it speaks of another's processors: {said}");
    ensure!(outer != subject.pid(), "it has the id of the original, which lives");
    subject.end();
    finish(&subject, running)?;
    process::nothing_left(&[], SOON)
}

/// Far from any processor that there is.
const NO_PROCESSOR: [u8; 8] = [0, 0, 0, 0, 0, 0, 0, 0x80];

fn told(workshop: &Workshop) -> Result<()> {
    let user = user(workshop)?;
    let account = user.account().context("the workshop is a user's")?;
    let mut subject = threads(&user, "told")?;
    let pid = subject.pid();
    subject.save_and_kill(&user)?;
    let wake = |options: &[&str]| {
        let mut command = subject.resume_command(&user);
        command.args(options);
        process::run(command, &subject.folder, "resume")
    };
    let kill = |outer: &str| -> Result<()> {
        process::signal(outer.trim().parse().context("the id that resume printed")?, Signal::KILL);
        process::nothing_left(&[], SOON)
    };
    let detached = wake(&["--detach"])?;
    detached.expect_code("resume --detach", 0)?;
    kill(&detached.output)?;
    ensure!(!detached.errors.contains("processors"), "told without cause: {}", detached.errors);
    ensure!(!detached.errors.contains("PDEATHSIG"), "told without cause: {}", detached.errors);
    crate::edit::image(&subject.image(), |image| {
        for thread in &mut image.processes[0].threads {
            thread.affinity.extend(NO_PROCESSOR);
            thread.parent_death_signal = 15;
        }
    })?;
    account.give(&subject.image().join("records"))?;
    let words = ["pid namespace", "and 2 more may run on processors", "PR_SET_PDEATHSIG"];
    let detached = wake(&["--detach"])?;
    detached.expect_code("resume --detach", 0)?;
    kill(&detached.output)?;
    let json = wake(&["--detach", "--json"])?;
    json.expect_code("resume --detach --json", 0)?;
    let number = json.output.split("\"pid\":").nth(1).and_then(|rest| rest.split([',', '\n']).next());
    kill(number.context("no pid in the JSON")?)?;
    for word in words {
        ensure!(detached.errors.contains(word), "no word of {word}: {}", detached.errors);
        ensure!(json.output.contains(word), "no word of {word} in the JSON: {}", json.output);
        ensure!(!json.errors.contains(word), "{word} beside the JSON: {}", json.errors);
    }
    let inner = format!("\"inner_pid\":{pid},");
    ensure!(json.output.contains(&inner), "{inner} is not in the JSON: {}", json.output);
    Ok(())
}
