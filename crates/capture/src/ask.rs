//! What only the target itself can tell: one program of system calls, with a track for every thread.
//!
//! Nothing of it stays in the target: afterwards its registers, masks and memory are as they were.

mod contexts;
mod policies;
pub(crate) mod queues;
mod settings;
mod undo;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rewake_image::records::{Process, Thread, Vma};
use rewake_linux::proc::{Mapping, Proc};
use rewake_linux::program::{Accept, CallRef, DataRef, Program, Sysno, TrackRef, Value};
use rewake_linux::remote::{Outcome, RemoteError, RemoteStage};
use rewake_linux::{attributes, userfault};

use self::contexts::Contexts;
use self::policies::Modes;
pub(crate) use self::policies::Policies;
use self::settings::{ProcessSettings, ThreadSettings};
use crate::error::{CaptureError, During, Result};
use crate::findings::Findings;
use crate::freeze::Frozen;
use crate::spaces::Ids;
use crate::{process, seccomp, signals, threads, timers};

const PR_GET_PDEATHSIG: u32 = 2;
const PR_GET_DUMPABLE: u32 = 3;
const PR_GET_SECUREBITS: u32 = 27;
const PR_GET_TIMERSLACK: u32 = 30;
const PR_GET_CHILD_SUBREAPER: u32 = 37;
const PR_GET_TID_ADDRESS: u32 = 40;
/// `MEMBARRIER_CMD_GET_REGISTRATIONS`, Linux 6.3.
const MEMBARRIER_GET_REGISTRATIONS: u32 = 1 << 9;

/// Where the answers about the process will be.
struct ProcessAnswers {
    actions: DataRef,
    timers: DataRef,
    brk: CallRef,
    dumpable: CallRef,
    subreaper: DataRef,
    membarrier: CallRef,
    settings: ProcessSettings,
}

/// Where the answers about a thread will be.
struct ThreadAnswers {
    stack: DataRef,
    tid_address: DataRef,
    death_signal: DataRef,
    slack: CallRef,
    securebits: CallRef,
    settings: ThreadSettings,
}

impl ProcessAnswers {
    fn ask(program: &mut Program, track: TrackRef) -> Self {
        let subreaper = program.zeros(8);
        let zero = Value::from(0);
        let actions = signals::ask_actions(program, track);
        let timers = signals::ask_timers(program, track);
        let brk = program.call(track, Sysno::brk, [zero]).accept(Accept::Any).done();
        prctl(program, track, PR_GET_CHILD_SUBREAPER, subreaper.into());
        let dumpable = prctl(program, track, PR_GET_DUMPABLE, zero);
        let args = [Value::from(MEMBARRIER_GET_REGISTRATIONS), zero, zero];
        let membarrier = program.call(track, Sysno::membarrier, args).accept(Accept::Any).done();
        let settings = ProcessSettings::ask(program, track);
        Self { actions, timers, brk, dumpable, subreaper, membarrier, settings }
    }

    fn tell(&self, outcome: &Outcome, process: &mut Process, findings: &mut Findings) {
        process.actions = signals::actions(outcome, self.actions);
        process.interval_timers = signals::timers(outcome, self.timers);
        process.dumpable = outcome.result(self.dumpable) == 1;
        process.child_subreaper = outcome.word(self.subreaper, 0) != 0;
        self.settings.tell(outcome, process, findings);
        // Older kernels do not tell: then nothing is registered again, and the program's call fails as it would on a new thread.
        process.membarrier = u32::try_from(outcome.result(self.membarrier)).unwrap_or(0);
        if let Some(fields) = process.memory.as_mut().and_then(|memory| memory.fields.as_mut()) {
            fields.brk = outcome.result(self.brk).cast_unsigned();
        }
    }
}

impl ThreadAnswers {
    fn ask(program: &mut Program, track: TrackRef) -> Self {
        let (tid_address, death_signal) = (program.zeros(8), program.zeros(8));
        let stack = signals::ask_stack(program, track);
        prctl(program, track, PR_GET_TID_ADDRESS, tid_address.into());
        prctl(program, track, PR_GET_PDEATHSIG, death_signal.into());
        let slack = prctl(program, track, PR_GET_TIMERSLACK, Value::from(0));
        let securebits = prctl(program, track, PR_GET_SECUREBITS, Value::from(0));
        let settings = ThreadSettings::ask(program, track);
        Self { stack, tid_address, death_signal, slack, securebits, settings }
    }

    fn tell(&self, outcome: &Outcome, thread: &mut Thread, findings: &mut Findings) {
        thread.alternate_stack = signals::stack(outcome, self.stack);
        thread.clear_child_tid = outcome.word(self.tid_address, 0);
        thread.parent_death_signal = u32::try_from(outcome.word(self.death_signal, 0)).unwrap_or(0);
        thread.timer_slack_ns = outcome.result(self.slack).max(0).cast_unsigned();
        thread.securebits = u32::try_from(outcome.result(self.securebits)).unwrap_or(0);
        self.settings.tell(outcome, thread, findings);
    }
}

/// A prctl(2) whose answer may also be that the kernel does not know it.
fn prctl(program: &mut Program, track: TrackRef, option: u32, argument: Value) -> CallRef {
    let zero = Value::from(0);
    let args = [Value::from(option), argument, zero, zero, zero];
    program.call(track, Sysno::prctl, args).accept(Accept::Any).note(format!("option {option}")).done()
}

/// What is asked of a process, and where the answers will be.
pub(crate) struct Questions {
    /// To be walked by its threads.
    pub(crate) program: Program,
    /// Which thread walks which track.
    pub(crate) tracks: Vec<(TrackRef, i32)>,
    /// Its mappings when the questions were made.
    pub(crate) maps: Vec<Mapping>,
    process: ProcessAnswers,
    timers: timers::Answers,
    modes: Modes,
    contexts: Contexts,
    threads: BTreeMap<i32, ThreadAnswers>,
}

impl Questions {
    /// For a process with these threads, all of which stand still.
    ///
    /// # Errors
    /// When it was killed meanwhile.
    pub(crate) fn new(proc: &Proc, tids: impl Iterator<Item = i32>) -> Result<Self> {
        let pid = proc.id();
        let mut program = Program::new();
        let tracks: Vec<(TrackRef, i32)> =
            tids.map(|tid| (program.track(format!("thread {tid}")), tid)).collect();
        let leader = tracks.iter().find(|(_, tid)| *tid == pid).or(tracks.first()).map(|(track, _)| *track);
        let leader =
            leader.ok_or_else(|| CaptureError::failed("ask", pid, "process", "it has no threads"))?;
        let process = ProcessAnswers::ask(&mut program, leader);
        let timers = timers::ask(proc, pid, &mut program, leader)?;
        let maps = proc.maps().during("read", pid, "maps")?;
        let modes = Modes::ask(&mut program, leader, &maps);
        let contexts = Contexts::ask(&mut program, leader, &maps);
        let threads: BTreeMap<i32, ThreadAnswers> =
            tracks.iter().map(|(track, tid)| (*tid, ThreadAnswers::ask(&mut program, *track))).collect();
        Ok(Self { program, tracks, maps, process, timers, modes, contexts, threads })
    }

    /// The record of the process, without its threads.
    ///
    /// # Errors
    /// When it was killed meanwhile.
    pub(crate) fn tell(
        &self,
        proc: &Proc,
        ids: &Ids,
        outcome: &Outcome,
        findings: &mut Findings,
    ) -> Result<Process> {
        let mut process = process::outside(proc, ids)?;
        self.process.tell(outcome, &mut process, findings);
        process.aio_contexts = self.contexts.tell(outcome);
        process.posix_timers = self.timers.tell(outcome, ids);
        Ok(process)
    }

    /// Adds what a thread told of itself.
    pub(crate) fn tell_thread(
        &self,
        tid: i32,
        outcome: &Outcome,
        thread: &mut Thread,
        findings: &mut Findings,
    ) {
        self.threads[&tid].tell(outcome, thread, findings);
    }

    /// Where mappings with a memory policy begin, which are few.
    pub(crate) fn with_policies(&self, outcome: &Outcome) -> Vec<u64> {
        self.modes.tell(outcome)
    }
}

impl Frozen {
    /// Asks the target about itself; its record without descriptors, mappings and pages.
    ///
    /// # Errors
    /// When the target cannot be asked or was killed meanwhile.
    pub(crate) fn ask(&mut self, ids: &Ids, filters: &mut seccomp::Filters) -> Result<Process> {
        let pid = self.proc.id();
        let questions = Questions::new(&self.proc, self.threads.keys().copied())?;
        let outcome = self.run(&questions.program, &questions.tracks, &questions.maps)?;
        let mut findings = Findings::new(pid);
        let mut process = questions.tell(&self.proc, ids, &outcome, &mut findings)?;
        process.stopped_by = self.stopped_by.map(i32::unsigned_abs);
        process.stop_told &= process.stopped_by.is_some() && process::shows_stops();
        let mut owners = threads::Owners::new();
        for (tid, stopped) in &self.threads {
            let mut thread = threads::outside(&self.proc, ids, threads::State::of(pid, stopped)?)?;
            thread.credentials.take_if(|own| Some(&*own) == process.credentials.as_ref());
            thread.remaining_ns = self.time_left.get(tid).copied();
            self.tell_begun(*tid, &mut thread);
            questions.tell_thread(*tid, &outcome, &mut thread, &mut findings);
            threads::settle_own_fs(&self.proc, *tid, &mut thread, &mut owners, &mut findings)?;
            filters.read(pid, stopped, &mut thread, &mut findings)?;
            process.threads.push(thread);
        }
        if !self.threads.contains_key(&pid) {
            let mut leader = threads::ended_leader(&self.proc, ids)?;
            leader.credentials.take_if(|own| Some(&*own) == process.credentials.as_ref());
            process.threads.push(leader);
        }
        process.threads.sort_by_key(|thread| thread.tid);
        process.pending = threads::shared_pending(pid, self.threads.values())?;
        if let Some(memory) = &mut process.memory {
            memory.vmas = self.policies(&questions.with_policies(&outcome), &questions.maps)?;
        }
        findings.into_result()?;
        Ok(process)
    }

    /// Asks for the memory policies of the mappings that begin there.
    fn policies(&mut self, starts: &[u64], maps: &[Mapping]) -> Result<Vec<Vma>> {
        let Some(&tid) = self.threads.keys().next().filter(|_| !starts.is_empty()) else {
            return Ok(Vec::new());
        };
        let (program, track, policies) = ask_policies(tid, starts);
        Ok(policies.tell(&self.run(&program, &[(track, tid)], maps)?))
    }

    /// A userfaultfd object of the target's memory, of which it keeps nothing; `None` where it may not make one.
    ///
    /// # Errors
    /// When the target was killed meanwhile.
    pub(crate) fn userfault(&mut self) -> Result<Option<OwnedFd>> {
        let pid = self.proc.id();
        let Some(&tid) = self.threads.keys().next() else { return Ok(None) };
        let maps = self.proc.maps().during("read maps", pid, "process")?;
        let mut program = Program::new();
        let track = program.track(format!("thread {tid}"));
        for fd in self.left_over()? {
            program.call(track, Sysno::close, [Value::from(fd)]);
        }
        let made = program.call(track, Sysno::userfaultfd, [Value::from(userfault::FLAGS)]).done();
        let status = [Value::from(made), Value::from(libc::F_SETFL), Value::from(userfault::STATUS)];
        program.call(track, Sysno::fcntl, status);
        let outcome = self.walk(&program, &[(track, tid)], &maps)?;
        let Ok(fd) = i32::try_from(outcome.result(made)) else { return Ok(None) };
        if outcome.failure().is_some() {
            return Ok(None);
        }
        let own = attributes::duplicate(pid, fd);
        let mut program = Program::new();
        let track = program.track(format!("thread {tid}"));
        program.call(track, Sysno::close, [Value::from(fd)]);
        self.run(&program, &[(track, tid)], &maps)?;
        Ok(own.ok())
    }

    /// Descriptors that were left behind when somebody who asked for them was killed.
    fn left_over(&self) -> Result<Vec<i32>> {
        let pid = self.proc.id();
        let fds = self.proc.fds().during("list descriptors", pid, "fd")?;
        let flags = |fd: i32| self.proc.fdinfo(fd).map_or(0, |info| info.flags);
        let ours = fds.iter().filter(|one| userfault::is_left_over(&one.link.target, flags(one.fd)));
        Ok(ours.map(|one| one.fd).collect())
    }

    /// Runs a program in the target, all of whose entries must succeed, and puts everything back.
    fn run(&mut self, program: &Program, tracks: &[(TrackRef, i32)], maps: &[Mapping]) -> Result<Outcome> {
        let pid = self.proc.id();
        let outcome = self.walk(program, tracks, maps)?;
        check_outcome(pid, program, &outcome)?;
        Ok(outcome)
    }

    /// Runs a program in the target as far as it comes, and puts everything back.
    fn walk(&mut self, program: &Program, tracks: &[(TrackRef, i32)], maps: &[Mapping]) -> Result<Outcome> {
        let pid = self.proc.id();
        let suspended = seccomp::suspend(&self.proc, &self.threads)?;
        let threads = std::mem::take(&mut self.threads).into_values().collect();
        let mut stage = match RemoteStage::open_with(pid, threads, maps) {
            Ok(stage) => stage,
            Err(error) => {
                self.keep(error.threads);
                return Err(remote_error(pid, error.source));
            }
        };
        let outcome = stage.run(program, tracks);
        let closed = stage.close();
        self.keep(closed.threads);
        seccomp::resume(pid, &self.threads, &suspended)?;
        let outcome = outcome.map_err(|error| remote_error(pid, error))?;
        if let Some(trouble) = closed.trouble {
            return Err(remote_error(pid, trouble));
        }
        if let Some((tid, status)) = closed.ended.first() {
            let cause = format!("it was killed meanwhile ({status:?})");
            return Err(CaptureError::failed("ask", pid, format!("thread {tid}"), cause));
        }
        Ok(outcome)
    }
}

/// A program for one thread that asks for the memory policies of the mappings that begin there.
pub(crate) fn ask_policies(tid: i32, starts: &[u64]) -> (Program, TrackRef, Policies) {
    let mut program = Program::new();
    let track = program.track(format!("thread {tid}"));
    let policies = Policies::ask(&mut program, track, starts);
    (program, track, policies)
}

/// What a program met with, if an entry of it was refused.
///
/// # Errors
/// Naming the entry.
pub(crate) fn check_outcome(pid: i32, program: &Program, outcome: &Outcome) -> Result<()> {
    let Some(failure) = outcome.failure() else { return Ok(()) };
    let call = program.get(failure.at);
    let cause = std::io::Error::from_raw_os_error(i32::try_from(-failure.result).unwrap_or(0));
    Err(CaptureError::failed("ask", pid, format!("{:?} {}", call.action, call.note), cause))
}

fn remote_error(pid: i32, error: RemoteError) -> CaptureError {
    let remedy = error.remedy();
    let failed = CaptureError::failed("ask", pid, "process", error);
    match remedy {
        Some(remedy) => failed.advise(remedy),
        None => failed,
    }
}
