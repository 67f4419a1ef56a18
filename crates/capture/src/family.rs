//! The whole tree at rest: the process that was named and all below it.

mod queues;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rewake_image::records::{Process, SeccompFilter, SemaphoreSet};
use rewake_linux::kcmp::{self, Shared};

use crate::error::{CaptureError, Result};
use crate::findings::Findings;
use crate::freeze::{Frozen, Running};
use crate::ipc::{self, Objects, Ties};
use crate::pages::can_be_tracked;
use crate::seccomp::Filters;
use crate::spaces::Ids;
use crate::waiting::Begun;
use crate::{kin, preflight, relations, threads};

/// Between looks at processes that end.
const ENDING: Duration = Duration::from_micros(100);

/// The tree at rest. Dropping it lets it go on.
#[derive(Debug)]
pub(crate) struct Family {
    /// By process id.
    members: BTreeMap<i32, Frozen>,
    root: i32,
    begin: Instant,
}

/// Everything of a tree but pages and descriptors.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Told {
    /// The root first, each after its parent.
    pub(crate) processes: Vec<Process>,
    /// Their ids out here, in that order.
    pub(crate) pids: Vec<i32>,
    pub(crate) filters: Vec<SeccompFilter>,
    /// System V IPC.
    pub(crate) ipc: Objects,
}

impl Family {
    /// Stops every thread of the tree. Nothing can be born any more of what stands still, so that this comes to an end.
    ///
    /// # Errors
    /// As [`Running::freeze`], of any of them.
    pub(crate) fn freeze(root: i32, timeout: Duration) -> Result<Self> {
        let mut family = Self { members: BTreeMap::new(), root, begin: Instant::now() };
        let mut listed = kin::members(root)?;
        loop {
            let new = listed.0.iter().copied().filter(|pid| !family.members.contains_key(pid));
            // Those that end cannot be stopped any more, and will be zombies.
            let (left, there): (Vec<i32>, Vec<i32>) =
                new.partition(|pid| *pid != root && kin::has_left(*pid));
            family.stop(&there, timeout)?;
            if let Some(first) = left.first() {
                family.wait_for_end(*first, timeout)?;
            }
            let now = kin::members_at_rest(root)?;
            // One that had ended when it was looked at may have had a child since the list was made: only the next list has that.
            if left.is_empty() && there.is_empty() && now == listed || now == (vec![root], Vec::new()) {
                break;
            }
            listed = now;
        }
        let mut findings = Findings::new(root);
        for (pid, frozen) in &family.members {
            findings.turn_to(*pid);
            preflight::check_state(&frozen.proc, &mut findings)?;
            frozen.check_registers(&mut findings)?;
        }
        let others = family.members.keys().copied().filter(|pid| *pid != root);
        let all: Vec<i32> = std::iter::once(root).chain(others).collect();
        ipc::check_namespace(root, &all, &mut findings)?;
        findings.into_result()?;
        Ok(family)
    }

    /// Stops these, which may end at any moment.
    fn stop(&mut self, living: &[i32], timeout: Duration) -> Result<()> {
        let root = self.root;
        let mut running = Vec::with_capacity(living.len());
        for pid in living.iter().copied() {
            match Running::ask(pid) {
                Err(_) if pid != root && kin::has_left(pid) => {}
                asked => running.push((pid, asked?)),
            }
        }
        if self.members.is_empty() {
            self.begin = Instant::now();
        }
        for (pid, running) in running {
            match running.freeze(self.begin, timeout) {
                // It ended before it could be stopped.
                Ok(frozen) if frozen.threads.is_empty() && pid != root => {}
                Ok(frozen) => drop(self.members.insert(pid, frozen)),
                Err(_) if pid != root && kin::has_left(pid) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait_for_end(&self, pid: i32, timeout: Duration) -> Result<()> {
        if self.begin.elapsed() > timeout {
            let reason = format!("it ends, and has not ended within {} s", timeout.as_secs());
            let error = CaptureError::failed("freeze", pid, "process", reason);
            return Err(error.advise("try again later"));
        }
        std::thread::sleep(ENDING);
        Ok(())
    }

    /// Asks all of them.
    ///
    /// # Errors
    /// When one was killed meanwhile, or what it tells cannot be captured.
    pub(crate) fn ask(&mut self) -> Result<Told> {
        let (mut living, mut ended) = kin::members_at_rest(self.root)?;
        // What several have in common, the first of them made: with it they are made again.
        let Some((_, below)) = living.split_first_mut().filter(|(first, _)| **first == self.root) else {
            return Err(CaptureError::failed("ask", self.root, "process", "it was killed meanwhile"));
        };
        below.sort_by_cached_key(|pid| kin::age(*pid));
        ended.sort_by_cached_key(|pid| kin::age(*pid));
        let ids = Ids::of_all(living.iter().chain(&ended).copied())?;
        let mut filters = Filters::default();
        let mut found = Vec::new();
        for pid in living {
            let frozen = self.members.get_mut(&pid).ok_or_else(|| {
                CaptureError::failed("ask", pid, "process", "it was born while the tree was held")
            })?;
            found.push((pid, frozen.ask(&ids, &mut filters)?));
        }
        for pid in ended {
            found.push((pid, relations::ended_process(pid, &ids)?));
        }
        relations::share(&mut found, |pid| self.living(pid))?;
        relations::mark_outside(&mut found)?;
        let ipc = self.ipc(&mut found, &ids)?;
        let (pids, processes): (Vec<i32>, Vec<Process>) = relations::parents_first(found).into_iter().unzip();
        relations::can_be_made(&processes)?;
        Ok(Told { processes, pids, filters: filters.into_records(), ipc })
    }

    /// The System V objects of the tree, and what its processes give back to semaphores when they end.
    fn ipc(&mut self, found: &mut [(i32, Process)], ids: &Ids) -> Result<Objects> {
        let ties = Ties::of(found.iter().map(|(pid, process)| (*pid, process)), ids)?;
        let mut objects = ipc::survey(self.root, &ties)?;
        let others = std::mem::take(&mut objects.others);
        let sets: Vec<_> = objects.sets.iter().chain(&others).cloned().collect();
        if sets.is_empty() {
            return Ok(objects);
        }
        let mut findings = Findings::new(self.root);
        let mut known: Vec<i32> = Vec::new();
        for (pid, process) in found.iter_mut() {
            let Some(frozen) = self.members.get_mut(pid).filter(|frozen| has_undo(frozen.proc.living()))
            else {
                continue;
            };
            findings.turn_to(*pid);
            frozen.check_undo_of_threads(&mut findings)?;
            process.semaphore_undo = frozen.semaphore_undo(&sets)?;
            if !process.semaphore_undo.is_empty() {
                known.push(*pid);
            }
        }
        for (at, pid) in known.iter().enumerate() {
            let same = |other: &&i32| {
                let order = kcmp::compare(Shared::SemaphoreUndo, self.living(**other), self.living(*pid));
                order.is_ok_and(std::cmp::Ordering::is_eq)
            };
            if let Some(other) = known[..at].iter().find(same) {
                findings.turn_to(*pid);
                let reason = format!(
                    "what its end gives back to semaphores is shared with process {other} (CLONE_SYSVSEM)"
                );
                findings.add("System V semaphores", reason, "run the program without that flag of clone(2)");
            }
        }
        findings.into_result()?;
        ipc::check_unchanged(self.root, &objects, &ties)?;
        let given: Vec<i32> =
            found.iter().flat_map(|(_, process)| &process.semaphore_undo).map(|undo| undo.set).collect();
        let given = |set: &SemaphoreSet| set.object.is_some_and(|object| given.contains(&object.id));
        objects.sets.extend(others.into_iter().filter(given));
        objects.sets.sort_by_key(|set| set.object.map(|object| object.id));
        Ok(objects)
    }

    /// The waits with a time-out that this stop has interrupted.
    pub(crate) fn interrupted(&self) -> BTreeMap<i32, Begun> {
        self.members.values().flat_map(Frozen::interrupted).collect()
    }

    /// What earlier stops have interrupted.
    pub(crate) fn remember(&mut self, begun: &BTreeMap<i32, Begun>) {
        self.members.values_mut().for_each(|member| member.begun.clone_from(begun));
    }

    /// The means to be told which pages are written to, of a tree of one process; `None` where its kernel or its program does not allow it.
    ///
    /// # Errors
    /// When it was killed meanwhile.
    pub(crate) fn userfault(&mut self) -> Result<Option<(i32, OwnedFd)>> {
        let alone = self.members.len() == 1;
        match self.members.iter_mut().next() {
            Some((pid, frozen)) if alone && can_be_tracked(&frozen.proc) => {
                Ok(frozen.userfault()?.map(|fd| (*pid, fd)))
            }
            _ => Ok(None),
        }
    }

    /// A thread of a process that lives.
    fn living(&self, pid: i32) -> i32 {
        self.members.get(&pid).map_or(pid, |frozen| frozen.proc.living())
    }

    /// Lets all go on, or kills them; the time they stood still.
    ///
    /// # Errors
    /// When one cannot be killed, or does not vanish in time.
    pub(crate) fn release(mut self, kill: bool) -> Result<Duration> {
        let members = std::mem::take(&mut self.members);
        if kill {
            // All of them before any has time to see that another is gone.
            members.values().try_for_each(Frozen::kill)?;
            // Parents last: they would have to wait for their children.
            members.into_values().rev().try_for_each(Frozen::bury)?;
            return Ok(self.begin.elapsed());
        }
        for frozen in members.into_values() {
            drop(frozen);
        }
        Ok(self.begin.elapsed())
    }
}

/// Whether a thread has a list of what is given back, be it empty: this process, whose threads were not made by pthread_create, has none.
fn has_undo(tid: i32) -> bool {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    !kcmp::compare(Shared::SemaphoreUndo, own, tid).is_ok_and(std::cmp::Ordering::is_eq)
}

impl Frozen {
    /// Threads made by raw clone(2) may have such a list of their own.
    fn check_undo_of_threads(&self, findings: &mut Findings) -> Result<()> {
        for tid in self.threads.keys().filter(|tid| has_undo(**tid)) {
            if !threads::shares(Shared::SemaphoreUndo, &self.proc, *tid)? {
                let reason = "what its end gives back to semaphores (SEM_UNDO) is its own";
                findings.add_thread(
                    *tid,
                    reason,
                    "let the program make its threads with CLONE_SYSVSEM, as pthread_create does",
                );
            }
        }
        Ok(())
    }
}
