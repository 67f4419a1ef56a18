//! A thread's credentials. They belong to threads, whatever libc makes of them: each one changes its own.
//!
//! The order matters: every step needs rights that a later one takes away. Nothing of it is done where the program was what `resume`
//! is.

use rewake_image::records::{Process, Thread};
use rewake_linux::program::{Accept, Sysno, TrackRef};

use super::{Planner, args};
use crate::credentials::{Identity, KEEP_CAPS};

const PR_CAPBSET_DROP: i32 = 24;
const PR_SET_KEEPCAPS: i32 = 8;
const PR_SET_SECUREBITS: i32 = 28;
const PR_SET_NO_NEW_PRIVS: i32 = 38;
const PR_CAP_AMBIENT: i32 = 47;
const PR_CAP_AMBIENT_RAISE: i32 = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: i32 = 4;
const EFFECTIVE: usize = 1;
const FILE_SYSTEM: usize = 3;

impl Planner<'_> {
    /// Makes the thread who it was; last of all, since the steps before may need what is given up here.
    pub(super) fn credentials(&mut self, track: TrackRef, thread: &Thread) {
        let (wanted, own) = (Identity::of(self.process, thread), self.site.identity.clone());
        let (sets, have) = (wanted.capabilities, own.capabilities);
        let other_ids = wanted.has_other_ids(&own);
        let changes_rights = sets != have || wanted.securebits != own.securebits;
        if other_ids || changes_rights {
            // All that we may, for the steps that follow. What is inherited cannot be added any more once it is out of bounds.
            let all = [have.permitted, have.permitted, sets.inheritable];
            if [have.effective, have.permitted, have.inheritable] != all {
                self.capset(track, all);
            }
            for capability in bits(have.bounding & !sets.bounding) {
                let call =
                    self.program.call(track, Sysno::prctl, args![PR_CAPBSET_DROP, capability, 0, 0, 0]);
                call.note(format!("bounding set: without capability {capability}"));
            }
            if other_ids {
                self.become_another(track, &wanted, &own, all);
            }
            self.ambient(track, sets.ambient, have.ambient);
            self.secure_bits(track, wanted.securebits, own.securebits, other_ids);
            let last = [sets.effective, sets.permitted, sets.inheritable];
            if last != all {
                self.capset(track, last);
            }
        }
        if wanted.no_new_privs && !own.no_new_privs {
            let args = args![PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0];
            self.program.call(track, Sysno::prctl, args).note("no new privileges");
        }
    }

    fn become_another(&mut self, track: TrackRef, wanted: &Identity, own: &Identity, all: [u64; 3]) {
        let program = &mut self.program;
        if own.securebits & KEEP_CAPS == 0 {
            program.call(track, Sysno::prctl, args![PR_SET_KEEPCAPS, 1, 0, 0, 0]).note("keep capabilities");
        }
        if wanted.groups != own.groups {
            let bytes: Vec<u8> = wanted.groups.iter().flat_map(|group| group.to_le_bytes()).collect();
            let groups = program.bytes(&bytes);
            let count = u64::try_from(wanted.groups.len()).expect("image counts are checked");
            program.call(track, Sysno::setgroups, args![count, groups]).note("supplementary groups");
        }
        if wanted.gids != own.gids {
            let [real, effective, saved, file_system] = wanted.gids;
            let note = format!("group {effective}");
            program.call(track, Sysno::setresgid, args![real, effective, saved]).note(note);
            if file_system != wanted.gids[EFFECTIVE] {
                self.file_system_id(track, Sysno::setfsgid, file_system);
            }
        }
        if wanted.uids != own.uids {
            let [real, effective, saved, _] = wanted.uids;
            let note = format!("user {effective}");
            self.program.call(track, Sysno::setresuid, args![real, effective, saved]).note(note);
            // Another effective user has none in effect.
            self.capset(track, all);
            if wanted.uids[FILE_SYSTEM] != effective {
                self.file_system_id(track, Sysno::setfsuid, wanted.uids[FILE_SYSTEM]);
                self.capset(track, all);
            }
        }
    }

    /// These calls tell the id as it was before, whether they did anything or not: the second one tells what the first did.
    fn file_system_id(&mut self, track: TrackRef, call: Sysno, id: u32) {
        self.program.call(track, call, args![id]).accept(Accept::Any);
        let again = self.program.call(track, call, args![id]).accept(Accept::Exactly(id.into()));
        again.note(format!("file system id {id}"));
    }

    fn ambient(&mut self, track: TrackRef, wanted: u64, own: u64) {
        let program = &mut self.program;
        if own & !wanted != 0 {
            let args = args![PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0];
            program.call(track, Sysno::prctl, args).note("ambient capabilities");
        }
        for capability in bits(wanted) {
            let args = args![PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0];
            program.call(track, Sysno::prctl, args).note(format!("ambient capability {capability}"));
        }
    }

    fn secure_bits(&mut self, track: TrackRef, wanted: u32, own: u32, kept: bool) {
        let now = if kept { own | KEEP_CAPS } else { own };
        if (wanted ^ now) & !KEEP_CAPS != 0 {
            let args = args![PR_SET_SECUREBITS, wanted];
            self.program.call(track, Sysno::prctl, args).note("secure bits");
        } else if wanted != now {
            let args = args![PR_SET_KEEPCAPS, i32::from(wanted & KEEP_CAPS != 0), 0, 0, 0];
            self.program.call(track, Sysno::prctl, args).note("keep capabilities");
        }
    }

    /// Effective, permitted, inheritable.
    fn capset(&mut self, track: TrackRef, [effective, permitted, inheritable]: [u64; 3]) {
        const VERSION_3: u64 = 0x2008_0522;
        let half = |bits: u64, high: bool| if high { bits >> 32 } else { bits & u64::from(u32::MAX) };
        // Two structs of effective, permitted, inheritable, 32 bits each: the low halves, then the high ones.
        let data = self.program.words(&[
            half(effective, false) | half(permitted, false) << 32,
            half(inheritable, false) | half(effective, true) << 32,
            half(permitted, true) | half(inheritable, true) << 32,
        ]);
        let header = self.program.words(&[VERSION_3]);
        self.program.call(track, Sysno::capset, args![header, data]).note("capabilities");
    }
}

/// Whether any thread becomes another than `resume`: the kernel then takes away that the process can be looked into.
pub(super) fn change(process: &Process, own: &Identity) -> bool {
    process.threads.iter().any(|thread| Identity::of(process, thread) != *own)
}

/// Numbers of the bits that are set.
fn bits(set: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |bit| set & 1 << bit != 0)
}
