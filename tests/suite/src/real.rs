//! Programs that nobody here wrote, interrupted half way: what they make is, byte for byte, what an uninterrupted
//! run makes.

mod job;
mod programs;
mod redis;
mod sharing;
mod trees;
mod ways;

use std::cell::OnceCell;

use anyhow::{Result, anyhow};

use crate::report::{Report, Skip};
use crate::workshop::Workshop;
use job::Expected;
pub use programs::installed;
use programs::{PROGRAMS, Real};
use ways::Way;

/// Runs the group.
pub fn run(workshop: &Workshop, report: &mut Report) {
    let user = OnceCell::new();
    let as_user = || match user.get_or_init(|| workshop.as_user()) {
        Ok(workshop) => Ok(workshop),
        Err(error) => Err(anyhow!("no workshop for an ordinary user: {error:#}")),
    };
    // Without frame numbers every page that may be shared is read in each process.
    for (processes, of, user) in [(200, "", false), (40, ", as a user", true)] {
        let name = format!("{processes} processes born of one with 200 MB share it again{of}");
        report.measured(&name, || sharing::run(if user { as_user()? } else { workshop }, processes, &name));
    }
    for program in PROGRAMS {
        let expected = OnceCell::new();
        for way in Way::ALL.into_iter().filter(|way| way.suits(program)) {
            let name = format!("{} ({})", program.name, way.name());
            report.measured(&name, || {
                let alone = if program.never_root { as_user()? } else { workshop };
                let expected = uninterrupted(&expected, alone, program)?;
                let workshop = if way.is_for_a_user(program) { as_user()? } else { workshop };
                way.run(workshop, program, expected, &name)
            });
        }
    }
}

/// What the program makes when nobody interrupts it; found out once.
fn uninterrupted<'a>(
    known: &'a OnceCell<Result<Expected>>,
    workshop: &Workshop,
    program: &Real,
) -> Result<&'a Expected> {
    known.get_or_init(|| Expected::find(workshop, program)).as_ref().map_err(|error| {
        match error.downcast_ref::<Skip>() {
            Some(skip) => Skip(skip.0.clone()).into(),
            None => anyhow!("uninterrupted: {error:#}"),
        }
    })
}
