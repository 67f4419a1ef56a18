//! What can go wrong with remote calls.

use std::io;

use crate::memory::MemoryError;
use crate::proc::ProcError;
use crate::ptrace::{ExitStatus, PtraceError, StopReason};

/// A remote call could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Tracing failed.
    #[error(transparent)]
    Ptrace(#[from] PtraceError),
    /// The target's memory could not be read or written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// `/proc` could not be read.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// The target has no code to make a safe first call with.
    #[error("remote call failed for pid {pid} (its executable mappings): no `{missing}` found")]
    NoGadget {
        /// The process.
        pid: i32,
        /// The instructions looked for.
        missing: &'static str,
    },
    /// The target has no stack mapping, or it cannot grow.
    #[error("remote call failed for pid {pid} (its [stack] mapping): {reason}")]
    NoStack {
        /// The process.
        pid: i32,
        /// Why not.
        reason: String,
    },
    /// A thread is of a kind that remote calls cannot use.
    #[error("remote call failed for pid {tid} (thread): {reason}")]
    Unsupported {
        /// The thread.
        tid: i32,
        /// What is not supported.
        reason: &'static str,
    },
    /// Every signal that could end a program is handled by the target, or pending, or would take a pending one away.
    #[error(
        "remote call failed for pid {pid} (its signal handlers): SIGURG, SIGWINCH, SIGCHLD and SIGCONT are all handled, pending or \
         in the way of a pending stop"
    )]
    NoSignal {
        /// The process.
        pid: i32,
    },
    /// Scratch memory could not be mapped or unmapped.
    #[error("{operation} failed for pid {pid} (scratch memory, {len} bytes): {source}")]
    Scratch {
        /// "mmap" or "munmap".
        operation: &'static str,
        /// The process.
        pid: i32,
        /// Bytes.
        len: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process was killed meanwhile.
    #[error("remote call failed for pid {tid} (thread): it ended meanwhile ({status:?})")]
    Ended {
        /// The thread.
        tid: i32,
        /// How it ended.
        status: ExitStatus,
    },
    /// A thread stopped where it should not.
    #[error("remote call failed for pid {tid} (thread): stopped at {instruction:#x} by {reason:?}")]
    Unexpected {
        /// The thread.
        tid: i32,
        /// Where.
        instruction: u64,
        /// Why.
        reason: Box<StopReason>,
    },
}

impl RemoteError {
    /// What the user can do about it, in one line, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NoGadget { .. } => Some(
                "a 64-bit program with a C library has one; this one cannot be captured from outside".into(),
            ),
            Self::NoSignal { .. } => Some("let the program leave one of these signals at its default".into()),
            Self::Scratch { operation: "mmap", pid, source, .. }
                if source.kind() == io::ErrorKind::OutOfMemory =>
            {
                Some(format!(
                    "raise the limit of address space for a moment: prlimit --pid {pid} --as=unlimited"
                ))
            }
            _ => None,
        }
    }

    /// Whether the process is gone: killed from outside, not harmed by us.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Ptrace(error) => error.is_gone(),
            Self::Proc(error) => error.is_gone(),
            Self::Ended { .. } => true,
            _ => false,
        }
    }
}
