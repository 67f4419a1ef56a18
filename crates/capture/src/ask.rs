//! What only the target itself can tell: one program of system calls, with a track for every thread.
//!
//! Nothing of it stays in the target: afterwards its registers, masks and memory are as they were.

mod contexts;
mod policies;
pub(crate) mod queues;
mod settings;
mod undo;

use std::collections::BTreeMap;

use rewake_image::records::{Process, Thread, Vma};
use rewake_linux::proc::Mapping;
use rewake_linux::program::{Accept, CallRef, DataRef, Program, Sysno, TrackRef, Value};
use rewake_linux::remote::{Outcome, RemoteError, RemoteStage};

use self::contexts::Contexts;
use self::policies::{Modes, Policies};
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

impl Frozen {
    /// Asks the target about itself; its record without descriptors, mappings and pages.
    ///
    /// # Errors
    /// When the target cannot be asked or was killed meanwhile.
    pub(crate) fn ask(&mut self, ids: &Ids, filters: &mut seccomp::Filters) -> Result<Process> {
        let pid = self.proc.id();
        let mut program = Program::new();
        let tracks: Vec<(TrackRef, i32)> =
            self.threads.keys().map(|tid| (program.track(format!("thread {tid}")), *tid)).collect();
        let leader = tracks.iter().find(|(_, tid)| *tid == pid).or(tracks.first()).map(|(track, _)| *track);
        let leader =
            leader.ok_or_else(|| CaptureError::failed("ask", pid, "process", "it has no threads"))?;
        let about_process = ProcessAnswers::ask(&mut program, leader);
        let about_timers = timers::ask(&self.proc, pid, &mut program, leader)?;
        let maps = self.proc.maps().during("read", pid, "maps")?;
        let modes = Modes::ask(&mut program, leader, &maps);
        let contexts = Contexts::ask(&mut program, leader, &maps);
        let about_threads: BTreeMap<i32, ThreadAnswers> =
            tracks.iter().map(|(track, tid)| (*tid, ThreadAnswers::ask(&mut program, *track))).collect();
        let outcome = self.run(&program, &tracks, &maps)?;

        let mut findings = Findings::new(pid);
        let mut process = process::outside(&self.proc, ids)?;
        about_process.tell(&outcome, &mut process, &mut findings);
        process.aio_contexts = contexts.tell(&outcome);
        process.posix_timers = about_timers.tell(&outcome, ids);
        process.stopped_by = self.stopped_by.map(i32::unsigned_abs);
        process.stop_told &= process.stopped_by.is_some() && process::shows_stops();
        let mut owners = threads::Owners::new();
        for (tid, stopped) in &self.threads {
            let mut thread = threads::outside(&self.proc, ids, stopped)?;
            thread.credentials.take_if(|own| Some(&*own) == process.credentials.as_ref());
            thread.remaining_ns = self.time_left.get(tid).copied();
            about_threads[tid].tell(&outcome, &mut thread, &mut findings);
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
            memory.vmas = self.policies(&modes.tell(&outcome), &maps)?;
        }
        findings.into_result()?;
        Ok(process)
    }

    /// Asks for the memory policies of the mappings that begin there, which are few.
    fn policies(&mut self, starts: &[u64], maps: &[Mapping]) -> Result<Vec<Vma>> {
        let Some(&tid) = self.threads.keys().next().filter(|_| !starts.is_empty()) else {
            return Ok(Vec::new());
        };
        let mut program = Program::new();
        let track = program.track(format!("thread {tid}"));
        let policies = Policies::ask(&mut program, track, starts);
        Ok(policies.tell(&self.run(&program, &[(track, tid)], maps)?))
    }

    /// Runs a program in the target, all of whose entries must succeed, and puts everything back.
    fn run(&mut self, program: &Program, tracks: &[(TrackRef, i32)], maps: &[Mapping]) -> Result<Outcome> {
        let pid = self.proc.id();
        let outcome = self.walk(program, tracks, maps)?;
        if let Some(failure) = outcome.failure() {
            let call = program.get(failure.at);
            let cause = std::io::Error::from_raw_os_error(i32::try_from(-failure.result).unwrap_or(0));
            return Err(CaptureError::failed("ask", pid, format!("{:?} {}", call.action, call.note), cause));
        }
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

fn remote_error(pid: i32, error: RemoteError) -> CaptureError {
    let remedy = error.remedy();
    let failed = CaptureError::failed("ask", pid, "process", error);
    match remedy {
        Some(remedy) => failed.advise(remedy),
        None => failed,
    }
}
