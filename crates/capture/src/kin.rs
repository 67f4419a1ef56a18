//! Who belongs to the tree, who has left it, and who is an outsider. Of a tree that runs every answer may be out of date.

use std::collections::{BTreeMap, BTreeSet};

use rewake_linux::proc::{self, Proc, Stat};

use crate::error::{During, Result};

/// `PF_EXITING`: it ends, and has given up some of what it had.
const PF_EXITING: u32 = 0x4;
/// `PF_KTHREAD`: a thread of the kernel.
pub(crate) const PF_KTHREAD: u32 = 0x0020_0000;
/// No tree is that deep: a process seen twice (its id used again while we looked) must not make us walk in circles.
const DEEPEST: usize = 1 << 16;

/// The ids of process `root` and of all below it, as they are now; those that have ended apart.
///
/// # Errors
/// When the root is gone or may not be looked at.
pub(crate) fn members(root: i32) -> Result<(Vec<i32>, Vec<i32>)> {
    let below = proc::descendants(root).during("list children", root, "children")?;
    Ok([root].into_iter().chain(below).partition(|pid| !has_ended(*pid)))
}

/// The same of a tree that stands still but for those that end. The kernel's lists of children leave some out when others vanish while
/// it writes them: here every process is asked for its parent.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn members_at_rest(root: i32) -> Result<(Vec<i32>, Vec<i32>)> {
    // A list without any leaves none out.
    if Proc::open(root).and_then(|proc| proc.children()).is_ok_and(|children| children.is_empty()) {
        return members(root);
    }
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in proc::processes().during("list processes", root, "/proc")? {
        if let Ok(stat) = stat(pid) {
            children.entry(stat.ppid).or_default().push(pid);
        }
    }
    let mut members = vec![root];
    let mut next = 0;
    while let Some(below) = members.get(next).map(|pid| children.remove(pid).unwrap_or_default()) {
        members.extend(below);
        next += 1;
    }
    Ok(members.into_iter().partition(|pid| !has_ended(*pid)))
}

fn stat(pid: i32) -> std::result::Result<Stat, proc::ProcError> {
    Proc::open(pid).and_then(|proc| proc.stat())
}

/// An order in which nobody comes before who made it.
pub(crate) fn age(pid: i32) -> (u64, i32) {
    (stat(pid).map_or(u64::MAX, |stat| stat.starttime), pid)
}

/// Whether a process has ended and was not waited for yet. Its first thread may have ended while others run.
fn has_ended(pid: i32) -> bool {
    stat(pid).is_ok_and(|stat| matches!(stat.state, 'Z' | 'X') && stat.num_threads <= 1)
}

/// Whether a process is gone, has ended or is about to: then it does not count any more, whatever was seen of it.
pub(crate) fn has_left(pid: i32) -> bool {
    let leaves = |stat: &Stat| {
        stat.num_threads <= 1 && (stat.flags & PF_EXITING != 0 || matches!(stat.state, 'Z' | 'X'))
    };
    match stat(pid) {
        Ok(stat) if leaves(&stat) => true,
        // The first thread ends, and others may do so with it.
        Ok(stat) if stat.flags & PF_EXITING != 0 => all_end(pid),
        Ok(_) => false,
        Err(error) => error.is_gone(),
    }
}

/// Whether a process is one of the kernel's own.
pub(crate) fn is_of_the_kernel(pid: i32) -> bool {
    stat(pid).is_ok_and(|stat| stat.flags & PF_KTHREAD != 0)
}

fn all_end(pid: i32) -> bool {
    let Ok(proc) = Proc::open(pid) else { return true };
    proc.threads().map_or_else(|error| error.is_gone(), |threads| threads.iter().all(|tid| ends(&proc, *tid)))
}

/// Whether a thread is gone or about to be.
pub(crate) fn ends(proc: &Proc, tid: i32) -> bool {
    let stat = proc.thread(tid).and_then(|thread| thread.stat());
    stat.map_or_else(|error| error.is_gone(), |stat| stat.flags & PF_EXITING != 0)
}

/// Whether a process is none of `family`, nor was born to it since that was listed (its root first). One that is gone is none.
pub(crate) fn is_outsider(family: &[i32], pid: i32) -> bool {
    if family.contains(&pid) {
        return false;
    }
    let root = family.first().copied().unwrap_or_default();
    let mut ancestor = pid;
    for _ in 0..DEEPEST {
        ancestor = match stat(ancestor) {
            Ok(stat) => stat.ppid,
            Err(_) if stat(pid).is_err() => return false,
            // Its parent has ended: it has another one now.
            Err(_) => pid,
        };
        if ancestor == root {
            return false;
        }
        if ancestor <= 1 {
            break;
        }
    }
    true
}

/// Living processes outside of `family` (its root first) in a group or session that is named after one of it: they were below it once.
/// Those that were born to it since are below it.
pub(crate) fn strays(family: &[i32]) -> Vec<Stat> {
    let all = proc::processes().unwrap_or_default();
    let of_family = |stat: &Stat| family.contains(&stat.pgrp) || family.contains(&stat.session);
    let those = all.into_iter().filter_map(|pid| stat(pid).ok()).filter(of_family);
    those.filter(|stat| !matches!(stat.state, 'Z' | 'X') && is_outsider(family, stat.pid)).collect()
}

/// The groups and the sessions that processes outside of `family` are in.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn groups_and_sessions_outside(family: &[i32]) -> Result<(BTreeSet<i32>, BTreeSet<i32>)> {
    let root = family.first().copied().unwrap_or_default();
    let all = proc::processes().during("list processes", root, "/proc")?;
    let outside = all.into_iter().filter(|pid| !family.contains(pid)).filter_map(|pid| stat(pid).ok());
    Ok(outside.map(|stat| (stat.pgrp, stat.session)).unzip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_below_the_root_is_no_outsider() {
        let own = std::process::id().cast_signed();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id().cast_signed();
        assert!(members(own).unwrap().0.contains(&pid));
        assert!(members_at_rest(own).unwrap().0.contains(&pid));
        assert!(!is_outsider(&[own], pid) && !is_outsider(&[own], own));
        assert!(is_outsider(&[pid], own));
        assert!(!has_left(pid));
        child.kill().unwrap();
        while !has_left(pid) {
            std::thread::yield_now();
        }
        assert!(members_at_rest(own).unwrap().1.contains(&pid));
        child.wait().unwrap();
        assert!(has_left(pid) && !is_outsider(&[own], pid));
    }
}
