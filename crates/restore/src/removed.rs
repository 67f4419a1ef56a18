//! Where folders and fifos that had no name any more are made anew: decided before anything is. The program makes each, opens it and
//! removes it again at once.
//!
//! The folder that is there already is opened once, on a path without symbolic links; all else is done relative to it, one name at a
//! time. So whoever may move folders above it meanwhile cannot lead us elsewhere.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rewake_image::Image;
use rewake_image::records::{RemovedFile, path_of};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::RestoreError;

/// Bytes of a name that are kept when something has to be put behind them.
const NAME_KEPT: usize = 200;

/// Where one is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its path, for people.
    pub path: Vec<u8>,
    /// The folder that is there already: an index into [`Places::folders`].
    pub outside: usize,
    /// The names on the way from there, its own last. Of one that is in no other removed folder the others are gone too, and are made
    /// for that moment as well.
    pub names: Vec<Vec<u8>>,
}

/// The places.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// By the id of the removed file.
    pub by_id: BTreeMap<u32, Place>,
    /// Folders that are there, open (`O_PATH`).
    pub folders: Vec<Arc<OwnedFd>>,
}

impl Places {
    /// How many folders are made besides the removed ones themselves.
    #[must_use]
    pub fn around(&self, image: &Image) -> usize {
        let apart = image.removed_files.iter().filter(|file| file.parent.is_none());
        apart.filter_map(|file| Some(self.by_id.get(&file.id)?.names.len().saturating_sub(1))).sum()
    }
}

/// Decides for all of the image: the very name if it is free, else another one beside it, else in another folder.
///
/// # Errors
/// When there is no folder where one could be made.
pub fn places(image: &Image, dir: &Path) -> Result<Places, RestoreError> {
    let mut places = Places::default();
    for file in &image.removed_files {
        let inside = file.parent.and_then(|parent| places.by_id.get(&parent));
        let place = match inside {
            Some(folder) => {
                let names = folder.names.iter().cloned().chain([file.name().to_vec()]).collect();
                let path = bytes(path_of(&folder.path).join(path_of(file.name())));
                Place { path, outside: folder.outside, names }
            }
            None => {
                let (folder, path, names) = place(file, dir).ok_or_else(|| RestoreError::Unsupported {
                    pid: image.root().pid,
                    object: shown(file),
                    reason:
                        "it was removed while the program used it, and there is no folder to make it in again"
                            .to_owned(),
                })?;
                places.folders.push(Arc::new(folder));
                Place { path, outside: places.folders.len() - 1, names }
            }
        };
        places.by_id.insert(file.id, place);
    }
    Ok(places)
}

fn bytes(path: PathBuf) -> Vec<u8> {
    path.into_os_string().into_vec()
}

/// What people should know of them.
#[must_use]
pub fn notes(image: &Image, places: &Places) -> Vec<String> {
    let elsewhere = |file: &RemovedFile| {
        let place = path_of(&places.by_id.get(&file.id)?.path);
        let moved = file.parent.is_none() && Some(place) != path(file);
        moved.then(|| {
            format!("{}, which was removed, comes back as if it had been {}", shown(file), place.display())
        })
    };
    image.removed_files.iter().filter_map(elsewhere).collect()
}

fn path(file: &RemovedFile) -> Option<&Path> {
    file.identity.as_ref().map(|identity| identity.as_path())
}

fn shown(file: &RemovedFile) -> String {
    let kind = if file.is_folder() { "folder" } else { "fifo" };
    format!("{kind} {}", path(file).unwrap_or(Path::new("")).display())
}

/// The folder that is there, the whole path, and the names from there on.
type Found = (OwnedFd, Vec<u8>, Vec<Vec<u8>>);

fn place(file: &RemovedFile, dir: &Path) -> Option<Found> {
    let path = path(file)?;
    if let Some((folder, names)) = outside(path)
        && names.first().is_some_and(|first| is_free(&folder, first))
        && may_make_in(&folder)
    {
        return Some((folder, bytes(path.to_path_buf()), names));
    }
    let name = file.name();
    let mut other = name[..name.len().min(NAME_KEPT)].to_vec();
    other.extend(format!(".rewake-{}-{}", std::process::id(), file.id).into_bytes());
    let temporary = std::env::temp_dir();
    let beside = path.parent().map(|folder| (folder, open_as_it_was(folder).ok()));
    // That these are reached by a symbolic link is the choice of who calls.
    let elsewhere =
        [temporary.as_path(), dir].map(|folder| (folder, open(folder, ResolveFlags::empty()).ok()));
    for (folder, open) in beside.into_iter().chain(elsewhere) {
        let Some(open) = open.filter(|open| folder.is_absolute() && may_make_in(open)) else { continue };
        if let Some(name) = [name, &other].into_iter().find(|name| is_free(&open, name)) {
            return Some((open, bytes(folder.join(path_of(name))), vec![name.to_vec()]));
        }
    }
    None
}

/// The innermost folder on the way to `path` that is there, and the names from there on.
fn outside(path: &Path) -> Option<(OwnedFd, Vec<Vec<u8>>)> {
    for folder in path.ancestors().skip(1) {
        let open = match open_as_it_was(folder) {
            Ok(open) => open,
            Err(Errno::NOENT) => continue,
            Err(_) => return None,
        };
        let name = |part: Component<'_>| match part {
            Component::Normal(name) => Some(name.as_bytes().to_vec()),
            _ => None,
        };
        let names = path.strip_prefix(folder).ok()?.components().map(name).collect::<Option<_>>()?;
        return Some((open, names));
    }
    None
}

/// A folder by the path that the kernel told: there was no symbolic link in it, and where there is one now it leads elsewhere.
pub(crate) fn open_as_it_was(folder: &Path) -> Result<OwnedFd, Errno> {
    open(folder, ResolveFlags::NO_SYMLINKS)
}

fn open(folder: &Path, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, folder, flags, Mode::empty(), resolve)
}

/// Whether something could be made there, as far as names go.
fn is_free(folder: &OwnedFd, name: &[u8]) -> bool {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_err_and(|errno| errno == Errno::NOENT)
}

fn may_make_in(folder: &OwnedFd) -> bool {
    rustix::fs::accessat(folder, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

/// What a failed restore made and could not remove again.
#[derive(Debug, Default)]
pub struct Left(RefCell<Vec<String>>);

impl Left {
    /// Removes what is at the end of `names` from `outside` on, if it is still what was made; what stays is remembered.
    pub fn remove(&self, outside: &OwnedFd, names: &[Vec<u8>], folder: bool, path: &Path) {
        let removed = remove(outside, names, folder);
        tracing::debug!(path = %path.display(), ?removed, "left by a restore that failed");
        if let Err(error) = removed {
            self.0.borrow_mut().push(format!("{} ({error})", path.display()));
        }
    }

    /// The failure, with what stays after it.
    pub fn name<T>(self, outcome: Result<T, RestoreError>) -> Result<T, RestoreError> {
        let left = self.0.into_inner();
        match outcome {
            Err(error) if !left.is_empty() => {
                Err(RestoreError::Left { error: Box::new(error), left: left.join(", ") })
            }
            outcome => outcome,
        }
    }
}

/// Whatever else is in its place by now stays, and is nobody's failure.
fn remove(outside: &OwnedFd, names: &[Vec<u8>], folder: bool) -> io::Result<()> {
    let Some((last, way)) = names.split_last() else { return Ok(()) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let removed = || {
        let mut inside = outside.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        for name in way {
            inside = rustix::fs::openat(&inside, name, flags, Mode::empty())?;
        }
        let (kind, how) = if folder {
            (FileType::Directory, AtFlags::REMOVEDIR)
        } else {
            (FileType::Fifo, AtFlags::empty())
        };
        let now = rustix::fs::statat(&inside, last, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(now.st_mode) == kind {
            rustix::fs::unlinkat(&inside, last, how)?;
        }
        Ok(())
    };
    match removed() {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use rewake_image::records::FileIdentity;
    use rewake_image::sample;

    use super::*;

    #[test]
    fn the_very_name_then_one_beside_it_then_another_folder() {
        let top = std::env::temp_dir().canonicalize().expect("a path");
        let top = top.join(format!("rewake-removed-test-{}", std::process::id()));
        fs::create_dir(&top).expect("a folder");
        let mut image = sample::image();
        image.removed_files = vec![
            file(0, top.join("free"), None),
            file(1, top.join("other name of the folder"), Some(0)),
            file(2, top.join("taken"), None),
            file(3, top.join("gone/too/inside"), None),
            file(4, top.join("taken/inside"), None),
        ];
        fs::write(top.join("taken"), "").expect("a file");
        let places = places(&image, Path::new("/nowhere")).expect("places");
        let path = |id: u32| path_of(&places.by_id[&id].path).to_path_buf();
        let names = |id: u32| places.by_id[&id].names.iter().map(|name| path_of(name)).collect::<Vec<_>>();
        let outside = |id: u32| {
            let there =
                rustix::fs::fstat(&places.folders[places.by_id[&id].outside]).expect("its facts").st_ino;
            let is = |folder: &Path| fs::metadata(folder).expect("its facts").ino() == there;
            (is(&top), is(&std::env::temp_dir()))
        };
        assert_eq!(path(0), top.join("free"));
        assert_eq!(path(1), top.join("free/other name of the folder"));
        assert!(path(2).parent() == Some(&top) && path(2) != top.join("taken"));
        assert_eq!(path(3), top.join("gone/too/inside"));
        assert_eq!(names(1), [Path::new("free"), Path::new("other name of the folder")]);
        assert_eq!(names(3), [Path::new("gone"), Path::new("too"), Path::new("inside")]);
        assert_eq!([0, 1, 2, 3].map(outside), [(true, false); 4]);
        assert!(path(4).parent() == Some(&std::env::temp_dir()) && names(4).len() == 1);
        assert_eq!((outside(4), places.around(&image)), ((false, true), 2));
        let notes = notes(&image, &places);
        assert!(notes.len() == 2 && notes[0].contains("taken"), "{notes:?}");
        fs::remove_dir_all(&top).expect("removed");
    }

    fn file(id: u32, path: PathBuf, parent: Option<u32>) -> RemovedFile {
        let path = path.into_os_string().into_vec();
        let identity = Some(FileIdentity { path, mode: 0o040_700, ..FileIdentity::default() });
        RemovedFile { id, identity, parent, ..RemovedFile::default() }
    }

    fn folder(name: &str) -> PathBuf {
        let top = std::env::temp_dir().canonicalize().expect("a path");
        let top = top.join(format!("rewake-removed-{name}-{}", std::process::id()));
        fs::create_dir(&top).expect("a folder");
        top
    }

    #[test]
    fn a_symbolic_link_on_the_way_is_not_followed() {
        let top = folder("link");
        fs::create_dir(top.join("victim")).expect("a folder");
        symlink(top.join("victim"), top.join("a")).expect("a link");
        let mut image = sample::image();
        image.removed_files =
            vec![file(0, top.join("a/gone/inside"), None), file(1, top.join("a/one"), None)];
        let places = places(&image, Path::new("/nowhere")).expect("places");
        for place in places.by_id.values() {
            assert_eq!(path_of(&place.path).parent(), Some(std::env::temp_dir().as_path()));
        }
        fs::remove_dir_all(&top).expect("removed");
    }

    #[test]
    fn what_is_made_is_removed_where_it_was_made_and_nowhere_else() {
        let top = folder("moved");
        fs::create_dir_all(top.join("a/b/c")).expect("folders");
        let outside = open_as_it_was(&top.join("a")).expect("open");
        // Somebody moves what we made in, and puts a link there to something alike.
        fs::rename(top.join("a"), top.join("moved")).expect("moved");
        fs::create_dir_all(top.join("victim/b/c")).expect("folders");
        symlink(top.join("victim"), top.join("a")).expect("a link");
        let names = [b"b".to_vec(), b"c".to_vec()];
        let left = Left::default();
        left.remove(&outside, &names, true, Path::new("b/c"));
        assert!(!top.join("moved/b/c").exists() && top.join("victim/b/c").exists());
        // A link to a folder is none.
        fs::rename(top.join("moved/b"), top.join("moved/real")).expect("moved");
        symlink(top.join("victim/b"), top.join("moved/b")).expect("a link");
        left.remove(&outside, &names, true, Path::new("b/c"));
        left.remove(&outside, &names[..1], true, Path::new("b"));
        assert!(top.join("victim/b/c").exists() && top.join("moved/b").is_symlink());
        assert!(left.name(Ok(())).is_ok());
        fs::remove_dir_all(&top).expect("removed");
    }

    #[test]
    fn what_cannot_be_removed_is_named_with_the_failure() {
        let top = folder("left");
        fs::create_dir(top.join("made")).expect("a folder");
        fs::write(top.join("made/file"), "").expect("a file");
        let outside = open_as_it_was(&top).expect("open");
        let left = Left::default();
        left.remove(&outside, &[b"made".to_vec()], true, &top.join("made"));
        let why = RestoreError::PidForbidden { pid: 7 };
        let error = left.name::<()>(Err(why)).expect_err("the failure");
        let (text, path) = (error.to_string(), top.join("made").display().to_string());
        assert!(text.contains("choosing it") && text.contains(&path) && text.contains("not empty"), "{text}");
        assert!(error.remedy().is_some_and(|remedy| remedy.contains("rmdir")));
        fs::remove_dir_all(&top).expect("removed");
    }
}
