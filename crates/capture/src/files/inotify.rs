//! inotify instances. The kernel tells the inodes that are watched, not the names they were found by: those are searched for.
//! Events that are queued can neither be looked at nor put back, so that an instance with any is refused.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rewake_image::records::{FileIdentity, Inotify, InotifyWatch, open_file};
use rewake_linux::attributes;
use rewake_linux::proc::{FdInfo, Proc};

use super::Seen;
use super::epoll::device;
use super::kind::{Refusal, refuse};

pub(super) const LINK: &[u8] = b"anon_inode:inotify";
/// How often, and how long apart, an instance is looked at before its events are taken to stay.
const LOOKS: u32 = 25;
const PAUSE: Duration = Duration::from_millis(20);
/// Names that a search looks at.
const MOST_NAMES: usize = 50_000;

/// A watch as fdinfo has it.
#[derive(Debug, PartialEq, Eq)]
struct Watched {
    wd: i32,
    mask: u32,
    /// Device and inode.
    inode: (u64, u64),
}

pub(super) fn record(proc: &Proc, one: &Seen, all: &[Seen]) -> Result<open_file::Kind, Refusal> {
    let waiting = waiting(proc, one);
    if waiting > 0 {
        let reason =
            format!("{waiting} bytes of events are queued that the program has not read, and cannot be kept");
        return refuse(reason, "let the program read them first, then try again");
    }
    let mut watches = Vec::new();
    for watched in watches_of(&one.info) {
        let Some(path) = find(proc, watched.inode, all) else {
            let (wd, inode) = (watched.wd, watched.inode.1);
            let reason = format!("the file of its watch {wd} (inode {inode}) is not found under any name");
            let remedy =
                "keep what is watched below the working folder of the program, or beside its open files";
            return refuse(reason, remedy);
        };
        let (device, inode) = watched.inode;
        let path = path.as_os_str().as_bytes().to_vec();
        let identity = Some(FileIdentity { path, device, inode, ..FileIdentity::default() });
        watches.push(InotifyWatch {
            wd: watched.wd,
            mask: watched.mask,
            identity,
            ..InotifyWatch::default()
        });
    }
    watches.sort_by_key(|watch| watch.wd);
    Ok(open_file::Kind::Inotify(Inotify { watches }))
}

/// Bytes of events that stay queued for a moment.
fn waiting(proc: &Proc, one: &Seen) -> u64 {
    let mut waiting = 0;
    for look in 0..LOOKS {
        if look > 0 {
            std::thread::sleep(PAUSE);
        }
        let own = attributes::duplicate(proc.id(), one.fd);
        waiting = own.and_then(|own| Ok(rustix::io::ioctl_fionread(own)?)).unwrap_or(0);
        if waiting == 0 {
            break;
        }
    }
    waiting
}

/// `inotify wd:1 ino:3c4a7 sdev:fe00000 mask:80000fff ignored_mask:0 ...`, all in hexadecimal.
fn watches_of(info: &FdInfo) -> Vec<Watched> {
    let parse = |value: &[u8]| {
        let text = String::from_utf8_lossy(value).into_owned();
        let hex = |key: &str| {
            let found = text.split(' ').find_map(|word| word.strip_prefix(key));
            u64::from_str_radix(found?, 16).ok()
        };
        let wd = u64::from_str_radix(text.split(' ').next()?, 16).ok()?;
        Some(Watched {
            wd: i32::try_from(wd).ok()?,
            mask: u32::try_from(hex("mask:")?).ok()?,
            inode: (device(hex("sdev:")?), hex("ino:")?),
        })
    };
    let lines = info.others.iter().filter(|(key, _)| key == b"inotify wd");
    lines.filter_map(|(_, value)| parse(value)).collect()
}

/// A name of an inode: among what the program is known to use and the folders above, then below its working folder, then below the
/// root.
fn find(proc: &Proc, inode: (u64, u64), all: &[Seen]) -> Option<PathBuf> {
    let is_it =
        |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == inode);
    let cwd = proc.cwd().ok().filter(|cwd| cwd.reachable).map(|cwd| cwd.target);
    let exe = proc.exe().ok().map(|exe| exe.target);
    let open = all.iter().filter(|one| one.link.reachable).map(|one| one.link.target.clone());
    for path in cwd.iter().cloned().chain(open).chain(exe) {
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(&path));
        if let Some(found) = path.ancestors().find(|path| is_it(path)) {
            return Some(found.to_path_buf());
        }
    }
    let below = cwd.map(|cwd| PathBuf::from(std::ffi::OsStr::from_bytes(&cwd)));
    let mut left = MOST_NAMES;
    below.into_iter().chain([PathBuf::from("/")]).find_map(|top| search(top, inode.1, &mut left, &is_it))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_read_from_fdinfo() {
        let text = b"pos:\t0\nflags:\t00\ninotify wd:1a ino:3c4a7 sdev:fe00003 mask:80000fff ignored_mask:0 fhandle-bytes:8\n";
        let watches = watches_of(&FdInfo::parse(text).unwrap());
        let expected = Watched { wd: 26, mask: 0x8000_0fff, inode: (libc::makedev(254, 3), 0x3_c4a7) };
        assert_eq!(watches, [expected]);
    }
}
