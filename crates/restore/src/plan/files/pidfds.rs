//! Pidfds. Those of processes and threads of the image are opened when these are there, with all that has to wait ([`super::late`]).
//! One of a process that was gone is of another one that is made, ends in the same way and is waited for.

use std::collections::BTreeMap;

use rewake_image::records::{OpenFile, Pidfd, open_file};
use rewake_linux::program::{Accept, CallRef, Sysno};

use super::super::{Planner, args};

const NONBLOCK: u32 = libc::O_NONBLOCK.cast_unsigned();
/// `PIDFD_THREAD`.
const THREAD: u32 = libc::O_EXCL.cast_unsigned();
/// Children that send no signal when they end are waited for, too.
const WALL: i32 = 0x4000_0000;
/// `struct clone_args`, up to `tls`.
const CLONE_ARGS: usize = 8;

impl<'a> Planner<'a> {
    /// Those of processes that are gone. No number is taken yet.
    pub(super) fn gone_pidfds(&mut self) {
        let image = self.image;
        let mut gone: BTreeMap<u64, Vec<(&'a OpenFile, &'a Pidfd)>> = BTreeMap::new();
        for file in &image.open_files {
            if let Some(open_file::Kind::Pidfd(pidfd)) = &file.kind
                && pidfd.id == 0
            {
                gone.entry(pidfd.gone).or_default().push((file, pidfd));
            }
        }
        for files in gone.into_values() {
            let Some((_, first)) = files.first() else { continue };
            let child = self.somebody_who_ends(first.exit_status);
            for (file, _) in &files {
                if let Some(spare) = self.spare_of(file.id) {
                    let args = args![child, file.flags & (NONBLOCK | THREAD)];
                    let call = self.program.call(self.leader, Sysno::pidfd_open, args);
                    call.accept(Accept::Exactly(0)).note("pidfd of a process that is gone");
                    self.move_up(0, spare);
                }
            }
            let call = self.program.call(self.leader, Sysno::wait4, args![child, 0, WALL, 0]);
            call.retry().note("it is gone");
        }
    }

    /// Ends as soon as it is there, and stays until it is waited for.
    fn somebody_who_ends(&mut self, status: i32) -> CallRef {
        let track = self.program.track("process that is gone");
        let clone = self.program.words(&[0; CLONE_ARGS]);
        let child = self.program.spawn(self.leader, track, clone).note("process that is gone").done();
        let own = self.program.call(track, Sysno::getpid, args![]).done();
        self.end(track, own.into(), status);
        self.program.on_failure(track);
        self.program.call(track, Sysno::exit_group, args![0]).accept(Accept::Any);
        child
    }

    pub(super) fn open_pidfd(&mut self, file: &OpenFile, pidfd: &Pidfd) -> CallRef {
        let id = self.id_of_any(pidfd.id);
        let args = args![id, file.flags & (NONBLOCK | THREAD)];
        self.program.call(self.leader, Sysno::pidfd_open, args).note(format!("pidfd of {}", pidfd.id)).done()
    }
}
