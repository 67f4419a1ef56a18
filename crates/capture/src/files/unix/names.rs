//! Addresses of sockets: the text that was bound, and the file that it made, if that is still there.

use std::collections::HashMap;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirEntryExt as _;
use std::path::Path;

use rewake_image::records::{UnixName, path_of};
use rewake_linux::proc::{FileStat, Proc};
use rewake_linux::socket::diag::UnixSocket;
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
    /// Those of somebody else's sockets, with their files.
    outside: HashMap<(Vec<u8>, Option<Vec<u8>>), u32>,
    pub(super) records: Vec<UnixName>,
}

impl<'a> Names<'a> {
    pub(super) fn new(bases: &'a Bases) -> Self {
        Self { bases, ids: HashMap::new(), outside: HashMap::new(), records: Vec::new() }
    }

    /// The id of a socket's own address.
    pub(super) fn of(&mut self, look: &Look) -> Option<u32> {
        let text = look.name.as_ref()?;
        let key = (text.clone(), look.told.file);
        if let Some(id) = self.ids.get(&key) {
            return Some(*id);
        }
        let name = self.name(text, file_of(look, self.bases));
        let id = self.push(name);
        self.ids.insert(key, id);
        Some(id)
    }

    /// The id of the address of somebody else's socket, which is reached by it.
    pub(super) fn of_outside(&mut self, one: &Outside) -> u32 {
        let key = (one.text.clone(), one.file.as_ref().map(|(_, path)| path.clone()));
        if let Some(id) = self.outside.get(&key) {
            return *id;
        }
        let name = self.name(&one.text, one.file.clone());
        let id = self.push(name);
        self.outside.insert(key, id);
        id
    }

    fn name(&self, text: &[u8], file: Option<(FileStat, Vec<u8>)>) -> UnixName {
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
        UnixName { text: text.to_vec(), ..name }
    }

    /// The id of an address of which nothing but the text is known: that of a socket that is gone.
    pub(super) fn of_text(&mut self, text: &[u8]) -> u32 {
        let is_own = |name: &&UnixName| !self.outside.values().any(|id| *id == name.id);
        if let Some(known) = self.records.iter().filter(is_own).find(|name| name.text == text) {
            return known.id;
        }
        self.push(UnixName { text: text.to_vec(), ..UnixName::default() })
    }

    fn push(&mut self, name: UnixName) -> u32 {
        let id = u32::try_from(self.records.len()).expect("fewer names than 2^32");
        self.records.push(UnixName { id, ..name });
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
    let candidates: Vec<Vec<u8>> = bases.for_text(text).iter().map(|base| joined(base, text)).collect();
    let found = candidates.iter().find_map(|path| of_inode(path, inode));
    without_links(found.or_else(|| candidates.iter().find_map(|path| renamed(path, inode)))?)
}

/// The socket file of that path, if it has this inode, of which the kernel tells 32 bits to everybody.
fn of_inode(path: &[u8], inode: u32) -> Option<(FileStat, Vec<u8>)> {
    let stat = socket_at(path).filter(|stat| stat.inode & u64::from(u32::MAX) == inode.into())?;
    Some((stat, path.to_vec()))
}

/// The path as the kernel would tell it, without links on the way.
fn without_links((stat, path): (FileStat, Vec<u8>)) -> Option<(FileStat, Vec<u8>)> {
    let folder = path_of(&path).parent()?.canonicalize().ok()?;
    Some((stat, folder.join(path_of(&path).file_name()?).as_os_str().as_bytes().to_vec()))
}

/// Somebody else's socket that can be reached again.
#[derive(Clone, Debug)]
pub(super) struct Outside {
    text: Vec<u8>,
    file: Option<(FileStat, Vec<u8>)>,
}

impl Outside {
    /// A socket for datagrams that `look` is connected to; `holder` has it, if that is known. What stands in the way, if it cannot be
    /// reached by its name.
    pub(super) fn find(
        look: &Look,
        told: &UnixSocket,
        holder: Option<i32>,
        bases: &Bases,
    ) -> Result<Self, &'static str> {
        if told.peer.is_some_and(|back| u64::from(back) == look.inode) {
            return Err("which is connected to nobody else");
        }
        let text = look.peer_name.clone().ok_or("and has no name")?;
        if text.first() == Some(&0) {
            return Ok(Self { text, file: None });
        }
        let inode = told.file.ok_or("and has no file")?;
        // A relative text is one of the folder in which its own process is.
        let link = if text.starts_with(b"/") { "root" } else { "cwd" };
        let its = holder.and_then(|pid| Proc::open_living(pid).ok()?.link(link).ok());
        let its = its.filter(|link| !link.deleted).map(|link| link.target);
        let all = bases.for_text(&text).iter().chain(&its);
        let found = all.map(|base| joined(base, &text)).find_map(|path| of_inode(&path, inode));
        match found.and_then(without_links) {
            Some(file) => Ok(Self { text, file: Some(file) }),
            None => Err("whose file is not where its name says"),
        }
    }
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
