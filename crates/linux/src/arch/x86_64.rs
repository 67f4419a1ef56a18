//! x86-64: registers, interrupted system calls, signal frames.

pub mod forgets;
pub mod frame;
pub mod regs;
pub mod restart;

pub use frame::{AltStack, SignalFrame, XState};
pub use regs::Registers;
pub use restart::Interruption;
