//! The table `docs/capabilities.md`, made of nothing but what ran.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};

use crate::catalogue::Row;
use crate::library;
use crate::privileges::{self, Shows};
use crate::report::Outcome;
use crate::required;
use crate::workshop::root;

const HEAD: &str = "# Capabilities

This table is written by the test run (`cargo xtask test --group capabilities`) from the programs that ran and
passed; nothing in it is typed by hand. Each program in `tests/programs` sets up its state and says READY; it is
checkpointed and killed, resumed, checks itself and must say PASS. Each is also left running after a checkpoint,
must pass then, and (unless it changed its own files meanwhile) pass once more when its image is resumed.

L is the library: the program has libckpt preloaded, an ordinary user sends it the signal twice and kills it, and it becomes its image
again (`=recover`), without any right. T is the transparent way in: `chkpnt -p PID` on an unmodified program, by root and by an ordinary user without any
right, who gets new ids where he may not choose them. What takes a right is refused by name to him, or his program
cannot set it up (skipped). What is not in the table is not supported yet; it is refused by name before anything is
frozen.
";

/// The table as it grows.
#[derive(Debug, Default)]
pub struct Table {
    text: String,
    section: &'static str,
}

impl Table {
    /// Adds a capability with the outcomes of all its programs, run by root, by an ordinary user, and with the library inside.
    pub fn add(&mut self, section: &'static str, row: &Row, [root, user, inside]: [&[Outcome]; 3]) {
        if self.section != section {
            self.section = section;
            // Writing to a String cannot fail.
            let _ = write!(
                self.text,
                "\n## {section}\n\n| capability | T (root) | T (user) | L | programs |\n|---|---|---|---|---|\n"
            );
        }
        let refused = row.probes.iter().find_map(|probe| privileges::needed(probe.call));
        let user = match (verdict(user), refused) {
            (word, Some(privilege)) if word == "passed" => {
                let part = if row.probes.len() > 1 { "in part " } else { "" };
                match privilege.shows {
                    Shows::Refusal => format!("{part}refused ({})", privilege.words),
                    Shows::Limit => format!("{part}limited ({})", privilege.words),
                }
            }
            (word, _) => word,
        };
        let programs: Vec<String> = row
            .probes
            .iter()
            .map(|probe| format!("`{}`", [&[probe.call], probe.options].concat().join(" ")))
            .collect();
        let programs = programs.join(", ");
        let inside = inside_word(row, inside);
        let by_root = verdict(root);
        let _ = writeln!(self.text, "| {} | {by_root} | {user} | {inside} | {programs} |", row.capability);
    }

    /// Writes the file, if what it says has changed.
    ///
    /// # Errors
    /// Fails when it cannot be written.
    pub fn write(&self) -> Result<()> {
        let path = root().join("docs/capabilities.md");
        let text = format!("{HEAD}{}{}", self.text, unproven());
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        println!("docs/capabilities.md was brought up to date");
        Ok(())
    }
}

/// What is held to be required and nothing above proves.
fn unproven() -> String {
    let missing = required::unproven();
    if missing.is_empty() {
        return String::new();
    }
    let items = missing.iter().map(|(section, what)| format!("- {section}: {what}\n"));
    format!("\n## Required, and not proven by any program yet\n\n{}", items.collect::<String>())
}

/// What the library does about a row: its programs' outcome, or why they were not run with it.
fn inside_word(row: &Row, outcomes: &[Outcome]) -> String {
    let apart = row.probes.iter().find_map(|probe| library::apart(probe.call));
    match (outcomes, apart) {
        ([], Some(why)) => why.to_owned(),
        ([], None) => "-".to_owned(),
        (some, Some(_)) if verdict(some) == "passed" => "passed in part".to_owned(),
        (some, _) => verdict(some),
    }
}

/// One word for a row: it passed only if everything passed.
fn verdict(outcomes: &[Outcome]) -> String {
    if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Failed(_))) {
        return "FAILED".to_owned();
    }
    let skipped = outcomes.iter().find_map(|outcome| match outcome {
        Outcome::Skipped(reason) => Some(reason),
        Outcome::Passed | Outcome::Failed(_) => None,
    });
    match skipped {
        Some(reason) => format!("SKIPPED ({reason})"),
        None if outcomes.is_empty() => "not run".to_owned(),
        None => "passed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_passes_only_if_all_passed() {
        let skipped = Outcome::Skipped("no processor".to_owned());
        assert_eq!(verdict(&[Outcome::Passed, Outcome::Passed]), "passed");
        assert_eq!(verdict(&[Outcome::Passed, skipped.clone()]), "SKIPPED (no processor)");
        assert_eq!(verdict(&[skipped, Outcome::Failed("why".to_owned())]), "FAILED");
        assert_eq!(verdict(&[]), "not run");
    }
}
