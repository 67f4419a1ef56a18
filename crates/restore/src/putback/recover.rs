//! Journals of those that did not come to their end: found, judged, carried out, put away.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rewake_linux::host::Host;
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RawMode, Stat};
use rustix::io::Errno;

use super::error::PutBackError;
use super::journal::{Journal, NAME, NEW_NAME, Origin, Progress};
use super::registry;
use super::rights::InvokersRights;
use super::undo::{Fate, undo};

/// Others may write.
const OTHERS_WRITE: RawMode = 0o022;

/// Files that were made what they had been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undone {
    /// The image they were to be put back from.
    pub image: PathBuf,
    /// How many are what they were again.
    pub files: usize,
    /// Those that others changed meanwhile, and how: they were left alone.
    pub foreign: Vec<(PathBuf, &'static str)>,
    /// The journal with their old bytes, if there are any such.
    pub kept: Option<PathBuf>,
}

/// What was found in an image.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// No journal, or only what a dead command had begun to write.
    Nothing,
    /// The journal of a `resume` that lives.
    Live,
    /// A journal, and it has been carried out.
    Undone(Undone),
}

/// Carries out all journals that wait, wherever their images are. To be called by every command as it starts: with nothing to do it
/// costs a few system calls.
#[must_use]
pub fn pending() -> Vec<Result<Undone, PutBackError>> {
    let Ok(_rights) = InvokersRights::assume() else { return Vec::new() };
    let mut out = Vec::new();
    for link in registry::links() {
        match look(&link.image) {
            Ok(Found::Live) => {}
            Ok(Found::Nothing) if !link.image.is_dir() && !link.is_old() => {}
            Ok(Found::Nothing) => link.remove(),
            Ok(Found::Undone(undone)) => {
                link.remove();
                out.push(Ok(undone));
            }
            Err(error) => out.push(Err(error)),
        }
    }
    out
}

/// Carries out the journal of one image, if it has one.
///
/// # Errors
/// When it is not ours to carry out, or the operating system does not let us; it stays then.
pub fn image(dir: &Path) -> Result<Found, PutBackError> {
    let _rights = InvokersRights::assume()?;
    look(dir)
}

fn look(dir: &Path) -> Result<Found, PutBackError> {
    let Ok(folder) = open_image(dir) else { return Ok(Found::Nothing) };
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    // A journal changes its name once, so it is looked for again under the first one it could have got meanwhile.
    for name in [NAME, NEW_NAME, NAME] {
        let Some(file) = open_journal(&folder, &dir, name)? else { continue };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(Found::Live);
        }
        if !leads_to(&folder, name, &file) {
            continue;
        }
        if name == NEW_NAME {
            // Not complete, so nothing was changed.
            let _ = rustix::fs::unlinkat(&folder, name, AtFlags::empty());
            return Ok(Found::Nothing);
        }
        return carry_out(&folder, &dir, &file);
    }
    Ok(Found::Nothing)
}

fn carry_out(folder: &OwnedFd, dir: &Path, file: &File) -> Result<Found, PutBackError> {
    let path = dir.join(NAME);
    let stuck = |source| PutBackError::Stuck { image: dir.to_owned(), source: Box::new(source) };
    let journal = Journal::read(file).map_err(PutBackError::io("read", &path)).map_err(stuck)?;
    let inode = file.metadata().map_err(PutBackError::io("stat", &path)).map_err(stuck)?.ino();
    if inode != journal.inode {
        tracing::debug!(path = %path.display(), "a copy of an undo journal: of no meaning here");
        return Ok(Found::Nothing);
    }
    if origin().host != journal.origin.host {
        let host = journal.origin.host;
        return Err(PutBackError::Elsewhere { image: dir.to_owned(), host });
    }
    retire(folder, dir, file, journal).map(Found::Undone).map_err(stuck)
}

/// Makes the files of a journal what they were, and takes it away; or puts it aside, if others changed some of them meanwhile.
///
/// # Errors
/// What the operating system refuses. The journal stays, and this can be tried again.
pub(super) fn retire(
    folder: &OwnedFd,
    dir: &Path,
    file: &File,
    mut journal: Journal,
) -> Result<Undone, PutBackError> {
    let path = dir.join(NAME);
    let same_boot = origin().boot == journal.origin.boot;
    let mut undone = Undone { image: dir.to_owned(), files: 0, foreign: Vec::new(), kept: None };
    let mut failed = None;
    for index in 0..journal.entries.len() {
        let progress = journal.progress[index];
        let entry = &journal.entries[index];
        match undo(entry, progress, same_boot, file) {
            Ok(Fate::Untouched) => {}
            Ok(Fate::Undone) => undone.files += 1,
            Ok(Fate::Foreign(how)) => {
                tracing::debug!(path = %entry.path.display(), how, "left as it is");
                undone.foreign.push((entry.path.clone(), how));
                continue;
            }
            Err(error) => {
                failed.get_or_insert(error);
                continue;
            }
        }
        // Only a hint for the next try.
        let _ = journal.note(file, index, Progress::Undone);
    }
    if let Some(error) = failed {
        return Err(error);
    }
    if undone.foreign.is_empty() {
        take_away(folder).map_err(PutBackError::io("remove", &path))?;
    } else {
        undone.kept = Some(put_aside(folder, dir).map_err(PutBackError::io("rename", &path))?);
    }
    Ok(undone)
}

/// Removes the journal: this moment decides.
pub(super) fn take_away(folder: &OwnedFd) -> io::Result<()> {
    rustix::fs::unlinkat(folder, NAME, AtFlags::empty())?;
    if let Err(error) = rustix::fs::fsync(folder) {
        // It is decided all the same; only a loss of power could bring the journal back.
        tracing::warn!(%error, "fsync failed (folder of the image)");
    }
    Ok(())
}

fn put_aside(folder: &OwnedFd, dir: &Path) -> io::Result<PathBuf> {
    let free = (1u32..).map(|number| format!("{NAME}.kept-{number}")).find(|name| {
        rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_err_and(|error| error == Errno::NOENT)
    });
    let name = free.ok_or(io::ErrorKind::AlreadyExists)?;
    rustix::fs::renameat(folder, NAME, folder, &name)?;
    rustix::fs::fsync(folder)?;
    Ok(dir.join(name))
}

/// Here and now.
pub(super) fn origin() -> Origin {
    match Host::here() {
        Ok(host) => Origin { host: host.machine_id.unwrap_or(host.hostname), boot: host.boot_id },
        Err(_) => Origin::default(),
    }
}

/// Opens an image's folder.
pub(super) fn open_image(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, dir, flags, Mode::empty())?)
}

/// Opens a journal that we wrote ourselves; nobody else's is ever carried out with our rights.
fn open_journal(folder: &OwnedFd, dir: &Path, name: &str) -> Result<Option<File>, PutBackError> {
    let path = dir.join(name);
    let facts = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(facts) => facts,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(PutBackError::io("stat", &path)(error)),
    };
    if FileType::from_raw_mode(facts.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    if !is_ours(&facts) {
        return match name {
            NAME => Err(PutBackError::NotOurs { image: dir.to_owned(), owner: facts.st_uid }),
            _ => Ok(None),
        };
    }
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(PutBackError::io("open", &path)(error)),
    };
    let opened = rustix::fs::fstat(&file).map_err(PutBackError::io("stat", &path))?;
    Ok((opened.st_ino == facts.st_ino && is_ours(&opened)).then_some(file))
}

fn is_ours(facts: &Stat) -> bool {
    facts.st_uid == rustix::process::geteuid().as_raw()
        && facts.st_nlink == 1
        && facts.st_mode & OTHERS_WRITE == 0
}

/// Whether the name still leads to this very file.
pub(super) fn leads_to(folder: &OwnedFd, name: impl AsRef<OsStr>, file: &File) -> bool {
    let named = rustix::fs::statat(folder, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW);
    match (named, rustix::fs::fstat(file)) {
        (Ok(named), Ok(open)) => (named.st_dev, named.st_ino) == (open.st_dev, open.st_ino),
        _ => false,
    }
}
