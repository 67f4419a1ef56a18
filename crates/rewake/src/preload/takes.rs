//! Whether a program takes a preloaded library at all: the loader of the C library obeys `LD_PRELOAD`, and some programs have none, or
//! are run with more rights than their user has.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, Mode, OFlags, StatVfsMountFlags};

/// How often a script may name another one that runs it, as the kernel has it.
const SCRIPTS: usize = 5;
/// How much of a script the kernel reads for that.
const LINE: usize = 256;
const HEADER: usize = 64;
/// Bytes of a program header, and more of them than programs have.
const ENTRY: usize = 56;
const ENTRIES: usize = 512;
const PT_INTERP: u32 = 3;
const SET_USER: u32 = 0o4000;
const SET_GROUP_AND_RUN: u32 = 0o2010;

/// Why the program that a command starts would run without the library; `None` where it takes it, or nothing can be said.
pub fn why_not(command: &OsStr) -> Option<String> {
    let mut path = found(command)?;
    for _ in 0..=SCRIPTS {
        let file = open(&path)?;
        let mut start = [0u8; LINE];
        let read = file.read_at(&mut start, 0).ok()?;
        let start = &start[..read];
        let Some(next) = interpreter(start) else {
            let why = unfit(&path, &file, start)?;
            return Some(format!("{} {why}", crate::format::plain(path.as_os_str().as_bytes())));
        };
        path = next;
    }
    None
}

/// The file that a command leads to, as shells find it.
fn found(command: &OsStr) -> Option<PathBuf> {
    if command.as_bytes().contains(&b'/') {
        return Some(command.into());
    }
    let folders = std::env::var_os("PATH")?;
    let places = std::env::split_paths(&folders).map(|folder| folder.join(command));
    let runs = |place: &PathBuf| place.is_file() && rustix::fs::access(place, Access::EXEC_OK).is_ok();
    places.into_iter().find(runs)
}

/// Never waits, whatever the path leads to.
fn open(path: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).ok().map(File::from)
}

/// What a script is run by.
fn interpreter(start: &[u8]) -> Option<PathBuf> {
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let name = line.split(|byte| b" \t\0".contains(byte)).find(|word| !word.is_empty())?;
    Some(Path::new(OsStr::from_bytes(name)).to_owned())
}

fn unfit(path: &Path, file: &File, start: &[u8]) -> Option<&'static str> {
    let data = file.metadata().ok()?;
    match start.get(..5)? {
        [0x7f, b'E', b'L', b'F', 2] => {}
        [0x7f, b'E', b'L', b'F', _] => return Some("is a program of 32 bits, and the library is not"),
        _ => return None,
    }
    if start.get(18..20)? != [0x3e, 0] {
        return Some("is no program of x86-64");
    }
    // A loader that is called itself loads what it is told to.
    let name = path.file_name().unwrap_or_default().as_bytes();
    if !name.starts_with(b"ld-") && !name.starts_with(b"ld.so") && !has_loader(file, start)? {
        return Some("is linked statically");
    }
    gains_rights(file, &data).then_some("is run with rights that you do not have (set-user-id, capabilities)")
}

/// Whether its headers name a loader.
fn has_loader(file: &File, start: &[u8]) -> Option<bool> {
    let start = start.get(..HEADER)?;
    let offset = u64::from_le_bytes(start.get(32..40)?.try_into().ok()?);
    let short = |at: usize| Some(usize::from(u16::from_le_bytes(start.get(at..at + 2)?.try_into().ok()?)));
    let (size, count) = (short(54)?, short(56)?);
    if size != ENTRY || count > ENTRIES {
        return None;
    }
    let mut entries = vec![0u8; size * count];
    file.read_exact_at(&mut entries, offset).ok()?;
    Some(entries.chunks_exact(size).any(|entry| entry.starts_with(&PT_INTERP.to_le_bytes())))
}

/// Whether it is run as somebody else, or with capabilities: loaders take no library from the environment then.
fn gains_rights(file: &File, data: &Metadata) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let never = status.lines().any(|line| line.starts_with("NoNewPrivs:") && line.ends_with('1'));
    let mounted = rustix::fs::fstatvfs(file).map(|data| data.f_flag);
    if never || mounted.is_ok_and(|flags| flags.contains(StatVfsMountFlags::NOSUID)) {
        return false;
    }
    let user = rustix::process::geteuid();
    let as_other = data.mode() & SET_USER != 0 && data.uid() != user.as_raw();
    let in_other = data.mode() & SET_GROUP_AND_RUN == SET_GROUP_AND_RUN
        && data.gid() != rustix::process::getegid().as_raw();
    let mut room = [0u8; 64];
    let mut has_capabilities = || rustix::fs::fgetxattr(file, "security.capability", &mut room[..]).is_ok();
    as_other || in_other || !user.is_root() && has_capabilities()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_name_what_runs_them() {
        let of = |text: &str| interpreter(text.as_bytes());
        assert_eq!(of("#!/bin/sh\necho"), Some("/bin/sh".into()));
        assert_eq!(of("#! \t/usr/bin/env  python3 -u\n"), Some("/usr/bin/env".into()));
        assert_eq!(of("#!\n/bin/sh"), None);
        assert_eq!(of("echo"), None);
    }

    #[test]
    fn this_very_program_takes_it_and_texts_say_nothing() {
        let own = std::env::current_exe().expect("own path");
        assert_eq!(why_not(own.as_os_str()), None);
        assert_eq!(why_not("sh".as_ref()), None);
        assert_eq!(why_not("/etc/passwd".as_ref()), None);
        assert_eq!(why_not("/".as_ref()), None);
        assert_eq!(why_not("there is no such program".as_ref()), None);
    }

    #[test]
    fn headers_tell_what_does_not() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("program");
        let mut header = [0u8; HEADER + ENTRY];
        header[..5].copy_from_slice(b"\x7fELF\x02");
        header[18] = 0x3e;
        header[32] = 64;
        header[54] = 56;
        header[56] = 1;
        let mut why = |change: &dyn Fn(&mut [u8])| {
            change(&mut header);
            std::fs::write(&path, header).expect("file");
            why_not(path.as_os_str()).unwrap_or_default()
        };
        assert!(why(&|_| {}).ends_with("program is linked statically"));
        assert_eq!(why(&|header| header[HEADER] = 3), "");
        assert!(why(&|header| header[18] = 0xb7).contains("x86-64"));
        assert!(why(&|header| header[4] = 1).contains("32 bits"));
    }
}
