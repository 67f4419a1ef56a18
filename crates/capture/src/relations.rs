//! What processes of a tree are to each other, and whether they can be made again so.

use std::collections::{BTreeMap, BTreeSet};

use rewake_image::records::Process;
use rewake_image::{Births, CannotBeMade};
use rewake_linux::kcmp::{self, Shared};
use rewake_linux::proc::Proc;

use crate::error::{CaptureError, During, Result};
use crate::findings::Findings;
use crate::kin;
use crate::spaces::{self, Ids};

const LATER: &str =
    "capture the program when that process has ended, or those it has something in common with";

/// Whether a restore can make all of them again.
///
/// # Errors
/// Naming one that it cannot.
pub(crate) fn can_be_made(processes: &[Process]) -> Result<()> {
    let failed = |CannotBeMade { pid, object, reason }| {
        CaptureError::failed("capture", pid, object, format!("it cannot be made again: {reason}"))
            .advise(LATER)
    };
    Births::plan(processes).map(drop).map_err(failed)
}

/// The same of a tree that runs: what is seen of it may be out of date.
pub(crate) fn look(living: &[Proc], ended: &[i32], findings: &mut Findings) -> Result<()> {
    let Some((root, below)) = living.split_first().filter(|(_, below)| !below.is_empty()) else {
        return Ok(());
    };
    let mut below: Vec<&Proc> = below.iter().collect();
    below.sort_by_cached_key(|proc| kin::age(proc.id()));
    let mut found = Vec::new();
    for proc in std::iter::once(root).chain(below) {
        let stat = proc.stat().during("read stat", proc.id(), "process")?;
        let process = Process {
            pid: proc.id(),
            ppid: stat.ppid,
            pgid: stat.pgrp,
            sid: stat.session,
            exit_signal: Some(stat.exit_signal),
            ..Process::default()
        };
        found.push((proc.id(), process));
    }
    let ids = Ids::default();
    for pid in ended.iter().copied() {
        let mut process = ended_process(pid, &ids)?;
        let stat = Proc::open(pid).and_then(|proc| proc.stat()).during("read stat", pid, "process")?;
        (process.pid, process.ppid, process.pgid, process.sid) = (pid, stat.ppid, stat.pgrp, stat.session);
        found.push((pid, process));
    }
    let by_id: BTreeMap<i32, i32> = living.iter().map(|proc| (proc.id(), proc.living())).collect();
    share(&mut found, |pid| by_id.get(&pid).copied().unwrap_or(pid))?;
    mark_outside(&mut found)?;
    let processes: Vec<Process> = parents_first(found).into_iter().map(|(_, process)| process).collect();
    if let Err(CannotBeMade { pid, object, reason }) = Births::plan(&processes) {
        findings.turn_to(pid);
        findings.add(object, format!("it cannot be made again: {reason}"), LATER);
    }
    Ok(())
}

/// Notes what processes have in common.
pub(crate) fn share(found: &mut [(i32, Process)], living: impl Fn(i32) -> i32) -> Result<()> {
    let inner: BTreeMap<i32, i32> = found.iter().map(|(pid, process)| (*pid, process.pid)).collect();
    for kind in [Shared::Memory, Shared::Files, Shared::Fs, Shared::SignalHandlers] {
        let mut known: Vec<i32> = Vec::new();
        for (pid, process) in found.iter_mut().filter(|(_, process)| process.exit_status.is_none()) {
            let owner = owner(kind, &mut known, living(*pid), *pid, &living)?;
            let Some(owner) = owner.and_then(|owner| inner.get(&owner)).copied() else { continue };
            match kind {
                Shared::Memory => {
                    (process.memory_of, process.memory) = (Some(owner), None);
                    process.aio_contexts.clear();
                }
                Shared::Files => process.descriptors_of = Some(owner),
                Shared::Fs => process.folders_of = Some(owner),
                _ => {
                    process.actions_of = Some(owner);
                    process.actions.clear();
                }
            }
        }
    }
    Ok(())
}

/// Notes whose groups and sessions are those of outsiders. That of the root counts as such anyway.
pub(crate) fn mark_outside(found: &mut [(i32, Process)]) -> Result<()> {
    let Some((_, root)) = found.first() else { return Ok(()) };
    let (group, session) = (root.pgid, root.sid);
    let inside: BTreeSet<i32> = found.iter().map(|(_, process)| process.pid).collect();
    let is_known = |process: &Process| {
        let group = process.pgid == group || inside.contains(&process.pgid);
        group && (process.sid == session || inside.contains(&process.sid))
    };
    if found.iter().all(|(_, process)| is_known(process)) {
        return Ok(());
    }
    let family: Vec<i32> = found.iter().map(|(pid, _)| *pid).collect();
    let (groups, sessions) = kin::groups_and_sessions_outside(&family)?;
    for (pid, process) in found {
        let stat = Proc::open(*pid).and_then(|proc| proc.stat()).during("read stat", *pid, "process")?;
        process.outside_group = groups.contains(&stat.pgrp);
        process.outside_session = sessions.contains(&stat.session);
    }
    Ok(())
}

/// Of those known, the one with which a process has something in common; it is known from now on, if there is none.
fn owner(
    kind: Shared,
    known: &mut Vec<i32>,
    living: i32,
    pid: i32,
    living_of: impl Fn(i32) -> i32,
) -> Result<Option<i32>> {
    let mut failure = None;
    let found = known.binary_search_by(|other| {
        kcmp::compare(kind, living_of(*other), living).unwrap_or_else(|error| {
            failure = Some(error);
            std::cmp::Ordering::Less
        })
    });
    match (failure, found) {
        (Some(error), _) => Err(error).during("kcmp", pid, "what processes share"),
        (None, Ok(at)) => Ok(Some(known[at])),
        (None, Err(at)) => {
            known.insert(at, pid);
            Ok(None)
        }
    }
}

/// One that has ended and that nobody has waited for.
pub(crate) fn ended_process(pid: i32, ids: &Ids) -> Result<Process> {
    let proc = Proc::open(pid).during("open", pid, "ended process")?;
    let stat = proc.stat().during("read stat", pid, "ended process")?;
    let status = proc.status().during("read status", pid, "ended process")?;
    let [own, parent, group, session] = spaces::relations(&status, &stat, ids);
    Ok(Process {
        pid: own,
        ppid: parent,
        pgid: group,
        sid: session,
        comm: stat.comm.clone(),
        exit_status: Some(stat.exit_code),
        exit_signal: Some(stat.exit_signal),
        ..Process::default()
    })
}

/// The root is the first one found; each of the others comes after its parent.
pub(crate) fn parents_first(mut found: Vec<(i32, Process)>) -> Vec<(i32, Process)> {
    let mut ordered: Vec<(i32, Process)> = Vec::with_capacity(found.len());
    if found.is_empty() {
        return ordered;
    }
    ordered.push(found.remove(0));
    let mut there: BTreeSet<i32> = ordered.iter().map(|(_, root)| root.pid).collect();
    while let Some(at) = found.iter().position(|(_, process)| there.contains(&process.ppid)) {
        let next = found.remove(at);
        there.insert(next.1.pid);
        ordered.push(next);
    }
    // None is left but by a mistake of the kernel's, which the image's checks will name.
    ordered.extend(found);
    ordered
}
