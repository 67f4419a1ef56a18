//! libckpt: a program checkpoints itself, without any rights.
//!
//! Linked in or preloaded, the library waits for a signal ([`SIGFREEZE`]). Whoever gets it first makes all threads stand still in that
//! signal's handler ([`stand`]), makes a copy of the process ([`copy`]), and answers its questions ([`lead`]); the copy writes the image
//! ([`capture`]), with the very code that captures programs from outside. `=recover` replaces a fresh process of the same program by
//! that of the image ([`recover`]): the restore's program, walked by the process itself, ends where the threads stood still.
//!
//! | where | may allocate, lock, use libc |
//! |---|---|
//! | handler: `entry`, `stand`, `lead`, `gather`, `copy` | nothing of it: raw system calls only |
//! | the copy: `capture` | its own memory ([`arena`]), no thread, no lock of the program's |
//! | start and recovery: `start`, `recover` | its own memory |
//! | what programs call: `api` | locks of its own, no memory |

pub mod acting;
pub mod again;
pub mod answer;
pub mod api;
pub mod arena;
pub mod capture;
pub mod ceilings;
pub mod complaint;
mod copy;
pub mod entry;
pub mod exec;
pub mod gather;
pub mod helper;
pub mod home;
pub mod ids;
pub mod later;
mod launcher;
pub mod lead;
pub mod lineage;
pub mod mailbox;
pub mod mark;
pub mod overrides;
pub mod pending;
pub mod positions;
pub mod raw;
pub mod recover;
pub mod remedy;
pub mod returns;
pub mod settings;
pub mod snapshot;
pub mod stand;
pub mod start;
pub mod store;
pub mod timer;
pub mod voice;
pub mod writer;

/// The signal that freezes: the first real-time signal that glibc leaves to programs.
pub const SIGFREEZE: i32 = 34;

/// The signal that makes a thread stand still: libc's own, which no thread of libc's ever blocks for long. It is given back at once.
pub const SIGSTAND: i32 = 33;
