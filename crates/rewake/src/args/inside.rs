//! Commands about programs with libckpt inside.

use std::ffi::OsString;

use clap::{Parser, ValueHint};

use super::Common;

/// Ask a program with libckpt inside to checkpoint itself, and wait for the image.
///
/// The program needs no right for it, nor does whoever asks, but to send it a signal. It goes on afterwards. The image goes into the
/// store that its settings name (.ckptrc, CKPT_DIRECTORY; .rewake/NAME in the folder it was started in). A program that has no libckpt
/// inside is left alone.
///
/// Exit status: 0 the image is complete and durable; 1 there is none, and the program runs on; 2 the command line was wrong.
#[derive(Debug, Parser)]
#[command(name = "ckpt", version, max_term_width = 100, after_help = CKPT_EXAMPLES)]
pub struct Ckpt {
    /// The process. You must be its owner, or root
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,

    /// How long the program may take to begin, in seconds. Once it has begun, ckpt waits as long as it takes
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,

    /// Print one JSON object instead of the summary line, on standard output: image, pid, threads, image_bytes, memory_bytes (before
    /// compression), paused_ms, total_ms, mb_per_s
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub common: Common,
}

const CKPT_EXAMPLES: &str = "\
EXAMPLES
  rewake run --preload -- ./sim &        start a program with libckpt inside
  ckpt $!                                have it checkpoint itself
  rewake run --preload -- ./sim =recover
                                         the image takes its place, after it was killed";

/// Start a program with libckpt preloaded, so that it can checkpoint itself.
///
/// rewake becomes the program: its process id, terminal and exit status are the program's. For dynamically linked programs of glibc, in
/// any language; what they start has the library too. libckpt.so is looked for beside rewake and in ../lib/rewake. A program that takes no
/// preloaded library (linked statically, set-user-id, of 32 bits; of a script, what runs it) is started all the same, with a word on
/// standard error; with =recover it is not.
///
/// Exit status: the program's; 125 there is no library, or it cannot be recovered with one; 126 the program cannot be started; 127 it is not there.
#[derive(Debug, Parser)]
#[command(
    name = "run",
    after_help = "EXAMPLES
  rewake run --preload -- ./sim input.dat
  rewake run --preload -- ./sim =recover     from its latest image
  CKPT_INTERVAL=10m rewake run --preload -- python3 job.py

ENVIRONMENT
  REWAKE_LIBCKPT   where libckpt.so is, if it is elsewhere"
)]
pub struct Run {
    /// Preload the library
    #[arg(long, required = true)]
    pub preload: bool,

    /// The program and its arguments
    #[arg(value_name = "CMD", required = true, last = true, value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,

    #[command(flatten)]
    pub common: Common,
}
