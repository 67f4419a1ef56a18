//! inotify instances and their watches, each with the number the program knows it by; fanotify groups and their marks. They are made last
//! of all: what the restore does to files is no event.

use rewake_image::records::{Fanotify, FanotifyMark, FileIdentity, OpenFile, open_file};
use rewake_linux::program::{Accept, Sysno};

use super::super::{Planner, args};
use super::STATUS;

/// `INOTIFY_IOC_SETNEXTWD`: `_IOW('I', 0, s32)`; the number itself is the argument.
const SET_NEXT_WD: u64 = 0x4004_4900;
const IN_DONT_FOLLOW: u32 = 0x0200_0000;
const FAN_NONBLOCK: u32 = 2;
const FAN_MARK_ADD: u32 = 1;
const FAN_MARK_DONT_FOLLOW: u32 = 4;
const FAN_MARK_IGNORED_MASK: u32 = 0x20;
const FAN_MARK_IGNORED_SURV_MODIFY: u32 = 0x40;
const FAN_MARK_IGNORE: u32 = 0x400;
const FAN_EVENT_ON_CHILD: u64 = 0x0800_0000;
const FOLDER: u32 = libc::S_IFDIR;
const NONBLOCK: u32 = libc::O_NONBLOCK.cast_unsigned();
const CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();

impl Planner<'_> {
    pub(super) fn inotify(&mut self, spare: i32, file: &OpenFile) {
        let args = args![file.flags & NONBLOCK | CLOEXEC];
        let call = self.program.call(self.leader, Sysno::inotify_init1, args).accept(Accept::Exactly(0));
        call.note("inotify instance");
        self.move_up(0, spare);
    }

    /// Where instances wait for their watches, and what these lead to that has no name: they stay open until all else is closed.
    pub(super) fn watchers(&self) -> Vec<i32> {
        let mut kept: Vec<i32> = Vec::new();
        for file in &self.image.open_files {
            let nameless: Vec<u32> = match &file.kind {
                Some(open_file::Kind::Inotify(inotify)) => {
                    inotify.watches.iter().filter_map(|watch| watch.file.filter(|_| watch.deleted)).collect()
                }
                Some(open_file::Kind::Fanotify(group)) => {
                    group.marks.iter().filter_map(|mark| mark.file.filter(|_| mark.deleted)).collect()
                }
                _ => continue,
            };
            kept.extend(nameless.into_iter().chain([file.id]).filter_map(|file| self.spare_of(file)));
        }
        kept.sort_unstable();
        kept.dedup();
        kept
    }

    /// When nobody has anything to close any more.
    pub(super) fn watch_at_last(&mut self) {
        let watchers = self.watchers();
        let Some((first, last)) = watchers.first().zip(watchers.last()) else { return };
        self.all_closed();
        if self.is_root() {
            self.inotify_watches();
            self.fanotify_marks();
            // Others have them too: nothing is closed for the last time.
            self.program
                .call(self.leader, Sysno::close_range, args![*first, *last, 0])
                .note("the last helpers");
        }
    }

    fn inotify_watches(&mut self) {
        let image = self.image;
        for file in &image.open_files {
            let Some(open_file::Kind::Inotify(inotify)) = &file.kind else { continue };
            let Some(fd) = self.spare_of(file.id) else { continue };
            for watch in &inotify.watches {
                let Some(identity) = &watch.identity else { continue };
                let note = format!("watch {} of {}", watch.wd, String::from_utf8_lossy(&identity.path));
                let name = self.name_of(identity, watch.deleted, watch.file);
                let path = self.program.string(&name);
                let args = args![fd, SET_NEXT_WD, watch.wd];
                self.program.call(self.leader, Sysno::ioctl, args).note(note.clone());
                let follow = if watch.deleted { 0 } else { IN_DONT_FOLLOW };
                let args = args![fd, path, watch.mask | follow];
                let call = self.program.call(self.leader, Sysno::inotify_add_watch, args);
                call.accept(Accept::Exactly(watch.wd.unsigned_abs().into())).note(note);
            }
        }
    }

    /// The name of something watched. What has none of its own any more has that of a descriptor, or of the working folder.
    fn name_of(&self, identity: &FileIdentity, deleted: bool, file: Option<u32>) -> Vec<u8> {
        match (deleted, file.and_then(|file| self.spare_of(file))) {
            (false, _) => identity.path.clone(),
            (true, Some(fd)) => format!("/proc/self/fd/{fd}").into_bytes(),
            (true, None) => b"/proc/self/cwd".to_vec(),
        }
    }

    pub(super) fn fanotify(&mut self, spare: i32, file: &OpenFile, group: &Fanotify) {
        // As it was made, which the kernel goes on telling, whatever became of its descriptors since.
        let args = args![group.flags, group.event_flags];
        let call = self.program.call(self.leader, Sysno::fanotify_init, args).accept(Accept::Exactly(0));
        call.note("fanotify group");
        self.move_up(0, spare);
        if (file.flags & NONBLOCK == 0) != (group.flags & FAN_NONBLOCK == 0) {
            let args = args![spare, libc::F_SETFL, file.flags & STATUS];
            self.program.call(self.leader, Sysno::fcntl, args).note("how it waits for events");
        }
    }

    fn fanotify_marks(&mut self) {
        let image = self.image;
        for file in &image.open_files {
            let Some(open_file::Kind::Fanotify(group)) = &file.kind else { continue };
            let Some(fd) = self.spare_of(file.id) else { continue };
            for mark in &group.marks {
                self.fanotify_mark(fd, mark);
            }
        }
    }

    /// What is wanted and what is ignored are two calls.
    fn fanotify_mark(&mut self, fd: i32, mark: &FanotifyMark) {
        let Some(identity) = &mark.identity else { return };
        let note = format!("mark of {}", String::from_utf8_lossy(&identity.path));
        let name = self.name_of(identity, mark.deleted, mark.file);
        let name = self.program.string(&name);
        let follow = if mark.deleted { 0 } else { FAN_MARK_DONT_FOLLOW };
        let ignoring = FAN_MARK_IGNORE | FAN_MARK_IGNORED_SURV_MODIFY;
        let flags = mark.flags & !ignoring | FAN_MARK_ADD | follow;
        // Of what is no folder the kernel adds this itself, where the group needs it, and some groups refuse it.
        let children = if identity.mode & libc::S_IFMT == FOLDER { 0 } else { FAN_EVENT_ON_CHILD };
        let way = if mark.flags & FAN_MARK_IGNORE == 0 { FAN_MARK_IGNORED_MASK } else { FAN_MARK_IGNORE };
        let ignored = flags | way | mark.flags & FAN_MARK_IGNORED_SURV_MODIFY;
        for (mask, flags) in [(mark.mask & !children, flags), (mark.ignored_mask, ignored)] {
            if mask != 0 {
                let args = args![fd, flags, mask, libc::AT_FDCWD, name];
                self.program.call(self.leader, Sysno::fanotify_mark, args).note(note.clone());
            }
        }
    }
}
