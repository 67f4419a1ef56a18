//! `cargo xtask bench --idle`: what the library costs a program while nobody asks for a checkpoint, against the same program without it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rewake_suite::library;
use rewake_suite::subject::{Inside, Subject, save_command};
use rewake_suite::workshop::{Workshop, root};
use serde::Serialize;

use crate::bench_table;

/// What the program measures, and how a person calls it.
const MEASURED: &[(&str, &str)] = &[
    ("cpu", "1,000 rounds of arithmetic"),
    ("heap", "malloc, free"),
    ("file", "open, read, close"),
    ("thread", "pthread_create, pthread_join"),
    ("child", "fork, wait"),
    ("program", "fork, exec, wait"),
    ("start", "start-up to end, as whoever starts it sees it"),
];
const WAYS: [&str; 3] = ["without", "linked", "preloaded"];
/// Starts in one round.
const STARTS: usize = 10;

/// Medians in nanoseconds, in the order of [`WAYS`].
#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    nanoseconds: [f64; 3],
}

/// All that was found.
#[derive(Debug, Serialize)]
struct Figures {
    rows: Vec<Row>,
    /// Bytes of the image of a program that does nothing: by `rewake save` without the library, by itself with it.
    image_bytes: [u64; 3],
}

struct Programs {
    folder: PathBuf,
    library: PathBuf,
}

/// Measures and prints.
///
/// # Errors
/// Fails when the programs cannot be built or run.
pub fn run(rounds: usize, json: bool) -> Result<()> {
    ensure!(rounds > 0, "at least one round is needed");
    let workshop = Workshop::open("bench-idle")?;
    rewake_suite::process::become_subreaper()?;
    let programs = Programs { folder: workshop.folder("programs")?, library: library::build_for_tests()? };
    for (name, source) in [("idle", "idle.c"), ("hello", "hello.c")] {
        programs.compile(name, source)?;
    }
    fs::write(programs.folder.join("nothing.c"), "int main(void) { return 0; }\n")?;
    programs.compile("nothing", "")?;
    let mut samples: BTreeMap<(&str, usize), Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        eprintln!("round {} of {rounds} ...", round + 1);
        for turn in 0..WAYS.len() {
            let way = (round + turn) % WAYS.len();
            for (name, value) in programs.measure(way)? {
                samples.entry((name, way)).or_default().push(value);
            }
        }
    }
    let median = |name: &'static str, way: usize| {
        let mut all = samples.get(&(name, way)).cloned().unwrap_or_default();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    let rows =
        MEASURED.iter().map(|(name, what)| Row { what, nanoseconds: [0, 1, 2].map(|way| median(name, way)) });
    let image_bytes =
        [programs.image(&workshop, 0)?, programs.image(&workshop, 1)?, programs.image(&workshop, 2)?];
    let figures = Figures { rows: rows.collect(), image_bytes };
    if json {
        println!("{}", serde_json::to_string_pretty(&figures).context("writing JSON")?);
    } else {
        println!("{}", render(&figures, rounds));
    }
    Ok(())
}

impl Programs {
    /// Both without the library and linked with it.
    fn compile(&self, name: &str, source: &str) -> Result<()> {
        let own = self.folder.join(name).with_extension("c");
        let source = if source.is_empty() { own } else { root().join("tests/programs/library").join(source) };
        for way in [0, 1] {
            let mut command = Command::new("gcc");
            command.args(["-O2", "-pthread"]);
            if name == "hello" && way == 0 {
                command.arg("-Dckpt_target=main");
            }
            command.arg("-o").arg(self.program(name, way)).arg(&source);
            if way == 1 {
                command.arg(self.library.join("libckpt.a")).arg(self.library.join("cmain.o"));
                command.args(["-ldl", "-lrt"]);
            }
            ensure!(command.status().context("gcc")?.success(), "{name} cannot be compiled");
        }
        Ok(())
    }

    fn program(&self, name: &str, way: usize) -> PathBuf {
        self.folder.join(if way == 1 { format!("{name}-linked") } else { name.to_owned() })
    }

    fn command(&self, name: &str, way: usize) -> Command {
        let mut command = Command::new(self.program(name, way));
        if way == 2 {
            command.env("LD_PRELOAD", self.library.join("libckpt.so"));
        }
        command
    }

    fn measure(&self, way: usize) -> Result<Vec<(&'static str, f64)>> {
        let mut command = self.command("idle", way);
        let output =
            command.arg(self.program("nothing", 0)).stderr(Stdio::inherit()).output().context("idle")?;
        ensure!(output.status.success(), "the program failed {}", WAYS[way]);
        let text = String::from_utf8(output.stdout).context("its figures")?;
        let told: BTreeMap<&str, f64> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
            .collect();
        let mut figures: Vec<(&str, f64)> =
            MEASURED.iter().filter_map(|(name, _)| Some((*name, *told.get(name)?))).collect();
        for _ in 0..STARTS {
            let begun = Instant::now();
            ensure!(
                self.command("nothing", way).status().context("nothing")?.success(),
                "it failed {}",
                WAYS[way]
            );
            figures.push(("start", begun.elapsed().as_secs_f64() * 1e9));
        }
        Ok(figures)
    }

    /// Bytes of the image of a small program.
    fn image(&self, workshop: &Workshop, way: usize) -> Result<u64> {
        let folder = workshop.folder(WAYS[way])?;
        let program = self.program("hello", way);
        if way == 0 {
            let subject = Subject::start(&program, &[], folder)?;
            let save = save_command(workshop, subject.pid(), &subject.image());
            rewake_suite::process::run(save, &subject.folder, "save")?.expect_code("save", 0)?;
            return bytes(&subject.image());
        }
        let inside = match way {
            1 => Inside::linked(&program, &folder),
            _ => Inside::new(&self.library.join("libckpt.so"), &program, &folder),
        };
        let mut subject = Subject::start_inside(&inside, workshop, &[], folder)?;
        inside.save(&mut subject)?;
        bytes(&inside.store().join("latest"))
    }
}

fn bytes(folder: &Path) -> Result<u64> {
    fs::read_dir(folder)?.map(|file| Ok(file?.metadata()?.len())).sum()
}

fn render(figures: &Figures, rounds: usize) -> String {
    let mut rows = vec![vec![format!("median of {rounds} rounds")]];
    rows[0].extend(WAYS.map(str::to_owned));
    for row in &figures.rows {
        let [without, ..] = row.nanoseconds;
        let cell = |value: f64| match value {
            small if small < 10_000.0 => format!("{small:.0} ns"),
            large => format!("{:.0} µs", large / 1e3),
        };
        let mut line = vec![row.what.to_owned(), cell(without)];
        line.extend(
            row.nanoseconds[1..].iter().map(|value| format!("{} ({:.2})", cell(*value), value / without)),
        );
        rows.push(line);
    }
    let mut line = vec!["image of a program that waits".to_owned()];
    line.extend(figures.image_bytes.map(|bytes| format!("{} KiB", bytes >> 10)));
    rows.push(line);
    bench_table::lines(&rows).join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_times_and_ratios() {
        let row = Row { what: "fork, wait", nanoseconds: [100_000.0, 101_000.0, 250_000.0] };
        let text = render(&Figures { rows: vec![row], image_bytes: [1 << 20, 2 << 20, 3 << 20] }, 9);
        for part in ["fork, wait", "100 µs", "101 µs (1.01)", "250 µs (2.50)", "2048 KiB", "of 9 rounds"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
