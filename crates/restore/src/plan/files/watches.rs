//! inotify instances and their watches, each with the number the program knows it by. They are made last of all: what the restore
//! does to files is no event.

use rewake_image::records::{OpenFile, open_file};
use rewake_linux::program::{Accept, Sysno};

use super::super::{Planner, args};

/// `INOTIFY_IOC_SETNEXTWD`: `_IOW('I', 0, s32)`; the number itself is the argument.
const SET_NEXT_WD: u64 = 0x4004_4900;
const IN_DONT_FOLLOW: u32 = 0x0200_0000;
const NONBLOCK: u32 = libc::O_NONBLOCK.cast_unsigned();
const CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();

impl Planner<'_> {
    pub(super) fn inotify(&mut self, spare: i32, file: &OpenFile) {
        let args = args![file.flags & NONBLOCK | CLOEXEC];
        let call = self.program.call(self.leader, Sysno::inotify_init1, args).accept(Accept::Exactly(0));
        call.note("inotify instance");
        self.move_up(0, spare);
    }

    pub(super) fn inotify_watches(&mut self) {
        let image = self.image;
        for file in &image.open_files {
            let Some(open_file::Kind::Inotify(inotify)) = &file.kind else { continue };
            let descriptors = &mut self.process.descriptors.iter();
            let Some(fd) = descriptors.find(|descriptor| descriptor.file == file.id).map(|found| found.fd)
            else {
                continue;
            };
            for watch in &inotify.watches {
                let Some(identity) = &watch.identity else { continue };
                let note = format!("watch {} of {}", watch.wd, String::from_utf8_lossy(&identity.path));
                let path = self.program.string(&identity.path);
                let args = args![fd, SET_NEXT_WD, watch.wd];
                self.program.call(self.leader, Sysno::ioctl, args).note(note.clone());
                let args = args![fd, path, watch.mask | IN_DONT_FOLLOW];
                let call = self.program.call(self.leader, Sysno::inotify_add_watch, args);
                call.accept(Accept::Exactly(watch.wd.unsigned_abs().into())).note(note);
            }
        }
    }
}
