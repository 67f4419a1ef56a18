//! `rewake run --preload`: start a program with the library inside.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::args::Run;
use crate::failure::Failure;
use crate::format::plain;

/// Names the library, wherever it is.
const VARIABLE: &str = "REWAKE_LIBCKPT";
const NAME: &str = "libckpt.so";
/// As `env` and shells have it.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Becomes the program. Comes back only when that fails.
pub fn run(arguments: &Run) -> Result<ExitCode, Failure> {
    let library = library()?;
    let Some((program, rest)) = arguments.command.split_first() else {
        return Err(Failure::new("there is no command"));
    };
    if library.as_os_str().as_bytes().iter().any(|byte| b": \t\n".contains(byte)) {
        let shown = plain(library.as_os_str().as_bytes());
        let cause = format!("{shown} cannot be preloaded: its path has a colon or white space in it");
        return Err(Failure::with_remedy(
            cause,
            Some(format!("make a link to it elsewhere, and name that ({VARIABLE})")),
        ));
    }
    let mut preload = library.into_os_string();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let error = Command::new(program).args(rest).env("LD_PRELOAD", preload).exec();
    let status = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
    Failure::new(format_args!("starting {} failed: {error}", plain(program.as_bytes())))
        .print("rewake run", &arguments.common);
    Ok(ExitCode::from(status))
}

fn library() -> Result<PathBuf, Failure> {
    let remedy =
        format!("build it (cargo xtask lib) and put {NAME} beside rewake, or say where it is ({VARIABLE})");
    if let Some(named) = std::env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        let found = in_file(Path::new(&named));
        let cause = || format!("{} ({VARIABLE}) is no library", plain(named.as_bytes()));
        return found.ok_or_else(|| Failure::with_remedy(cause(), Some(remedy)));
    }
    let own = std::env::current_exe().ok();
    let folder = own.as_deref().and_then(Path::parent).unwrap_or(Path::new("/"));
    let places = [folder.join(NAME), folder.join("../lib/rewake").join(NAME)];
    let found = places.iter().find_map(|place| in_file(place));
    found.ok_or_else(|| {
        let shown: Vec<String> = places.iter().map(|place| plain(place.as_os_str().as_bytes())).collect();
        Failure::with_remedy(format!("there is no {NAME}: looked for {}", shown.join(" and ")), Some(remedy))
    })
}

/// The file, by a path that holds wherever the program goes.
fn in_file(path: &Path) -> Option<PathBuf> {
    path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    std::path::absolute(path).ok()
}
