//! One process after the other gets its place.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::groups;
use super::sessions::{Session, Sessions};
use super::{CannotBeMade, Class, DISPOSITIONS, Failure, Fate, Group, KINDS, MEMORY, Needs, Node};
use crate::records::Process;

/// The signal of a process that its parent did not make.
pub(super) const SIGCHLD: i32 = 17;

/// What is needed to find out.
pub(super) struct Family<'a, 'b> {
    pub(super) processes: &'a [Process],
    pub(super) members: HashMap<i32, &'a Process>,
    pub(super) sessions: Sessions,
    /// How many are above each.
    pub(super) depth: HashMap<i32, u32>,
    /// What those who are gone had first.
    from_ghosts: &'b BTreeSet<Class>,
    /// What somebody has who is there already.
    had: HashSet<Class>,
    pub(super) nodes: Vec<Placed<'a>>,
    pub(super) by_id: HashMap<i32, usize>,
    /// Those that are there and go on or wait to be waited for, by parent.
    pub(super) children: HashMap<i32, Vec<usize>>,
    spare: i32,
    /// Leaders of sessions, and what is had first by somebody, whose place is being looked for.
    pub(super) in_work: (HashSet<i32>, HashSet<Class>),
}

/// Somebody with a place.
pub(super) struct Placed<'a> {
    pub(super) node: Node<'a>,
    pub(super) maker: Option<usize>,
    /// What it has, by owner. Of somebody who has ended, what it must have had, as far as that is known.
    pub(super) has: Needs,
    born_into: Session,
}

/// Who makes somebody.
#[derive(Clone, Copy, Debug)]
pub(super) struct Birth {
    pub(super) maker: usize,
    pub(super) early: bool,
    pub(super) beside: bool,
}

/// What a process asks of its maker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) parent: i32,
    pub(super) needs: Needs,
    pub(super) session: Option<Session>,
    /// The signal that its end sends.
    pub(super) signal: i32,
}

impl Wish {
    /// Whether its parent may not be who made it.
    pub(super) const fn may_be_orphan(&self) -> bool {
        self.signal == SIGCHLD
    }
}

impl Node<'_> {
    /// One that is there only meanwhile, made late.
    pub(super) const fn ghost(id: i32, maker: i32) -> Self {
        Self {
            id,
            maker: Some(maker),
            early: false,
            leads_session: false,
            group: Group::Stay,
            turn: 0,
            fate: Fate::Ghost,
            beside: false,
            shares: [false; KINDS],
            heir: None,
            round: 0,
            lends_memory: false,
        }
    }
}

pub(super) fn signal_of(process: &Process) -> i32 {
    process.exit_signal.unwrap_or(SIGCHLD)
}

impl<'a, 'b> Family<'a, 'b> {
    pub(super) fn new(processes: &'a [Process], from_ghosts: &'b BTreeSet<Class>) -> Self {
        let mut depth: HashMap<i32, u32> = HashMap::new();
        for process in processes {
            let own = depth.get(&process.ppid).map_or(0, |above| above + 1);
            depth.insert(process.pid, own);
        }
        Self {
            processes,
            members: processes.iter().map(|process| (process.pid, process)).collect(),
            sessions: Sessions::of(processes),
            depth,
            from_ghosts,
            had: HashSet::new(),
            nodes: Vec::with_capacity(processes.len()),
            by_id: HashMap::new(),
            children: HashMap::new(),
            spare: 0,
            in_work: (HashSet::new(), HashSet::new()),
        }
    }

    /// Everybody. Those that have ended come when they are needed, or last.
    pub(super) fn all(mut self) -> Result<Vec<Node<'a>>, Failure> {
        let (ended, living): (Vec<&Process>, _) =
            self.processes.iter().partition(|process| process.exit_status.is_some());
        for process in living.into_iter().chain(ended) {
            if !self.by_id.contains_key(&process.pid) {
                self.place(process, [None; KINDS])?;
            }
        }
        let shares: Vec<[bool; KINDS]> = self.nodes.iter().map(|placed| self.shares(placed)).collect();
        let with_shares = self.nodes.into_iter().zip(shares);
        let mut nodes: Vec<Node<'a>> =
            with_shares.map(|(placed, shares)| Node { shares, ..placed.node }).collect();
        let without_classes = |error| Failure { error, classes: Vec::new() };
        if let Some(node) = nodes.iter().find(|node| node.shares[DISPOSITIONS] && !node.shares[MEMORY]) {
            let reason = "it has dispositions in common with a process, but not memory".to_owned();
            let error = CannotBeMade { pid: node.id, object: "process".to_owned(), reason };
            return Err(without_classes(error));
        }
        groups::add_leaders(&mut nodes);
        groups::take_turns(&mut nodes).map_err(without_classes)?;
        groups::add_rounds(&mut nodes, &self.depth);
        Ok(nodes)
    }

    /// What somebody has in common with its maker.
    fn shares(&self, placed: &Placed<'a>) -> [bool; KINDS] {
        let Some(maker) = placed.maker.and_then(|maker| self.nodes.get(maker)) else { return [false; KINDS] };
        std::array::from_fn(|kind| placed.has[kind].is_some() && placed.has[kind] == maker.has[kind])
    }

    /// Finds a maker for a process; for one that has ended, one with which it can have had these in common.
    pub(super) fn place(&mut self, process: &'a Process, had: Needs) -> Result<(), Failure> {
        let ended = process.exit_status.is_some();
        if self.nodes.is_empty() {
            self.add_process(process, None, [None; KINDS]);
            return Ok(());
        }
        let (has, needs) = if ended {
            (had, self.as_made(&had))
        } else {
            let needs = self.needs(process);
            (needs, needs)
        };
        let wish = Wish {
            parent: process.ppid,
            needs,
            session: self.sessions.wanted(process),
            signal: signal_of(process),
        };
        let Some(birth) = self.birth(&wish, process) else { return Err(self.failure(process, &wish)) };
        self.bind(birth.maker, &needs);
        self.add_process(process, Some(birth), has);
        Ok(())
    }

    fn failure(&self, process: &Process, wish: &Wish) -> Failure {
        let pid = process.pid;
        let with: Vec<String> = (0..KINDS)
            .filter_map(|kind| wish.needs[kind])
            .collect::<BTreeSet<i32>>()
            .iter()
            .map(i32::to_string)
            .collect();
        let (object, reason) = if with.is_empty() {
            let reason = format!("nobody in that session can make it for its parent {}", process.ppid);
            (format!("session {}", process.sid), reason)
        } else {
            let with = with.join(", ");
            let reason = format!(
                "it has something in common with {with} that nobody can have had who made it for {}",
                process.ppid
            );
            ("process".to_owned(), reason)
        };
        let root = self.nodes.first().map_or([None; KINDS], |root| root.has);
        let classes = (0..KINDS).filter(|kind| wish.needs[*kind] != root[*kind]);
        let classes = classes.filter_map(|kind| Some((kind, wish.needs[kind]?))).collect();
        Failure { error: CannotBeMade { pid, object, reason }, classes }
    }

    /// What a process must have from its maker: what somebody else has already, or somebody who is gone had first.
    pub(super) fn needs(&self, process: &Process) -> Needs {
        let common = process.common();
        std::array::from_fn(|kind| {
            let class = (kind, common[kind]);
            (self.had.contains(&class) || self.from_ghosts.contains(&class)).then_some(common[kind])
        })
    }

    /// What of this somebody who has ended must have had from its maker, and was not the first to have.
    pub(super) fn as_made(&self, has: &Needs) -> Needs {
        std::array::from_fn(|kind| {
            let first = |owner: &i32| self.founds(kind) && self.can_be_founded((kind, *owner));
            has[kind].filter(|owner| !first(owner))
        })
    }

    /// Whether this belongs to nobody yet, and is to be had first by somebody who is gone.
    pub(super) fn can_be_founded(&self, class: Class) -> bool {
        self.from_ghosts.contains(&class) && !self.had.contains(&class)
    }

    pub(super) fn had_by_now(&self, class: Class) -> bool {
        self.had.contains(&class)
    }

    fn add_process(&mut self, process: &'a Process, birth: Option<Birth>, needs: Needs) {
        let ended = process.exit_status.is_some();
        let leads_session = process.sid == process.pid;
        let node = Node {
            maker: None,
            leads_session,
            group: self.group(process, leads_session),
            fate: if ended { Fate::Zombie(process) } else { Fate::Lives(process) },
            ..Node::ghost(process.pid, 0)
        };
        let has = if ended { needs } else { process.common().map(Some) };
        let at = self.add(node, birth, has);
        self.children.entry(process.ppid).or_default().push(at);
    }

    /// One that is there only meanwhile. Nobody had its id, unless that is given.
    pub(super) fn add_ghost(&mut self, id: Option<i32>, birth: Birth, heir: i32, has: Needs) -> usize {
        self.bind(birth.maker, &self.as_made(&has));
        let own = id.unwrap_or_else(|| {
            self.spare -= 1;
            self.spare
        });
        let mut node = Node { heir: Some(heir), ..Node::ghost(own, 0) };
        if id.is_some() {
            (node.leads_session, node.group) = (true, Group::Own);
        }
        self.add(node, Some(birth), has)
    }

    fn add(&mut self, mut node: Node<'a>, birth: Option<Birth>, has: Needs) -> usize {
        let mut born_into = Session::Outside;
        if let Some(birth) = birth {
            node.maker = self.nodes.get(birth.maker).map(|maker| maker.node.id);
            (node.early, node.beside) = (birth.early, birth.beside);
            born_into = self.session(birth.maker, birth.early);
        }
        self.had.extend(has.iter().zip(0..).filter_map(|(owner, kind)| Some((kind, (*owner)?))));
        let at = self.nodes.len();
        self.by_id.insert(node.id, at);
        self.nodes.push(Placed { node, maker: birth.map(|birth| birth.maker), has, born_into });
        at
    }

    /// Somebody who has ended had this.
    pub(super) fn has_now(&mut self, at: usize, class: Class) {
        self.nodes[at].has[class.0] = Some(class.1);
        self.had.insert(class);
    }

    /// The session somebody is in, at first or in the end.
    fn session(&self, at: usize, early: bool) -> Session {
        let Placed { node, born_into, .. } = &self.nodes[at];
        if node.leads_session && !early { Session::Inside(node.id) } else { *born_into }
    }

    /// Whether somebody can make one in this session, before or after it leads one of its own.
    pub(super) fn time(&self, at: usize, wanted: Option<Session>) -> Option<bool> {
        let early = [false, true].into_iter();
        let mut possible = early.filter(|early| !early || self.nodes[at].node.leads_session);
        possible.find(|early| wanted.is_none_or(|wanted| self.session(at, *early) == wanted))
    }

    fn group(&self, process: &Process, leads_session: bool) -> Group {
        let root = self.processes.first().unwrap_or(process);
        let session = self.sessions.session(process);
        if leads_session || process.pgid == process.pid || process.pid == root.pid {
            Group::Own
        } else if process.pgid == root.pgid && session == self.sessions.session(root) {
            // That of the root, which leads its own from now on.
            Group::Join(root.pid)
        } else if process.outside_group || process.pgid == root.pgid || process.pgid <= 0 {
            if session == Session::Outside { Group::Outside } else { Group::Stay }
        } else {
            Group::Join(process.pgid)
        }
    }
}
