//! Namespaces: those of this command, or those that `resume` makes for a program.
//!
//! A program that was resumed by a user who may not choose ids lives in a pid namespace of its own, with a `/proc` of its own, perhaps in
//! a user namespace and with clocks of its own. It is captured from outside; the image says everything as the program sees it.

use std::collections::BTreeMap;

use rewake_image::records::Clocks;
use rewake_linux::namespaces::{self, INIT_NAME};
use rewake_linux::proc::{self, Proc, Status};
use rustix::time::{ClockId, clock_gettime};

use crate::error::{During, Result};
use crate::findings::Findings;

const INSIDE: &str = "run the command inside the same container or namespace as the program";

/// Namespaces of the target that neither are this command's nor were made by `resume`.
///
/// # Errors
/// When the target is gone or the look itself fails.
pub(crate) fn check(proc: &Proc, findings: &mut Findings) -> Result<()> {
    let pid = proc.id();
    let own = Proc::own().during("open", pid, "/proc/self")?;
    let same = |ours: &str, theirs: &str| same(&own, ours, proc, theirs);
    let mut refuse = |kind: &str, reason: &str| {
        findings.add(format!("namespace {kind}"), reason, INSIDE);
    };
    for kind in ["net", "uts", "cgroup"] {
        if !same(kind, kind)? {
            refuse(kind, "it is not the one of this command");
        }
    }
    for (kind, children) in [("pid", "pid_for_children"), ("time", "time_for_children")] {
        if !self::same(proc, kind, proc, children)? {
            refuse(children, "it is not the one of the program itself");
        }
    }
    let status = proc.status().during("read status", pid, "process")?;
    let ours = is_of_resume(proc, &status);
    if !same("pid", "pid")? && !ours {
        refuse("pid", "it is not the one of this command, nor was it made by resume");
    }
    let user = same("user", "user")? || (ours && is_child_of_ours(proc, &own, &status));
    if !user {
        refuse("user", "it is not the one of this command, nor was it made by resume");
    }
    if !same("mnt", "mnt")? {
        let mounts = if ours { other_mounts(&own, proc) } else { None };
        match mounts.as_deref() {
            Some([]) => {}
            Some([first, ..]) => refuse("mnt", &format!("this command has no mount {first}")),
            None => refuse("mnt", "it is not the one of this command"),
        }
    }
    Ok(())
}

/// Whether two namespaces are one. A kernel without that kind has one for all.
fn same(first: &Proc, first_kind: &str, second: &Proc, second_kind: &str) -> Result<bool> {
    let inode = |proc: &Proc, kind: &str| match proc.namespace(kind) {
        Ok(inode) => Ok(Some(inode)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error).during("readlink", proc.id(), format!("namespace {kind}")),
    };
    let (first, second) = (inode(first, first_kind)?, inode(second, second_kind)?);
    Ok(first == second || first.is_none() || second.is_none())
}

/// Whether the target's pid namespace is one right below ours whose first process is an init of `resume`'s.
fn is_of_resume(proc: &Proc, status: &Status) -> bool {
    let [_, inner] = status.ns_tgids[..] else { return false };
    let Ok(namespace) = proc.namespace("pid") else { return false };
    let is_init = |candidate: i32| {
        let candidate = Proc::open(candidate).ok()?;
        let first = candidate.status().ok()?.ns_tgids[..] == [candidate.id(), 1];
        Some(
            first
                && candidate.namespace("pid").ok()? == namespace
                && candidate.comm().ok()? == INIT_NAME.as_bytes(),
        )
    };
    let processes = proc::processes().unwrap_or_default();
    inner != 1 && processes.into_iter().any(|candidate| is_init(candidate).unwrap_or(false))
}

/// Whether the target's user namespace was made, right below ours, by the user it runs as.
fn is_child_of_ours(proc: &Proc, own: &Proc, status: &Status) -> bool {
    let Ok(file) = proc.open_file("ns/user", rustix::fs::OFlags::RDONLY) else { return false };
    let Ok((owner, parent)) = namespaces::owner_and_parent(&file) else { return false };
    owner == status.uids[1] && own.namespace("user").is_ok_and(|ours| ours == parent)
}

/// What the target has mounted and we have not, but for its `/proc`; `None` when that cannot be told.
fn other_mounts(own: &Proc, proc: &Proc) -> Option<Vec<String>> {
    let ours = mounts(&own.read("mountinfo").ok()?);
    let theirs = mounts(&proc.read("mountinfo").ok()?);
    let others = theirs.into_iter().filter(|(mount, count)| {
        let expected = ours.get(mount).copied().unwrap_or(0) + usize::from(mount.is_proc());
        *count > expected && !(mount.is_proc() && *count <= 1)
    });
    Some(others.map(|(mount, _)| mount.place).collect())
}

/// A mount, however it was numbered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Mount {
    /// Device and folder on it; nothing for `/proc`, which is another one for each pid namespace.
    what: String,
    place: String,
    kind: String,
}

impl Mount {
    fn is_proc(&self) -> bool {
        self.kind == "proc" && self.place == "/proc"
    }
}

/// The mounts of a `mountinfo`, and how often each is there.
fn mounts(text: &[u8]) -> BTreeMap<Mount, usize> {
    let mut mounts = BTreeMap::new();
    for line in String::from_utf8_lossy(text).lines() {
        let (place, kind) = line.split_once(" - ").unwrap_or((line, ""));
        let place: Vec<&str> = place.split(' ').collect();
        let [_, _, device, root, place, ..] = place[..] else { continue };
        let kind = kind.split(' ').next().unwrap_or_default().to_owned();
        let mut mount = Mount { what: format!("{device} {root}"), place: place.to_owned(), kind };
        if mount.is_proc() {
            mount.what.clear();
        }
        *mounts.entry(mount).or_default() += 1;
    }
    mounts
}

/// Ids as the target sees them, by those out here.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    /// Empty: they are the same.
    inner: BTreeMap<i32, i32>,
}

impl Ids {
    /// Those of the process and its threads.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn of(proc: &Proc) -> Result<Self> {
        Self::of_all([proc.id()])
    }

    /// Those of several processes and their threads.
    ///
    /// # Errors
    /// When one of them is gone.
    pub(crate) fn of_all(pids: impl IntoIterator<Item = i32>) -> Result<Self> {
        let mut inner = BTreeMap::new();
        for pid in pids {
            let proc = Proc::open(pid).during("open", pid, "process")?;
            let status = proc.status().during("read status", pid, "process")?;
            if status.ns_tgids.len() < 2 {
                return Ok(Self::default());
            }
            for tid in proc.threads().during("list threads", pid, "task")? {
                let status = proc.thread(tid).and_then(|thread| thread.status());
                let status = status.during("read status", pid, format!("thread {tid}"))?;
                inner.extend(status.ns_pids.last().map(|id| (tid, *id)));
            }
        }
        Ok(Self { inner })
    }

    /// Our id for the one of them that has this one itself.
    pub(crate) fn outer(&self, inner: i32) -> Option<i32> {
        if self.inner.is_empty() {
            return Some(inner);
        }
        self.inner.iter().find(|(_, own)| **own == inner).map(|(outer, _)| *outer)
    }

    /// The target's own id for one of its threads; 0 for others it cannot see.
    pub(crate) fn inner(&self, outer: i32) -> i32 {
        if self.inner.is_empty() { outer } else { self.inner.get(&outer).copied().unwrap_or(0) }
    }
}

/// Id, group and session of the process, as it sees them itself, and its parent: 0 when that is outside.
pub(crate) fn relations(status: &Status, stat: &proc::Stat, ids: &Ids) -> [i32; 4] {
    if status.ns_tgids.len() < 2 {
        return [status.tgid, stat.ppid, stat.pgrp, stat.session];
    }
    let last = |ids: &[i32]| ids.last().copied().unwrap_or(0);
    [last(&status.ns_tgids), ids.inner(stat.ppid), last(&status.ns_pgids), last(&status.ns_sids)]
}

/// What the target's clocks show now.
pub(crate) fn clocks(proc: &Proc) -> Option<Clocks> {
    let own = Proc::own().ok()?;
    let (ours, theirs) = (own.clock_offsets().ok()?, proc.clock_offsets().ok()?);
    let show = |id, ours: i64, theirs: i64| {
        let now = clock_gettime(id);
        let now = now.tv_sec.checked_mul(1_000_000_000)?.checked_add(now.tv_nsec)?;
        u64::try_from(now.checked_add(theirs.checked_sub(ours)?)?).ok()
    };
    Some(Clocks {
        monotonic_ns: show(ClockId::Monotonic, ours.monotonic, theirs.monotonic)?,
        boottime_ns: show(ClockId::Boottime, ours.boottime, theirs.boottime)?,
        own: ours != theirs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "30 1 254:0 / / rw,relatime master:1 - ext4 /dev/vda rw\n31 30 0:5 / /proc rw shared:3 - proc proc rw\n\
                          32 30 0:9 / /tmp rw - tmpfs tmpfs rw\n";

    #[test]
    fn only_a_proc_of_its_own_makes_no_other_mounts() {
        let ours = mounts(MOUNTS.as_bytes());
        assert_eq!(ours.len(), 3);
        let renumbered =
            MOUNTS.replace("30 ", "70 ").replace(" master:1", "") + "90 70 0:77 / /proc rw - proc proc rw\n";
        let theirs = mounts(renumbered.as_bytes());
        let keys = |mounts: &BTreeMap<Mount, usize>| mounts.keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&ours), keys(&theirs));
        assert_eq!(theirs.values().max(), Some(&2));
    }

    #[test]
    fn our_own_namespaces_are_no_obstacle() {
        let own = Proc::own().unwrap();
        let mut findings = Findings::new(own.id());
        check(&own, &mut findings).unwrap();
        assert!(findings.into_obstacles().is_empty());
        assert_eq!(other_mounts(&own, &own), Some(Vec::new()));
        assert_eq!(Ids::of(&own).unwrap().inner(own.id()), own.id());
        assert!(!clocks(&own).unwrap().own);
    }
}
