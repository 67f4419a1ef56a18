//! Descriptors, open files, pipes and locks: what goes into the image, and what cannot.
//!
//! The same survey serves preflight (for its findings) and the frozen target (for its records).

mod epoll;
mod fanotify;
mod fifos;
mod inotify;
mod kernel;
mod kind;
mod locks;
pub(crate) mod netlink;
mod pidfd;
mod pipes;
mod queues;
mod removed;
mod sockets;
mod special;
mod unix;
mod watched;

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use rewake_image::records::{
    Descriptor, Device, Directory, FileLock, OpenFile, OutsideStream, RegularFile, open_file,
};
use rewake_linux::attributes::{self, SignalOwner};
use rewake_linux::kcmp;
use rewake_linux::proc::{Fd, FdInfo, Link, Proc};
use rewake_linux::{twin, userfault};
use rustix::fs::OFlags;

use self::kind::Kind;
pub(crate) use self::kind::identity;
pub(crate) use self::pipes::PipeSource;
pub(crate) use self::queues::{QueueSource, is_message_queue};
use self::removed::Removed;
use self::unix::Sockets;
use self::watched::Surroundings;
use crate::contents::Contents;
use crate::error::{CaptureError, During, Result};
use crate::findings::Findings;

/// Everything about the descriptors of the target's processes.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Open file descriptions, by id.
    pub(crate) open: Vec<OpenFile>,
    /// Of each process, in order of number.
    pub(crate) descriptors: BTreeMap<i32, Vec<Descriptor>>,
    /// Pipes with both ends in the target.
    pub(crate) pipes: Vec<PipeSource>,
    /// POSIX message queues.
    pub(crate) queues: Vec<QueueSource>,
    /// Locks that processes hold through their descriptors.
    pub(crate) locks: BTreeMap<i32, Vec<FileLock>>,
    /// Folders and fifos without a name.
    pub(crate) removed: Removed,
    /// Unix sockets.
    pub(crate) sockets: Sockets,
    /// Ids by first descriptor and, for streams outside the tree, which standard stream.
    ids: HashMap<(usize, Option<u32>), u32>,
}

/// A descriptor as the kernel shows it from outside.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The process.
    pub(crate) pid: i32,
    pub(crate) fd: i32,
    pub(crate) link: Link,
    pub(crate) info: FdInfo,
    /// It is a copy, in this process, of one that is on its way through a socket of the target's.
    pub(crate) in_flight: bool,
}

impl Seen {
    /// File status flags, without what belongs to the descriptor.
    pub(crate) fn flags(&self) -> OFlags {
        OFlags::from_bits_retain(self.info.flags) & !OFlags::CLOEXEC
    }

    /// Whether something can be written through it.
    pub(crate) fn writes(&self) -> bool {
        !self.flags().contains(OFlags::PATH) && self.flags() & OFlags::ACCMODE != OFlags::RDONLY
    }

    /// Whether something can be read through it.
    pub(crate) fn reads(&self) -> bool {
        !self.flags().contains(OFlags::PATH) && self.flags() & OFlags::ACCMODE != OFlags::WRONLY
    }

    /// For messages: `descriptor 7: /tmp/x`.
    pub(crate) fn name(&self) -> String {
        let what = String::from_utf8_lossy(&self.link.target);
        if self.in_flight {
            format!("a descriptor on its way through a socket: {what}")
        } else {
            format!("descriptor {}: {what}", self.fd)
        }
    }

    /// Device and inode.
    pub(crate) fn inode(&self) -> (u64, u64) {
        (self.link.stat.device, self.link.stat.inode)
    }
}

/// The processes of the target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    /// Those with descriptors of their own, the root first.
    pub(crate) procs: &'a [Proc],
    /// All of them.
    pub(crate) family: &'a [i32],
    /// None of them moves.
    pub(crate) still: bool,
}

impl Target<'_> {
    fn of<'b>(&'b self, one: &Seen, own: Option<&'b Proc>) -> Result<&'b Proc> {
        self.procs.iter().chain(own).find(|proc| proc.id() == one.pid).ok_or_else(|| {
            CaptureError::failed("look at", one.pid, one.name(), "it is of a process that is not known")
        })
    }
}

/// Looks at every descriptor of the target.
///
/// # Errors
/// When the target is gone or may not be looked at; what cannot be captured goes to `findings`.
pub(crate) fn survey(target: Target<'_>, contents: &mut Contents, findings: &mut Findings) -> Result<Files> {
    let mut seen = Vec::new();
    for proc in target.procs {
        look(proc, &mut seen)?;
    }
    let sockets = Sockets::find(target, &mut seen)?;
    let own = sockets.look_at_ourselves()?;
    let firsts = descriptions(&seen)?;
    let removed = Removed::find(target.procs, &seen, findings)?;
    let family: Vec<i32> = target.family.iter().copied().chain(own.as_ref().map(Proc::id)).collect();
    let pipes = pipes::inside(&family, &seen, &removed);
    let queues = queues::inside(target, own.as_ref(), &seen, findings)?;
    let mut files = Files { removed, sockets, queues, ..Files::default() };
    for (at, (one, &first)) in seen.iter().zip(&firsts).enumerate() {
        findings.turn_to(one.pid);
        let proc = target.of(one, own.as_ref())?;
        let known = kind::Known { pipes: &pipes, removed: &files.removed, sockets: &files.sockets };
        let kind = match queues::end(&files.queues, one) {
            Some(end) => Ok(Kind::Special(end)),
            None => kind::classify(target, proc, one, &seen, &firsts, known),
        };
        let kind = match kind {
            Ok(kind) => kind,
            Err(refusal) => {
                findings.refuse(one.name(), refusal);
                continue;
            }
        };
        let owner = match kind {
            // Set for the stream's other users too, and not by restore.
            Kind::Outside(_) => {
                if one.info.flags & libc::O_ASYNC.cast_unsigned() != 0 {
                    findings.add(
                        one.name(),
                        "signals on input (O_ASYNC) from outside the program are not supported",
                        "let the program switch them off first",
                    );
                }
                SignalOwner::default()
            }
            _ if first == at => signal_owner(target, one, findings)?,
            _ => SignalOwner::default(),
        };
        let id = files.open_file(one, first, kind, owner, contents);
        if first == at && files.stores_content_of(id) {
            locks::check_readable(one, findings);
        }
        let descriptor = Descriptor { fd: one.fd, file: id, close_on_exec: one.info.close_on_exec() };
        files.descriptors.entry(one.pid).or_default().push(descriptor);
    }
    files.watches(target, own.as_ref(), &seen, &firsts, findings)?;
    for (pid, lock) in locks::survey(&seen, &firsts, findings) {
        files.locks.entry(pid).or_default().push(lock);
    }
    files.pipes = pipes;
    if let Some(own) = own {
        files.in_flight(own.id(), findings);
    }
    Ok(files)
}

/// The descriptors of one process.
fn look(proc: &Proc, seen: &mut Vec<Seen>) -> Result<()> {
    let pid = proc.id();
    let cwd = proc.link_text("cwd").unwrap_or_default();
    for Fd { fd, mut link } in proc.fds().during("list descriptors", pid, "fd")? {
        if twin::hides_descriptor(pid, fd) {
            continue;
        }
        match proc.fdinfo(fd) {
            Ok(info) if userfault::is_left_over(&link.target, info.flags) => {}
            Ok(info) => {
                link.find_other_name(&[&cwd]);
                seen.push(Seen { pid, fd, link, info, in_flight: false });
            }
            // A running target opens and closes: preflight looks at what is still there.
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error).during("read fdinfo", pid, format!("descriptor {fd}")),
        }
    }
    Ok(())
}

/// For each descriptor the place of the first one with the same open file description.
fn descriptions(seen: &[Seen]) -> Result<Vec<usize>> {
    let mut firsts: Vec<usize> = Vec::with_capacity(seen.len());
    // In the order of kcmp: objects without a place in the file tree all have one inode.
    let mut by_inode: HashMap<(u64, u64), Vec<usize>> = HashMap::new();
    for (at, one) in seen.iter().enumerate() {
        let known = by_inode.entry(one.inode()).or_default();
        match place_among(seen, known, one) {
            Ok(Ok(place)) => firsts.push(known[place]),
            Ok(Err(place)) => {
                known.insert(place, at);
                firsts.push(at);
            }
            // One of them was closed meanwhile: the target runs.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ESRCH)) => firsts.push(at),
            Err(error) => return Err(error).during("kcmp", one.pid, one.name()),
        }
    }
    Ok(firsts)
}

/// Where among those known (places in `seen`) the one with the same open file description is, or where this one belongs.
fn place_among(
    seen: &[Seen],
    known: &[usize],
    one: &Seen,
) -> std::io::Result<std::result::Result<usize, usize>> {
    let mut failure = None;
    let found = known.binary_search_by(|&candidate| {
        let other = &seen[candidate];
        kcmp::same_file(other.pid, other.fd, one.pid, one.fd).unwrap_or_else(|error| {
            failure = Some(error);
            Ordering::Less
        })
    });
    match failure {
        // Nobody may compare: a copy of the process, which has all its descriptors, asks of each.
        Some(error) if kcmp::is_refused(&error) && twin::is_of(one.pid) => {
            for (place, candidate) in known.iter().enumerate() {
                if kcmp::same_in_copy(seen[*candidate].fd, one.fd)? {
                    return Ok(Ok(place));
                }
            }
            Ok(Err(known.len()))
        }
        Some(error) => Err(error),
        None => Ok(found),
    }
}

/// Who gets signals about an open file; asked of a duplicate of the descriptor, since `/proc` does not tell.
fn signal_owner(target: Target<'_>, one: &Seen, findings: &mut Findings) -> Result<SignalOwner> {
    let pid = one.pid;
    if one.flags().contains(OFlags::PATH) {
        return Ok(SignalOwner::default());
    }
    let owner = match attributes::duplicate(pid, one.fd).and_then(attributes::signal_owner) {
        // It was closed meanwhile: the target runs.
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => return Ok(SignalOwner::default()),
        owner => owner.during("pidfd_getfd", pid, one.name())?,
    };
    let any = |test: &dyn Fn(&Proc) -> bool| {
        target.family.iter().any(|member| Proc::open_living(*member).is_ok_and(|member| test(&member)))
    };
    let inside = match owner.kind {
        _ if owner.id == 0 => true,
        SignalOwner::THREAD => {
            any(&|member| member.threads().is_ok_and(|threads| threads.contains(&owner.id)))
        }
        SignalOwner::GROUP => any(&|member| member.stat().is_ok_and(|stat| stat.pgrp == owner.id)),
        _ => target.family.contains(&owner.id),
    };
    if !inside {
        findings.add(
            one.name(),
            format!("signals about it go to another process ({}, F_SETOWN)", owner.id),
            "let the program take them itself, or finish with it",
        );
    }
    Ok(owner)
}

impl Files {
    /// What is on its way through sockets: our copies of it tell which open files that is.
    fn in_flight(&mut self, own: i32, findings: &mut Findings) {
        let copies = self.descriptors.remove(&own).unwrap_or_default();
        let file_at = copies.iter().map(|copy| (copy.fd, copy.file)).collect();
        self.sockets.carry(&file_at, &self.open, findings);
        if self.locks.remove(&own).is_some() {
            let reason = "a file with a lock, which nobody has open, is on its way through it (SCM_RIGHTS)";
            findings.add("unix sockets", reason, "let the program receive it first");
        }
    }

    /// Whether the content of an open file goes into the image.
    fn stores_content_of(&self, id: u32) -> bool {
        let file = usize::try_from(id).ok().and_then(|id| self.open.get(id));
        matches!(
            file.and_then(|file| file.kind.as_ref()),
            Some(open_file::Kind::Regular(regular)) if regular.content.is_some()
        )
    }

    /// Adds what epoll and inotify instances and fanotify groups watch: what they refer to as open files by id.
    fn watches(
        &mut self,
        target: Target<'_>,
        own: Option<&Proc>,
        all: &[Seen],
        firsts: &[usize],
        findings: &mut Findings,
    ) -> Result<()> {
        let numbers = self.descriptors.iter().flat_map(|(pid, descriptors)| {
            descriptors.iter().map(move |descriptor| ((*pid, descriptor.fd), descriptor.file))
        });
        let file_at: HashMap<(i32, i32), u32> = numbers.collect();
        for (_, one) in all.iter().enumerate().filter(|(at, _)| firsts[*at] == *at) {
            findings.turn_to(one.pid);
            let Some(file) = file_at.get(&(one.pid, one.fd)).and_then(|&id| usize::try_from(id).ok()) else {
                continue;
            };
            let proc = target.of(one, own)?;
            let around = Surroundings { proc, all, file_at: &file_at };
            let record = match &self.open[file].kind {
                Some(open_file::Kind::Epoll(_)) => {
                    Ok(open_file::Kind::Epoll(epoll::record(one, all, &file_at, findings)?))
                }
                Some(open_file::Kind::Inotify(_)) => {
                    inotify::record(one, around).map(open_file::Kind::Inotify)
                }
                Some(open_file::Kind::Fanotify(_)) => {
                    fanotify::record(one, around).map(open_file::Kind::Fanotify)
                }
                _ => continue,
            };
            match record {
                Ok(record) => self.open[file].kind = Some(record),
                Err(refusal) => findings.refuse(one.name(), refusal),
            }
        }
        Ok(())
    }

    /// The id of the open file description behind a descriptor; a new record when it is the first of its kind.
    fn open_file(
        &mut self,
        one: &Seen,
        first: usize,
        kind: Kind,
        owner: SignalOwner,
        contents: &mut Contents,
    ) -> u32 {
        // Standard streams outside the tree come back one by one, even when a terminal gave all three the same description.
        let key = (first, if let Kind::Outside(stream) = kind { Some(stream) } else { None });
        if let Some(&known) = self.ids.get(&key) {
            return known;
        }
        let id = u32::try_from(self.open.len()).expect("fewer open files than 2^32");
        let identity = kind::identity(&one.link);
        let kind = match kind {
            Kind::Regular(place) => open_file::Kind::Regular(RegularFile {
                identity: Some(identity),
                position: one.info.position,
                content: kind::content(one, place, contents),
            }),
            Kind::Directory => open_file::Kind::Directory(Directory {
                identity: Some(identity),
                position: one.info.position,
                removed: self.removed.id(&one.link),
            }),
            Kind::Device => {
                open_file::Kind::Device(Device { path: one.link.target.clone(), rdev: one.link.stat.rdev })
            }
            Kind::Pipe(end) => open_file::Kind::Pipe(end),
            Kind::Outside(standard_stream) => open_file::Kind::Outside(OutsideStream {
                description: one.link.target.clone(),
                standard_stream,
            }),
            Kind::Special(record) => record,
        };
        let flags = kind::reopening_flags(one).bits();
        self.open.push(OpenFile {
            id,
            flags,
            owner_pid: owner.id,
            owner_type: owner.kind,
            owner_signal: owner.signal,
            kind: Some(kind),
        });
        self.ids.insert(key, id);
        id
    }
}
