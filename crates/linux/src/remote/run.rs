//! Running programs and single calls in a target.

use super::gadgets::{RT_SIGRETURN, WayBack};
use super::{Outcome, RemoteError, RemoteStage};
use crate::addr::RemoteAddr;
use crate::arch::x86_64::Registers;
use crate::program::{Accept, Action, Assembled, CallRef, ENTRY_SIZE, Program, Sysno, TrackRef, Value};
use crate::ptrace::{Event, PtraceError, Running, StopReason, Stopped};
use crate::signal::SignalSet;

/// Bytes of a `syscall` instruction.
const SYSCALL_LEN: u64 = 2;
/// Interrupts on, everything else off: no single-stepping, direction up.
const PLAIN_FLAGS: u64 = 0x202;

impl RemoteStage {
    /// Runs a program: each thread named walks its track, all at once; the call returns when all have ended. The program holds
    /// only the questions: the way back is added to each track here, and a failing entry leads there.
    ///
    /// A program must not wait for anything: the target stands still.
    ///
    /// # Errors
    /// When the program could not be run or the target was killed. Entries that fail are part of the [`Outcome`].
    ///
    /// # Panics
    /// When a thread is not of this stage, a track has failure entries of its own, spawns, or waits at a barrier (a thread would
    /// wait for ever if the tracer died).
    pub fn run(&mut self, program: &Program, threads: &[(TrackRef, i32)]) -> Result<Outcome, RemoteError> {
        let mut program = program.clone();
        let ends = add_way_back(&mut program, self.end_signal);
        let scratch = self.scratch_for(program.assembled_size())?;
        let assembled = program.assemble(scratch.base);
        self.memory.write_all_at(scratch.base, assembled.bytes())?;
        let mut walks = Vec::with_capacity(threads.len());
        for &(track, tid) in threads {
            let end = entry(&assembled, ends[track.index()]);
            let walk = Walk { index: self.index(tid), track, end };
            self.write_frame(walk.index)?;
            walks.push(walk);
        }
        for walk in &walks {
            let parked = self.parked_registers(walk.index, self.frame_address(walk.index));
            self.send(walk.index, &parked, &executor_registers(&parked, walk.track, &assembled))?;
        }
        self.walk_all(&walks)?;
        let mut memory = vec![0; assembled.bytes().len()];
        self.memory.read_exact_at(scratch.base, &mut memory)?;
        Ok(Outcome { assembled, memory })
    }

    /// Makes one call with the first thread through the target's own code, standing on the prepared stack.
    pub(super) fn call(&mut self, call: Sysno, args: [u64; 6]) -> Result<i64, RemoteError> {
        let parked = self.parked_registers(0, self.prepared.frame());
        let mut registers = parked;
        registers.set_call(call.number(), args);
        registers.set_rip(self.gadgets.syscall_ret.get());
        registers.set_rsp(self.prepared.stack_pointer(&self.gadgets).get());
        self.send(0, &parked, &registers)?;
        loop {
            match self.step(0, Stopped::syscall)? {
                StopReason::SyscallEnter => break,
                reason => self.pass(0, reason)?,
            }
        }
        loop {
            // Any stop takes an interruption back, so it is asked for each time.
            self.tracee(0)?.interrupt_next()?;
            match self.step(0, |tracee| tracee.cont(0))? {
                StopReason::EventStop | StopReason::Group(_) => break,
                reason => self.pass(0, reason)?,
            }
        }
        let after = self.tracee(0)?.registers()?;
        if after.rip() != self.gadgets.syscall_ret.get() + SYSCALL_LEN {
            return Err(unexpected(self.tracee(0)?, StopReason::EventStop));
        }
        Ok(after.rax().cast_signed())
    }

    fn index(&self, tid: i32) -> usize {
        let found = self.threads.iter().position(|thread| thread.saved.tid == tid);
        found.expect("a thread of this stage")
    }

    /// The tracee with this index, stopped.
    fn tracee(&self, index: usize) -> Result<&Stopped, RemoteError> {
        let thread = &self.threads[index];
        thread.tracee.as_ref().ok_or_else(|| RemoteError::Ended {
            tid: thread.saved.tid,
            status: thread.ended.unwrap_or(crate::ptrace::ExitStatus::Unknown),
        })
    }

    fn frame_address(&self, index: usize) -> RemoteAddr {
        let scratch = self.scratch.expect("scratch memory is there while a program runs");
        scratch.frame(index, super::stage::frame_size(&self.threads[index].saved))
    }

    /// Writes the frame that leads a thread back, once.
    fn write_frame(&mut self, index: usize) -> Result<(), RemoteError> {
        if !self.threads[index].framed {
            let address = self.frame_address(index);
            let frame = self.frame(index, address)?;
            self.memory.write_all_at(address, &frame)?;
            self.threads[index].framed = true;
        }
        Ok(())
    }

    /// Between programs a thread stands at the target's own `rt_sigreturn`, with its frame: the program's bytes may change then.
    fn parked_registers(&self, index: usize, frame: RemoteAddr) -> Registers {
        let mut registers = self.threads[index].saved.registers;
        let (number, place) = match self.gadgets.way_back {
            WayBack::Sigreturn(sigreturn) => (0, sigreturn),
            WayBack::PopRax(_) => (RT_SIGRETURN, self.gadgets.syscall_ret),
        };
        registers.set_call(number, [0; 6]);
        registers.set_rip(place.get());
        registers.set_rsp(frame.get());
        registers.set_eflags(PLAIN_FLAGS);
        registers
    }

    /// Sets a thread's registers. The first time it is parked before its signals are blocked, and only then sent on: at no moment
    /// it would stay with signals blocked, or end a program with the end signal blocked, were the tracer to die.
    fn send(&mut self, index: usize, parked: &Registers, registers: &Registers) -> Result<(), RemoteError> {
        let blocked = SignalSet::ALL.without(self.end_signal);
        let away = std::mem::replace(&mut self.threads[index].away, true);
        let tracee = self.tracee(index)?;
        if !away {
            tracee.set_registers(parked)?;
            tracee.set_signal_mask(blocked)?;
        }
        Ok(tracee.set_registers(registers)?)
    }

    /// Lets all go, waits for all, and parks them.
    fn walk_all(&mut self, walks: &[Walk]) -> Result<(), RemoteError> {
        let mut outcome = Ok(());
        let mut running = Vec::with_capacity(walks.len());
        for walk in walks {
            let started = self.threads[walk.index].tracee.take().map(|tracee| tracee.cont(0));
            match started {
                Some(Ok(tracee)) => running.push((walk, tracee)),
                Some(Err(error)) => outcome = outcome.and(Err(error.into())),
                None => outcome = outcome.and(self.tracee(walk.index).map(|_| ())),
            }
        }
        // The first thread last: it is mostly the leader, whose end the kernel tells last.
        running.sort_by_key(|(walk, _)| std::cmp::Reverse(walk.index));
        for (walk, tracee) in running {
            outcome = outcome.and(self.walk(walk, tracee));
        }
        outcome
    }

    fn walk(&mut self, walk: &Walk, tracee: Running) -> Result<(), RemoteError> {
        let mut reason = self.wait(walk.index, tracee)?;
        while !self.is_at_end(walk, reason)? {
            self.pass(walk.index, reason)?;
            reason = self.step(walk.index, |tracee| tracee.cont(0))?;
        }
        let parked = self.parked_registers(walk.index, self.frame_address(walk.index));
        self.tracee(walk.index)?.give_up_signal();
        Ok(self.tracee(walk.index)?.set_registers(&parked)?)
    }

    fn is_at_end(&self, walk: &Walk, reason: StopReason) -> Result<bool, RemoteError> {
        let StopReason::Signal(info) = reason else { return Ok(false) };
        let registers = self.tracee(walk.index)?.registers()?;
        Ok(info.signal() == self.end_signal && registers.r12() == walk.end.get())
    }

    fn step(
        &mut self,
        index: usize,
        resume: impl FnOnce(Stopped) -> Result<Running, PtraceError>,
    ) -> Result<StopReason, RemoteError> {
        self.tracee(index)?;
        let tracee = self.threads[index].tracee.take().expect("just seen");
        self.wait(index, resume(tracee)?)
    }

    fn wait(&mut self, index: usize, tracee: Running) -> Result<StopReason, RemoteError> {
        match tracee.wait()? {
            Event::Stopped(tracee, reason) => {
                self.threads[index].tracee = Some(tracee);
                Ok(reason)
            }
            Event::Exited(tid, status) => {
                self.threads[index].ended = Some(status);
                Err(RemoteError::Ended { tid, status })
            }
        }
    }

    /// A stop on the way that is not the end: notices of job control pass, stop signals are kept for later.
    fn pass(&mut self, index: usize, reason: StopReason) -> Result<(), RemoteError> {
        match reason {
            StopReason::EventStop | StopReason::Group(_) => Ok(()),
            StopReason::Signal(info) if [libc::SIGSTOP, self.end_signal].contains(&info.signal()) => {
                self.foreign.push(info.signal());
                Ok(())
            }
            reason => Err(unexpected(self.tracee(index)?, reason)),
        }
    }
}

fn executor_registers(parked: &Registers, track: TrackRef, assembled: &Assembled) -> Registers {
    let mut registers = *parked;
    registers.set_rip(assembled.code().get());
    registers.set_r12(assembled.first_entry(track).get());
    registers.set_r13(assembled.context(track).get());
    registers
}

/// A thread on its track.
struct Walk {
    index: usize,
    track: TrackRef,
    /// The entry that ends the program.
    end: RemoteAddr,
}

/// Adds to each track how it ends and, if nobody is there to see it, how the thread goes back to what it did. Ids are asked for:
/// the target may have others in its own pid namespace.
fn add_way_back(program: &mut Program, end_signal: i32) -> Vec<CallRef> {
    let tracks = program.tracks().len();
    let add = |index| {
        let track = TrackRef(index);
        let calls = &program.tracks()[index];
        assert!(calls.on_failure.is_none(), "the stage gives tracks their failure entries");
        let plain = calls.calls.iter().all(|call| matches!(call.action, Action::Call(_)));
        assert!(plain, "a remote program neither spawns nor waits at barriers");
        program.on_failure(track);
        let pid = program.call(track, Sysno::getpid, []).accept(Accept::Any).done();
        let tid = program.call(track, Sysno::gettid, []).accept(Accept::Any).done();
        let args = [pid.into(), tid.into(), Value::from(end_signal)];
        let end = program.call(track, Sysno::tgkill, args).accept(Accept::Any).note("the end").done();
        let _ = program.call(track, Sysno::rt_sigreturn, []).accept(Accept::Any).note("if nobody saw it");
        end
    };
    (0..tracks).map(add).collect()
}

fn entry(assembled: &Assembled, call: CallRef) -> RemoteAddr {
    assembled.first_entry(call.track) + (call.index * ENTRY_SIZE) as u64
}

fn unexpected(tracee: &Stopped, reason: StopReason) -> RemoteError {
    let instruction = tracee.registers().map_or(0, |registers| registers.rip());
    RemoteError::Unexpected { tid: tracee.tid(), instruction, reason: Box::new(reason) }
}
