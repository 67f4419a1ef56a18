//! The magic links of `/proc/PID`: `exe`, `cwd`, `root`, `fd/N`, `map_files/...`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirEntryExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Stat};

use super::{Proc, ProcError};

/// What `stat` tells of a file, as far as it identifies one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Device number of a device file.
    pub rdev: u64,
    /// Length in bytes.
    pub size: u64,
    /// Number of names; 0 for an unlinked file.
    pub links: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last change of content, seconds since 1970.
    pub mtime_s: i64,
    /// Nanoseconds of that time.
    pub mtime_ns: u32,
}

impl FileStat {
    /// Whether both are the same file, whatever happened to its content.
    #[must_use]
    pub const fn same_file(&self, other: &Self) -> bool {
        self.device == other.device && self.inode == other.inode
    }

    /// The type bits of the mode (`S_IFREG`, `S_IFIFO`...).
    #[must_use]
    pub const fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Of the file that a path leads to, links followed.
    ///
    /// # Errors
    /// What `stat` says.
    pub fn of_path(path: &[u8]) -> std::io::Result<Self> {
        Ok(Self::from_stat(&rustix::fs::stat(path)?))
    }

    /// Of an open file.
    ///
    /// # Errors
    /// What `fstat` says.
    pub fn of_file(file: impl std::os::fd::AsFd) -> std::io::Result<Self> {
        Ok(Self::from_stat(&rustix::fs::fstat(file)?))
    }

    /// Of what a system call told, for comparisons with what a link said.
    #[must_use]
    pub fn from_stat(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            mode: stat.st_mode,
            rdev: stat.st_rdev,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            links: stat.st_nlink,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_s: stat.st_mtime,
            mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        }
    }
}

/// Where a magic link leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Path, without ` (deleted)` when `deleted` is set; or the name of an object without path: `pipe:[12]`, `anon_inode:[eventfd]`.
    pub target: Vec<u8>,
    /// Whether the file has no name any more at this path.
    pub deleted: bool,
    /// Whether opening `target` leads to this very file, seen from our own root and mounts. False for objects without path.
    pub reachable: bool,
    /// `stat` through the link.
    pub stat: FileStat,
}

impl Proc {
    /// Follows a magic link of the directory (`exe`, `cwd`, `root`, `fd/3`).
    ///
    /// The suffix ` (deleted)` is believed only when no file of that full name is the one meant.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart. A kernel thread has no `exe`: [`ProcError::Missing`].
    pub fn link(&self, file: &str) -> Result<Link, ProcError> {
        let shown = self.link_text(file)?;
        let stat =
            rustix::fs::statat(self, file, AtFlags::empty()).map_err(|errno| self.error(file, errno))?;
        Ok(judge(shown, FileStat::from_stat(&stat)))
    }

    /// What a magic link shows, unjudged.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn link_text(&self, file: &str) -> Result<Vec<u8>, ProcError> {
        let shown =
            rustix::fs::readlinkat(self, file, Vec::new()).map_err(|errno| self.error(file, errno))?;
        Ok(shown.into_bytes())
    }
}

impl Link {
    /// Gives a file that was deleted under its name, but lives on under another one (a hard link), that name: if it is found in one
    /// of these folders or in the one it was in. Looks at no more than some ten thousand names.
    pub fn find_other_name(&mut self, folders: &[&[u8]]) {
        if !self.deleted || self.stat.links == 0 || !self.target.starts_with(b"/") {
            return;
        }
        let own = self.target.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash.max(1));
        let own = self.target[..own].to_vec();
        let folders = std::iter::once(own.as_slice()).chain(folders.iter().copied());
        let found = folders.filter_map(|folder| name_in(folder, &self.stat)).next();
        if let Some(name) = found {
            *self = Self { target: name, deleted: false, reachable: true, stat: self.stat };
        }
    }
}

/// A name of the file in that folder.
fn name_in(folder: &[u8], file: &FileStat) -> Option<Vec<u8>> {
    const MOST: usize = 10_000;
    let path = Path::new(OsStr::from_bytes(folder));
    let entries = std::fs::read_dir(path).ok()?.take(MOST).flatten();
    // The listing tells the inode; whether it is the file itself, only a look at it.
    let mut names = entries.filter(|entry| entry.ino() == file.inode).map(|entry| entry.path());
    let name = names.find(|name| {
        FileStat::of_path(name.as_os_str().as_bytes()).is_ok_and(|found| found.same_file(file))
    })?;
    Some(name.into_os_string().into_encoded_bytes())
}

/// Tells a deleted file from one whose name ends like that.
fn judge(shown: Vec<u8>, stat: FileStat) -> Link {
    let leads_here = |path: &[u8]| {
        path.starts_with(b"/") && FileStat::of_path(path).is_ok_and(|found| found.same_file(&stat))
    };
    if leads_here(&shown) {
        return Link { target: shown, deleted: false, reachable: true, stat };
    }
    match shown.strip_suffix(b" (deleted)") {
        // The path without the suffix may lead to the same file again, by another hard link put in its place.
        Some(path) => {
            Link { target: path.to_vec(), deleted: !leads_here(path), reachable: leads_here(path), stat }
        }
        None => Link { target: shown, deleted: false, reachable: false, stat },
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn link_of(file: &File) -> Link {
        Proc::own().unwrap().link(&format!("fd/{}", file.as_raw_fd())).unwrap()
    }

    #[test]
    fn deleted_is_judged_by_identity() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("plain");
        let file = File::create(&path).unwrap();
        let link = link_of(&file);
        assert_eq!((link.deleted, link.reachable), (false, true));
        assert_eq!(link.target, path.as_os_str().as_bytes());

        std::fs::remove_file(&path).unwrap();
        let link = link_of(&file);
        assert_eq!((link.deleted, link.reachable, link.stat.links), (true, false, 0));
        assert_eq!(link.target, path.as_os_str().as_bytes());

        // Another file of the same name is not it.
        std::fs::write(&path, "other").unwrap();
        assert!(link_of(&file).deleted);
    }

    #[test]
    fn another_name_is_found_where_it_was_or_where_told() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let (path, other) = (folder.join("one"), folder.join("two"));
        let file = File::create(&path).unwrap();
        std::fs::hard_link(&path, &other).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut link = link_of(&file);
        assert!(link.deleted);
        link.find_other_name(&[]);
        assert_eq!((link.deleted, link.target.as_slice()), (false, other.as_os_str().as_bytes()));

        let far = elsewhere.path().canonicalize().unwrap().join("three");
        std::fs::rename(&other, &far).unwrap();
        std::fs::hard_link(&far, &path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut link = link_of(&file);
        let before = link.clone();
        link.find_other_name(&[b"/no such folder"]);
        assert_eq!(link.deleted, before.deleted);
        link.find_other_name(&[far.parent().unwrap().as_os_str().as_bytes()]);
        assert_eq!((link.deleted, link.target.as_slice()), (false, far.as_os_str().as_bytes()));
    }

    #[test]
    fn a_file_may_be_named_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("x (deleted)");
        let file = File::create(&path).unwrap();
        let link = link_of(&file);
        assert_eq!((link.deleted, link.reachable), (false, true));
        assert_eq!(link.target, path.as_os_str().as_bytes());
    }

    #[test]
    fn objects_without_path() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let link = Proc::own().unwrap().link(&format!("fd/{}", reader.as_raw_fd())).unwrap();
        assert!(link.target.starts_with(b"pipe:["));
        assert_eq!((link.deleted, link.reachable), (false, false));
        assert_eq!(link.stat.file_type(), libc::S_IFIFO);
    }
}
