//! Who is born of whom: the tree of processes as clone(2), setsid(2) and setpgid(2) can make it again.
//!
//! A process inherits its session and group from whoever makes it, and nobody can be put into a session later. So each is made by its
//! parent at the right time, before or after that becomes leader of a session of its own; and what cannot be made so, by *ghosts*:
//! processes that are there only meanwhile, as leaders of sessions and groups whose own leaders are gone, or to leave orphans behind.

use std::collections::{BTreeMap, BTreeSet};

use rewake_image::Image;
use rewake_image::records::Process;

use super::Site;
use crate::error::RestoreError;

/// What becomes of somebody who was made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fate<'a> {
    /// It goes on.
    Lives(&'a Process),
    /// It ends again at once, with this status, and waits to be waited for.
    Zombie(&'a Process),
    /// It ends again, and its maker waits for it.
    Ghost,
}

/// Where somebody's process group comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// It leads one.
    Own,
    /// It joins that of this id.
    Join(i32),
    /// That of `resume`, in which it is born, or another one from outside.
    Stay,
}

/// Somebody to be made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Node<'a> {
    pub(super) id: i32,
    /// By whom; nobody in here for the root.
    pub(super) maker: Option<i32>,
    /// Before the maker leads a session of its own.
    pub(super) early: bool,
    /// It leads a session, and so a group.
    pub(super) leads_session: bool,
    pub(super) group: Group,
    /// The turn at which it joins: after others have joined the group that it led before. At once if it led none.
    pub(super) turn: u32,
    pub(super) fate: Fate<'a>,
    /// It becomes a child of its maker's parent (CLONE_PARENT).
    pub(super) beside: bool,
    /// What it has in common with its maker, in the order of [`Process::common`].
    pub(super) shares: [bool; 4],
}

/// Who makes somebody.
#[derive(Clone, Copy, Debug)]
struct Birth {
    maker: Option<i32>,
    early: bool,
    beside: bool,
    shares: [bool; 4],
}

/// Everybody; the root first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tree<'a> {
    pub(super) nodes: Vec<Node<'a>>,
}

/// What is needed to find out.
struct Family<'a> {
    root: &'a Process,
    members: BTreeMap<i32, &'a Process>,
    spare: std::slice::Iter<'a, i32>,
    /// That of `resume`.
    own_group: Option<i32>,
    nodes: Vec<Node<'a>>,
}

impl<'a> Tree<'a> {
    /// Decides who makes whom. Ghosts that were nobody get spare ids.
    ///
    /// # Errors
    /// A session that cannot be had again, by name.
    pub(super) fn new(image: &'a Image, site: &'a Site) -> Result<Self, RestoreError> {
        let members = image.processes.iter().map(|process| (process.pid, process)).collect();
        let (spare, own_group) = (site.spare_ids.iter(), site.own_group);
        let mut family = Family { root: image.root(), members, spare, own_group, nodes: Vec::new() };
        for process in &image.processes {
            family.add(process)?;
        }
        family.group_leaders();
        family.turns()?;
        Ok(Self { nodes: family.nodes })
    }

    /// Those whom `id` makes, early or not.
    pub(super) fn made_by(&self, id: i32, early: bool) -> impl Iterator<Item = &Node<'a>> {
        self.nodes.iter().filter(move |node| node.maker == Some(id) && node.early == early)
    }

    /// Whether anybody is made besides the root.
    pub(super) fn is_tree(&self) -> bool {
        self.nodes.len() > 1
    }

    pub(super) fn node(&self, id: i32) -> Option<&Node<'a>> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// How often somebody joins a group after others have joined the one it led.
    pub(super) fn turns(&self) -> u32 {
        self.nodes.iter().map(|node| node.turn).max().unwrap_or(0)
    }

    /// How many go on.
    pub(super) fn living(&self) -> usize {
        self.nodes.iter().filter(|node| matches!(node.fate, Fate::Lives(_))).count()
    }
}

impl<'a> Family<'a> {
    fn add(&mut self, process: &'a Process) -> Result<(), RestoreError> {
        let fate = if process.exit_status.is_some() { Fate::Zombie(process) } else { Fate::Lives(process) };
        let leads_session = process.sid == process.pid;
        let group = if leads_session || process.pgid == process.pid || process.pid == self.root.pid {
            Group::Own
        } else if process.pgid == self.root.pgid && self.session_of(process) == self.session_of(self.root) {
            // That of the root, which leads its own from now on.
            Group::Join(self.root.pid)
        } else if process.outside_group || process.pgid == self.root.pgid {
            let outside = self.own_group.filter(|_| self.session_of(process) == Session::Outside);
            outside.map_or(Group::Stay, Group::Join)
        } else {
            Group::Join(process.pgid)
        };
        let Birth { maker, early, beside, shares } = self.birth(process, leads_session)?;
        self.nodes.push(Node {
            id: process.pid,
            maker,
            early,
            leads_session,
            group,
            turn: 0,
            fate,
            beside,
            shares,
        });
        Ok(())
    }

    /// Who makes a process, and when: its parent, if they have in common what it shares with others; else a child of the same parent,
    /// or somebody who leaves it to its parent.
    fn birth(&mut self, process: &'a Process, leads_session: bool) -> Result<Birth, RestoreError> {
        let Some(parent) = self.members.get(&process.ppid).copied().filter(|_| process.pid != self.root.pid)
        else {
            return Ok(Birth { maker: None, early: false, beside: false, shares: [false; 4] });
        };
        if let Some(shares) = shares(process, parent) {
            if let Some(early) = self.time(process, leads_session, parent) {
                return Ok(Birth { maker: Some(parent.pid), early, beside: false, shares });
            }
            if parent.child_subreaper && shares == [false; 4] {
                let maker = Some(self.orphan(process, parent)?);
                return Ok(Birth { maker, early: false, beside: false, shares });
            }
        }
        let sibling = |node: &Node<'a>| match node.fate {
            Fate::Lives(other) if other.ppid == parent.pid && other.exit_signal == process.exit_signal => {
                let shares = shares(process, other)?;
                let early = self.time(process, leads_session, other)?;
                Some(Birth { maker: Some(other.pid), early, beside: true, shares })
            }
            _ => None,
        };
        if let Some(birth) = self.nodes.iter().find_map(sibling) {
            return Ok(birth);
        }
        if parent.child_subreaper
            && let Some(birth) = self.left_behind(process, leads_session, parent)?
        {
            return Ok(birth);
        }
        let (object, reason) = if shares(process, parent).is_some() {
            let reason = format!("its parent {} is in another one, {}", parent.pid, parent.sid);
            (format!("session {}", process.sid), reason)
        } else {
            let reason =
                "it has something in common with a process by which it cannot be made here".to_owned();
            ("process".to_owned(), reason)
        };
        Err(RestoreError::Unsupported { pid: process.pid, object, reason })
    }

    /// Whether somebody in the right session can make it, before or after that leads one of its own.
    fn time(&self, process: &Process, leads_session: bool, maker: &Process) -> Option<bool> {
        if leads_session {
            let wanted = self.wanted_at_birth(process).filter(|wanted| *wanted != self.session_of(maker));
            let Some(wanted) = wanted else { return Some(false) };
            let early = maker.sid == maker.pid && wanted == self.session_at_birth(maker);
            return early.then_some(true);
        }
        if process.sid == maker.sid {
            return Some(false);
        }
        let early = maker.sid == maker.pid && self.session_at_birth(maker) == self.session_of(process);
        early.then_some(true)
    }

    /// The session that a leader must be born into, since it has a child in it.
    fn wanted_at_birth(&self, leader: &Process) -> Option<Session> {
        let own = self.session_of(leader);
        let children = self.members.values().filter(|child| child.ppid == leader.pid);
        children.copied().find_map(|child| {
            let wanted =
                if child.sid == child.pid { self.wanted_at_birth(child)? } else { self.session_of(child) };
            (wanted != own).then_some(wanted)
        })
    }

    /// One whose parent has ended, and that had something in common with it that others still have.
    fn left_behind(
        &mut self,
        process: &'a Process,
        leads_session: bool,
        reaper: &Process,
    ) -> Result<Option<Birth>, RestoreError> {
        const DESCRIPTORS: usize = 1;
        let maker = self.nodes.iter().find_map(|node| match node.fate {
            Fate::Lives(other) if self.reaper_of(other) == Some(reaper.pid) => {
                let shares = shares(process, other).filter(|shares| !shares[DESCRIPTORS])?;
                self.time(process, leads_session, other).map(|early| (other.pid, early, shares))
            }
            _ => None,
        });
        let Some((maker, early, shares)) = maker else { return Ok(None) };
        let id = self.spare_id(process, reaper)?;
        self.nodes.push(Node {
            id,
            maker: Some(maker),
            early,
            leads_session: false,
            group: Group::Stay,
            turn: 0,
            fate: Fate::Ghost,
            beside: false,
            shares,
        });
        Ok(Some(Birth { maker: Some(id), early: false, beside: false, shares }))
    }

    /// Who takes in the children that a child of this process leaves behind.
    fn reaper_of(&self, process: &Process) -> Option<i32> {
        let mut ancestor = process;
        for _ in 0..=self.members.len() {
            if ancestor.child_subreaper {
                return Some(ancestor.pid);
            }
            ancestor = self.members.get(&ancestor.ppid)?;
        }
        None
    }

    fn spare_id(&mut self, process: &Process, reaper: &Process) -> Result<i32, RestoreError> {
        self.spare.next().copied().ok_or_else(|| RestoreError::Unsupported {
            pid: process.pid,
            object: format!("session {}", process.sid),
            reason: format!("there is no free process id to leave it to {} with", reaper.pid),
        })
    }

    /// The session that a process was born into, before it made its own.
    fn session_at_birth(&self, process: &Process) -> Session {
        self.session_at_birth_of(process.pid)
    }

    fn session_at_birth_of(&self, id: i32) -> Session {
        let by_id = |id: i32| self.nodes.iter().find(|node| node.id == id);
        let Some(node) = by_id(id) else { return Session::Outside };
        let Some(maker) = node.maker.and_then(by_id) else { return Session::Outside };
        match maker.fate {
            _ if node.early => self.session_at_birth_of(maker.id),
            Fate::Lives(process) | Fate::Zombie(process) => self.session_of(process),
            Fate::Ghost if maker.leads_session => Session::Inside(maker.id),
            Fate::Ghost => self.session_at_birth_of(maker.id),
        }
    }

    fn session_of(&self, process: &Process) -> Session {
        let sid = process.sid;
        let outside = if self.root.sid == self.root.pid {
            // It made its own, and may have children from before.
            process.outside_session || !self.members.contains_key(&sid) && !self.root.child_subreaper
        } else {
            sid == self.root.sid
        };
        if outside { Session::Outside } else { Session::Inside(sid) }
    }

    /// One whose parent has ended, in a session that is not that of the one who got it: somebody of that session makes it and goes.
    fn orphan(&mut self, process: &Process, reaper: &Process) -> Result<i32, RestoreError> {
        let session = match self.wanted_at_birth(process) {
            Some(Session::Inside(session)) if process.sid == process.pid => session,
            _ => process.sid,
        };
        let known = self.nodes.iter().find(|node| node.id == session);
        if let Some(Node { id, fate: Fate::Ghost, .. }) = known {
            return Ok(*id);
        }
        if let Some(leader) = self.members.get(&session) {
            // One that takes in orphans now may not have done so then.
            if self.reaper_of(leader) != Some(reaper.pid) {
                let reason = format!(
                    "its parent {} did not make it, and another process would take it in",
                    reaper.pid
                );
                let object = format!("session {session}");
                return Err(RestoreError::Unsupported { pid: process.pid, object, reason });
            }
            let id = self.spare_id(process, reaper)?;
            let leader = session;
            self.nodes.push(Node {
                id,
                maker: Some(leader),
                early: false,
                leads_session: false,
                group: Group::Join(leader),
                turn: 0,
                fate: Fate::Ghost,
                beside: false,
                shares: [false; 4],
            });
            return Ok(id);
        }
        let id = session;
        self.nodes.push(Node {
            id,
            maker: Some(reaper.pid),
            early: false,
            leads_session: true,
            group: Group::Own,
            turn: 0,
            fate: Fate::Ghost,
            beside: false,
            shares: [false; 4],
        });
        Ok(id)
    }

    /// Those who led a group that others are in still, and joined another one since: they lead theirs until the others have joined.
    fn turns(&mut self) -> Result<(), RestoreError> {
        let joined = |node: &Node<'_>| if let Group::Join(group) = node.group { Some(group) } else { None };
        let into: BTreeMap<i32, Vec<i32>> = self.nodes.iter().fold(BTreeMap::new(), |mut into, node| {
            into.entry(joined(node).unwrap_or(0)).or_insert_with(Vec::new).push(node.id);
            into
        });
        let moved = |node: &&Node<'_>| joined(node).is_some_and(|group| group != node.id);
        let mut turns: BTreeMap<i32, u32> =
            self.nodes.iter().filter(moved).map(|node| (node.id, 0)).collect();
        // Each comes after all who join its group; more turns than nodes there cannot be.
        for _ in 0..=self.nodes.len() {
            let after = |id: &i32| {
                into.get(id)
                    .and_then(|who| who.iter().map(|one| turns.get(one).map_or(1, |turn| turn + 1)).max())
            };
            let next: BTreeMap<i32, u32> = turns.keys().map(|id| (*id, after(id).unwrap_or(0))).collect();
            if next == turns {
                for node in &mut self.nodes {
                    node.turn = turns.get(&node.id).copied().unwrap_or(0);
                }
                return Ok(());
            }
            turns = next;
        }
        let reason = "processes lead each other's process groups".to_owned();
        Err(RestoreError::Unsupported { pid: self.root.pid, object: "process groups".to_owned(), reason })
    }

    /// Groups whose leaders are gone: the first of their members makes one for the time that the others need to join.
    fn group_leaders(&mut self) {
        let known: BTreeSet<i32> = self.nodes.iter().map(|node| node.id).collect();
        let mut missing: BTreeMap<i32, i32> = BTreeMap::new();
        for node in &self.nodes {
            if let Group::Join(group) = node.group
                && !known.contains(&group)
                && Some(group) != self.own_group
            {
                missing.entry(group).or_insert(node.id);
            }
        }
        self.nodes.extend(missing.into_iter().map(|(group, member)| Node {
            id: group,
            maker: Some(member),
            early: false,
            leads_session: false,
            group: Group::Own,
            turn: 0,
            fate: Fate::Ghost,
            beside: false,
            shares: [false; 4],
        }));
    }
}

/// What a process has in common with one that could make it; `None` if it has something in common with others, and that one has not.
fn shares(process: &Process, maker: &Process) -> Option<[bool; 4]> {
    let (own, others) = (process.common(), maker.common());
    let mut shares = [false; 4];
    for ((own, other), shares) in own.into_iter().zip(others).zip(&mut shares) {
        *shares = own == other;
        if own != other && own != process.pid {
            return None;
        }
    }
    Some(shares)
}

/// A session, as far as it can be told apart after the resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Session {
    /// That of `resume`, whichever it was before.
    Outside,
    Inside(i32),
}
