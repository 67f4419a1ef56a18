//! Where what is watched is: the kernel tells inodes and handles, not the names they were found by. Who may gets at them by handle;
//! for others they are searched for.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rewake_image::records::FileIdentity;
use rewake_linux::attributes;
use rewake_linux::handles::Handle;
use rewake_linux::proc::{Link, Proc};
use rustix::fs::{FileType, Mode, OFlags};

use super::Seen;
use super::epoll::device;
use crate::findings::Refusal;

/// Names that a search looks at.
const MOST_NAMES: usize = 50_000;

/// What one line of fdinfo says of an inode watched, all in hexadecimal: `ino:3c4a7 sdev:fe00000 mask:fff ignored_mask:0
/// fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000000`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Device and inode.
    pub(super) inode: (u64, u64),
    handle: Option<Handle>,
}

impl Target {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let inode = (device(hex(text, "sdev:")?), hex(text, "ino:")?);
        let handle = || {
            let digits = word(text, "f_handle:")?.as_bytes().chunks_exact(2);
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            let bytes = digits.map(byte).collect::<Option<Vec<u8>>>()?;
            let kind = i32::try_from(hex(text, "fhandle-type:")?).ok()?;
            Some(Handle { kind, bytes })
        };
        Some(Self { inode, handle: handle() })
    }
}

/// What stands behind `key` in a line.
pub(super) fn word<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split(' ').find_map(|word| word.strip_prefix(key))
}

pub(super) fn hex(text: &str, key: &str) -> Option<u64> {
    u64::from_str_radix(word(text, key)?, 16).ok()
}

/// Where something watched is found again.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) identity: FileIdentity,
    /// It has no name any more.
    pub(super) deleted: bool,
    /// The id of an open file that leads to it; nothing for the working folder.
    pub(super) file: Option<u32>,
}

/// Among what a search goes on.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) proc: &'a Proc,
    pub(super) all: &'a [Seen],
    /// The open file behind each descriptor.
    pub(super) file_at: &'a HashMap<(i32, i32), u32>,
}

impl Surroundings<'_> {
    pub(super) fn find(&self, target: &Target) -> Option<Place> {
        let by_handle = self.by_handle(target);
        if let Some((_, Some(path))) = &by_handle {
            return place(path);
        }
        // A file system may show another device than it has.
        let inode = by_handle.map_or(target.inode, |(inode, _)| inode);
        self.without_name(inode).or_else(|| place(&self.search(inode)?))
    }

    /// Device and inode as `stat` tells them, and a name if the kernel knows one that leads there.
    fn by_handle(&self, target: &Target) -> Option<((u64, u64), Option<PathBuf>)> {
        let handle = target.handle.as_ref()?;
        let folder = mount_points(self.proc).into_iter().find_map(|mount| {
            let on_device = mount.device == target.inode.0;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            on_device.then(|| rustix::fs::open(&mount.place, flags, Mode::empty()).ok()).flatten()
        })?;
        let file = handle.open(folder).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        let inode = (stat.st_dev, stat.st_ino);
        let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        let leads_there = leads_to(&path, inode);
        Some((inode, leads_there.then_some(path)))
    }

    /// What is still open though its last name is gone, or is the working folder.
    fn without_name(&self, inode: (u64, u64)) -> Option<Place> {
        let gone = |link: &Link, file| {
            let (device, inode) = inode;
            let (path, mode) = (link.target.clone(), link.stat.mode);
            let identity = FileIdentity { path, device, inode, mode, ..FileIdentity::default() };
            Some(Place { identity, deleted: true, file })
        };
        let nameless = |link: &Link| {
            let folder = FileType::from_raw_mode(link.stat.mode) == FileType::Directory;
            link.deleted && (folder || link.stat.links == 0)
        };
        if let Some(one) = self.all.iter().find(|one| one.inode() == inode && nameless(&one.link)) {
            return gone(&one.link, Some(*self.file_at.get(&(one.pid, one.fd))?));
        }
        // Only the root finds itself in its own.
        let cwd = self
            .proc
            .cwd()
            .ok()
            .filter(|_| self.all.first().is_some_and(|first| first.pid == self.proc.id()))?;
        let there = nameless(&cwd) && (cwd.stat.device, cwd.stat.inode) == inode;
        there.then(|| gone(&cwd, None)).flatten()
    }

    /// Among what the program is known to use and the folders above, then below its working folder, then below the root.
    fn search(&self, inode: (u64, u64)) -> Option<PathBuf> {
        let is_it = |path: &Path| leads_to(path, inode);
        let cwd = self.proc.cwd().ok().filter(|cwd| cwd.reachable).map(|cwd| cwd.target);
        let exe = self.proc.exe().ok().map(|exe| exe.target);
        let open = self.all.iter().filter(|one| one.link.reachable).map(|one| one.link.target.clone());
        for path in cwd.iter().cloned().chain(open).chain(exe) {
            let path = PathBuf::from(OsStr::from_bytes(&path));
            if let Some(found) = path.ancestors().find(|path| is_it(path)) {
                return Some(found.to_path_buf());
            }
        }
        let below = cwd.map(|cwd| PathBuf::from(OsStr::from_bytes(&cwd)));
        let mut left = MOST_NAMES;
        below.into_iter().chain([PathBuf::from("/")]).find_map(|top| search(top, inode.1, &mut left, &is_it))
    }
}

fn leads_to(path: &Path, inode: (u64, u64)) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == inode)
}

fn place(path: &Path) -> Option<Place> {
    let found = fs::symlink_metadata(path).ok()?;
    let identity = FileIdentity {
        path: path.as_os_str().as_bytes().to_vec(),
        device: found.dev(),
        inode: found.ino(),
        mode: found.mode(),
        ..FileIdentity::default()
    };
    Some(Place { identity, deleted: false, file: None })
}

/// Breadth first, and never among the files of the kernel.
fn search(top: PathBuf, inode: u64, left: &mut usize, is_it: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut folders = VecDeque::from([top]);
    while let Some(folder) = folders.pop_front() {
        if [Path::new("/proc"), Path::new("/sys")].contains(&folder.as_path()) {
            continue;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            *left = left.checked_sub(1)?;
            // The inode told of a mount point is the one below the mount.
            let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if (folder || entry.ino() == inode) && is_it(&entry.path()) {
                return Some(entry.path());
            }
            if folder {
                folders.push_back(entry.path());
            }
        }
    }
    None
}

/// A mount of the target.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MountPoint {
    pub(super) id: u64,
    pub(super) device: u64,
    pub(super) place: PathBuf,
}

/// In the order in which they were made: what comes later hides what is at the same place.
pub(super) fn mount_points(proc: &Proc) -> Vec<MountPoint> {
    let text = proc.read("mountinfo").unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter_map(mount_point).collect()
}

/// `31 30 0:5 / /proc rw,relatime shared:3 - proc proc rw`; blanks in names are written as `\040`.
fn mount_point(line: &str) -> Option<MountPoint> {
    let words: Vec<&str> = line.split(' ').collect();
    let [id, _, device, _, place, ..] = words[..] else { return None };
    let (major, minor) = device.split_once(':')?;
    let mut bytes = Vec::new();
    let mut parts = place.split('\\');
    bytes.extend(parts.next()?.bytes());
    for part in parts {
        let (octal, rest) = part.split_at_checked(3)?;
        bytes.push(u8::from_str_radix(octal, 8).ok()?);
        bytes.extend(rest.bytes());
    }
    Some(MountPoint {
        id: id.parse().ok()?,
        device: libc::makedev(major.parse().ok()?, minor.parse().ok()?),
        place: PathBuf::from(OsStr::from_bytes(&bytes)),
    })
}

/// Refuses an instance with queued events: they can neither be looked at nor put back. Whoever asks may ask again in a moment.
pub(super) fn nothing_waits(proc: &Proc, one: &Seen) -> Result<(), Refusal> {
    let own = attributes::duplicate(proc.id(), one.fd);
    let waiting = own.and_then(|own| Ok(rustix::io::ioctl_fionread(own)?)).unwrap_or(0);
    if waiting == 0 {
        return Ok(());
    }
    let reason =
        format!("{waiting} bytes of events are queued that the program has not read, and cannot be kept");
    Err(Refusal::passing(reason, "let the program read them first, then try again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_mounts_are_read() {
        let target = Target::parse(
            "1a ino:3c4a7 sdev:fe00003 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000001",
        );
        let handle = Handle { kind: 1, bytes: vec![0xa7, 0xc4, 3, 0, 0, 0, 0, 1] };
        let inode = (libc::makedev(254, 3), 0x3_c4a7);
        assert_eq!(target, Some(Target { inode, handle: Some(handle) }));
        assert_eq!(Target::parse("1a ino:1 sdev:2 mask:0").unwrap().handle, None);
        assert_eq!(Target::parse("1a mask:0"), None);
        let mount = mount_point("31 30 0:5 / /a\\040b\\134 rw - tmpfs tmpfs rw").unwrap();
        assert_eq!(
            (mount.id, mount.device, mount.place.as_path()),
            (31, libc::makedev(0, 5), Path::new("/a b\\"))
        );
    }
}
