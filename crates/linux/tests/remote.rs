//! Programs run in a live target that checks itself.
//!
//! # Safety
//! One test forks: its child is this very thread alone, and glibc keeps the allocator usable there.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unsafe_code, reason = "fork, see Safety above")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Folder, KillOnDrop, Random, Target, freeze, release, to_rest};
use rewake_linux::program::{CallRef, DataRef, Program, Sysno, TrackRef, Value};
use rewake_linux::ptrace::{self, Event, ExitStatus, StopReason, Stopped};
use rewake_linux::remote::{RemoteError, RemoteStage};

const PR_GET_TID_ADDRESS: i32 = 40;

/// What a capture asks: every thread for itself, the first one also for the process.
struct Questions {
    program: Program,
    walks: Vec<(TrackRef, i32)>,
    pid: CallRef,
    tids: Vec<CallRef>,
    alternate_stacks: Vec<DataRef>,
    tid_addresses: Vec<DataRef>,
    actions: Vec<DataRef>,
}

fn questions(tids: &[i32]) -> Questions {
    let mut program = Program::new();
    let (mut walks, mut calls) = (Vec::new(), Vec::new());
    let (mut alternate_stacks, mut tid_addresses) = (Vec::new(), Vec::new());
    for &tid in tids {
        let track = program.track(format!("thread {tid}"));
        walks.push((track, tid));
        let (stack, address) = (program.zeros(24), program.zeros(8));
        program.call(track, Sysno::sigaltstack, [Value::from(0), stack.into()]).done();
        program.call(track, Sysno::prctl, [Value::from(PR_GET_TID_ADDRESS), address.into()]).done();
        calls.push(program.call(track, Sysno::gettid, []).done());
        alternate_stacks.push(stack);
        tid_addresses.push(address);
    }
    let leader = walks[0].0;
    let pid = program.call(leader, Sysno::getpid, []).done();
    let mut actions = Vec::new();
    for signal in 1..=64 {
        let action = program.zeros(32);
        let args = [Value::from(signal), Value::from(0), action.into(), Value::from(8)];
        program.call(leader, Sysno::rt_sigaction, args).note(format!("signal {signal}")).done();
        actions.push(action);
    }
    Questions { program, walks, pid, tids: calls, alternate_stacks, tid_addresses, actions }
}

fn ask(pid: i32, threads: Vec<Stopped>) -> Vec<Stopped> {
    let tids: Vec<i32> = threads.iter().map(Stopped::tid).collect();
    let questions = questions(&tids);
    let mut stage = RemoteStage::open(pid, threads).unwrap();
    let outcome = stage.run(&questions.program, &questions.walks).unwrap();
    assert_eq!(outcome.failure(), None);
    assert_eq!(outcome.result(questions.pid), i64::from(pid));
    let mut with_stack = 0;
    for (index, &tid) in tids.iter().enumerate() {
        assert_eq!(outcome.result(questions.tids[index]), i64::from(tid));
        assert_ne!(outcome.word(questions.tid_addresses[index], 0), 0);
        with_stack += u32::from(outcome.word(questions.alternate_stacks[index], 16) == 32768);
        assert_eq!(stage.saved(tid).unwrap().tid, tid);
    }
    assert_eq!(with_stack, 1, "one thread has an alternate stack");
    let handler = |signal: i32| outcome.word(questions.actions[usize::try_from(signal - 1).unwrap()], 0);
    assert_ne!(handler(libc::SIGUSR1), 0);
    assert_eq!(handler(libc::SIGUSR2), 0);
    // A second program on the same stage, larger than the first, by one thread only.
    let mut more = Program::new();
    let track = more.track("again");
    let calls: Vec<CallRef> = (0..500).map(|_| more.call(track, Sysno::getpid, []).done()).collect();
    let last = tids.len() - 1;
    let outcome = stage.run(&more, &[(track, tids[last])]).unwrap();
    assert!(calls.iter().all(|&call| outcome.result(call) == i64::from(pid)));
    let closed = stage.close();
    assert!(closed.trouble.is_none() && closed.ended.is_empty(), "{:?}", closed.trouble);
    closed.threads
}

#[test]
fn a_target_that_is_asked_notices_nothing() {
    let mut target = Target::start();
    let maps = target.maps();
    for round in 0..200 {
        let threads = freeze(target.pid);
        assert_eq!(threads.len(), common::WORKERS + 1);
        let before: Vec<_> = threads.iter().map(|thread| thread.signal_mask().unwrap()).collect();
        let threads = ask(target.pid, threads);
        let after: Vec<_> = threads.iter().map(|thread| thread.signal_mask().unwrap()).collect();
        assert_eq!(before, after);
        release(threads);
        std::thread::sleep(Duration::from_micros(200 * (round % 20)));
    }
    target.assert_goes_on();
    assert_eq!(target.maps(), maps, "no page is left behind");
    target.assert_passes();
}

#[test]
fn a_failing_entry_ends_its_track_and_is_named() {
    let target = Target::start();
    let threads = freeze(target.pid);
    let leader = threads[0].tid();
    let mut program = Program::new();
    let track = program.track("leader");
    program.call(track, Sysno::getpid, []).done();
    let bad = program.call(track, Sysno::close, [Value::from(-1)]).note("no descriptor").done();
    let after = program.call(track, Sysno::getpid, []).done();
    let mut stage = RemoteStage::open(target.pid, threads).unwrap();
    let outcome = stage.run(&program, &[(track, leader)]).unwrap();
    let failure = outcome.failure().unwrap();
    assert_eq!((failure.at, failure.result), (bad, -i64::from(libc::EBADF)));
    assert_eq!(outcome.result(after), 0);
    release(stage.close().threads);
    target.assert_passes();
}

#[test]
fn registers_and_mappings_are_as_before_while_still_stopped() {
    let target = Target::start();
    let threads = freeze(target.pid);
    let before: Vec<_> = threads.iter().map(|t| (t.xstate().unwrap(), t.registers().unwrap())).collect();
    let maps = target.maps();
    let threads = ask(target.pid, threads);
    assert_eq!(maps, target.maps());
    for (thread, (xstate, registers)) in threads.iter().zip(&before) {
        assert_eq!(&thread.xstate().unwrap(), xstate);
        let restarted = registers.rax().cast_signed() == -i64::from(libc::EINTR);
        assert!(restarted || thread.registers().unwrap() == *registers);
    }
    release(threads);
    target.assert_passes();
}

#[test]
fn a_target_killed_from_outside_is_a_value() {
    let target = Target::start();
    let threads = freeze(target.pid);
    let count = threads.len();
    let leader = threads[0].tid();
    let mut program = Program::new();
    let track = program.track("leader");
    program.call(track, Sysno::getpid, []).done();
    let mut stage = RemoteStage::open(target.pid, threads).unwrap();
    stage.run(&program, &[(track, leader)]).unwrap();
    let pid = rustix::process::Pid::from_raw(target.pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let error = loop {
        // The kernel takes a moment to let the tracees go.
        match stage.run(&program, &[(track, leader)]) {
            Ok(_) => std::thread::yield_now(),
            Err(error) => break error,
        }
    };
    assert!(error.is_gone() || matches!(error, RemoteError::Memory(_)), "{error}");
    std::thread::sleep(Duration::from_millis(20));
    let closed = stage.close();
    assert_eq!((closed.threads.len(), closed.ended.len()), (0, count));
    let killed = |(_, status): &(i32, ExitStatus)| *status == ExitStatus::Signal(libc::SIGKILL);
    assert!(closed.ended.iter().filter(|ended| killed(ended)).count() >= count - 1, "{:?}", closed.ended);
}

#[test]
fn a_stop_signal_during_the_freeze_takes_effect_after_it() {
    let target = Target::tolerant();
    let threads = freeze(target.pid);
    let leader = threads[0].tid();
    let mut stage = RemoteStage::open(target.pid, threads).unwrap();
    let pid = rustix::process::Pid::from_raw(target.pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let mut program = Program::new();
    let track = program.track("leader");
    program.call(track, Sysno::getpid, []).done();
    stage.run(&program, &[(track, leader)]).unwrap();
    stage.run(&program, &[(track, leader)]).unwrap();
    let closed = stage.close();
    assert!(closed.trouble.is_none());
    release(closed.threads);
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", target.pid)).unwrap();
    while !state().contains(") T ") {
        std::thread::yield_now();
    }
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    target.assert_passes();
}

/// Why a program that is nothing but a loop cannot be asked.
fn refusal_of_a_bare_program(option: &str) -> RemoteError {
    let source = "void _start(void) { for (;;) __asm__ volatile(\"pause\"); }";
    let folder = Folder::new();
    let program = folder.compile("bare", source, &["-O2", "-static", "-nostdlib", "-s", option]);
    let child = KillOnDrop(Command::new(program).stdin(Stdio::null()).spawn().unwrap());
    let pid = child.0.id().cast_signed();
    std::thread::sleep(Duration::from_millis(20));
    let error = RemoteStage::open(pid, freeze(pid)).unwrap_err();
    release(error.threads);
    error.source
}

#[test]
fn a_program_without_a_c_library_is_refused_by_name() {
    let error = refusal_of_a_bare_program("-m64");
    assert!(matches!(error, RemoteError::NoGadget { .. }), "{error}");
    assert!(error.to_string().contains("syscall"), "{error}");
}

#[test]
fn a_32_bit_program_is_refused_by_name() {
    let error = refusal_of_a_bare_program("-m32");
    assert!(matches!(error, RemoteError::Unsupported { reason: "it runs 32-bit code", .. }), "{error}");
}

/// Asks each thread of a small program a few times and lets it end by itself.
fn assert_can_be_asked(source: &str, rounds: u32) {
    let folder = Folder::new();
    let program = folder.compile("small", source, &["-O1", "-pthread"]);
    let child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut child = KillOnDrop(child);
    let pid = child.0.id().cast_signed();
    let mut output = BufReader::new(child.0.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "READY\n");
    for _ in 0..rounds {
        let threads = freeze(pid);
        let mut program = Program::new();
        let walks: Vec<_> = threads.iter().map(|thread| (program.track("a thread"), thread.tid())).collect();
        let ask = |&(track, _): &(TrackRef, i32)| program.call(track, Sysno::gettid, []).done();
        let calls: Vec<CallRef> = walks.iter().map(ask).collect();
        let mut stage = RemoteStage::open(pid, threads).unwrap();
        for _ in 0..3 {
            let outcome = stage.run(&program, &walks).unwrap();
            for (&call, &(_, tid)) in calls.iter().zip(&walks) {
                assert_eq!(outcome.result(call), i64::from(tid));
            }
        }
        let closed = stage.close();
        assert!(closed.trouble.is_none(), "{:?}", closed.trouble);
        release(closed.threads);
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(child.0.stdin.take());
    assert!(child.0.wait().unwrap().success());
}

#[test]
fn a_target_that_handles_all_signals_is_asked() {
    assert_can_be_asked(
        r#"
        #include <pthread.h>
        #include <signal.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <unistd.h>
        static void never(int signal) { (void)signal; _exit(1); }
        static void *spin(void *p) { for (volatile long i = 0;; i++) {} return p; }
        int main(void) {
            int all[] = {SIGURG, SIGWINCH, SIGCHLD, SIGUSR1, SIGHUP};
            for (int i = 0; i < 5; i++) signal(all[i], never);
            pthread_t t;
            for (int i = 0; i < 3; i++) if (pthread_create(&t, NULL, spin, NULL)) return 1;
            puts("READY");
            fflush(stdout);
            char c;
            return read(0, &c, 1) == 0 ? 0 : 2;
        }"#,
        30,
    );
}

#[test]
fn a_target_deep_in_its_stack_is_asked() {
    assert_can_be_asked(
        r#"
        #include <poll.h>
        #include <stdio.h>
        #include <string.h>
        #include <unistd.h>
        static int check(const unsigned char *p, unsigned char v) { for (int i = 0; i < 4000; i++) if (p[i] != v) return 1; return 0; }
        static int deep(int n) {
            unsigned char here[4000];
            memset(here, n, sizeof here);
            if (n == 200) {
                puts("READY");
                fflush(stdout);
                struct pollfd in = {0, POLLIN, 0};
                while (poll(&in, 1, 0) == 0) if (check(here, n)) return 1;
                return 0;
            }
            int result = deep(n + 1);
            return result | check(here, n);
        }
        int main(void) { return deep(1); }"#,
        30,
    );
}

/// Not a test of its own: the tracer that the next test kills.
#[test]
fn tracer_process() {
    let Ok(pid) = std::env::var("REWAKE_TEST_TRACE") else { return };
    let pid = pid.parse().unwrap();
    // Told by a file: the harness owns the output.
    std::fs::write(std::env::var("REWAKE_TEST_READY").unwrap(), "").unwrap();
    loop {
        let threads = freeze(pid);
        let threads = ask(pid, threads);
        release(threads);
    }
}

#[test]
fn a_target_goes_on_when_its_tracer_is_killed_at_any_instant() {
    let mut target = Target::tolerant();
    let ready = target.folder.path().join("tracing");
    let log = target.folder.path().join("log");
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ u64::from(std::process::id()));
    for _ in 0..100 {
        let mut tracer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tracer_process", "--test-threads=1"])
            .env("REWAKE_TEST_TRACE", target.pid.to_string())
            .env("REWAKE_TEST_READY", &ready)
            .stdout(std::fs::File::create(&log).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while !ready.exists() && tracer.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(50));
        }
        std::thread::sleep(Duration::from_micros(random.below(10_000)));
        tracer.kill().unwrap();
        let status = tracer.wait().unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "the tracer found nothing wrong: {text}");
        let _ = std::fs::remove_file(&ready);
        target.assert_goes_on();
    }
    target.assert_passes();
}

/// A child that asks the target again and again as soon as it is traced itself; its id.
fn fork_tracer(target: i32) -> i32 {
    // SAFETY: see the module: the child runs on with its only thread.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child > 0 {
        return child;
    }
    let asking = std::panic::catch_unwind(|| -> std::convert::Infallible {
        let traced = || !std::fs::read_to_string("/proc/self/status").unwrap().contains("TracerPid:\t0\n");
        while !traced() {
            std::thread::yield_now();
        }
        loop {
            let threads = freeze(target);
            release(ask(target, threads));
        }
    });
    let Err(trouble) = asking;
    let text = trouble.downcast_ref::<String>().cloned().unwrap_or_default();
    // The harness owns our standard output.
    let _ = std::fs::write("/dev/stderr", format!("the tracer panicked: {text}\n"));
    // SAFETY: it takes a number.
    unsafe { libc::_exit(1) }
}

/// Lets the child make `steps` entries or exits of system calls, then kills it there.
fn kill_after(child: i32, steps: u64) {
    let tracer = ptrace::seize(child, ptrace::Options { exit_kill: true, ..Default::default() }).unwrap();
    tracer.interrupt().unwrap();
    let mut stopped = to_rest(tracer).unwrap();
    for _ in 0..steps {
        stopped = match stopped.syscall().unwrap().wait().unwrap() {
            Event::Stopped(stopped, StopReason::SyscallEnter | StopReason::SyscallExit) => stopped,
            Event::Stopped(stopped, StopReason::Signal(info)) => {
                assert_eq!(info.signal(), libc::SIGCHLD, "only the tracee's stops are told");
                stopped
            }
            event => panic!("the tracer found nothing wrong: {event:?}"),
        };
    }
    let pid = rustix::process::Pid::from_raw(child).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let end = stopped.cont(0).unwrap().wait().unwrap();
    assert!(matches!(end, Event::Exited(_, ExitStatus::Signal(libc::SIGKILL))), "{end:?}");
}

/// The tracer dies between any two of its system calls: each step of the takeover is tried.
#[test]
fn a_target_goes_on_when_its_tracer_is_killed_between_any_two_steps() {
    let kills = std::env::var("REWAKE_TEST_KILLS").map_or(60, |text| text.parse().unwrap());
    let mut target = Target::tolerant();
    let mut random = Random(0x2545_f491_4f6c_dd1d ^ u64::from(std::process::id()));
    for _ in 0..kills {
        let child = fork_tracer(target.pid);
        kill_after(child, 20 + random.below(STEPS));
        target.assert_goes_on();
    }
    target.assert_passes();
}

/// About as many as one round of questions takes.
const STEPS: u64 = 1200;
