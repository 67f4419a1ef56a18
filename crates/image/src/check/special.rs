//! Whether objects without content of their own make sense: eventfds, timers, watches, pipes, files of the kernel.

use std::collections::HashSet;

use super::files::identity;
use super::{ensure, path};
use crate::records::open_file::Kind;
use crate::records::{Epoll, Fanotify, Inotify, KernelFile, Pipe, TimerFd};
use crate::{Image, ImageError};

/// CLOCK_REALTIME, MONOTONIC, BOOTTIME, and those that wake a host that sleeps.
const CLOCKS: [i32; 5] = [0, 1, 7, 8, 9];
/// TFD_TIMER_ABSTIME and TFD_TIMER_CANCEL_ON_SET.
const TIMER_FLAGS: u32 = 3;
/// What `PIPE_BUF` bytes of a packet fill.
const SLOT: u32 = 4096;
/// Kinds of fanotify marks (mount, file system) and what they are told with: FAN_MARK_IGNORED_SURV_MODIFY, FAN_MARK_EVICTABLE,
/// FAN_MARK_IGNORE.
const MARK_FLAGS: u32 = 0x10 | 0x100 | 0x40 | 0x200 | 0x400;
/// Events that others wait for an answer to: a program that asks for them cannot be captured.
const PERMISSION: u64 = 0x17_0000;
/// SOCK_DGRAM and SOCK_RAW.
const NETLINK_TYPES: [u32; 2] = [2, 3];
/// The highest signal.
const LAST_SIGNAL: i32 = 64;
/// Most watches of one instance; the kernel's own limits are below.
const MAX_WATCHES: usize = 1 << 22;

pub(super) fn check(kind: &Kind, record: &str) -> Result<(), ImageError> {
    match kind {
        Kind::KernelFile(file) => kernel_file(file, record),
        Kind::Symlink(link) => path(&link.path, record, "path"),
        Kind::Pidfd(pidfd) => {
            let (id, status) = (pidfd.id, pidfd.exit_status);
            ensure!(id >= 0 && (id == 0 || pidfd.gone == 0), record, "a pidfd of {id}, which is gone or not");
            ensure!((0..=0xffff).contains(&status), record, "nobody ends with status {status:#x}");
            ensure!(status & 0x7f <= LAST_SIGNAL, record, "nobody ends by signal {}", status & 0x7f);
            Ok(())
        }
        Kind::Eventfd(eventfd) => {
            ensure!(eventfd.count < u64::MAX, record, "an eventfd cannot count {}", eventfd.count);
            Ok(())
        }
        Kind::Netlink(socket) => {
            let possible = NETLINK_TYPES.contains(&socket.r#type);
            ensure!(possible, record, "a netlink socket of type {} is impossible", socket.r#type);
            Ok(())
        }
        Kind::Timerfd(timer) => timerfd(timer, record),
        Kind::Epoll(epoll) => watches(epoll, record),
        Kind::Inotify(inotify) => inotify_watches(inotify, record),
        Kind::Fanotify(fanotify) => fanotify_marks(fanotify, record),
        _ => Ok(()),
    }
}

/// Whose files of `/proc` these are is checked where the threads are known, in [`references`].
fn kernel_file(file: &KernelFile, record: &str) -> Result<(), ImageError> {
    path(&file.path, record, "path")?;
    let plain = file.path.split(|byte| *byte == b'/').all(|name| name != b"." && name != b"..");
    ensure!(plain, record, "{} is not the plain name of a file", file.path.escape_ascii());
    ensure!(i64::try_from(file.position).is_ok(), record, "position {} is impossible", file.position);
    Ok(())
}

/// The ids of a process and of a thread that a file below `/proc` tells of.
#[must_use]
pub fn told_of(path: &[u8]) -> [Option<i32>; 2] {
    let number = |name: Option<&[u8]>| std::str::from_utf8(name?).ok()?.parse::<i32>().ok();
    let Some(below) = path.strip_prefix(b"/proc/") else { return [None, None] };
    let mut names = below.split(|byte| *byte == b'/');
    let process = number(names.next());
    let thread = if names.next() == Some(b"task") { number(names.next()) } else { None };
    [process, thread]
}

fn timerfd(timer: &TimerFd, record: &str) -> Result<(), ImageError> {
    ensure!(CLOCKS.contains(&timer.clock), record, "clock {} is impossible", timer.clock);
    ensure!(timer.settime_flags & !TIMER_FLAGS == 0, record, "timer flags {:#x}", timer.settime_flags);
    for time in [timer.remaining_ns, timer.interval_ns, timer.expires_ns] {
        ensure!(i64::try_from(time).is_ok(), record, "a time of {time} ns is impossible");
    }
    Ok(())
}

fn watches(epoll: &Epoll, record: &str) -> Result<(), ImageError> {
    ensure!(epoll.watches.len() <= MAX_WATCHES, record, "{} watches", epoll.watches.len());
    for watch in &epoll.watches {
        ensure!(watch.fd >= 0, record, "a watch of descriptor {} is impossible", watch.fd);
    }
    Ok(())
}

fn inotify_watches(inotify: &Inotify, record: &str) -> Result<(), ImageError> {
    ensure!(inotify.watches.len() <= MAX_WATCHES, record, "{} watches", inotify.watches.len());
    super::ascending(inotify.watches.iter().map(|watch| watch.wd), record, "watch")?;
    for watch in &inotify.watches {
        ensure!(watch.wd > 0, record, "watch {} is impossible", watch.wd);
        identity(watch.identity.as_ref(), record)?;
    }
    Ok(())
}

fn fanotify_marks(fanotify: &Fanotify, record: &str) -> Result<(), ImageError> {
    ensure!(fanotify.marks.len() <= MAX_WATCHES, record, "{} marks", fanotify.marks.len());
    for mark in &fanotify.marks {
        let masks = [mark.mask, mark.ignored_mask];
        let possible = masks.iter().all(|mask| u32::try_from(*mask).is_ok()) && mark.mask & PERMISSION == 0;
        ensure!(possible, record, "a mark of events {:#x}, not of {:#x}", mark.mask, mark.ignored_mask);
        ensure!(mark.flags & !MARK_FLAGS == 0, record, "a mark with flags {:#x}", mark.flags);
        identity(mark.identity.as_ref(), record)?;
    }
    Ok(())
}

pub(super) fn pipe(pipe: &Pipe) -> Result<(), ImageError> {
    let record = &format!("Pipe {}", pipe.id);
    let length = u32::try_from(pipe.content.len()).unwrap_or(u32::MAX);
    ensure!(length <= pipe.capacity, record, "{length} bytes in {}", pipe.capacity);
    let slots = usize::try_from(pipe.capacity / SLOT).unwrap_or(usize::MAX);
    ensure!(pipe.packets.len() <= slots, record, "{} packets in {slots} slots", pipe.packets.len());
    let sound = pipe.packets.iter().all(|packet| (1..=SLOT).contains(packet));
    ensure!(sound, record, "a packet of impossible length");
    let sum: u64 = pipe.packets.iter().map(|packet| u64::from(*packet)).sum();
    ensure!(
        pipe.packets.is_empty() || sum == length.into(),
        record,
        "packets of {sum} bytes, content of {length}"
    );
    match &pipe.fifo {
        Some(_) => identity(pipe.fifo.as_ref(), record),
        None => Ok(()),
    }
}

/// Whether watches lead to open files that are there.
pub(super) fn references(image: &Image) -> Result<(), ImageError> {
    let files: HashSet<u32> = image.open_files.iter().map(|file| file.id).collect();
    let threads = image.processes.iter().flat_map(|process| &process.threads).map(|thread| thread.tid);
    let threads: HashSet<i32> = threads.chain(image.processes.iter().map(|process| process.pid)).collect();
    for file in &image.open_files {
        let told_of = match &file.kind {
            Some(Kind::KernelFile(kernel)) => told_of(&kernel.path),
            Some(Kind::Pidfd(pidfd)) if pidfd.id != 0 => [Some(pidfd.id), None],
            _ => [None, None],
        };
        if let Some(stranger) = told_of.into_iter().flatten().find(|id| !threads.contains(id)) {
            let record = format!("OpenFile {}", file.id);
            return Err(super::invalid(record, format!("tells of {stranger}, which is not there")));
        }
        let missing = match &file.kind {
            Some(Kind::Epoll(epoll)) => {
                epoll.watches.iter().map(|watch| watch.file).find(|watched| !files.contains(watched))
            }
            Some(Kind::Inotify(inotify)) => {
                inotify.watches.iter().filter_map(|watch| watch.file).find(|watched| !files.contains(watched))
            }
            Some(Kind::Fanotify(fanotify)) => {
                fanotify.marks.iter().filter_map(|mark| mark.file).find(|marked| !files.contains(marked))
            }
            _ => None,
        };
        if let Some(missing) = missing {
            let record = format!("OpenFile {}", file.id);
            return Err(super::invalid(record, format!("watches file {missing}, which is not there")));
        }
    }
    Ok(())
}
