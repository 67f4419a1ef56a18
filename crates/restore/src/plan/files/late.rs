//! Files that can only be opened when all processes and threads of the image are there, their descriptors at their numbers: what tells of
//! them (`/proc/PID`), and pidfds. Until then something else holds their places. The root opens them; who else has one takes it from
//! the root.

use rewake_image::records::{OpenFile, open_file};
use rewake_linux::program::{Accept, CallRef, Sysno};

use super::super::{Planner, args};

/// `PR_SET_PTRACER`, for who takes descriptors where the Yama security module asks for more than the same user; and anybody.
const PR_SET_PTRACER: u64 = 0x5961_6d61;
const ANYBODY: u64 = u64::MAX;

impl<'a> Planner<'a> {
    pub(super) fn is_late(&self, file: &OpenFile) -> bool {
        match &file.kind {
            Some(open_file::Kind::KernelFile(kernel)) => self.is_late_kernel_file(kernel),
            Some(open_file::Kind::Pidfd(pidfd)) => pidfd.id != 0,
            _ => false,
        }
    }

    /// With the numbers at which they wait.
    fn late_files(&self) -> Vec<(i32, &'a OpenFile)> {
        let files = self.image.open_files.iter().filter(|file| self.is_late(file));
        files.filter_map(|file| Some((self.spare_of(file.id)?, file))).collect()
    }

    /// Something that holds the place of a file meanwhile.
    pub(super) fn hold_place(&mut self, spare: i32) {
        self.open_path(spare, b"/", libc::O_PATH.cast_unsigned());
    }

    /// Called by all processes; only the root, and who has them, has something to do.
    pub(super) fn open_late_files(&mut self) {
        let late = self.late_files();
        if late.is_empty() {
            return;
        }
        self.meet_peopled();
        if self.process.descriptors_of.is_some() {
            return;
        }
        if self.is_root() {
            for (spare, file) in &late {
                let opened = match &file.kind {
                    Some(open_file::Kind::KernelFile(kernel)) => self.open_late_kernel_file(file, kernel),
                    Some(open_file::Kind::Pidfd(pidfd)) => self.open_pidfd(file, pidfd),
                    _ => continue,
                };
                let args = args![opened, *spare, libc::O_CLOEXEC];
                self.program.call(self.leader, Sysno::dup3, args).note("out of the way");
                self.program.call(self.leader, Sysno::close, args![opened]);
                self.take_numbers(file, None, *spare);
            }
            self.let_be_taken(ANYBODY);
        }
        self.meet_opened(0);
        if !self.is_root() {
            self.take_from_root(&late);
        }
        self.meet_opened(1);
        if self.is_root() {
            self.let_be_taken(0);
        }
    }

    fn let_be_taken(&mut self, by: u64) {
        if self.tree.is_tree() {
            let call = self.program.call(self.leader, Sysno::prctl, args![PR_SET_PTRACER, by]);
            call.accept(Accept::Any).note("who may take open files");
        }
    }

    fn take_from_root(&mut self, late: &[(i32, &'a OpenFile)]) {
        let has = |file: &OpenFile| self.process.descriptors.iter().any(|one| one.file == file.id);
        let own: Vec<(i32, &OpenFile)> = late.iter().filter(|(_, file)| has(file)).copied().collect();
        if own.is_empty() {
            return;
        }
        let root = args![self.image.root().pid, 0];
        let root = self.program.call(self.leader, Sysno::pidfd_open, root).note("the root").done();
        for (spare, file) in own {
            let args = args![root, spare, 0];
            let call = self.program.call(self.leader, Sysno::pidfd_getfd, args);
            let taken = call.note(format!("open file {} of the root", file.id)).done();
            self.take_numbers(file, Some(taken), spare);
            self.program.call(self.leader, Sysno::close, args![taken]);
        }
        self.program.call(self.leader, Sysno::close, args![root]);
    }

    /// Gives a file its numbers, from what an entry returned, or else from where it waits.
    fn take_numbers(&mut self, file: &OpenFile, from: Option<CallRef>, spare: i32) {
        for descriptor in self.process.descriptors.iter().filter(|one| one.file == file.id) {
            let flags = if descriptor.close_on_exec { libc::O_CLOEXEC } else { 0 };
            let args = match from {
                Some(taken) => args![taken, descriptor.fd, flags],
                None => args![spare, descriptor.fd, flags],
            };
            let note = format!("descriptor {}", descriptor.fd);
            self.program.call(self.leader, Sysno::dup3, args).note(note);
        }
    }
}
