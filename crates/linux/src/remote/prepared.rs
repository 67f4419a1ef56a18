//! The prepared stack: where a thread stands that makes a call through the target's own code.
//!
//! It holds the way into `rt_sigreturn` and, right above, a frame of the thread's own state: a `ret` there leads back to what the
//! thread did. It lies in the lowest pages of the `[stack]` mapping, far below whatever is in use. Should a signal handler run on
//! it (only if the tracer dies at the worst moment), the mapping grows for it as for any handler.

use super::{Gadgets, RemoteError, SavedThread};
use crate::addr::{PAGE_SIZE, RemoteAddr};
use crate::arch::x86_64::frame::ALIGNMENT;
use crate::memory::ProcessMemory;
use crate::proc::{Mapping, MappingKind};

/// Bytes kept free between the prepared stack and what a thread uses: the red zone, and room for a handler.
const MARGIN: u64 = 16 << 10;

/// A place for a frame, and what was there before.
#[derive(Debug)]
pub(super) struct Prepared {
    base: RemoteAddr,
    old: Option<(RemoteAddr, Vec<u8>)>,
}

impl Prepared {
    /// Chooses the place for a frame of `frame_size` bytes; nothing is written yet.
    pub(super) fn choose(
        maps: &[Mapping],
        threads: &[SavedThread],
        memory: &ProcessMemory,
        frame_size: usize,
    ) -> Result<Self, RemoteError> {
        let no_stack = |reason: &str| RemoteError::NoStack { pid: memory.pid(), reason: reason.to_owned() };
        let stack = maps.iter().find(|mapping| mapping.kind() == MappingKind::Stack);
        let stack = stack.ok_or_else(|| no_stack("there is none"))?;
        let need = ALIGNMENT + frame_size as u64;
        let inside = |pointer: &u64| (stack.start.get()..stack.end.get()).contains(pointer);
        let lowest_used = threads.iter().map(|thread| thread.registers.rsp()).filter(inside).min();
        let free = match lowest_used {
            Some(pointer) => stack.start.get() + need + MARGIN <= pointer,
            None => is_zero(memory, stack.start, need)?,
        };
        if free {
            return Ok(Self { base: stack.start, old: None });
        }
        let top = lowest_used.unwrap_or(stack.start.get()).checked_sub(need + MARGIN);
        let base = top.ok_or_else(|| no_stack("no room below it"))? & !(PAGE_SIZE - 1);
        Ok(Self { base: RemoteAddr::new(base), old: None })
    }

    /// Where the frame is to be.
    pub(super) fn frame(&self) -> RemoteAddr {
        self.base + ALIGNMENT
    }

    /// The stack pointer to make a call with.
    pub(super) fn stack_pointer(&self, gadgets: &Gadgets) -> RemoteAddr {
        let below = gadgets.words_below().len() as u64 * 8;
        self.base + (ALIGNMENT - below)
    }

    /// Writes the stack, once; keeps what was there.
    pub(super) fn write(
        &mut self,
        memory: &ProcessMemory,
        gadgets: &Gadgets,
        frame: &[u8],
    ) -> Result<(), RemoteError> {
        if self.old.is_some() {
            return Ok(());
        }
        let mut bytes: Vec<u8> = gadgets.words_below().into_iter().flat_map(u64::to_le_bytes).collect();
        bytes.extend_from_slice(frame);
        let mut old = vec![0; bytes.len()];
        let place = self.stack_pointer(gadgets);
        memory.read_exact_at(place, &mut old)?;
        memory.write_all_at(place, &bytes)?;
        self.old = Some((place, old));
        Ok(())
    }

    /// Puts back what was there.
    pub(super) fn restore(&mut self, memory: &ProcessMemory) -> Result<(), RemoteError> {
        if let Some((place, old)) = self.old.take() {
            memory.write_all_at(place, &old)?;
        }
        Ok(())
    }
}

/// Whether memory was never used: a stack of which no thread's pointer tells how far it is used.
fn is_zero(memory: &ProcessMemory, start: RemoteAddr, len: u64) -> Result<bool, RemoteError> {
    let mut bytes = vec![0; usize::try_from(len).expect("a frame is small")];
    memory.read_exact_at(start, &mut bytes)?;
    Ok(bytes.iter().all(|&byte| byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::{Registers, XState};
    use crate::signal::SignalSet;

    fn place(stack_pointer: u64) -> Result<Prepared, RemoteError> {
        let maps =
            crate::proc::parse_maps(b"7ff000000000-7ff000021000 rw-p 00000000 00:00 0 [stack]\n").unwrap();
        let mut registers = Registers::from_words([0; 27]);
        registers.set_rsp(stack_pointer);
        let xstate = XState::from_bytes(vec![0; 576]).unwrap();
        let thread = SavedThread { tid: 1, registers, xstate, mask: SignalSet::EMPTY };
        let memory = ProcessMemory::open(std::process::id().cast_signed()).unwrap();
        Prepared::choose(&maps, &[thread], &memory, 3000)
    }

    #[test]
    fn far_below_what_is_used() {
        assert_eq!(place(0x7ff0_0001_f000).unwrap().frame().get(), 0x7ff0_0000_0040);
    }

    #[test]
    fn a_deep_stack_grows_as_for_a_handler() {
        let prepared = place(0x7ff0_0000_2000).unwrap();
        assert!(prepared.frame().get() + 3000 + MARGIN <= 0x7ff0_0000_2000);
        assert!(prepared.frame().get() > 0x7fef_ffff_0000);
    }
}
