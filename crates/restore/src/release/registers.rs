//! The registers a thread goes on with.

use std::os::fd::{AsFd, BorrowedFd};

use rewake_image::records::{AddressSpace, Extent, Process, Thread};
use rewake_linux::addr::RemoteAddr;
use rewake_linux::arch::x86_64::restart::{
    CriticalSection, invisible_restart, is_epoll_again, with_epoll_time_left,
};
use rewake_linux::arch::x86_64::{Registers, XState};
use rewake_linux::memory::ProcessMemory;

use crate::interrupted::{self, GoOn};

/// Offset of the pointer to the critical section in `struct rseq`.
const RSEQ_CS: u64 = 8;

/// The private pages of the image, read where they lie in the page stream: the new process's own copy of a word may have been
/// changed by the kernel already.
#[derive(Debug)]
pub struct PageMemory<'a> {
    extents: &'a [Extent],
    stream: BorrowedFd<'a>,
}

impl<'a> PageMemory<'a> {
    /// Of a process's `memory` in the page stream `stream`.
    pub fn new(memory: Option<&'a AddressSpace>, stream: &'a impl AsFd) -> Self {
        let extents = memory.map_or(&[][..], |memory| &memory.pages);
        Self { extents, stream: stream.as_fd() }
    }

    /// The word at `address`, if the image has it.
    fn word(&self, address: u64) -> Option<u64> {
        let next = self.extents.partition_point(|extent| extent.address <= address);
        let extent = self.extents.get(next.checked_sub(1)?)?;
        let within = address - extent.address;
        if within.checked_add(8)? > extent.length {
            return None;
        }
        let mut bytes = [0; 8];
        let read = rustix::io::pread(self.stream, &mut bytes, extent.stream_offset + within).ok()?;
        (read == bytes.len()).then_some(u64::from_le_bytes(bytes))
    }
}

/// Registers for `thread`, which is parked with the registers `now`; `returned` is the result of the call made for it.
pub fn to_go_on_with(
    process: &Process,
    thread: &Thread,
    now: &Registers,
    returned: u64,
    pages: &PageMemory<'_>,
    memory: &ProcessMemory,
) -> Registers {
    let saved = interrupted::registers_of(thread);
    let registers = match interrupted::go_on(thread) {
        GoOn::AsItWas => {
            let registers = invisible_restart(&saved, handler_due(process, thread)).unwrap_or(saved);
            for_time_left(registers, thread.remaining_ns)
        }
        GoOn::Again => interrupted::again(&saved),
        GoOn::Waiting(wait) if interrupted::is_waiting(now, &wait) => saved,
        GoOn::Waiting(_) => interrupted::has_returned(&saved, returned),
    };
    critical_section(thread, pages, memory)
        .and_then(|section| section.aborted(&registers))
        .unwrap_or(registers)
}

/// A wait of epoll that is made again lasts the time that was left of it. That is known only where the program does not look at the
/// register that says so again.
fn for_time_left(registers: Registers, left: Option<u64>) -> Registers {
    match left.filter(|_| is_epoll_again(&registers)) {
        Some(left) => with_epoll_time_left(&registers, left),
        None => registers,
    }
}

/// Whether a handler will run before the thread goes on: then an EINTR is its due.
fn handler_due(process: &Process, thread: &Thread) -> bool {
    let handled = |signal: i32| {
        let actions = &mut process.actions.iter();
        actions.any(|action| i64::from(action.signal) == i64::from(signal) && action.handler > 1)
    };
    let unblocked = |signal: i32| {
        thread.signal_mask.checked_shr((signal - 1).unsigned_abs()).is_none_or(|bits| bits & 1 == 0)
    };
    let mut pending = process.pending.iter().chain(&thread.pending).filter_map(|pending| pending.signal());
    pending.any(|signal| handled(signal) && unblocked(signal))
}

/// The critical section the thread was in, if any: the capture interrupted it.
fn critical_section(
    thread: &Thread,
    pages: &PageMemory<'_>,
    memory: &ProcessMemory,
) -> Option<CriticalSection> {
    let area = thread.rseq.as_ref().filter(|rseq| rseq.address != 0)?;
    let section = pages.word(area.address.checked_add(RSEQ_CS)?).filter(|section| *section != 0)?;
    let mut bytes = [0; 32];
    memory.read_exact_at(RemoteAddr::new(section), &mut bytes).ok()?;
    Some(CriticalSection::from_bytes(&bytes))
}

/// The thread's extended state in this host's size; the layout was compared before (see [`crate::host`]).
pub fn xstate(thread: &Thread, own: &XState) -> Option<XState> {
    let mut bytes = thread.xstate.clone();
    bytes.resize(own.as_bytes().len(), 0);
    XState::from_bytes(bytes)
}
