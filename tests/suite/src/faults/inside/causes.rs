//! Why there is no checkpoint: what is said is what is so, to `ckpt` and to those who read what the program says.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Inside, Library, kill, numbers};
use crate::process;
use crate::report::Report;
use crate::workshop::Workshop;

const LONG: Duration = Duration::from_secs(20);
const STORE: &str = "directory store\n";

pub(super) fn run(workshop: &Workshop, report: &mut Report, library: Library<'_>) {
    let mut test = |name: &str, test: &dyn Fn() -> Result<()>| {
        report.test(&format!("libckpt: {name}"), test);
    };
    test("store that is a file", &|| a_file(workshop, library, STORE));
    test("store below a file", &|| a_file(workshop, library, "directory store/below\n"));
    test("program that is not dumpable, until it is", &|| undumpable(workshop, library));
    test("program whose first thread has ended", &|| first_ended(workshop, library));
    test("program that may take no more memory", &|| no_memory(workshop, library));
}

fn a_file(workshop: &Workshop, library: Library<'_>, lines: &str) -> Result<()> {
    let inside = Inside::start(workshop, library, "file", "busy", lines)?;
    let store = inside.store();
    fs::write(&store, "")?;
    inside.refused(&store, &["store", "a file is there, and no folder", "directory in .ckptrc"])
}

impl Inside<'_> {
    /// Asks by the signal alone; it says these words.
    fn says(&self, words: &[&str]) -> Result<()> {
        kill(34, self.subject.pid())?;
        let said = || {
            let errors = self.errors();
            words.iter().all(|word| errors.contains(word)).then_some(())
        };
        process::await_some(LONG, said).with_context(|| format!("it says {:?}", self.errors()))
    }
}

/// Of a user: root may look at everything.
fn undumpable(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let user = workshop.as_user()?;
    let inside = Inside::start(&user, library, "undumpable", "library/stands undumpable", STORE)?;
    let own = "may not look at its own memory";
    inside.says(&[own, "\n  call prctl(PR_SET_DUMPABLE, 1)"])?;
    let finished = inside.ckpt(&[])?;
    finished.expect_code("ckpt of its user", 1)?;
    finished
        .expect_words("ckpt of its user", &["memory map", "not dumpable", "prctl(PR_SET_DUMPABLE, 1)"])?;
    let command = workshop.command(["ckpt", &inside.subject.pid().to_string()]);
    let finished = process::run(command, &inside.folder, "root")?;
    finished.expect_code("ckpt of root", 1)?;
    finished.expect_words("ckpt of root", &[own, "setresuid", "prctl(PR_SET_DUMPABLE, 1)"])?;
    ensure!(numbers(&inside.store()).is_empty(), "there is an image");
    fs::write(inside.folder.join("again"), "")?;
    let done = || inside.folder.join("done").exists().then_some(());
    process::await_some(LONG, done).context("it is not dumpable again")?;
    inside.saved()?;
    inside.recovers()
}

fn first_ended(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let inside = Inside::start(workshop, library, "first-ended", "leader_ended", STORE)?;
    let begun = std::time::Instant::now();
    inside.says(&["its first thread has ended while others run", "chkpnt"])?;
    ensure!(begun.elapsed() < Duration::from_secs(5), "it stood still for {:?}", begun.elapsed());
    let store = inside.store();
    inside.refused(&store, &["first thread has ended", "chkpnt -p"])
}

fn no_memory(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let inside = Inside::start(workshop, library, "no-memory", "library/stands memory", STORE)?;
    let store = inside.store();
    inside.refused(&store, &["there is no memory for it"])
}
