//! What a descriptor leads to.

use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;

use rewake_image::records::{Epoll, Fanotify, FileIdentity, Inotify, PipeEnd, SocketEnd, Symlink, open_file};
use rewake_linux::proc::{FileStat, Link, Proc};
use rewake_linux::virtual_files::Virtual;
use rustix::fs::{FileType, OFlags};

use super::pipes::PipeSource;
use super::removed::{Removed, is_removed};
use super::unix::Sockets;
use super::{Seen, Target, epoll, fanotify, fifos, inotify, kernel, netlink, pidfd, sockets, special};
use crate::contents::{self, Contents, Source};
use crate::findings::Refusal;

/// What can be captured.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Regular(Place),
    Directory,
    Device,
    Pipe(PipeEnd),
    /// Takes the place of this standard stream.
    Outside(u32),
    /// All that there is to it. What it watches is added when all files are known.
    Special(open_file::Kind),
}

/// Where a regular file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Under its name.
    Named,
    /// Nowhere but where it is open or mapped.
    Unlinked,
    /// In memory, made by memfd_create(2).
    Memfd,
}

/// The id of a regular file's content, if it goes into the image.
pub(super) fn content(one: &Seen, place: Place, contents: &mut Contents) -> Option<u32> {
    let (link, source) = (&one.link, Source::descriptor(one.pid, one.fd));
    match place {
        Place::Named => contents.named(link, source, one.writes(), contents::OPEN),
        Place::Unlinked => Some(contents.unlinked(link, source, one.writes())),
        Place::Memfd => {
            let name = link.target.strip_prefix(MEMFD).unwrap_or(&link.target);
            Some(contents.memfd(link, name, source))
        }
    }
}

/// What the kernel puts before the name of a memfd.
const MEMFD: &[u8] = b"/memfd:";

pub(super) fn refuse<T>(reason: impl Into<String>, remedy: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(reason, remedy))
}

pub(super) const LET_FINISH: &str = "capture the program at a time when it does not hold this";

/// What file this is, to be found again later.
pub(crate) fn identity(link: &Link) -> FileIdentity {
    identity_of(link.target.clone(), &link.stat)
}

/// The same by its path.
pub(super) fn identity_of(path: Vec<u8>, stat: &FileStat) -> FileIdentity {
    FileIdentity {
        path,
        device: stat.device,
        inode: stat.inode,
        size: stat.size,
        mtime_s: stat.mtime_s,
        mtime_ns: stat.mtime_ns,
        mode: stat.mode,
        ..FileIdentity::default()
    }
}

/// The flags with which the file is opened again: without those that only meant something at the first opening.
pub(super) fn reopening_flags(one: &Seen) -> OFlags {
    let mut flags = one.flags();
    if FileType::from_raw_mode(one.link.stat.mode) == FileType::RegularFile {
        flags &= !OFlags::TMPFILE;
    }
    flags
}

/// What was found out about all descriptors together.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) pipes: &'a [PipeSource],
    pub(super) removed: &'a Removed,
    pub(super) sockets: &'a Sockets,
}

pub(super) fn classify(
    target: Target<'_>,
    proc: &Proc,
    one: &Seen,
    all: &[Seen],
    firsts: &[usize],
    known: Known<'_>,
) -> Result<Kind, Refusal> {
    let Known { pipes, removed, sockets } = known;
    if let Some(system) = virtual_files(proc, one) {
        return kernel::record(target, proc, one, system).map(Kind::Special);
    }
    if pidfd::is_pidfd(one) {
        return pidfd::record(target, one).map(Kind::Special);
    }
    match FileType::from_raw_mode(one.link.stat.mode) {
        FileType::RegularFile => place(proc, one).map(Kind::Regular),
        FileType::Directory if is_removed(&one.link, FileType::Directory) => match removed.id(&one.link) {
            Some(_) => Ok(Kind::Directory),
            None => refuse("the folder was removed and cannot be made again", LET_FINISH),
        },
        FileType::Directory => named(proc, one).map(|()| Kind::Directory),
        FileType::CharacterDevice => device(proc, one, all, firsts),
        FileType::Fifo => fifo(one, all, firsts, pipes),
        FileType::Socket => match sockets.of(one) {
            Some(Ok(socket)) => Ok(Kind::Special(open_file::Kind::Socket(SocketEnd { socket }))),
            refused => match (standard_stream(one, all, firsts), refused) {
                (Some(stream), _) => sockets::is_stream_to_outside(proc, one).map(|()| Kind::Outside(stream)),
                (None, Some(Err(refusal))) => Err(refusal),
                (None, _) => netlink::record(proc, one).unwrap_or_else(|| sockets::refusal(proc, one)),
            },
        },
        FileType::BlockDevice => refuse("block devices are not supported", LET_FINISH),
        FileType::Symlink => symlink(one),
        FileType::Unknown => without_place(proc, one),
    }
}

/// Where a regular file is; one without a name goes into the image whole.
fn place(proc: &Proc, one: &Seen) -> Result<Place, Refusal> {
    let link = &one.link;
    if link.deleted && link.target.starts_with(MEMFD) {
        return Ok(Place::Memfd);
    }
    if link.deleted && link.target.starts_with(b"/") && link.target != SECRET {
        if link.stat.links > 0 {
            return refuse(
                "the file lives on under another name (a hard link) that cannot be found",
                "put a link to it back under its old name: ln OTHER-NAME OLD-NAME",
            );
        }
        return Ok(Place::Unlinked);
    }
    named(proc, one).map(|()| Place::Named)
}

const SECRET: &[u8] = b"/secretmem";

/// A file or directory must be found again under its name.
fn named(proc: &Proc, one: &Seen) -> Result<(), Refusal> {
    let link = &one.link;
    let memory = link.target.starts_with(MEMFD) || link.target == SECRET;
    if !link.target.starts_with(b"/") || (link.deleted && memory) {
        return without_place(proc, one).map(|_| ());
    }
    if link.deleted || link.stat.links == 0 {
        let remedy = "let the program close it, or put the file back";
        return refuse("the file was deleted or replaced; its content cannot be kept yet", remedy);
    }
    if !link.reachable {
        return refuse("the file cannot be found under its name", "make it reachable under that name");
    }
    Ok(())
}

/// Objects without a place in the file tree.
fn without_place(proc: &Proc, one: &Seen) -> Result<Kind, Refusal> {
    let watches = match &one.link.target[..] {
        epoll::LINK => Some(open_file::Kind::Epoll(Epoll::default())),
        inotify::LINK => Some(open_file::Kind::Inotify(Inotify::default())),
        fanotify::LINK => Some(open_file::Kind::Fanotify(Fanotify::default())),
        _ => None,
    };
    if let Some(empty) = watches {
        return Ok(Kind::Special(empty));
    }
    if let Some(record) = special::record(proc, one) {
        return record.map(Kind::Special);
    }
    const NAMES: &[(&str, &str)] = &[
        ("anon_inode:[userfaultfd]", "userfaultfds"),
        ("anon_inode:[io_uring]", "io_uring instances"),
        ("anon_inode:[perf_event]", "performance counters"),
        ("anon_inode:bpf", "BPF objects"),
        ("/memfd:", "memfds"),
        ("/secretmem", "secret memory files (memfd_secret)"),
        ("mnt:", "namespace descriptors"),
        ("net:", "namespace descriptors"),
        ("pid:", "namespace descriptors"),
        ("user:", "namespace descriptors"),
    ];
    let link = String::from_utf8_lossy(&one.link.target);
    let known = NAMES.iter().find(|(prefix, _)| link.starts_with(prefix));
    let what = known.map_or("objects of this kind", |(_, name)| name);
    refuse(format!("{what} are not supported yet"), LET_FINISH)
}

/// A symbolic link opened as such: nothing can be done with it but to read where it leads.
fn symlink(one: &Seen) -> Result<Kind, Refusal> {
    let path = rewake_image::records::path_of(&one.link.target);
    let there = std::fs::symlink_metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == one.inode());
    match std::fs::read_link(path) {
        Ok(target) if there => {
            let (path, target) = (one.link.target.clone(), target.into_os_string().into_vec());
            Ok(Kind::Special(open_file::Kind::Symlink(Symlink { path, target })))
        }
        _ => refuse("the symbolic link cannot be found under its name", LET_FINISH),
    }
}

/// What a file, a folder or a link is made up by, if it is not stored anywhere.
fn virtual_files(proc: &Proc, one: &Seen) -> Option<Virtual> {
    let kind = FileType::from_raw_mode(one.link.stat.mode);
    let stored = matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink);
    if !stored || !one.link.target.starts_with(b"/") {
        return None;
    }
    virtual_file_system(proc, &format!("fd/{}", one.fd))
}

/// What the file behind a magic link is made up by.
pub(super) fn virtual_file_system(proc: &Proc, name: &str) -> Option<Virtual> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Virtual::of(rustix::fs::openat(proc, name, flags, rustix::fs::Mode::empty()).ok()?)
}

/// Which devices hold no state: (major, minor) of null, zero, full, random, urandom.
fn stateless(rdev: u64) -> bool {
    rustix::fs::major(rdev) == 1 && matches!(rustix::fs::minor(rdev), 3 | 5 | 7 | 8 | 9)
}

/// `/dev/tty`: the controlling terminal, whichever that is.
const OWN_TERMINAL: u64 = 5 << 8;

/// `/dev/ptmx`: the side of a terminal that is no terminal, and has no name.
const TERMINAL_MASTER: u64 = 5 << 8 | 2;

fn device(proc: &Proc, one: &Seen, all: &[Seen], firsts: &[usize]) -> Result<Kind, Refusal> {
    if stateless(one.link.stat.rdev) {
        return named(proc, one).map(|()| Kind::Device);
    }
    if one.link.stat.rdev == TERMINAL_MASTER {
        return refuse("the side of a terminal that controls it (ptmx) is not supported", LET_FINISH);
    }
    let terminal = matches!(rustix::fs::major(one.link.stat.rdev), 4 | 5 | 136..=143 | 204 | 229);
    match standard_stream(one, all, firsts) {
        Some(stream) if terminal => Ok(Kind::Outside(stream)),
        None if one.link.stat.rdev == OWN_TERMINAL => named(proc, one).map(|()| Kind::Device),
        _ if terminal => refuse(
            "a terminal is only supported as standard input, output or error, or as /dev/tty",
            "let the program close it, or start it with its standard streams on that terminal",
        ),
        _ => refuse("this device is not supported", LET_FINISH),
    }
}

fn fifo(one: &Seen, all: &[Seen], firsts: &[usize], pipes: &[PipeSource]) -> Result<Kind, Refusal> {
    if let Some(pipe) = pipes.iter().find(|pipe| pipe.inode == one.inode()) {
        let (write, both) = (one.writes(), one.writes() && one.reads());
        let awaits_writer = pipe.is_fifo() && fifos::awaits_writer(one, all);
        return Ok(Kind::Pipe(PipeEnd { pipe: pipe.id, write, both, awaits_writer }));
    }
    match standard_stream(one, all, firsts) {
        Some(stream) => Ok(Kind::Outside(stream)),
        None if one.link.target.starts_with(b"pipe:") => refuse(
            "the other end of this pipe is outside the captured tree, and it is no standard stream",
            "close the descriptor, or start the program without it (N>&-)",
        ),
        None => fifos::refusal(one),
    }
}

/// Which standard stream a descriptor is, is a duplicate of, or leads to the same object as, in the same direction: of its own process,
/// else of the root.
fn standard_stream(one: &Seen, all: &[Seen], firsts: &[usize]) -> Option<u32> {
    if let Ok(number @ 0..=2) = u32::try_from(one.fd) {
        return Some(number);
    }
    let root = all.first().map_or(one.pid, |first| first.pid);
    stream_of(one.pid, one, all, firsts).or_else(|| stream_of(root, one, all, firsts))
}

fn stream_of(pid: i32, one: &Seen, all: &[Seen], firsts: &[usize]) -> Option<u32> {
    let place = |pid: i32, fd: i32| all.iter().position(|other| (other.pid, other.fd) == (pid, fd));
    let own = firsts[place(one.pid, one.fd)?];
    // Output before input: a duplicate of a terminal is mostly kept for messages.
    [1u32, 2, 0].into_iter().find(|&number| {
        let fd = i32::try_from(number).expect("a small number");
        let Some(at) = place(pid, fd) else { return false };
        let stream = &all[at];
        let direction = if number == 0 { one.reads() } else { one.writes() };
        direction && (firsts[at] == own || (stream.inode() == one.inode() && direction_fits(stream, one)))
    })
}

/// Whether all that can be done through `one` can be done through `stream`.
fn direction_fits(stream: &Seen, one: &Seen) -> bool {
    (stream.reads() || !one.reads()) && (stream.writes() || !one.writes())
}
