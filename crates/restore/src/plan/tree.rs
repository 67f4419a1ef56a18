//! Who is born of whom: the tree of processes as clone(2), setsid(2) and setpgid(2) can make it again.
//!
//! A process inherits its session and group from whoever makes it, and nobody can be put into a session later. So each is made by its
//! parent at the right time, before or after that becomes leader of a session of its own; and what cannot be made so, by *ghosts*:
//! processes that are there only meanwhile, as leaders of sessions and groups whose own leaders are gone, or to leave orphans behind.

use std::collections::{BTreeMap, BTreeSet};

use rewake_image::Image;
use rewake_image::records::Process;

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
    pub(super) fate: Fate<'a>,
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
    nodes: Vec<Node<'a>>,
}

impl<'a> Tree<'a> {
    /// Decides who makes whom. Ghosts that were nobody get ids out of `spare`.
    ///
    /// # Errors
    /// A session that cannot be had again, by name.
    pub(super) fn new(image: &'a Image, spare: &'a [i32]) -> Result<Self, RestoreError> {
        let members = image.processes.iter().map(|process| (process.pid, process)).collect();
        let mut family = Family { root: image.root(), members, spare: spare.iter(), nodes: Vec::new() };
        for process in &image.processes {
            family.add(process)?;
        }
        family.group_leaders();
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
        } else if process.pgid == self.root.pgid {
            // That of the root, which leads its own from now on.
            Group::Join(self.root.pid)
        } else {
            Group::Join(process.pgid)
        };
        let (maker, early) = self.maker(process, leads_session)?;
        self.nodes.push(Node { id: process.pid, maker, early, leads_session, group, fate });
        Ok(())
    }

    /// Who makes a process, and whether early.
    fn maker(&mut self, process: &Process, leads_session: bool) -> Result<(Option<i32>, bool), RestoreError> {
        if process.pid == self.root.pid {
            return Ok((None, false));
        }
        let parent = self.members[&process.ppid];
        if leads_session || process.sid == parent.sid {
            return Ok((Some(parent.pid), false));
        }
        if parent.sid == parent.pid && self.session_at_birth(parent) == self.session(process.sid) {
            return Ok((Some(parent.pid), true));
        }
        if parent.child_subreaper {
            return self.orphan(process, parent).map(|maker| (Some(maker), false));
        }
        Err(RestoreError::Unsupported {
            pid: process.pid,
            object: format!("session {}", process.sid),
            reason: format!("its parent {} is in another one, {}", parent.pid, parent.sid),
        })
    }

    /// The session that a process was born into, before it made its own.
    fn session_at_birth(&self, process: &Process) -> Session {
        let node = self.nodes.iter().find(|node| node.id == process.pid);
        let maker = node.and_then(|node| Some((self.members.get(&node.maker?)?, node.early)));
        match maker {
            None => Session::Outside,
            Some((maker, true)) => self.session_at_birth(maker),
            Some((maker, false)) => self.session(maker.sid),
        }
    }

    fn session(&self, sid: i32) -> Session {
        let outside = if self.root.sid == self.root.pid {
            // It made its own, and may have children from before.
            !self.members.contains_key(&sid) && !self.root.child_subreaper
        } else {
            sid == self.root.sid
        };
        if outside { Session::Outside } else { Session::Inside(sid) }
    }

    /// One whose parent has ended, in a session that is not that of the one who got it: somebody of that session makes it and goes.
    fn orphan(&mut self, process: &Process, reaper: &Process) -> Result<i32, RestoreError> {
        let known = self.nodes.iter().find(|node| node.id == process.sid);
        if let Some(Node { id, fate: Fate::Ghost, .. }) = known {
            return Ok(*id);
        }
        if self.members.contains_key(&process.sid) {
            let id = *self.spare.next().ok_or_else(|| RestoreError::Unsupported {
                pid: process.pid,
                object: format!("session {}", process.sid),
                reason: format!("there is no free process id to leave it to {} with", reaper.pid),
            })?;
            let leader = process.sid;
            self.nodes.push(Node {
                id,
                maker: Some(leader),
                early: false,
                leads_session: false,
                group: Group::Join(leader),
                fate: Fate::Ghost,
            });
            return Ok(id);
        }
        let id = process.sid;
        self.nodes.push(Node {
            id,
            maker: Some(reaper.pid),
            early: false,
            leads_session: true,
            group: Group::Own,
            fate: Fate::Ghost,
        });
        Ok(id)
    }

    /// Groups whose leaders are gone: the first of their members makes one for the time that the others need to join.
    fn group_leaders(&mut self) {
        let known: BTreeSet<i32> = self.nodes.iter().map(|node| node.id).collect();
        let mut missing: BTreeMap<i32, i32> = BTreeMap::new();
        for node in &self.nodes {
            if let Group::Join(group) = node.group
                && !known.contains(&group)
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
            fate: Fate::Ghost,
        }));
    }
}

/// A session, as far as it can be told apart after the resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Session {
    /// That of `resume`, whichever it was before.
    Outside,
    Inside(i32),
}
