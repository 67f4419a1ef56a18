//! An ordinary user for the tests: a user and group of number 1000 without any right, and a folder that is his.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// His user and group id. Not `nobody`, which stands for everybody else inside of a user namespace.
pub const USER: u32 = 1000;

/// Several of them in one run of the tests have a folder each.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The user and his folder, which is gone with this value.
#[derive(Debug)]
pub struct Account {
    home: PathBuf,
    /// `None`: whoever runs the tests is no root, and so an ordinary user already.
    user: Option<u32>,
}

impl Account {
    /// Makes the folder, in a place that everybody can reach.
    ///
    /// # Errors
    /// Fails when it cannot be made or given to the user.
    pub fn open() -> Result<Self> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("rewake-user-{}-{number}", std::process::id());
        let home = std::env::temp_dir().canonicalize().context("folder of temporary files")?.join(name);
        fs::create_dir(&home).context("making the user's folder")?;
        let user = rustix::process::geteuid().is_root().then_some(USER);
        let account = Account { home, user };
        fs::set_permissions(&account.home, Permissions::from_mode(0o755)).context("the user's folder")?;
        account.give(&account.home)?;
        Ok(account)
    }

    /// His folder.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// His id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.user.unwrap_or_else(|| rustix::process::geteuid().as_raw())
    }

    /// Makes a file or folder his.
    ///
    /// # Errors
    /// Fails when that is not permitted.
    pub fn give(&self, path: &Path) -> Result<()> {
        chown(path, self.user, self.user).with_context(|| format!("giving {} to the user", path.display()))
    }

    /// A copy of a program in his folder, unless it is there and as new.
    ///
    /// # Errors
    /// Fails when it cannot be written.
    pub fn copy(&self, from: &Path) -> Result<PathBuf> {
        let to = self.home.join(from.file_name().context("a program has a name")?);
        let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        if modified(&to) < modified(from) {
            fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
            fs::set_permissions(&to, Permissions::from_mode(0o755))?;
            self.give(&to)?;
        }
        Ok(to)
    }

    /// The command that runs a program as him.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let Some(user) = self.user else { return Command::new(program) };
        // The runner passes on a command's words only, so it is one of them that becomes the user.
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={user}"), &format!("--regid={user}")]);
        command.args(["--clear-groups", "--inh-caps=-all"]).arg(program);
        command
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // What stays in the folder for temporary files is cleared with it.
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// What is made in a folder of a user's is his.
///
/// # Errors
/// Fails when that is not permitted.
pub fn give_to_owner_of(folder: &Path, path: &Path) -> Result<()> {
    let owner = fs::metadata(folder).with_context(|| folder.display().to_string())?;
    if owner.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    chown(path, Some(owner.uid()), Some(owner.gid())).with_context(|| path.display().to_string())
}
