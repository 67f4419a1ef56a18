//! The end of a restore: all threads are parked; they get their registers, the program is unmapped, and all go.
//!
//! Until the leader is detached, last of all, our death is the new process's too (`PTRACE_O_EXITKILL`).

pub mod affinity;
mod positions;
mod registers;
mod stopped;

use std::collections::BTreeMap;
use std::time::Duration;

use rewake_image::Image;
use rewake_image::records::{Thread, vma::Backing};
use rewake_linux::addr::RemoteAddr;
use rewake_linux::arch::x86_64::Registers;
use rewake_linux::memory::ProcessMemory;
use rewake_linux::program::Sysno;
use rewake_linux::ptrace::{Event, PtraceError, Running, StopReason, Stopped};
use rewake_linux::signal::SignalSet;

use crate::Progress;
use crate::error::RestoreError;
use crate::interrupted::{self, GoOn};
use crate::run::Seed;

pub use registers::PageMemory;

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
    pages: &PageMemory<'_>,
    last: &mut dyn LastSteps,
    progress: &mut dyn FnMut(Progress),
) -> Result<i32, RestoreError> {
    let pid = seed.pid();
    let (leader, others) = (seed.take_leader()?, seed.take_others()?);
    let memory = ProcessMemory::open(pid).map_err(|error| seed.died(&error.to_string()))?;
    let work = Release { image, seed: &seed, pages, memory };
    let stopped = work.stop_all(leader, others)?.into_iter();
    let mut parked = stopped.map(|one| work.put_to_wait(one)).collect::<Result<Vec<Parked<'_>>, _>>()?;
    let Parked { tracee, thread } = parked.swap_remove(0);
    // Registers are read before the leader makes one more call: they tell whether it waits.
    let leader_registers = work.registers_of(&tracee, thread)?;
    let tracee = work.unmap_program(tracee)?;
    work.set_state(&tracee, thread, &leader_registers)?;
    for other in &parked {
        let registers = work.registers_of(&other.tracee, other.thread)?;
        work.set_state(&other.tracee, other.thread, &registers)?;
    }
    let tracee = match image.process.stopped_by {
        Some(signal) if !thread.exited => work.stop_again(tracee, thread, signal)?,
        Some(signal) => {
            if let Some(Parked { tracee, thread }) = parked.pop() {
                let tracee = work.stop_again(tracee, thread, signal)?;
                parked.push(Parked { tracee, thread });
            }
            tracee
        }
        None => tracee,
    };
    work.write_proc_files()?;
    positions::set(image, pid)?;
    work.seed.keep_namespace()?;
    last.let_signals_through()?;
    progress(Progress::Ready { pid });
    last.commit()?;
    for other in parked {
        other.tracee.detach(0).map_err(|error| work.refused(error))?;
    }
    tracee.detach(0).map_err(|error| work.refused(error))?;
    seed.let_go();
    Ok(pid)
}

struct Release<'a> {
    image: &'a Image,
    seed: &'a Seed<'a>,
    pages: &'a PageMemory<'a>,
    memory: ProcessMemory,
}

impl<'a> Release<'a> {
    fn refused(&self, error: PtraceError) -> RestoreError {
        RestoreError::System {
            operation: error.operation,
            pid: self.seed.pid(),
            object: format!("thread {}", error.tid),
            source: error.source,
        }
    }

    /// All threads in a stop of ours, the leader first.
    fn stop_all(
        &self,
        leader: Running,
        mut others: BTreeMap<i32, Running>,
    ) -> Result<Vec<Parked<'a>>, RestoreError> {
        let threads = &self.image.process.threads;
        let pid = self.image.process.pid;
        let first = threads.iter().find(|thread| thread.tid == pid);
        let mut running = vec![(leader, first.ok_or_else(|| self.seed.died("it has no leader"))?)];
        for thread in threads.iter().filter(|thread| thread.tid != pid) {
            let missing = || self.seed.died(&format!("thread {} is missing", thread.tid));
            running.push((others.remove(&thread.tid).ok_or_else(missing)?, thread));
        }
        for (tracee, _) in &running {
            tracee.interrupt().map_err(|error| self.refused(error))?;
        }
        running
            .into_iter()
            .map(|(tracee, thread)| Ok(Parked { tracee: self.stop(tracee)?, thread }))
            .collect()
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
        Ok(registers::to_go_on_with(&self.image.process, thread, &now, returned, self.pages, &self.memory))
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
        tracee: &Stopped,
        thread: &Thread,
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
        let (pid, process) = (self.seed.pid(), &self.image.process);
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
        let refused = |error| self.refused(error);
        let mut registers = tracee.registers().map_err(refused)?;
        let (stage, len) = self.seed.stage();
        registers.set_rip(self.syscall_instruction()?.get());
        registers.set_call(Sysno::munmap.number(), [stage.get(), len, 0, 0, 0, 0]);
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
        if result == 0 { Ok(stopped) } else { Err(self.seed.died(&format!("munmap returned {result}"))) }
    }

    /// A `syscall` instruction in the new process, in its vdso or else in any of its code.
    fn syscall_instruction(&self) -> Result<RemoteAddr, RestoreError> {
        let vmas = self.image.process.memory.iter().flat_map(|memory| &memory.vmas);
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
