//! Huge pages that the host does not have when the program is to wake, and files of them that go back with the memory.

use std::time::Duration;

use anyhow::Result;

use crate::huge::{HugePages, NonePages};
use crate::process;
use crate::report::{Report, Skip};
use crate::subject::Subject;
use crate::workshop::Workshop;

const SOON: Duration = Duration::from_secs(5);

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test("too few huge pages: resume is refused by name", || too_few(workshop));
    report.test("resume -o: a file of hugetlbfs goes back", || goes_back(workshop));
}

fn too_few(workshop: &Workshop) -> Result<()> {
    let folder = workshop.folder("huge-none")?;
    let pages = HugePages::set_aside(&folder);
    let mut subject = Subject::start(&workshop.compile("mem_huge", &[])?, &["memfd-open"], folder)?;
    subject.save_and_kill(workshop)?;
    let Some(none) = NonePages::until_dropped() else {
        return Err(Skip("the number of huge pages cannot be changed".to_owned()).into());
    };
    let resumed = subject.resume(workshop)?;
    resumed.expect_code("resume", 125)?;
    resumed.expect_words("resume", &["huge pages of 2048 kib"])?;
    resumed.expect_words("resume", &["nr_hugepages"])?;
    process::nothing_left(&[], SOON)?;
    drop(none);
    subject.resume_and_pass(workshop, &[])?;
    drop(pages);
    Ok(())
}

/// It changes its file after the checkpoint, and finds the old content when it wakes.
fn goes_back(workshop: &Workshop) -> Result<()> {
    let folder = workshop.folder("huge-back")?;
    let _pages = HugePages::set_aside(&folder);
    let mut subject = Subject::start(&workshop.compile("mem_huge", &[])?, &["file"], folder)?;
    let mut save = workshop.command(["save", "-p", &subject.pid().to_string(), "--files", "1", "-d"]);
    save.arg(subject.image());
    process::run(save, &subject.folder, "save")?.expect_code("save", 0)?;
    subject.pass()?;
    subject.rewind()?;
    subject.resume_and_pass(workshop, &["-o"])?;
    process::nothing_left(&[], SOON)
}
