//! Programs that start others (`nice ./prog =recover`, the `env` of a script's first line): where the library is preloaded it is in these as
//! well, but the wish is not theirs.
//!
//! In doubt it is: then the worst is that there is nothing to recover, and not that something begins anew that somebody wanted back.
//!
//! # Safety
//! Unsafe here: libc's search of the environment, at a time when there is one thread.

#![allow(unsafe_code, reason = "see Safety above")]

use core::ffi::CStr;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Whether one of these words, which stand before the wish, is a program of its own, and not a script or a word for its interpreter.
pub fn starts_another(words: &[Option<&CStr>]) -> bool {
    words
        .iter()
        .flatten()
        .any(|word| found(OsStr::from_bytes(word.to_bytes())).is_some_and(|file| is_program(&file)))
}

/// The file that execvp(3) would run.
fn found(word: &OsStr) -> Option<PathBuf> {
    if word.as_bytes().contains(&b'/') {
        return Some(word.into());
    }
    // A file of that name here may be an interpreter's script.
    if word.is_empty() || Path::new(word).exists() {
        return None;
    }
    // SAFETY: nobody changes the environment before `main`.
    let path = unsafe {
        let path = libc::getenv(c"PATH".as_ptr());
        (!path.is_null()).then(|| CStr::from_ptr(path))?
    };
    let folders =
        path.to_bytes().split(|byte| *byte == b':').map(|folder| Path::new(OsStr::from_bytes(folder)));
    folders.map(|folder| folder.join(word)).find(|file| may_be_run(file))
}

fn may_be_run(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Whether this is a file for the kernel to run, and no script.
fn is_program(file: &Path) -> bool {
    let mut begin = [0; 4];
    may_be_run(file)
        && File::open(file).and_then(|mut file| file.read_exact(&mut begin)).is_ok()
        && &begin == b"\x7fELF"
}

#[cfg(test)]
mod tests {
    use super::starts_another;

    #[test]
    fn programs_are_told_from_scripts() {
        assert!(starts_another(&[Some(c"/bin/sh"), None]));
        assert!(starts_another(&[Some(c"10"), Some(c"sh")]), "found as a shell does");
        // The folder of this package is where its tests are run.
        assert!(!starts_another(&[Some(c"./Cargo.toml"), None]));
        assert!(!starts_another(&[Some(c"-u"), Some(c"nowhere.py")]));
        assert!(!starts_another(&[Some(c""), Some(c"/")]));
        assert!(!starts_another(&[None, None]));
    }
}
