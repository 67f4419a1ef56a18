//! Making the directory of an image: there is a whole one, or none, whatever dies when.
//!
//! Files are written into a sibling of the wanted directory, `.{name}.tmp-{random}`. As long as its writer lives, it holds a lock
//! (flock) on that directory, so that the next run can tell a temporary of a dead writer, which it clears, from one in use. When
//! all is on the disk, one rename that replaces nothing gives the directory its name.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::{FILES, Image, ImageError, RECORDS_FILE};

/// Between the image's name and the random part of a temporary's name.
const INFIX: &str = ".tmp-";
/// Hexadecimal digits of the random part.
const RANDOM_DIGITS: usize = 16;
/// How often another name is tried when one is taken.
const ATTEMPTS: usize = 16;

/// An image that is being written. Dropping it removes everything.
#[derive(Debug)]
pub struct PendingImage {
    temporary: Temporary,
    target: PathBuf,
    target_name: OsString,
    /// The files made so far, kept open: a write error of the disk is told to whoever had the file open when it happened.
    files: Mutex<Vec<(PathBuf, File)>>,
}

/// An image that is on the disk under its temporary name. Dropping it removes everything.
#[derive(Debug)]
#[must_use = "an image that is not published is removed"]
pub struct SyncedImage {
    temporary: Temporary,
    target: PathBuf,
    target_name: OsString,
}

impl PendingImage {
    /// Makes the temporary sibling of `target`, which must not exist.
    ///
    /// # Errors
    /// [`ImageError::Exists`], or [`ImageError::Io`] when the parent is missing or not writable.
    pub fn create(target: &Path) -> Result<Self, ImageError> {
        let place = Place::of(target)?;
        if place.target.symlink_metadata().is_ok() {
            return Err(ImageError::Exists { path: place.target });
        }
        let parent = place.open_parent()?;
        for _ in 0..ATTEMPTS {
            let name = temporary_name(&place.name, random());
            let path = place.parent.join(&name);
            if let Some(directory) = make_locked(&parent, &name, &path)? {
                let temporary = Temporary { parent, name, path, directory, keep: false };
                let files = Mutex::default();
                return Ok(Self { temporary, target: place.target, target_name: place.name, files });
            }
        }
        let path = place.parent.join(temporary_name(&place.name, 0));
        Err(ImageError::io("mkdir", &path)(Errno::EXIST))
    }

    /// Where the image will be, as an absolute path.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where it is written now, as an absolute path. A helper process that outlives this one can hand it to [`remove_pending`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.temporary.path
    }

    /// Makes a new file of the image, open for reading and writing, mode 0600.
    ///
    /// # Errors
    /// [`ImageError::Io`]; also when the file is there already.
    ///
    /// # Panics
    /// When `name` is none of [`FILES`]: only those are ever removed again.
    pub fn create_file(&self, name: &str) -> Result<File, ImageError> {
        assert!(FILES.contains(&name), "{name:?} is no file of an image");
        let path = self.path().join(name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&self.temporary.directory, name, flags, mode)
            .map_err(ImageError::io("create", &path))?;
        rustix::fs::fchmod(&file, mode).map_err(ImageError::io("fchmod", &path))?;
        let file = File::from(file);
        let kept = file.try_clone().map_err(ImageError::io("dup", &path))?;
        self.files.lock().expect("no holder of this lock panics").push((path, kept));
        Ok(file)
    }

    /// Checks, encodes and writes the records; gives the bytes written.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] when the image makes no sense, [`ImageError::Io`] when it cannot be written.
    pub fn write_records(&self, image: &Image) -> Result<u64, ImageError> {
        let bytes = image.encode()?;
        let mut file = self.create_file(RECORDS_FILE)?;
        let path = self.path().join(RECORDS_FILE);
        io::Write::write_all(&mut file, &bytes).map_err(ImageError::io("write", &path))?;
        Ok(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
    }

    /// Waits until all files and their directory are on the disk.
    ///
    /// # Errors
    /// [`ImageError::Io`]; the image is removed then.
    pub fn sync(self) -> Result<SyncedImage, ImageError> {
        let files = self.files.into_inner().expect("no holder of this lock panics");
        for (path, file) in &files {
            rustix::fs::fsync(file).map_err(ImageError::io("fsync", path))?;
        }
        rustix::fs::fsync(&self.temporary.directory)
            .map_err(ImageError::io("fsync", &self.temporary.path))?;
        Ok(SyncedImage { temporary: self.temporary, target: self.target, target_name: self.target_name })
    }

    /// [`PendingImage::sync`] and [`SyncedImage::publish`].
    ///
    /// # Errors
    /// As those; the image is removed then.
    pub fn commit(self) -> Result<(), ImageError> {
        self.sync()?.publish()
    }
}

impl AsFd for PendingImage {
    /// The temporary directory.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.temporary.directory.as_fd()
    }
}

impl SyncedImage {
    /// Gives the image its name, replacing nothing, and waits until the name too is on the disk.
    ///
    /// # Errors
    /// [`ImageError::Exists`] when something took the name meanwhile, else [`ImageError::Io`]; the image is removed then.
    pub fn publish(mut self) -> Result<(), ImageError> {
        let temporary = &mut self.temporary;
        match rename_exclusively(&temporary.parent, &temporary.name, &self.target_name) {
            Ok(()) => (),
            Err(Errno::EXIST | Errno::NOTEMPTY) => return Err(ImageError::Exists { path: self.target }),
            Err(source) => return Err(ImageError::io("rename", &self.target)(source)),
        }
        // Until its new name is durable the image may still vanish: a failure from here on removes it under that name.
        temporary.name.clone_from(&self.target_name);
        temporary.path.clone_from(&self.target);
        let parent = self.target.parent().unwrap_or(&self.target);
        rustix::fs::fsync(&temporary.parent).map_err(ImageError::io("fsync", parent))?;
        temporary.keep = true;
        Ok(())
    }
}

/// Removes the temporaries of `target` whose writers are dead; gives their paths.
///
/// # Errors
/// [`ImageError::Io`] when the parent cannot be read or a temporary of the user's own cannot be removed.
pub fn clear_stale(target: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let place = Place::of(target)?;
    let parent = place.open_parent()?;
    let mut cleared = Vec::new();
    for name in entries(&parent, &place.parent)? {
        if !is_temporary_of(&name, &place.name) {
            continue;
        }
        let path = place.parent.join(&name);
        let Ok(directory) = open_directory(&parent, &name) else {
            continue; // Gone, or not ours to look into.
        };
        if lock(&directory).is_ok() && is_still(&parent, &name, &directory) {
            remove(&parent, &name, &directory).map_err(ImageError::io("remove", &path))?;
            cleared.push(path);
        }
    }
    Ok(cleared)
}

/// Removes the temporary directory of a writer that is known to be dead; nothing there is fine. For the process that survives it.
///
/// # Errors
/// [`ImageError::Io`]; [`ImageError::NotAnImage`] for a path that [`PendingImage::path`] never gave.
pub fn remove_pending(path: &Path) -> Result<(), ImageError> {
    let (Some(parent_path), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ImageError::NotAnImage {
            detail: format!("{} is no temporary directory", path.display()),
        });
    };
    if !is_temporary(name) {
        return Err(ImageError::NotAnImage {
            detail: format!("{} is no temporary directory", path.display()),
        });
    }
    let removed = open_path(parent_path).and_then(|parent| {
        let directory = open_directory(&parent, name)?;
        remove(&parent, name, &directory)
    });
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(source) => Err(ImageError::io("remove", path)(source)),
    }
}

/// A directory under its temporary name, locked, removed when dropped.
#[derive(Debug)]
struct Temporary {
    parent: OwnedFd,
    name: OsString,
    path: PathBuf,
    directory: OwnedFd,
    keep: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed now is cleared by the next run.
            let _ = remove(&self.parent, &self.name, &self.directory);
        }
    }
}

/// The wanted directory, taken apart.
struct Place {
    target: PathBuf,
    parent: PathBuf,
    name: OsString,
}

impl Place {
    fn of(target: &Path) -> Result<Self, ImageError> {
        let absolute = std::path::absolute(target).map_err(ImageError::io("resolve", target))?;
        match (absolute.parent(), absolute.file_name()) {
            (Some(parent), Some(name)) => {
                let target = parent.join(name);
                Ok(Self { target, parent: parent.to_owned(), name: name.to_owned() })
            }
            _ => Err(ImageError::io("create", target)(Errno::INVAL)),
        }
    }

    fn open_parent(&self) -> Result<OwnedFd, ImageError> {
        open_path(&self.parent).map_err(ImageError::io("open", &self.parent))
    }
}

/// Makes and locks a directory; `None` when the name is taken, or was cleared by another run before it was locked.
fn make_locked(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<Option<OwnedFd>, ImageError> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => (),
        Err(Errno::EXIST) => return Ok(None),
        Err(source) => return Err(ImageError::io("mkdir", path)(source)),
    }
    let directory = match open_directory(parent, name) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(None),
        Err(source) => return Err(ImageError::io("open", path)(source)),
    };
    match lock(&directory) {
        Ok(()) if is_still(parent, name, &directory) => (),
        Ok(()) | Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(source) => return Err(ImageError::io("flock", path)(source)),
    }
    // The umask may have taken bits away.
    rustix::fs::fchmod(&directory, Mode::RWXU).map_err(ImageError::io("fchmod", path))?;
    Ok(Some(directory))
}

/// Opens a directory in another one; a link to one is none.
fn open_directory(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Opens the directory that images are made in; links on the way are the user's own choice.
fn open_path(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

fn lock(directory: &OwnedFd) -> Result<(), Errno> {
    rustix::fs::flock(directory, FlockOperation::NonBlockingLockExclusive)
}

/// Whether the name still leads to this very directory.
fn is_still(parent: &OwnedFd, name: &OsStr, directory: &OwnedFd) -> bool {
    let named = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    match (named, rustix::fs::fstat(directory)) {
        (Ok(named), Ok(open)) => (named.st_dev, named.st_ino) == (open.st_dev, open.st_ino),
        _ => false,
    }
}

/// Removes an image's files and its directory. Anything else in there is left, and makes this fail.
fn remove(parent: &OwnedFd, name: &OsStr, directory: &OwnedFd) -> Result<(), Errno> {
    for file in FILES {
        match rustix::fs::unlinkat(directory, file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => (),
            Err(error) => return Err(error),
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Renames without replacing anything, also where the file system does not offer that.
fn rename_exclusively(parent: &OwnedFd, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
    match rustix::fs::renameat_with(parent, from, parent, to, RenameFlags::NOREPLACE) {
        // A plain rename of a directory replaces nothing but an empty directory.
        Err(Errno::INVAL | Errno::NOSYS) => match rustix::fs::statat(parent, to, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => rustix::fs::renameat(parent, from, parent, to),
            Err(error) => Err(error),
            Ok(_) => Err(Errno::EXIST),
        },
        result => result,
    }
}

/// The names in a directory, without `.` and `..`.
pub(crate) fn entries(directory: impl AsFd, path: &Path) -> Result<Vec<OsString>, ImageError> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(ImageError::io("open", path))? {
        let entry = entry.map_err(ImageError::io("read", path))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

fn temporary_name(target: &OsStr, random: u64) -> OsString {
    let mut name = OsString::from(".");
    name.push(target);
    name.push(format!("{INFIX}{random:0RANDOM_DIGITS$x}"));
    name
}

/// Whether a name is that of a temporary, whatever its target.
pub(crate) fn is_temporary(name: &OsStr) -> bool {
    target_of(name).is_some()
}

fn is_temporary_of(name: &OsStr, target: &OsStr) -> bool {
    target_of(name) == Some(target.as_bytes())
}

/// The name of the image that a temporary is to become.
fn target_of(name: &OsStr) -> Option<&[u8]> {
    let inner = name.as_bytes().strip_prefix(b".")?;
    let (rest, random) = inner.split_at_checked(inner.len().checked_sub(RANDOM_DIGITS)?)?;
    let target = rest.strip_suffix(INFIX.as_bytes())?;
    (random.iter().all(u8::is_ascii_hexdigit) && !target.is_empty()).then_some(target)
}

/// A number that no other run is likely to have: the standard library seeds its hashers from the kernel.
fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}
