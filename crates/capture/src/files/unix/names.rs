//! Addresses of sockets: the text that was bound, and the file that it made, if that is still there.

use std::collections::HashMap;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirEntryExt as _;
use std::path::Path;

use rewake_image::records::{UnixName, path_of};
use rewake_linux::proc::{FileStat, Proc};
use rustix::fs::FileType;

use super::look::Look;
use crate::files::Target;
use crate::files::kind::identity_of;

/// Looks at no more names in a folder.
const MOST: usize = 10_000;

/// Where texts may begin: the root directories and the working folders of the target's processes.
pub(super) struct Bases {
    roots: Vec<Vec<u8>>,
    folders: Vec<Vec<u8>>,
}

impl Bases {
    pub(super) fn of(target: Target<'_>) -> Self {
        let all = |link: &str| {
            let links = target.family.iter().filter_map(|pid| Proc::open_living(*pid).ok()?.link(link).ok());
            let mut paths: Vec<Vec<u8>> =
                links.filter(|link| !link.deleted).map(|link| link.target).collect();
            paths.sort();
            paths.dedup();
            paths
        };
        Self { roots: all("root"), folders: all("cwd") }
    }

    /// Those in which a text may lead to a file.
    fn for_text(&self, text: &[u8]) -> &[Vec<u8>] {
        if text.starts_with(b"/") { &self.roots } else { &self.folders }
    }
}

/// The addresses found so far.
pub(super) struct Names<'a> {
    bases: &'a Bases,
    ids: HashMap<(Vec<u8>, Option<u32>), u32>,
    pub(super) records: Vec<UnixName>,
}

impl<'a> Names<'a> {
    pub(super) fn new(bases: &'a Bases) -> Self {
        Self { bases, ids: HashMap::new(), records: Vec::new() }
    }

    /// The id of a socket's own address.
    pub(super) fn of(&mut self, look: &Look) -> Option<u32> {
        let text = look.name.as_ref()?;
        let key = (text.clone(), look.told.file);
        if let Some(id) = self.ids.get(&key) {
            return Some(*id);
        }
        let file = file_of(look, self.bases);
        let name = match file {
            Some((stat, path)) => {
                let (folder, renamed) = folder_of(text, &stat, &path, self.bases);
                UnixName {
                    folder,
                    renamed,
                    uid: stat.uid,
                    gid: stat.gid,
                    file: Some(identity_of(path, &stat)),
                    ..UnixName::default()
                }
            }
            None => UnixName::default(),
        };
        Some(self.push(key, UnixName { text: text.clone(), ..name }))
    }

    /// The id of an address of which nothing but the text is known: that of a socket that is gone.
    pub(super) fn of_text(&mut self, text: &[u8]) -> u32 {
        if let Some(known) = self.records.iter().find(|name| name.text == text) {
            return known.id;
        }
        self.push((text.to_vec(), None), UnixName { text: text.to_vec(), ..UnixName::default() })
    }

    fn push(&mut self, key: (Vec<u8>, Option<u32>), name: UnixName) -> u32 {
        let id = u32::try_from(self.records.len()).expect("fewer names than 2^32");
        self.records.push(UnixName { id, ..name });
        self.ids.insert(key, id);
        id
    }
}

/// The socket file of that path, not through a link.
fn socket_at(path: &[u8]) -> Option<FileStat> {
    let stat = FileStat::from_stat(&rustix::fs::lstat(path).ok()?);
    (FileType::from_raw_mode(stat.mode) == FileType::Socket).then_some(stat)
}

/// The file that a socket is bound to and its path; nothing if it is gone.
fn file_of(look: &Look, bases: &Bases) -> Option<(FileStat, Vec<u8>)> {
    let inode = look.told.file?;
    let text = look.name.as_ref()?;
    if let Some(bound) = &look.bound {
        let link = Proc::own().ok()?.link(&format!("fd/{}", bound.as_raw_fd())).ok()?;
        let there = socket_at(&link.target).filter(|there| there.same_file(&link.stat));
        return there.map(|there| (there, link.target));
    }
    // The kernel tells 32 bits of the inode to everybody.
    let is_it = |stat: &FileStat| stat.inode & u64::from(u32::MAX) == inode.into();
    let candidates: Vec<Vec<u8>> = bases.for_text(text).iter().map(|base| joined(base, text)).collect();
    let at = |path: &Vec<u8>| socket_at(path).filter(is_it).map(|stat| (stat, path.clone()));
    let found = candidates.iter().find_map(at);
    let (stat, path) = found.or_else(|| candidates.iter().find_map(|path| renamed(path, inode)))?;
    // As the kernel would tell it, without links on the way.
    let folder = path_of(&path).parent()?.canonicalize().ok()?;
    Some((stat, folder.join(path_of(&path).file_name()?).as_os_str().as_bytes().to_vec()))
}

/// A socket that has another name now, in the same folder.
fn renamed(path: &[u8], inode: u32) -> Option<(FileStat, Vec<u8>)> {
    let folder = path_of(path).parent()?;
    let entries = std::fs::read_dir(folder).ok()?.take(MOST).flatten();
    let mut alike = entries.filter(|entry| entry.ino() & u64::from(u32::MAX) == inode.into());
    alike.find_map(|entry| {
        let path = entry.path().as_os_str().as_bytes().to_vec();
        socket_at(&path).map(|stat| (stat, path))
    })
}

fn joined(base: &[u8], text: &[u8]) -> Vec<u8> {
    let text = text.iter().position(|byte| *byte != b'/').map_or(&text[..0], |at| &text[at..]);
    path_of(base).join(path_of(text)).as_os_str().as_bytes().to_vec()
}

/// The folder in which the text leads, or led, to the file; and whether that has another name by now.
fn folder_of(text: &[u8], stat: &FileStat, path: &[u8], bases: &Bases) -> (Vec<u8>, bool) {
    let leads = |base: &&Vec<u8>| socket_at(&joined(base, text)).is_some_and(|there| there.same_file(stat));
    if let Some(base) = bases.for_text(text).iter().find(leads) {
        return (base.clone(), false);
    }
    if text.starts_with(b"/") {
        return (b"/".to_vec(), path != text);
    }
    let above = || path_of(path).parent().unwrap_or(Path::new("/")).as_os_str().as_bytes().to_vec();
    match path.strip_suffix(text).and_then(|rest| rest.strip_suffix(b"/")) {
        Some(b"") => (b"/".to_vec(), false),
        Some(folder) => (folder.to_vec(), false),
        None => (above(), true),
    }
}
