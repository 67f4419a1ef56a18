//! What somebody said about checkpoints of this program, read at its start and kept where no memory has to be taken for it.
//!
//! `.ckptrc` in the home folder, then that in the working folder, then `CKPT_*` in the environment: what comes later wins. A program
//! that is recovered keeps the settings it had. Nothing of it is read for a program with rights that its user does not have (AT_SECURE).
//!
//! # Safety
//! Unsafe here: text written once, before there are threads; the environment as libc gives it to functions before `main`; raw system
//! calls with buffers of ours.

#![allow(unsafe_code, reason = "see Safety above")]

pub mod parse;

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use core::fmt::{self, Write as _};
use core::sync::atomic::{AtomicU32, Ordering};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rewake_capture::Compression;

use self::parse::{Setting, Wrong};
use crate::{SIGFREEZE, ceilings, entry, raw};

/// Room for the longest path, with its end.
const ROOM: usize = 4096;
/// Bytes a path may have, its end included.
const PATH: usize = ceilings::PATH;
/// Longest file of settings.
const FILE: usize = 16 << 10;

/// Text that is written once, before there are threads.
struct Text(UnsafeCell<[u8; ROOM]>);

// SAFETY: written at the start only, by the one thread there is.
unsafe impl Sync for Text {}

static DIRECTORY: Text = Text(UnsafeCell::new([0; ROOM]));
static PROGRAM: Text = Text(UnsafeCell::new([0; ROOM]));
static WORKING: Text = Text(UnsafeCell::new([0; ROOM]));
static HOME: Text = Text(UnsafeCell::new([0; ROOM]));
static LEVEL: AtomicU32 = AtomicU32::new(1);
static VERBOSE: AtomicU32 = AtomicU32::new(0);
static INTERVAL: AtomicU32 = AtomicU32::new(0);
static KEEP: AtomicU32 = AtomicU32::new(0);
/// How pages are stored: by the numbers of [`compression`].
static COMPRESS: AtomicU32 = AtomicU32::new(0);
static FORK: AtomicU32 = AtomicU32::new(0);
static SIGNAL: AtomicU32 = AtomicU32::new(SIGFREEZE.unsigned_abs());

impl Text {
    fn get(&'static self) -> &'static [u8] {
        // SAFETY: written at the start only.
        let bytes = unsafe { &*self.0.get() };
        &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(0)]
    }

    /// At the start only; cut where it is too long.
    fn set(&self, text: &[u8]) {
        let len = text.len().min(ROOM - 1);
        // SAFETY: there is one thread yet.
        let bytes = unsafe { &mut *self.0.get() };
        bytes[..len].copy_from_slice(&text[..len]);
        bytes[len] = 0;
    }

    fn path(&'static self) -> &'static Path {
        Path::new(std::ffi::OsStr::from_bytes(self.get()))
    }
}

/// Where a setting stands, for messages.
enum Place<'a> {
    File(&'a [u8], usize),
    Variable(&'a [u8]),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file, line) => write!(f, "{}, line {line}", file.trim_ascii_end().escape_ascii()),
            Self::Variable(name) => write!(f, "{} in the environment", name.escape_ascii()),
        }
    }
}

/// A line for standard error that takes no memory; cut where it is too long.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..511];
        let len = text.len().min(room.len());
        room[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

/// Says something on standard error.
fn say(text: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 512], len: 0 };
    // It never fails.
    let _ = write!(line, "libckpt: {text}");
    line.bytes[line.len] = b'\n';
    raw::write(2, &line.bytes[..=line.len]);
}

/// Reads the files and the environment.
///
/// # Safety
/// A list of strings, with a null pointer at its end, as `main` gets it.
pub unsafe fn read(environment: *const *const c_char) {
    learn_working_folder();
    learn_name();
    // SAFETY: no arguments that are pointers.
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        return;
    }
    // SAFETY: the caller's.
    unsafe {
        each(environment, &mut |name, value| {
            if name == b"HOME" && value.len() < ROOM - 16 {
                HOME.set(value);
            }
        });
    }
    let mut path = [0u8; ROOM];
    let home = HOME.get();
    // In the home folder itself it is the same file.
    if home.starts_with(b"/") && home != WORKING.get() {
        let end = b"/.ckptrc\0";
        path[..home.len()].copy_from_slice(home);
        path[home.len()..home.len() + end.len()].copy_from_slice(end);
        file(&path[..home.len() + end.len()]);
    }
    file(b".ckptrc\0");
    // SAFETY: the caller's.
    unsafe {
        each(environment, &mut |name, value| {
            let mut room = [0; 32];
            let place = Place::Variable(name);
            if let Some(key) = parse::key_of_variable(name, &mut room) {
                take(&place, key, value);
            } else if let Some(meant) = parse::meant(name) {
                say(format_args!(
                    "{place}: there is no such setting; '{meant}' is CKPT_ and that in capitals"
                ));
            }
        });
    }
}

/// Calls for each variable.
///
/// # Safety
/// As [`read`].
unsafe fn each(environment: *const *const c_char, call: &mut dyn FnMut(&[u8], &[u8])) {
    let mut at = environment;
    // SAFETY: the caller's.
    while let Some(entry) = unsafe { at.read().as_ref() } {
        // SAFETY: the caller's.
        let text = unsafe { CStr::from_ptr(entry) }.to_bytes();
        if let Some(end) = text.iter().position(|byte| *byte == b'=') {
            call(&text[..end], &text[end + 1..]);
        }
        // SAFETY: the null pointer comes yet.
        at = unsafe { at.add(1) };
    }
}

/// Relative paths mean the folder the program was started in, wherever it goes.
fn learn_working_folder() {
    let mut room = [0u8; ROOM];
    // SAFETY: a buffer of ours.
    let len = unsafe { raw::call(libc::SYS_getcwd, [room.as_mut_ptr() as u64, ROOM as u64, 0, 0, 0, 0]) };
    if let Ok(len @ 2..) = usize::try_from(len)
        && room[0] == b'/'
    {
        WORKING.set(&room[..len - 1]);
    }
}

/// The program's file may be renamed or replaced while it runs: its store stays the same.
fn learn_name() {
    let mut room = [0u8; ROOM];
    let path = c"/proc/self/exe".as_ptr() as u64;
    let args = [raw::word(libc::AT_FDCWD), path, room.as_mut_ptr() as u64, ROOM as u64, 0, 0];
    // SAFETY: a string and a buffer of ours.
    let len = unsafe { raw::call(libc::SYS_readlinkat, args) };
    let path = usize::try_from(len).ok().and_then(|len| room.get(..len)).unwrap_or_default();
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    // What the kernel adds when the file has been replaced by then.
    PROGRAM.set(name.strip_suffix(b" (deleted)").unwrap_or(name));
}

/// The name of the program's file when it was started.
#[must_use]
pub fn program() -> &'static [u8] {
    match PROGRAM.get() {
        b"" => b"program",
        name => name,
    }
}

/// Reads a file, whose path ends with a zero byte, if it is there.
fn file(path: &[u8]) {
    let shown = &path[..path.len() - 1];
    let mut text = [0u8; FILE];
    let flags = raw::word(libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK);
    // SAFETY: a string of ours.
    let opened = unsafe {
        raw::call(libc::SYS_openat, [raw::word(libc::AT_FDCWD), path.as_ptr() as u64, flags, 0, 0, 0])
    };
    let fd = match i32::try_from(opened) {
        Ok(fd) if fd >= 0 => fd,
        Ok(error) if error == -libc::ENOENT || error == -libc::ENOTDIR => return,
        Ok(error) if error == -libc::EACCES => {
            // Somebody else's home folder, kept in the environment, is none.
            if !may_enter(shown) {
                return;
            }
            return say(format_args!("{}: left aside: Permission denied", shown.escape_ascii()));
        }
        _ => return say(format_args!("{}: left aside: error {}", shown.escape_ascii(), -opened)),
    };
    let len = if is_trusted(fd) { Some(raw::read(fd, &mut text)) } else { None };
    raw::close(fd);
    match len {
        None => say(format_args!(
            "{}: left aside: it is no file of this user's or root's that only its owner may write",
            shown.escape_ascii()
        )),
        Some(FILE) => {
            say(format_args!("{}: left aside: it is longer than {FILE} bytes", shown.escape_ascii()))
        }
        Some(len) => {
            for (at, line) in text[..len].split(|byte| *byte == b'\n').enumerate() {
                if let Some((key, value)) = parse::line(line) {
                    take(&Place::File(shown, at + 1), key, value);
                }
            }
        }
    }
}

/// Whether the folder of this file may be looked into.
fn may_enter(file: &[u8]) -> bool {
    let mut folder = [0u8; ROOM];
    let end = file.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    folder[..end].copy_from_slice(&file[..end]);
    let folder = if end == 0 { c".".to_bytes_with_nul() } else { &folder };
    let args = [raw::word(libc::AT_FDCWD), folder.as_ptr() as u64, raw::word(libc::X_OK), 0, 0, 0];
    // SAFETY: a string of ours, with a zero byte at its end.
    unsafe { raw::call(libc::SYS_faccessat, args) == 0 }
}

/// Whether nobody else says what this program does, in a folder that others may write to.
fn is_trusted(fd: i32) -> bool {
    let mut status = core::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: room for what the kernel writes; zeros are a valid one; calls without arguments.
    let (status, user) = unsafe {
        raw::call(libc::SYS_fstat, [raw::word(fd), status.as_mut_ptr() as u64, 0, 0, 0, 0]);
        (status.assume_init(), raw::call(libc::SYS_geteuid, [0; 6]))
    };
    let owner = i64::from(status.st_uid);
    status.st_mode & libc::S_IFMT == libc::S_IFREG
        && (owner == user || owner == 0)
        && status.st_mode & libc::S_IWOTH == 0
}

/// What a setting is now, in the words that it can be set by.
struct Kept<'a>(&'a [u8]);

impl fmt::Display for Kept<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switch = |on: bool| if on { "on" } else { "off" };
        match self.0 {
            b"checkpointing" => f.write_str(switch(entry::ON.load(Ordering::Relaxed) != 0)),
            b"directory" if DIRECTORY.get().is_empty() => f.write_str(".rewake/%n"),
            b"directory" => write!(f, "{}", DIRECTORY.get().escape_ascii()),
            b"store_files_level" => write!(f, "{}", level()),
            b"verbose" => f.write_str(switch(verbose())),
            b"interval" if interval() > 0 => write!(f, "{}s", interval()),
            b"interval" => f.write_str("off"),
            b"keep" => match keep() {
                Some(count) => write!(f, "{count}"),
                None => f.write_str("all"),
            },
            b"compress" => f.write_str(match compression() {
                Compression::None => "none",
                Compression::Lz4 => "lz4",
                Compression::Zstd => "zstd",
            }),
            b"mode" => f.write_str(if forks() { "fork" } else { "stop" }),
            _ => write!(f, "{}", signal()),
        }
    }
}

/// Keeps a setting, or says what is wrong with it.
fn take(place: &Place<'_>, key: &[u8], value: &[u8]) {
    match parse::setting(key, value, PATH) {
        Ok(Setting::Checkpointing(on)) => entry::ON.store(on.into(), Ordering::Relaxed),
        Ok(Setting::Directory(path)) => DIRECTORY.set(path),
        Ok(Setting::Level(level)) => LEVEL.store(level, Ordering::Relaxed),
        Ok(Setting::Verbose(on)) => VERBOSE.store(on.into(), Ordering::Relaxed),
        Ok(Setting::Interval(seconds)) => INTERVAL.store(seconds, Ordering::Relaxed),
        Ok(Setting::Keep(count)) => KEEP.store(count, Ordering::Relaxed),
        Ok(Setting::Compress(how)) => {
            let number =
                [Compression::None, Compression::Lz4, Compression::Zstd].iter().position(|one| *one == how);
            COMPRESS
                .store(number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0), Ordering::Relaxed);
        }
        Ok(Setting::Fork(on)) => FORK.store(on.into(), Ordering::Relaxed),
        Ok(Setting::Signal(number)) => SIGNAL.store(number, Ordering::Relaxed),
        Err(wrong @ Wrong::Value(key, ..)) => say(format_args!("{place}: {wrong}; it stays {}", Kept(key))),
        Err(wrong) => say(format_args!("{place}: {wrong}")),
    }
}

/// The store, if somebody said which: `%n` in it is the name of the program, `~/` at its beginning the home folder.
#[must_use]
pub fn directory() -> Option<PathBuf> {
    let text = DIRECTORY.get();
    if text.is_empty() {
        return None;
    }
    let (mut path, rest) = match text.strip_prefix(b"~/") {
        Some(rest) if !HOME.get().is_empty() => ([HOME.get(), b"/"].concat(), rest),
        _ => (Vec::new(), text),
    };
    let mut parts = rest.split(|byte| *byte == b'%');
    path.extend_from_slice(parts.next().unwrap_or_default());
    for part in parts {
        match part.strip_prefix(b"n") {
            Some(after) => path.extend([program(), after].concat()),
            None => path.extend([b"%", part].concat()),
        }
    }
    Some(from_start(Path::new(std::ffi::OsStr::from_bytes(&path))))
}

/// A path as it was meant when the program began.
#[must_use]
pub fn from_start(path: &Path) -> PathBuf {
    WORKING.path().join(path)
}

/// Why a path cannot be that of a store; `None` when it can.
#[must_use]
pub fn too_long(path: &Path) -> Option<String> {
    let len = u64::try_from(path.as_os_str().len() + 1).unwrap_or(u64::MAX);
    ceilings::passed("CKPT_MAXPATHSIZE", Some(PATH as u64), len)
}

/// Whose content goes into images.
#[must_use]
pub fn level() -> u8 {
    u8::try_from(LEVEL.load(Ordering::Relaxed)).unwrap_or(1)
}

/// Whether each checkpoint is told on standard error.
#[must_use]
pub fn verbose() -> bool {
    VERBOSE.load(Ordering::Relaxed) != 0
}

/// Seconds between two checkpoints; 0: only when asked for.
#[must_use]
pub fn interval() -> u32 {
    INTERVAL.load(Ordering::Relaxed)
}

/// How many images are kept, if not all.
#[must_use]
pub fn keep() -> Option<usize> {
    usize::try_from(KEEP.load(Ordering::Relaxed)).ok().filter(|count| *count > 0)
}

/// How pages are stored.
#[must_use]
pub fn compression() -> Compression {
    match COMPRESS.load(Ordering::Relaxed) {
        1 => Compression::Lz4,
        2 => Compression::Zstd,
        _ => Compression::None,
    }
}

/// Whether the program goes on while its memory is written.
#[must_use]
pub fn forks() -> bool {
    FORK.load(Ordering::Relaxed) != 0
}

/// The signal that asks for a checkpoint.
#[must_use]
pub fn signal() -> i32 {
    i32::try_from(SIGNAL.load(Ordering::Relaxed)).unwrap_or(SIGFREEZE)
}
