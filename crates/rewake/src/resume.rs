//! `resume`: wake a program from its image, and stand for it while it runs.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rewake_restore::{IpcPolicy, Options, Progress, RestoreError, Restored};
use rustix::process::Pid;
use serde::Serialize;

use crate::args::{Clock, Ipc, OnChanged, OutsideSockets, Pids, Resume};
use crate::failure::{Failure, chain};
use crate::foreground::{self, Company};
use crate::format::{count, milliseconds, plain, rate, size, time};
use crate::output;
use crate::place;
use crate::progress::Bar;
use crate::waiting;

/// Wakes the program; in the foreground, returns its exit status.
pub fn run(arguments: &Resume) -> Result<ExitCode, Failure> {
    let options = options(arguments)?;
    if arguments.plan {
        output::print(&rewake_restore::listing(&options)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    waiting::of_image(&options.dir)?;
    foreground::prepare()
        .map_err(|error| Failure::new(format_args!("preparing to be a parent failed: {error}")))?;
    let (restored, company) = wake(arguments, &options)?;
    announce(arguments, &options.dir, &restored);
    let Some(company) = company else { return Ok(ExitCode::SUCCESS) };
    let ending = company
        .keep()
        .map_err(|error| Failure::new(format_args!("wait failed for pid {}: {error}", restored.pid)))?;
    Ok(ending.follow())
}

/// Restores. In the foreground, we begin to stand for the program just before it is let go: no signal is lost, and it finds the
/// terminal its own.
fn wake(arguments: &Resume, options: &Options) -> Result<(Restored, Option<Company>), Failure> {
    let bar = Bar::new(&arguments.common, arguments.json);
    let mut company = None;
    let outcome = rewake_restore::resume(options, &mut |progress| match progress {
        Progress::Phase(name) => bar.phase(name),
        // There they are part of what is printed at the end.
        Progress::Note(_) if arguments.json => {}
        Progress::Note(note) => {
            bar.clear();
            // Nobody is left to be told when this fails.
            let _ = writeln!(io::stderr(), "note: {note}");
        }
        Progress::Pages { done, total } => bar.bytes(done, total),
        Progress::Ready { pid } => {
            bar.clear();
            company = Pid::from_raw(pid).filter(|_| !arguments.detach).map(Company::begin);
        }
    });
    bar.clear();
    let company = company
        .transpose()
        .map_err(|error| Failure::new(format_args!("holding signals back failed: {error}")))?;
    match outcome {
        Ok(restored) => Ok((restored, company)),
        Err(error) => {
            if let Some(company) = company {
                company.give_up();
            }
            Err(error.into())
        }
    }
}

fn options(arguments: &Resume) -> Result<Options, Failure> {
    let on_changed = if arguments.overwrite { OnChanged::Restore } else { arguments.on_changed };
    Ok(Options {
        dir: place::image(&arguments.dir)?,
        on_changed: match on_changed {
            OnChanged::Error => rewake_restore::OnChanged::Error,
            OnChanged::Restore => rewake_restore::OnChanged::Restore,
            OnChanged::AsIs => rewake_restore::OnChanged::AsIs,
        },
        pids: match arguments.pids {
            Pids::Auto => rewake_restore::Pids::Auto,
            Pids::Same => rewake_restore::Pids::Same,
            Pids::Namespace => rewake_restore::Pids::Namespace,
        },
        ipc: match arguments.ipc {
            Ipc::Auto => IpcPolicy::Auto,
            Ipc::Same => IpcPolicy::Same,
            Ipc::Namespace => IpcPolicy::Namespace,
        },
        outside_sockets: match arguments.outside_sockets {
            OutsideSockets::Reconnect => rewake_restore::OutsideSockets::Reconnect,
            OutsideSockets::DeadEnd => rewake_restore::OutsideSockets::DeadEnd,
        },
        clock: arguments.clock.map(|clock| match clock {
            Clock::Keep => rewake_restore::Clock::Keep,
            Clock::Go => rewake_restore::Clock::Go,
        }),
        new_session: arguments.detach,
    })
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        Self::with_remedy(chain(&error), error.remedy())
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    image: String,
    pid: i32,
    /// Its id inside of its namespace: the one it had. Else the same.
    inner_pid: i32,
    threads: usize,
    memory_bytes: u64,
    total_ms: f64,
    mb_per_s: f64,
    /// Files put back as they were at the capture (-o).
    files_put_back: Vec<String>,
    /// Files that changed and were left alone: the program has their saved content for itself.
    files_private: Vec<String>,
    notes: Vec<String>,
}

/// Says that the program runs. In the foreground the standard streams are the program's: nothing is said on a terminal that it may be
/// drawing on, and one line on standard error elsewhere.
fn announce(arguments: &Resume, image: &Path, restored: &Restored) {
    let text = if arguments.json {
        output::json(&Report {
            image: image.to_string_lossy().into_owned(),
            pid: restored.pid,
            inner_pid: restored.inner_pid,
            threads: restored.threads,
            memory_bytes: restored.bytes,
            total_ms: milliseconds(restored.total),
            mb_per_s: rate(restored.bytes, restored.total),
            files_put_back: names(&restored.put_back),
            files_private: names(&restored.private),
            notes: restored.notes.clone(),
        })
    } else if arguments.detach {
        format!("{}\n", restored.pid)
    } else if io::stderr().is_terminal() && arguments.common.verbose == 0 {
        return;
    } else {
        line(image, restored)
    };
    // The program runs: that this cannot be said does not change it.
    let _ = if arguments.detach {
        output::print(&text)
    } else {
        io::stderr().write_all(text.as_bytes()).map_err(Failure::new)
    };
}

fn names(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

fn line(image: &Path, restored: &Restored) -> String {
    let files = |paths: &[PathBuf], what: &str| match paths.len() {
        0 => String::new(),
        number => format!(", {} {what}", count(number, "file", "files")),
    };
    format!(
        "woke {}: pid {}{}, {}, {} memory{}{}, total {}, {:.0} MB/s\n",
        plain(image.as_os_str().as_encoded_bytes()),
        restored.pid,
        if restored.pid == restored.inner_pid {
            String::new()
        } else {
            format!(" ({} inside)", restored.inner_pid)
        },
        count(restored.threads, "thread", "threads"),
        size(restored.bytes),
        files(&restored.put_back, "put back"),
        files(&restored.private, "as saved, privately"),
        time(restored.total),
        rate(restored.bytes, restored.total),
    )
}
