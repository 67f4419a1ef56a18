//! `cargo xtask fuzz`: builds the targets of `fuzz/` with coverage and the address sanitizer, and runs them one after the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rewake_suite::workshop;

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What cargo-fuzz gives the compiler, too.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    -Zsanitizer=address -Ccodegen-units=1";
/// An input that takes longer (seconds), or more memory (megabytes, in one piece and in all), is a finding.
const LIMITS: [&str; 3] = ["-timeout=20", "-malloc_limit_mb=512", "-rss_limit_mb=3072"];

/// A target and the folder of `fuzz/seeds` it begins with.
const TARGETS: &[(&str, &str)] = &[
    ("container", "records"),
    ("image", "records"),
    ("plan", "records"),
    ("directory", "records"),
    ("pages", "pages"),
    ("proc", "proc"),
    ("journal", "journal"),
];

/// Runs these targets, or all, for that many minutes each; `Ok(false)` when one has a finding.
///
/// # Errors
/// Fails when they cannot be built or a target does not exist.
pub fn run(minutes: u64, wanted: &[String]) -> Result<bool> {
    for name in wanted {
        ensure!(TARGETS.iter().any(|(target, _)| target == name), "no target {name}: {}", names().join(", "));
    }
    let folder = build()?;
    let mut good = true;
    for (target, seeds) in TARGETS {
        if wanted.is_empty() || wanted.iter().any(|name| name == target) {
            good &= fuzz(&folder, target, seeds, minutes)?;
        }
    }
    Ok(good)
}

fn names() -> Vec<&'static str> {
    TARGETS.iter().map(|(target, _)| *target).collect()
}

/// Builds all targets; the folder they are in. The stable compiler has all it takes, but hides it.
fn build() -> Result<PathBuf> {
    let target = workshop::target().join("fuzz");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--target", TRIPLE, "--bins", "--target-dir"])
        .arg(&target)
        .current_dir(workshop::root().join("fuzz"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", FLAGS)
        .status()
        .context("running cargo build")?;
    ensure!(status.success(), "the fuzz targets could not be built (they need a C++ compiler, Debian: g++)");
    Ok(target)
}

fn fuzz(folder: &Path, target: &str, seeds: &str, minutes: u64) -> Result<bool> {
    let (corpus, findings) = (folder.join("corpus").join(target), folder.join("findings").join(target));
    for folder in [&corpus, &findings] {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    println!("== fuzz {target} for {minutes} minutes");
    let status = Command::new(folder.join(TRIPLE).join("release").join(target))
        .arg(&corpus)
        .arg(workshop::root().join("fuzz/seeds").join(seeds))
        .args(LIMITS)
        .args(["-max_len=65536", "-print_final_stats=1"])
        .arg(format!("-max_total_time={}", minutes * 60))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .status()
        .with_context(|| format!("running the target {target}"))?;
    let verdict = if status.success() { "no finding" } else { "FINDING, see the folder findings" };
    println!("== fuzz {target}: {verdict} ({})", findings.display());
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_known_and_has_seeds() {
        let fuzz = workshop::root().join("fuzz");
        let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).expect("manifest of the targets");
        let there = manifest.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/"));
        let mut there: Vec<&str> = there.filter_map(|line| line.strip_suffix(".rs\"")).collect();
        let mut known = names();
        there.sort_unstable();
        known.sort_unstable();
        assert_eq!(there, known);
        for (_, seeds) in TARGETS {
            assert!(fs::read_dir(fuzz.join("seeds").join(seeds)).expect("seeds").count() > 0);
        }
    }
}
