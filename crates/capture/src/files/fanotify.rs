//! fanotify groups. The kernel tells the inodes, mounts and file systems that are marked. Events that are queued can neither be looked
//! at nor put back, and a program that others ask for permission must not stand still: both are refused.

use std::os::unix::ffi::OsStrExt as _;

use rewake_image::records::{Fanotify, FanotifyMark, FileIdentity};
use rewake_linux::proc::FdInfo;

use super::Seen;
use super::kind::{LET_FINISH, refuse};
use super::watched::{MountPoint, Place, Surroundings, Target, hex, mount_points, nothing_waits, word};
use crate::findings::Refusal;

pub(super) const LINK: &[u8] = b"anon_inode:[fanotify]";

/// `FAN_MARK_MOUNT`, `FAN_MARK_FILESYSTEM`; inodes have neither.
const MOUNT: u32 = 0x10;
const FILE_SYSTEM: u32 = 0x100;
/// `FAN_OPEN_PERM`, `FAN_ACCESS_PERM`, `FAN_OPEN_EXEC_PERM`, `FAN_PRE_ACCESS`.
const PERMISSION: u64 = 0x1_0000 | 0x2_0000 | 0x4_0000 | 0x10_0000;
/// `FAN_REPORT_MNT`: of mounts that come and go in a mount namespace.
const REPORT_MOUNTS: u32 = 0x4000;

/// A mark as fdinfo has it.
#[derive(Debug, PartialEq, Eq)]
struct Marked {
    flags: u32,
    mask: u64,
    ignored_mask: u64,
    what: What,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Inode(Target),
    /// By its id.
    Mount(u64),
    /// By its device.
    FileSystem(u64),
}

pub(super) fn record(one: &Seen, around: Surroundings<'_>) -> Result<Fanotify, Refusal> {
    let Some((flags, event_flags)) = group(&one.info) else {
        return refuse("this kernel does not tell how a fanotify group was made", LET_FINISH);
    };
    if flags & REPORT_MOUNTS != 0 {
        return refuse("fanotify groups that tell of mounts are not supported", LET_FINISH);
    }
    let marked = marks(&one.info).ok_or_else(|| {
        Refusal::new("this kernel marks something by fanotify that is not known here", LET_FINISH)
    })?;
    if marked.iter().any(|mark| mark.mask & PERMISSION != 0) {
        let reason = "others wait for its permission to open files (fanotify), which it cannot give while it stands still";
        return refuse(reason, "let the program remove these marks first");
    }
    nothing_waits(around.proc, one)?;
    let mounts = mount_points(around.proc);
    // The kernel tells the newest first.
    let marks = marked.into_iter().rev().map(|mark| mark.record(&mounts, around));
    Ok(Fanotify { flags, event_flags, marks: marks.collect::<Result<_, _>>()? })
}

impl Marked {
    fn record(self, mounts: &[MountPoint], around: Surroundings<'_>) -> Result<FanotifyMark, Refusal> {
        let Self { flags, mask, ignored_mask, what } = self;
        let mark = FanotifyMark { flags, mask, ignored_mask, ..FanotifyMark::default() };
        let (kind, place) = match &what {
            What::Inode(target) => (0, around.find(target)),
            What::Mount(id) => (MOUNT, visible(mounts, |mount| mount.id == *id)),
            What::FileSystem(device) => (FILE_SYSTEM, visible(mounts, |mount| mount.device == *device)),
        };
        let Some(Place { identity, deleted, file }) = place else {
            let object = match what {
                What::Inode(target) => format!("the file it marks (inode {}) is", target.inode.1),
                What::Mount(id) => format!("the mount it marks ({id}) is"),
                What::FileSystem(_) => "the file system it marks is".to_owned(),
            };
            let remedy = "run the command as root, or let the program remove the mark";
            return refuse(format!("{object} not found under any name"), remedy);
        };
        Ok(FanotifyMark { flags: flags | kind, identity: Some(identity), deleted, file, ..mark })
    }
}

/// A mount that is not hidden by another one at the same place.
fn visible(mounts: &[MountPoint], is_it: impl Fn(&MountPoint) -> bool) -> Option<Place> {
    let on_top = |index: usize| mounts[index + 1..].iter().all(|later| later.place != mounts[index].place);
    let found = (0..mounts.len()).find(|&index| is_it(&mounts[index]) && on_top(index))?;
    let MountPoint { place, device, .. } = &mounts[found];
    let path = place.as_os_str().as_bytes().to_vec();
    let identity = FileIdentity { path, device: *device, ..FileIdentity::default() };
    Some(Place { identity, deleted: false, file: None })
}

/// `fanotify flags:c01 event-flags:8000`
fn group(info: &FdInfo) -> Option<(u32, u32)> {
    let text = info.other("fanotify flags")?;
    let text = format!("flags:{}", String::from_utf8_lossy(text));
    let number = |key| u32::try_from(hex(&text, key)?).ok();
    Some((number("flags:")?, number("event-flags:")?))
}

/// `fanotify ino:... sdev:... mflags:...`, `fanotify mnt_id:... mflags:...` or `fanotify sdev:... mflags:...`; nothing when there is
/// another kind of line.
fn marks(info: &FdInfo) -> Option<Vec<Marked>> {
    let lines = info.others.iter().filter_map(|(key, value)| {
        let kind = std::str::from_utf8(key).ok()?.strip_prefix("fanotify ")?;
        (kind != "flags").then(|| format!("{kind}:{}", String::from_utf8_lossy(value)))
    });
    lines.map(|line| mark(&line)).collect()
}

fn mark(line: &str) -> Option<Marked> {
    let what = if word(line, "ino:").is_some() {
        What::Inode(Target::parse(line)?)
    } else if let Some(id) = hex(line, "mnt_id:") {
        What::Mount(id)
    } else {
        What::FileSystem(super::epoll::device(hex(line, "sdev:")?))
    };
    let flags = u32::try_from(hex(line, "mflags:")?).ok()?;
    Some(Marked { flags, mask: hex(line, "mask:")?, ignored_mask: hex(line, "ignored_mask:")?, what })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const TEXT: &[u8] = b"pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t1038\nfanotify flags:c01 event-flags:8000\n\
        fanotify sdev:1b mflags:0 mask:8 ignored_mask:0\nfanotify mnt_id:1e mflags:40 mask:8 ignored_mask:2\n\
        fanotify ino:9c6041 sdev:fe00000 mflags:440 mask:8000002 ignored_mask:20 fhandle-bytes:8 fhandle-type:1 f_handle:41609c0018d4bd48\n";

    #[test]
    fn groups_and_marks_are_read_from_fdinfo() {
        let info = FdInfo::parse(TEXT).unwrap();
        assert_eq!(group(&info), Some((0xc01, 0x8000)));
        let marks = marks(&info).unwrap();
        assert_eq!(marks.len(), 3);
        assert_eq!(marks[0].what, What::FileSystem(libc::makedev(0, 0x1b)));
        let mount = Marked { flags: 0x40, mask: 8, ignored_mask: 2, what: What::Mount(0x1e) };
        assert_eq!(marks[1], mount);
        let What::Inode(target) = &marks[2].what else { panic!("{marks:?}") };
        assert_eq!(target.inode, (libc::makedev(254, 0), 0x9c_6041));
        assert_eq!((marks[2].flags, marks[2].mask, marks[2].ignored_mask), (0x440, 0x800_0002, 0x20));
        let unknown = [TEXT, b"fanotify mnt_ns:4 mflags:0 mask:8 ignored_mask:0\n"].concat();
        assert_eq!(super::marks(&FdInfo::parse(&unknown).unwrap()), None);
    }

    #[test]
    fn a_hidden_mount_is_not_found() {
        let mount = |id, place: &str| MountPoint { id, device: 5, place: PathBuf::from(place) };
        let mounts = [mount(1, "/"), mount(2, "/a"), mount(3, "/a")];
        assert!(visible(&mounts, |mount| mount.id == 2).is_none());
        assert_eq!(visible(&mounts, |mount| mount.id == 3).unwrap().identity.path, b"/a");
    }
}
