//! Making the processes of a tree, and their meetings.
//!
//! Each dies with its maker until the tracer has it. When all are there (*born*), the tracer traces those that will go on; they join
//! their groups (*grouped*); those that were there for that only end, and are waited for (*passed*, in rounds); and all go on
//! (*settled*).

use std::collections::VecDeque;

use rewake_image::Image;
use rewake_image::births::{Births, Fate, Group, Node};
use rewake_image::records::AddressSpace;
use rewake_linux::program::{Accept, DataRef, Program, Sysno, TrackRef, Value};

use super::{Planner, Site, Special, args};
use crate::error::RestoreError;

const PR_SET_CHILD_SUBREAPER: i32 = 36;
/// Of what clone(2) can share, in the order of `Node::shares`.
const MEMORY: usize = 0;
const DESCRIPTORS: usize = 1;
const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_PARENT: u64 = 0x8000;
/// Children that send no signal when they end are waited for, too.
const WALL: i32 = 0x4000_0000;
const P_PID: i32 = 1;
const WAIT_AND_LEAVE: i32 = libc::WEXITED | libc::WNOWAIT;
const MASK_SIZE: i32 = 8;
/// Exit status of one that could not go on.
const FAILED: i32 = 125;

/// The words at which all processes meet.
#[derive(Clone, Debug)]
pub(super) struct Family {
    born: DataRef,
    /// One for each turn.
    grouped: Vec<DataRef>,
    /// For each round in which some end: those who get what these leave behind take it in; they have ended.
    passed: Vec<[DataRef; 2]>,
    settled: DataRef,
    closed: DataRef,
    peopled: DataRef,
    opened: [DataRef; 2],
}

/// A process whose track is there, but has nothing in it yet.
#[derive(Clone, Debug)]
pub(super) struct Growing<'a> {
    pub(super) node: Node<'a>,
    track: TrackRef,
    /// The memory it is born with; that of `resume` when there is none.
    pub(super) inherited: Option<Inherited<'a>>,
}

/// The memory somebody is born with.
#[derive(Clone, Debug)]
pub(super) struct Inherited<'a> {
    pub(super) memory: &'a AddressSpace,
    /// The kernel's own mappings in it.
    pub(super) specials: Vec<Special>,
}

pub(super) type Waiting<'a> = VecDeque<Growing<'a>>;

impl Family {
    pub(super) fn new(program: &mut Program, tree: &Births<'_>) -> Self {
        let mut word = || if tree.is_tree() { program.zeros(4) } else { DataRef { offset: 0, len: 0 } };
        let grouped = (0..=tree.turns()).map(|_| word()).collect();
        let passed = (0..tree.rounds()).map(|_| [word(), word()]).collect();
        Self {
            born: word(),
            grouped,
            passed,
            settled: word(),
            closed: word(),
            peopled: word(),
            opened: [word(), word()],
        }
    }

    /// Where the tracer meets them, and how many they are with him.
    pub(super) fn born(&self, tree: &Births<'_>) -> Option<(DataRef, u32)> {
        tree.is_tree().then(|| (self.born, parties(tree.nodes.len() + 1)))
    }
}

/// Who makes whom.
///
/// # Errors
/// A process that cannot be made again, by name.
pub(super) fn births<'a>(image: &'a Image, site: &Site) -> Result<Births<'a>, RestoreError> {
    let births = Births::plan(&image.processes).map_err(|error| RestoreError::Unsupported {
        pid: error.pid,
        object: error.object,
        reason: error.reason,
    })?;
    births.with_spare_ids(&site.spare_ids).map_err(|needed| RestoreError::Unsupported {
        pid: image.root().pid,
        object: "process ids".to_owned(),
        reason: format!("there are no {needed} free ones for processes that are there only meanwhile"),
    })
}

fn parties(count: usize) -> u32 {
    u32::try_from(count).expect("image counts are checked")
}

impl<'a> Planner<'a> {
    /// Plans the root, then those it makes, and so on.
    pub(super) fn grow_all(&mut self) -> Result<(), RestoreError> {
        let root = self.tree.nodes.first().copied();
        let mut waiting: Waiting<'a> =
            root.map(|node| Growing { node, track: self.leader, inherited: None }).into_iter().collect();
        while let Some(next) = waiting.pop_front() {
            self.tids.insert(next.track, next.node.id);
            match next.node.fate {
                Fate::Lives(process) => {
                    self.turn_to(process, next.track);
                    self.live(&next, &mut waiting)?;
                }
                Fate::Zombie(_) | Fate::Ghost => self.pass(&next, &mut waiting),
            }
        }
        Ok(())
    }

    /// The first steps of a process that is born of another one.
    pub(super) fn birth_of(&mut self, node: &Node<'a>) {
        let (program, track) = (&mut self.program, self.leader);
        program
            .call(track, Sysno::prctl, args![libc::PR_SET_PDEATHSIG, libc::SIGKILL])
            .note("die with the parent");
        let parent = self.tree.parent_at_birth(node).map_or(0, |parent| parent.id);
        let parent = u64::from(parent.unsigned_abs());
        program
            .call(track, Sysno::getppid, args![])
            .accept(Accept::Exactly(parent))
            .note("it is still there");
    }

    /// Makes those who are born of this one, and its session and group between them.
    pub(super) fn bear(
        &mut self,
        node: &Node<'a>,
        inherited: Option<&Inherited<'a>>,
        waiting: &mut Waiting<'a>,
    ) {
        self.take_in(node, 0);
        let made = |early| self.tree.made_by(node.id, early).copied().collect::<Vec<Node<'a>>>();
        let (early, late) = (made(true), made(false));
        for child in early {
            self.bring_forth(node, &child, inherited, waiting);
        }
        self.lead(node);
        for child in late {
            self.bring_forth(node, &child, inherited, waiting);
        }
    }

    /// A session or group of its own.
    fn lead(&mut self, node: &Node<'a>) {
        // The root does so at once, unless others are to be born before.
        if node.maker.is_none() && self.tree.made_by(node.id, true).next().is_none() {
            return;
        }
        if node.leads_session || node.maker.is_none() && self.site.new_session {
            self.program.call(self.leader, Sysno::setsid, args![]).note("own session");
        } else if node.group == Group::Own || node.turn > 0 {
            self.program.call(self.leader, Sysno::setpgid, args![0, 0]).note("own process group");
        }
    }

    fn bring_forth(
        &mut self,
        node: &Node<'a>,
        child: &Node<'a>,
        inherited: Option<&Inherited<'a>>,
        waiting: &mut Waiting<'a>,
    ) {
        let what = match child.fate {
            Fate::Lives(_) => "process",
            Fate::Zombie(_) => "ended process",
            Fate::Ghost => "passing process",
        };
        let track = self.program.track(format!("{what} {}", child.id));
        let shared = child.shares.into_iter().zip([CLONE_VM, CLONE_FILES, CLONE_FS, CLONE_SIGHAND]);
        let mut flags: u64 = shared.filter(|(shares, _)| *shares).map(|(_, flag)| flag).sum();
        let exit_signal = match child.fate {
            // The kernel gives it that of its maker.
            _ if child.beside => 0,
            Fate::Lives(process) | Fate::Zombie(process) => {
                process.exit_signal.unwrap_or(libc::SIGCHLD).unsigned_abs().into()
            }
            Fate::Ghost => 0,
        };
        if child.beside {
            flags |= CLONE_PARENT;
        }
        let id = self.program.bytes(&child.id.to_le_bytes());
        // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size
        let clone = self.program.words(&[flags, 0, 0, 0, exit_signal, 0, 0, 0, 0, 1]);
        self.program.point(clone, 64, id);
        self.program.spawn(self.leader, track, clone).note(format!("{what} {}", child.id));
        let lent = child.shares[MEMORY] && node.lends_memory;
        if child.shares[DESCRIPTORS] || lent {
            // It, or one that it makes, opens its mapped files at the same numbers; the next one is to be born with the memory mapped.
            let word = self.program.zeros(4);
            self.taking_turns.insert(child.id, word);
            self.program.barrier(self.leader, word, 2).note("the other has done with what they share");
        }
        waiting.push_back(Growing { node: *child, track, inherited: inherited.cloned() });
    }

    /// Everybody meets everybody.
    pub(super) fn meet(&mut self, node: &Node<'a>) {
        if !self.tree.is_tree() {
            return;
        }
        let (all, living, track) = (parties(self.tree.nodes.len()), parties(self.tree.living()), self.leader);
        let Family { born, grouped, settled, .. } = self.family.clone();
        self.program.barrier(track, born, all + 1).note("all are there, and traced");
        if self.tree.parent_at_birth(node).is_some_and(|parent| parent.fate == Fate::Ghost) {
            self.program
                .call(track, Sysno::prctl, args![libc::PR_SET_PDEATHSIG, 0])
                .note("survive who made it");
        }
        for turn in 0..=self.tree.turns() {
            let group = match node.group {
                Group::Join(group) => Some(group),
                Group::Outside => self.site.own_group,
                Group::Own | Group::Stay => None,
            };
            if let Some(group) = group.filter(|_| node.turn == turn) {
                self.program
                    .call(track, Sysno::setpgid, args![0, group])
                    .note(format!("process group {group}"));
            }
            let word = usize::try_from(turn).expect("fewer than processes");
            self.program.barrier(track, grouped[word], all).note("all are in their groups");
        }
        self.pass_on(node);
        if node.fate == Fate::Ghost {
            return;
        }
        self.wait_for_the_ended(node);
        if let Fate::Lives(_) = node.fate {
            self.program.barrier(track, settled, living).note("the family is complete");
        }
    }

    /// How many have descriptors of their own.
    fn with_descriptors(&self) -> u32 {
        let own =
            |node: &&Node<'_>| matches!(node.fate, Fate::Lives(process) if process.descriptors_of.is_none());
        parties(self.tree.nodes.iter().filter(own).count())
    }

    /// All that have descriptors of their own have closed their helpers.
    pub(super) fn all_closed(&mut self) {
        if self.tree.is_tree() {
            let all = self.with_descriptors();
            self.program.barrier(self.leader, self.family.closed, all).note("all have closed their helpers");
        }
    }

    /// All threads of all processes are there, and their descriptors.
    pub(super) fn meet_peopled(&mut self) {
        if self.tree.is_tree() {
            let all = parties(self.tree.living());
            self.program.barrier(self.leader, self.family.peopled, all).note("all have their threads");
        }
    }

    /// All that have descriptors of their own meet: files are open that were opened late; then, all have them.
    pub(super) fn meet_opened(&mut self, word: usize) {
        if self.tree.is_tree() {
            let all = self.with_descriptors();
            let word = self.family.opened[word];
            self.program.barrier(self.leader, word, all).note("files that were opened late");
        }
    }

    /// Lets the maker go on, if it waits.
    pub(super) fn end_turn(&mut self, id: i32) {
        if let Some(word) = self.taking_turns.remove(&id) {
            self.program.barrier(self.leader, word, 2).note("done with what is shared");
        }
    }

    /// One who gets what those of a round leave behind takes it in from now on; whether it goes on doing so is set later.
    fn take_in(&mut self, node: &Node<'a>, round: u32) {
        if self.tree.inherits(node.id, round) {
            let args = args![PR_SET_CHILD_SUBREAPER, 1];
            self.program.call(self.leader, Sysno::prctl, args).note("gets those that are left behind");
        }
    }

    /// Ghosts end, round after round; their makers wait for them.
    fn pass_on(&mut self, node: &Node<'a>) {
        let passed = self.family.passed.clone();
        for (round, [ready, gone]) in (0..).zip(passed) {
            if round > 0 {
                self.take_in(node, round);
                let there = parties(self.tree.after_rounds(round));
                self.program.barrier(self.leader, ready, there).note("others get what is left behind now");
            }
            let ghosts =
                self.tree.ghosts().filter(|ghost| ghost.maker == Some(node.id) && ghost.round == round);
            for id in ghosts.map(|ghost| ghost.id).collect::<Vec<i32>>() {
                let expected = Accept::Exactly(id.unsigned_abs().into());
                let call =
                    self.program.call(self.leader, Sysno::wait4, args![id, 0, WALL, 0]).accept(expected);
                call.retry().note("it is gone again");
            }
            if node.fate == Fate::Ghost && node.round == round {
                return;
            }
            let there = parties(self.tree.after_rounds(round + 1));
            self.program.barrier(self.leader, gone, there).note("those of a moment are gone");
        }
    }

    /// Those who ended have, without a trace of it here.
    fn wait_for_the_ended(&mut self, node: &Node<'a>) {
        let track = self.leader;
        let zombies = tree_zombies(&self.tree, node.id);
        let mut signals = 0u64;
        for (id, signal) in zombies {
            let args = args![P_PID, id, 0, WAIT_AND_LEAVE | WALL, 0];
            self.program.call(track, Sysno::waitid, args).retry().note(format!("process {id} has ended"));
            signals |= signal.checked_sub(1).and_then(|bit| 1u64.checked_shl(bit)).unwrap_or(0);
        }
        for bit in (0..u64::BITS).filter(|bit| signals & 1 << bit != 0) {
            // Those that are to be pending come later.
            let set = self.program.words(&[1 << bit]);
            let now = self.program.zeros(16);
            let call = self.program.call(track, Sysno::rt_sigtimedwait, args![set, 0, now, MASK_SIZE]);
            call.accept(Accept::SuccessOr(libc::EAGAIN)).note("the news of it");
        }
    }

    /// Everything of one that ends again.
    fn pass(&mut self, growing: &Growing<'a>, waiting: &mut Waiting<'a>) {
        let node = growing.node;
        self.leader = growing.track;
        self.birth_of(&node);
        self.bear(&node, growing.inherited.as_ref(), waiting);
        self.end_turn(node.id);
        let track = growing.track;
        if let Fate::Zombie(process) = node.fate {
            let name = self.program.string(&process.comm);
            self.program.call(track, Sysno::prctl, args![PR_SET_NAME, name]).note("name");
        }
        self.meet(&node);
        let status = match node.fate {
            Fate::Zombie(process) => process.exit_status.unwrap_or(0),
            _ => 0,
        };
        self.end(track, self.tids[&track].into(), status);
        self.program.on_failure(track);
        self.program.call(track, Sysno::exit_group, args![FAILED]).accept(Accept::Any);
    }

    /// Ends with a status as wait(2) tells it.
    pub(super) fn end(&mut self, track: TrackRef, id: Value, status: i32) {
        let signal = status & 0x7f;
        if signal != 0 {
            let default = self.program.zeros(32);
            // No core is written for it, whatever the signal.
            let none = self.program.zeros(16);
            let program = &mut self.program;
            program.call(track, Sysno::prlimit64, args![0, RLIMIT_CORE, none, 0]).accept(Accept::Any);
            program
                .call(track, Sysno::rt_sigaction, args![signal, default, 0, MASK_SIZE])
                .accept(Accept::Any);
            program.call(track, Sysno::kill, args![id, signal]).note("as it ended");
            let nothing = program.zeros(8);
            program.call(track, Sysno::rt_sigprocmask, args![libc::SIG_SETMASK, nothing, 0, MASK_SIZE]);
        }
        let code = (status >> 8) & 0xff;
        self.program.call(track, Sysno::exit_group, args![code]).note("it had ended");
    }
}

const PR_SET_NAME: i32 = 15;
const RLIMIT_CORE: i32 = 4;

/// Children of a process that ended, with the signal it gets for each.
fn tree_zombies(tree: &Births<'_>, parent: i32) -> Vec<(i32, u32)> {
    let zombie = |node: &Node<'_>| match node.fate {
        Fate::Zombie(process) if process.ppid == parent => {
            Some((node.id, process.exit_signal.unwrap_or(libc::SIGCHLD).unsigned_abs()))
        }
        _ => None,
    };
    tree.nodes.iter().filter_map(zombie).collect()
}
