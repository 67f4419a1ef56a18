//! What a socket tells of its other side (`SO_PEERCRED`) is who called socketpair(2), connect(2) or listen(2), and a message tells who
//! sent it. So these calls are made by processes of those ids, which are there only for that time and share all descriptors with the
//! root of the tree; or by a thread of the root's, where only its other ids were different.

use rewake_image::records::PeerCredentials;
use rewake_linux::program::{Accept, Sysno, TrackRef, Value};

use super::super::super::{Planner, args};
use crate::sockets::Actor;

const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_THREAD: u64 = 0x10000;
/// Children that send no signal when they end are waited for, too.
const WALL: i32 = 0x4000_0000;
/// Exit status of one that could not go on.
const FAILED: i32 = 125;

impl<'a> Planner<'a> {
    /// Lets somebody make some calls: on a track of his own, or on the leader's.
    pub(super) fn act(&mut self, wanted: Option<&PeerCredentials>, work: impl FnOnce(&mut Self, TrackRef)) {
        match self.site.sockets.actor(self.image, &self.site.identity, wanted).0 {
            Actor::Leader => work(self, self.leader),
            Actor::Passing(who) => self.pass_by(Some(&who), work),
        }
    }

    /// Lets somebody do it who is there only meanwhile: with the ids that are wanted, else with any; and with a working folder, a root
    /// directory and a umask of his own, if he is a process.
    pub(super) fn pass_by(&mut self, who: Option<&PeerCredentials>, work: impl FnOnce(&mut Self, TrackRef)) {
        self.passing = true;
        let root = self.image.root().pid;
        let is_thread = who.is_some_and(|who| who.pid == root);
        let (id, what) = match who {
            Some(_) if is_thread => {
                (self.site.spare_ids.last().copied(), format!("passing thread of {root}"))
            }
            Some(who) => (Some(who.pid), format!("passing process {}", who.pid)),
            None => (None, "passing process".to_owned()),
        };
        let flags =
            CLONE_VM | CLONE_FILES | if is_thread { CLONE_FS | CLONE_SIGHAND | CLONE_THREAD } else { 0 };
        let (leader, track) = (self.leader, self.program.track(what.clone()));
        // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size
        let clone = self.program.words(&[flags, 0, 0, 0, 0, 0, 0, 0, 0, u64::from(id.is_some())]);
        if let Some(id) = id {
            let number = self.program.bytes(&id.to_le_bytes());
            self.program.point(clone, 64, number);
            self.tids.insert(track, id);
        }
        let spawned = self.program.spawn(leader, track, clone).note(what).done();
        let done = self.program.zeros(4);
        self.begin_passing(track, is_thread, who);
        work(self, track);
        self.program.barrier(track, done, 2).note("it has done its work");
        let end = if is_thread { Sysno::exit } else { Sysno::exit_group };
        self.program.call(track, end, args![0]);
        self.program.on_failure(track);
        self.program.call(track, end, args![FAILED]).accept(Accept::Any);
        self.program.barrier(leader, done, 2).note("it has done its work");
        if !is_thread {
            let wait = self.program.call(leader, Sysno::wait4, args![Value::Result(spawned), 0, WALL, 0]);
            wait.retry().note("it is gone again");
        }
    }

    fn begin_passing(&mut self, track: TrackRef, is_thread: bool, who: Option<&PeerCredentials>) {
        if !is_thread {
            // A process that becomes the program makes the plan itself.
            let own = std::process::id();
            let root = u64::from(if self.site.own { own } else { self.image.root().pid.unsigned_abs() });
            self.program
                .call(track, Sysno::prctl, args![libc::PR_SET_PDEATHSIG, libc::SIGKILL])
                .note("die with the parent");
            let call = self.program.call(track, Sysno::getppid, args![]);
            call.accept(Accept::Exactly(root)).note("it is still there");
        }
        let Some(who) = who else { return };
        let identity = &self.site.identity;
        let mut groups = who.groups.clone();
        groups.sort_unstable();
        if groups != identity.groups {
            let list: Vec<u8> = who.groups.iter().flat_map(|group| group.to_le_bytes()).collect();
            let count = u64::try_from(who.groups.len()).expect("image counts are checked");
            let list = self.program.bytes(&list);
            self.program.call(track, Sysno::setgroups, args![count, list]).note("groups of the other side");
        }
        if who.gid != identity.gids[1] {
            self.program.call(track, Sysno::setresgid, args![who.gid, who.gid, who.gid]).note("its group");
        }
        if who.uid != identity.uids[1] {
            self.program.call(track, Sysno::setresuid, args![who.uid, who.uid, who.uid]).note("its user");
        }
    }
}
