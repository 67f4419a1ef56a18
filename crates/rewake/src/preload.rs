//! `rewake run --preload`: start a program with the library inside.

mod takes;

use std::ffi::OsString;
use std::io::{self, Write as _};
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
    if let Some(why) = takes::why_not(program) {
        without(&why, rest)?;
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

/// It would run, and nobody would know that there are no checkpoints. It must not run where it is to be recovered.
fn without(why: &str, arguments: &[OsString]) -> Result<(), Failure> {
    const REMEDY: &str =
        "run it without --preload and capture it from outside (chkpnt -p PID), or link it with the library";
    let cause = format!("no library can be preloaded into it: {why}");
    let recovers = match arguments {
        [first, ..] if first == "=recover" => true,
        [first, second, ..] => first == "=" && second == "recover",
        _ => false,
    };
    if recovers {
        return Err(Failure::with_remedy(cause, Some(REMEDY)));
    }
    // It runs whether anybody reads this or not.
    let _ =
        writeln!(io::stderr(), "rewake run: it runs, but without checkpoints: {cause}\n  remedy: {REMEDY}");
    Ok(())
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
