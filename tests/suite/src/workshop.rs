//! Where the tests work: the binary under test, the compiled programs, a scratch folder for each test.

use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use crate::account::Account;
use crate::report::Skip;

/// The folders that were made since the last test ended.
static MADE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// The root of the source tree.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The folder that cargo builds into.
#[must_use]
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Builds the release binary (or takes the one named by `REWAKE_BIN`) and returns its path.
///
/// # Errors
/// Fails when the build fails.
pub fn build_rewake() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("REWAKE_BIN") {
        return Ok(PathBuf::from(path));
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", "rewake"])
        .current_dir(root())
        .status()
        .context("running cargo build")?;
    if !status.success() {
        bail!("cargo build --release --package rewake failed");
    }
    Ok(target().join("release/rewake"))
}

/// The tools and folders of one group of tests.
#[derive(Debug)]
pub struct Workshop {
    /// The binary under test.
    pub rewake: PathBuf,
    scratch: PathBuf,
    programs: PathBuf,
    /// Whose commands these are; `None`: of whoever runs the tests.
    account: Option<Account>,
}

impl Workshop {
    /// Builds the binary and prepares a scratch folder.
    ///
    /// # Errors
    /// Fails without a binary, or when the folders cannot be made.
    pub fn open(group: &str) -> Result<Self> {
        let rewake = build_rewake()?;
        let base = target().join("suite");
        let (scratch, programs) = (base.join(group), base.join("programs"));
        if scratch.exists() {
            fs::remove_dir_all(&scratch).with_context(|| format!("clearing {}", scratch.display()))?;
        }
        for folder in [&scratch, &programs] {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let scratch = scratch.canonicalize().context("scratch folder")?;
        let programs = programs.canonicalize().context("folder of programs")?;
        Ok(Workshop { rewake, scratch, programs, account: None })
    }

    /// The same for an ordinary user: the folders are his, and commands and programs run as him, without any right. What he made is gone
    /// with the workshop.
    ///
    /// # Errors
    /// Fails when his folders cannot be made.
    pub fn as_user(&self) -> Result<Self> {
        let account = Account::open()?;
        let rewake = account.copy(&self.rewake)?;
        let scratch = account.home().to_path_buf();
        Ok(Workshop { rewake, scratch, programs: self.programs.clone(), account: Some(account) })
    }

    /// The user whose workshop this is, if it is one's.
    #[must_use]
    pub fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    /// Where that folder is.
    #[must_use]
    pub fn folder_of(&self, name: &str) -> PathBuf {
        self.scratch.join(short(name))
    }

    /// A new, empty folder for the test of this name. Its own name is short, since some programs put sockets there, whose paths may
    /// have 107 bytes.
    ///
    /// # Errors
    /// Fails when it cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder_of(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("clearing {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        if let Some(account) = &self.account {
            account.give(&folder)?;
        }
        MADE.lock().unwrap_or_else(PoisonError::into_inner).push(folder.clone());
        Ok(folder)
    }

    /// Compiles `tests/programs/NAME.c` with `gcc -O2 -pthread` and these further options, unless that is done. If the first option
    /// is `musl-gcc`, that is the compiler.
    ///
    /// # Errors
    /// A missing compiler or library is a [`Skip`]; an error of the compiler is an error.
    pub fn compile(&self, name: &str, options: &[&str]) -> Result<PathBuf> {
        let program = self.compiled(name, options)?;
        self.account.as_ref().map_or(Ok(program.clone()), |account| account.copy(&program))
    }

    /// A file made from one of `tests/programs`, unless it is there and as new; for reading, not for running as a user.
    ///
    /// # Errors
    /// Those of `make`, which is given the source and the place of the file.
    pub fn make(
        &self,
        name: &str,
        source: &str,
        make: impl FnOnce(&Path, &Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let source = root().join("tests/programs").join(source);
        let output = self.programs.join(name);
        if modified(&output) <= modified(&source) {
            make(&source, &output)?;
        }
        Ok(output)
    }

    fn compiled(&self, name: &str, options: &[&str]) -> Result<PathBuf> {
        let sources = root().join("tests/programs");
        let source = sources.join(name).with_extension("c");
        let suffix: String =
            options.iter().flat_map(|o| o.chars()).filter(char::is_ascii_alphanumeric).collect();
        let output = self.programs.join(format!("{}{suffix}", name.replace('/', "-")));
        let newest = [&source, &sources.join("probe.h")].into_iter().filter_map(|path| modified(path)).max();
        if modified(&output) > newest {
            return Ok(output);
        }
        let (compiler, options) = match options {
            ["musl-gcc", rest @ ..] => ("musl-gcc", rest),
            all => ("gcc", all),
        };
        let result = Command::new(compiler)
            .args(["-O2", "-pthread", "-Wall", "-Wextra", "-o"])
            .arg(&output)
            .arg(&source)
            .args(options)
            .output()
            .map_err(|_| {
                let packages = if compiler == "gcc" { "gcc libc6-dev" } else { "musl-tools" };
                Skip(format!("{compiler} is not installed (Debian: apt-get install {packages})"))
            })?;
        if !result.status.success() {
            let text = String::from_utf8_lossy(&result.stderr).into_owned();
            if text.contains("No such file or directory") || text.contains("cannot find -l") {
                return Err(Skip(format!("a header or library is missing to compile {name}.c")).into());
            }
            bail!("compiling {name}.c failed:\n{text}");
        }
        Ok(output)
    }

    /// The binary under test.
    #[must_use]
    pub fn rewake(&self) -> &Path {
        &self.rewake
    }

    /// The command that runs a program, as whoever this workshop is for.
    #[must_use]
    pub fn program(&self, program: &Path) -> Command {
        self.account.as_ref().map_or_else(|| Command::new(program), |account| account.command(program))
    }

    /// The command `rewake ARGUMENTS`, its input empty, its output captured by whoever waits for it.
    pub fn command<I, S>(&self, arguments: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = self.program(&self.rewake);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// The name of a test as that of a folder, of 25 letters at most.
fn short(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    if name.len() <= 25 {
        return name.chars().map(plain).collect();
    }
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let begin: String = name.chars().take(16).map(plain).collect();
    format!("{begin}-{:08x}", hasher.finish() & 0xffff_ffff)
}

/// The folders made for the test that has just ended: gone if it passed, since images of all tests together fill disks; what is left of
/// one that failed is there to be looked at.
pub(crate) fn tidy(passed: bool) {
    let made = std::mem::take(&mut *MADE.lock().unwrap_or_else(PoisonError::into_inner));
    for folder in made.iter().filter(|folder| passed && folder.exists()) {
        if let Err(error) = fs::remove_dir_all(folder) {
            println!("         {} stays: {error}", folder.display());
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}
