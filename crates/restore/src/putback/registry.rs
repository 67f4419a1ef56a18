//! Where every command finds the journals that wait: a folder of links to images, for each user.
//!
//! It is `rewake/pending` in `$XDG_STATE_HOME` or `~/.local/state`, or else `/var/tmp/rewake-UID`. A link is made before its journal
//! gets its name. A link proves nothing: what it leads to is looked at as any journal is, and one that leads to none is cleared. Only
//! folders that belong to us and that nobody else can look into are used.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};

/// No more links than this are looked at.
const MOST: usize = 1 << 16;
/// A link to an image that has not been there for so long (its disk is not mounted?) is given up.
const OLD: Duration = Duration::from_secs(30 * 24 * 3600);

/// A link to an image.
#[derive(Debug)]
pub struct Link {
    folder: OwnedFd,
    name: OsString,
    /// The image.
    pub image: PathBuf,
}

impl Link {
    /// Takes it away. One that is gone is fine.
    pub fn remove(&self) {
        // What stays leads to nothing, and is cleared by the next command.
        let _ = rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty());
    }

    /// Whether it is so old that its image will not come back.
    #[must_use]
    pub fn is_old(&self) -> bool {
        let made = rustix::fs::statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        let made = made.ok().and_then(|facts| u64::try_from(facts.st_mtime).ok()).unwrap_or(0);
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(made))
            .is_ok_and(|age| age > OLD)
    }
}

/// Makes a link to an image, on the disk when this returns.
///
/// # Errors
/// When there is no place for it.
pub fn register(image: &Path) -> io::Result<Link> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for place in places() {
        match make(&place).and_then(|()| open(&place)).and_then(|folder| link(folder, image)) {
            Ok(link) => return Ok(link),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn link(folder: OwnedFd, image: &Path) -> io::Result<Link> {
    let random = std::hash::RandomState::new().build_hasher().finish();
    let name = OsString::from(format!("{random:016x}"));
    rustix::fs::symlinkat(image, &folder, &name)?;
    let link = Link { folder, name, image: image.to_owned() };
    rustix::fs::fsync(&link.folder)?;
    Ok(link)
}

/// All links there are.
#[must_use]
pub fn links() -> Vec<Link> {
    places().iter().filter_map(|place| open(place).ok()).flat_map(links_in).collect()
}

fn links_in(folder: OwnedFd) -> Vec<Link> {
    let Ok(entries) = Dir::read_from(&folder) else { return Vec::new() };
    let mut links = Vec::new();
    for entry in entries.flatten().filter(|entry| entry.file_type() == FileType::Symlink).take(MOST) {
        let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
        let Ok(target) = rustix::fs::readlinkat(&folder, &name, Vec::new()) else { continue };
        let image = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if let (true, Ok(folder)) = (image.is_absolute(), folder.try_clone()) {
            links.push(Link { folder, name, image });
        }
    }
    links
}

/// Where links may be, the place to make them first.
fn places() -> Vec<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME");
    let home = absolute("HOME").map(|home| home.join(".local/state"));
    let own = PathBuf::from(format!("/var/tmp/rewake-{}", rustix::process::geteuid().as_raw()));
    let states = state.into_iter().chain(home).map(|state| state.join("rewake/pending"));
    states.chain([own]).collect()
}

/// Makes a place with its parents; not below a folder of somebody else's (the home of whoever became us).
fn make(place: &Path) -> io::Result<()> {
    let there = place.ancestors().find(|folder| folder.is_dir()).unwrap_or(place);
    let shared = there == Path::new("/var/tmp");
    if !shared && std::fs::metadata(there)?.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(place)
}

/// Opens a place that is ours alone.
fn open(place: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, place, flags, Mode::empty())?;
    let facts = rustix::fs::fstat(&folder)?;
    if facts.st_uid != rustix::process::geteuid().as_raw() || facts.st_mode & 0o077 != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(folder)
}
