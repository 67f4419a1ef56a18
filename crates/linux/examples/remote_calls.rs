//! What remote calls cost: round trips and batches, taking over and handing back, one thread and a thousand. The best of several
//! rounds is told: other work on the machine does not count.
//!
//! `cargo run --release -p rewake-linux --example remote_calls`

use std::error::Error;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rewake_linux::executor;
use rewake_linux::program::{Program, Sysno, TrackRef, Value};
use rewake_linux::ptrace::{self, Event, Stopped};
use rewake_linux::remote::{OpenError, RemoteStage};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    if let Some(count) = std::env::args().nth(1) {
        be_target(count.parse()?);
    }
    println!("executor: {} bytes", executor::code().len());
    batches()?;
    for count in [1, 10, 100, 1000] {
        let mut times = Vec::new();
        for _ in 0..10 {
            times.push(takeover(count)?);
        }
        let (all, [freeze, open, run, close]) = times.into_iter().min().ok_or("a time")?;
        println!(
            "{count:>4} threads: freeze {freeze:.1?}; open {open:.1?}, run {run:.1?}, close {close:.1?}, all {all:.1?}"
        );
    }
    Ok(())
}

/// A process of `count` threads that sleep.
fn be_target(count: usize) -> ! {
    let sleep = || std::thread::sleep(Duration::from_secs(1000));
    let threads: Vec<_> =
        (1..count).map(|_| std::thread::Builder::new().stack_size(1 << 16).spawn(sleep)).collect();
    println!("{}", threads.iter().filter(|thread| thread.is_ok()).count() + 1);
    sleep();
    std::process::exit(0);
}

fn start(count: usize) -> Result<Child> {
    let own = std::env::current_exe()?;
    let mut child = Command::new(own).arg(count.to_string()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("output")?).read_line(&mut line)?;
    assert_eq!(line.trim(), count.to_string());
    Ok(child)
}

fn freeze(child: &Child) -> Result<Vec<Stopped>> {
    let mut running = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{}/task", child.id()))? {
        let tid = entry?.file_name().to_str().ok_or("a number")?.parse()?;
        running.push(ptrace::seize(tid, ptrace::Options::default())?);
    }
    for tracee in &running {
        tracee.interrupt()?;
    }
    let mut stopped = Vec::new();
    for tracee in running {
        if let Event::Stopped(tracee, _) = tracee.wait()? {
            stopped.push(tracee);
        }
    }
    Ok(stopped)
}

fn of_calls(count: usize) -> (Program, TrackRef) {
    let mut program = Program::new();
    let track = program.track("leader");
    for _ in 0..count {
        program.call(track, Sysno::getppid, []).done();
    }
    (program, track)
}

fn plain(error: Box<OpenError>) -> Box<dyn Error> {
    error.to_string().into()
}

fn batches() -> Result<()> {
    let mut child = start(1)?;
    let pid = child.id().cast_signed();
    let mut stage = RemoteStage::open(pid, freeze(&child)?).map_err(plain)?;
    for count in [1, 10, 100, 1000, 10_000] {
        let (program, track) = of_calls(count);
        stage.run(&program, &[(track, pid)])?;
        let rounds = (100_000 / count).clamp(20, 5000);
        let mut best = Duration::MAX;
        for _ in 0..rounds {
            let begin = Instant::now();
            let outcome = stage.run(&program, &[(track, pid)])?;
            best = best.min(begin.elapsed());
            assert!(outcome.failure().is_none());
        }
        let each = best.as_secs_f64() * 1e6;
        let entry = each / f64::from(u32::try_from(count)?);
        println!(
            "batch of {count:>5}: {each:>9.2} µs, {entry:>7.3} µs per entry, {:>9.0} entries/s",
            1e6 / entry
        );
    }
    let closed = stage.close();
    assert!(closed.trouble.is_none());
    child.kill()?;
    drop(closed);
    child.wait()?;
    Ok(())
}

/// Opens a stage, asks every thread three things, closes it. Times: all, and freeze, open, run, close.
fn takeover(count: usize) -> Result<(Duration, [Duration; 4])> {
    let mut child = start(count)?;
    let pid = child.id().cast_signed();
    let begin = Instant::now();
    let threads = freeze(&child)?;
    let frozen = begin.elapsed();
    let mut program = Program::new();
    let mut walks = Vec::new();
    for thread in &threads {
        let track = program.track(format!("thread {}", thread.tid()));
        let stack = program.zeros(24);
        program.call(track, Sysno::sigaltstack, [Value::from(0), stack.into()]).done();
        program.call(track, Sysno::gettid, []).done();
        program.call(track, Sysno::getpid, []).done();
        walks.push((track, thread.tid()));
    }
    let begin = Instant::now();
    let mut stage = RemoteStage::open(pid, threads).map_err(plain)?;
    let opened = begin.elapsed();
    let outcome = stage.run(&program, &walks)?;
    assert!(outcome.failure().is_none());
    let ran = begin.elapsed() - opened;
    let closed = stage.close();
    let total = begin.elapsed();
    assert!(closed.trouble.is_none());
    for thread in closed.threads {
        thread.detach(0)?;
    }
    child.kill()?;
    child.wait()?;
    Ok((frozen + total, [frozen, opened, ran, total - opened - ran]))
}
