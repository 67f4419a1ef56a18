//! Outcomes of tests, printed line by line as they come, and their totals.

use std::fmt;
use std::time::{Duration, Instant};

use crate::workshop::tidy;

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was as it should be.
    Passed,
    /// Something was not; the text says what.
    Failed(String),
    /// The test cannot run here; the text says why.
    Skipped(String),
}

/// The error of a test that cannot run on this machine: turned into [`Outcome::Skipped`].
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

impl From<anyhow::Result<()>> for Outcome {
    fn from(result: anyhow::Result<()>) -> Self {
        match result {
            Ok(()) => Outcome::Passed,
            Err(error) => match error.downcast_ref::<Skip>() {
                Some(skip) => Outcome::Skipped(skip.0.clone()),
                None => Outcome::Failed(format!("{error:#}")),
            },
        }
    }
}

/// How many tests passed, failed and were skipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests that cannot run here.
    pub skipped: usize,
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Collects and prints the outcomes of one group.
#[derive(Debug)]
pub struct Report {
    group: &'static str,
    budget: Duration,
    only: Option<String>,
    started: Instant,
    totals: Totals,
}

impl Report {
    /// Begins a group.
    #[must_use]
    pub fn new(group: &'static str, budget_minutes: u64, only: Option<&str>) -> Self {
        println!("== {group}");
        Report {
            group,
            budget: Duration::from_secs(budget_minutes * 60),
            only: only.map(str::to_owned),
            started: Instant::now(),
            totals: Totals::default(),
        }
    }

    /// Is this the whole group, not a choice of tests?
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.only.is_none()
    }

    /// Runs a test unless another one was asked for, prints its line and returns its outcome.
    pub fn test(&mut self, name: &str, body: impl FnOnce() -> anyhow::Result<()>) -> Option<Outcome> {
        self.measured(name, || body().map(|()| String::new()))
    }

    /// The same for a test that measures something: that stands in its line.
    pub fn measured(&mut self, name: &str, body: impl FnOnce() -> anyhow::Result<String>) -> Option<Outcome> {
        if self.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            return None;
        }
        let begun = Instant::now();
        let mut measured = String::new();
        let outcome = Outcome::from(body().map(|text| measured = text));
        let seconds = begun.elapsed().as_secs_f64();
        tidy(outcome == Outcome::Passed);
        match &outcome {
            Outcome::Passed => {
                self.totals.passed += 1;
                let line = format!("PASSED   {name:<58} {seconds:7.2} s  {measured}");
                println!("{}", line.trim_end());
            }
            Outcome::Failed(reason) => {
                self.totals.failed += 1;
                println!(
                    "FAILED   {name:<58} {seconds:7.2} s\n         {}",
                    reason.replace('\n', "\n         ")
                );
            }
            Outcome::Skipped(reason) => {
                self.totals.skipped += 1;
                println!("SKIPPED  {name:<58} {seconds:7.2} s  {reason}");
            }
        }
        Some(outcome)
    }

    /// Ends the group: prints its time against its budget.
    #[must_use]
    pub fn close(self) -> Totals {
        let took = self.started.elapsed();
        let verdict = if took <= self.budget { "within" } else { "OVER" };
        println!(
            "== {}: {} in {:.0} s, {verdict} its budget of {} s",
            self.group,
            self.totals,
            took.as_secs_f64(),
            self.budget.as_secs()
        );
        self.totals
    }
}
