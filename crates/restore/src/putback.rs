//! Files that the program had open for writing are put back as they were, all or none with its memory.
//!
//! | step | module | what |
//! |---|---|---|
//! | decide | [`decide`] | which files are put back, which contents the program gets privately, what is refused |
//! | examine | `examine`, `others` | the file against its saved content, block by block; nobody else may have it open for writing |
//! | journal | [`journal`] | the old bytes of what will change, in the image's folder, on the disk before any file is touched |
//! | register | `registry` | a link to the image where every command of this user finds it |
//! | apply | `apply` | in place, each file on the disk before the next |
//! | commit | [`PutBack::commit`] | when the program is complete and about to be let go, the journal is removed: that moment decides |
//! | undo | `undo`, [`recover`] | before it, whatever fails; after a death of `resume`, by whichever command comes next |
//!
//! A file is put back *under its name*: where another file has taken the name since (a log was rotated), that one gets the content;
//! where there is none, it is made anew, with its mode and owner. Inodes that are there stay.
//!
//! While files wait to be undone or kept, SIGINT and its like are held back: they end `resume` in order, files undone first.

mod apply;
pub mod decide;
mod error;
mod examine;
mod file;
pub mod journal;
mod others;
pub mod recover;
mod registry;
mod rights;
mod saved;
mod undo;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rewake_image::records::FileContent;
use rewake_image::{Image, PageReader};
use rewake_linux::signal::{HeldSignals, SignalSet};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

pub use error::PutBackError;
pub use examine::differs;
pub use recover::Undone;
pub use saved::Saved;

use crate::streams::Streams;
use examine::Seen;
use journal::{Journal, JournalWriter, NAME, NEW_NAME, Progress};
use recover::Found;
use registry::Link;
pub(crate) use rights::InvokersRights;
pub use rights::give_up_rights_of_our_file;

/// What people and schedulers end a command with.
const HELD: [i32; 8] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGXCPU,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
];
/// How often a journal is begun anew when a dead command's is in the way.
const TRIES: u32 = 8;

/// Files being put back. Dropped before its commit it undoes everything.
#[derive(Debug, Default)]
pub struct PutBack {
    active: Option<Active>,
    held: Option<HeldSignals>,
}

/// A journal that is on the disk.
#[derive(Debug)]
struct Active {
    image: PathBuf,
    folder: OwnedFd,
    /// Locked: its `resume` lives.
    file: File,
    journal: Journal,
    link: Option<Link>,
    /// By entry: the content it gets, and what the file was when last looked at.
    contents: Vec<u32>,
    seen: Vec<Option<Seen>>,
}

impl PutBack {
    /// Compares the files of these contents with what is there now and writes the journal. Nothing is changed yet.
    ///
    /// # Errors
    /// When others write to a file, when it could not be put back, and those of reading and writing; no journal is left then.
    pub fn prepare(
        dir: &Path,
        image: &Image,
        reader: &PageReader,
        ids: &BTreeSet<u32>,
        streams: &Streams,
    ) -> Result<Self, PutBackError> {
        if ids.is_empty() {
            return Ok(Self::default());
        }
        let signals = HELD.into_iter().fold(SignalSet::EMPTY, SignalSet::with);
        let held = Some(HeldSignals::hold(signals));
        let _rights = InvokersRights::assume()?;
        let dir = dir.canonicalize().map_err(PutBackError::io("open", dir))?;
        let new = NewJournal::begin(dir)?;
        let path = new.image.join(NEW_NAME);
        let file = new.file.try_clone().map_err(PutBackError::io("dup", &path))?;
        let mut writer = JournalWriter::begin(file, ids.len()).map_err(PutBackError::io("write", &path))?;
        let mut saved = Saved::new(reader)?;
        let (mut contents, mut seen) = (Vec::new(), Vec::new());
        for content in image.file_contents.iter().filter(|content| ids.contains(&content.id)) {
            check_signals(held.as_ref())?;
            if let Some(found) = examine::examine(content, &mut saved, (&mut writer, &path), streams)? {
                writer.entry(found.entry);
                contents.push(content.id);
                seen.push(found.seen);
            }
        }
        if writer.is_empty() {
            return Ok(Self::default());
        }
        let active = new.complete(writer, contents, seen)?;
        Ok(Self { active: Some(active), held })
    }

    /// Changes the files.
    ///
    /// # Errors
    /// When one changed meanwhile, and what the operating system refuses. The files are undone when this is dropped.
    pub fn apply(&mut self, image: &Image, reader: &PageReader) -> Result<(), PutBackError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let _rights = InvokersRights::assume()?;
        let mut saved = Saved::new(reader)?;
        for index in 0..active.contents.len() {
            check_signals(self.held.as_ref())?;
            let id = active.contents[index];
            let content = image.file_contents.iter().find(|content| content.id == id);
            let content: &FileContent = content.expect("it was found there before");
            active.note(index, Progress::Applying)?;
            let entry = &active.journal.entries[index];
            active.seen[index] = Some(apply::apply(entry, active.seen[index], content, &mut saved)?);
            active.note(index, Progress::Applied)?;
        }
        Ok(())
    }

    /// Whether to go on: a signal may have come that asks for the end.
    ///
    /// # Errors
    /// [`PutBackError::Interrupted`].
    pub fn check(&self) -> Result<(), PutBackError> {
        check_signals(self.held.as_ref())
    }

    /// The last moment for signals to be ours: from now on they are the program's.
    ///
    /// # Errors
    /// As [`PutBack::check`].
    pub fn let_signals_through(&mut self) -> Result<(), PutBackError> {
        self.check()?;
        self.held = None;
        Ok(())
    }

    /// Keeps the files as they are now, whatever comes.
    ///
    /// # Errors
    /// When somebody changed one of them meanwhile, or the journal cannot be removed; nothing is kept then.
    pub fn commit(&mut self) -> Result<(), PutBackError> {
        let Some(active) = &self.active else { return Ok(()) };
        let _rights = InvokersRights::assume()?;
        for (entry, seen) in active.journal.entries.iter().zip(&active.seen) {
            let now =
                std::fs::symlink_metadata(&entry.path).map_err(PutBackError::io("stat", &entry.path))?;
            if Some(Seen::of(&now)) != *seen {
                return Err(PutBackError::Moving { path: entry.path.clone() });
            }
        }
        recover::take_away(&active.folder).map_err(PutBackError::io("remove", &active.image.join(NAME)))?;
        if let Some(link) = self.active.take().and_then(|active| active.link) {
            link.remove();
        }
        Ok(())
    }

    /// Makes the files what they were.
    ///
    /// # Errors
    /// What the operating system refuses. The journal stays, and the next command tries again.
    pub fn roll_back(&mut self) -> Result<Option<Undone>, PutBackError> {
        let Some(active) = self.active.take() else { return Ok(None) };
        let _rights = InvokersRights::assume()?;
        let Active { image, folder, file, journal, link, .. } = active;
        let undone = recover::retire(&folder, &image, &file, journal)?;
        if let Some(link) = link {
            link.remove();
        }
        Ok(Some(undone))
    }

    /// The files, in order of their contents.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let entries = self.active.iter().flat_map(|active| &active.journal.entries);
        entries.map(|entry| entry.path.clone()).collect()
    }
}

impl Drop for PutBack {
    fn drop(&mut self) {
        if let Err(error) = self.roll_back() {
            tracing::error!(%error, "files could not be made as they were; the next command tries again");
        }
    }
}

impl Active {
    fn note(&mut self, index: usize, progress: Progress) -> Result<(), PutBackError> {
        let path = self.image.join(NAME);
        self.journal.note(&self.file, index, progress).map_err(PutBackError::io("write", &path))
    }
}

fn check_signals(held: Option<&HeldSignals>) -> Result<(), PutBackError> {
    held.and_then(HeldSignals::came).map_or(Ok(()), |signal| Err(PutBackError::Interrupted { signal }))
}

/// A journal that is being written. Dropped before it is complete it is removed.
struct NewJournal {
    image: PathBuf,
    folder: OwnedFd,
    file: File,
    complete: bool,
}

impl NewJournal {
    fn begin(image: PathBuf) -> Result<Self, PutBackError> {
        let path = image.join(NEW_NAME);
        let folder = recover::open_image(&image).map_err(PutBackError::io("open", &image))?;
        for _ in 0..TRIES {
            if recover::image(&image)? == Found::Live {
                break;
            }
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = match rustix::fs::openat(&folder, NEW_NAME, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => File::from(file),
                Err(Errno::EXIST) => continue,
                Err(error) => return Err(PutBackError::io("create", &path)(error)),
            };
            // Between the two, another command may have taken it for a dead one's.
            let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            if locked && recover::leads_to(&folder, NEW_NAME, &file) {
                return Ok(Self { image, folder, file, complete: false });
            }
        }
        Err(PutBackError::Locked { image })
    }

    fn complete(
        mut self,
        writer: JournalWriter,
        contents: Vec<u32>,
        seen: Vec<Option<Seen>>,
    ) -> Result<Active, PutBackError> {
        let path = self.image.join(NAME);
        let (file, journal) = writer
            .finish(recover::origin())
            .map_err(PutBackError::io("write", &self.image.join(NEW_NAME)))?;
        let link = registry::register(&self.image)
            .inspect_err(
                |error| tracing::warn!(%error, "only commands on the image itself will see its journal"),
            )
            .ok();
        let named = rustix::fs::renameat(&self.folder, NEW_NAME, &self.folder, NAME)
            .and_then(|()| rustix::fs::fsync(&self.folder));
        if let Err(error) = named {
            // Nothing was changed: the journal may go, under whichever name it has.
            let _ = rustix::fs::unlinkat(&self.folder, NAME, AtFlags::empty());
            link.iter().for_each(Link::remove);
            return Err(PutBackError::io("rename", &path)(error));
        }
        self.complete = true;
        let folder = self.folder.try_clone().map_err(PutBackError::io("dup", &self.image))?;
        Ok(Active { image: self.image.clone(), folder, file, journal, link, contents, seen })
    }
}

impl Drop for NewJournal {
    fn drop(&mut self) {
        if !self.complete {
            // What stays is locked by nobody, and cleared by the next command.
            let _ = rustix::fs::unlinkat(&self.folder, NEW_NAME, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests;
