//! Who has a pipe or a fifo open.

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
    for pid in processes().unwrap_or_default() {
        let Ok(other) = Proc::open(pid) else { continue };
        for fd in other.fd_numbers().unwrap_or_default() {
            let name = format!("fd/{fd}");
            // Sockets and the like need no second look.
            let link = other.link_text(&name).unwrap_or_default();
            if (link.starts_with(b"pipe:") || link.starts_with(b"/"))
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
