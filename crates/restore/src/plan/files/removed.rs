//! Folders and fifos that had no name any more: each is made, opened and removed again, one call after the other, a chain of folders
//! from the outside in and back. What then keeps them is descriptors; the program gets at them as at files that `resume` prepared.

use std::collections::BTreeMap;
use std::ops::Range;

use rewake_image::records::RemovedFile;
use rewake_linux::program::{Accept, CallRef, DataRef, Sysno};

use super::super::{Made, Planner, args};

/// Until all is done.
const MODE: u32 = 0o700;
const FIFO: u32 = 0o010_000;
/// Permissions with the set-id and sticky bits.
const PERMISSIONS: u32 = 0o7777;

impl Planner<'_> {
    /// Makes all of them. Their numbers stay open until the helpers are closed.
    pub(in super::super) fn make_removed_files(&mut self) {
        let image = self.image;
        if image.removed_files.is_empty() {
            return;
        }
        let mut inside: BTreeMap<Option<u32>, Vec<&RemovedFile>> = BTreeMap::new();
        for file in &image.removed_files {
            inside.entry(file.parent).or_default().push(file);
        }
        // The program's own comes with its other attributes.
        self.program.call(self.leader, Sysno::umask, args![0]);
        // Those to make, the next one last; `None`: those last made are to be removed.
        let mut open: Vec<Range<usize>> = Vec::new();
        let mut next: Vec<Option<&RemovedFile>> =
            inside.remove(&None).into_iter().flatten().map(Some).rev().collect();
        while let Some(step) = next.pop() {
            let Some(file) = step else {
                open.pop().into_iter().flatten().rev().for_each(|at| self.unmake(at));
                continue;
            };
            let first = self.made.len();
            self.make(file);
            open.push(first..self.made.len());
            next.push(None);
            next.extend(inside.remove(&Some(file.id)).into_iter().flatten().map(Some).rev());
        }
    }

    /// One, with what must be around it.
    fn make(&mut self, file: &RemovedFile) {
        let (Some(place), Some(number)) = (self.site.removed.get(&file.id), self.removed_number(file.id))
        else {
            return;
        };
        for path in &place.around {
            self.make_at(path, true);
        }
        let folder = file.is_folder();
        let name = self.make_at(&place.path, folder);
        let flags = if folder { libc::O_RDONLY | libc::O_DIRECTORY } else { libc::O_PATH };
        let args = args![libc::AT_FDCWD, name, flags | libc::O_NOFOLLOW | libc::O_CLOEXEC, 0];
        let call = self.program.call(self.leader, Sysno::openat, args);
        call.accept(Accept::Exactly(0)).note(String::from_utf8_lossy(&place.path));
        self.move_up(0, number);
    }

    fn make_at(&mut self, path: &[u8], folder: bool) -> DataRef {
        let name = self.program.string(path);
        let (leader, program) = (self.leader, &mut self.program);
        let call = if folder {
            program.call(leader, Sysno::mkdirat, args![libc::AT_FDCWD, name, MODE])
        } else {
            program.call(leader, Sysno::mknodat, args![libc::AT_FDCWD, name, FIFO | MODE, 0])
        };
        call.note(format!("{}, to be removed again", String::from_utf8_lossy(path)));
        let made = self.mark();
        self.made.push(Made { path: path.to_vec(), folder, made, gone: None });
        name
    }

    fn unmake(&mut self, at: usize) {
        let (path, folder) = (self.made[at].path.clone(), self.made[at].folder);
        let name = self.program.string(&path);
        let args = args![libc::AT_FDCWD, name, if folder { libc::AT_REMOVEDIR } else { 0 }];
        let note = format!("{}, which had no name any more", String::from_utf8_lossy(&path));
        self.program.call(self.leader, Sysno::unlinkat, args).note(note);
        self.made[at].gone = Some(self.mark());
    }

    /// An entry whose result, which is not 0, says that all before it were carried out.
    fn mark(&mut self) -> CallRef {
        self.program.call(self.leader, Sysno::gettid, args![]).done()
    }

    /// The descriptor that keeps one.
    pub(in super::super) fn removed_number(&self, id: u32) -> Option<i32> {
        let place = self.image.removed_files.binary_search_by_key(&id, |file| file.id).ok()?;
        Some(self.spare(self.image.open_files.len() + place))
    }

    /// Owners and permissions, when nothing has to be opened any more. Whoever may not give things away keeps them.
    pub(super) fn finish_removed_files(&mut self) {
        let image = self.image;
        for file in &image.removed_files {
            let Some(number) = self.removed_number(file.id) else { continue };
            let mode = file.identity.as_ref().map_or(0, |identity| identity.mode) & PERMISSIONS;
            let path = self.program.string(format!("/proc/self/fd/{number}").as_bytes());
            let args = args![libc::AT_FDCWD, path, file.uid, file.gid, 0];
            self.program.call(self.leader, Sysno::fchownat, args).accept(Accept::Any).note("owner");
            let args = args![libc::AT_FDCWD, path, mode];
            self.program.call(self.leader, Sysno::fchmodat, args).note("permissions");
        }
    }
}
