//! Timers of timer_create: who they are is told by `/proc/PID/timers`, how far they are only by the target itself.

use rewake_image::records::PosixTimer;
use rewake_linux::proc::{self, Proc};
use rewake_linux::program::{Accept, CallRef, DataRef, Program, Sysno, TrackRef, Value};
use rewake_linux::remote::Outcome;

use crate::error::{During, Result};
use crate::findings::Findings;
use crate::spaces::Ids;

/// Size of `struct itimerspec`: interval, then what is left.
const ITIMERSPEC: usize = 32;
/// The bits of a CPU clock that say of whom: all set for "of the caller".
const CPU_CLOCK_OWNER: i32 = !7;
/// In a CPU clock: it is a thread's.
const CPU_CLOCK_OF_THREAD: i32 = 4;

const LATER: &str = "capture the program at a time when it does not use this";

/// Timers that a resumed program would not have as they were.
///
/// # Errors
/// When the target is gone or the look itself fails.
pub(crate) fn check(proc: &Proc, pid: i32, findings: &mut Findings) -> Result<()> {
    let timers = match proc.timers() {
        Ok(timers) => timers,
        Err(error) if error.is_missing() => {
            let reason = "the kernel does not tell whether it has timers";
            findings.add("POSIX timers", reason, "use a kernel built with CONFIG_CHECKPOINT_RESTORE");
            return Ok(());
        }
        Err(error) => return Err(error).during("read timers", pid, "POSIX timers"),
    };
    if timers.is_empty() {
        return Ok(());
    }
    let ids = Ids::of(proc)?;
    let threads = proc.threads().during("list threads", pid, "task")?;
    let threads: Vec<i32> = threads.into_iter().map(|tid| ids.inner(tid)).collect();
    let pid = ids.inner(pid);
    for timer in timers {
        if let Some(reason) = trouble(&timer, pid, &threads) {
            findings.add(format!("POSIX timer {} (clock {})", timer.id, timer.clock), reason, LATER);
        }
    }
    Ok(())
}

fn trouble(timer: &proc::PosixTimer, pid: i32, threads: &[i32]) -> Option<&'static str> {
    if timer.event().is_err() {
        return Some("the kernel tells in an unknown way whom it signals");
    }
    if timer.clock >= 0 {
        return None;
    }
    let (owner, of_thread) = (!(timer.clock & CPU_CLOCK_OWNER) >> 3, timer.clock & CPU_CLOCK_OF_THREAD != 0);
    match (owner, of_thread) {
        (0, true) if threads.len() > 1 => Some(
            "it counts the processor time of the thread that made it, and the kernel does not tell which",
        ),
        (0, _) => None,
        (owner, true) if threads.contains(&owner) => None,
        (owner, false) if owner == pid => None,
        _ => Some("it counts the processor time of another process, or of a thread that has ended"),
    }
}

/// Where the answers about timers will be.
pub(crate) struct Answers(Vec<(proc::PosixTimer, DataRef, CallRef)>);

/// Asks how far each timer is.
///
/// # Errors
/// When the target was killed meanwhile.
pub(crate) fn ask(proc: &Proc, pid: i32, program: &mut Program, track: TrackRef) -> Result<Answers> {
    let timers = proc.timers().during("read timers", pid, "POSIX timers")?;
    let ask = |timer: proc::PosixTimer| {
        let (value, id) = (program.zeros(ITIMERSPEC), Value::from(timer.id));
        let note = format!("timer {}", timer.id);
        program.call(track, Sysno::timer_gettime, [id, value.into()]).note(note);
        let overrun = program.call(track, Sysno::timer_getoverrun, [id]).accept(Accept::Any).done();
        (timer, value, overrun)
    };
    Ok(Answers(timers.into_iter().map(ask).collect()))
}

impl Answers {
    /// The records, in order of id.
    pub(crate) fn tell(&self, outcome: &Outcome, ids: &Ids) -> Vec<PosixTimer> {
        let mut timers: Vec<PosixTimer> = self
            .0
            .iter()
            .map(|(timer, value, overrun)| record(outcome, ids, timer, *value, *overrun))
            .collect();
        timers.sort_by_key(|timer| timer.id);
        timers
    }
}

fn record(
    outcome: &Outcome,
    ids: &Ids,
    timer: &proc::PosixTimer,
    value: DataRef,
    overrun: CallRef,
) -> PosixTimer {
    let nanoseconds = |at: usize| {
        let (seconds, rest) = (outcome.word(value, at), outcome.word(value, at + 8));
        seconds.saturating_mul(1_000_000_000).saturating_add(rest)
    };
    let (mut notify, mut thread) = timer.event().unwrap_or((libc::SIGEV_NONE, 0));
    if thread == 0 {
        // Nobody is told any more: the thread has ended.
        (notify, thread) = (libc::SIGEV_NONE, 0);
    }
    PosixTimer {
        id: timer.id,
        clock: timer.clock,
        notify: notify.unsigned_abs(),
        signal: timer.signal,
        thread: if notify & libc::SIGEV_THREAD_ID == 0 { 0 } else { ids.inner(thread) },
        value: timer.value,
        interval_ns: nanoseconds(0),
        remaining_ns: nanoseconds(16),
        overrun: u32::try_from(outcome.result(overrun)).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(clock: i32) -> proc::PosixTimer {
        proc::PosixTimer { id: 0, signal: 14, value: 0, notify: b"signal/pid.7".to_vec(), clock }
    }

    #[test]
    fn whose_processor_time_is_counted_must_be_known() {
        let of_process = |pid: i32| !pid << 3 | 2;
        let of_thread = |tid: i32| !tid << 3 | 6;
        for known in [0, 1, 7, of_process(0), of_process(7), of_thread(8)] {
            assert_eq!(trouble(&on(known), 7, &[7, 8]), None, "clock {known}");
        }
        assert_eq!(trouble(&on(of_thread(0)), 7, &[7]), None);
        assert!(trouble(&on(of_thread(0)), 7, &[7, 8]).expect("ambiguous").contains("which"));
        assert!(trouble(&on(of_process(9)), 7, &[7, 8]).is_some());
        assert!(trouble(&on(of_thread(9)), 7, &[7, 8]).is_some());
    }
}
