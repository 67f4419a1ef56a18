//! Another life of the same program: two of them would write to the same files, each unaware of the other.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rewake_image::{Image, RECORDS_FILE};
use rewake_linux::inside::COPY;
use rewake_restore::streams;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// How often, and how far apart, one looks whether the recovery before is over.
const LOOKS: u32 = 1000;
const PAUSE: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(1);

type Inode = (u64, u64);

/// Held from the look at others until the program has its files: one recovery of an image at a time. Where locks do not work there is none.
///
/// # Errors
/// A text for people.
pub fn alone(image: &Path) -> Result<Option<OwnedFd>, String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let Ok(records) = rustix::fs::open(image.join(RECORDS_FILE), flags, Mode::empty()) else {
        return Ok(None);
    };
    for _ in 0..LOOKS {
        match rustix::fs::flock(&records, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
            Err(_) => return Ok(None),
            Ok(()) => return Ok(Some(records)),
        }
    }
    let image = image.display();
    Err(format!("libckpt: another process is recovering {image}\n  wait until it has, or end it"))
}

/// Refuses when another process of this program writes to a file that the image's program writes to. Those that only add to it do no harm.
///
/// # Errors
/// A text for people.
pub fn check(image: &Image) -> Result<(), String> {
    // One that is dying keeps its files for a moment.
    let begun = Instant::now();
    loop {
        match look(image) {
            Err(_) if begun.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
}

fn look(image: &Image) -> Result<(), String> {
    let names = image.file_contents.iter().filter_map(|content| content.identity.as_ref());
    let files: BTreeSet<Inode> = names.filter_map(|name| inode(name.as_path())).collect();
    let Some(own) = inode(Path::new("/proc/self/exe")).filter(|_| !files.is_empty()) else { return Ok(()) };
    let common = streams::common(image);
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid == std::process::id().cast_signed() || inode(&process.path().join("exe")) != Some(own) {
            continue;
        }
        // One that writes an image has the files of its program, and leaves them alone.
        if fs::read(process.path().join("comm")).is_ok_and(|name| name.trim_ascii() == COPY.to_bytes()) {
            continue;
        }
        if let Some(file) = written(pid, &process.path(), &files, &common) {
            return Err(format!(
                "libckpt: process {pid} is of this program too and writes to {file}: both would spoil it\n  end that process first"
            ));
        }
    }
    Ok(())
}

fn inode(path: &Path) -> Option<Inode> {
    fs::metadata(path).ok().map(|data| (data.dev(), data.ino()))
}

/// One of these files that the process has open for writing, not only for adding to it, and not as a stream of ours that it shares.
fn written(pid: i32, process: &Path, files: &BTreeSet<Inode>, common: &[i32]) -> Option<String> {
    let entries = fs::read_dir(process.join("fd")).ok()?.flatten();
    for entry in entries {
        let path = entry.path();
        if !inode(&path).is_some_and(|inode| files.contains(&inode)) {
            continue;
        }
        let fd = entry.file_name().to_str().and_then(|name| name.parse().ok()).unwrap_or(-1);
        // The program takes the same stream over, and both write to it by turns.
        if common.iter().any(|own| streams::is_same(*own, pid, fd)) {
            continue;
        }
        let info = fs::read_to_string(process.join("fdinfo").join(entry.file_name())).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0);
        let has = |bits: i32| flags & bits.cast_unsigned() != 0;
        if has(libc::O_ACCMODE) && !has(libc::O_APPEND) && !has(libc::O_PATH) {
            return Some(
                fs::read_link(path).map_or_else(|_| "a file".to_owned(), |name| name.display().to_string()),
            );
        }
    }
    None
}
