//! `cargo xtask test`: formatting, lints, unit tests and the groups of the suite, with one closing line.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use rewake_suite::{Group as Suite, Totals};

use crate::{Group, packages};

/// Seconds the unit group may take.
const UNIT_BUDGET: u64 = 15 * 60;

/// Runs everything or one group; `Ok(false)` when something failed.
///
/// # Errors
/// Fails when a group cannot run at all.
pub fn run(group: Option<Group>, only: Option<&str>) -> Result<bool> {
    packages::ensure();
    let wanted = |one: Group| group.is_none_or(|group| group == one);
    let mut totals = Totals::default();
    if wanted(Group::Unit) {
        totals += unit()?;
    }
    for (one, suite) in [
        (Group::Capabilities, Suite::Capabilities),
        (Group::Faults, Suite::Faults),
        (Group::Inside, Suite::Inside),
        (Group::Real, Suite::Real),
    ] {
        if wanted(one) {
            totals += rewake_suite::run(suite, only)?;
        }
    }
    println!("{totals}");
    Ok(totals.failed == 0)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(rewake_suite::workshop::root()).stdin(Stdio::null());
    command
}

fn unit() -> Result<Totals> {
    println!("== unit");
    let begun = Instant::now();
    let mut totals = Totals::default();
    for (name, arguments) in [
        ("formatting", &["fmt", "--all", "--check"] as &[&str]),
        ("lints", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ] {
        let good = cargo(arguments).status().with_context(|| format!("cargo {}", arguments[0]))?.success();
        println!("{}   {name}", if good { "PASSED" } else { "FAILED" });
        totals += Totals { passed: usize::from(good), failed: usize::from(!good), skipped: 0 };
    }
    totals += cargo_test()?;
    let seconds = begun.elapsed().as_secs();
    let verdict = if seconds <= UNIT_BUDGET { "within" } else { "OVER" };
    println!("== unit: {totals} in {seconds} s, {verdict} its budget of {UNIT_BUDGET} s");
    Ok(totals)
}

/// `cargo test` of the workspace, shown as it comes and counted.
fn cargo_test() -> Result<Totals> {
    // Where waiting journals are known: a command that runs beside the tests would carry theirs out.
    let state = rewake_suite::workshop::target().join("suite/state");
    // Made by a command it would be for its user alone, and all folders above it that are not there yet.
    std::fs::create_dir_all(&state).with_context(|| format!("making {}", state.display()))?;
    let mut child = cargo(&["test", "--workspace", "--no-fail-fast"])
        .env("XDG_STATE_HOME", state)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo test")?;
    let output = child.stdout.take().context("output of cargo test")?;
    let mut totals = Totals::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("reading the output of cargo test")?;
        println!("{line}");
        totals += counted(&line);
    }
    let good = child.wait().context("waiting for cargo test")?.success();
    if !good && totals.failed == 0 {
        totals.failed = 1;
        println!("FAILED   cargo test (it did not get as far as its tests)");
    }
    Ok(totals)
}

/// The numbers in a line such as `test result: ok. 12 passed; 0 failed; 1 ignored; ...`.
fn counted(line: &str) -> Totals {
    let mut totals = Totals::default();
    let Some(rest) = line.strip_prefix("test result: ") else { return totals };
    let words: Vec<&str> = rest.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
    for pair in words.windows(2) {
        let Ok(count) = pair[0].parse::<usize>() else { continue };
        match pair[1] {
            "passed" => totals.passed = count,
            "failed" => totals.failed = count,
            "ignored" => totals.skipped = count,
            _ => {}
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_cargo_test_says() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.02s";
        assert_eq!(counted(line), Totals { passed: 12, failed: 3, skipped: 1 });
        assert_eq!(counted("test something ... ok"), Totals::default());
    }
}
