//! How long interrupted calls with a time-out still had to wait.
//!
//! A thread that sleeps with a time-out is interrupted with -ERESTART_RESTARTBLOCK, and the kernel keeps the end of the time-out to
//! itself. A program that asked for the rest of its sleep has it written to its memory; for the others the scheduler tells since
//! when the thread was asleep, if it is asked before the freeze wakes the thread. That goes for waits of epoll too, which are made again
//! in any case.

use std::collections::BTreeMap;
use std::time::Duration;

use rewake_linux::addr::RemoteAddr;
use rewake_linux::arch::x86_64::forgets::forgets_r10;
use rewake_linux::arch::x86_64::{Interruption, Registers, restart};
use rewake_linux::memory::ProcessMemory;
use rewake_linux::proc::{Proc, Sched};
use rewake_linux::program::Sysno;
use rewake_linux::ptrace::Stopped;
use rustix::thread::CpuSet;
use rustix::time::{ClockId, clock_gettime};

const TIMER_ABSTIME: u64 = 1;
const FUTEX_COMMAND: u64 = 0x7f;
const FUTEX_WAIT: u64 = 0;
const NANOSECONDS: u64 = 1_000_000_000;
const NANOSECONDS_PER_MS: u64 = 1_000_000;
/// What a thread is in that goes on with a wait. Made without a wait to go on with, it fails.
const RESTART: u64 = libc::SYS_restart_syscall.cast_unsigned();
/// How often two clocks are looked at until there is no wait between the looks, and what counts as none.
const LOOKS: u32 = 8;
const AT_ONCE: u64 = 2 * NANOSECONDS_PER_MS;

/// What the scheduler told of every thread before the freeze.
#[derive(Debug)]
pub(crate) struct Before {
    threads: BTreeMap<i32, (Sched, usize)>,
    clocks: Clocks,
    /// `CLOCK_MONOTONIC` then, in nanoseconds.
    asked: u64,
}

impl Before {
    /// Asks. A thread of which the kernel does not tell is left out. The clocks of their CPUs are read while the target still runs: a
    /// busy CPU lets us wait.
    pub(crate) fn ask(proc: &Proc) -> Self {
        let tids = proc.threads().unwrap_or_default();
        let mut clocks = Clocks::default();
        for tid in &tids {
            if let Some(stat) = proc.thread(*tid).ok().and_then(|thread| thread.stat().ok())
                && stat.state == 'S'
                && let Ok(cpu) = usize::try_from(stat.processor)
            {
                clocks.lag(cpu);
            }
        }
        let tell = |tid| {
            let thread = proc.thread(tid).ok()?;
            let (stat, sched) = (thread.stat().ok()?, thread.sched().ok()?);
            let cpu = usize::try_from(stat.processor).ok()?;
            (stat.state == 'S').then_some((tid, (sched, cpu)))
        };
        Self { threads: tids.into_iter().filter_map(tell).collect(), clocks, asked: monotonic() }
    }

    /// When that was, in nanoseconds of `CLOCK_MONOTONIC`.
    pub(crate) const fn asked(&self) -> u64 {
        self.asked
    }

    /// The time left, in nanoseconds, for each thread that was interrupted in a call with a time-out. `proc`'s threads are stopped,
    /// and have not run since they were asked to.
    pub(crate) fn time_left(mut self, proc: &Proc, threads: &BTreeMap<i32, Stopped>) -> BTreeMap<i32, u64> {
        let interrupted = threads.iter().filter_map(|(tid, thread)| {
            let registers = thread.registers().ok()?;
            let waits = Interruption::of(&registers) == Interruption::RestartBlock
                || restart::epoll_timeout(&registers).is_some();
            waits.then_some((*tid, registers))
        });
        let interrupted: Vec<(i32, Registers)> = interrupted.collect();
        if interrupted.is_empty() {
            return BTreeMap::new();
        }
        let Ok(memory) = ProcessMemory::open(proc.id()) else { return BTreeMap::new() };
        let left = interrupted.into_iter().filter_map(|(tid, registers)| {
            let timeout = Timeout::of(&registers, &memory)?;
            let left = match timeout {
                Timeout::Left(left) => left,
                Timeout::Whole(whole) => whole.saturating_sub(self.asleep(proc, tid)?),
            };
            Some((tid, left))
        });
        left.collect()
    }

    /// How long a thread had been asleep when it was asked to stop. It is not known of a thread that woke for another reason in
    /// between: the stop itself is the one time it gave its CPU away since.
    fn asleep(&mut self, proc: &Proc, tid: i32) -> Option<u64> {
        let (before, cpu) = *self.threads.get(&tid)?;
        let after = proc.thread(tid).ok()?.sched().ok()?;
        if after.voluntary_switches != before.voluntary_switches + 1 {
            return None;
        }
        let fell_asleep = before.accounted_ns.checked_add_signed(self.clocks.lag(cpu)?)?;
        self.asked.checked_sub(fell_asleep)
    }
}

/// A wait with a time-out that an earlier stop interrupted. From then on the thread is in restart_syscall, which tells nothing of the
/// call that it goes on with, and which nobody but this kernel can go on with.
#[derive(Clone, Debug)]
pub(crate) struct Begun {
    registers: Registers,
    /// When the time-out comes, in nanoseconds of `CLOCK_MONOTONIC`, where that is known.
    until: Option<u64>,
}

impl Begun {
    /// Of a thread that was stopped with these registers, when at `asked` this much time was left.
    pub(crate) fn of(registers: Registers, left: Option<u64>, asked: u64) -> Option<Self> {
        let until = left.map(|left| asked.saturating_add(left));
        let waits = Interruption::of(&registers) == Interruption::RestartBlock;
        (waits && registers.orig_rax() != RESTART).then_some(Self { registers, until })
    }

    /// The registers with the call that was interrupted, and the time that is left at `asked`, if these are of a thread that has been
    /// in it ever since.
    pub(crate) fn go_on(&self, registers: &[u64], asked: u64) -> Option<(Vec<u64>, Option<u64>)> {
        let mut now = self.registers;
        now.set_orig_rax(RESTART);
        let same = now.words().as_slice() == registers;
        let left = self.until.map(|until| until.saturating_sub(asked));
        same.then(|| (self.registers.words().to_vec(), left))
    }
}

/// By CPU, nanoseconds from its scheduler clock to `CLOCK_MONOTONIC`.
#[derive(Debug, Default)]
struct Clocks(BTreeMap<usize, Option<i64>>);

impl Clocks {
    fn lag(&mut self, cpu: usize) -> Option<i64> {
        *self.0.entry(cpu).or_insert_with(|| measure_lag(cpu))
    }
}

/// Goes to the CPU for a moment: yielding makes the scheduler account our own time by its clock. Whoever is made to wait between the
/// looks at both clocks knows nothing, and looks again.
fn measure_lag(cpu: usize) -> Option<i64> {
    let home = rustix::thread::sched_getaffinity(None).ok()?;
    let mut there = CpuSet::new();
    there.set(cpu);
    rustix::thread::sched_setaffinity(None, &there).ok()?;
    let lag = (0..LOOKS).find_map(|_| {
        rustix::thread::sched_yield();
        let before = monotonic();
        let own = Proc::own().and_then(|own| own.sched()).ok()?;
        let waited = monotonic().checked_sub(before)?;
        let lag = before.cast_signed().checked_sub(own.accounted_ns.cast_signed())?;
        (waited < AT_ONCE).then_some(lag)
    });
    rustix::thread::sched_setaffinity(None, &home).ok()?;
    lag
}

/// `CLOCK_MONOTONIC` now, in nanoseconds.
pub(crate) fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::try_from(now).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// The time-out of an interrupted call, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timeout {
    /// What the program asked for.
    Whole(u64),
    /// What is left of it, as the kernel wrote when the call was interrupted.
    Left(u64),
}

impl Timeout {
    fn of(registers: &Registers, memory: &ProcessMemory) -> Option<Self> {
        let number = registers.orig_rax();
        let relative = registers.rsi() & TIMER_ABSTIME == 0;
        if number == Sysno::nanosleep.number() {
            Self::of_sleep(memory, registers.rdi(), registers.rsi())
        } else if number == Sysno::clock_nanosleep.number() && relative {
            Self::of_sleep(memory, registers.rdx(), registers.r10())
        } else if number == Sysno::poll.number() {
            // The kernel takes the low half, an int; negative means for ever and is never interrupted this way.
            let ms = u32::try_from(registers.rdx() & u64::from(u32::MAX)).ok()?;
            Some(Self::Whole(u64::from(ms) * NANOSECONDS_PER_MS))
        } else if number == Sysno::futex.number() && registers.rsi() & FUTEX_COMMAND == FUTEX_WAIT {
            // The other waits of futex(2) are until an absolute time: called again, they end when they should.
            timespec(memory, registers.r10()).map(Self::Whole)
        } else {
            // The call is made again with another argument, in a register: only if that is nothing to the program.
            let ms = restart::epoll_timeout(registers)?;
            let read = |at, bytes: &mut [u8]| memory.read_at(RemoteAddr::new(at), bytes).unwrap_or(0);
            let forgotten = forgets_r10(registers.rip(), &read);
            forgotten.then_some(Self::Whole(u64::from(ms) * NANOSECONDS_PER_MS))
        }
    }

    fn of_sleep(memory: &ProcessMemory, asked: u64, rest: u64) -> Option<Self> {
        if rest == 0 {
            timespec(memory, asked).map(Self::Whole)
        } else {
            timespec(memory, rest).map(Self::Left)
        }
    }
}

/// Nanoseconds of the `timespec` at `address`.
fn timespec(memory: &ProcessMemory, address: u64) -> Option<u64> {
    let address = RemoteAddr::new(address);
    let seconds = memory.read_word(address).ok()?;
    let nanoseconds = memory.read_word(address.checked_add(8)?).ok()?;
    seconds.checked_mul(NANOSECONDS)?.checked_add(nanoseconds)
}
