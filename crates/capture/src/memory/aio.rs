//! Contexts of asynchronous I/O (io_setup): their rings of events.
//!
//! Nobody is told of requests that are on their way, not even the program itself. Those on disks are given some time to come to their
//! end; who waits for others is seen by that.

use std::time::{Duration, Instant};

use rewake_image::aio::{EVENT, Ring};
use rewake_image::records::{AioContext, Process, Vma, vma::Backing};
use rewake_linux::addr::RemoteAddr;
use rewake_linux::arch::x86_64::Registers;
use rewake_linux::memory::{MemoryError, ProcessMemory};
use rewake_linux::proc::{Mapping, Proc};

use super::Refusal;
use crate::error::{CaptureError, Result};
use crate::findings::Findings;

/// For so long no request may come to its end before none is expected any more; and for so long it is waited, at most.
const QUIET: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

const IO_GETEVENTS: u64 = libc::SYS_io_getevents.cast_unsigned();
/// Not in libc.
const IO_PGETEVENTS: u64 = 333;
/// Restart the call unless a handler ran.
const ERESTARTNOHAND: i64 = 514;

const LATER: &str = "capture the program when no request is in flight";

/// Refuses a ring that is not as the kernel makes it.
pub(super) fn check(proc: &Proc, mapping: &Mapping) -> Result<(), Refusal> {
    let memory = ProcessMemory::open(proc.id()).map_err(|error| (error.to_string(), "try again"))?;
    let start = mapping.start;
    let header = header(&memory, start).map_err(|error| (error.to_string(), "try again"))?;
    let whole = "map the ring as io_setup did, whole and once";
    if mapping.offset != 0 || !mapping.shared {
        return Err(("it is not a whole ring of events (io_setup)".to_owned(), whole));
    }
    Ring::parse(&header, mapping.length()).map(|_| ()).map_err(|reason| (reason, whole))
}

/// Waits until requests have come to their end, as far as can be seen, and reads the rings of the target's contexts, which stands still
/// since it told which they are.
///
/// # Errors
/// When its memory cannot be read any more. Rings that are no contexts and threads that wait for requests go to `findings`.
pub(crate) fn settle(pid: i32, process: &mut Process, vmas: &[Vma], findings: &mut Findings) -> Result<()> {
    let known = std::mem::take(&mut process.aio_contexts);
    let rings: Vec<&Vma> = vmas.iter().filter(|vma| vma.backing() == Backing::Aio).collect();
    if rings.is_empty() {
        return Ok(());
    }
    for vma in rings.iter().filter(|vma| known.iter().all(|context| context.address != vma.start)) {
        let object = format!("mapping {:#x}-{:#x} /[aio]", vma.start, vma.end);
        let reason = "it is the ring of an asynchronous I/O context (io_setup) of another process";
        findings.add(object, reason, "let the program unmap what it has inherited from its parent");
    }
    let failed =
        |error: MemoryError| CaptureError::failed("read", pid, "asynchronous I/O contexts", error.source);
    let memory = ProcessMemory::open(pid).map_err(failed)?;
    let begin = Instant::now();
    let look = || -> std::result::Result<Vec<[u8; EVENT]>, MemoryError> {
        rings.iter().map(|vma| header(&memory, RemoteAddr::new(vma.start))).collect()
    };
    let mut last = look().map_err(failed)?;
    let mut changed = begin;
    while changed.elapsed() < QUIET && begin.elapsed() < LONGEST {
        std::thread::sleep(PAUSE);
        let now = look().map_err(failed)?;
        if now != last {
            (last, changed) = (now, Instant::now());
        }
    }
    tracing::debug!(elapsed = ?begin.elapsed(), "waited for asynchronous I/O");
    for (vma, header) in rings.iter().zip(&last) {
        let ring = Ring::parse(header, vma.length());
        let ring = ring.map_err(|reason| CaptureError::failed("read", pid, "ring of events", reason))?;
        let context = context(&memory, vma, header, &ring).map_err(failed)?;
        process.aio_contexts.push(context);
    }
    waiting(process, &memory, findings);
    Ok(())
}

fn header(memory: &ProcessMemory, start: RemoteAddr) -> std::result::Result<[u8; EVENT], MemoryError> {
    let mut header = [0; EVENT];
    memory.read_exact_at(start, &mut header)?;
    Ok(header)
}

/// A context with the header of its ring and the events that were not read.
fn context(
    memory: &ProcessMemory,
    vma: &Vma,
    header: &[u8; EVENT],
    ring: &Ring,
) -> std::result::Result<AioContext, MemoryError> {
    let mut bytes = header.to_vec();
    for (offset, len) in ring.parts() {
        let at = bytes.len();
        bytes.resize(at + usize::try_from(len).expect("part of a ring"), 0);
        memory.read_exact_at(RemoteAddr::new(vma.start + offset), &mut bytes[at..])?;
    }
    Ok(AioContext { address: vma.start, length: vma.length(), events: ring.places, ring: bytes })
}

/// Threads that wait for more events than there are: for requests that must be on their way, or will never be.
fn waiting(process: &Process, memory: &ProcessMemory, findings: &mut Findings) {
    for thread in &process.threads {
        let Ok(words) = <[u64; 27]>::try_from(&thread.registers[..]) else { continue };
        let registers = Registers::from_words(words);
        let Some((id, wanted)) = wanted(&registers).filter(|_| !only_looks(&registers, memory)) else {
            continue;
        };
        let context = process.aio_contexts.iter().find(|context| context.address == id);
        let there = context.map_or(0, |context| context.ring.len() / EVENT - 1);
        if u64::try_from(there).is_ok_and(|there| there < wanted) {
            let reason = "it waits in io_getevents for events of asynchronous I/O that is in flight";
            findings.add_thread(thread.tid, reason, LATER);
        }
    }
}

/// Whether the call gives no time to wait.
fn only_looks(registers: &Registers, memory: &ProcessMemory) -> bool {
    let at = RemoteAddr::new(registers.r8());
    let word = |at: Option<RemoteAddr>| at.and_then(|at| memory.read_word(at).ok());
    registers.r8() != 0 && word(Some(at)) == Some(0) && word(at.checked_add(8)) == Some(0)
}

/// The context and the number of events that a thread still waits for.
fn wanted(registers: &Registers) -> Option<(u64, u64)> {
    let call = registers.system_call()?;
    if call != IO_GETEVENTS && call != IO_PGETEVENTS {
        return None;
    }
    let least = registers.rsi();
    match registers.rax().cast_signed() {
        // It was interrupted, and is made again.
        result if result == -i64::from(libc::EINTR) || result == -ERESTARTNOHAND => {
            Some((registers.rdi(), least))
        }
        // It was interrupted when it had some of the events, and not all it waited for.
        some @ 0.. if some.cast_unsigned() < least => Some((registers.rdi(), u64::MAX)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_events_is_seen() {
        let stopped = |call: u64, least: u64, result: i64| {
            let mut words = [0; 27];
            (words[13], words[14]) = (least, 0x1000);
            let mut registers = Registers::from_words(words);
            registers.set_orig_rax(call);
            registers.set_rax(result.cast_unsigned());
            wanted(&registers)
        };
        assert_eq!(stopped(IO_GETEVENTS, 2, -4), Some((0x1000, 2)));
        assert_eq!(stopped(IO_PGETEVENTS, 2, -514), Some((0x1000, 2)));
        assert_eq!(stopped(IO_GETEVENTS, 2, 1), Some((0x1000, u64::MAX)));
        assert_eq!(stopped(IO_GETEVENTS, 2, 2), None);
        assert_eq!(stopped(IO_GETEVENTS, 2, -22), None);
        assert_eq!(stopped(0, 2, -4), None);
    }
}
