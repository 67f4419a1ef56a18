//! Targets for the tests of tracing: C programs compiled when a test needs them.
#![allow(dead_code, clippy::unwrap_used, reason = "for tests, each of which uses some of it")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rewake_linux::ptrace::{self, Detached, Event, StopReason, Stopped};

pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Compiles a C source of this folder (`remote_target.c`) or a text.
    pub fn compile(&self, name: &str, source: &str, options: &[&str]) -> PathBuf {
        let (program, text) = (self.path().join(name), self.path().join(format!("{name}.c")));
        std::fs::write(&text, source).unwrap();
        let status = Command::new("gcc").arg("-o").arg(&program).arg(&text).args(options).status().unwrap();
        assert!(status.success(), "gcc compiles {name}");
        program
    }
}

/// The self-checking target of `remote_target.c`, running.
pub struct Target {
    pub folder: Folder,
    child: Option<Child>,
    pub pid: i32,
    output: BufReader<ChildStdout>,
    rounds: File,
}

/// Threads of the target that count rounds.
pub const WORKERS: usize = 11;

impl Target {
    /// Starts one that bears no interruption.
    pub fn start() -> Self {
        Self::with_arguments(&[])
    }

    /// Starts one that bears EINTR where any stopped program has to.
    pub fn tolerant() -> Self {
        Self::with_arguments(&["tolerant"])
    }

    fn with_arguments(arguments: &[&str]) -> Self {
        let folder = Folder::new();
        let program =
            folder.compile("target", include_str!("../remote_target.c"), &["-O2", "-pthread", "-Wall"]);
        let rounds = folder.path().join("rounds");
        let mut child = Command::new(program)
            .arg(&rounds)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "READY\n");
        let pid = child.id().cast_signed();
        let rounds = File::open(rounds).unwrap();
        let mut target = Self { folder, child: Some(child), pid, output, rounds };
        target.assert_goes_on();
        target
    }

    pub fn rounds(&self) -> [u64; WORKERS] {
        std::array::from_fn(|index| {
            let mut word = [0; 8];
            self.rounds.read_exact_at(&mut word, index as u64 * 8).unwrap();
            u64::from_le_bytes(word)
        })
    }

    /// Every thread gets on, soon.
    pub fn assert_goes_on(&mut self) {
        let before = self.rounds();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let after = self.rounds();
            // Two more each: a whole round from beginning to end.
            if after.iter().zip(before).all(|(after, before)| *after >= before + 2) {
                return;
            }
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "the target lives: {}", self.rest_of_output());
            assert!(Instant::now() < deadline, "rounds stand still: {before:?}, {after:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn rest_of_output(&mut self) -> String {
        let mut text = String::new();
        let _ = self.output.read_to_string(&mut text);
        text
    }

    /// Lets the target end and checks that it found nothing wrong.
    pub fn assert_passes(mut self) {
        let mut child = self.child.take().unwrap();
        drop(child.stdin.take());
        let text = self.rest_of_output();
        let status = child.wait().unwrap();
        assert!(status.success() && text == "PASS\n", "{status}: {text}");
    }

    /// Its mappings as text, without the numbers that say nothing about it.
    pub fn maps(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            // A failed test may still hold its threads: then they can never be reaped here.
            if !std::thread::panicking() {
                let _ = child.wait();
            }
        }
    }
}

/// Kills and reaps a child when a test is over.
pub struct KillOnDrop(pub Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn threads_of(pid: i32) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Stops all threads of a process; the leader comes first.
pub fn freeze(pid: i32) -> Vec<Stopped> {
    let mut stopped: Vec<Stopped> = Vec::new();
    loop {
        let known: Vec<i32> = stopped.iter().map(Stopped::tid).collect();
        let new: Vec<i32> = threads_of(pid).into_iter().filter(|tid| !known.contains(tid)).collect();
        if new.is_empty() {
            stopped.sort_by_key(|thread| thread.tid() != pid);
            return stopped;
        }
        let mut running = Vec::new();
        for tid in new {
            match ptrace::seize(tid, ptrace::Options::default()) {
                Ok(tracee) => running.push(tracee),
                Err(error) => assert!(error.is_gone(), "{error}"),
            }
        }
        for tracee in &running {
            tracee.interrupt().unwrap();
        }
        stopped.extend(running.into_iter().filter_map(to_rest));
    }
}

/// Waits until an interrupted tracee rests; signals on the way are delivered.
pub fn to_rest(mut tracee: ptrace::Running) -> Option<Stopped> {
    loop {
        match tracee.wait().unwrap() {
            Event::Stopped(stopped, StopReason::EventStop | StopReason::Group(_)) => return Some(stopped),
            Event::Stopped(stopped, StopReason::Signal(info)) => {
                tracee = stopped.cont(info.signal()).unwrap();
                tracee.interrupt().unwrap();
            }
            Event::Stopped(_, reason) => panic!("unexpected stop: {reason:?}"),
            Event::Exited(..) => return None,
        }
    }
}

pub fn release(threads: Vec<Stopped>) {
    for thread in threads {
        assert!(matches!(thread.detach(0).unwrap(), Detached::Free));
    }
}

/// A small generator of pseudo-random numbers (xorshift), so that tests need no crate for it.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
