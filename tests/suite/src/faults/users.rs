//! An ordinary user: saves without any right, is told what waking takes, and wakes with a binary that was given just that.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::XattrFlags;

use crate::process::{self, PATIENCE, Running};
use crate::report::{Report, Skip};
use crate::subject::Subject;
use crate::workshop::Workshop;

/// `struct vfs_cap_data`, revision 2: effective from the start; permitted, the lower and the upper half: CAP_CHECKPOINT_RESTORE, 40.
const CHOOSES_IDS: [u32; 5] = [0x0200_0001, 0, 0, 1 << (40 - 32), 0];
const SOON: Duration = Duration::from_secs(5);

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test("an ordinary user saves, and wakes if the binary may choose ids", || ordinary_user(workshop));
}

/// A copy of the binary, the user's, that may choose process ids.
fn capable_binary(user: &Workshop) -> Result<PathBuf> {
    let account = user.account().context("the workshop is a user's")?;
    let capable = account.home().join("capable");
    fs::copy(user.rewake(), &capable).context("copying the binary")?;
    let capability: Vec<u8> = CHOOSES_IDS.iter().flat_map(|word| word.to_le_bytes()).collect();
    rustix::fs::setxattr(&capable, "security.capability", &capability, XattrFlags::empty())
        .map_err(|errno| Skip(format!("file capabilities cannot be set here: {errno}")))?;
    Ok(capable)
}

fn resume_with(user: &Workshop, binary: &std::path::Path, subject: &Subject) -> Command {
    let mut command = user.program(binary);
    command.args(["resume", "-d"]).arg(subject.image()).current_dir(&subject.folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn ordinary_user(workshop: &Workshop) -> Result<()> {
    let user = workshop.as_user()?;
    let owner = user.account().context("the workshop is a user's")?.id();
    let capable = capable_binary(&user)?;
    let program = user.compile("threads", &[])?;
    let mut subject = Subject::start_in(&user, &program, &["3"], user.folder("capable-resume")?)?;
    let pid = subject.pid();
    ensure!(fs::metadata(format!("/proc/{pid}"))?.uid() == owner, "the program is not the user's");
    subject.save_and_kill(&user)?;
    ensure!(fs::metadata(subject.image())?.uid() == owner, "the image is not the user's");

    let mut command = subject.resume_command(&user);
    command.args(["--pids", "same"]);
    let refused = process::run(command, &subject.folder, "resume")?;
    refused.expect_code("resume without the right", 125)?;
    refused
        .expect_words("resume without the right", &["choosing it is not permitted", "remedy", "setcap"])?;

    let command = resume_with(&user, &capable, &subject);
    let resumed = Running::start(command, &subject.folder, "resume")?;
    let has_none = process::await_some(SOON, || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let none = |set: &str| status.contains(&format!("{set}:\t0000000000000000\n"));
        (status.contains("TracerPid:\t0\n") && none("CapPrm") && none("CapEff")).then_some(())
    });
    subject.go()?;
    let finished = resumed.finish(PATIENCE).context("resume")?;
    subject.expect_pass(finished.status, &finished.errors)?;
    ensure!(has_none.is_some(), "the program was given capabilities of the binary");
    process::nothing_left(&[], SOON)
}
