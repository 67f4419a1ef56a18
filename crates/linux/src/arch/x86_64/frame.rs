//! Signal frames: what `rt_sigreturn` restores a thread from.
//!
//! `rt_sigreturn` finds `struct ucontext` at `rsp`: registers, signal mask, alternate stack, and a pointer to the xsave area. The
//! pointer is the 24th word of the saved registers; put elsewhere, the kernel silently gives the thread a fresh FPU.
//!
//! | offset in bytes | what |
//! |---|---|
//! | 0 | flags, link |
//! | 16 | alternate stack: address, flags, size |
//! | 40 | `struct sigcontext`, 32 words |
//! | 296 | signal mask |
//! | 320 | xsave area, 64-byte aligned, then `FP_XSTATE_MAGIC2` |

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use super::Registers;
use crate::addr::RemoteAddr;
use crate::signal::SignalSet;

/// Alignment of a frame's address, in bytes.
pub const ALIGNMENT: u64 = 64;

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
const SIGCONTEXT: usize = 40;
const SIGNAL_MASK: usize = SIGCONTEXT + 256;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Offset of the xsave area from the frame's address.
const XSAVE: usize = 320;
/// Legacy area and header: the least an xsave area has.
const XSAVE_MIN: usize = 576;
/// Bytes of the legacy area that the hardware leaves to software: here the magic number and sizes.
const SOFTWARE_RESERVED: usize = 464;
const XSTATE_BV: usize = 512;
/// Component 18, tile data of AMX, is larger than a signal frame may be for a thread that has not asked for it.
const DYNAMIC_FEATURES: u64 = 1 << 17 | 1 << 18;
const X87_AND_SSE: u64 = 3;
/// Control-flow enforcement, user state: a thread with a shadow stack.
const SHADOW_STACK: u64 = 1 << 11;

/// A mode no `sigaltstack` has: the kernel refuses it and keeps the stack as it is.
const INVALID_STACK_MODE: u64 = 0x7f;

/// The alternate signal stack that a frame restores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AltStack {
    /// Leave the thread's as it is: it may not be known.
    Keep,
    /// `stack_t`.
    Set {
        /// Lowest address.
        address: u64,
        /// `SS_*` flags; `SS_DISABLE` for none.
        flags: u32,
        /// Length in bytes.
        size: u64,
    },
}

/// A thread's extended state (x87, SSE, AVX...): the xsave area in standard format, the regset `NT_X86_XSTATE`.
#[derive(Clone, PartialEq, Eq)]
pub struct XState(Vec<u8>);

impl XState {
    /// From the kernel's bytes; `None` when they are too few for an xsave area or their length is no multiple of 8.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() >= XSAVE_MIN && bytes.len().is_multiple_of(8)).then_some(Self(bytes))
    }

    /// The kernel's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Components that are not in their initial state: `XSTATE_BV` of the header.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.word(XSTATE_BV)
    }

    /// Components the kernel keeps for the thread: XCR0, which ptrace puts where the hardware has no use for the bytes.
    #[must_use]
    pub fn supported(&self) -> u64 {
        self.word(SOFTWARE_RESERVED)
    }

    /// Whether the thread runs with a shadow stack.
    #[must_use]
    pub fn has_shadow_stack(&self) -> bool {
        self.in_use() & SHADOW_STACK != 0
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }

    /// Components to put into a signal frame, and the length of the area that holds them.
    fn for_frame(&self) -> (u64, usize) {
        let components = (self.supported() | X87_AND_SSE) & (!DYNAMIC_FEATURES | self.in_use());
        let end = (2..63).filter(|bit| components & 1 << bit != 0).map(component_end).max().unwrap_or(0);
        (components, end.clamp(XSAVE_MIN, self.0.len()))
    }
}

impl std::fmt::Debug for XState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "XState {{ {} bytes, in use: {:#x} }}", self.0.len(), self.in_use())
    }
}

/// Where a component ends in the standard format, in bytes, as this processor has it. Asked once: on a virtual machine every
/// `cpuid` is a visit to the host.
fn component_end(index: usize) -> usize {
    static ENDS: OnceLock<[usize; 63]> = OnceLock::new();
    let end = |index: usize| {
        let leaf = __cpuid_count(0xd, u32::try_from(index).expect("a bit number"));
        usize::try_from(u64::from(leaf.eax) + u64::from(leaf.ebx)).expect("an xsave area is small")
    };
    ENDS.get_or_init(|| std::array::from_fn(|index| if index < 2 { 0 } else { end(index) }))[index]
}

/// What a thread goes on with after `rt_sigreturn`.
#[derive(Clone, Copy, Debug)]
pub struct SignalFrame<'a> {
    /// Registers as they are to be: interrupted calls already put right (see [`super::restart::for_sigreturn`]). Segment bases are
    /// not part of a frame.
    pub registers: &'a Registers,
    /// Extended state.
    pub xstate: &'a XState,
    /// Signal mask.
    pub mask: SignalSet,
    /// Alternate signal stack.
    pub alt_stack: AltStack,
}

impl SignalFrame<'_> {
    /// Length of the frame, in bytes: a multiple of 8.
    #[must_use]
    pub fn size(&self) -> usize {
        XSAVE + self.xstate.for_frame().1 + 8
    }

    /// The frame's bytes for `address`, where `rsp` will point when `rt_sigreturn` is called.
    ///
    /// # Panics
    /// When `address` is not a multiple of [`ALIGNMENT`].
    #[must_use]
    pub fn build(&self, address: RemoteAddr) -> Vec<u8> {
        assert!(address.get().is_multiple_of(ALIGNMENT), "frame at {address} is 64-byte aligned");
        let mut out = vec![0; self.size()];
        let mut put = |at: usize, word: u64| out[at..at + 8].copy_from_slice(&word.to_le_bytes());
        put(0, UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS);
        let (stack, flags, size) = match self.alt_stack {
            AltStack::Keep => (0, INVALID_STACK_MODE, 0),
            AltStack::Set { address, flags, size } => (address, flags.into(), size),
        };
        put(16, stack);
        put(24, flags);
        put(32, size);
        for (index, word) in self.sigcontext(address + XSAVE as u64).into_iter().enumerate() {
            put(SIGCONTEXT + index * 8, word);
        }
        put(SIGNAL_MASK, self.mask.bits());
        self.put_xsave(&mut out[XSAVE..]);
        out
    }

    /// The words of `struct sigcontext` up to the pointer to the xsave area.
    fn sigcontext(&self, xsave: RemoteAddr) -> [u64; 24] {
        let r = self.registers;
        let segments = r.cs() & 0xffff | (r.ss() & 0xffff) << 48;
        let general = [
            r.r8(),
            r.r9(),
            r.r10(),
            r.r11(),
            r.r12(),
            r.r13(),
            r.r14(),
            r.r15(),
            r.rdi(),
            r.rsi(),
            r.rbp(),
            r.rbx(),
            r.rdx(),
            r.rax(),
            r.rcx(),
            r.rsp(),
            r.rip(),
            r.eflags(),
            segments,
        ];
        let mut out = [0; 24];
        out[..general.len()].copy_from_slice(&general);
        out[23] = xsave.get();
        out
    }

    fn put_xsave(&self, out: &mut [u8]) {
        let (components, size) = self.xstate.for_frame();
        out[..size].copy_from_slice(&self.xstate.0[..size]);
        let length = |bytes: usize| u32::try_from(bytes).expect("an xsave area is small").to_le_bytes();
        let reserved = &mut out[SOFTWARE_RESERVED..XSTATE_BV];
        reserved.fill(0);
        reserved[0..4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
        reserved[4..8].copy_from_slice(&length(size + 4));
        reserved[8..16].copy_from_slice(&components.to_le_bytes());
        reserved[16..20].copy_from_slice(&length(size));
        out[size..size + 4].copy_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xstate(len: usize, supported: u64, in_use: u64) -> XState {
        let mut bytes = vec![0; len];
        bytes[SOFTWARE_RESERVED..][..8].copy_from_slice(&supported.to_le_bytes());
        bytes[XSTATE_BV..][..8].copy_from_slice(&in_use.to_le_bytes());
        XState::from_bytes(bytes).unwrap()
    }

    #[test]
    fn frame_has_the_kernels_layout() {
        let mut registers = Registers::from_words([0; 27]);
        registers.set_r8(8);
        registers.set_rip(0x1234);
        registers.set_cs(0x33);
        registers.set_ss(0x2b);
        let xstate = xstate(576, 3, 3);
        let mask = SignalSet::EMPTY.with(10);
        let frame = SignalFrame { registers: &registers, xstate: &xstate, mask, alt_stack: AltStack::Keep };
        let bytes = frame.build(RemoteAddr::new(0x7000));
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(word(0), 7);
        assert_eq!(word(24), INVALID_STACK_MODE);
        assert_eq!(word(40), 8);
        assert_eq!(word(40 + 16 * 8), 0x1234);
        assert_eq!(word(40 + 18 * 8), 0x33 | 0x2b << 48);
        assert_eq!(word(40 + 23 * 8), 0x7000 + 320);
        assert_eq!(word(296), 1 << 9);
        assert_eq!(word(320 + 464), u64::from(FP_XSTATE_MAGIC1) | 580 << 32);
        assert_eq!(word(320 + 576), FP_XSTATE_MAGIC2.into());
        assert_eq!(bytes.len(), 320 + 576 + 8);
    }

    #[test]
    fn tile_data_is_left_out_unless_used() {
        let area = xstate(11_008, 0xe7 | DYNAMIC_FEATURES, 3);
        assert_eq!(area.for_frame().0, 0xe7);
        assert_eq!(xstate(11_008, 3 | DYNAMIC_FEATURES, 3 | 1 << 18).for_frame().0, 3 | 1 << 18);
    }

    #[test]
    fn short_areas_are_refused() {
        assert!(XState::from_bytes(vec![0; 512]).is_none());
        assert!(XState::from_bytes(vec![0; 577]).is_none());
    }
}
