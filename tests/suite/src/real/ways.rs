//! The ways a program is interrupted.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::job::{Expected, Job, Measured, TooLate};
use super::programs::Real;
use crate::process;
use crate::random::Random;
use crate::workshop::Workshop;

/// Time for guardians and the like to leave.
const LEAVING: Duration = Duration::from_secs(5);
/// Checkpoints one behind the other.
const MANY: u64 = 10;
/// The last of them no later than this: the program works on while it is looked at, and is to be interrupted.
const LAST: u64 = 750;
/// How often a program is started that ended before it was interrupted, as it may where others take the processors and the disk.
const ATTEMPTS: u32 = 3;
/// Checkpoints at random instants.
const SHOTS: u64 = 5;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Killed by the checkpoint, resumed.
    Killed { user: bool },
    /// Goes on after the checkpoint, dies, and is resumed with its files as they were.
    Crashed { user: bool },
    /// Ten checkpoints, each of what the one before left, resumed.
    Many,
    /// Five checkpoints at random instants, and it goes on as if there were none.
    Unharmed,
}

impl Way {
    /// All of them.
    pub(super) const ALL: [Way; 6] = [
        Way::Killed { user: false },
        Way::Crashed { user: false },
        Way::Killed { user: true },
        Way::Crashed { user: true },
        Way::Many,
        Way::Unharmed,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Killed { user: false } => "killed, resumed",
            Way::Crashed { user: false } => "left running, crashed, put back",
            Way::Killed { user: true } => "killed, resumed, as a user",
            Way::Crashed { user: true } => "left running, crashed, put back, as a user",
            Way::Many => "ten checkpoints in a row",
            Way::Unharmed => "five checkpoints, unharmed",
        }
    }

    /// Whether it is an ordinary user that runs the program.
    pub(super) fn is_for_a_user(self, real: &Real) -> bool {
        real.never_root || matches!(self, Way::Killed { user: true } | Way::Crashed { user: true })
    }

    /// The long ones are for some programs only.
    pub(super) fn suits(self, real: &Real) -> bool {
        match self {
            Way::Many | Way::Unharmed => real.thorough,
            Way::Killed { user } | Way::Crashed { user } => user || !real.never_root,
        }
    }

    /// Interrupts a program in this way; what it measured, for the line of the test.
    pub(super) fn run(
        self,
        workshop: &Workshop,
        real: &Real,
        expected: &Expected,
        name: &str,
    ) -> Result<String> {
        let mut attempt = 1;
        loop {
            match self.attempt(workshop, real, expected, &format!("{name} {attempt}")) {
                Err(error) if error.is::<TooLate>() && attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    fn attempt(self, workshop: &Workshop, real: &Real, expected: &Expected, name: &str) -> Result<String> {
        let mut job = Job::start(workshop, real, expected, name)?;
        let result = match self {
            Way::Killed { .. } => killed(&mut job),
            Way::Crashed { .. } => crashed(&mut job),
            Way::Many => many(&mut job),
            Way::Unharmed => unharmed(&mut job),
        };
        drop(job);
        let left = process::nothing_left(&[], LEAVING);
        let measured = result?;
        left?;
        Ok(summary(&measured))
    }
}

fn summary(measured: &[Measured]) -> String {
    let pauses: Vec<f64> = measured.iter().map(|one| one.paused_ms).collect();
    let shortest = pauses.iter().copied().fold(f64::INFINITY, f64::min);
    let longest = pauses.iter().copied().fold(0.0, f64::max);
    let size = measured.iter().map(|one| one.image_mb).fold(0.0, f64::max);
    if pauses.len() == 1 {
        format!("paused {longest:.0} ms, image {size:.1} MB")
    } else {
        format!("paused {shortest:.0} to {longest:.0} ms, images up to {size:.1} MB")
    }
}

fn killed(job: &mut Job) -> Result<Vec<Measured>> {
    let image = job.image("image");
    job.reach(400)?;
    let measured = job.save_and_kill(&image)?;
    job.resume(&image, &[])?;
    job.finish("resumed")?;
    Ok(vec![measured])
}

fn crashed(job: &mut Job) -> Result<Vec<Measured>> {
    let image = job.image("image");
    job.reach(300)?;
    let measured = job.save(&image)?;
    let further = job.progress() + 150;
    job.reach(further.min(950)).context("left running")?;
    job.kill()?;
    job.spoil()?;
    job.resume(&image, &["-o"])?;
    job.finish("put back")?;
    Ok(vec![measured])
}

fn many(job: &mut Job) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    for number in 1..=MANY {
        let image = job.image(&format!("image-{number}"));
        job.reach(number * LAST / MANY).with_context(|| format!("checkpoint {number}"))?;
        measured.push(job.save_and_kill(&image).with_context(|| format!("checkpoint {number}"))?);
        job.resume(&image, &[])?;
        job.await_release().with_context(|| format!("checkpoint {number}"))?;
    }
    job.finish("after ten checkpoints")?;
    Ok(measured)
}

fn unharmed(job: &mut Job) -> Result<Vec<Measured>> {
    let mut random = Random::new(5);
    let mut measured = Vec::new();
    for number in 0..SHOTS {
        let image = job.image("image");
        job.reach(number * 1000 / (SHOTS + 1) + random.below(150))?;
        std::thread::sleep(Duration::from_micros(random.below(20_000)));
        measured.push(job.save(&image).with_context(|| format!("checkpoint {}", number + 1))?);
        remove(&image)?;
    }
    job.finish("after five checkpoints")?;
    Ok(measured)
}

fn remove(image: &Path) -> Result<()> {
    fs::remove_dir_all(image).with_context(|| format!("removing {}", image.display()))
}
