//! Files that the kernel makes up as they are read: opened anew under their names.
//!
//! What tells of the process itself is opened by it, as `/proc/self`: in a pid namespace whose `/proc` could not be mounted it has another
//! number there. What tells of its threads and descriptors waits until those are there; its place is held meanwhile. Positions are set
//! by the release: to go to one, the kernel makes up what is before it, and that must be final.

use rewake_image::check::told_of;
use rewake_image::records::{KernelFile, OpenFile, open_file};
use rewake_linux::program::{Accept, Sysno};

use super::super::{Planner, args};
use super::REOPEN;

/// Folders of a process whose entries come into being in the course of the restore.
const LATE: [&[u8]; 4] = [b"task/", b"fd/", b"fdinfo/", b"map_files/"];

impl Planner<'_> {
    pub(super) fn kernel_file(&mut self, spare: i32, flags: u32, kernel: &KernelFile) {
        if self.is_late(kernel) {
            self.open_path(spare, b"/", libc::O_PATH.cast_unsigned());
            return;
        }
        self.open_path(spare, &self.own_name(&kernel.path), flags);
    }

    /// The name by which the new process opens a file.
    fn own_name(&self, path: &[u8]) -> Vec<u8> {
        match self.below_own(path) {
            Some(below) => [b"/proc/self/".as_slice(), below].concat(),
            None => path.to_vec(),
        }
    }

    /// What of a path is below the process's own folder; `.` for that folder.
    fn below_own<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let own = format!("/proc/{}", self.process.pid);
        match path.strip_prefix(own.as_bytes())? {
            b"" => Some(b"."),
            below => below.strip_prefix(b"/"),
        }
    }

    fn is_late(&self, kernel: &KernelFile) -> bool {
        match self.below_own(&kernel.path) {
            Some(below) => LATE.iter().any(|folder| below.starts_with(folder)),
            // The folder of another thread.
            None => told_of(&kernel.path)[0].is_some(),
        }
    }

    /// When threads and descriptors are all there.
    pub(super) fn late_kernel_files(&mut self) {
        let image = self.image;
        for file in &image.open_files {
            if let Some(open_file::Kind::KernelFile(kernel)) = &file.kind
                && self.is_late(kernel)
                && let Some(spare) = self.spare_of(file.id)
            {
                self.open_late(spare, file, kernel);
            }
        }
    }

    fn open_late(&mut self, spare: i32, file: &OpenFile, kernel: &KernelFile) {
        let (leader, note) = (self.leader, String::from_utf8_lossy(&kernel.path).into_owned());
        let name = self.program.string(&self.own_name(&kernel.path));
        let flags = file.flags & REOPEN | (libc::O_NOCTTY | libc::O_CLOEXEC).cast_unsigned();
        let args = args![libc::AT_FDCWD, name, flags, 0];
        let opened = self.program.call(leader, Sysno::openat, args).note(note.clone()).done();
        self.program.call(leader, Sysno::dup3, args![opened, spare, libc::O_CLOEXEC]).note(note);
        self.program.call(leader, Sysno::close, args![opened]);
        for descriptor in self.process.descriptors.iter().filter(|descriptor| descriptor.file == file.id) {
            let flags = if descriptor.close_on_exec { libc::O_CLOEXEC } else { 0 };
            let args = args![spare, descriptor.fd, flags];
            let note = format!("descriptor {}", descriptor.fd);
            self.program.call(leader, Sysno::dup3, args).accept(Accept::Success).note(note);
        }
    }
}
