//! Runs every program of the catalogue two ways: killed by its checkpoint and resumed; left running to its own end,
//! then resumed from the image as well.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::catalogue::{Probe, SECTIONS};
use crate::process;
use crate::report::Report;
use crate::subject::Subject;
use crate::table::Table;
use crate::workshop::Workshop;

/// Time for guardians and the like to leave.
const LEAVING: Duration = Duration::from_secs(3);

/// Runs the group and, when nothing was left out, writes the table.
///
/// # Errors
/// Fails when the table cannot be written.
pub fn run(workshop: &Workshop, report: &mut Report) -> Result<()> {
    let mut table = Table::default();
    for section in SECTIONS {
        for row in section.rows {
            let mut outcomes = Vec::new();
            for probe in row.probes {
                for killed in [true, false] {
                    let way = if killed { "killed, resumed" } else { "left running" };
                    let name = format!("{} ({way})", [&[probe.call], probe.options].concat().join(" "));
                    outcomes.extend(report.test(&name, || check(workshop, probe, killed, &name)));
                }
            }
            table.add(section.title, row, &outcomes);
        }
    }
    if report.is_whole() { table.write() } else { Ok(()) }
}

fn check(workshop: &Workshop, probe: &Probe, killed: bool, name: &str) -> Result<()> {
    let mut words = probe.call.split_whitespace();
    let program = workshop.compile(words.next().context("empty call")?, probe.options)?;
    let mut subject =
        Subject::start_in(workshop, &program, &words.collect::<Vec<_>>(), workshop.folder(name)?)?;
    std::thread::sleep(Duration::from_millis(probe.settle));
    let result = if killed {
        kill_and_resume(&mut subject, workshop)
    } else {
        leave_running(&mut subject, workshop, probe.again)
    };
    subject.end();
    result.and(process::nothing_left(&[], LEAVING))
}

fn kill_and_resume(subject: &mut Subject, workshop: &Workshop) -> Result<()> {
    subject.save_and_kill(workshop)?;
    subject.resume_and_pass(workshop, &[])
}

fn leave_running(subject: &mut Subject, workshop: &Workshop, again: bool) -> Result<()> {
    subject.save(workshop)?;
    std::thread::sleep(Duration::from_millis(20));
    subject.pass().context("left running")?;
    if !again {
        return Ok(());
    }
    subject.rewind()?;
    subject.resume_and_pass(workshop, &["--on-changed", "as-is"]).context("after the original ended")
}
