//! Which sessions processes are in, were born into, and need their makers to be in.

use std::collections::HashMap;

use super::family::{SIGCHLD, signal_of};
use crate::records::Process;

/// A session, as far as it can be told apart after the resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Session {
    /// That of `resume`, whichever it was before.
    Outside,
    Inside(i32),
}

/// What is known of sessions before anybody is made.
pub(super) struct Sessions {
    root_leads: bool,
    root_session: i32,
    /// Of leaders that have children in another session: that one.
    born_into: HashMap<i32, Session>,
    /// By session, those that need it of their makers and whose parents are not in it.
    strangers: HashMap<Session, Vec<i32>>,
}

impl Sessions {
    pub(super) fn of(processes: &[Process]) -> Self {
        let root = processes.first();
        let mut all = Self {
            root_leads: root.is_some_and(|root| root.sid == root.pid),
            root_session: root.map_or(0, |root| root.sid),
            born_into: HashMap::new(),
            strangers: HashMap::new(),
        };
        let by_id: HashMap<i32, &Process> = processes.iter().map(|process| (process.pid, process)).collect();
        // Children come after their parents.
        for child in processes.iter().rev() {
            let (Some(parent), Some(wanted)) = (by_id.get(&child.ppid), all.wanted(child)) else { continue };
            let from_below = || all.comes_from_below(wanted, parent, processes, &by_id);
            let born = signal_of(child) != SIGCHLD;
            if parent.sid == parent.pid && wanted != all.session(parent) && (born || !from_below()) {
                all.born_into.entry(parent.pid).or_insert(wanted);
            }
        }
        for process in processes {
            let (Some(parent), Some(wanted)) = (by_id.get(&process.ppid), all.wanted(process)) else {
                continue;
            };
            if wanted != all.session(parent) && all.born_into.get(&parent.pid) != Some(&wanted) {
                all.strangers.entry(wanted).or_default().push(process.pid);
            }
        }
        all
    }

    /// Whether a child in this session was not born to a leader, but came to it as an orphan: the session is one of those below it.
    fn comes_from_below(
        &self,
        session: Session,
        above: &Process,
        processes: &[Process],
        by_id: &HashMap<i32, &Process>,
    ) -> bool {
        let Session::Inside(leader) = session else { return false };
        let is_below = |process: &Process| {
            let mut id = process.ppid;
            for _ in 0..by_id.len() {
                match by_id.get(&id) {
                    _ if id == above.pid => return true,
                    Some(parent) => id = parent.ppid,
                    None => break,
                }
            }
            false
        };
        match by_id.get(&leader) {
            Some(leader) => is_below(leader),
            None => processes.iter().filter(|process| process.sid == leader).all(is_below),
        }
    }

    pub(super) fn session(&self, process: &Process) -> Session {
        let sid = process.sid;
        let outside =
            if self.root_leads { process.outside_session || sid <= 0 } else { sid == self.root_session };
        if outside { Session::Outside } else { Session::Inside(sid) }
    }

    /// The session that its maker must be in; a leader's only if that has a child from before.
    pub(super) fn wanted(&self, process: &Process) -> Option<Session> {
        if process.sid == process.pid {
            return self.born_into.get(&process.pid).copied();
        }
        Some(self.session(process))
    }

    /// Those that want this one and whose parents cannot make them.
    pub(super) fn strangers(&self, session: Session) -> &[i32] {
        self.strangers.get(&session).map_or(&[], Vec::as_slice)
    }
}
