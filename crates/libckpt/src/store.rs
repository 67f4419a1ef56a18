//! Where images go and where they are found: a folder for each program, in the folder it was started in unless somebody says otherwise.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rewake_image::store::LATEST;
use rewake_image::{Image, PageReader};
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags};

use crate::settings;

/// Folder of all stores.
const FOLDER: &str = ".rewake";
/// How often, and how far apart, one tries to be the one who gives numbers.
const ATTEMPTS: u32 = 500;
const PAUSE: Duration = Duration::from_millis(1);

/// The store of the program that this process runs.
#[must_use]
pub fn of_this_program() -> PathBuf {
    let name = std::ffi::OsStr::from_bytes(settings::program());
    settings::directory().unwrap_or_else(|| settings::from_start(&Path::new(FOLDER).join(name)))
}

/// Folders that were made for the first image. Dropped before there is one, they are removed again, if nobody else has put anything there.
#[derive(Debug)]
pub struct New(Vec<PathBuf>);

impl New {
    /// Makes the store, and the folders it is in.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make(store: &Path) -> io::Result<Self> {
        let missing = store.ancestors().take_while(|path| path.symlink_metadata().is_err());
        let new = Self(missing.map(Path::to_owned).collect());
        std::fs::create_dir_all(store)?;
        Ok(new)
    }

    /// There is an image in it.
    pub fn stay(mut self) {
        self.0.clear();
    }
}

impl Drop for New {
    fn drop(&mut self) {
        for folder in &self.0 {
            // One that is not empty stays.
            let _mostly_gone = std::fs::remove_dir(folder);
        }
    }
}

/// Where the next image of a store goes: numbers count up, those that are being written included. What dead runs have left is removed.
///
/// # Errors
/// When the store cannot be read.
pub fn next(store: &Path) -> io::Result<PathBuf> {
    let (mut last, mut unfinished) = (0u64, Vec::new());
    each(store, &mut |name| match name.strip_prefix('.').map(number) {
        None => last = last.max(name.parse().unwrap_or(0)),
        Some(Some(number)) => unfinished.push(number),
        Some(None) => {}
    })?;
    for number in unfinished {
        // What cannot be removed stays where it is: its number is not taken.
        let _ = rewake_image::clear_stale(&store.join(number.to_string()));
        last = last.max(number);
    }
    Ok(store.join((last + 1).to_string()))
}

/// The number of `7.tmp-0123`.
fn number(name: &str) -> Option<u64> {
    name.split_once(".tmp-")?.0.parse().ok()
}

/// Calls for each name in a folder that is text. Not by std: the C library's opendir takes memory of the program's.
fn each(folder: &Path, call: &mut dyn FnMut(&str)) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for entry in Dir::new(rustix::fs::open(folder, flags, Mode::empty())?)? {
        if let Ok(name) = entry?.file_name().to_str() {
            call(name);
        }
    }
    Ok(())
}

/// Makes `latest` lead to an image, unless it leads to a later one already.
///
/// # Errors
/// The kernel's.
pub fn point_to(store: &Path, image: &Path) -> io::Result<()> {
    let Some(name) = image.file_name() else { return Ok(()) };
    let now = rustix::fs::readlink(store.join(LATEST), Vec::new()).ok();
    let now = now.and_then(|name| name.to_str().ok()?.parse::<u64>().ok());
    let ours = name.to_str().and_then(|name| name.parse().ok());
    if now > ours && now.is_some_and(|now| store.join(now.to_string()).symlink_metadata().is_ok()) {
        return Ok(());
    }
    let new = store.join(format!(".latest-{}", std::process::id()));
    // Of somebody of that id who was killed.
    let _mostly_none = rustix::fs::unlink(&new);
    rustix::fs::symlink(name, &new)?;
    rustix::fs::rename(&new, store.join(LATEST))?;
    Ok(())
}

/// Removes complete images of a store, from the oldest on, until there are so many that are not later than this one, which is complete.
/// Those of other programs that share the store (of another lineage) do not count.
/// Not that which `latest` leads to, nor one with a journal of files that are being put back or with anything else in its folder; what is
/// broken, or no image, is left alone.
///
/// # Errors
/// The first thing that could not be removed; the rest is tried yet.
pub fn prune(store: &Path, image: &Path, keep: usize, lineage: &[u8]) -> io::Result<()> {
    let number = |name: &std::ffi::OsStr| name.to_str().and_then(|name| name.parse::<u64>().ok());
    let Some(ours) = image.file_name().and_then(number) else { return Ok(()) };
    let latest = rustix::fs::readlink(store.join(LATEST), Vec::new()).ok();
    let latest = latest.and_then(|name| number(std::ffi::OsStr::from_bytes(name.as_bytes())));
    let mut numbers = Vec::new();
    each(store, &mut |name| numbers.extend(name.parse::<u64>().ok().filter(|other| *other < ours)))?;
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    let mut kept = 1;
    let mut outcome = Ok(());
    for old in numbers {
        let old_image = store.join(old.to_string());
        if !is_complete(&old_image, lineage) || holds_more(&old_image) {
            continue;
        }
        if kept < keep || Some(old) == latest {
            kept += 1;
        } else {
            let removed = remove(&old_image);
            outcome = outcome.and(removed);
        }
    }
    outcome
}

fn is_complete(image: &Path, lineage: &[u8]) -> bool {
    let is_ours = |records: &Image| records.manifest.lineage == lineage;
    Image::open(image)
        .is_ok_and(|image_of| is_ours(&image_of) && PageReader::open(image, &image_of.stream).is_ok())
}

/// Whether there is something else in its folder: the journal of files that are being put back, or what is somebody's.
fn holds_more(image: &Path) -> bool {
    let mut more = false;
    let looked = each(image, &mut |name| {
        more |= ![".", ".."].contains(&name) && !rewake_image::FILES.contains(&name);
    });
    more || looked.is_err()
}

/// As long as this lives, nobody else gives numbers to images of the store. For a moment only: threads stand still meanwhile; where
/// locks do not work, two that take the same number find out when they are written.
#[must_use]
pub fn numbering(store: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(store, flags, Mode::empty()).ok()?;
    for _ in 0..ATTEMPTS {
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(folder),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
            Err(_) => return None,
        }
    }
    None
}

/// Removes an image: its records first, so that what is left is no image.
fn remove(image: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    // The copy that wrote the image before may be at it too.
    let gone = |error: rustix::io::Errno| if error == rustix::io::Errno::NOENT { Ok(()) } else { Err(error) };
    let folder = match rustix::fs::open(image, flags, Mode::empty()) {
        Ok(folder) => folder,
        Err(error) => return Ok(gone(error)?),
    };
    for name in rewake_image::FILES {
        rustix::fs::unlinkat(&folder, name, AtFlags::empty()).or_else(gone)?;
    }
    Ok(rustix::fs::rmdir(image).or_else(gone)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store of complete images of these names, but those that begin with another sign than a number.
    fn store(names: &[&str]) -> tempfile::TempDir {
        let store = tempfile::tempdir().expect("folder");
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/tests/golden/v1");
        for name in names {
            let image = store.path().join(name);
            std::fs::create_dir(&image).expect("folder");
            if name.starts_with(char::is_numeric) {
                for file in ["records", "pages"] {
                    std::fs::copy(golden.join(file), image.join(file)).expect("copy");
                }
            }
        }
        store
    }

    fn names(store: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(store).expect("store");
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn numbers_count_up_also_past_those_that_are_being_written() {
        let store = store(&["1", "7", ".9.tmp-0123456789abcdef", "notes"]);
        let lock = numbering(&store.path().join(".9.tmp-0123456789abcdef"));
        assert_eq!(next(store.path()).unwrap(), store.path().join("10"));
        drop(lock);
        next(store.path()).unwrap();
        assert_eq!(names(store.path()), ["1", "7", "notes"], "a dead run has left nothing");
    }

    #[test]
    fn one_at_a_time_gives_numbers() {
        let store = store(&[]);
        let first = numbering(store.path());
        assert!(first.is_some() && numbering(store.path()).is_none());
        drop(first);
        assert!(numbering(store.path()).is_some());
    }

    #[test]
    fn the_latest_is_never_an_earlier_one() {
        let store = store(&["1", "2"]);
        let to = |name: &str| point_to(store.path(), &store.path().join(name)).unwrap();
        let latest = || std::fs::read_link(store.path().join(LATEST)).unwrap();
        to("2");
        to("1");
        assert_eq!(latest(), Path::new("2"));
        // Somebody removed it.
        std::fs::remove_dir_all(store.path().join("2")).unwrap();
        to("1");
        assert_eq!(latest(), Path::new("1"));
    }

    #[test]
    fn old_images_go_and_nothing_else_does() {
        let store = store(&["1", "2", "3", "4", "5", "6", "mine"]);
        let place = |name: &str| store.path().join(name);
        std::fs::write(place("1").join("notes"), b"mine").unwrap();
        std::fs::write(place("3").join("pages"), b"torn").unwrap();
        point_to(store.path(), &place("5")).unwrap();
        prune(store.path(), &place("5"), 1, b"another's").unwrap();
        assert_eq!(names(store.path()).len(), 8);
        prune(store.path(), &place("5"), 2, &[]).unwrap();
        // Somebody has a file in the first, the third is torn, and the sixth is not done yet, as far as the fifth knows.
        assert_eq!(names(store.path()), ["1", "3", "4", "5", "6", LATEST, "mine"]);
        assert!(place("1").join("notes").exists() && place("1").join("records").exists());
        prune(store.path(), &place("5"), 1, &[]).unwrap();
        assert_eq!(names(store.path()), ["1", "3", "5", "6", LATEST, "mine"]);
        std::fs::write(place("5").join(rewake_image::UNDO_FILE), b"").unwrap();
        prune(store.path(), &place("6"), 1, &[]).unwrap();
        assert!(place("5").join("records").exists(), "its files wait to be made what they were");
    }
}
