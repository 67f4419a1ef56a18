//! `cargo xtask`: a demonstration, the tests, hostile bytes, the figures.

mod bench;
mod bench_idle;
mod bench_original;
mod bench_running;
mod bench_table;
mod demo;
mod fuzz;
mod library;
mod packages;
mod test;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Freezes a real program to disk, ends it, wakes it again, and compares its output with an undisturbed run
    Demo,
    /// Runs formatting, lints and all tests, or one group of them
    Test {
        /// Run only this group
        #[arg(long)]
        group: Option<Group>,
        /// Run only the tests whose name contains this (not for unit)
        #[arg(long)]
        only: Option<String>,
    },
    /// Writes the manual pages
    Man {
        /// Where to
        #[arg(default_value = "target/man")]
        folder: PathBuf,
    },
    /// Writes completions for bash, zsh and fish
    Completions {
        /// Where to
        #[arg(default_value = "target/completions")]
        folder: PathBuf,
    },
    /// Builds the library that programs are linked with or preloaded
    Lib {
        /// Where to
        #[arg(long, default_value = "target/ckpt")]
        out: PathBuf,
    },
    /// Feeds what reads images and /proc with hostile bytes, under the address sanitizer
    Fuzz {
        /// Minutes for each target
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Targets; all when none is named
        targets: Vec<String>,
    },
    /// Measures pause, checkpoint and wake-up beside memcpy and a durable write of the same size
    Bench {
        /// Sizes of the program's memory in megabytes
        #[arg(long, value_delimiter = ',', default_values_t = [16, 106, 950])]
        sizes: Vec<usize>,
        /// Runs of each measurement
        #[arg(long, default_value_t = 7)]
        runs: usize,
        /// Measure what libckpt costs a program while nobody asks for a checkpoint
        #[arg(long, conflicts_with = "sizes")]
        idle: bool,
        /// Measure the table of 2003 again: matrix multiplications and everyday programs
        #[arg(long, conflicts_with_all = ["sizes", "idle"])]
        original: bool,
        /// Measure what programs notice that run on while they are saved: pause and slow-down
        #[arg(long, conflicts_with_all = ["sizes", "idle", "original"])]
        running: bool,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Formatting, lints, unit tests and the borders of the architecture
    Unit,
    /// One self-checking program per capability
    Capabilities,
    /// Signals at random instants, full disks, broken images
    Faults,
    /// The library inside of programs: storms, sandboxes, bad input
    Inside,
    /// python3, perl, sqlite3, OpenBLAS
    Real,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Demo => demo::run(),
        Task::Test { group, only } => test::run(group, only.as_deref()),
        Task::Man { folder } => generate("man", &folder),
        Task::Completions { folder } => generate("completions", &folder),
        Task::Lib { out } => library::run(&out),
        Task::Fuzz { minutes, targets } => fuzz::run(minutes, &targets),
        Task::Bench { original: true, runs, json, .. } => bench_original::run(runs, json).map(|()| true),
        Task::Bench { running: true, runs, json, .. } => bench_running::run(runs, json).map(|()| true),
        Task::Bench { idle: true, runs, json, .. } => bench_idle::run(runs, json).map(|()| true),
        Task::Bench { sizes, runs, json, .. } => bench::run(&sizes, runs, json).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Has the binary write what it knows about itself.
fn generate(what: &str, folder: &Path) -> anyhow::Result<bool> {
    let rewake = rewake_suite::workshop::build_rewake()?;
    let status = Command::new(rewake)
        .args(["generate", what])
        .arg(folder)
        .status()
        .context("running rewake generate")?;
    if status.success() {
        println!("written to {}", folder.display());
    }
    Ok(status.success())
}
