//! The test runner: starts self-checking programs, has them checkpointed and resumed by the `rewake` binary, and
//! reports what passed. It knows the tool from outside only, through its command line and through `/proc`; [`edit`] alone writes
//! images, to have them refused.
//!
//! Four groups: [`Group::Capabilities`] (one small program per capability; writes `docs/capabilities.md`),
//! [`Group::Faults`] (signals at random instants, full disks, broken images), [`Group::Inside`] (the same for programs that checkpoint
//! themselves) and [`Group::Real`] (programs that nobody here wrote).

pub mod account;
pub mod capabilities;
pub mod catalogue;
pub mod edit;
pub mod faults;
mod huge;
mod inside;
pub mod library;
pub mod privileges;
pub mod process;
pub mod random;
pub mod random_trees;
pub mod real;
pub mod report;
pub mod required;
pub mod subject;
pub mod table;
pub mod workshop;

use anyhow::Result;

use report::Report;
pub use report::Totals;
use workshop::Workshop;

/// A part of the tests that can be run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// One self-checking program per capability.
    Capabilities,
    /// Everything that may go wrong does.
    Faults,
    /// The library: storms, sandboxes, bad input.
    Inside,
    /// Programs of other people, interrupted half way.
    Real,
}

impl Group {
    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Group::Capabilities => "capabilities",
            Group::Faults => "faults",
            Group::Inside => "inside",
            Group::Real => "real",
        }
    }

    /// Minutes this group may take.
    #[must_use]
    pub fn budget_minutes(self) -> u64 {
        match self {
            Group::Capabilities | Group::Faults => 15,
            Group::Inside | Group::Real => 10,
        }
    }
}

/// Runs a group; `only` keeps the tests whose name contains it.
///
/// # Errors
/// Only what keeps the group from running at all (no compiler, no binary); a failed test is counted, not returned.
pub fn run(group: Group, only: Option<&str>) -> Result<Totals> {
    let workshop = Workshop::open(group.name())?;
    process::become_subreaper()?;
    let mut report = Report::new(group.name(), group.budget_minutes(), only);
    match group {
        Group::Capabilities => capabilities::run(&workshop, &mut report)?,
        Group::Faults => faults::run(&workshop, &mut report),
        Group::Inside => inside::run(&workshop, &mut report)?,
        Group::Real => real::run(&workshop, &mut report),
    }
    Ok(report.close())
}
