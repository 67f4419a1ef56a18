//! `chkpnt`: capture a running program.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use rewake_capture::{Compression, Options, Progress, Summary, capture, default_dir};
use serde::Serialize;

use crate::args::{Chkpnt, Compress, Engine, Mode};
use crate::failure::Failure;
use crate::format::{count, dotted, milliseconds, plain, rate, size, time};
use crate::output;
use crate::progress::Bar;
use crate::waiting;

/// Captures, and says what was captured.
pub fn run(arguments: &Chkpnt) -> Result<ExitCode, Failure> {
    if arguments.engine == Engine::Module {
        return Err(Failure::unsupported("--engine module", "leave it out: --engine auto takes ptrace"));
    }
    let options = options(arguments);
    // The image goes beside others of its store.
    options.dir.parent().into_iter().for_each(waiting::in_folder);
    let bar = Bar::new(&arguments.common, arguments.json);
    let outcome = capture(&options, &mut |progress| match progress {
        Progress::Phase(name) => bar.phase(name),
        Progress::Pages { done, total } => bar.bytes(done, total),
    });
    bar.clear();
    let summary = outcome?;
    if !arguments.json {
        for note in notes(&summary) {
            // Nobody is left to be told when this fails.
            let _ = writeln!(io::stderr().lock(), "note: {note}");
        }
    }
    report(arguments, &options.dir, &summary);
    Ok(ExitCode::SUCCESS)
}

fn options(arguments: &Chkpnt) -> Options {
    let dir = arguments.dir.clone().unwrap_or_else(|| default_dir(arguments.pid));
    let mut options = Options::new(arguments.pid, dotted(&dir));
    options.kill = arguments.kill;
    options.file_level = arguments.files;
    options.compression = match arguments.compress {
        Compress::Zstd => Compression::Zstd,
        Compress::Lz4 => Compression::Lz4,
        Compress::None => Compression::None,
    };
    options.mode = match arguments.mode {
        Mode::Auto => rewake_capture::Mode::Auto,
        Mode::Stop => rewake_capture::Mode::Stop,
        Mode::Precopy => rewake_capture::Mode::PreCopy,
    };
    options
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    image: String,
    pid: i32,
    processes: usize,
    threads: usize,
    image_bytes: u64,
    memory_bytes: u64,
    files_stored: usize,
    killed: bool,
    paused_ms: f64,
    total_ms: f64,
    mb_per_s: f64,
    notes: Vec<String>,
}

/// `dir` is the image as the user named it. It is durable now: whether this can be said does not change that, nor the exit status.
fn report(arguments: &Chkpnt, dir: &Path, summary: &Summary) {
    let text = if arguments.json {
        output::json(&Report {
            image: summary.dir.to_string_lossy().into_owned(),
            pid: arguments.pid,
            processes: summary.pids,
            threads: summary.threads,
            image_bytes: summary.bytes,
            memory_bytes: summary.memory,
            files_stored: summary.files_stored,
            killed: arguments.kill,
            paused_ms: milliseconds(summary.paused),
            total_ms: milliseconds(summary.total),
            mb_per_s: rate(summary.memory, summary.total),
            notes: notes(summary),
        })
    } else {
        format!("{}\n", line(dir, summary, arguments.kill))
    };
    let _ = output::print(&text);
}

/// What the image does not have, or may not.
fn notes(summary: &Summary) -> Vec<String> {
    let requests = (summary.aio_contexts > 0).then(|| {
        "asynchronous I/O (io_submit) that was still in flight cannot be seen and is not in the image; capture such a program when it \
         has none"
            .to_owned()
    });
    let outside = summary.outside_sockets.iter().map(|name| {
        format!(
            "connected to {}, a socket of another program: the resume connects it again to whoever has that address then",
            plain(name.as_bytes())
        )
    });
    note(summary.files_for_writing)
        .into_iter()
        .chain(requests)
        .chain(outside)
        .chain(strays(summary))
        .collect()
}

/// How many processes are named one by one.
const NAMED: usize = 3;

/// Processes that keep ids of the program's and are not in the image.
fn strays(summary: &Summary) -> Option<String> {
    let all = &summary.strays;
    let named: Vec<String> = all.iter().take(NAMED).map(|name| plain(name.as_bytes())).collect();
    let (processes, are, them) =
        if all.len() == 1 { ("process", "is", "it") } else { ("processes", "are", "them") };
    let more = match all.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!all.is_empty()).then(|| {
        format!(
            "{processes} {}{more} {are} in a group or session of the program, but not below it any more (the parent has ended): \
             not in the image; capture a process above both, or let the program wait for {them}",
            named.join(", ")
        )
    })
}

fn note(files_for_writing: usize) -> Option<String> {
    let (files, them) = match files_for_writing {
        0 => return None,
        1 => ("1 file".to_owned(), "it as it is"),
        several => (format!("{several} files"), "them as they are"),
    };
    Some(format!("the content of {files} open for writing is not in the image; keep {them} until the resume"))
}

fn line(dir: &Path, summary: &Summary, killed: bool) -> String {
    let killed = if killed { "killed, " } else { "" };
    format!(
        "saved {}: {}, {}, {} image, {killed}paused {}, total {}, {:.0} MB/s",
        plain(dir.as_os_str().as_encoded_bytes()),
        count(summary.pids, "process", "processes"),
        count(summary.threads, "thread", "threads"),
        size(summary.bytes),
        time(summary.paused),
        time(summary.total),
        rate(summary.memory, summary.total),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_summary_is_one_line() {
        let dir = Path::new("./rewake-4711-1");
        let summary = Summary {
            dir: "/home/user/rewake-4711-1".into(),
            pids: 1,
            threads: 4,
            bytes: 106_249_000,
            memory: 106_200_000,
            files_for_writing: 0,
            files_stored: 2,
            aio_contexts: 1,
            outside_sockets: vec!["/dev/log".to_owned()],
            strays: Vec::new(),
            paused: Duration::from_micros(12_340),
            total: Duration::from_millis(190),
        };
        assert_eq!(
            line(dir, &summary, false),
            "saved ./rewake-4711-1: 1 process, 4 threads, 106.2 MB image, paused 12.3 ms, total 190 ms, 559 MB/s"
        );
        assert!(line(dir, &summary, true).contains(" image, killed, paused 12.3 ms, total "));
        let notes = notes(&summary);
        assert!(notes.len() == 2 && notes[0].contains("in flight"), "{notes:?}");
        assert!(notes[1].contains("/dev/log, a socket of another program"), "{notes:?}");
    }

    #[test]
    fn what_the_image_does_not_have_is_said() {
        assert_eq!(note(0), None);
        assert_eq!(
            note(2).as_deref(),
            Some(
                "the content of 2 files open for writing is not in the image; keep them as they are until the resume"
            )
        );
        assert!(
            note(1).is_some_and(|note| note.contains("of 1 file open") && note.contains("keep it as it is"))
        );
    }
}
