//! What can be chosen when a program is captured.

use clap::ValueEnum;

/// Compression of the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compress {
    /// Small images, some processor time
    Zstd,
    /// Less small, less processor time
    Lz4,
    /// As they are: fastest on a fast disk
    None,
}

/// How memory is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// stop, which is safe with every program
    Auto,
    /// It stands still until all of its memory is written
    Stop,
    /// Memory is copied while it runs; it stands still for what it has changed meanwhile. For
    /// programs of one process, without O_DIRECT and AIO, on Linux 6.13 or later
    Precopy,
}

/// The way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// The best there is on this host
    Auto,
    /// ptrace(2): no installation, no privilege over your own programs
    Ptrace,
    /// The kernel module, /dev/checkpoint
    Module,
}
