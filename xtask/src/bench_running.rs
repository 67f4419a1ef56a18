//! `cargo xtask bench --running`: what a program notices of being saved while it runs on: how long it stands still, by its own clock, and
//! how much slower it is from the start of the command to its end; with `--mode precopy` and in the plain way.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rewake_suite::process::{self, Running};
use rewake_suite::subject::{Subject, save_command};
use rewake_suite::workshop::Workshop;
use serde::Serialize;

use crate::bench::{Figure, figure};
use crate::bench_table;

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the program is watched before, to know how fast it is undisturbed.
const BEFORE: Duration = Duration::from_millis(700);
/// For what comes after the command, which a program may notice too.
const AFTER: Duration = Duration::from_millis(50);

/// What the program does: megabytes, random pages written to in a second, and whether it maps, unmaps and moves memory all the time.
const PROGRAMS: &[(u64, u64, bool)] =
    &[(16, 0, false), (950, 0, false), (950, 20_000, false), (4096, 20_000, false), (400, 2_000, true)];
const MODES: [&str; 2] = ["stop", "precopy"];

/// Where `dirty` tells how it fares: numbers of 8 bytes.
const WORK: usize = 0;
const LONGEST: usize = 1;
const CALLS: usize = 3;
const LONGEST_CALL: usize = 4;
type Numbers = [u64; 5];

/// One program, saved in one mode.
#[derive(Debug, Serialize)]
struct Row {
    megabytes: u64,
    pages_per_second: u64,
    maps_all_the_time: bool,
    mode: &'static str,
    /// The longest time that it did nothing.
    pause: Figure,
    /// The same while nobody saves it.
    calm: Figure,
    /// The whole command.
    total: Figure,
    /// How much less it does while it is saved, in percent: median and worst.
    slower: [f64; 2],
    /// How many calls that map and move it makes for 100 that it makes undisturbed: median; and the longest round of six.
    calls: Option<(f64, Figure)>,
}

#[derive(Default)]
struct Samples {
    pause: Vec<Duration>,
    calm: Vec<Duration>,
    total: Vec<Duration>,
    slower: Vec<f64>,
    calls: Vec<f64>,
    longest_call: Vec<Duration>,
}

/// Measures and prints.
///
/// # Errors
/// Fails when a checkpoint does.
pub fn run(runs: usize, json: bool) -> Result<()> {
    ensure!(runs > 0, "at least one run is needed");
    let workshop = Workshop::open("bench-running")?;
    process::become_subreaper()?;
    let mut rows = Vec::new();
    for program in PROGRAMS {
        eprintln!("measuring {} MB, {runs} runs ...", program.0);
        rows.extend(measure(&workshop, *program, runs)?);
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&rows).context("writing JSON")?);
    } else {
        println!("{}", render(&rows, runs));
    }
    Ok(())
}

fn measure(
    workshop: &Workshop,
    (megabytes, pages, calls): (u64, u64, bool),
    runs: usize,
) -> Result<Vec<Row>> {
    let program = workshop.compile("dirty", &[])?;
    let (size, rate) = (megabytes.to_string(), pages.to_string());
    let mut arguments = vec![size.as_str(), rate.as_str()];
    arguments.extend(calls.then_some("calls"));
    let mut subject = Subject::start(&program, &arguments, workshop.folder("program")?)?;
    let progress = File::options().read(true).write(true).open(subject.folder.join("progress"))?;
    let mut samples: [Samples; 2] = Default::default();
    // In alternation: a machine drifts.
    for _ in 0..runs {
        for (mode, samples) in MODES.iter().zip(&mut samples) {
            once(workshop, &subject, &progress, mode, samples)?;
        }
    }
    subject.go()?;
    subject.wait_for_end()?;
    let row = |(mode, samples): (&&'static str, Samples)| Row {
        megabytes,
        pages_per_second: pages,
        maps_all_the_time: calls,
        mode,
        pause: figure(samples.pause),
        calm: figure(samples.calm),
        total: figure(samples.total),
        slower: middle_and_last(samples.slower),
        calls: calls.then(|| (middle_and_last(samples.calls)[0], figure(samples.longest_call))),
    };
    Ok(MODES.iter().zip(samples).map(row).collect())
}

fn once(
    workshop: &Workshop,
    subject: &Subject,
    progress: &File,
    mode: &str,
    samples: &mut Samples,
) -> Result<()> {
    let (before, undisturbed, _) = observed(progress, || {
        std::thread::sleep(BEFORE);
        Ok(())
    })?;
    let mut command = save_command(workshop, subject.pid(), &subject.image());
    command.args(["--mode", mode]);
    let (saved, during, took) = observed(progress, || {
        let running = Running::start(command, &subject.folder, "save")?;
        running.finish(PATIENCE)?.expect_code("save", 0)
    })?;
    fs::remove_dir_all(subject.image()).context("removing the image")?;
    samples.calm.push(Duration::from_nanos(before[LONGEST]));
    samples.pause.push(Duration::from_nanos(saved[LONGEST]));
    samples.longest_call.push(Duration::from_nanos(saved[LONGEST_CALL]));
    samples.total.push(took);
    samples.slower.push(100.0 * (1.0 - during[WORK] / undisturbed[WORK]));
    samples.calls.push(100.0 * during[CALLS] / undisturbed[CALLS].max(1.0));
    Ok(())
}

/// What the program tells after something was done, how much of each it did in a second of that time, and how long that was.
fn observed(progress: &File, act: impl FnOnce() -> Result<()>) -> Result<(Numbers, [f64; 5], Duration)> {
    for longest in [LONGEST, LONGEST_CALL] {
        progress.write_all_at(&[0; 8], longest as u64 * 8).context("writing the progress file")?;
    }
    let first = numbers(progress)?;
    let begun = Instant::now();
    act()?;
    let (last, took) = (numbers(progress)?, begun.elapsed());
    std::thread::sleep(AFTER);
    let mut rates = [0.0; 5];
    for (rate, (first, last)) in rates.iter_mut().zip(first.into_iter().zip(last)) {
        *rate = last.saturating_sub(first) as f64 / took.as_secs_f64();
    }
    Ok((numbers(progress)?, rates, took))
}

fn numbers(progress: &File) -> Result<Numbers> {
    let mut bytes = [0; 40];
    progress.read_exact_at(&mut bytes, 0).context("reading the progress file")?;
    let mut numbers = [0; 5];
    for (number, chunk) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
        *number = u64::from_ne_bytes(chunk.try_into()?);
    }
    Ok(numbers)
}

fn middle_and_last(mut samples: Vec<f64>) -> [f64; 2] {
    samples.sort_by(f64::total_cmp);
    [samples.len() / 2, samples.len().saturating_sub(1)]
        .map(|at| samples.get(at).copied().unwrap_or_default())
}

fn render(rows: &[Row], runs: usize) -> String {
    let heading = [
        &format!("median / worst of {runs}"),
        "mode",
        "pause, ms",
        "calm, ms",
        "slower, %",
        "command, ms",
        "calls, %",
        "longest call, ms",
    ];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    for row in rows {
        let figure = |figure: &Figure| format!("{:.1} / {:.1}", figure.median_ms, figure.worst_ms);
        let rate = if row.pages_per_second > 0 {
            format!(", {} pages/s", row.pages_per_second)
        } else {
            String::new()
        };
        lines.push(vec![
            format!("{} MB{rate}{}", row.megabytes, if row.maps_all_the_time { ", maps" } else { "" }),
            row.mode.to_owned(),
            figure(&row.pause),
            figure(&row.calm),
            format!("{:.0} / {:.0}", row.slower[0], row.slower[1]),
            figure(&row.total),
            row.calls.as_ref().map_or_else(String::new, |(calls, _)| format!("{calls:.0}")),
            row.calls.as_ref().map_or_else(String::new, |(_, longest)| figure(longest)),
        ]);
    }
    bench_table::lines(&lines).join("\n")
}
