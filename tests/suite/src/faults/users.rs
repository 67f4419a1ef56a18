//! An ordinary user: saves without any right, is told what waking takes, and wakes with a binary that was given just that.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::XattrFlags;

use crate::process::{self, PATIENCE, Running};
use crate::report::{Report, Skip};
use crate::subject::{PASSED, READY};
use crate::workshop::Workshop;

/// `nobody`.
const USER: u32 = 65534;
/// `struct vfs_cap_data`, revision 2: effective from the start; permitted, the lower and the upper half: CAP_CHECKPOINT_RESTORE, 40.
const CHOOSES_IDS: [u32; 5] = [0x0200_0001, 0, 0, 1 << (40 - 32), 0];

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test("an ordinary user saves, and wakes if the binary may choose ids", || ordinary_user(workshop));
}

/// A folder of the user's that everybody can reach, gone with the test.
struct Home(PathBuf);

impl Home {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("rewake-user-{}", std::process::id()));
        fs::create_dir(&path).context("making the user's folder")?;
        let home = Self(path);
        fs::set_permissions(&home.0, Permissions::from_mode(0o755))?;
        home.give(&home.0)?;
        Ok(home)
    }

    fn give(&self, path: &Path) -> Result<()> {
        match chown(path, Some(USER), Some(USER)) {
            Err(_) if !rustix::process::geteuid().is_root() => {
                Err(Skip("only root can become another user".to_owned()).into())
            }
            result => result.with_context(|| format!("giving {} to the user", path.display())),
        }
    }

    fn copy(&self, from: &Path, name: &str) -> Result<PathBuf> {
        let to = self.0.join(name);
        fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
        Ok(to)
    }

    fn command(&self, program: &Path) -> Command {
        // The runner passes on a command's words only, so it is one of them that becomes the user.
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups"]).arg(program);
        command.current_dir(&self.0).stdin(Stdio::null());
        command
    }

    fn rewake(&self, binary: &Path, arguments: &[&str]) -> Command {
        let mut command = self.command(binary);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn said(&self) -> String {
        fs::read_to_string(self.0.join("program.out")).unwrap_or_default()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // What stays in the folder for temporary files is cleared with it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn ordinary_user(workshop: &Workshop) -> Result<()> {
    let home = Home::new()?;
    let plain = home.copy(workshop.rewake(), "plain")?;
    let capable = home.copy(workshop.rewake(), "capable")?;
    let capability: Vec<u8> = CHOOSES_IDS.iter().flat_map(|word| word.to_le_bytes()).collect();
    rustix::fs::setxattr(&capable, "security.capability", &capability, XattrFlags::empty())
        .map_err(|errno| Skip(format!("file capabilities cannot be set here: {errno}")))?;
    let program = home.copy(&workshop.compile("threads", &[])?, "threads")?;

    let mut command = home.command(&program);
    command.arg(home.0.join("go")).arg("3");
    let running = Running::start(command, &home.0, "program")?;
    for output in ["program.out", "program.err"] {
        home.give(&home.0.join(output))?;
    }
    process::await_some(PATIENCE, || (home.said() == READY).then_some(())).context("it never said READY")?;
    let pid = running.child.id();
    let save =
        home.rewake(&plain, &["save", "-p", &pid.to_string(), "-d", "image", "--files", "0", "--kill"]);
    process::run(save, &home.0, "save")?.expect_code("save", 0)?;
    ensure!(fs::metadata(home.0.join("image"))?.uid() == USER, "the image is not the user's");
    running.finish(PATIENCE).context("the program outlived --kill")?;

    let refused = process::run(home.rewake(&plain, &["resume", "-d", "image"]), &home.0, "resume")?;
    refused.expect_code("resume without the right", 125)?;
    refused
        .expect_words("resume without the right", &["choosing it is not permitted", "remedy", "setcap"])?;

    let resumed = Running::start(home.rewake(&capable, &["resume", "-d", "image"]), &home.0, "resume")?;
    let has_none = process::await_some(Duration::from_secs(5), || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let none = |set: &str| status.contains(&format!("{set}:\t0000000000000000\n"));
        (status.contains("TracerPid:\t0\n") && none("CapPrm") && none("CapEff")).then_some(())
    });
    fs::write(home.0.join("go"), "")?;
    let finished = resumed.finish(PATIENCE).context("resume")?;
    ensure!(
        finished.status.success() && home.said() == PASSED,
        "resume: {} {}",
        home.said(),
        finished.errors
    );
    ensure!(has_none.is_some(), "the program was given capabilities of the binary");
    process::nothing_left(&[], Duration::from_secs(5))
}
