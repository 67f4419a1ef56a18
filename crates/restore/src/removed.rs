//! Where folders and fifos that had no name any more are made anew: decided before anything is. The program makes each, opens it and
//! removes it again at once.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rewake_image::Image;
use rewake_image::records::{RemovedFile, path_of};
use rustix::fs::{Access, AtFlags, CWD};

use crate::error::RestoreError;

/// Bytes of a name that are kept when something has to be put behind them.
const NAME_KEPT: usize = 200;

/// Where one is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its name for a moment.
    pub path: Vec<u8>,
    /// Folders on the way there that are gone and are made for that moment as well, from the outside in.
    pub around: Vec<Vec<u8>>,
}

/// The places, by id.
pub type Places = BTreeMap<u32, Place>;

/// Decides for all of the image: the very name if it is free, else another one beside it, else in another folder.
///
/// # Errors
/// When there is no folder where one could be made.
pub fn places(image: &Image, dir: &Path) -> Result<Places, RestoreError> {
    let mut places = Places::new();
    for file in &image.removed_files {
        let inside = file.parent.and_then(|parent| places.get(&parent));
        let place = match inside {
            Some(folder) => {
                Place { path: bytes(path_of(&folder.path).join(path_of(file.name()))), around: Vec::new() }
            }
            None => place(file, dir).ok_or_else(|| RestoreError::Unsupported {
                pid: image.root().pid,
                object: shown(file),
                reason:
                    "it was removed while the program used it, and there is no folder to make it in again"
                        .to_owned(),
            })?,
        };
        places.insert(file.id, place);
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
        let place = path_of(&places.get(&file.id)?.path);
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

fn place(file: &RemovedFile, dir: &Path) -> Option<Place> {
    let path = path(file)?;
    let missing: Vec<&Path> = path.ancestors().skip(1).take_while(|folder| is_free(folder)).collect();
    if let Some(outside) = path.ancestors().nth(1 + missing.len())
        && is_free(path)
        && may_make_in(outside)
    {
        let around = missing.into_iter().rev().map(|folder| bytes(folder.to_path_buf())).collect();
        return Some(Place { path: bytes(path.to_path_buf()), around });
    }
    let name = file.name();
    let mut other = name[..name.len().min(NAME_KEPT)].to_vec();
    other.extend(format!(".rewake-{}-{}", std::process::id(), file.id).into_bytes());
    let other = OsString::from_vec(other);
    let names = [OsStr::from_bytes(name), other.as_os_str()];
    let elsewhere = [std::env::temp_dir(), dir.to_path_buf()];
    let folders = path.parent().into_iter().chain(elsewhere.iter().map(PathBuf::as_path));
    let folders = folders.filter(|folder| folder.is_absolute() && may_make_in(folder));
    let mut places = folders.flat_map(|folder| names.map(|name| folder.join(name)));
    let path = places.find(|place| is_free(place)).map(bytes)?;
    Some(Place { path, around: Vec::new() })
}

/// Whether something could be made there, as far as names go.
fn is_free(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

fn may_make_in(folder: &Path) -> bool {
    let access = rustix::fs::accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
    folder.is_dir() && access.is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rewake_image::records::FileIdentity;
    use rewake_image::sample;

    use super::*;

    #[test]
    fn the_very_name_then_one_beside_it_then_another_folder() {
        let top = std::env::temp_dir().canonicalize().expect("a path");
        let top = top.join(format!("rewake-removed-test-{}", std::process::id()));
        fs::create_dir(&top).expect("a folder");
        let file = |id, path: PathBuf, parent| {
            let path = path.into_os_string().into_vec();
            let identity = Some(FileIdentity { path, mode: 0o040_700, ..FileIdentity::default() });
            RemovedFile { id, identity, parent, ..RemovedFile::default() }
        };
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
        let path = |id: u32| path_of(&places[&id].path).to_path_buf();
        assert_eq!(path(0), top.join("free"));
        assert_eq!(path(1), top.join("free/other name of the folder"));
        assert!(path(2).parent() == Some(&top) && path(2) != top.join("taken"));
        assert_eq!(path(3), top.join("gone/too/inside"));
        let around: Vec<_> = places[&3].around.iter().map(|path| path_of(path)).collect();
        assert_eq!(around, [top.join("gone"), top.join("gone/too")]);
        assert!(path(4).parent() == Some(&std::env::temp_dir()) && places[&4].around.is_empty());
        let notes = notes(&image, &places);
        assert!(notes.len() == 2 && notes[0].contains("taken"), "{notes:?}");
        fs::remove_dir_all(&top).expect("removed");
    }
}
