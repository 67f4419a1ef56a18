//! inotify instances. The kernel tells the inodes that are watched, not the names they were found by.
//! Events that are queued can neither be looked at nor put back, so that an instance with any is refused.

use rewake_image::records::{Inotify, InotifyWatch};
use rewake_linux::proc::FdInfo;

use super::Seen;
use super::kind::refuse;
use super::watched::{Place, Surroundings, Target, hex, nothing_waits};
use crate::findings::Refusal;

pub(super) const LINK: &[u8] = b"anon_inode:inotify";

/// A watch as fdinfo has it.
#[derive(Debug, PartialEq, Eq)]
struct Watched {
    wd: i32,
    mask: u32,
    target: Target,
}

pub(super) fn record(one: &Seen, around: Surroundings<'_>) -> Result<Inotify, Refusal> {
    nothing_waits(around.proc, one)?;
    let mut watches = Vec::new();
    for Watched { wd, mask, target } in watches_of(&one.info) {
        let Some(Place { identity, deleted, file }) = around.find(&target) else {
            let reason =
                format!("the file of its watch {wd} (inode {}) is not found under any name", target.inode.1);
            let remedy =
                "keep what is watched below the working folder of the program, or beside its open files";
            return refuse(reason, remedy);
        };
        watches.push(InotifyWatch { wd, mask, identity: Some(identity), deleted, file });
    }
    watches.sort_by_key(|watch| watch.wd);
    Ok(Inotify { watches })
}

/// `inotify wd:1 ino:3c4a7 sdev:fe00000 mask:80000fff ignored_mask:0 ...`, all in hexadecimal.
fn watches_of(info: &FdInfo) -> Vec<Watched> {
    let parse = |value: &[u8]| {
        let text = String::from_utf8_lossy(value).into_owned();
        let wd = u64::from_str_radix(text.split(' ').next()?, 16).ok()?;
        Some(Watched {
            wd: i32::try_from(wd).ok()?,
            mask: u32::try_from(hex(&text, "mask:")?).ok()?,
            target: Target::parse(&text)?,
        })
    };
    let lines = info.others.iter().filter(|(key, _)| key == b"inotify wd");
    lines.filter_map(|(_, value)| parse(value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_read_from_fdinfo() {
        let text = b"pos:\t0\nflags:\t00\ninotify wd:1a ino:3c4a7 sdev:fe00003 mask:80000fff ignored_mask:0 fhandle-bytes:8\n";
        let watches = watches_of(&FdInfo::parse(text).unwrap());
        let [Watched { wd: 26, mask: 0x8000_0fff, target }] = &watches[..] else { panic!("{watches:?}") };
        assert_eq!(target.inode, (libc::makedev(254, 3), 0x3_c4a7));
    }
}
