//! Fifos in which others sit, at the checkpoint or at the resume, and fifos that are no more what they were.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::refusals::{fails, start};
use crate::process;
use crate::report::Report;
use crate::subject::Subject;
use crate::workshop::Workshop;

const SOON: Duration = Duration::from_secs(5);

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test("fifo that another process reads is refused by name", || {
        let subject = start(workshop, "fifo-read", "fifo", &["plain"])?;
        let image = subject.image();
        let _reader = open(&subject.folder.join("fifo"))?;
        fails(workshop, subject, &image, &["another process has this fifo open"])?;
        ensure!(!image.exists(), "an image is left");
        Ok(())
    });
    report.test("resume while another process has the fifo, or something else its name", || {
        at_resume(workshop)
    });
}

/// An end that reads.
fn open(path: &Path) -> Result<File> {
    let nonblock = i32::try_from(OFlags::NONBLOCK.bits())?;
    File::options().read(true).custom_flags(nonblock).open(path).context("opening the fifo")
}

fn at_resume(workshop: &Workshop) -> Result<()> {
    let mut subject = start(workshop, "fifo-at-resume", "fifo", &["plain"])?;
    subject.save_and_kill(workshop)?;
    let (path, aside) = (subject.folder.join("fifo"), subject.folder.join("aside"));
    let reader = open(&path)?;
    refuses(workshop, &subject, &["end it first"])?;
    drop(reader);
    fs::rename(&path, &aside)?;
    refuses(workshop, &subject, &["cannot be used"])?;
    fs::write(&path, "precious")?;
    refuses(workshop, &subject, &["no fifo any more"])?;
    ensure!(fs::read(&path)? == b"precious", "what had the name of the fifo was changed");
    fs::remove_file(&path)?;
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    refuses(workshop, &subject, &["replaced by another one"])?;
    fs::rename(&aside, &path)?;
    subject.resume_and_pass(workshop, &[])
}

fn refuses(workshop: &Workshop, subject: &Subject, words: &[&str]) -> Result<()> {
    let ended = subject.resume(workshop)?;
    ended.expect_code("resume", 125)?;
    ended.expect_words("resume", words)?;
    process::nothing_left(&[], SOON)
}
