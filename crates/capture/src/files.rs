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
mod pipes;
mod removed;
mod sockets;
mod special;
mod watched;

use std::cmp::Ordering;
use std::collections::HashMap;

use rewake_image::records::{
    Descriptor, Device, Directory, FileLock, OpenFile, OutsideStream, RegularFile, open_file,
};
use rewake_linux::attributes::{self, SignalOwner};
use rewake_linux::kcmp;
use rewake_linux::proc::{Fd, FdInfo, Link, Proc};
use rustix::fs::OFlags;

use self::kind::Kind;
pub(crate) use self::kind::identity;
pub(crate) use self::pipes::PipeSource;
use self::removed::Removed;
use self::watched::Surroundings;
use crate::contents::Contents;
use crate::error::{During, Result};
use crate::findings::Findings;

/// Everything about the target's descriptors.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Open file descriptions, by id.
    pub(crate) open: Vec<OpenFile>,
    /// In order of number.
    pub(crate) descriptors: Vec<Descriptor>,
    /// Pipes with both ends in the target.
    pub(crate) pipes: Vec<PipeSource>,
    /// Locks held through the descriptors.
    pub(crate) locks: Vec<FileLock>,
    /// Folders and fifos without a name.
    pub(crate) removed: Removed,
    /// Ids by first descriptor and, for streams outside the tree, which standard stream.
    ids: HashMap<(i32, Option<u32>), u32>,
}

/// A descriptor as the kernel shows it from outside.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) fd: i32,
    pub(crate) link: Link,
    pub(crate) info: FdInfo,
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
        format!("descriptor {}: {}", self.fd, String::from_utf8_lossy(&self.link.target))
    }

    /// Device and inode.
    pub(crate) fn inode(&self) -> (u64, u64) {
        (self.link.stat.device, self.link.stat.inode)
    }
}

/// Looks at every descriptor of the target.
///
/// # Errors
/// When the target is gone or may not be looked at; what cannot be captured goes to `findings`.
pub(crate) fn survey(proc: &Proc, contents: &mut Contents, findings: &mut Findings) -> Result<Files> {
    let pid = proc.id();
    let mut seen = Vec::new();
    let cwd = proc.link_text("cwd").unwrap_or_default();
    for Fd { fd, mut link } in proc.fds().during("list descriptors", pid, "fd")? {
        match proc.fdinfo(fd) {
            Ok(info) => {
                link.find_other_name(&[&cwd]);
                seen.push(Seen { fd, link, info });
            }
            // A running target opens and closes: preflight looks at what is still there.
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error).during("read fdinfo", pid, format!("descriptor {fd}")),
        }
    }
    let firsts = descriptions(pid, &seen)?;
    let removed = Removed::find(proc, &seen, findings)?;
    let pipes = pipes::inside(proc, &seen, &removed);
    let mut files = Files { removed, ..Files::default() };
    for (one, &first) in seen.iter().zip(&firsts) {
        let kind = match kind::classify(proc, one, &seen, &firsts, &pipes, &files.removed) {
            Ok(kind) => kind,
            Err(refusal) => {
                findings.add(one.name(), refusal.reason, refusal.remedy);
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
            _ if first == one.fd => signal_owner(proc, one, findings)?,
            _ => SignalOwner::default(),
        };
        let id = files.open_file(one, first, kind, owner, contents);
        let close_on_exec = one.info.close_on_exec();
        files.descriptors.push(Descriptor { fd: one.fd, file: id, close_on_exec });
    }
    files.watches(proc, &seen, &firsts, findings)?;
    files.locks = locks::survey(&seen, &firsts, findings);
    files.pipes = pipes;
    Ok(files)
}

/// For each descriptor the first one with the same open file description.
fn descriptions(pid: i32, seen: &[Seen]) -> Result<Vec<i32>> {
    let mut firsts: Vec<i32> = Vec::with_capacity(seen.len());
    // In the order of kcmp: objects without a place in the file tree all have one inode.
    let mut by_inode: HashMap<(u64, u64), Vec<i32>> = HashMap::new();
    for one in seen {
        let known = by_inode.entry(one.inode()).or_default();
        let mut failure = None;
        let found = known.binary_search_by(|&candidate| {
            kcmp::same_file(pid, candidate, pid, one.fd).unwrap_or_else(|error| {
                failure = Some(error);
                Ordering::Less
            })
        });
        match (failure, found) {
            (None, Ok(at)) => firsts.push(known[at]),
            (None, Err(at)) => {
                known.insert(at, one.fd);
                firsts.push(one.fd);
            }
            // One of them was closed meanwhile: the target runs.
            (Some(error), _) if error.raw_os_error() == Some(libc::EBADF) => firsts.push(one.fd),
            (Some(error), _) => return Err(error).during("kcmp", pid, one.name()),
        }
    }
    Ok(firsts)
}

/// Who gets signals about an open file; asked of a duplicate of the descriptor, since `/proc` does not tell.
fn signal_owner(proc: &Proc, one: &Seen, findings: &mut Findings) -> Result<SignalOwner> {
    let pid = proc.id();
    if one.flags().contains(OFlags::PATH) {
        return Ok(SignalOwner::default());
    }
    let owner = match attributes::duplicate(pid, one.fd).and_then(attributes::signal_owner) {
        // It was closed meanwhile: the target runs.
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => return Ok(SignalOwner::default()),
        owner => owner.during("pidfd_getfd", pid, one.name())?,
    };
    let inside = match owner.kind {
        _ if owner.id == 0 => true,
        SignalOwner::THREAD => proc.threads().is_ok_and(|threads| threads.contains(&owner.id)),
        SignalOwner::GROUP => proc.stat().is_ok_and(|stat| stat.pgrp == owner.id),
        _ => owner.id == pid,
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
    /// Adds what epoll and inotify instances and fanotify groups watch: what they refer to as open files by id.
    fn watches(&mut self, proc: &Proc, all: &[Seen], firsts: &[i32], findings: &mut Findings) -> Result<()> {
        let file_at: HashMap<i32, u32> = self.descriptors.iter().map(|one| (one.fd, one.file)).collect();
        let around = Surroundings { proc, all, file_at: &file_at };
        for (one, &first) in all.iter().zip(firsts).filter(|(one, first)| one.fd == **first) {
            let Some(file) = file_at.get(&first).and_then(|&id| usize::try_from(id).ok()) else { continue };
            let record = match &self.open[file].kind {
                Some(open_file::Kind::Epoll(_)) => {
                    Ok(open_file::Kind::Epoll(epoll::record(proc, one, all, &file_at, findings)?))
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
                Err(refusal) => findings.add(one.name(), refusal.reason, refusal.remedy),
            }
        }
        Ok(())
    }

    /// The id of the open file description behind a descriptor; a new record when it is the first of its kind.
    fn open_file(
        &mut self,
        one: &Seen,
        first: i32,
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
