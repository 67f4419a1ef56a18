//! Remote calls: programs of system calls run by the threads of a live target.
//!
//! Only the target itself can answer some questions (its signal handlers, alternate stacks, program break...). A [`RemoteStage`]
//! takes over a target whose threads are all stopped, maps scratch memory in it, runs programs there, and puts everything back.
//!
//! **Even if the tracer is killed at any instant the target goes on as if nothing had happened**; at worst one inert mapping stays.
//! At each moment the registers of every thread lead back to what it did before:
//! - the first and the last call (mapping and unmapping the scratch memory) are made by a `syscall; ret` found in the target's own
//!   code, on a *prepared stack* that returns into `rt_sigreturn` (every libc has one) with a frame of the thread's own state;
//! - each track of a program ends with `rt_sigreturn` on such a frame in the scratch memory;
//! - a thread's signals are blocked only while its registers lead to such a frame, which gives it back its own mask;
//! - the report of a signal's delivery is left with the kernel, which delivers it should the tracer die.
//!
//! A program ends by `tgkill` with a signal that nobody handles and whose default is to be ignored: for us a stop, and nothing at
//! all when we are gone. Registers go back by ptrace, not by `rt_sigreturn`, so that the kernel's own restart of interrupted sleeps
//! stays intact.

mod error;
mod gadgets;
mod prepared;
mod run;
mod stage;

use crate::arch::x86_64::{Registers, XState};
use crate::program::{Assembled, CallRef, DataRef, Failure};
use crate::ptrace::{ExitStatus, Stopped};
use crate::signal::SignalSet;

pub use error::RemoteError;
pub use gadgets::Gadgets;
pub use stage::RemoteStage;

/// A thread's state as it was when the stage took over, for the image as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedThread {
    /// The thread.
    pub tid: i32,
    /// General registers, raw: `orig_rax` and `rax` still tell an interrupted call. A thread stopped in a critical section of
    /// restartable sequences has been put at its abort handler, as the kernel would have done.
    pub registers: Registers,
    /// Extended state.
    pub xstate: XState,
    /// Signal mask.
    pub mask: SignalSet,
}

/// The stage could not be opened. The threads are as they were.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct OpenError {
    /// The threads that were handed in.
    pub threads: Vec<Stopped>,
    /// Why.
    pub source: RemoteError,
}

/// What a program left behind in the target: results and data.
#[derive(Debug)]
pub struct Outcome {
    assembled: Assembled,
    memory: Vec<u8>,
}

impl Outcome {
    /// Of a program that was walked somewhere else: `memory` holds its bytes as they are after that.
    #[must_use]
    pub fn new(assembled: Assembled, memory: Vec<u8>) -> Self {
        Self { assembled, memory }
    }

    /// What a call returned; negative error numbers as the kernel gives them. 0 for a call that was not reached.
    #[must_use]
    pub fn result(&self, call: CallRef) -> i64 {
        self.assembled.result(&self.memory, call).cast_signed()
    }

    /// The program's data after it ran: what calls wrote there.
    #[must_use]
    pub fn data(&self, data: DataRef) -> &[u8] {
        let start = self.assembled.data_offset(data);
        &self.memory[start..start + data.len]
    }

    /// A 64-bit word of the program's data after it ran, `offset` bytes into `data`.
    ///
    /// # Panics
    /// When the word is not within `data`.
    #[must_use]
    pub fn word(&self, data: DataRef, offset: usize) -> u64 {
        u64::from_le_bytes(self.data(data)[offset..offset + 8].try_into().expect("eight bytes"))
    }

    /// The first track (in order) that stopped early, if any.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.assembled.failure(&self.memory)
    }
}

/// What a stage hands back.
#[derive(Debug)]
#[must_use = "the stopped threads wait to be resumed"]
pub struct Closed {
    /// The threads that live, still stopped, in the order they were handed in.
    pub threads: Vec<Stopped>,
    /// The threads that ended (somebody killed the process), and how. They need no waiting for.
    pub ended: Vec<(i32, ExitStatus)>,
    /// What could not be put back, if anything.
    pub trouble: Option<RemoteError>,
}
