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

/// Waits until requests have come to their end, as far as can be seen, and notes the rings' headers. What they read, and whom they tell
/// (eventfds), is looked at afterwards. The target stands still since it told its contexts.
///
/// # Errors
/// When its memory cannot be read any more.
pub(crate) fn wait(pid: i32, process: &mut Process) -> Result<()> {
    let contexts = &mut process.aio_contexts;
    if contexts.is_empty() {
        return Ok(());
    }
    let failed = |error| failed(pid, error);
    let memory = ProcessMemory::open(pid).map_err(failed)?;
    let begin = Instant::now();
    let mut changed = begin;
    loop {
        for context in contexts.iter_mut() {
            let now = header(&memory, RemoteAddr::new(context.address)).map_err(failed)?;
            if now[..] != context.ring[..] {
                (context.ring, changed) = (now.to_vec(), Instant::now());
            }
        }
        if changed.elapsed() >= QUIET || begin.elapsed() >= LONGEST {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    tracing::debug!(elapsed = ?begin.elapsed(), "waited for asynchronous I/O");
    Ok(())
}

/// Reads the rings of the contexts.
///
/// # Errors
/// When the target's memory cannot be read any more, or a request came to its end since [`wait`]. Rings that are no contexts and threads
/// that wait for requests go to `findings`.
pub(crate) fn read(pid: i32, process: &mut Process, vmas: &[Vma], findings: &mut Findings) -> Result<()> {
    still(pid, &process.aio_contexts)?;
    let known = std::mem::take(&mut process.aio_contexts);
    let rings: Vec<&Vma> = vmas.iter().filter(|vma| vma.backing() == Backing::Aio).collect();
    if rings.is_empty() {
        return Ok(());
    }
    let memory = ProcessMemory::open(pid).map_err(|error| failed(pid, error))?;
    for vma in rings {
        let Some(known) = known.iter().find(|context| context.address == vma.start) else {
            let object = format!("mapping {:#x}-{:#x} /[aio]", vma.start, vma.end);
            let reason = "it is the ring of an asynchronous I/O context (io_setup) of another process";
            findings.add(object, reason, "let the program unmap what it has inherited from its parent");
            continue;
        };
        let ring = Ring::parse(&known.ring, vma.length());
        let ring = ring.map_err(|reason| CaptureError::failed("read", pid, "ring of events", reason))?;
        let context = context(&memory, vma, &known.ring, &ring).map_err(|error| failed(pid, error))?;
        process.aio_contexts.push(context);
    }
    waiting(process, &memory, findings);
    Ok(())
}

/// Makes sure that no request has come to its end since: what it read might be in the image in parts only, and its event is not.
///
/// # Errors
/// When one has.
pub(crate) fn still(pid: i32, contexts: &[AioContext]) -> Result<()> {
    if contexts.is_empty() {
        return Ok(());
    }
    let memory = ProcessMemory::open(pid).map_err(|error| failed(pid, error))?;
    for context in contexts {
        let now = header(&memory, RemoteAddr::new(context.address)).map_err(|error| failed(pid, error))?;
        if !context.ring.starts_with(&now) {
            let object = format!("asynchronous I/O context {:#x}", context.address);
            let reason = "a request came to its end only while the image was made";
            return Err(CaptureError::failed("capture", pid, object, reason).advise(LATER));
        }
    }
    Ok(())
}

fn failed(pid: i32, error: MemoryError) -> CaptureError {
    CaptureError::failed("read", pid, "asynchronous I/O contexts", error.source)
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
    header: &[u8],
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
        // It was interrupted, and is made again: its registers may have been set to that already.
        again if again == call.cast_signed() => Some((registers.rdi(), least)),
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
        assert_eq!(stopped(IO_GETEVENTS, 2, 208), Some((0x1000, 2)), "to be made again");
        assert_eq!(stopped(IO_PGETEVENTS, 2, -514), Some((0x1000, 2)));
        assert_eq!(stopped(IO_GETEVENTS, 2, 1), Some((0x1000, u64::MAX)));
        assert_eq!(stopped(IO_GETEVENTS, 2, 2), None);
        assert_eq!(stopped(IO_GETEVENTS, 2, -22), None);
        assert_eq!(stopped(0, 2, -4), None);
    }
}
