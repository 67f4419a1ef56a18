//! Making the processes of a tree, and their meetings.
//!
//! Each dies with its maker until the tracer has it. When all are there (*born*), the tracer traces those that will go on; they join
//! their groups (*grouped*); those that were there for that only end, and are waited for; and all go on (*settled*).

use std::collections::VecDeque;

use rewake_image::records::AddressSpace;
use rewake_linux::program::{Accept, DataRef, Program, Sysno, TrackRef, Value};

use super::tree::{Fate, Group, Node, Tree};
use super::{Planner, Special, args};
use crate::error::RestoreError;

const PR_SET_CHILD_SUBREAPER: i32 = 36;
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
    pub(super) fn new(program: &mut Program, tree: &Tree<'_>) -> Self {
        let mut word = || if tree.is_tree() { program.zeros(4) } else { DataRef { offset: 0, len: 0 } };
        let grouped = (0..=tree.turns()).map(|_| word()).collect();
        Self {
            born: word(),
            grouped,
            settled: word(),
            closed: word(),
            peopled: word(),
            opened: [word(), word()],
        }
    }

    /// Where the tracer meets them, and how many they are with him.
    pub(super) fn born(&self, tree: &Tree<'_>) -> Option<(DataRef, u32)> {
        tree.is_tree().then(|| (self.born, parties(tree.nodes.len() + 1)))
    }
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
        let parent = match node.fate {
            Fate::Lives(process) | Fate::Zombie(process) if node.beside => Some(process.ppid),
            _ => node.maker,
        };
        let parent = u64::from(parent.unwrap_or(0).unsigned_abs());
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
        if let Fate::Lives(process) = node.fate
            && process.child_subreaper
        {
            // Orphans are left to it.
            let args = args![PR_SET_CHILD_SUBREAPER, 1];
            self.program.call(self.leader, Sysno::prctl, args).note("child subreaper");
        }
        let made = |early| self.tree.made_by(node.id, early).copied().collect::<Vec<Node<'a>>>();
        let (early, late) = (made(true), made(false));
        for child in early {
            self.bring_forth(&child, inherited, waiting);
        }
        self.lead(node);
        for child in late {
            self.bring_forth(&child, inherited, waiting);
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
        if let Fate::Lives(process) = child.fate
            && process.descriptors_of.is_some()
        {
            // It, or one that it makes, opens its mapped files at the same numbers.
            let word = self.program.zeros(4);
            self.taking_turns.insert(child.id, word);
            self.program
                .barrier(self.leader, word, 2)
                .note("the other has done with the descriptors they share");
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
        let orphan =
            node.maker.and_then(|maker| self.tree.node(maker)).is_some_and(|maker| maker.fate == Fate::Ghost);
        if orphan {
            self.program
                .call(track, Sysno::prctl, args![libc::PR_SET_PDEATHSIG, 0])
                .note("survive who made it");
        }
        for turn in 0..=self.tree.turns() {
            if let Group::Join(group) = node.group
                && node.turn == turn
            {
                self.program
                    .call(track, Sysno::setpgid, args![0, group])
                    .note(format!("process group {group}"));
            }
            let word = usize::try_from(turn).expect("fewer than processes");
            self.program.barrier(track, grouped[word], all).note("all are in their groups");
        }
        self.wait_for_the_passing(node);
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
    pub(super) fn end_turn(&mut self) {
        if let Some(word) = self.taking_turns.remove(&self.process.pid) {
            self.program.barrier(self.leader, word, 2).note("done with the descriptors that are shared");
        }
    }

    /// Ghosts are gone then, and those who ended have, without a trace of it here.
    fn wait_for_the_passing(&mut self, node: &Node<'a>) {
        let (track, tree) = (self.leader, &self.tree);
        let ghosts = tree.nodes.iter().filter(|one| one.maker == Some(node.id) && one.fate == Fate::Ghost);
        let ghosts: Vec<i32> = ghosts.map(|ghost| ghost.id).collect();
        for id in ghosts {
            let expected = Accept::Exactly(id.unsigned_abs().into());
            let call = self.program.call(track, Sysno::wait4, args![id, 0, WALL, 0]).accept(expected);
            call.retry().note("it is gone again");
        }
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
fn tree_zombies(tree: &Tree<'_>, parent: i32) -> Vec<(i32, u32)> {
    let zombie = |node: &Node<'_>| match node.fate {
        Fate::Zombie(process) if process.ppid == parent => {
            Some((node.id, process.exit_signal.unwrap_or(libc::SIGCHLD).unsigned_abs()))
        }
        _ => None,
    };
    tree.nodes.iter().filter_map(zombie).collect()
}
