//! Folders and fifos that had no name any more: each is made, opened and removed again, one call after the other, a chain of folders
//! from the outside in and back. What then keeps them is descriptors; the program gets at them as at files that `resume` prepared.
//!
//! Each is made under one name, relative to the descriptor of the folder it comes into: the one that `resume` opened, or one just made.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;

use rewake_image::records::{RemovedFile, path_of};
use rewake_linux::program::{Accept, CallRef, Sysno};

use super::super::{Made, Planner, args};
use crate::removed::Place;

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
        let (Some(place), Some(number)) =
            (self.site.removed.by_id.get(&file.id), self.removed_number(file.id))
        else {
            return;
        };
        let (last, folder) = (place.names.len().saturating_sub(1), file.is_folder());
        let parent = file.parent.and_then(|parent| self.removed_number(parent));
        let (first, mut inside) = match parent {
            Some(parent) => (last, parent),
            None => (0, self.site.first_folder() + i32::try_from(place.outside).unwrap_or(i32::MAX)),
        };
        for at in first..last {
            let above = path_of(&place.path).ancestors().nth(last - at);
            let path = above.map(|path| path.as_os_str().as_bytes()).unwrap_or_default();
            self.make_at(inside, place, at, path, true);
            let number = self.next_around();
            self.open_made(inside, &place.names[at], libc::O_PATH | libc::O_DIRECTORY, path, number);
            inside = number;
        }
        self.make_at(inside, place, last, &place.path, folder);
        let flags = if folder { libc::O_RDONLY | libc::O_DIRECTORY } else { libc::O_PATH };
        self.open_made(inside, &place.names[last], flags, &place.path, number);
    }

    fn make_at(&mut self, inside: i32, place: &Place, at: usize, path: &[u8], folder: bool) {
        let name = self.program.string(&place.names[at]);
        let (leader, program) = (self.leader, &mut self.program);
        let call = if folder {
            program.call(leader, Sysno::mkdirat, args![inside, name, MODE])
        } else {
            program.call(leader, Sysno::mknodat, args![inside, name, FIFO | MODE, 0])
        };
        call.note(format!("{}, to be removed again", String::from_utf8_lossy(path)));
        let made = self.mark();
        let (path, names, outside) = (path.to_vec(), place.names[..=at].to_vec(), place.outside);
        self.made.push(Made { path, outside, names, inside, folder, made, gone: None });
    }

    fn open_made(&mut self, inside: i32, name: &[u8], flags: i32, path: &[u8], number: i32) {
        let name = self.program.string(name);
        let args = args![inside, name, flags | libc::O_NOFOLLOW | libc::O_CLOEXEC, 0];
        let call = self.program.call(self.leader, Sysno::openat, args);
        call.accept(Accept::Exactly(0)).note(String::from_utf8_lossy(path));
        self.move_up(0, number);
    }

    fn unmake(&mut self, at: usize) {
        let Made { path, names, inside, folder, .. } = self.made[at].clone();
        let name = self.program.string(names.last().map_or(&[], Vec::as_slice));
        let args = args![inside, name, if folder { libc::AT_REMOVEDIR } else { 0 }];
        let note = format!("{}, which had no name any more", String::from_utf8_lossy(&path));
        self.program.call(self.leader, Sysno::unlinkat, args).note(note);
        self.made[at].gone = Some(self.mark());
    }

    /// An entry whose result, which is not 0, says that all before it were carried out.
    fn mark(&mut self) -> CallRef {
        self.program.call(self.leader, Sysno::gettid, args![]).done()
    }

    /// The descriptor for the next folder that is made around one: behind all others, one for each that was made before.
    fn next_around(&self) -> i32 {
        self.spare(self.image.open_files.len() + self.image.removed_files.len() + self.made.len())
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
