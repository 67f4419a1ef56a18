//! The library: programs that checkpoint themselves can not be broken by it, whatever they do, whoever asks and whenever; and what it
//! cannot do it refuses.

mod containers;
mod endure;
mod images;
mod killed;
mod limits;
mod moments;
mod sandbox;
mod scripts;
mod shells;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::library;
use crate::report::Report;
use crate::subject::{Inside, Subject};
use crate::workshop::Workshop;

/// What the tests of this group need.
struct Bench<'a> {
    workshop: &'a Workshop,
    library: PathBuf,
}

impl Bench<'_> {
    /// A program with the library inside, in a folder of its own, when it says READY.
    fn start(&self, name: &str, program: &Path, arguments: &[&str]) -> Result<(Inside, Subject)> {
        let folder = self.workshop.folder(name)?;
        let inside = Inside::new(&self.library, program, &folder);
        let subject = Subject::start_inside(&inside, self.workshop, arguments, folder)?;
        Ok((inside, subject))
    }
}

/// Images that are kept while many are made.
const KEPT: usize = 2;

/// Removes all images but the last ones.
fn forget_old(store: &Path) -> Result<()> {
    let entries = fs::read_dir(store).context("the store")?.flatten();
    let mut numbers: Vec<u64> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    ensure!(!numbers.is_empty(), "no image is left");
    while numbers.len() > KEPT {
        fs::remove_dir_all(store.join(numbers.remove(0).to_string())).context("removing an image")?;
    }
    Ok(())
}

/// Runs the group.
///
/// # Errors
/// Fails when the library cannot be built.
pub(crate) fn run(workshop: &Workshop, report: &mut Report) -> Result<()> {
    let library = library::build_for_tests()?.join("libckpt.so");
    // As an ordinary user, who has no rights.
    let user = if rustix::process::geteuid().is_root() { Some(workshop.as_user()?) } else { None };
    let workshop = user.as_ref().unwrap_or(workshop);
    let library = workshop.account().map_or_else(|| Ok(library.clone()), |account| account.copy(&library))?;
    let bench = Bench { workshop, library };
    endure::run(&bench, report);
    killed::run(&bench, report);
    moments::run(&bench, report);
    images::run(&bench, report);
    sandbox::run(&bench, report);
    containers::run(&bench, report);
    limits::run(&bench, report);
    scripts::run(&bench, report);
    shells::run(&bench, report);
    words::run(&bench, report);
    Ok(())
}
