//! Whether the processes are one tree, and what they share is there.

use std::collections::{HashMap, HashSet};

use super::{ensure, invalid};
use crate::births::Births;
use crate::records::Process;
use crate::{Image, ImageError};

/// Most processes in an image.
pub const MAX_PROCESSES: usize = 100_000;
/// Signals, and none.
const SIGNALS: std::ops::RangeInclusive<i32> = 0..=64;

const RECORD: &str = "Process";

pub(super) fn check(image: &Image) -> Result<(), ImageError> {
    let Some(root) = image.processes.first() else { return Err(invalid(RECORD, "there is none".to_owned())) };
    let (wanted, pid, count) = (image.manifest.root_pid, root.pid, image.processes.len());
    ensure!(wanted == pid, "Manifest", "root_pid {wanted} is not the pid of the first process, {pid}");
    ensure!(count <= MAX_PROCESSES, RECORD, "{count} of them, at most {MAX_PROCESSES} are possible");
    ensure!(root.exit_status.is_none(), RECORD, "the root of the tree, {pid}, has ended");
    let mut ids = HashSet::new();
    let mut earlier: HashMap<i32, &Process> = HashMap::new();
    for process in &image.processes {
        let pid = process.pid;
        let parent = earlier.get(&process.ppid);
        let lives = parent.is_some_and(|parent| parent.exit_status.is_none());
        ensure!(lives || pid == root.pid, RECORD, "the parent of {pid} is not before it: {}", process.ppid);
        shared(process, &earlier)?;
        let tids = process.threads.iter().map(|thread| thread.tid).filter(|tid| *tid != pid);
        for id in tids.chain([pid]) {
            ensure!(ids.insert(id), RECORD, "the id {id} is there twice");
        }
        earlier.insert(pid, process);
    }
    Births::plan(&image.processes).map_err(|error| invalid(RECORD, error.to_string()))?;
    Ok(())
}

/// What a process has of another one is the other's own.
fn shared(process: &Process, earlier: &HashMap<i32, &Process>) -> Result<(), ImageError> {
    type Link = fn(&Process) -> Option<i32>;
    const LINKS: [(&str, Link); 4] = [
        ("memory", |process| process.memory_of),
        ("descriptors", |process| process.descriptors_of),
        ("folders", |process| process.folders_of),
        ("dispositions", |process| process.actions_of),
    ];
    let pid = process.pid;
    for (what, link) in LINKS {
        let Some(owner) = link(process) else { continue };
        let known = earlier.get(&owner).filter(|owner| link(owner).is_none() && owner.exit_status.is_none());
        ensure!(known.is_some(), RECORD, "{pid} has the {what} of {owner}, which has none of its own");
    }
    let empty = process.memory.is_none() && process.descriptors.is_empty() && process.locks.is_empty();
    let ended = process.exit_status.is_some();
    ensure!(!ended || empty && process.threads.is_empty(), RECORD, "{pid} has ended, but has something");
    let own = process.memory_of.is_none() && !ended;
    ensure!(own == process.memory.is_some(), RECORD, "{pid} has no memory, or that of another one too");
    let shares = process.descriptors_of.is_some();
    ensure!(!shares || process.descriptors.is_empty(), RECORD, "{pid} has descriptors of its own and not");
    let shares = process.actions_of.is_some();
    ensure!(!shares || process.actions.is_empty(), RECORD, "{pid} has dispositions of its own and not");
    let signal = process.exit_signal.unwrap_or(0);
    ensure!(SIGNALS.contains(&signal), RECORD, "exit signal {signal} of {pid} is impossible");
    Ok(())
}
