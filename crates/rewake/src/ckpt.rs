//! `ckpt`: ask a program with the library inside to checkpoint itself, and wait for the image.
//!
//! A program without the library is never harmed: its memory map must have the library's mark, and the signal that it names must be
//! caught. That is looked at last, just before the signal is sent. The answer comes over a socket whose name only the signal tells, and
//! only from whoever the program belongs to.

use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rewake_linux::inside;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;

use crate::args::Ckpt;
use crate::failure::Failure;
use crate::format::{count, milliseconds, plain, rate, size, time};
use crate::output;

/// How long a program that ends may take to leave word, and to end altogether.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Between two looks whether it is still that program.
const LOOK: Duration = Duration::from_secs(1);
/// Most bytes of an answer.
const LONGEST: u64 = 1 << 20;

/// Asks, waits, and says what came of it.
pub fn run(arguments: &Ckpt) -> Result<ExitCode, Failure> {
    let asked = Asked::open(arguments.pid)?;
    let (token, listener) = listen()?;
    asked.ask(token)?;
    let made = asked.answer(&listener, Duration::from_secs(arguments.timeout))?;
    let text =
        if arguments.json { output::json(&made.report(arguments.pid)) } else { format!("{}\n", made.line()) };
    // The image is there: whether this can be said does not change that.
    let _ = output::print(&text);
    Ok(ExitCode::SUCCESS)
}

/// A program with the library inside.
struct Asked {
    pid: i32,
    process: OwnedFd,
    signal: i32,
    uid: u32,
}

/// What `/proc/PID/status` tells.
struct Status {
    name: String,
    state: char,
    uid: u32,
    threads: usize,
    caught: u64,
}

impl Asked {
    fn open(pid: i32) -> Result<Self, Failure> {
        let gone = || failed(pid, "there is no such process");
        let id = Pid::from_raw(pid).ok_or_else(gone)?;
        let process = pidfd_open(id, PidfdFlags::empty()).map_err(|_| gone())?;
        let status = Status::of(pid).ok_or_else(gone)?;
        status.check(pid, &process)?;
        let signal = mark(pid, &status)?;
        if matches!(status.state, 'T' | 't') {
            let remedy = format!("let it go on first (kill -CONT {pid})");
            return Err(Failure::with_remedy(text(pid, "it is stopped"), Some(remedy)));
        }
        let network = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/net")).ok();
        if network(&pid.to_string()) != network("self") {
            // One that is dying has lost its own before it is seen to have ended.
            if rewake_capture::own::is_over(pid) {
                return Err(failed(pid, "it has ended"));
            }
            let cause = text(pid, "it is in another network namespace: no answer would come from there");
            let remedy =
                format!("run ckpt in there, or ask without waiting for an answer: kill -{signal} {pid}");
            return Err(Failure::with_remedy(cause, Some(remedy)));
        }
        Ok(Self { pid, process, signal, uid: status.uid })
    }

    /// Sends the signal, if it is caught.
    fn ask(&self, token: u64) -> Result<(), Failure> {
        let Self { pid, signal, .. } = *self;
        let status = Status::of(pid).ok_or_else(|| failed(pid, "it has ended"))?;
        status.check(pid, &self.process)?;
        if status.caught >> (signal - 1) & 1 == 0 {
            return Err(left_alone(pid, &status.name, &format!("does not catch signal {signal} now")));
        }
        inside::ask(&self.process, signal, token)
            .map_err(|error| failed(pid, &format!("signal {signal} could not be sent: {error}")))
    }

    /// Waits for the answer: `patience` until the program begins, then as long as it takes.
    fn answer(&self, listener: &UnixListener, patience: Duration) -> Result<Made, Failure> {
        let begun = self.begun(listener, patience)?;
        // Whoever writes the image holds the other end: it tells, or it is gone.
        let mut answer = Vec::new();
        let read = begun.take(LONGEST).read_to_end(&mut answer);
        read.map_err(|error| failed(self.pid, &format!("reading its answer failed: {error}")))?;
        understand(&answer, self.pid)
    }

    fn begun(&self, listener: &UnixListener, patience: Duration) -> Result<UnixStream, Failure> {
        let mut until = Instant::now() + patience;
        let mut ended = false;
        loop {
            let left = until.saturating_duration_since(Instant::now()).min(LOOK);
            if left.is_zero() {
                return Err(if ended {
                    failed(self.pid, "it ended before it began")
                } else {
                    self.silent(patience)
                });
            }
            let mut looked = vec![PollFd::new(listener, PollFlags::IN)];
            if !ended {
                looked.push(PollFd::new(&self.process, PollFlags::IN));
            }
            let time = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut looked, Some(&time)) {
                Ok(0) if !ended => self.still_there()?,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(self.pid, &format!("waiting for it failed: {error}"))),
            }
            let ready = |at: usize| looked.get(at).is_some_and(|file| !file.revents().is_empty());
            if ready(0)
                && let Ok((stream, _)) = listener.accept()
                // Anybody may know the name; only this one's word counts.
                && inside::peer_uid(stream.as_fd()).is_ok_and(|uid| uid == self.uid)
            {
                return Ok(stream);
            }
            if ready(1) {
                ended = true;
                until = until.min(Instant::now() + LAST_WORDS);
            }
        }
    }

    /// It may have become another program meanwhile, which knows of no request.
    fn still_there(&self) -> Result<(), Failure> {
        match Status::of(self.pid) {
            Some(status) if !matches!(status.state, 'Z' | 'X') && mark(self.pid, &status).is_err() => {
                Err(failed(self.pid, "it became another program (exec) before it began"))
            }
            _ => Ok(()),
        }
    }

    fn silent(&self, patience: Duration) -> Failure {
        let cause = format!("it has not begun within {} s; it still may", patience.as_secs());
        let remedy = "wait longer (--timeout): all its threads may block every signal, or it is in a section without checkpoints";
        Failure::with_remedy(text(self.pid, &cause), Some(remedy))
    }
}

impl Status {
    fn of(pid: i32) -> Option<Self> {
        let status = std::fs::read(format!("/proc/{pid}/status")).ok()?;
        let status = String::from_utf8_lossy(&status);
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Some(Self {
            name: field("Name:")?.to_owned(),
            state: field("State:")?.chars().next()?,
            // The effective one.
            uid: field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?,
            threads: field("Threads:")?.parse().ok()?,
            caught: u64::from_str_radix(field("SigCgt:")?, 16).ok()?,
        })
    }

    /// It must not have ended, nor its first thread.
    fn check(&self, pid: i32, process: &OwnedFd) -> Result<(), Failure> {
        match self.state {
            'Z' | 'X' if self.threads > 1 && !ends(process) => {
                let cause = "its first thread has ended while others run, which is not supported from inside";
                let remedy = format!("capture it from outside: chkpnt -p {pid}");
                Err(Failure::with_remedy(text(pid, cause), Some(remedy)))
            }
            'Z' | 'X' => Err(failed(pid, "it has ended")),
            _ => Ok(()),
        }
    }
}

/// Whether a process whose first thread has ended does so as a whole, which takes a moment.
fn ends(process: &OwnedFd) -> bool {
    let time = Timespec { tv_sec: 0, tv_nsec: LAST_WORDS.subsec_nanos().into() };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&time)).is_ok_and(|ready| ready > 0)
}

/// The signal that the library in this process waits for.
fn mark(pid: i32, status: &Status) -> Result<i32, Failure> {
    let maps = std::fs::read(format!("/proc/{pid}/maps")).map_err(|error| {
        let cause = text(pid, &format!("its memory map cannot be read: {error}"));
        let own = rustix::process::geteuid();
        let remedy = if own.as_raw() == status.uid && !is_dumpable(pid, status.uid) {
            "it is not dumpable, since it has changed its rights (setresuid) or called prctl(PR_SET_DUMPABLE, 0): let it call prctl(PR_SET_DUMPABLE, 1) after that"
        } else if own.is_root() || own.as_raw() == status.uid {
            "the process has rights that you have not here: run ckpt where it was started, perhaps outside this container"
        } else {
            "run ckpt as the owner of the process, or as root"
        };
        Failure::with_remedy(cause, Some(remedy))
    })?;
    if maps.is_empty() {
        return Err(failed(pid, "it has no memory: it has ended, or is the kernel's own"));
    }
    let found = String::from_utf8_lossy(&maps).lines().find_map(inside::signal_in);
    found.ok_or_else(|| left_alone(pid, &status.name, "has no libckpt inside"))
}

/// Whether its files in `/proc` are its user's: those of programs that are not dumpable are root's.
fn is_dumpable(pid: i32, uid: u32) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(format!("/proc/{pid}/stat")).map_or(true, |data| data.uid() == uid)
}

/// Where an answer is awaited, and the token that tells it.
fn listen() -> Result<(u64, UnixListener), Failure> {
    let broken = |error: io::Error| Failure::new(format_args!("listening for an answer failed: {error}"));
    let mut random = [0; 8];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).map_err(broken)?;
    let token = u64::from_le_bytes(random).max(1);
    let address = SocketAddr::from_abstract_name(inside::name_of(token)).map_err(broken)?;
    Ok((token, UnixListener::bind_addr(&address).map_err(broken)?))
}

fn text(pid: i32, cause: &str) -> String {
    format!("checkpoint failed for pid {pid}: {cause}")
}

fn failed(pid: i32, cause: &str) -> Failure {
    Failure::new(text(pid, cause))
}

fn left_alone(pid: i32, name: &str, why: &str) -> Failure {
    let cause = format!("{} {why}; it was left alone", plain(name.as_bytes()));
    let remedy = format!(
        "capture it from outside: chkpnt -p {pid}; or start it with the library: rewake run --preload -- ..."
    );
    Failure::with_remedy(text(pid, &cause), Some(remedy))
}

/// What a program says of its image.
#[derive(Debug, PartialEq, Eq)]
struct Made {
    image: PathBuf,
    threads: usize,
    bytes: u64,
    memory: u64,
    paused: Duration,
    total: Duration,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    image: String,
    pid: i32,
    threads: usize,
    image_bytes: u64,
    memory_bytes: u64,
    paused_ms: f64,
    total_ms: f64,
    mb_per_s: f64,
}

impl Made {
    fn line(&self) -> String {
        format!(
            "saved {}: {}, {} image, paused {}, total {}, {:.0} MB/s",
            plain(self.image.as_os_str().as_encoded_bytes()),
            count(self.threads, "thread", "threads"),
            size(self.bytes),
            time(self.paused),
            time(self.total),
            rate(self.memory, self.total),
        )
    }

    fn report(&self, pid: i32) -> Report {
        Report {
            image: self.image.to_string_lossy().into_owned(),
            pid,
            threads: self.threads,
            image_bytes: self.bytes,
            memory_bytes: self.memory,
            paused_ms: milliseconds(self.paused),
            total_ms: milliseconds(self.total),
            mb_per_s: rate(self.memory, self.total),
        }
    }

    /// `made THREADS BYTES MEMORY PAUSED TOTAL LENGTH`, a new line, the path.
    fn read(answer: &[u8]) -> Option<Self> {
        let end = answer.iter().position(|byte| *byte == b'\n')?;
        let (head, path) = (std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 1..]);
        let mut words = head.strip_prefix("made ")?.split(' ').map(str::parse::<u64>);
        let mut next = || words.next()?.ok();
        let made = Self {
            threads: usize::try_from(next()?).ok()?,
            bytes: next()?,
            memory: next()?,
            paused: Duration::from_nanos(next()?),
            total: Duration::from_nanos(next()?),
            image: PathBuf::from(std::ffi::OsString::from_vec(path.to_vec())),
        };
        (usize::try_from(next()?).ok()? == path.len()).then_some(made)
    }
}

fn understand(answer: &[u8], pid: i32) -> Result<Made, Failure> {
    let answer = answer.strip_prefix(b"begun\n").unwrap_or(answer);
    if let Some(made) = Made::read(answer) {
        return Ok(made);
    }
    let told = String::from_utf8_lossy(answer);
    match told.strip_prefix("failed\n").and_then(|rest| rest.strip_suffix("\n.")) {
        Some(why) => {
            let (cause, remedy) = why.split_once('\n').unwrap_or((why, ""));
            Err(Failure::with_remedy(
                format_args!("{cause} (pid {pid})"),
                Some(remedy).filter(|text| !text.is_empty()),
            ))
        }
        None => {
            Err(failed(pid, "the process that wrote its image ended before it was done; there is no image"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_or_none() {
        let answer = b"begun\nmade 2 1000 900 1500000 2000000 6\n/a\nb c";
        let made = Made {
            image: "/a\nb c".into(),
            threads: 2,
            bytes: 1000,
            memory: 900,
            paused: Duration::from_micros(1500),
            total: Duration::from_millis(2),
        };
        assert_eq!(understand(answer, 7).unwrap(), made);
        for len in 0..answer.len() {
            assert!(understand(&answer[..len], 7).is_err(), "{len}");
        }
        let told = format!("{:?}", understand(b"begun\nfailed\nno room\nmake some\n.", 7).unwrap_err());
        assert!(told.contains("no room (pid 7)") && told.contains("make some"), "{told}");
        let told = format!("{:?}", understand(b"begun\nfailed\nno ro", 7).unwrap_err());
        assert!(told.contains("ended before"), "{told}");
    }
}
