//! The end of a restore: all threads are parked; they get their registers, the program is unmapped, and all go.
//!
//! Until the leader is detached, last of all, our death is the new process's too (`PTRACE_O_EXITKILL`); that of several, until all are
//! detached (`Bond`).

pub mod affinity;
mod positions;
mod registers;
mod stopped;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rewake_image::Image;
use rewake_image::records::{Process, Thread, vma::Backing};
use rewake_linux::addr::RemoteAddr;
use rewake_linux::arch::x86_64::Registers;
use rewake_linux::bond::Bond;
use rewake_linux::memory::ProcessMemory;
use rewake_linux::program::Sysno;
use rewake_linux::ptrace::{Event, PtraceError, Running, StopReason, Stopped};
use rewake_linux::signal::SignalSet;

use crate::Progress;
use crate::error::RestoreError;
use crate::interrupted::{self, GoOn};
use crate::run::Seed;

use registers::PageMemory;

/// Looks at a thread that has not yet come into the call it waits in, and how long between two.
const WAIT_TRIES: u32 = 50;
const WAIT_PAUSE: Duration = Duration::from_millis(1);
const SYSCALL: [u8; 2] = [0x0f, 0x05];
const PROT_EXEC: u32 = libc::PROT_EXEC.cast_unsigned();

/// A thread at the gate, with what the image says of it.
struct Parked<'a> {
    tracee: Stopped,
    thread: &'a Thread,
}

/// A process, all of whose threads are at the gate, with the registers they will have; its first thread is the first.
struct Ready<'a> {
    work: Release<'a>,
    threads: Vec<(Parked<'a>, Registers)>,
    /// By job control.
    stopped: bool,
}

/// What has to happen just before and just after the moment at which signals become the program's.
pub trait LastSteps {
    /// Until here, a signal could still call everything off.
    fn let_signals_through(&mut self) -> Result<(), RestoreError>;
    /// What was done beside the process is kept from here on.
    fn commit(&mut self) -> Result<(), RestoreError>;
}

/// Gives all threads their registers and lets them go.
///
/// # Errors
/// When the new process dies meanwhile or ptrace is refused; nothing of it is left.
pub fn release(
    image: &Image,
    mut seed: Seed<'_>,
    stream: &OwnedFd,
    last: &mut dyn LastSteps,
    progress: &mut dyn FnMut(Progress),
) -> Result<i32, RestoreError> {
    let pid = seed.pid();
    let mut tracees = seed.take_all()?;
    for tracee in tracees.values() {
        tracee.interrupt().map_err(|error| refused(pid, error))?;
    }
    let mut ready = Vec::new();
    for process in image.processes.iter().filter(|process| process.exit_status.is_none()) {
        ready.push(Release::new(image, process, &seed, stream)?.take(&mut tracees)?);
    }
    let released = set_all(ready)?;
    for one in &released {
        one.work.write_proc_files()?;
    }
    positions::set(image, &seed)?;
    let bond = together(&seed, &released)?;
    let several = released.len() > 1;
    if !several {
        seed.keep_namespace()?;
    }
    last.let_signals_through()?;
    progress(Progress::Ready { pid });
    last.commit()?;
    // The root and, of each process, the first thread come last.
    for Ready { threads, .. } in released.into_iter().rev() {
        for (parked, _) in threads.into_iter().rev() {
            parked.tracee.detach(0).map_err(|error| refused(pid, error))?;
        }
    }
    if several {
        seed.keep_namespace()?;
    }
    seed.let_go();
    if let Some(Err(error)) = bond.map(Bond::dissolve) {
        tracing::debug!(%error, "nobody watched over the last step");
    }
    Ok(pid)
}

/// Gives all their state, and stops those again that were stopped: children first, while their parents can still be made to have heard of it.
fn set_all(mut ready: Vec<Ready<'_>>) -> Result<Vec<Ready<'_>>, RestoreError> {
    let mut unmapped = Vec::with_capacity(ready.len());
    let (stopped, others): (Vec<usize>, Vec<usize>) =
        (0..ready.len()).rev().partition(|at| ready[*at].work.process.stopped_by.is_some());
    for at in stopped {
        let one = ready.remove(at).unmap_program()?;
        one.set_state()?;
        let one = one.stop_again()?;
        let child = one.work.process;
        ready.insert(at, one);
        let is_parent = |other: &&Ready<'_>| other.work.process.pid == child.ppid && !other.stopped;
        if let Some(parent) = ready.iter().position(|other| is_parent(&other)) {
            let hearing = ready.remove(parent).hear_of(child)?;
            ready.insert(parent, hearing);
        }
    }
    for at in others {
        let one = ready.remove(at).unmap_program()?;
        unmapped.push(at);
        ready.insert(at, one);
    }
    unmapped.iter().try_for_each(|at| ready[*at].set_state())?;
    Ok(ready)
}

/// Should we die between letting go the first and the last of several processes, none must live on. Those in a namespace of theirs die
/// with its first process, as long as that is not told to stay.
fn together(seed: &Seed<'_>, released: &[Ready<'_>]) -> Result<Option<Bond>, RestoreError> {
    if released.len() == 1 || seed.has_namespace() {
        return Ok(None);
    }
    let pids: Vec<i32> = released.iter().map(|one| one.work.pid).collect();
    let bond = Bond::tie(&pids).map_err(|source| RestoreError::System {
        operation: "release",
        pid: seed.pid(),
        object: format!("{} processes together", pids.len()),
        source,
    })?;
    Ok(Some(bond))
}

fn refused(pid: i32, error: PtraceError) -> RestoreError {
    let object = format!("thread {}", error.tid);
    RestoreError::System { operation: error.operation, pid, object, source: error.source }
}

struct Release<'a> {
    image: &'a Image,
    process: &'a Process,
    /// Of whom it has its memory, itself or another one.
    owner: &'a Process,
    seed: &'a Seed<'a>,
    /// Its id out here.
    pid: i32,
    pages: PageMemory<'a>,
    memory: ProcessMemory,
}

impl<'a> Ready<'a> {
    /// Unmaps the program of the restore from its memory. One that shares it has nothing of its own to unmap.
    fn unmap_program(mut self) -> Result<Self, RestoreError> {
        if self.work.process.memory_of.is_some() {
            return Ok(self);
        }
        let (Parked { tracee, thread }, registers) = self.threads.swap_remove(0);
        let tracee = self.work.unmap_program(tracee)?;
        self.threads.insert(0, (Parked { tracee, thread }, registers));
        Ok(self)
    }

    fn set_state(&self) -> Result<(), RestoreError> {
        let mut threads = self.threads.iter();
        threads.try_for_each(|(parked, registers)| self.work.set_state(parked, registers))
    }

    /// A process that was stopped is stopped again, by a thread of its that lives; the others follow.
    fn stop_again(mut self) -> Result<Self, RestoreError> {
        let Some(signal) = self.work.process.stopped_by else { return Ok(self) };
        let Some(first) = self.threads.iter().position(|(parked, _)| !parked.thread.exited) else {
            return Ok(self);
        };
        let (Parked { tracee, thread }, registers) = self.threads.remove(first);
        let tracee = self.work.stop_again(tracee, thread, signal)?;
        self.threads.insert(first, (Parked { tracee, thread }, registers));
        for at in (0..self.threads.len()).filter(|at| *at != first) {
            let (Parked { tracee, thread }, registers) = self.threads.remove(at);
            let tracee = self.work.follow_into_stop(tracee)?;
            self.threads.insert(at, (Parked { tracee, thread }, registers));
        }
        self.stopped = true;
        Ok(self)
    }

    /// It is told nothing of a child's stop that it knew of.
    fn hear_of(mut self, child: &Process) -> Result<Self, RestoreError> {
        let (Parked { tracee, thread }, registers) = self.threads.remove(0);
        let tracee = self.work.hear_of(child, tracee)?;
        self.threads.insert(0, (Parked { tracee, thread }, registers));
        Ok(self)
    }
}

impl<'a> Release<'a> {
    fn new(
        image: &'a Image,
        process: &'a Process,
        seed: &'a Seed<'a>,
        stream: &'a OwnedFd,
    ) -> Result<Self, RestoreError> {
        let owner = process.memory_of.and_then(|owner| image.process(owner)).unwrap_or(process);
        let pid = seed.outer(process.pid);
        let memory = ProcessMemory::open(pid).map_err(|error| seed.died(&error.to_string()))?;
        let pages = PageMemory::new(owner.memory.as_ref(), stream);
        Ok(Self { image, process, owner, seed, pid, pages, memory })
    }

    fn refused(&self, error: PtraceError) -> RestoreError {
        refused(self.pid, error)
    }

    /// All threads in a stop of ours, the first thread first, each waiting in the call it was in.
    fn take(self, tracees: &mut BTreeMap<i32, Running>) -> Result<Ready<'a>, RestoreError> {
        let mut threads: Vec<&Thread> = self.process.threads.iter().collect();
        threads.sort_by_key(|thread| thread.tid != self.process.pid);
        let mut parked = Vec::new();
        for thread in threads {
            let missing = || self.seed.died(&format!("thread {} is missing", thread.tid));
            let tracee = self.stop(tracees.remove(&thread.tid).ok_or_else(missing)?)?;
            parked.push(self.put_to_wait(Parked { tracee, thread })?);
        }
        // Registers are read before any of them makes one more call: they tell whether it waits.
        let with_registers = |parked: Parked<'a>| {
            let registers = self.registers_of(&parked.tracee, parked.thread)?;
            Ok((parked, registers))
        };
        let threads = parked.into_iter().map(with_registers).collect::<Result<_, RestoreError>>()?;
        Ok(Ready { work: self, threads, stopped: false })
    }

    /// Waits for the stop that was asked for. All signals are blocked, so that nothing else can come but death.
    fn stop(&self, running: Running) -> Result<Stopped, RestoreError> {
        match running.wait().map_err(|error| self.refused(error))? {
            Event::Stopped(stopped, StopReason::EventStop) => Ok(stopped),
            Event::Stopped(_, reason) => Err(self.seed.died(&format!("unexpected stop: {reason:?}"))),
            Event::Exited(tid, _) => Err(self.seed.died(&format!("thread {tid} ended"))),
        }
    }

    /// A thread that goes on in a call made for it is let run until it waits in it (or has returned from it).
    fn put_to_wait(&self, parked: Parked<'a>) -> Result<Parked<'a>, RestoreError> {
        let GoOn::Waiting(wait) = interrupted::go_on(parked.thread) else { return Ok(parked) };
        let Parked { mut tracee, thread } = parked;
        for _ in 0..WAIT_TRIES {
            let now = tracee.registers().map_err(|error| self.refused(error))?;
            if interrupted::is_waiting(&now, &wait) || self.seed.has_returned(&now) {
                return Ok(Parked { tracee, thread });
            }
            let running = tracee.cont(0).map_err(|error| self.refused(error))?;
            std::thread::sleep(WAIT_PAUSE);
            running.interrupt().map_err(|error| self.refused(error))?;
            tracee = self.stop(running)?;
        }
        Err(self.seed.died(&format!("thread {} does not come into the call it waited in", thread.tid)))
    }

    fn registers_of(&self, tracee: &Stopped, thread: &Thread) -> Result<Registers, RestoreError> {
        let mut now = tracee.registers().map_err(|error| self.refused(error))?;
        if thread.exited {
            let code = u64::from(thread.exit_code.cast_unsigned() >> 8 & 0xff);
            now.set_rip(self.syscall_instruction()?.get());
            now.set_call(Sysno::exit.number(), [code, 0, 0, 0, 0, 0]);
            return Ok(now);
        }
        let returned = self.seed.returned(thread.tid);
        Ok(registers::to_go_on_with(self.process, thread, &now, returned, &self.pages, &self.memory))
    }

    /// A stopped process is stopped again.
    fn stop_again(&self, tracee: Stopped, thread: &Thread, signal: u32) -> Result<Stopped, RestoreError> {
        let stopped = self.stop_process(tracee, i32::try_from(signal).unwrap_or(libc::SIGSTOP))?;
        let mask = SignalSet::from_bits(thread.signal_mask);
        stopped.set_signal_mask(mask).map_err(|error| self.refused(error))?;
        Ok(stopped)
    }

    fn set_state(
        &self,
        Parked { tracee, thread }: &Parked<'_>,
        registers: &Registers,
    ) -> Result<(), RestoreError> {
        let refused = |error| self.refused(error);
        if thread.exited {
            // It leaves as it did, alone, as soon as it is let go; until then no signal finds it.
            return tracee.set_registers(registers).map_err(refused);
        }
        let own = tracee.xstate().map_err(refused)?;
        let state =
            registers::xstate(thread, &own).ok_or_else(|| self.seed.died("its FPU state is malformed"))?;
        tracee.set_xstate(&state).map_err(refused)?;
        tracee.set_registers(registers).map_err(refused)?;
        tracee.set_signal_mask(SignalSet::from_bits(thread.signal_mask)).map_err(refused)
    }

    /// What is set through files of `/proc`, by their owner from outside.
    fn write_proc_files(&self) -> Result<(), RestoreError> {
        let (pid, process) = (self.pid, self.process);
        let files = [
            ("oom_score_adj", process.oom_score_adj.map(|value| value.to_string())),
            ("coredump_filter", process.coredump_filter.map(|value| format!("{value:#x}"))),
        ];
        for (file, value) in files.into_iter().filter_map(|(file, value)| Some((file, value?))) {
            let path = format!("/proc/{pid}/{file}");
            let now = std::fs::read_to_string(&path).unwrap_or_default();
            if now.trim() == value
                || u64::from_str_radix(now.trim(), 16).is_ok_and(|now| format!("{now:#x}") == value)
            {
                continue;
            }
            std::fs::write(&path, value).map_err(|source| RestoreError::System {
                operation: "write",
                pid,
                object: path,
                source,
            })?;
        }
        Ok(())
    }

    /// The last of the restore's own memory goes by a call through an instruction of the program's own memory.
    fn unmap_program(&self, tracee: Stopped) -> Result<Stopped, RestoreError> {
        let (stage, len) = self.seed.stage();
        let (stopped, result) = self.call(tracee, Sysno::munmap, [stage.get(), len, 0, 0, 0, 0])?;
        if result == 0 { Ok(stopped) } else { Err(self.seed.died(&format!("munmap returned {result}"))) }
    }

    /// A system call of a thread whose registers are still to be set, and what it returned. It must not wait for anything.
    fn call(&self, tracee: Stopped, nr: Sysno, args: [u64; 6]) -> Result<(Stopped, i64), RestoreError> {
        let refused = |error| self.refused(error);
        let mut registers = tracee.registers().map_err(refused)?;
        registers.set_rip(self.syscall_instruction()?.get());
        registers.set_call(nr.number(), args);
        tracee.set_registers(&registers).map_err(refused)?;
        let running = tracee.syscall().map_err(refused)?;
        let entered = match running.wait().map_err(refused)? {
            Event::Stopped(stopped, StopReason::SyscallEnter) => stopped,
            other => return Err(self.seed.died(&format!("unexpected event: {other:?}"))),
        };
        // A stop in the kernel's signal handling: from here it restarts the call that the registers speak of.
        entered.interrupt_next().map_err(refused)?;
        let stopped = self.stop(entered.cont(0).map_err(refused)?)?;
        let result = stopped.registers().map_err(refused)?.rax().cast_signed();
        Ok((stopped, result))
    }

    /// A `syscall` instruction in the new process, in its vdso or else in any of its code.
    fn syscall_instruction(&self) -> Result<RemoteAddr, RestoreError> {
        let vmas = self.owner.memory.iter().flat_map(|memory| &memory.vmas);
        let mut code: Vec<_> = vmas.filter(|vma| vma.protection & PROT_EXEC != 0).collect();
        code.sort_by_key(|vma| vma.backing() != Backing::Vdso);
        for vma in code {
            let start = RemoteAddr::new(vma.start);
            let mut bytes = vec![0; usize::try_from(vma.end - vma.start).unwrap_or_default()];
            let read = self.memory.read_at(start, &mut bytes).unwrap_or_default();
            if let Some(at) = bytes[..read].windows(2).position(|pair| pair == SYSCALL) {
                return Ok(start + u64::try_from(at).unwrap_or_default());
            }
        }
        Err(self.seed.died("it has no syscall instruction to unmap the restore's program with"))
    }
}
