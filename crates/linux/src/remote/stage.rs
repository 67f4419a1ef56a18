//! Taking over a stopped target and handing it back.

use super::prepared::Prepared;
use super::{Closed, Gadgets, OpenError, RemoteError, SavedThread};
use crate::addr::{PAGE_SIZE, RemoteAddr, page_up};
use crate::arch::x86_64::regs::CODE_SEGMENT_64;
use crate::arch::x86_64::restart::{CriticalSection, for_sigreturn, invisible_restart};
use crate::arch::x86_64::{AltStack, Registers, SignalFrame};
use crate::executor;
use crate::memory::ProcessMemory;
use crate::proc::{Mapping, Proc, Status};
use crate::program::Sysno;
use crate::ptrace::{Event, ExitStatus, PtraceError, Stopped};
use crate::signal::SignalSet;

/// Room for a thread's frame and, below it, for a signal handler that runs should the tracer die at the worst moment.
pub(super) const SLOT: u64 = 32 << 10;

/// Signals that may end a program, in order of preference: ignored by default.
const END_SIGNALS: [i32; 4] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD, libc::SIGCONT];

/// Signals that the kernel drops where they are pending as soon as a SIGCONT is sent.
const DROPPED_BY_SIGCONT: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Where `struct rseq` has the address of the critical section.
const RSEQ_CS: u64 = 8;

/// A live target whose stopped threads run programs for us.
#[derive(Debug)]
pub struct RemoteStage {
    pub(super) pid: i32,
    pub(super) process: Proc,
    pub(super) memory: ProcessMemory,
    pub(super) gadgets: Gadgets,
    pub(super) prepared: Prepared,
    /// Ends a program.
    pub(super) end_signal: i32,
    /// The first one makes the calls that map and unmap the scratch memory.
    pub(super) threads: Vec<Thread>,
    pub(super) scratch: Option<Scratch>,
    /// Signals that stopped a thread during a run and are sent again at the end.
    pub(super) foreign: Vec<i32>,
}

/// A thread of the target.
#[derive(Debug)]
pub(super) struct Thread {
    pub(super) saved: SavedThread,
    /// Empty only while it runs, and when it has ended.
    pub(super) tracee: Option<Stopped>,
    pub(super) ended: Option<ExitStatus>,
    /// Its registers and mask are not its own.
    pub(super) away: bool,
    /// Its frame stands in the scratch memory.
    pub(super) framed: bool,
}

/// Memory mapped in the target: a program, then one slot per thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scratch {
    pub(super) base: RemoteAddr,
    pub(super) program_len: u64,
    pub(super) len: u64,
}

impl RemoteStage {
    /// Takes over the stopped threads of process `pid`: all of them, each in a stop inside the kernel's signal handling
    /// ([`crate::ptrace::StopReason::EventStop`] or `Group`). Nothing in the target is changed yet.
    ///
    /// # Errors
    /// When the target is of a kind in which safe remote calls are not possible. The threads come back.
    ///
    /// # Panics
    /// When `threads` is empty.
    pub fn open(pid: i32, threads: Vec<Stopped>) -> Result<Self, Box<OpenError>> {
        match Proc::open_living(pid).and_then(|process| process.maps()) {
            Ok(maps) => Self::open_with(pid, threads, &maps),
            Err(error) => Err(Box::new(OpenError { threads, source: error.into() })),
        }
    }

    /// The same for who has the target's mappings at hand, as they are now.
    ///
    /// # Errors
    /// As [`Self::open`].
    ///
    /// # Panics
    /// As [`Self::open`].
    pub fn open_with(pid: i32, threads: Vec<Stopped>, maps: &[Mapping]) -> Result<Self, Box<OpenError>> {
        assert!(!threads.is_empty(), "a process has a thread");
        match Self::look(pid, &threads, maps) {
            Ok((stage, saved)) => Ok(stage.with_threads(saved, threads)),
            Err(source) => Err(Box::new(OpenError { threads, source })),
        }
    }

    fn look(
        pid: i32,
        threads: &[Stopped],
        maps: &[Mapping],
    ) -> Result<(Self, Vec<SavedThread>), RemoteError> {
        let process = Proc::open_living(pid)?;
        let memory = ProcessMemory::open(pid)?;
        let saved = threads.iter().map(|thread| save(thread, &memory));
        let saved = saved.collect::<Result<Vec<_>, RemoteError>>()?;
        let gadgets = Gadgets::find(maps, &memory)?;
        let end_signal = end_signal(&process.status()?, threads)?;
        let frame_size = frame_size(&saved[0]);
        let prepared = Prepared::choose(maps, &saved, &memory, frame_size)?;
        let (threads, foreign) = (Vec::new(), Vec::new());
        let stage =
            Self { pid, process, memory, gadgets, prepared, end_signal, threads, scratch: None, foreign };
        Ok((stage, saved))
    }

    fn with_threads(mut self, saved: Vec<SavedThread>, tracees: Vec<Stopped>) -> Self {
        let pairs = saved.into_iter().zip(tracees);
        let thread =
            |(saved, tracee)| Thread { saved, tracee: Some(tracee), ended: None, away: false, framed: false };
        self.threads = pairs.map(thread).collect();
        self
    }

    /// What a thread was doing when the stage took over.
    #[must_use]
    pub fn saved(&self, tid: i32) -> Option<&SavedThread> {
        self.threads.iter().map(|thread| &thread.saved).find(|saved| saved.tid == tid)
    }

    /// What all threads were doing when the stage took over, in the order they were handed in.
    pub fn all_saved(&self) -> impl Iterator<Item = &SavedThread> {
        self.threads.iter().map(|thread| &thread.saved)
    }

    /// Puts everything back: scratch memory unmapped, registers and masks as they were; calls that ended with EINTR only because
    /// of the stop are made to go on. The threads stay stopped.
    pub fn close(mut self) -> Closed {
        let trouble = self.put_all_back().err();
        self.collect_ended();
        let mut closed = Closed { threads: Vec::new(), ended: Vec::new(), trouble };
        for thread in self.threads {
            closed.threads.extend(thread.tracee);
            closed.ended.extend(thread.ended.map(|status| (thread.saved.tid, status)));
        }
        closed
    }

    fn put_all_back(&mut self) -> Result<(), RemoteError> {
        let others = self.put_others_back();
        let unmapped = self.unmap();
        let first = self.put_back(0);
        others.and(unmapped).and(first)?;
        self.prepared.restore(&self.memory)?;
        for signal in std::mem::take(&mut self.foreign) {
            if let Some(signal) = rustix::process::Signal::from_named_raw(signal)
                && let Some(pid) = rustix::process::Pid::from_raw(self.pid)
            {
                rustix::process::kill_process(pid, signal).map_err(|errno| PtraceError {
                    operation: "kill",
                    tid: self.pid,
                    source: errno.into(),
                })?;
            }
        }
        Ok(())
    }

    fn put_others_back(&mut self) -> Result<(), RemoteError> {
        (1..self.threads.len()).map(|index| self.put_back(index)).fold(Ok(()), Result::and)
    }

    /// Gives a thread its own mask and registers, in this order: see the [module](super).
    fn put_back(&mut self, index: usize) -> Result<(), RemoteError> {
        let thread = &self.threads[index];
        let Some(tracee) = &thread.tracee else { return Ok(()) };
        let registers = self.own_registers(&thread.saved)?;
        if thread.away {
            tracee.set_signal_mask(thread.saved.mask)?;
        }
        if thread.away || registers != thread.saved.registers {
            tracee.set_registers(&registers)?;
        }
        self.threads[index].away = false;
        Ok(())
    }

    /// A thread's own registers, its EINTR put right when it is only of our making.
    fn own_registers(&self, saved: &SavedThread) -> Result<Registers, RemoteError> {
        if invisible_restart(&saved.registers, false).is_none() {
            return Ok(saved.registers);
        }
        let status = self.process.thread(saved.tid)?.status()?;
        let pending = SignalSet::from_bits((status.pending | status.shared_pending) & status.caught);
        let due = !pending.difference(saved.mask).is_empty();
        Ok(invisible_restart(&saved.registers, due).unwrap_or(saved.registers))
    }

    /// The frame that leads a thread back to what it did, to stand at `address`.
    pub(super) fn frame(&self, index: usize, address: RemoteAddr) -> Result<Vec<u8>, RemoteError> {
        let saved = &self.threads[index].saved;
        let registers = for_sigreturn(&self.own_registers(saved)?);
        Ok(frame_of(saved, &registers).build(address))
    }

    /// Makes sure of scratch memory for a program of `program_len` bytes (whole pages).
    pub(super) fn scratch_for(&mut self, program_len: u64) -> Result<Scratch, RemoteError> {
        if let Some(scratch) = self.scratch
            && scratch.program_len >= program_len
        {
            return Ok(scratch);
        }
        if self.scratch.is_some() {
            self.put_others_back()?;
            self.unmap()?;
        }
        let frame = self.frame(0, self.prepared.frame())?;
        self.prepared.write(&self.memory, &self.gadgets, &frame)?;
        let len = program_len + SLOT * self.threads.len() as u64;
        let base = self.map_scratch(len)?;
        let scratch = Scratch { base, program_len, len };
        self.scratch = Some(scratch);
        Ok(scratch)
    }

    /// Maps scratch memory for code and data at once; where memory may not be both writable and executable (`PR_SET_MDWE`, a security
    /// policy), the code's pages replace the first ones. They are written from outside.
    fn map_scratch(&mut self, len: u64) -> Result<RemoteAddr, RemoteError> {
        let bits = |bits: i32| u64::from(bits.cast_unsigned());
        let (read, write, exec) = (bits(libc::PROT_READ), bits(libc::PROT_WRITE), bits(libc::PROT_EXEC));
        let flags = bits(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        let failed = |stage: &Self, source| stage.scratch_error("mmap", len, source);
        let all = self.call(Sysno::mmap, [0, len, read | write | exec, flags, u64::MAX, 0])?;
        if ![-i64::from(libc::EACCES), -i64::from(libc::EPERM)].contains(&all) {
            return checked(all).map(RemoteAddr::new).map_err(|source| failed(self, source));
        }
        let data = self.call(Sysno::mmap, [0, len, read | write, flags, u64::MAX, 0])?;
        let base = checked(data).map_err(|source| failed(self, source))?;
        let code_len = page_up(executor::code().len() as u64);
        let fixed = flags | bits(libc::MAP_FIXED);
        let code = self.call(Sysno::mmap, [base, code_len, read | exec, fixed, u64::MAX, 0])?;
        if let Err(source) = checked(code) {
            self.call(Sysno::munmap, [base, len, 0, 0, 0, 0])?;
            return Err(failed(self, source));
        }
        Ok(RemoteAddr::new(base))
    }

    /// Unmaps the scratch memory; every thread but the first has left it.
    fn unmap(&mut self) -> Result<(), RemoteError> {
        let Some(scratch) = self.scratch else { return Ok(()) };
        let result = self.call(Sysno::munmap, [scratch.base.get(), scratch.len, 0, 0, 0, 0])?;
        checked(result).map_err(|source| self.scratch_error("munmap", scratch.len, source))?;
        self.scratch = None;
        for thread in &mut self.threads {
            thread.framed = false;
        }
        Ok(())
    }

    fn scratch_error(&self, operation: &'static str, len: u64, source: std::io::Error) -> RemoteError {
        RemoteError::Scratch { operation, pid: self.pid, len, source }
    }

    /// Finds out which threads were killed meanwhile. The first last: it is mostly the leader, whose end the kernel tells last.
    fn collect_ended(&mut self) {
        for thread in self.threads.iter_mut().rev() {
            let Some(tracee) = thread.tracee.take() else { continue };
            if !tracee.registers().is_err_and(|error| error.is_gone()) {
                thread.tracee = Some(tracee);
                continue;
            }
            match tracee.cont(0).and_then(crate::ptrace::Running::wait) {
                Ok(Event::Stopped(tracee, _)) => thread.tracee = Some(tracee),
                Ok(Event::Exited(_, status)) => thread.ended = Some(status),
                Err(_) => thread.ended = Some(ExitStatus::Unknown),
            }
        }
    }
}

impl Scratch {
    /// Where the frame of the thread with this index stands: at the top of its slot.
    pub(super) fn frame(&self, index: usize, size: usize) -> RemoteAddr {
        let slot_end = self.base + self.program_len + SLOT * (index as u64 + 1);
        RemoteAddr::new(slot_end.get() - page_up(size as u64).max(PAGE_SIZE))
    }
}

fn frame_of<'a>(saved: &'a SavedThread, registers: &'a Registers) -> SignalFrame<'a> {
    SignalFrame { registers, xstate: &saved.xstate, mask: saved.mask, alt_stack: AltStack::Keep }
}

/// Length of a thread's frame, in bytes.
pub(super) fn frame_size(saved: &SavedThread) -> usize {
    frame_of(saved, &saved.registers).size()
}

/// A system call's result.
fn checked(result: i64) -> Result<u64, std::io::Error> {
    match result {
        -4095..=-1 => Err(std::io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(i32::MAX))),
        _ => Ok(result.cast_unsigned()),
    }
}

/// Reads a thread's state, and refuses kinds of threads that remote calls cannot use.
fn save(thread: &Stopped, memory: &ProcessMemory) -> Result<SavedThread, RemoteError> {
    let tid = thread.tid();
    let unsupported = |reason| Err(RemoteError::Unsupported { tid, reason });
    let mut registers = thread.registers()?;
    let xstate = thread.xstate()?;
    if registers.cs() != CODE_SEGMENT_64 {
        return unsupported("it runs 32-bit code");
    }
    if xstate.has_shadow_stack() {
        return unsupported("it has a shadow stack; start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off");
    }
    if thread.dispatches_syscalls()? {
        return unsupported("its system calls are dispatched to itself (PR_SET_SYSCALL_USER_DISPATCH)");
    }
    if let Some(section) = critical_section(thread, memory)?
        && let Some(aborted) = section.aborted(&registers)
    {
        registers = aborted;
    }
    Ok(SavedThread { tid, registers, xstate, mask: thread.signal_mask()? })
}

/// The critical section of restartable sequences that the thread has announced. Kernels without them, and areas that cannot be
/// read, count as none.
fn critical_section(
    thread: &Stopped,
    memory: &ProcessMemory,
) -> Result<Option<CriticalSection>, RemoteError> {
    let rseq = match thread.rseq() {
        Ok(rseq) => rseq,
        Err(error) if error.is_gone() => return Err(error.into()),
        Err(_) => return Ok(None),
    };
    if rseq.address == 0 {
        return Ok(None);
    }
    let section = memory.read_word(RemoteAddr::new(rseq.address.wrapping_add(RSEQ_CS))).unwrap_or(0);
    let mut bytes = [0; 32];
    if section == 0 || memory.read_exact_at(RemoteAddr::new(section), &mut bytes).is_err() {
        return Ok(None);
    }
    Ok(Some(CriticalSection::from_bytes(&bytes)))
}

/// A signal that no handler sees and that is not pending.
fn end_signal(status: &Status, threads: &[Stopped]) -> Result<i32, RemoteError> {
    let mut pending = SignalSet::from_bits(status.shared_pending);
    for thread in threads {
        pending = thread.pending(false)?.iter().fold(pending, |pending, info| pending.with(info.signal()));
    }
    let mut caught = SignalSet::from_bits(status.caught);
    // It would let a stopped process go on.
    if threads.first().map(Stopped::is_in_group_stop).transpose()?.unwrap_or(false) {
        caught = caught.with(libc::SIGCONT);
    }
    free_signal(caught, pending).ok_or(RemoteError::NoSignal { pid: status.tgid })
}

/// The first of [`END_SIGNALS`] whose sending changes nothing.
fn free_signal(caught: SignalSet, pending: SignalSet) -> Option<i32> {
    let mut taken = SignalSet::from_bits(caught.bits() | pending.bits());
    if DROPPED_BY_SIGCONT.into_iter().any(|signal| pending.contains(signal)) {
        taken = taken.with(libc::SIGCONT);
    }
    END_SIGNALS.into_iter().find(|&signal| !taken.contains(signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_signal_takes_nothing_away() {
        let caught = [libc::SIGURG, libc::SIGWINCH].into_iter().fold(SignalSet::EMPTY, SignalSet::with);
        let pending = SignalSet::EMPTY.with(libc::SIGCHLD);
        assert_eq!(free_signal(SignalSet::EMPTY, SignalSet::EMPTY), Some(libc::SIGURG));
        assert_eq!(free_signal(caught, SignalSet::EMPTY), Some(libc::SIGCHLD));
        assert_eq!(free_signal(caught, pending), Some(libc::SIGCONT));
        for stop in DROPPED_BY_SIGCONT {
            assert_eq!(free_signal(caught, pending.with(stop)), None);
        }
    }
}
