//! Who can make somebody.

use std::collections::HashSet;

use super::family::{Birth, Family, Wish};
use super::sessions::Session;
use super::{Class, DISPOSITIONS, Fate, KINDS, MEMORY, Needs};
use crate::records::Process;

impl<'a> Family<'a, '_> {
    /// The parent; a child of its; or somebody who leaves it to the parent. Those who are gone are there for that again.
    pub(super) fn birth(&mut self, wish: &Wish, process: &'a Process) -> Option<Birth> {
        if let Some(birth) = self.by_those_there(wish) {
            return Some(birth);
        }
        if let Some(Session::Inside(leader)) = wish.session
            && self.leader_is_there_now(leader, wish)
            && let Some(birth) = self.by_those_there(wish)
        {
            return Some(birth);
        }
        let missing: Vec<Class> = (0..KINDS)
            .filter_map(|kind| Some((kind, wish.needs[kind]?)))
            .filter(|class| self.can_be_founded(*class))
            .collect();
        // Memory last: who has it for others has nothing else to do.
        let in_order = missing.iter().rev().filter(|(kind, _)| *kind != MEMORY && *kind != DISPOSITIONS);
        let memory = missing.iter().find(|(kind, _)| *kind == MEMORY);
        for class in in_order.chain(memory) {
            self.found(*class, process);
        }
        if missing.is_empty() { None } else { self.by_those_there(wish) }
    }

    fn by_those_there(&mut self, wish: &Wish) -> Option<Birth> {
        let parent = *self.by_id.get(&wish.parent)?;
        let by = |at: usize, beside: bool| {
            let early = self.time(at, wish.session)?;
            self.can_have(at, &wish.needs).then_some(Birth { maker: at, early, beside })
        };
        if let Some(birth) = by(parent, false) {
            return Some(birth);
        }
        let siblings = self.children.get(&wish.parent).into_iter().flatten();
        let alike = |at: &&usize| match self.nodes[**at].node.fate {
            Fate::Lives(other) | Fate::Zombie(other) => super::family::signal_of(other) == wish.signal,
            Fate::Ghost => false,
        };
        if let Some(birth) = siblings.filter(alike).find_map(|at| by(*at, true)) {
            return Some(birth);
        }
        if !wish.may_be_orphan() {
            return None;
        }
        let leaves_it = |at: &usize| self.nodes[*at].node.heir == Some(wish.parent);
        if let Some(birth) = (0..self.nodes.len()).filter(leaves_it).find_map(|at| by(at, false)) {
            return Some(birth);
        }
        let below = (0..self.nodes.len()).filter(|at| self.may_bear_for(*at, wish.parent));
        let birth = below.filter_map(|at| by(at, false)).next()?;
        let has = self.of_ghost_for(birth.maker, &wish.needs);
        let ghost = self.add_ghost(None, birth, wish.parent, has);
        Some(Birth { maker: ghost, early: false, beside: false })
    }

    /// One made by somebody who lends memory lives in that, too.
    fn of_ghost_for(&self, maker: usize, needs: &Needs) -> Needs {
        let maker = &self.nodes[maker];
        let mut has = *needs;
        if maker.node.lends_memory {
            has[MEMORY] = maker.has[MEMORY];
        }
        has
    }

    /// Whether what a child of this one leaves behind can come to `heir`: it is at or below that, and waits for nobody who ends later.
    fn may_bear_for(&self, at: usize, heir: i32) -> bool {
        let node = &self.nodes[at].node;
        let deep = |id: i32| self.depth.get(&id).copied().unwrap_or(0);
        let in_time = node.heir.is_none_or(|own| deep(own) >= deep(heir));
        in_time && self.is_below(at, heir)
    }

    fn is_below(&self, mut at: usize, above: i32) -> bool {
        while self.nodes[at].node.fate == Fate::Ghost {
            let Some(maker) = self.nodes[at].maker else { return false };
            at = maker;
        }
        let mut id = self.nodes[at].node.id;
        let mut seen = HashSet::new();
        while id != above {
            match self.members.get(&id) {
                Some(process) if seen.insert(id) => id = process.ppid,
                _ => return false,
            }
        }
        true
    }

    /// Whether somebody has all of this, or may have had it.
    fn can_have(&self, at: usize, needs: &Needs) -> bool {
        let lends = self.nodes[at].node.lends_memory;
        let lent = !lends || needs[MEMORY].is_some() && needs[MEMORY] == self.nodes[at].has[MEMORY];
        lent && (0..KINDS).all(|kind| needs[kind].is_none_or(|owner| self.can_have_this(at, (kind, owner))))
    }

    fn can_have_this(&self, mut at: usize, (kind, owner): Class) -> bool {
        loop {
            let placed = &self.nodes[at];
            match placed.has[kind] {
                Some(has) => return has == owner,
                None if matches!(placed.node.fate, Fate::Lives(_)) => return false,
                // It may have had it from its maker.
                None => {}
            }
            let Some(maker) = placed.maker else { return false };
            at = maker;
        }
    }

    /// Whether somebody who has ended may have been the first to have this, beside all else that it did.
    pub(super) fn founds(&self, kind: usize) -> bool {
        kind != MEMORY && kind != DISPOSITIONS
    }

    /// From now on these have been had.
    pub(super) fn bind(&mut self, at: usize, needs: &Needs) {
        for (kind, owner) in needs.iter().enumerate() {
            let Some(owner) = *owner else { continue };
            let mut next = Some(at);
            while let Some(at) = next.filter(|at| self.nodes[*at].has[kind].is_none()) {
                self.has_now(at, (kind, owner));
                next = self.nodes[at].maker;
            }
        }
    }

    /// Somebody who led a session and is gone, or has ended; whether there is somebody now, and was not before.
    fn leader_is_there_now(&mut self, id: i32, wish: &Wish) -> bool {
        if self.by_id.contains_key(&id) || !self.in_work.0.insert(id) {
            return false;
        }
        let added = self.add_leader(id, wish);
        self.in_work.0.remove(&id);
        added
    }

    fn add_leader(&mut self, id: i32, wish: &Wish) -> bool {
        let wanted = self.wanted_of(self.sessions.strangers(Session::Inside(id)));
        let all = merge(&wish.needs, &wanted);
        let [first, second] = [all, wish.needs];
        if let Some(process) = self.members.get(&id).copied() {
            let ended = process.exit_status.is_some();
            let mut tries = [first, second, without_memory(&second), [None; KINDS]].into_iter();
            return ended && tries.any(|had| self.place(process, had).is_ok());
        }
        let strangers = self.sessions.strangers(Session::Inside(id)).iter();
        let heirs = strangers.filter_map(|pid| Some(self.members.get(pid)?.ppid)).chain([wish.parent]);
        let placed = heirs.filter(|heir| self.by_id.contains_key(heir));
        let Some(heir) = placed.max_by_key(|heir| self.depth.get(heir).copied()) else { return false };
        for needs in [first, second, without_memory(&second)] {
            let mut makers = (0..self.nodes.len()).filter(|at| self.may_bear_for(*at, heir));
            let from_maker = self.as_made(&needs);
            if let Some(maker) = makers.find(|at| self.can_have(*at, &from_maker)) {
                self.add_ghost(Some(id), Birth { maker, early: false, beside: false }, heir, needs);
                return true;
            }
        }
        false
    }

    /// What these need of their makers, all together as far as that goes.
    fn wanted_of(&self, pids: &[i32]) -> Needs {
        let needs = pids.iter().filter_map(|pid| self.members.get(pid)).map(|process| self.needs(process));
        needs.fold([None; KINDS], |all, one| merge(&all, &one))
    }

    /// Those that have something, but not from their parents.
    fn heads(&self, (kind, owner): Class) -> Vec<&'a Process> {
        let has = |process: &&'a Process| process.exit_status.is_none() && process.common()[kind] == owner;
        let from_parent = |process: &&'a Process| self.members.get(&process.ppid).is_some_and(has);
        self.processes.iter().filter(|process| has(process) && !from_parent(process)).collect()
    }

    /// Somebody who is gone had this first, and all the rest that those need who have it from there.
    fn found(&mut self, class: Class, process: &'a Process) {
        if self.can_be_founded(class) && self.in_work.1.insert(class) {
            self.found_with_the_rest(class, process);
            self.in_work.1.remove(&class);
        }
    }

    fn found_with_the_rest(&mut self, class: Class, process: &'a Process) {
        let (kind, owner) = class;
        let heads = self.heads(class);
        let pids: Vec<i32> = heads.iter().map(|head| head.pid).collect();
        let mut needs = self.wanted_of(&pids);
        if kind != MEMORY {
            needs = without_memory(&needs);
        }
        needs[kind] = Some(owner);
        let sessions: Vec<Session> = heads.iter().filter_map(|head| self.sessions.wanted(head)).collect();
        let deepest = heads.iter().max_by_key(|head| self.depth.get(&head.ppid).copied());
        let Some(parent) = deepest.map(|head| head.ppid) else { return };
        let mut from_maker = needs;
        from_maker[kind] = None;
        if kind == MEMORY {
            from_maker[DISPOSITIONS] = None;
            for (kind, owner) in from_maker.iter().enumerate() {
                if let Some(owner) = *owner {
                    self.found((kind, owner), process);
                }
            }
        }
        let wish = Wish { parent, needs, session: None, signal: 0 };
        for session in &sessions {
            let Session::Inside(leader) = *session else { continue };
            self.leader_is_there_now(leader, &wish);
            let Some(at) = self.by_id.get(&leader).copied() else { continue };
            let gone = !matches!(self.nodes[at].node.fate, Fate::Lives(_));
            if kind != MEMORY && gone && self.nodes[at].has[kind].is_none() && self.can_have(at, &from_maker)
            {
                self.bind(at, &from_maker);
                self.has_now(at, class);
            }
            if self.had_by_now(class) {
                return;
            }
        }
        let wanted = self.sessions.wanted(process).or(sessions.first().copied());
        let heir = if kind == MEMORY { process.ppid } else { parent };
        let by = |at: usize| {
            let early = self.time(at, wanted)?;
            self.can_have(at, &from_maker).then_some(Birth { maker: at, early, beside: false })
        };
        let mut makers = (0..self.nodes.len()).filter(|at| self.may_bear_for(*at, heir));
        let Some(birth) = makers.find_map(by) else { return };
        let ghost = self.add_ghost(None, birth, heir, from_maker);
        self.has_now(ghost, class);
        if kind == MEMORY {
            self.nodes[ghost].node.lends_memory = true;
            if let Some(dispositions) = needs[DISPOSITIONS] {
                self.has_now(ghost, (DISPOSITIONS, dispositions));
            }
        }
    }
}

fn without_memory(needs: &Needs) -> Needs {
    let mut needs = *needs;
    (needs[MEMORY], needs[DISPOSITIONS]) = (None, None);
    needs
}

/// The first ones, and of the others what does not contradict them.
fn merge(first: &Needs, others: &Needs) -> Needs {
    std::array::from_fn(|kind| first[kind].or(others[kind]))
}
