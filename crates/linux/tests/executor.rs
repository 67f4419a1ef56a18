//! The executor, walking programs in child processes that share memory with the test.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rewake_linux::addr::RemoteAddr;
use rewake_linux::program::{Accept, Assembled, CallRef, Failure, Program, Sysno, TrackRef, Value};
use rewake_linux::seed::SharedStage;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// A program in a child.
struct Child {
    stage: SharedStage,
    assembled: Assembled,
    pid: Pid,
}

impl Child {
    fn start(program: &Program, first: TrackRef) -> Self {
        // Tests run side by side in one address space.
        static NEXT: AtomicU64 = AtomicU64::new(0x5e00_0000_0000);
        let len = program.assembled_size();
        let base = RemoteAddr::new(NEXT.fetch_add(len + (1 << 20), Ordering::Relaxed) & !0xfff);
        let assembled = program.assemble(base);
        let stage = SharedStage::map(base, len, &assembled).unwrap();
        let pid = stage.clone_seed(&assembled, first, None).unwrap();
        Self { stage, assembled, pid: Pid::from_raw(pid).unwrap() }
    }

    /// Waits for its end; the exit code, or the negative number of the signal that killed it.
    fn end(self) -> Ended {
        let (_, status) = waitpid(Some(self.pid), WaitOptions::empty()).unwrap().unwrap();
        let signal = status.terminating_signal().map(|signal| -signal);
        let code = status.exit_status().or(signal).unwrap();
        Ended { memory: self.stage.snapshot(), assembled: self.assembled, code }
    }
}

struct Ended {
    memory: Vec<u8>,
    assembled: Assembled,
    code: i32,
}

impl Ended {
    fn result(&self, call: CallRef) -> i64 {
        self.assembled.result(&self.memory, call).cast_signed()
    }

    fn failure(&self) -> Option<Failure> {
        self.assembled.failure(&self.memory)
    }
}

/// Ends a track: 0 when all went well, 1 on failure.
fn exits(program: &mut Program, track: TrackRef) {
    program.call(track, Sysno::exit_group, [Value::from(0)]).done();
    program.on_failure(track);
    program.call(track, Sysno::exit_group, [Value::from(1)]).done();
}

fn run(build: impl FnOnce(&mut Program, TrackRef)) -> Ended {
    let mut program = Program::new();
    let track = program.track("main");
    build(&mut program, track);
    exits(&mut program, track);
    Child::start(&program, track).end()
}

fn close_nothing(program: &mut Program, track: TrackRef, accept: Accept) -> CallRef {
    program.call(track, Sysno::close, [Value::from(-1)]).accept(accept).done()
}

#[test]
fn results_are_kept_and_handed_on() {
    let mut calls = Vec::new();
    let ended = run(|program, track| {
        let path = program.string(b"/dev/zero");
        let args = [Value::from(libc::AT_FDCWD), path.into(), Value::from(libc::O_RDONLY)];
        let file = program.call(track, Sysno::openat, args).done();
        let buffer = program.bytes(&[7; 64]);
        let read = program.call(track, Sysno::read, [file.into(), buffer.into(), Value::from(64)]).done();
        let close = program.call(track, Sysno::close, [file.into()]).done();
        calls = vec![(file, buffer), (read, buffer), (close, buffer)];
    });
    assert_eq!((ended.code, ended.failure()), (0, None));
    assert!(ended.result(calls[0].0) >= 3);
    assert_eq!((ended.result(calls[1].0), ended.result(calls[2].0)), (64, 0));
    let data = ended.assembled.data_offset(calls[0].1);
    assert_eq!(ended.memory[data..data + 64], [0; 64], "the call wrote into the program's data");
}

#[test]
fn what_is_not_accepted_leads_to_the_failure_entries() {
    let mut bad = None;
    let ended = run(|program, track| {
        program.call(track, Sysno::getpid, []).done();
        bad = Some(close_nothing(program, track, Accept::Success));
    });
    assert_eq!(ended.code, 1);
    let errno = -i64::from(libc::EBADF);
    assert_eq!(ended.failure(), Some(Failure { at: bad.unwrap(), result: errno }));
    assert_eq!(ended.result(bad.unwrap()), errno);
}

#[test]
fn accepted_errors_let_the_program_go_on() {
    let code = |accept| {
        run(|program, track| {
            close_nothing(program, track, accept);
        })
        .code
    };
    assert_eq!(code(Accept::Any), 0);
    assert_eq!(code(Accept::SuccessOr(libc::EBADF)), 0);
    assert_eq!(code(Accept::SuccessOr(libc::EINVAL)), 1);
    assert_eq!(code(Accept::Exactly(0)), 1);
    assert_eq!(code(Accept::Exactly(i64::from(-libc::EBADF).cast_unsigned())), 0);
}

#[test]
fn a_transfer_is_repeated_until_it_is_whole() {
    const LEN: usize = 300_000;
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let transfer = |theirs: &UnixStream| {
        let mut program = Program::new();
        let track = program.track("main");
        let buffer = program.zeros(LEN);
        let args = [Value::from(theirs.as_raw_fd()), buffer.into(), Value::from(LEN as u64)];
        program.call(track, Sysno::read, args).accept(Accept::FullTransfer).done();
        exits(&mut program, track);
        (Child::start(&program, track), buffer)
    };
    let (child, buffer) = transfer(&theirs);
    let sent: Vec<u8> = (0..LEN).map(|index| index.to_le_bytes()[0] ^ index.to_le_bytes()[1]).collect();
    for part in sent.chunks(70_001) {
        ours.write_all(part).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let ended = child.end();
    assert_eq!((ended.code, ended.failure()), (0, None));
    let data = ended.assembled.data_offset(buffer);
    assert!(ended.memory[data..data + LEN] == sent);

    let (child, _) = transfer(&theirs);
    ours.write_all(&sent[..1000]).unwrap();
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    let ended = child.end();
    assert_eq!((ended.code, ended.failure().unwrap().result), (1, 0), "the end before all came is a failure");
}

#[test]
fn an_interrupted_call_is_made_again_when_it_may() {
    let interrupted = |retry: bool| {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        // A socket with a timeout ends with EINTR when its reader is stopped (signal(7)).
        theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut program = Program::new();
        let track = program.track("main");
        let buffer = program.zeros(8);
        let args = [Value::from(theirs.as_raw_fd()), buffer.into(), Value::from(8)];
        let read = program.call(track, Sysno::read, args);
        let read = if retry { read.retry().done() } else { read.done() };
        exits(&mut program, track);
        let child = Child::start(&program, track);
        wait_for_state(child.pid, b'S');
        kill_process(child.pid, Signal::STOP).unwrap();
        wait_for_state(child.pid, b'T');
        kill_process(child.pid, Signal::CONT).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        ours.write_all(b"12345678").unwrap();
        let ended = child.end();
        (ended.code, ended.result(read))
    };
    assert_eq!(interrupted(true), (0, 8));
    assert_eq!(interrupted(false), (1, -i64::from(libc::EINTR)));
}

fn wait_for_state(pid: Pid, state: u8) {
    let is =
        |stat: &[u8]| stat.iter().rposition(|&byte| byte == b')').is_some_and(|end| stat[end + 2] == state);
    while !is(&std::fs::read(format!("/proc/{pid}/stat")).unwrap()) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_thousand_threads_meet_at_a_barrier() {
    const THREADS: u32 = 1000;
    let flags =
        libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    let mut program = Program::new();
    let main = program.track("main");
    let (meeting, never) = (program.zeros(4), program.zeros(4));
    let mut ids = Vec::new();
    for number in 0..THREADS {
        let thread = program.track(format!("thread {number}"));
        let id = program.call(thread, Sysno::gettid, []).done();
        program.barrier(thread, meeting, THREADS + 1).done();
        program.barrier(thread, never, u32::MAX).done();
        exits(&mut program, thread);
        let mut words = [0u64; 11];
        words[0] = u64::from(flags.cast_unsigned());
        let args = program.words(&words);
        ids.push((program.spawn(main, thread, args).done(), id));
    }
    program.barrier(main, meeting, THREADS + 1).done();
    exits(&mut program, main);
    let ended = Child::start(&program, main).end();
    assert_eq!((ended.code, ended.failure()), (0, None));
    for (spawned, own) in ids {
        assert!(ended.result(spawned) > 0);
        assert_eq!(ended.result(spawned), ended.result(own), "the parent's and the thread's view agree");
    }
}

#[test]
fn an_argument_is_what_an_earlier_call_wrote_into_the_data() {
    let mut calls = Vec::new();
    let ended = run(|program, track| {
        let id = program.zeros(8);
        for _ in 0..2 {
            program.call(track, Sysno::timer_create, [Value::from(1), Value::from(0), id.into()]).done();
        }
        for _ in 0..2 {
            let delete = program.call(track, Sysno::timer_delete, [Value::Word(id)]).accept(Accept::Any);
            calls.push(delete.done());
        }
        assert!(program.listing().contains("timer_delete(*&[0x"), "{}", program.listing());
        exits(program, track);
    });
    assert_eq!(ended.code, 0);
    assert_eq!(ended.result(calls[0]), 0, "the second timer, whose id is not 0");
    assert_eq!(ended.result(calls[1]), -i64::from(libc::EINVAL), "it is gone");
}
