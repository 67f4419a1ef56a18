//! `cargo xtask bench --original`: the table of "User and kernel level checkpointing" (2003), measured again: image, time of a checkpoint,
//! processor time of it and the share that is left for the disk, for matrix multiplications and a few everyday programs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rewake_suite::process::{self, Running};
use rewake_suite::subject::{Subject, save_command};
use rewake_suite::workshop::{Workshop, root};
use rustix::process::Signal;
use serde::Serialize;

use crate::bench::bytes_of;
use crate::bench_table;

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Everyday programs are at work then.
const AT_WORK: Duration = Duration::from_secs(3);
/// Rows of the matrices, and what was measured in 2003: megabytes, seconds, seconds of processor, percent of the time for the disk.
const MATRICES: [(usize, &str); 4] = [
    (1000, "16 MB 1.62 s / 0.77 s / 52.5 %"),
    (2000, "51 MB 3.58 s / 1.50 s / 59 %"),
    (3000, "106 MB 86 s / 5.10 s / 94 %"),
    (9000, "950 MB 70 s / 16.31 s / 77 %"),
];
/// Everyday programs: what runs them, their source, and how much they do.
const EVERYDAY: [[&str; 3]; 4] = [
    ["python3", "primes.py", "20000000"],
    ["perl", "words.pl", "4000"],
    ["node", "churn.js", "4000"],
    ["octave-cli", "linear.m", "4000"],
];

/// One program; times are medians, in seconds.
#[derive(Debug, Serialize)]
pub struct Line {
    program: String,
    image_bytes: u64,
    total_s: f64,
    processor_s: f64,
    /// Of the total, in percent.
    disk_percent: f64,
    in_2003: &'static str,
}

/// All checkpoints of a program.
struct Samples {
    /// Each whole command.
    total: Vec<Duration>,
    /// The processor time of all of them.
    processor: Duration,
    /// The last image.
    image_bytes: u64,
}

/// Measures and prints.
///
/// # Errors
/// Fails when a checkpoint fails, or a program is not what it was.
pub fn run(runs: usize, json: bool) -> Result<()> {
    ensure!(runs > 0, "at least one run is needed");
    let workshop = Workshop::open("bench-original")?;
    process::become_subreaper()?;
    let mut lines = Vec::new();
    for (rows, in_2003) in MATRICES {
        for (name, options) in [("own code", &[][..]), ("OpenBLAS", &["-DBLAS", "-lopenblas"][..])] {
            eprintln!("measuring matrices of {rows} rows, {name} ...");
            lines.push(matrices(&workshop, rows, name, options, runs, in_2003)?);
        }
    }
    for call in EVERYDAY {
        eprintln!("measuring {} ...", call.join(" "));
        lines.extend(everyday(&workshop, call, runs)?);
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&lines).context("writing JSON")?);
    } else {
        println!("{}", render(&lines, runs));
    }
    Ok(())
}

fn matrices(
    workshop: &Workshop,
    rows: usize,
    name: &str,
    options: &[&str],
    runs: usize,
    in_2003: &'static str,
) -> Result<Line> {
    let program = workshop.compile("matrices", options)?;
    let mut subject = Subject::start(&program, &[&rows.to_string()], workshop.folder("matrices")?)?;
    let samples = saves(workshop, subject.pid(), &subject.folder, runs)?;
    // Once more, and this time it is killed and woken, and looks whether all is as it was.
    subject.save_and_kill(workshop)?;
    subject.resume_and_pass(workshop, &[])?;
    Ok(line(format!("{rows} rows, {name}"), &samples, in_2003))
}

/// Nothing where the program is not installed.
fn everyday(workshop: &Workshop, [program, source, amount]: [&str; 3], runs: usize) -> Result<Option<Line>> {
    let folder = workshop.folder("everyday")?;
    fs::copy(root().join("tests/programs/real").join(source), folder.join(source)).context("its source")?;
    let mut command = Command::new(program);
    command.args([source, amount]).current_dir(&folder);
    let Ok(running) = Running::start(command, &folder, "program") else {
        eprintln!("SKIPPED: {program} is not here");
        return Ok(None);
    };
    let pid = running.id();
    std::thread::sleep(AT_WORK);
    let samples = saves(workshop, pid, &folder, runs).with_context(|| format!("{program} {source}"))?;
    process::signal(pid, Signal::KILL);
    running.finish(PATIENCE)?;
    Ok(Some(line(format!("{program} {source}"), &samples, "")))
}

/// Checkpoints of a program that runs on, durable, without the content of files.
fn saves(workshop: &Workshop, pid: u32, folder: &Path, runs: usize) -> Result<Samples> {
    let image = folder.join("image");
    let mut samples = Samples { total: Vec::new(), processor: Duration::ZERO, image_bytes: 0 };
    for _ in 0..runs {
        let command = save_command(workshop, pid, &image);
        let (before, begun) = (of_children()?, Instant::now());
        Running::start(command, folder, "save")?.finish(PATIENCE)?.expect_code("save", 0)?;
        samples.total.push(begun.elapsed());
        samples.processor += of_children()?.saturating_sub(before);
        samples.image_bytes = bytes_of(&image)?;
        fs::remove_dir_all(&image).context("removing an image")?;
    }
    Ok(samples)
}

/// Processor time of all children that were waited for, and of theirs: `cutime` and `cstime`, in hundredths of a second.
fn of_children() -> Result<Duration> {
    const NAME_ENDS: char = ')';
    const CUTIME: usize = 13;
    let text = fs::read_to_string("/proc/self/stat").context("reading our times")?;
    let (_, fields) = text.rsplit_once(NAME_ENDS).context("a name in parentheses")?;
    let times = fields.split_whitespace().skip(CUTIME).take(2);
    let ticks: u64 = times.map(str::parse::<u64>).sum::<Result<u64, _>>().context("two times")?;
    Ok(Duration::from_millis(10 * ticks))
}

fn line(program: String, samples: &Samples, in_2003: &'static str) -> Line {
    let mut total = samples.total.clone();
    total.sort();
    let total_s = total.get(total.len() / 2).map_or(0.0, Duration::as_secs_f64);
    let all: f64 = samples.total.iter().map(Duration::as_secs_f64).sum();
    let runs = u32::try_from(samples.total.len().max(1)).unwrap_or(1);
    let processor_s = samples.processor.as_secs_f64() / f64::from(runs);
    let disk_percent = (100.0 * (1.0 - samples.processor.as_secs_f64() / all)).max(0.0);
    Line { program, image_bytes: samples.image_bytes, total_s, processor_s, disk_percent, in_2003 }
}

fn render(lines: &[Line], runs: usize) -> String {
    let heading = [
        &format!("checkpoint, median of {runs}"),
        "image",
        "total",
        "processor",
        "disk",
        "2003: image, total / processor / disk",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for line in lines {
        let megabytes = line.image_bytes as f64 / 1e6;
        rows.push(vec![
            line.program.clone(),
            format!("{megabytes:.1} MB"),
            format!("{:.3} s", line.total_s),
            format!("{:.3} s", line.processor_s),
            format!("{:.0} %", line.disk_percent),
            line.in_2003.to_owned(),
        ]);
    }
    bench_table::lines(&rows).join("\n")
}
