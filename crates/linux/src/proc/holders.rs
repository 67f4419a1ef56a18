//! Who has a pipe, a fifo or a socket open.

use std::collections::{HashMap, HashSet};

use rustix::fs::AtFlags;

use super::{Proc, processes};

/// For each of these inodes (device and number) a process that has it open, as far as we may look. Those for which `except` says so
/// do not count; it is asked only of those that have one open.
#[must_use]
pub fn holders(wanted: &HashSet<(u64, u64)>, except: impl Fn(i32) -> bool) -> HashMap<(u64, u64), i32> {
    let mut holders = HashMap::new();
    if wanted.is_empty() {
        return holders;
    }
    let inodes: HashSet<u64> = wanted.iter().map(|(_, inode)| *inode).collect();
    for pid in processes().unwrap_or_default() {
        let Ok(other) = Proc::open(pid) else { continue };
        for fd in other.fd_numbers().unwrap_or_default() {
            let name = format!("fd/{fd}");
            // Most need no second look.
            let link = other.link_text(&name).unwrap_or_default();
            let wanted_socket = || socket_inode(&link).is_some_and(|inode| inodes.contains(&inode));
            if (link.starts_with(b"pipe:") || link.starts_with(b"/") || wanted_socket())
                && let Ok(stat) = rustix::fs::statat(&other, &name, AtFlags::empty())
                && wanted.contains(&(stat.st_dev, stat.st_ino))
                && !except(pid)
            {
                holders.insert((stat.st_dev, stat.st_ino), pid);
            }
        }
    }
    holders
}

/// The inode of a socket, by what its link shows.
fn socket_inode(link: &[u8]) -> Option<u64> {
    let number = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}
