//! What epoll instances watch. A watch belongs to an open file under the number it was added by; the number may have been closed or
//! given to another file since.

use std::cmp::Ordering;
use std::collections::HashMap;

use rewake_image::records::{Epoll, EpollWatch};
use rewake_linux::proc::FdInfo;
use rewake_linux::{attributes, kcmp, twin};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::Seen;
use crate::error::{During, Result};
use crate::findings::Findings;

pub(super) const LINK: &[u8] = b"anon_inode:[eventpoll]";

/// A watch, and what tells the open file behind it.
#[derive(Debug, PartialEq, Eq)]
struct Watched {
    watch: EpollWatch,
    /// Device and inode of what is watched.
    inode: (u64, u64),
    /// How many watches under the same number come before it.
    offset: usize,
}

/// The record of the instance at `one`; `file_at` says which open file is behind a descriptor.
pub(super) fn record(
    one: &Seen,
    all: &[Seen],
    file_at: &HashMap<(i32, i32), u32>,
    findings: &mut Findings,
) -> Result<Epoll> {
    let watched = watches(&one.info);
    // A look at whether mounts or settings in /proc changed takes the change away from the program.
    let in_proc =
        |inode| all.iter().any(|one| one.inode() == inode && one.link.target.starts_with(b"/proc/"));
    let changes = watched.iter().any(|watched| in_proc(watched.inode));
    let mut epoll = Epoll { watches: Vec::new(), ready: changes || is_ready(one) };
    for watched in watched {
        let Some(descriptor) = behind(one, &watched, all)? else {
            let number = watched.watch.fd;
            findings.add(
                one.name(),
                format!("it watches a file that no descriptor leads to any more (added as number {number})"),
                "let the program remove the watch before it closes the descriptor",
            );
            continue;
        };
        // What cannot be captured was refused by its own name.
        if let Some(&file) = file_at.get(&descriptor) {
            epoll.watches.push(EpollWatch { file, ..watched.watch });
        }
    }
    Ok(epoll)
}

fn is_ready(one: &Seen) -> bool {
    let Ok(own) = attributes::duplicate(one.pid, one.fd) else { return true };
    let mut polled = [PollFd::new(&own, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    !matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(0))
}

/// A process and its descriptor that leads to what is watched: mostly that of the number it was added by.
fn behind(one: &Seen, watched: &Watched, all: &[Seen]) -> Result<Option<(i32, i32)>> {
    let number = watched.watch.fd;
    let same = all.iter().filter(|other| other.inode() == watched.inode);
    let mut candidates: Vec<(i32, i32)> = same.map(|other| (other.pid, other.fd)).collect();
    candidates.sort_by_key(|descriptor| *descriptor != (one.pid, number));
    for descriptor in candidates {
        let same = match kcmp::same_as_watched(descriptor, (one.pid, one.fd), number, watched.offset) {
            // Nobody may compare: a copy of the process tries what only the one of that number, which must be the only one, refuses.
            Err(error) if kcmp::is_refused(&error) && twin::is_of(one.pid) => {
                if descriptor != (one.pid, number) || watched.offset != 0 {
                    continue;
                }
                kcmp::watched_in_copy(one.fd, number)
                    .map(|watched| if watched { Ordering::Equal } else { Ordering::Less })
            }
            told => told,
        };
        match same {
            Ok(order) if order.is_eq() => return Ok(Some(descriptor)),
            Ok(_) => {}
            // Closed or removed meanwhile: the target runs.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOENT | libc::ESRCH)) => {}
            Err(error) => return Err(error).during("kcmp", one.pid, one.name()),
        }
    }
    Ok(None)
}

/// `tfd: 5 events: 80000019 data: 4d pos:0 ino:40e sdev:10`
fn watches(info: &FdInfo) -> Vec<Watched> {
    let mut found: Vec<Watched> = Vec::new();
    let mut by_number: HashMap<i32, usize> = HashMap::new();
    for (_, value) in info.others.iter().filter(|(key, _)| key == b"tfd") {
        let text = String::from_utf8_lossy(value).replace(':', " ");
        let words: Vec<&str> = text.split_whitespace().collect();
        let after = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1));
        let hex = |name: &str| u64::from_str_radix(after(name)?, 16).ok();
        let parsed = || {
            let fd: i32 = words.first()?.parse().ok()?;
            let events = u32::try_from(hex("events")?).ok()?;
            Some((
                EpollWatch { fd, events, data: hex("data")?, file: 0 },
                (device(hex("sdev")?), hex("ino")?),
            ))
        };
        if let Some((watch, inode)) = parsed() {
            let offset = by_number.entry(watch.fd).or_default();
            found.push(Watched { watch, inode, offset: *offset });
            *offset += 1;
        }
    }
    found
}

/// The kernel's own `dev_t`: twenty bits of minor number.
pub(super) fn device(kernel: u64) -> u64 {
    let half = |bits: u64| u32::try_from(bits).unwrap_or(u32::MAX);
    libc::makedev(half(kernel >> 20), half(kernel & 0xf_ffff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_read_in_the_order_of_fdinfo() {
        let text = b"pos:\t0\nflags:\t02\n\
            tfd:        4 events: c0000019 data:               4d  pos:0 ino:40e sdev:10\n\
            tfd:        4 events:       19 data: ffffffffffffffff  pos:0 ino:7 sdev:fe00003\n";
        let watches = watches(&FdInfo::parse(text).unwrap());
        let first = EpollWatch { fd: 4, events: 0xc000_0019, data: 0x4d, file: 0 };
        assert_eq!(watches[0], Watched { watch: first, inode: (16, 0x40e), offset: 0 });
        let second = EpollWatch { fd: 4, events: 0x19, data: u64::MAX, file: 0 };
        assert_eq!(watches[1], Watched { watch: second, inode: (libc::makedev(254, 3), 7), offset: 1 });
    }
}
