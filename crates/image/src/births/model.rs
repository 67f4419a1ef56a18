//! A model of the kernel, as far as births and ends of processes go: histories that chance made, and what comes of a plan of births.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Births, Fate, Group, Node};
use crate::hostile::Random;
use crate::records::Process;

const SIGCHLD: i32 = 17;
const ROOT: i32 = 1000;
/// Session and group of whoever started the root.
const OUTSIDE: i32 = 900;
const MOST: usize = 24;

/// A process, or a thing that is there only meanwhile.
#[derive(Clone, Copy, Debug)]
struct One {
    pid: i32,
    parent: i32,
    session: i32,
    group: i32,
    /// What it has of each kind that can be shared.
    has: [i32; 4],
    signal: i32,
    takes_in: bool,
    ended: bool,
}

/// A tree that grows and withers.
struct History {
    all: BTreeMap<i32, One>,
    random: Random,
    next: i32,
    /// Also what is rare: it shares no longer, becomes another program, makes a sibling.
    rare: bool,
}

/// The records of a tree after a history that chance made, the same one for the same seed.
#[must_use]
pub fn history(seed: u64, rare: bool) -> Vec<Process> {
    let mut random = Random::new(seed);
    let root = One {
        pid: ROOT,
        parent: 1,
        session: OUTSIDE,
        group: OUTSIDE,
        has: [ROOT; 4],
        signal: SIGCHLD,
        takes_in: random.below(3) > 0,
        ended: false,
    };
    let mut history = History { all: BTreeMap::from([(ROOT, root)]), random, next: ROOT + 1, rare };
    for _ in 0..20 + history.random.below(150) {
        history.step();
    }
    history.records()
}

impl History {
    fn step(&mut self) {
        let living: Vec<One> = self.all.values().filter(|one| !one.ended).copied().collect();
        let one = living[self.random.place(living.len())];
        let what = self.random.below(if self.rare { 14 } else { 11 });
        let leads_none = self.all.values().all(|other| other.group != one.pid);
        let Some(own) = self.all.get_mut(&one.pid) else { return };
        match what {
            0..=4 if living.len() < MOST => self.fork(one),
            5 if leads_none => (own.session, own.group) = (one.pid, one.pid),
            6 if one.session != one.pid => {
                let groups: Vec<i32> = living
                    .iter()
                    .filter(|other| other.session == one.session)
                    .map(|other| other.group)
                    .collect();
                let place = self.random.place(groups.len() + 1);
                own.group = groups.get(place).copied().unwrap_or(one.pid);
            }
            7 if self.random.below(3) == 0 => own.takes_in = !one.takes_in || one.pid == ROOT,
            8 | 9 if one.pid != ROOT => self.end(one.pid),
            10 => {
                let gone = self.all.values().find(|other| other.ended && other.parent == one.pid);
                if let Some(pid) = gone.map(|other| other.pid) {
                    self.all.remove(&pid);
                }
            }
            11 => {
                let (kind, fresh) = (1 + self.random.place(2), self.fresh());
                if let Some(own) = self.all.get_mut(&one.pid) {
                    own.has[kind] = fresh;
                }
            }
            12 => {
                let (memory, dispositions, files) = (self.fresh(), self.fresh(), self.fresh());
                if let Some(own) = self.all.get_mut(&one.pid) {
                    (own.has[0], own.has[3], own.has[1], own.signal) = (memory, dispositions, files, SIGCHLD);
                }
            }
            _ => {}
        }
    }

    fn fresh(&mut self) -> i32 {
        self.next += 1;
        self.next
    }

    fn fork(&mut self, maker: One) {
        let pid = self.fresh();
        let mut has = [0; 4].map(|_: i32| self.fresh());
        let kind = self.random.below(8);
        let mut share = |what: usize| has[what] = maker.has[what];
        match kind {
            0 | 1 => {
                share(0);
                (1..3).filter(|_| self.random.below(2) == 0).for_each(&mut share);
                if kind == 1 {
                    share(3);
                }
            }
            2 => share(1),
            3 => share(2),
            4 => (1..3).for_each(&mut share),
            _ => {}
        }
        let other = [0, 23, SIGCHLD][self.random.place(3)];
        let beside = self.rare && maker.pid != ROOT && self.random.below(6) == 0;
        let (parent, signal) = match (beside, self.random.below(6)) {
            (true, _) => (maker.parent, maker.signal),
            (false, 0) => (maker.pid, other),
            (false, _) => (maker.pid, SIGCHLD),
        };
        self.all.insert(pid, One { pid, parent, has, signal, takes_in: false, ended: false, ..maker });
    }

    fn end(&mut self, pid: i32) {
        let mut heir = self.all.get(&pid).map_or(0, |one| one.parent);
        while let Some(above) = self.all.get(&heir).filter(|above| !above.takes_in) {
            heir = above.parent;
        }
        for child in self.all.values_mut().filter(|child| child.parent == pid) {
            (child.parent, child.signal) = (heir, SIGCHLD);
        }
        if let Some(one) = self.all.get_mut(&pid) {
            one.ended = true;
        }
        // Who went to an outsider has left the tree.
        while let Some(lost) = self
            .all
            .values()
            .find(|one| one.pid != ROOT && !self.all.contains_key(&one.parent))
            .map(|one| one.pid)
        {
            self.all.remove(&lost);
        }
    }

    fn records(&self) -> Vec<Process> {
        let mut records: Vec<Process> = Vec::new();
        let mut owners: HashMap<(usize, i32), i32> = HashMap::new();
        for one in self.all.values() {
            let mut of = [None; 4];
            for (kind, of) in of.iter_mut().enumerate().filter(|_| !one.ended) {
                let owner = *owners.entry((kind, one.has[kind])).or_insert(one.pid);
                *of = (owner != one.pid).then_some(owner);
            }
            records.push(Process {
                pid: one.pid,
                ppid: one.parent,
                pgid: one.group,
                sid: one.session,
                exit_signal: Some(one.signal),
                exit_status: one.ended.then_some(0),
                child_subreaper: one.takes_in,
                outside_group: one.group == OUTSIDE,
                outside_session: one.session == OUTSIDE,
                memory_of: of[0],
                descriptors_of: of[1],
                folders_of: of[2],
                actions_of: of[3],
                ..Process::default()
            });
        }
        records
    }
}

/// Carries a plan out; what is not as it was then.
#[must_use]
pub fn wrong(births: &Births<'_>, processes: &[Process]) -> Option<String> {
    let mut made = Made { births, all: BTreeMap::new(), next: 0 };
    made.all().err().or_else(|| made.differs(processes))
}

struct Made<'a, 'b> {
    births: &'b Births<'a>,
    all: BTreeMap<i32, One>,
    next: i32,
}

impl<'a> Made<'a, '_> {
    fn all(&mut self) -> Result<(), String> {
        let Some(root) = self.births.nodes.first().copied() else { return Err("nobody".to_owned()) };
        let own = One {
            pid: root.id,
            parent: 1,
            session: OUTSIDE,
            group: OUTSIDE,
            has: [0; 4],
            signal: SIGCHLD,
            takes_in: false,
            ended: false,
        };
        self.all.insert(root.id, own);
        self.bear(&root)?;
        let nodes = &self.births.nodes;
        if self.all.len() != nodes.len() {
            return Err(format!("{} of {} are born", self.all.len(), nodes.len()));
        }
        for turn in 0..=self.births.turns() {
            nodes.iter().filter(|node| node.turn == turn).try_for_each(|node| self.join(node))?;
        }
        (0..self.births.rounds()).try_for_each(|round| self.round(round))
    }

    fn bear(&mut self, node: &Node<'a>) -> Result<(), String> {
        let children: Vec<Node<'a>> = [true, false]
            .into_iter()
            .flat_map(|early| self.births.made_by(node.id, early).copied())
            .collect();
        let (early, late): (Vec<_>, Vec<_>) = children.into_iter().partition(|child| child.early);
        early.iter().try_for_each(|child| self.bring_forth(node, child))?;
        let own = self.all.get_mut(&node.id).ok_or("not there")?;
        if node.leads_session {
            (own.session, own.group) = (node.id, node.id);
        } else if node.group == Group::Own || node.turn > 0 {
            own.group = node.id;
        }
        late.iter().try_for_each(|child| self.bring_forth(node, child))
    }

    fn bring_forth(&mut self, node: &Node<'a>, child: &Node<'a>) -> Result<(), String> {
        let maker = *self.all.get(&node.id).ok_or("not there")?;
        let mut one = One { pid: child.id, parent: node.id, ..maker };
        for (kind, shares) in child.shares.into_iter().enumerate() {
            if !shares {
                self.next += 1;
                one.has[kind] = self.next;
            }
        }
        one.signal = match child.fate {
            Fate::Lives(process) | Fate::Zombie(process) => process.exit_signal.unwrap_or(SIGCHLD),
            Fate::Ghost => 0,
        };
        if child.beside {
            (one.parent, one.signal) = (maker.parent, maker.signal);
            let parent = self.births.parent_at_birth(child).map(|parent| parent.id);
            if parent != Some(one.parent) {
                return Err(format!("{} is born of {}, not {parent:?}", child.id, one.parent));
            }
        }
        if self.all.insert(child.id, one).is_some() {
            return Err(format!("{} is born twice", child.id));
        }
        self.bear(child)
    }

    fn join(&mut self, node: &Node<'a>) -> Result<(), String> {
        let session = self.all[&node.id].session;
        let group = match node.group {
            Group::Join(group) => group,
            Group::Outside => OUTSIDE,
            Group::Own | Group::Stay => return Ok(()),
        };
        let there = |one: &One| one.group == group && one.session == session;
        if !self.all.values().any(there) && group != OUTSIDE || node.leads_session {
            return Err(format!("{} cannot join the group {group}", node.id));
        }
        self.all.get_mut(&node.id).ok_or("not there")?.group = group;
        Ok(())
    }

    fn round(&mut self, round: u32) -> Result<(), String> {
        for one in self.all.values_mut() {
            one.takes_in |= self.births.inherits(one.pid, round);
        }
        let ending: Vec<Node<'a>> =
            self.births.ghosts().filter(|ghost| ghost.round == round).copied().collect();
        // Last made first, as makers wait; the heirs are the same in any order.
        for ghost in ending.iter().rev() {
            let one = self.all.remove(&ghost.id).ok_or("it has ended")?;
            if Some(one.parent) != ghost.maker {
                return Err(format!("{} waits in vain for {}", ghost.maker.unwrap_or(0), ghost.id));
            }
            let mut heir = one.parent;
            while let Some(above) = self.all.get(&heir).filter(|above| !above.takes_in) {
                heir = above.parent;
            }
            for child in self.all.values_mut().filter(|child| child.parent == ghost.id) {
                if ghost.heir != Some(heir) {
                    return Err(format!("{} comes to {heir}, not {:?}", child.pid, ghost.heir));
                }
                (child.parent, child.signal) = (heir, SIGCHLD);
            }
        }
        Ok(())
    }

    fn differs(&self, processes: &[Process]) -> Option<String> {
        let root = processes.first()?;
        let mut classes: [BTreeMap<i32, BTreeSet<i32>>; 4] = Default::default();
        for process in processes {
            let Some(one) = self.all.get(&process.pid) else {
                return Some(format!("{} is not there", process.pid));
            };
            let session = if process.outside_session { OUTSIDE } else { process.sid };
            let group = match process.pgid {
                // The root's is one of its own from now on.
                group
                    if group == root.pgid
                        && group != process.pid
                        && self.all[&root.pid].session == one.session =>
                {
                    root.pid
                }
                group => group,
            };
            let parent = if process.pid == root.pid { 1 } else { process.ppid };
            let signal = process.exit_signal.unwrap_or(SIGCHLD);
            let signal = if process.pid == root.pid { SIGCHLD } else { signal };
            if (one.parent, one.session, one.group, one.signal) != (parent, session, group, signal) {
                return Some(format!(
                    "{} was in {parent} {session} {group} {signal}, is {one:?}",
                    process.pid
                ));
            }
            if process.exit_status.is_none() {
                for (kind, owner) in process.common().into_iter().enumerate() {
                    classes[kind].entry(owner).or_default().insert(one.has[kind]);
                }
            }
        }
        for (kind, classes) in classes.iter().enumerate() {
            let all: BTreeSet<i32> = classes.values().flatten().copied().collect();
            if classes.values().any(|has| has.len() != 1) || all.len() != classes.len() {
                return Some(format!("kind {kind} is not shared as it was: {classes:?}"));
            }
        }
        let extra = self.all.len() - processes.len();
        (extra > 0).then(|| format!("{extra} are left"))
    }
}
