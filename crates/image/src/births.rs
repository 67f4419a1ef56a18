//! Who is born of whom: the tree of processes as clone(2), setsid(2) and setpgid(2) can make it again.
//!
//! A process inherits its session, its group and what it has in common with others from whoever makes it; nobody can be put into a
//! session later, or be given the descriptors of somebody else. So each is made by its parent at the right time, before or after that
//! becomes leader of a session of its own; or by a child of its parent (CLONE_PARENT); and what cannot be made so, by *ghosts*:
//! processes that are there only meanwhile, in the place of those between that have ended. What a ghost leaves behind goes to its
//! *heir*, who takes in orphans (PR_SET_CHILD_SUBREAPER) for that time.
//!
//! A capture asks this before it begins and again before anything is written, so that there is no image that cannot be woken; the
//! restore carries it out.

mod family;
mod groups;
mod makers;
#[cfg(any(test, feature = "sample"))]
pub mod model;
mod sessions;

use std::collections::{BTreeSet, HashMap};

use crate::records::Process;
use family::Family;

/// Kinds of what clone(2) can share, in the order of [`Process::common`].
const KINDS: usize = 4;
const MEMORY: usize = 0;
const DISPOSITIONS: usize = 3;
/// So often it is tried to let somebody who is gone be the first to have something.
const TRIES: u32 = 64;

/// What becomes of somebody who was made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate<'a> {
    /// It goes on.
    Lives(&'a Process),
    /// It ends again at last, with this status, and waits to be waited for.
    Zombie(&'a Process),
    /// It ends again, and its maker waits for it.
    Ghost,
}

/// Where somebody's process group comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// It leads one.
    Own,
    /// It joins that of this id.
    Join(i32),
    /// It joins that of `resume`, which stands for one from outside.
    Outside,
    /// That in which it is born.
    Stay,
}

/// Somebody to be made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node<'a> {
    /// Its process id. Those of ghosts that were nobody are -1, -2 and so on: any will do.
    pub id: i32,
    /// By whom; nobody in here for the root.
    pub maker: Option<i32>,
    /// Before the maker leads a session of its own.
    pub early: bool,
    /// It leads a session, and so a group.
    pub leads_session: bool,
    /// Its group.
    pub group: Group,
    /// The turn at which it joins: after others have joined the group that it led before. At once if it led none.
    pub turn: u32,
    /// What becomes of it.
    pub fate: Fate<'a>,
    /// It becomes a child of its maker's parent (CLONE_PARENT).
    pub beside: bool,
    /// What it has in common with its maker, in the order of [`Process::common`].
    pub shares: [bool; KINDS],
    /// Who gets those that a ghost leaves behind.
    pub heir: Option<i32>,
    /// The round in which a ghost ends: before others become heirs.
    pub round: u32,
    /// A ghost in whose memory others map theirs.
    pub lends_memory: bool,
}

/// Everybody; the root first, and each after its maker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Births<'a> {
    /// In the order of their making.
    pub nodes: Vec<Node<'a>>,
    by_id: HashMap<i32, usize>,
}

/// Why processes cannot be made again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("process {pid} ({object}) cannot be made again: {reason}")]
pub struct CannotBeMade {
    /// Which.
    pub pid: i32,
    /// What of it.
    pub object: String,
    /// Why.
    pub reason: String,
}

/// Something that processes have in common: its kind, and who has it by the records.
type Class = (usize, i32);

/// Of each kind, what somebody must have in common with its maker, if anything.
type Needs = [Option<i32>; KINDS];

/// What was in the way, and what might be had from somebody who is gone.
struct Failure {
    error: CannotBeMade,
    classes: Vec<Class>,
}

impl<'a> Births<'a> {
    /// Decides who makes whom. Each process must come after its parent, the root first.
    ///
    /// # Errors
    /// A process that cannot be made again, and why.
    pub fn plan(processes: &'a [Process]) -> Result<Self, CannotBeMade> {
        let mut tries = TRIES;
        let nodes = attempt(processes, &BTreeSet::new(), &mut tries).map_err(|failure| failure.error)?;
        let by_id = nodes.iter().enumerate().map(|(at, node)| (node.id, at)).collect();
        Ok(Self { nodes, by_id })
    }

    /// Those whom `id` makes, early or not.
    pub fn made_by(&self, id: i32, early: bool) -> impl Iterator<Item = &Node<'a>> {
        self.nodes.iter().filter(move |node| node.maker == Some(id) && node.early == early)
    }

    /// Whether anybody is made besides the root.
    #[must_use]
    pub fn is_tree(&self) -> bool {
        self.nodes.len() > 1
    }

    /// Somebody by id.
    #[must_use]
    pub fn node(&self, id: i32) -> Option<&Node<'a>> {
        self.by_id.get(&id).and_then(|at| self.nodes.get(*at))
    }

    /// Whose child somebody is when it is made; nobody's in here for the root.
    #[must_use]
    pub fn parent_at_birth(&self, node: &Node<'a>) -> Option<&Node<'a>> {
        let maker = self.node(node.maker?)?;
        if node.beside { self.parent_at_birth(maker) } else { Some(maker) }
    }

    /// How often somebody joins a group after others have joined the one it led.
    #[must_use]
    pub fn turns(&self) -> u32 {
        self.nodes.iter().map(|node| node.turn).max().unwrap_or(0)
    }

    /// In how many rounds ghosts end; none where there are none.
    #[must_use]
    pub fn rounds(&self) -> u32 {
        self.ghosts().map(|ghost| ghost.round + 1).max().unwrap_or(0)
    }

    /// Whether somebody gets what ghosts of this round leave behind.
    #[must_use]
    pub fn inherits(&self, id: i32, round: u32) -> bool {
        self.ghosts().any(|ghost| ghost.heir == Some(id) && ghost.round == round)
    }

    /// Those that are there only meanwhile.
    pub fn ghosts(&self) -> impl Iterator<Item = &Node<'a>> {
        self.nodes.iter().filter(|node| node.fate == Fate::Ghost)
    }

    /// How many are still there when the ghosts of these first rounds have ended.
    #[must_use]
    pub fn after_rounds(&self, rounds: u32) -> usize {
        self.nodes.iter().filter(|node| node.fate != Fate::Ghost || node.round >= rounds).count()
    }

    /// How many go on.
    #[must_use]
    pub fn living(&self) -> usize {
        self.nodes.iter().filter(|node| matches!(node.fate, Fate::Lives(_))).count()
    }

    /// How many ghosts need ids that nobody had.
    #[must_use]
    pub fn spare_ids(&self) -> usize {
        self.nodes.iter().filter(|node| node.id < 0).count()
    }

    /// The same with ids for those that need one.
    ///
    /// # Errors
    /// The number of ids that would be needed.
    pub fn with_spare_ids(mut self, spare: &[i32]) -> Result<Self, usize> {
        let needed = self.spare_ids();
        let given = |id: i32| {
            let place = usize::try_from(id.checked_neg().unwrap_or(0)).unwrap_or(0).checked_sub(1);
            place.map_or(Some(id), |place| spare.get(place).copied())
        };
        for node in &mut self.nodes {
            node.id = given(node.id).ok_or(needed)?;
            node.maker = node.maker.map(|maker| given(maker).ok_or(needed)).transpose()?;
        }
        self.by_id = self.nodes.iter().enumerate().map(|(at, node)| (node.id, at)).collect();
        Ok(self)
    }
}

/// Tries with some things being had first by somebody who is gone; with one more of those that were missing, if need be.
fn attempt<'a>(
    processes: &'a [Process],
    from_ghosts: &BTreeSet<Class>,
    tries: &mut u32,
) -> Result<Vec<Node<'a>>, Failure> {
    let failure = match Family::new(processes, from_ghosts).all() {
        Ok(nodes) => return Ok(nodes),
        Err(failure) => failure,
    };
    for class in failure.classes.iter().filter(|class| !from_ghosts.contains(class)) {
        let Some(left) = tries.checked_sub(1) else { break };
        *tries = left;
        let mut more = from_ghosts.clone();
        more.insert(*class);
        if let Ok(nodes) = attempt(processes, &more, tries) {
            return Ok(nodes);
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests;
