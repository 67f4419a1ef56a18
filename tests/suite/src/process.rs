//! Processes seen from outside: starting them, waiting with a limit, looking at them through `/proc`, and leaving
//! none behind. Written apart from the product's own parsers, so that one error cannot hide another.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions};

use crate::account::give_to_owner_of;

/// How long a command of the tool may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something awaited.
const GLANCE: Duration = Duration::from_millis(1);

/// Orphans of the tests become children of this process from now on, so that it can find and end them.
///
/// # Errors
/// Fails when the kernel refuses.
pub fn become_subreaper() -> Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("becoming a subreaper")
}

/// What `/proc/PID/status` says of a process or thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glimpse {
    /// The state letter: R, S, D, T, t, Z...
    pub state: char,
    /// The parent.
    pub parent: u32,
    /// Who traces it; 0 for nobody.
    pub tracer: u32,
}

/// Looks at a process; `None` when there is none of this id.
#[must_use]
pub fn glimpse(pid: u32) -> Option<Glimpse> {
    glimpse_at(Path::new(&format!("/proc/{pid}")))
}

fn glimpse_at(folder: &Path) -> Option<Glimpse> {
    let status = fs::read_to_string(folder.join("status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some(Glimpse {
        state: field("State:")?.chars().next()?,
        parent: field("PPid:")?.parse().ok()?,
        tracer: field("TracerPid:")?.parse().ok()?,
    })
}

/// Looks at every thread of a process.
#[must_use]
pub fn threads(pid: u32) -> Vec<Glimpse> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| glimpse_at(&entry.path())).collect()
}

/// The children of a process, zombies included.
#[must_use]
pub fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| glimpse(pid).is_some_and(|seen| seen.parent == parent)).collect()
}

/// The children of this process, told by the kernel without a look at all processes.
#[must_use]
pub fn adopted() -> Vec<u32> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let told = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    told.flat_map(|line| line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Sends a signal; a process that is gone already is no error.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // The process may have ended a moment ago: then there is nobody left to tell.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Waits until `done` gives something, at most this long.
pub fn await_some<T>(limit: Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let Some(value) = done() {
            return Some(value);
        }
        if begun.elapsed() > limit {
            return None;
        }
        std::thread::sleep(GLANCE);
    }
}

/// Waits for a child, at most this long.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    await_some(limit, || child.try_wait().ok().flatten())
}

/// The same of a process and all below it.
#[must_use]
pub fn threads_of_tree(pid: u32) -> Vec<Glimpse> {
    let mut all = threads(pid);
    for child in children(pid) {
        all.extend(threads_of_tree(child));
    }
    all
}

/// A process and all below it.
#[must_use]
pub fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(&one) = all.get(next) {
        all.extend(children(one));
        next += 1;
    }
    all
}

/// Kills a process and all below it, as a crash of the machine would: none has time to see that another is gone.
pub fn kill_tree(pid: u32) {
    let mut stopped = 0;
    loop {
        // Nobody is born any more of one that is stopped.
        let all = tree(pid);
        if all.len() <= stopped {
            return all.iter().for_each(|&one| signal(one, Signal::KILL));
        }
        stopped = all.len();
        all.iter().for_each(|&one| signal(one, Signal::STOP));
    }
}

/// Reaps an orphan that became ours; its exit code, or 128 and its signal's number.
#[must_use]
pub fn reap(pid: u32) -> Option<i32> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let (_, status) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG).ok()??;
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal))
}

/// Reaps those of these children that have ended.
pub fn reap_all(pids: &[u32]) {
    for &pid in pids {
        // One that runs on is looked at again by whoever waits.
        let _ = reap(pid);
    }
}

/// Waits until this process has no children but these (a guardian may be about to leave); ends those that stay.
///
/// # Errors
/// Names the processes that were still there after `limit` and had to be killed.
pub fn nothing_left(keep: &[u32], limit: Duration) -> Result<()> {
    let me = std::process::id();
    let strays = || -> Vec<u32> { children(me).into_iter().filter(|pid| !keep.contains(pid)).collect() };
    let gone = await_some(limit, || {
        let found = strays();
        reap_all(&found);
        found.is_empty().then_some(())
    });
    if gone.is_some() {
        return Ok(());
    }
    let mut names = Vec::new();
    for pid in strays() {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let state = glimpse(pid).map_or('?', |seen| seen.state);
        names.push(format!("{pid} ({}, state {state})", name.trim()));
        signal(pid, Signal::KILL);
        await_some(Duration::from_secs(5), || reap(pid));
    }
    bail!("left behind: {}", names.join(", "))
}

/// Descriptors that whoever started the tests left open for every child: a program under test must not have them,
/// or its checkpoint is rightly refused (a pipe to the outside).
fn inherited() -> &'static [u32] {
    static FOUND: OnceLock<Vec<u32>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let Ok(entries) = fs::read_dir("/proc/self/fdinfo") else { return Vec::new() };
        let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        numbers.filter(|&fd| fd > 2 && !closes_on_exec(fd)).collect()
    })
}

fn closes_on_exec(fd: u32) -> bool {
    const O_CLOEXEC: u32 = 0o2_000_000;
    let Ok(text) = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")) else { return true };
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
        .is_some_and(|flags| flags & O_CLOEXEC != 0)
}

/// The same command without the inherited descriptors: bash closes them and becomes the program.
fn without_inherited(command: Command) -> Command {
    if inherited().is_empty() {
        return command;
    }
    let closing: String = inherited().iter().map(|fd| format!(" {fd}>&-")).collect();
    let mut wrapped = Command::new("bash");
    wrapped.args(["-c", &format!("exec{closing}; exec \"$@\""), "bash"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

/// A command whose output goes to files, so that nothing that inherits it can hold up its end.
#[derive(Debug)]
pub struct Running {
    /// The process.
    pub child: Child,
    output: PathBuf,
    errors: PathBuf,
}

/// What a command left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
}

impl Finished {
    /// Fails unless the command ended with this exit code; the error shows what it said.
    ///
    /// # Errors
    /// Shows how it ended instead and what it wrote.
    pub fn expect_code(&self, what: &str, code: i32) -> Result<()> {
        if self.status.code() == Some(code) {
            return Ok(());
        }
        bail!("{what}: expected exit code {code}, got {}{}", describe(self.status), quoted(&self.errors))
    }

    /// Fails unless standard error contains all of these words, whatever their case; of words with bars between them any one.
    ///
    /// # Errors
    /// Shows what it says instead.
    pub fn expect_words(&self, what: &str, words: &[&str]) -> Result<()> {
        let text = self.errors.to_lowercase();
        let is_there = |word: &&&str| word.split('|').any(|one| text.contains(&one.to_lowercase()));
        match words.iter().find(|word| !is_there(word)) {
            None => Ok(()),
            Some(word) => bail!("{what}: the message does not name {word:?}{}", quoted(&self.errors)),
        }
    }
}

fn quoted(errors: &str) -> String {
    let lines: Vec<&str> = errors.lines().filter(|line| !line.trim().is_empty()).take(6).collect();
    if lines.is_empty() {
        "; it said nothing".to_owned()
    } else {
        format!("; it said:\n{}", lines.join("\n"))
    }
}

/// An exit status in words.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("death by signal {signal}"),
        (None, None) => "an unknown end".to_owned(),
    }
}

impl Running {
    /// Starts a command in a process group of its own, without input; its output goes to `FOLDER/LABEL.out` and
    /// `.err`.
    ///
    /// # Errors
    /// Fails when it cannot be started.
    pub fn start(command: Command, folder: &Path, label: &str) -> Result<Self> {
        let mut command = without_inherited(command);
        let (output, errors) = (folder.join(format!("{label}.out")), folder.join(format!("{label}.err")));
        let create = |path: &Path| -> Result<File> {
            let file = File::create(path).with_context(|| path.display().to_string())?;
            // It is opened by name when its program is resumed.
            give_to_owner_of(folder, path)?;
            Ok(file)
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(create(&output)?)
            .stderr(create(&errors)?)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Running { child, output, errors })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end; kills it when that takes longer than `limit`.
    ///
    /// # Errors
    /// A command that had to be killed is an error.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        let status = wait(&mut self.child, limit);
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let (output, errors) = (read(&self.output), read(&self.errors));
        let Some(status) = status else {
            let state = glimpse(self.child.id()).map_or('?', |seen| seen.state);
            self.child.kill().context("killing a command that hangs")?;
            self.child.wait().context("waiting for a killed command")?;
            bail!("still running after {} s (state {state}){}", limit.as_secs(), quoted(&errors));
        };
        Ok(Finished { status, output, errors })
    }
}

/// Runs a command to its end.
///
/// # Errors
/// Fails when it cannot be started or hangs.
pub fn run(command: Command, folder: &Path, label: &str) -> Result<Finished> {
    Running::start(command, folder, label)?.finish(PATIENCE)
}
