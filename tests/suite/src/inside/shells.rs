//! What people write in shells: one run after the other, or side by side, whose output goes to a file that the shell has open itself.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::Bench;
use crate::process::{self, Finished};
use crate::report::Report;

/// What is written, `$P` being the program, and what the file out has then.
const LINES: &[(&str, &str)] = &[
    ("$P x > out || $P =recover > out", "0 1 2 3 end"),
    ("$P x >> out; $P =recover >> out", "0 1 2 3 end"),
    ("($P x || $P =recover) > out", "0 1 2 3 end"),
    // Nothing is said into the file itself.
    ("($P x || $P =recover) > out 2>&1", "0 1 2 3 end"),
    ("($P x || $P =recover; echo x after) > out", "0 1 2 3 end after"),
    ("(echo x before; $P x || $P =recover; echo x after) >> out", "before 0 1 2 3 end after"),
    ("exec > out; $P x || $P =recover; echo x more; $P x; $P =recover", "0 1 2 3 end more 0 1 2 3 end"),
    ("exec >> out; for i in 1 2; do $P x || $P =recover; done", "0 1 2 3 end 0 1 2 3 end"),
    // Nor into one that is to be as it was.
    (
        "($P x errors || $P =recover) > out 2> err; diff out err | grep -v '^[0-9]'; cat out > all; mv all out",
        "0 1 2 3 end",
    ),
    ("$P x errors > out 2> err || $P =recover >> out 2>> err", "0 1 2 3 end"),
    // The library is in those that start the program as well.
    (
        "export LD_PRELOAD=$L CKPT_DIRECTORY=store REWAKE_OTHER_IDS=1; nice $F x > out; timeout 10 $F =recover >> out",
        "0 1 2 3 end",
    ),
    // What fails leaves the shell where it was.
    ("exec > out; $P x; $P =recover nowhere; echo x after", "0 1 2 3 after"),
    (
        "exec > out; $P x; printf x | dd of=store/1/pages bs=1 seek=$(($(stat -c %s store/1/pages) / 2)) conv=notrunc status=none; $P =recover; echo x after",
        "0 1 2 3 after",
    ),
];

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    for (line, expected) in LINES {
        report.test(&format!("in a shell: {line}"), || one_after_the_other(bench, line, expected));
    }
    report.test("a word that is the name of a program", || name_of_a_program(bench));
    report.test("a recovery that fails midway", || halfway(bench));
    report.test("lines that are taken back are told of", || taken_back(bench));
    report.test("runs side by side that share a log: no line of the others is lost", || side_by_side(bench));
    report.test("a log that is shorter than it was, and that another holds", || shorter(bench));
    report.test("runs side by side that share a log and a file of data", || share_data(bench));
}

fn in_a_shell(bench: &Bench<'_>, name: &str, line: &str) -> Result<(Finished, Vec<String>)> {
    let (finished, folder) = shell(bench, "library/lines", name, line)?;
    let out = fs::read_to_string(folder.join("out")).context("out")?;
    Ok((finished, out.lines().map(str::to_owned).collect()))
}

/// Whether a recovery whose standard error was the file said had these words. One that is a file of the program's is left alone.
fn said(bench: &Bench<'_>, name: &str, words: &[&str]) -> Result<()> {
    let said = fs::read_to_string(bench.workshop.folder_of(name).join("said")).context("said")?;
    for word in words {
        ensure!(said.contains(word), "{word:?} is not in what it said: {said}");
    }
    Ok(())
}

/// Carries out lines in a folder of their own. `$L` is the library, `$F` the program's file, `$P` the program with the library; `await` waits
/// until something is so.
pub(super) fn shell(
    bench: &Bench<'_>,
    program: &str,
    name: &str,
    lines: &str,
) -> Result<(Finished, PathBuf)> {
    let program = bench.workshop.compile(program, &[])?;
    let folder = bench.workshop.folder(name)?;
    let (library, program) = (bench.library.display(), program.display());
    let text = format!(
        "L={library}; F={program}; P=\"env LD_PRELOAD=$L CKPT_DIRECTORY=store REWAKE_OTHER_IDS=1 $F\"
         await() {{ until eval \"$1\"; do sleep 0.01; done; }}
         {lines}"
    );
    let mut command = bench.workshop.program("bash".as_ref());
    command.args(["-c", &text]).current_dir(&folder);
    Ok((process::run(command, &folder, "shell")?, folder))
}

fn one_after_the_other(bench: &Bench<'_>, line: &str, expected: &str) -> Result<()> {
    let (finished, out) = in_a_shell(bench, "one after the other", line)?;
    let expected: Vec<String> = expected.split(' ').map(|word| format!("x {word}")).collect();
    ensure!(out == expected, "the file has {out:?}; it said {}", finished.errors);
    Ok(())
}

/// The second run waits while the first is recovered.
fn together(how: &str) -> String {
    let until = "until grep -q 'b 3' out; do sleep 0.01; done";
    format!(
        "exec > out 2> /dev/null; $P a {how}; CKPT_DIRECTORY=other; P=\"${{P/store/other}}\"; $P b wait{how} & {until}; ${{P/other/store}} =recover 2> said; echo \"s $?\"; touch go; wait"
    )
}

fn side_by_side(bench: &Bench<'_>) -> Result<()> {
    let (finished, out) = in_a_shell(bench, "side by side", &together(""))?;
    // The first life's lines are not taken back, as that would take the other's.
    let all = ["a 0", "a 1", "a 2", "a 3", "b 0", "b 1", "b 2", "b 3", "a 2", "a 3", "a end", "s 0"];
    ensure!(out == all, "the log has {out:?}; it said {}", finished.errors);
    said(bench, "side by side", &["out is open elsewhere too", "twice"])
}

fn share_data(bench: &Bench<'_>) -> Result<()> {
    let (_, out) = in_a_shell(bench, "share data", &together("data"))?;
    ensure!(out.last().is_some_and(|line| line == "s 125"), "the log has {out:?}");
    said(bench, "share data", &["of this program too", "data: both would spoil it"])
}

fn taken_back(bench: &Bench<'_>) -> Result<()> {
    let (finished, out) = in_a_shell(bench, "taken back", "($P x; echo x more; $P =recover 2> said) > out")?;
    ensure!(out == ["x 0", "x 1", "x 2", "x 3", "x end"], "the log has {out:?}; it said {}", finished.errors);
    said(bench, "taken back", &["out is as it was", "15 bytes"])
}

/// It is the program's own wish all the same, with an image and without.
fn name_of_a_program(bench: &Bench<'_>) -> Result<()> {
    let line = "exec > out; $P sort; $P sort =recover; ${P/store/none} sort =recover; echo \"s $?\"";
    let (finished, out) = in_a_shell(bench, "name of a program", line)?;
    let expected = ["sort 0", "sort 1", "sort 2", "sort 3", "sort end", "s 125"];
    ensure!(out == expected, "the log has {out:?}; it said {}", finished.errors);
    finished.expect_words("=recover", &["nothing to recover"])
}

/// Whoever waits for a recovery that fails midway finds the files of the program as they were before.
fn halfway(bench: &Bench<'_>) -> Result<()> {
    let deny = bench.workshop.compile("library/deny", &[])?;
    let deny = deny.display();
    let line = format!(
        "D={deny}; $D nothing $P; cp data before
         for i in 1 2 3; do $D timers $P =recover; echo s $?; cmp data before && echo same; done > out 2> said
         $D nothing $P =recover; echo end $? >> out"
    );
    let (finished, folder) = shell(bench, "library/halfway", "halfway", &line)?;
    let out = fs::read_to_string(folder.join("out")).context("out")?;
    let expected = "s 125\nsame\n".repeat(3) + "end 0\n";
    ensure!(out == expected, "out has {out:?}; it said {}", finished.errors);
    let said = fs::read_to_string(folder.join("said")).context("said")?;
    ensure!(said.matches("timer_create").count() == 3, "it said {said}");
    Ok(())
}

fn shorter(bench: &Bench<'_>) -> Result<()> {
    let line = "$P x > out; (sleep 100 & $P =recover; echo \"s $?\"; kill $!) > out";
    let (finished, out) = in_a_shell(bench, "shorter log", line)?;
    ensure!(out == ["s 125"], "the log has {out:?}; it said {}", finished.errors);
    finished.expect_words("=recover", &["sleep"])
}
