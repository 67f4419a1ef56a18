//! `resume` in the foreground, with programs that were really captured: it must look like the program to whoever started it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use snapbox::cmd::cargo_bin;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Closes what the test inherited and would pass on: a pipe to the outside cannot be captured.
const CLOSE_INHERITED: &str =
    "for f in /proc/$$/fd/*; do n=${f##*/}; [ $n -gt 2 ] && [ $n -lt 255 ] && eval \"exec $n>&-\"; done; ";

/// Waits for `ready`.
fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !ready() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The letter that /proc gives for the state of a process.
fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('?')
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, signal).expect("the process is there");
}

/// Captures `pid` and ends it. False where this user may not trace.
fn capture(pid: u32, image: &Path) -> bool {
    let mut command = Command::new(cargo_bin!("rewake"));
    command.args(["save", "--kill", "-p", &pid.to_string(), "-d"]).arg(image);
    let output = command.output().expect("rewake runs");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() && message.contains("not permitted") {
        eprintln!("SKIPPED: this user may not trace: {message}");
        return false;
    }
    assert!(output.status.success(), "{message}");
    true
}

/// A shell script, captured while it waits for a line on its standard input (a pipe).
struct Frozen {
    _dir: tempfile::TempDir,
    image: PathBuf,
}

impl Frozen {
    fn new(script: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = dir.path().join("image");
        let mut program = Command::new("bash")
            .args(["-c", &format!("{CLOSE_INHERITED} exec sh -c '{script}'")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Not the test run's own: where that is a file it grows, and the program would find it changed.
            .stderr(Stdio::null())
            .spawn()
            .expect("bash is there");
        let mut line = String::new();
        // A pipe that nobody reads any more would come back as one that nobody reads.
        let mut output = BufReader::new(program.stdout.take().expect("piped"));
        output.read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        until("reading", || state(program.id()) == 'S');
        let captured = capture(program.id(), &image);
        drop(output);
        if !captured {
            signal(program.id(), Signal::KILL);
        }
        program.wait().expect("a child");
        captured.then_some(Self { _dir: dir, image })
    }

    /// Resumes, and returns when the program runs.
    fn resume(&self) -> Resumed {
        let mut resume = Command::new(cargo_bin!("rewake"))
            .args(["resume", "--json", "-d"])
            .arg(&self.image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("rewake runs");
        let mut line = String::new();
        BufReader::new(resume.stderr.take().expect("piped")).read_line(&mut line).expect("a line");
        let report: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
        let program = report["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid");
        Resumed { resume, program }
    }
}

struct Resumed {
    resume: Child,
    program: u32,
}

impl Resumed {
    fn end(mut self, input: &str) -> (ExitStatus, String) {
        // Whether anybody reads it depends on the script.
        let _ = self.resume.stdin.take().expect("piped").write_all(input.as_bytes());
        let mut output = String::new();
        self.resume.stdout.take().expect("piped").read_to_string(&mut output).expect("text");
        (self.resume.wait().expect("a child"), output)
    }
}

#[test]
fn the_programs_end_becomes_resumes() {
    let Some(frozen) = Frozen::new("echo ready; read x; echo \"got $x\"; exit 7") else { return };
    let (status, output) = frozen.resume().end("a line\n");
    assert_eq!((status.code(), output.as_str()), (Some(7), "got a line\n"));
    // An image can be woken again and again.
    let resumed = frozen.resume();
    signal(resumed.program, Signal::KILL);
    let (status, _) = resumed.end("");
    assert_eq!(status.signal(), Some(9));
}

#[test]
fn signals_are_passed_on() {
    let Some(frozen) = Frozen::new("trap \"echo usr1; exit 9\" USR1; echo ready; read x; exit 1") else {
        return;
    };
    let resumed = frozen.resume();
    signal(resumed.resume.id(), Signal::USR1);
    until("ended", || state(resumed.program) == '?');
    let (status, output) = resumed.end("");
    assert_eq!((status.code(), output.as_str()), (Some(9), "usr1\n"));
    let resumed = frozen.resume();
    signal(resumed.resume.id(), Signal::TERM);
    until("ended", || state(resumed.program) == '?');
    let (status, _) = resumed.end("");
    assert_eq!((status.signal(), status.core_dumped()), (Some(15), false));
}

#[test]
fn stop_and_continue_go_through_both_ways() {
    let Some(frozen) = Frozen::new("echo ready; read x; exit 3") else { return };
    let resumed = frozen.resume();
    let both = [resumed.resume.id(), resumed.program];
    let all = |wanted: char| both.iter().all(|pid| state(*pid) == wanted);
    signal(resumed.program, Signal::STOP);
    until("stopped with the program", || all('T'));
    signal(resumed.resume.id(), Signal::CONT);
    until("continued with resume", || all('S'));
    let (status, _) = resumed.end("x\n");
    assert_eq!(status.code(), Some(3));
}

#[test]
fn what_the_program_leaves_behind_does_not_hold_resume() {
    let Some(frozen) = Frozen::new("echo ready; read x; (sleep 1; exit 5) > /dev/null & exit 4") else {
        return;
    };
    let (status, _) = frozen.resume().end("x\n");
    assert_eq!(status.code(), Some(4));
}

/// An interactive shell on a terminal of its own.
struct Terminal {
    script: Child,
    output: Receiver<u8>,
    seen: String,
}

impl Terminal {
    fn open() -> Self {
        let shell = format!("bash -c '{CLOSE_INHERITED} PS1= exec bash --norc --noprofile --noediting -i'");
        // Whoever runs the tests in the background of a shell without job control ignores Ctrl-C, and so would all below.
        let mut script = Command::new("env")
            .args(["--default-signal=INT,QUIT", "script", "-qefc", &shell, "/dev/null"])
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script(1) is there");
        let stdout = script.stdout.take().expect("piped");
        let (sender, output) = channel();
        thread::spawn(move || {
            BufReader::new(stdout).bytes().map_while(Result::ok).try_for_each(|byte| sender.send(byte))
        });
        Self { script, output, seen: String::new() }
    }

    fn say(&mut self, text: &str) {
        let stdin = self.script.stdin.as_mut().expect("piped");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("the terminal is there");
    }

    /// Reads up to `text`; gives what follows on that line.
    fn expect(&mut self, text: &str) -> String {
        let begin = Instant::now();
        loop {
            if let Some((_, rest)) = self.seen.split_once(text)
                && let Some((line, rest)) = rest.split_once('\n')
            {
                let line = line.trim().to_owned();
                self.seen = rest.to_owned();
                return line;
            }
            assert!(begin.elapsed() < PATIENCE, "{text} does not come after {}", self.seen);
            if let Ok(byte) = self.output.recv_timeout(Duration::from_millis(100)) {
                self.seen.push(char::from(byte));
            }
        }
    }
}

impl Terminal {
    /// Waits for the end of `pid`, and tells who has the terminal when it does not come.
    fn until_gone(&self, pid: u32) {
        let begin = Instant::now();
        while state(pid) != '?' {
            if begin.elapsed() > PATIENCE {
                let processes = Command::new("ps")
                    .args([
                        "-eo",
                        "pid,ppid,pgid,sid,tpgid,tty,stat,pending,blocked,ignored,caught,wchan:20,args",
                    ])
                    .output();
                let table = processes.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
                panic!("{pid} does not end; on the terminal: {}\n{}", self.seen, table.unwrap_or_default());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // End of input: the shell leaves. Whether it does must not hide how the test ended.
        drop(self.script.stdin.take());
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

#[test]
fn the_program_gets_the_terminal() {
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("SKIPPED: script(1) is not installed");
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("image");
    let mut terminal = Terminal::open();
    terminal.say("sh -c 'echo pid=$$; while read l; do echo \"<$l>\"; [ \"$l\" = end ] && exit 5; done'\n");
    terminal.expect("pid=$$");
    let pid = terminal.expect("pid=").parse().expect("a pid");
    until("reading", || state(pid) == 'S');
    if !capture(pid, &image) {
        return;
    }
    terminal.expect("Killed");
    let rewake = cargo_bin!("rewake");
    terminal.say(&format!("{} resume -d {}\n", rewake.display(), image.display()));
    terminal.say("one\n");
    terminal.expect("<one>");
    terminal.say("\x1a");
    terminal.expect("Stopped");
    terminal.say("fg\n");
    terminal.say("two\n");
    terminal.expect("<two>");
    terminal.say("end\n");
    terminal.expect("<end>");
    terminal.say("echo status=$?.\n");
    terminal.expect("status=5.");
    // In the background it may not read; brought to the front, it may.
    terminal.say(&format!("{} resume -d {} &\n", rewake.display(), image.display()));
    terminal.say("jobs; sleep 0.2; jobs; sleep 2; jobs\n");
    terminal.expect("Stopped");
    terminal.say("fg\n");
    terminal.say("three\n");
    terminal.expect("<three>");
    terminal.say("\x03");
    terminal.until_gone(pid);
    terminal.say("echo status=$?.\n");
    terminal.expect("status=130.");
}
