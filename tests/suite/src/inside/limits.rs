//! Programs in control groups that allow them little memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::Bench;
use crate::process::{self, PATIENCE};
use crate::report::{Report, Skip};
use crate::subject::{Inside, Subject};

/// Where groups are made, and the file that sets a limit: of version 2, and of version 1.
const KINDS: [(&str, &str); 2] =
    [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")];
/// The program's memory in megabytes, and the limits of groups that leave room for it once, and twice.
const SIZE: &str = "60";
const ONCE: u64 = 90 << 20;
const TWICE: u64 = 400 << 20;

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    report.test("mode fork where memory may not be there twice", || forks(bench, ONCE, true));
    report.test("mode fork where memory may be there twice", || forks(bench, TWICE, false));
}

/// A group that goes when it is dropped.
struct Group(PathBuf);

impl Group {
    fn new(limit: u64) -> Result<Self> {
        let name = format!("rewake-test-{}-{limit}", std::process::id());
        let roots = KINDS.iter().filter(|(root, _)| Path::new(root).join("cgroup.procs").exists());
        for (root, file) in roots {
            let group = Self(Path::new(root).join(&name));
            if fs::create_dir(&group.0).is_ok() && fs::write(group.0.join(file), limit.to_string()).is_ok() {
                return Ok(group);
            }
        }
        Err(Skip("no control group with a limit of memory can be made here".to_owned()).into())
    }

    /// The words before a command that runs it in here.
    fn words(&self) -> Result<Vec<String>> {
        let tasks = self.0.join("cgroup.procs");
        let open = Command::new("chmod").arg("a+w").arg(&tasks).status().context("chmod")?;
        ensure!(open.success(), "the group cannot be opened for a user");
        let script = format!("echo $$ >{} && exec \"$@\"", tasks.display());
        Ok(["sh", "-c", &script, "sh", "env", "CKPT_MODE=fork", "CKPT_VERBOSE=on"]
            .map(str::to_owned)
            .to_vec())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Who was in it is gone, or the test has failed.
        let _left = fs::remove_dir(&self.0);
    }
}

/// All that the program writes while its image is written takes memory twice: it must not be ended for that.
fn forks(bench: &Bench<'_>, limit: u64, stands: bool) -> Result<()> {
    let group = Group::new(limit)?;
    let program = bench.workshop.compile("rewrites", &[])?;
    let folder = bench.workshop.folder(&format!("limit {limit}"))?;
    let inside = Inside::new(&bench.library, &program, &folder).within(group.words()?);
    let mut subject = Subject::start_inside(&inside, bench.workshop, &[SIZE], folder)?;
    for number in 1..=3 {
        inside.ask(subject.pid())?;
        let image = inside.store().join(number.to_string()).join("records");
        let made = process::await_some(PATIENCE, || image.exists().then_some(()));
        made.with_context(|| format!("checkpoint {number}: {}", subject.said().trim()))?;
    }
    let said = fs::read_to_string(subject.folder.join("program.err")).context("what it says")?;
    let stood = said.contains("mode stop instead of fork");
    ensure!(stood == stands, "it {}: {said}", if stands { "did not stand still" } else { "stood still" });
    process::signal(subject.pid(), Signal::KILL);
    subject.wait_for_end()?;
    fs::write(subject.folder.join("program.out"), "")?;
    inside.recover_and_pass(&subject, bench.workshop)
}
