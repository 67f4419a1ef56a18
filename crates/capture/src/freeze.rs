//! Bringing every thread of the target to rest, and letting it go again.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use rewake_image::records::Thread;
use rewake_linux::arch::x86_64::restart;
use rewake_linux::kcmp::{self, Shared};
use rewake_linux::proc::{MappingKind, Proc};
use rewake_linux::ptrace::{self, Detached, Event, Poll, PtraceError, StopReason, Stopped};

use crate::error::{CaptureError, During, Result};
use crate::findings::Findings;
use crate::waiting::{Before, Begun, monotonic};
use crate::{kin, preflight};

/// Between looks at threads that have not stopped yet: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));
/// For how long threads that are stopped inside the vdso are let run on, to be stopped outside. A program that asks for nothing but the
/// time is found there 24 times of 25.
const STEPPING_OUT: Duration = Duration::from_millis(30);
/// The same for a process of the tree whose turn comes when that time is over.
const STEPPING_OUT_LATER: Duration = Duration::from_millis(5);
/// How often a thread is tried to be seized that may just be taking another one's place.
const SEIZURES: u32 = 5;
/// vfork(2), clone(2), clone3(2), as `/proc/PID/syscall` tells them.
const VFORKS: [&str; 3] = ["58", "56", "435"];
/// How long a killed target may take to vanish.
const DEATH_TIMEOUT: Duration = Duration::from_secs(5);

/// The target at rest. Dropping it lets the target go on.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) proc: Proc,
    /// By thread id.
    pub(crate) threads: BTreeMap<i32, Stopped>,
    begin: Instant,
    step_out_until: Instant,
    /// By thread id, the nanoseconds that were left of an interrupted call's time-out, where that is known.
    pub(crate) time_left: BTreeMap<i32, u64>,
    /// By thread id, waits that an earlier stop interrupted.
    pub(crate) begun: BTreeMap<i32, Begun>,
    /// When that was so, in nanoseconds of `CLOCK_MONOTONIC`.
    asked: u64,
    /// The signal that stopped the process, if it is stopped by job control. It stays so whoever lets it go.
    pub(crate) stopped_by: Option<i32>,
    /// The first thread had ended before it could be stopped.
    leader_ended: bool,
    vdso: Range<u64>,
}

/// A process that still runs, and what is known of it that the freeze would change.
#[derive(Debug)]
pub(crate) struct Running {
    proc: Proc,
    before: Before,
    vdso: Range<u64>,
}

impl Running {
    /// Asks process `pid`.
    ///
    /// # Errors
    /// When it is gone or may not be looked at.
    pub(crate) fn ask(pid: i32) -> Result<Self> {
        let ask = || {
            let proc = preflight::open(pid)?;
            let before = Before::ask(&proc);
            let vdso = vdso(&proc)?;
            Ok(Self { proc, before, vdso })
        };
        let mut asked = ask();
        for _ in 1..SEIZURES {
            if asked.is_ok() || kin::has_left(pid) {
                break;
            }
            // In the midst of an execve there is nothing to ask.
            std::thread::sleep(PAUSES.1);
            asked = ask();
        }
        asked
    }

    /// Stops every thread, within `timeout` from `begin`.
    ///
    /// # Errors
    /// When a thread does not stop in time or may not be traced. Threads that were stopped go on; one that still had to stop is let go
    /// when this process ends.
    pub(crate) fn freeze(self, begin: Instant, timeout: Duration) -> Result<Frozen> {
        let Self { proc, before, vdso } = self;
        let pid = proc.id();
        let mut frozen = Frozen {
            proc,
            threads: BTreeMap::new(),
            begin,
            step_out_until: (begin + STEPPING_OUT).max(Instant::now() + STEPPING_OUT_LATER),
            time_left: BTreeMap::new(),
            begun: BTreeMap::new(),
            asked: before.asked(),
            stopped_by: None,
            leader_ended: false,
            vdso,
        };
        while frozen.stop_new_threads(begin + timeout)? {}
        // The thread through which we looked may have ended meanwhile.
        frozen.proc = preflight::open(pid)?;
        frozen.time_left = before.time_left(&frozen.proc, &frozen.threads);
        Ok(frozen)
    }
}

impl Frozen {
    /// The waits with a time-out that this stop has interrupted.
    pub(crate) fn interrupted(&self) -> BTreeMap<i32, Begun> {
        let begun = self.threads.iter().filter_map(|(tid, thread)| {
            let left = self.time_left.get(tid).copied();
            Some((*tid, Begun::of(thread.registers().ok()?, left, self.asked)?))
        });
        begun.collect()
    }

    /// Puts into the record of a thread what it waits for, if that was interrupted before.
    pub(crate) fn tell_begun(&self, tid: i32, thread: &mut Thread) {
        let begun = self.begun.get(&tid).and_then(|begun| begun.go_on(&thread.registers, self.asked));
        if let Some((registers, left)) = begun {
            thread.registers = registers;
            thread.remaining_ns = left;
        }
    }

    /// Stops threads that are not stopped yet; false when there was none.
    fn stop_new_threads(&mut self, deadline: Instant) -> Result<bool> {
        let pid = self.proc.id();
        let tids = self.list_threads()?;
        let mut stopping = Vec::new();
        let mut found = false;
        self.take_out_killed(&mut stopping);
        for tid in tids.into_iter().filter(|tid| !self.threads.contains_key(tid)) {
            // Another thread may have taken its place since, by execve.
            self.leader_ended &= tid != pid || self.is_zombie(pid);
            if tid == pid && self.leader_ended || stopping.iter().any(|running| running.tid() == tid) {
                continue;
            }
            found = true;
            match seize(pid, tid)? {
                Some(running) => {
                    running.interrupt().during("interrupt", pid, format!("thread {tid}"))?;
                    stopping.push(running);
                }
                // It ended between the listing and now. The first thread stays listed.
                None => self.leader_ended |= tid == pid,
            }
        }
        found |= !stopping.is_empty();
        self.wait_for(stopping, deadline)?;
        Ok(found)
    }

    /// All threads. The one through which we looked may be gone, by another one's execve, in the midst of which there may be none at all.
    fn list_threads(&mut self) -> Result<Vec<i32>> {
        let pid = self.proc.id();
        for _ in 1..SEIZURES {
            match self.proc.threads() {
                Err(error) if error.is_gone() || error.is_missing() => {}
                listed => return listed.during("list threads", pid, "task"),
            }
            std::thread::sleep(PAUSES.1);
            self.proc = preflight::open(pid)?;
        }
        self.proc.threads().during("list threads", pid, "task")
    }

    /// Threads that were killed since they were stopped, by another one's execve or all together: whoever did it waits for us.
    fn take_out_killed(&mut self, stopping: &mut Vec<ptrace::Running>) {
        for (tid, thread) in std::mem::take(&mut self.threads) {
            match thread.if_killed() {
                Ok(running) => stopping.push(running),
                Err(thread) => drop(self.threads.insert(tid, thread)),
            }
        }
    }

    fn wait_for(&mut self, mut stopping: Vec<ptrace::Running>, deadline: Instant) -> Result<()> {
        let pid = self.proc.id();
        let mut pause = PAUSES.0;
        let mut stepping_out: Vec<ptrace::Running> = Vec::new();
        while !stopping.is_empty() {
            let mut still = Vec::with_capacity(stopping.len());
            for running in stopping {
                let object = format_args!("thread {}", running.tid()).to_string();
                match running.try_wait().during("wait", pid, &object)? {
                    // The kernel tells its end when all others have ended.
                    Poll::Pending(running) if running.tid() == pid && self.is_zombie(pid) => {
                        self.leader_ended = true;
                    }
                    Poll::Pending(running) => still.push(running),
                    Poll::Ready(Event::Stopped(stopped, StopReason::EventStop))
                        if self.may_step_out(&stopped)? =>
                    {
                        stepping_out.push(stopped.cont(0).during("continue", pid, &object)?);
                    }
                    Poll::Ready(event) => still.extend(self.take(event)?),
                }
            }
            stopping = still;
            if stopping.is_empty() && stepping_out.is_empty() {
                break;
            }
            if pause == PAUSES.1 {
                self.take_out_killed(&mut stopping);
            }
            if Instant::now() > deadline {
                return Err(self.too_slow(&stopping));
            }
            // Those that step out run on in this time.
            std::thread::sleep(if stepping_out.is_empty() { pause } else { PAUSES.0 });
            pause = (pause * 2).min(PAUSES.1);
            for running in stepping_out.drain(..) {
                running.interrupt().during("interrupt", pid, format!("thread {}", running.tid()))?;
                stopping.push(running);
            }
        }
        Ok(())
    }

    fn is_zombie(&self, tid: i32) -> bool {
        let stat = self.proc.thread(tid).and_then(|thread| thread.stat());
        stat.is_ok_and(|stat| matches!(stat.state, 'Z' | 'X'))
    }

    /// Keeps a thread that stopped as it should; one that stopped for another reason runs on towards that.
    fn take(&mut self, event: Event) -> Result<Option<ptrace::Running>> {
        let pid = self.proc.id();
        match event {
            Event::Exited(tid, status) => {
                tracing::debug!(tid, ?status, "thread ended during the freeze");
                Ok(None)
            }
            Event::Stopped(stopped, StopReason::EventStop) => {
                self.threads.insert(stopped.tid(), stopped);
                Ok(None)
            }
            Event::Stopped(stopped, StopReason::Group(signal)) => {
                self.stopped_by = Some(signal);
                self.threads.insert(stopped.tid(), stopped);
                Ok(None)
            }
            Event::Stopped(stopped, reason) => {
                // A stop takes back the interruption: deliver the signal, then ask again.
                let object = format!("thread {}", stopped.tid());
                let signal = if let StopReason::Signal(info) = reason { info.signal() } else { 0 };
                let running = stopped.cont(signal).during("continue", pid, &object)?;
                running.interrupt().during("interrupt", pid, &object)?;
                Ok(Some(running))
            }
        }
    }

    /// Whether a thread is inside the vdso, where it spends some nanoseconds, and there is time to let it run on. Inside, it could not go
    /// on under another kernel, which has another vdso.
    fn may_step_out(&self, stopped: &Stopped) -> Result<bool> {
        if Instant::now() > self.step_out_until {
            return Ok(false);
        }
        let tid = stopped.tid();
        match stopped.registers() {
            // It was killed, and is seen to be at the next look.
            Err(error) if error.is_gone() => Ok(false),
            registers => {
                let registers =
                    registers.during("read registers", self.proc.id(), format!("thread {tid}"))?;
                Ok(self.vdso.contains(&registers.rip()))
            }
        }
    }

    fn too_slow(&self, stopping: &[ptrace::Running]) -> CaptureError {
        if let Some(error) = stopping.iter().find_map(|running| self.waits_for_vfork(running.tid())) {
            return error;
        }
        let names: Vec<String> =
            stopping.iter().take(3).map(|running| self.where_it_is(running.tid())).collect();
        let object = format!("thread {}", names.join(", "));
        let waited = self.begin.elapsed().as_secs();
        CaptureError::failed("freeze", self.proc.id(), object, format!("did not stop within {waited} s"))
            .advise("the thread waits in the kernel for a device or a network file system: try again later")
    }

    /// A thread that made a child by vfork(2) does not stop before that has ended or become another program.
    fn waits_for_vfork(&self, tid: i32) -> Option<CaptureError> {
        let pid = self.proc.id();
        let thread = self.proc.thread(tid).ok()?;
        let call = thread.read("syscall").ok()?;
        let number = call.split(|byte| *byte == b' ').next()?;
        if !VFORKS.contains(&str::from_utf8(number).ok()?.trim()) {
            return None;
        }
        let shares = |child: &i32| kcmp::compare(Shared::Memory, pid, *child).is_ok_and(Ordering::is_eq);
        let child = self.proc.children().ok()?.into_iter().find(shares)?;
        let reason = format!(
            "it waits for its vfork child {child}, which has neither ended nor become another program within {} s",
            self.begin.elapsed().as_secs()
        );
        let error = CaptureError::failed("freeze", pid, format!("thread {tid}"), reason);
        Some(error.advise(format!("wait until process {child} has done so, or end it, and try again")))
    }

    /// `4711 in state D at nfs_wait`.
    fn where_it_is(&self, tid: i32) -> String {
        let thread = self.proc.thread(tid);
        let state = thread.as_ref().ok().and_then(|thread| thread.stat().ok()).map_or('?', |stat| stat.state);
        let wchan = thread.ok().and_then(|thread| thread.wchan().ok()).unwrap_or_default();
        format!("{tid} in state {state} at {}", String::from_utf8_lossy(&wchan))
    }

    /// What only a stopped thread tells.
    pub(crate) fn check_registers(&self, findings: &mut Findings) -> Result<()> {
        use rewake_linux::arch::x86_64::regs::CODE_SEGMENT_64;
        let pid = self.proc.id();
        for (tid, thread) in &self.threads {
            let object = format!("thread {tid}");
            if thread.registers().during("read registers", pid, &object)?.cs() != CODE_SEGMENT_64 {
                findings.add_thread(*tid, "it runs 32-bit code", "use a 64-bit build of the program");
            }
            if thread.dispatches_syscalls().during("ask for system call dispatch", pid, &object)? {
                findings.add_thread(
                    *tid,
                    "it dispatches its system calls to itself",
                    "run the program without that emulator",
                );
            }
        }
        Ok(())
    }

    /// Kills it.
    ///
    /// # Errors
    /// When that is not permitted.
    pub(crate) fn kill(&self) -> Result<()> {
        let pid = self.proc.id();
        let process = rustix::process::Pid::from_raw(pid).expect("a process id is positive");
        rustix::process::kill_process(process, rustix::process::Signal::KILL).during("kill", pid, "process")
    }

    /// Waits until it has vanished, which was killed.
    ///
    /// # Errors
    /// When it does not vanish in time.
    pub(crate) fn bury(mut self) -> Result<()> {
        let pid = self.proc.id();
        self.reap()?;
        let deadline = Instant::now() + DEATH_TIMEOUT;
        while self.proc.stat().is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X')) {
            if Instant::now() > deadline {
                return Err(CaptureError::failed("kill", pid, "process", "it did not end in time"));
            }
            std::thread::sleep(PAUSES.1);
        }
        Ok(())
    }

    /// Waits for the death of every thread, the first thread last: the kernel reports it when all others are reaped.
    fn reap(&mut self) -> Result<()> {
        let pid = self.proc.id();
        let mut threads: Vec<Stopped> = std::mem::take(&mut self.threads).into_values().collect();
        threads.sort_by_key(|thread| thread.tid() == pid);
        for thread in threads {
            let object = format!("thread {}", thread.tid());
            let mut running = match thread.detach(0).during("detach", pid, &object)? {
                Detached::Free => continue,
                Detached::Gone(running) => running,
            };
            while let Event::Stopped(stopped, _) = running.wait().during("wait", pid, &object)? {
                running = stopped.cont(0).during("continue", pid, &object)?;
            }
        }
        Ok(())
    }

    /// Takes threads back from whoever had them meanwhile.
    pub(crate) fn keep(&mut self, threads: Vec<Stopped>) {
        self.threads.extend(threads.into_iter().map(|thread| (thread.tid(), thread)));
    }

    /// A wait of epoll that is made again is not made for longer than it had still to last.
    fn shorten_wait(&self, thread: &Stopped) -> std::result::Result<(), PtraceError> {
        let Some(left) = self.time_left.get(&thread.tid()) else { return Ok(()) };
        let registers = thread.registers()?;
        if restart::is_epoll_again(&registers) {
            let left = self.asked.saturating_add(*left).saturating_sub(monotonic());
            thread.set_registers(&restart::with_epoll_time_left(&registers, left))?;
        }
        Ok(())
    }

    fn detach(&mut self) {
        for (tid, thread) in std::mem::take(&mut self.threads) {
            // Else it waits longer.
            if let Err(error) = self.shorten_wait(&thread) {
                tracing::debug!(tid, %error, "shorten a wait");
            }
            if let Err(error) = thread.detach(0) {
                tracing::debug!(tid, %error, "detach");
            }
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Where the vdso is; nowhere in a program that has none.
fn vdso(proc: &Proc) -> Result<Range<u64>> {
    let maps = proc.maps().during("read maps", proc.id(), "mappings")?;
    let vdso = maps.iter().find(|mapping| mapping.kind() == MappingKind::Vdso);
    Ok(vdso.map_or(0..0, |mapping| mapping.start.get()..mapping.end.get()))
}

/// Begins to trace a thread, or goes on to; nothing when it has ended.
fn seize(pid: i32, tid: i32) -> Result<Option<ptrace::Running>> {
    let mut tries = SEIZURES;
    loop {
        tries -= 1;
        let error = match ptrace::seize_while_reaping(tid, ptrace::Options::default()) {
            Ok(running) => return Ok(Some(running)),
            Err(error) if error.is_gone() => return Ok(None),
            Err(error) => error,
        };
        // One of ours may have taken this id, by execve, or is about to.
        if let Ok(running) = ptrace::reborn(tid) {
            return Ok(Some(running));
        }
        if tries == 0 {
            return Err(seize_error(pid, tid, error));
        }
        std::thread::sleep(PAUSES.1);
    }
}

fn seize_error(pid: i32, tid: i32, error: PtraceError) -> CaptureError {
    let denied = error.source.raw_os_error() == Some(libc::EPERM);
    let error = CaptureError::failed("ptrace", pid, format!("thread {tid}"), error.source);
    if denied {
        error.advise("run the command as the owner of the process, or as root; end any debugger first")
    } else {
        error
    }
}
