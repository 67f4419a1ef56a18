//! Signal dispositions and interval timers, as the target's own system calls give them.

use rewake_image::records::{AlternateStack, IntervalTimer, SignalAction};
use rewake_linux::program::{DataRef, Program, Sysno, TrackRef, Value};
use rewake_linux::remote::Outcome;

/// Signals whose disposition can be changed.
fn signals() -> impl Iterator<Item = i32> {
    (1..=64).filter(|signal| !matches!(*signal, libc::SIGKILL | libc::SIGSTOP))
}

/// Size of the kernel's `struct sigaction`: handler, flags, restorer, mask.
const SIGACTION: usize = 32;
/// Size of a signal set, which the calls are told.
const SIGSET: u64 = 8;
/// Size of `struct itimerval`.
const ITIMERVAL: usize = 32;
/// Size of `stack_t`.
const STACK: usize = 24;

/// Asks for all dispositions.
pub(crate) fn ask_actions(program: &mut Program, track: TrackRef) -> DataRef {
    let table = program.zeros(64 * SIGACTION);
    for signal in signals() {
        let at = table.skip(index(signal) * SIGACTION);
        let args = [Value::from(signal), Value::from(0), at.into(), Value::from(SIGSET)];
        program.call(track, Sysno::rt_sigaction, args).note(format!("signal {signal}")).done();
    }
    table
}

/// Dispositions that differ from the default.
pub(crate) fn actions(outcome: &Outcome, table: DataRef) -> Vec<SignalAction> {
    let word = |signal: i32, at: usize| outcome.word(table, index(signal) * SIGACTION + at * 8);
    signals()
        .map(|signal| SignalAction {
            signal: signal.cast_unsigned(),
            handler: word(signal, 0),
            flags: word(signal, 1),
            restorer: word(signal, 2),
            mask: word(signal, 3),
        })
        .filter(|action| (action.handler, action.flags, action.mask) != (0, 0, 0))
        .collect()
}

fn index(signal: i32) -> usize {
    usize::try_from(signal - 1).expect("signals count from 1")
}

/// Asks for the three interval timers.
pub(crate) fn ask_timers(program: &mut Program, track: TrackRef) -> DataRef {
    let table = program.zeros(3 * ITIMERVAL);
    for (which, at) in [0u32, 1, 2].into_iter().zip((0..).step_by(ITIMERVAL)) {
        program.call(track, Sysno::getitimer, [Value::from(which), table.skip(at).into()]).done();
    }
    table
}

/// Interval timers that run.
pub(crate) fn timers(outcome: &Outcome, table: DataRef) -> Vec<IntervalTimer> {
    let microseconds = |at: usize| {
        let (seconds, rest) = (outcome.word(table, at), outcome.word(table, at + 8));
        seconds.saturating_mul(1_000_000).saturating_add(rest)
    };
    [0u32, 1, 2]
        .into_iter()
        .zip((0..).step_by(ITIMERVAL))
        .map(|(which, at)| IntervalTimer {
            which,
            interval_us: microseconds(at),
            remaining_us: microseconds(at + 16),
        })
        .filter(|timer| timer.remaining_us != 0)
        .collect()
}

/// Asks for a thread's alternate stack.
pub(crate) fn ask_stack(program: &mut Program, track: TrackRef) -> DataRef {
    let stack = program.zeros(STACK);
    program.call(track, Sysno::sigaltstack, [Value::from(0), stack.into()]).done();
    stack
}

/// The alternate stack; `None` when there is none.
pub(crate) fn stack(outcome: &Outcome, stack: DataRef) -> Option<AlternateStack> {
    let [flags, ..] =
        outcome.data(stack)[8..].first_chunk::<4>().map(|bytes| [u32::from_le_bytes(*bytes)])?;
    let disabled = flags & libc::SS_DISABLE.cast_unsigned() != 0;
    (!disabled).then(|| AlternateStack {
        address: outcome.word(stack, 0),
        size: outcome.word(stack, 16),
        flags,
    })
}
