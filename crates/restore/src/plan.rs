//! Image to program: the whole restore of a process as one flat list of system calls per thread.
//!
//! Planning is pure: [`plan`] reads records and a [`Site`] (what has to be known of the process that will walk the program) and
//! touches nothing. The order is fixed and is the architecture of a restore:
//!
//! 1. *birth*: die with the parent, wait for the tracer, leave libc's registrations, own process group;
//! 2. *files* of all processes are opened by the root, out of the way ([`files`]);
//! 3. *memory*: everything that was there goes, the image's mappings come and are filled ([`memory`]);
//! 4. *family*: each process makes those that are born of it ([`rewake_image::births`], [`family`]), which begin at 3; all meet;
//! 5. *process*: dispositions, attributes ([`process`], [`signals`]);
//! 6. *files* take their numbers;
//! 7. *threads* are cloned with their ids ([`threads`]), pending signals queued, owners of signals, watches and timers of files set,
//!    then locks, limits and timers;
//! 8. all threads park; the tracer gives them their registers and lets them go.

pub mod check;
mod credentials;
mod family;
mod files;
mod ipc;
mod memory;
pub mod own;
mod process;
#[cfg(any(test, feature = "sample"))]
mod sample;
mod seccomp;
mod settings;
mod signals;
mod threads;
mod timers;

use std::collections::BTreeMap;

use rewake_image::Image;
use rewake_image::births::Births;
use rewake_image::records::Process;
use rewake_linux::addr::RemoteAddr;
use rewake_linux::program::{CallRef, DataRef, Program, TrackRef};
use rewake_linux::seed::OwnRseq;

use crate::credentials::Identity;
use crate::error::RestoreError;
use crate::ipc::Origin;
use crate::removed::Places;
use crate::sockets::{Sockets, Stale};
use crate::streams::Streams;

use family::{Family, Growing, Inherited, Waiting};

pub use files::MadeQueue;
pub use ipc::MadeObject;
use memory::Zone;
pub use memory::{Special, free_gap};

/// End of the part of the address space that programs use (four-level page tables), in bytes.
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// What a plan has to know of the process that will walk it.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where the program itself lies: never unmapped by it.
    pub stage: RemoteAddr,
    /// Bytes there.
    pub stage_len: u64,
    /// Free room for the seed's vdso and its data pages while the rest goes; directly behind the stage.
    pub aside: RemoteAddr,
    /// The seed's vdso and data pages.
    pub specials: Vec<Special>,
    /// The content of the seed's vdso, when the image's is another one.
    pub vdso: Option<Vec<u8>>,
    /// Lowest descriptor that neither the image nor `resume` uses; see [`Site::stream`], [`Site::pages`], [`Site::spare`].
    pub fd_base: i32,
    /// Pid of `resume`, as the seed sees it.
    pub parent: i32,
    /// `resume`'s own limits, soft and hard, by resource.
    pub limits: Vec<(u64, u64)>,
    /// The registration to leave.
    pub rseq: Option<OwnRseq>,
    /// Files that have no name (any more), or another content under it: the descriptors at which `resume` prepared them, by the
    /// id of their [`FileContent`](rewake_image::records::FileContent).
    pub prepared: BTreeMap<u32, i32>,
    /// `resume`'s own standard streams that the program goes on with, by the id of the open file they are.
    pub streams: Streams,
    /// Where those that had no name any more are made for a moment.
    pub removed: Places,
    /// Who `resume` is.
    pub identity: Identity,
    /// The login uid that the new process has from us; `None` where the kernel has none.
    pub login_uid: Option<u32>,
    /// Whether the kernel lets a process choose the ids of its timers.
    pub timer_ids: bool,
    /// How many may fill memory beside the leader.
    pub hands: usize,
    /// What clocks show, in nanoseconds, by number.
    pub clocks: BTreeMap<i32, u64>,
    /// Whether the program lives in a pid namespace of its own, and so needs a `/proc` of its own.
    pub inside: bool,
    /// Whether the program becomes leader of a session of its own.
    pub new_session: bool,
    /// Whether the image was made since this host was started: then clocks that begin at the start go on.
    pub same_boot: bool,
    /// What unix sockets can have again.
    pub sockets: Sockets,
    /// Process ids that nobody has, neither here nor in the image.
    pub spare_ids: Vec<i32>,
    /// The process group of `resume`, if processes of the tree can join it.
    pub own_group: Option<i32>,
    /// Where System V objects come from.
    pub ipc: Origin,
    /// The process itself becomes the program: no tracer, no ids of our choice, and its own code goes on from where it stood still.
    pub own: bool,
}

impl Site {
    /// `resume`'s own standard stream, moved out of the way.
    #[must_use]
    pub fn stream(&self, index: u32) -> i32 {
        self.fd_base + i32::try_from(index.min(2)).unwrap_or(2)
    }

    /// The page stream.
    #[must_use]
    pub fn pages(&self) -> i32 {
        self.fd_base + 3
    }

    /// Where a process that becomes the program itself hears from its companion.
    #[must_use]
    pub fn word(&self) -> i32 {
        self.fd_base + 4
    }

    /// First of the numbers of the files that `resume` prepared.
    #[must_use]
    pub fn first_prepared(&self) -> i32 {
        self.fd_base + 4 + i32::from(self.own)
    }

    /// First of the numbers of the folders that removed files are made in.
    #[must_use]
    pub fn first_folder(&self) -> i32 {
        self.first_prepared() + i32::try_from(self.prepared.len()).unwrap_or(i32::MAX)
    }

    /// First of the numbers at which opened files wait for theirs.
    #[must_use]
    pub fn spare(&self) -> i32 {
        self.first_folder() + i32::try_from(self.removed.folders.len()).unwrap_or(i32::MAX)
    }
}

/// A file that the program makes and removes again.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its path meanwhile, for people.
    pub path: Vec<u8>,
    /// The folder that was there already: an index into [`Places::folders`].
    pub outside: usize,
    /// The names on the way from there, its own last.
    pub names: Vec<Vec<u8>>,
    /// The descriptor of the folder it is made in, in the new process.
    pub inside: i32,
    /// A folder.
    pub folder: bool,
    /// Returned something but 0 if it was made.
    pub made: CallRef,
    /// Likewise, if it was removed.
    pub gone: Option<CallRef>,
}

/// The file of a socket that the program makes and that is to stay.
#[derive(Clone, Debug)]
pub struct MadeSocket {
    /// The folder it is in: an index into [`Places::folders`].
    pub folder: usize,
    /// Its name there.
    pub name: Vec<u8>,
    /// Returned something but 0 if it was made.
    pub made: CallRef,
}

/// The file of a socket that nobody has any more, in whose place the program makes its own.
#[derive(Clone, Debug)]
pub struct RemovedSocket {
    /// The folder it is in: an index into [`Places::folders`].
    pub folder: usize,
    /// Its name there.
    pub name: Vec<u8>,
    /// Returned something but 0 if it was removed.
    pub removed: CallRef,
    /// What it was.
    pub was: Stale,
}

/// A planned restore.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the new process does.
    pub program: Program,
    /// The track of the thread whose id is the pid; the others follow in order of the image's threads.
    pub leader: TrackRef,
    /// Barrier of the leader and the tracer (2 parties) that the program begins with.
    pub gate: DataRef,
    /// Barrier of all processes of a tree and the tracer, who must trace those that go on before he comes; and how many they are with
    /// him. Nothing where there is the root alone.
    pub born: Option<(DataRef, u32)>,
    /// Whether there are processes besides the root, be it for a moment.
    pub bears: bool,
    /// Counts the threads that have done everything.
    pub parked: DataRef,
    /// The word threads wait at whose calls came to their end before they could be interrupted in them.
    pub never: DataRef,
    /// SIGCHLD as a set of signals, and a time that is over at once: to take the news of a child away.
    pub news: DataRef,
    /// Barrier of all threads and the tracer, who must trace them all, with seccomp suspended, before he comes.
    pub traced: Option<DataRef>,
    /// By thread id, the calls that threads wait in for the time that was left.
    pub waits: BTreeMap<i32, CallRef>,
    /// The process and thread ids of the tracks.
    pub tids: BTreeMap<TrackRef, i32>,
    /// Threads other than the first ones of their processes.
    pub threads: Vec<i32>,
    /// The processes that go on, by the tracks of their first threads.
    pub living: BTreeMap<TrackRef, i32>,
    /// The call that gives the program a `/proc` of its own, where it needs one.
    pub own_proc: Option<CallRef>,
    /// What must not remain, should the program not come so far as to remove it itself; in the order of the making.
    pub made: Vec<Made>,
    /// System V objects that must not remain either, in the order of the making.
    pub made_objects: Vec<MadeObject>,
    /// Files of sockets: what is left of a restore that failed.
    pub made_sockets: Vec<MadeSocket>,
    /// What was in the places of some of them: put back when the restore has failed.
    pub removed_sockets: Vec<RemovedSocket>,
    /// Likewise, POSIX message queues.
    pub made_queues: Vec<MadeQueue>,
    /// The call that gives the program its login uid, where that is another one than ours; it may have failed.
    pub login_uid: Option<CallRef>,
}

impl Plan {
    /// Whether the process whose first thread walks this track is there in the end.
    #[must_use]
    pub fn goes_on(&self, track: TrackRef) -> bool {
        self.living.contains_key(&track)
    }
}

struct Planner<'a> {
    image: &'a Image,
    site: &'a Site,
    tree: Births<'a>,
    program: Program,
    gate: DataRef,
    family: Family,
    zone: Zone,
    /// By process, where it lets its maker go on, who waits for it.
    taking_turns: BTreeMap<i32, DataRef>,
    /// By process, its address space when it is mapped.
    mapped: BTreeMap<i32, Inherited<'a>>,
    parked: DataRef,
    never: DataRef,
    /// Where all threads meet with the tracer, who has suspended seccomp by then.
    traced: Option<DataRef>,
    /// Where all threads of a process that becomes the program itself meet when the companion has let it go.
    ready: Option<DataRef>,
    /// Of a process that becomes the program itself, the calls that tell the ids it and its threads have now.
    ids: BTreeMap<i32, CallRef>,
    /// And where stand what clocks of its threads are called now, and their folders in `/proc`.
    clocks: BTreeMap<i32, DataRef>,
    named: BTreeMap<i32, own::Named>,
    waits: BTreeMap<i32, CallRef>,
    tids: BTreeMap<TrackRef, i32>,
    living: BTreeMap<TrackRef, i32>,
    own_proc: Option<CallRef>,
    made: Vec<Made>,
    made_objects: Vec<MadeObject>,
    made_queues: Vec<MadeQueue>,
    /// Where all meet whose ends give something back to semaphores.
    given_back: Option<DataRef>,
    made_sockets: Vec<MadeSocket>,
    removed_sockets: Vec<RemovedSocket>,
    /// Somebody is there only for a moment.
    passing: bool,
    login_uid: Option<CallRef>,
    /// Where this kernel's vdso comes to lie with its data, if not where the image had its own.
    kernels: Option<(u64, u64)>,
    /// The process that is being planned, and the track of its first thread.
    process: &'a Process,
    leader: TrackRef,
    /// Where its threads meet when they have become who they were; nothing where that is who `resume` is.
    changed: Option<DataRef>,
    /// Where its threads meet when the first one has installed the seccomp filters that all have.
    filtered: DataRef,
}

/// Plans the restore of the image's processes at `site`.
///
/// # Errors
/// What the image asks for and no program can do, by name.
pub fn plan(image: &Image, site: &Site) -> Result<Plan, RestoreError> {
    let mut program = Program::new();
    let tree = family::births(image, site)?;
    let root = image.root();
    let leader = program.track(format!("leader {}", root.pid));
    let (gate, parked, never, filtered) =
        (program.zeros(4), program.zeros(4), program.zeros(4), program.zeros(4));
    let family = Family::new(&mut program, &tree);
    let news = program.words(&[1 << (libc::SIGCHLD - 1), 0, 0]);
    let traced = image.processes.iter().any(seccomp::is_used).then(|| program.zeros(4));
    let ready = site.own.then(|| program.zeros(4));
    let given_back = ipc::given_back(&mut program, image);
    let mut planner = Planner {
        image,
        site,
        tree,
        program,
        gate,
        family,
        zone: Zone::of(image, site)?,
        taking_turns: BTreeMap::new(),
        mapped: BTreeMap::new(),
        parked,
        never,
        traced,
        ready,
        ids: BTreeMap::new(),
        clocks: BTreeMap::new(),
        named: BTreeMap::new(),
        waits: BTreeMap::new(),
        tids: BTreeMap::new(),
        living: BTreeMap::new(),
        own_proc: None,
        made: Vec::new(),
        made_objects: Vec::new(),
        made_queues: Vec::new(),
        given_back,
        made_sockets: Vec::new(),
        removed_sockets: Vec::new(),
        passing: false,
        login_uid: None,
        kernels: None,
        process: root,
        leader,
        changed: None,
        filtered,
    };
    planner.grow_all()?;
    Ok(Plan {
        leader,
        gate,
        born: planner.family.born(&planner.tree),
        bears: planner.tree.is_tree() || planner.passing,
        parked,
        never,
        news,
        traced,
        program: planner.program,
        waits: planner.waits,
        tids: planner.tids,
        living: planner.living,
        threads: threads(image),
        own_proc: planner.own_proc,
        made: planner.made,
        made_objects: planner.made_objects,
        made_sockets: planner.made_sockets,
        removed_sockets: planner.removed_sockets,
        made_queues: planner.made_queues,
        login_uid: planner.login_uid,
    })
}

fn threads(image: &Image) -> Vec<i32> {
    let others = |process: &Process| {
        let (pid, threads) = (process.pid, process.threads.iter());
        threads.map(|thread| thread.tid).filter(move |tid| *tid != pid).collect::<Vec<_>>()
    };
    image.processes.iter().flat_map(others).collect()
}

impl<'a> Planner<'a> {
    /// Everything of a process that goes on.
    fn live(&mut self, growing: &Growing<'a>, waiting: &mut Waiting<'a>) -> Result<(), RestoreError> {
        let process = self.process;
        let is_root = growing.node.maker.is_none();
        if is_root {
            if self.site.own {
                self.begin_as_oneself();
                self.before_files();
                self.make_removed_files();
            } else if self.image.removed_files.is_empty() {
                self.birth();
                self.before_files();
            } else {
                // Until what is made for a moment is removed again the new process outlives `resume`.
                self.before_files();
                self.make_removed_files();
                self.birth();
            }
            self.ipc_objects();
            self.open_files()?;
            if !self.site.own {
                self.session();
            }
        } else {
            self.birth_of(&growing.node);
        }
        let memory = process.memory.as_ref();
        let mut inherited = growing.inherited.clone();
        if let Some(memory) = memory {
            let specials = self.memory(memory, inherited.as_ref())?;
            let same_program = inherited.as_ref().is_some_and(|inherited| inherited.memory.exe == memory.exe);
            self.mm_fields(memory, same_program || self.site.own);
            let own = Inherited { memory, specials };
            self.mapped.insert(process.pid, own.clone());
            inherited = Some(own);
        } else if let Some(own) = process.memory_of.and_then(|owner| self.mapped.get(&owner)) {
            inherited = Some(own.clone());
        }
        self.bear(&growing.node, inherited.as_ref(), waiting);
        self.end_turn(process.pid);
        self.meet(&growing.node);
        self.semaphores();
        if let Some(memory) = memory {
            self.finish_memory(memory)?;
        }
        if is_root {
            self.finish_contents();
        }
        if process.actions_of.is_none() {
            self.dispositions();
        }
        self.attributes();
        self.install_descriptors();
        self.threads()?;
        self.last_things()?;
        self.seal();
        self.park_leader()
    }

    fn is_root(&self) -> bool {
        self.process.pid == self.image.root().pid
    }

    /// Turns to another process.
    fn turn_to(&mut self, process: &'a Process, leader: TrackRef) {
        (self.process, self.leader) = (process, leader);
        self.kernels = None;
        self.living.insert(leader, process.pid);
        self.changed = credentials::change(process, &self.site.identity).then(|| self.program.zeros(4));
        self.filtered = self.program.zeros(4);
    }
}

/// Arguments of a call, each converted to a [`Value`](rewake_linux::program::Value).
macro_rules! args {
    ($($arg:expr),* $(,)?) => { [$(rewake_linux::program::Value::from($arg)),*] };
}
use args;

#[cfg(test)]
mod tests;
