//! Files that the kernel makes up as they are read: opened anew under their names.
//!
//! What tells of the process itself is opened by it, as `/proc/self`: in a pid namespace whose `/proc` could not be mounted it has another
//! number there. What tells of its threads and descriptors waits until those are there; its place is held meanwhile. Positions are set
//! by the release: to go to one, the kernel makes up what is before it, and that must be final.

use rewake_image::check::told_of;
use rewake_image::records::{KernelFile, OpenFile, open_file};
use rewake_linux::program::{CallRef, Sysno};

use super::super::{Planner, args};
use super::REOPEN;

/// Folders of a process whose entries come into being in the course of the restore.
const LATE: [&[u8]; 4] = [b"task/", b"fd/", b"fdinfo/", b"map_files/"];

impl Planner<'_> {
    pub(super) fn kernel_file(&mut self, spare: i32, flags: u32, kernel: &KernelFile) {
        self.open_path(spare, &self.own_name(&kernel.path), flags);
    }

    /// The name by which the root opens a file.
    fn own_name(&self, path: &[u8]) -> Vec<u8> {
        let first = format!("task/{}/", self.image.root().pid);
        match self.below_own(path) {
            // The first thread opens it, whose id is another one now.
            Some(below) if self.site.own && below.starts_with(first.as_bytes()) => {
                [b"/proc/thread-self/".as_slice(), &below[first.len()..]].concat()
            }
            Some(below) => [b"/proc/self/".as_slice(), below].concat(),
            None => path.to_vec(),
        }
    }

    /// What of a path is below the root's own folder; `.` for that folder.
    fn below_own<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let own = format!("/proc/{}", self.image.root().pid);
        match path.strip_prefix(own.as_bytes())? {
            b"" => Some(b"."),
            below => below.strip_prefix(b"/"),
        }
    }

    pub(super) fn is_late_kernel_file(&self, kernel: &KernelFile) -> bool {
        match self.below_own(&kernel.path) {
            Some(below) => LATE.iter().any(|folder| below.starts_with(folder)),
            // The folder of another process or thread.
            None => told_of(&kernel.path)[0].is_some(),
        }
    }

    /// Whether there is a file that tells of another process, or thread, than the root.
    pub(in super::super) fn tells_of_others(&self) -> bool {
        self.image.open_files.iter().any(|file| match &file.kind {
            Some(open_file::Kind::KernelFile(kernel)) => {
                self.below_own(&kernel.path).is_none() && told_of(&kernel.path)[0].is_some()
            }
            _ => false,
        })
    }

    pub(super) fn open_late_kernel_file(&mut self, file: &OpenFile, kernel: &KernelFile) -> CallRef {
        let flags = file.flags & REOPEN | (libc::O_NOCTTY | libc::O_CLOEXEC).cast_unsigned();
        let note = String::from_utf8_lossy(&kernel.path).into_owned();
        if let Some((tid, hidden, below)) = self.below_thread(&kernel.path)
            && let Some(folder) = self.open_folder_of(tid, hidden)
        {
            let name = self.program.string(below);
            let opened = self.program.call(self.leader, Sysno::openat, args![folder, name, flags, 0]);
            let opened = opened.note(note).done();
            self.program.call(self.leader, Sysno::close, args![folder]);
            return opened;
        }
        let name = self.program.string(&self.own_name(&kernel.path));
        let args = args![libc::AT_FDCWD, name, flags, 0];
        self.program.call(self.leader, Sysno::openat, args).note(note).done()
    }

    /// Where a path leads through the folder of a thread that is not the first one: that thread, whether it is its folder beside those of
    /// processes, and what is below it.
    fn below_thread<'a>(&self, path: &'a [u8]) -> Option<(i32, bool, &'a [u8])> {
        let own = self.image.root().pid;
        let (tid, hidden) = match told_of(path) {
            [Some(process), Some(tid)] if process == own => (tid, false),
            [Some(tid), None] => (tid, true),
            _ => return None,
        };
        let folder = if hidden { format!("/proc/{tid}") } else { format!("/proc/{own}/task/{tid}") };
        let below = match path.strip_prefix(folder.as_bytes())? {
            b"" => b".",
            below => below.strip_prefix(b"/")?,
        };
        (tid != own).then_some((tid, hidden, below))
    }

    /// Whether there are files in folders of this thread.
    pub(in super::super) fn tells_of_thread(&self, tid: i32) -> bool {
        self.image.open_files.iter().any(|file| match &file.kind {
            Some(open_file::Kind::KernelFile(kernel)) => {
                self.below_thread(&kernel.path).is_some_and(|(of, ..)| of == tid)
            }
            _ => false,
        })
    }
}
