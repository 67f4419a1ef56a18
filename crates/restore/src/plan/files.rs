//! Open files, descriptors, pipes, locks.
//!
//! All numbers below [`Site::fd_base`](super::Site::fd_base) are closed first, so whatever is opened gets 0 (a pipe 0 and 1) and is
//! moved up to a number of its own at once; when the memory is in place the files take the numbers the image says.

mod epolls;
mod fifos;
mod kernel;
mod late;
mod locks;
mod pidfds;
mod pipes;
mod queues;
mod removed;
mod special;
mod unix;
mod watches;

use std::collections::BTreeMap;

use rewake_image::records::{FileIdentity, MappedFile, OpenFile, open_file};
use rewake_linux::program::{Accept, Sysno};

use super::{Planner, args};
use crate::error::RestoreError;
use crate::streams::Stream;

pub use queues::MadeQueue;

/// Flags that open(2) may be given again; the rest belongs to the moment of creation, is told by the kernel only, or (O_ASYNC)
/// means nothing to it.
const REOPEN: u32 =
    !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_ASYNC)
        .cast_unsigned();
const ACCESS: u32 = libc::O_ACCMODE.cast_unsigned();
/// Status flags that F_SETFL changes; O_ASYNC comes later.
const STATUS: u32 = (libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME).cast_unsigned();
const LAST_FD: u32 = u32::MAX;

impl Planner<'_> {
    /// A `/proc` of its own where that is another one, and none of `resume`'s files but the helpers.
    pub(super) fn before_files(&mut self) {
        if self.site.inside {
            self.own_proc();
        }
        let (leader, base) = (self.leader, self.site.fd_base);
        let program = &mut self.program;
        program.call(leader, Sysno::close_range, args![0, base - 1, 0]).note("what resume had open");
        let first_spare = self.site.spare();
        program.call(leader, Sysno::close_range, args![first_spare, LAST_FD, 0]);
    }

    pub(super) fn open_files(&mut self) -> Result<(), RestoreError> {
        self.pipes();
        self.posix_queues();
        let web = self.unix_sockets()?;
        self.gone_pidfds();
        for (index, file) in self.image.open_files.iter().enumerate() {
            self.open_file(self.spare(index), file)?;
        }
        self.finish_sockets(&web)
    }

    fn spare(&self, index: usize) -> i32 {
        self.site.spare() + i32::try_from(index).expect("image counts are checked")
    }

    fn open_file(&mut self, spare: i32, file: &OpenFile) -> Result<(), RestoreError> {
        use open_file::Kind;
        let unsupported = |reason: &str| RestoreError::Unsupported {
            pid: self.process.pid,
            object: format!("open file {}", file.id),
            reason: reason.into(),
        };
        if self.is_late(file) {
            self.hold_place(spare);
            return Ok(());
        }
        match file.kind.as_ref().ok_or_else(|| unsupported("of no known kind"))? {
            Kind::Regular(regular) => {
                let identity = regular.identity.as_ref().ok_or_else(|| unsupported("without a path"))?;
                if let Some(stream) = self.site.streams.get(&file.id).copied() {
                    self.take_stream(spare, stream, regular.position, &identity.path);
                    return Ok(());
                }
                match regular.content.and_then(|content| self.site.prepared.get(&content)) {
                    Some(prepared) => self.open_prepared(spare, *prepared, file.flags, &identity.path),
                    None => self.open_path(spare, &identity.path, file.flags),
                }
                self.seek(spare, regular.position, &identity.path);
            }
            Kind::Directory(directory) => {
                let identity = directory.identity.as_ref().ok_or_else(|| unsupported("without a path"))?;
                let flags = file.flags | libc::O_DIRECTORY.cast_unsigned();
                match directory.removed.and_then(|id| self.removed_number(id)) {
                    Some(number) => self.open_prepared(spare, number, flags, &identity.path),
                    None => self.open_path(spare, &identity.path, flags),
                }
                self.seek(spare, directory.position, &identity.path);
            }
            Kind::Device(device) => self.open_path(spare, &device.path, file.flags),
            Kind::Outside(stream) => {
                let own = self.site.stream(stream.standard_stream);
                let note = format!("{} becomes resume's", String::from_utf8_lossy(&stream.description));
                self.program.call(self.leader, Sysno::dup3, args![own, spare, 0]).note(note);
            }
            // Made with their other ends; or before all others, of a process that is gone.
            Kind::Pipe(_) | Kind::Socket(_) | Kind::Pidfd(_) => {}
            Kind::Eventfd(eventfd) => self.eventfd(spare, file, eventfd),
            Kind::Timerfd(timer) => self.timerfd(spare, file, timer),
            Kind::Signalfd(signals) => self.signalfd(spare, file, signals),
            Kind::Epoll(_) => self.epoll(spare),
            Kind::Inotify(_) => self.inotify(spare, file),
            Kind::Fanotify(fanotify) => self.fanotify(spare, file, fanotify),
            Kind::KernelFile(kernel) => self.kernel_file(spare, file.flags, kernel),
            Kind::PosixQueue(end) => self.open_queue(spare, file.flags, end.queue),
            Kind::Symlink(link) => self.open_path(spare, &link.path, file.flags),
            Kind::Netlink(socket) => self.netlink(spare, file, socket),
        }
        Ok(())
    }

    /// Our own stream is that very file already, and perhaps somebody else's too.
    fn take_stream(&mut self, spare: i32, stream: Stream, position: u64, path: &[u8]) {
        let own = self.site.stream(stream.number);
        let note = format!("{}: resume's own stream", String::from_utf8_lossy(path));
        self.program.call(self.leader, Sysno::dup3, args![own, spare, 0]).note(note);
        if !stream.goes_on {
            let (to, note) = (libc::SEEK_SET, format!("position in {}", String::from_utf8_lossy(path)));
            let call = self.program.call(self.leader, Sysno::lseek, args![spare, position, to]);
            call.accept(Accept::Exactly(position)).note(note);
        }
    }

    fn open_path(&mut self, spare: i32, path: &[u8], flags: u32) {
        let name = self.program.string(path);
        let note = String::from_utf8_lossy(path);
        let flags = flags & REOPEN | (libc::O_NOCTTY | libc::O_CLOEXEC).cast_unsigned();
        self.program
            .call(self.leader, Sysno::openat, args![libc::AT_FDCWD, name, flags, 0])
            .accept(Accept::Exactly(0))
            .note(note);
        self.move_up(0, spare);
    }

    /// Another description of a file that `resume` prepared: by the kernel's own link, which needs no name.
    fn open_prepared(&mut self, spare: i32, prepared: i32, flags: u32, name: &[u8]) {
        let path = self.program.string(format!("/proc/self/fd/{prepared}").as_bytes());
        let flags = flags & REOPEN | (libc::O_NOCTTY | libc::O_CLOEXEC).cast_unsigned();
        // That link must be followed; whoever asked for no links was given his file already.
        let flags = flags & !libc::O_NOFOLLOW.cast_unsigned();
        let args = args![libc::AT_FDCWD, path, flags, 0];
        let note = String::from_utf8_lossy(name);
        self.program.call(self.leader, Sysno::openat, args).accept(Accept::Exactly(0)).note(note);
        self.move_up(0, spare);
    }

    fn move_up(&mut self, from: i32, to: i32) {
        let note = "out of the way; the descriptor limit must allow for it";
        self.program.call(self.leader, Sysno::dup3, args![from, to, libc::O_CLOEXEC]).note(note);
        self.program.call(self.leader, Sysno::close, args![from]);
    }

    fn seek(&mut self, spare: i32, position: u64, path: &[u8]) {
        if position != 0 {
            let note = format!("position in {}", String::from_utf8_lossy(path));
            let call = self.program.call(self.leader, Sysno::lseek, args![spare, position, libc::SEEK_SET]);
            call.accept(Accept::Exactly(position)).note(note);
        }
    }

    /// Opens a mapped file at descriptor 0: the one prepared for it, or that of its name.
    pub(super) fn open_mapped(&mut self, file: &MappedFile, identity: &FileIdentity, flags: i32) {
        let path = match file.content.and_then(|content| self.site.prepared.get(&content)) {
            Some(prepared) => self.program.string(format!("/proc/self/fd/{prepared}").as_bytes()),
            None => self.program.string(&identity.path),
        };
        let args = args![libc::AT_FDCWD, path, flags | libc::O_CLOEXEC | libc::O_NOCTTY, 0];
        let note = String::from_utf8_lossy(&identity.path);
        self.program.call(self.leader, Sysno::openat, args).accept(Accept::Exactly(0)).note(note);
    }

    pub(super) fn install_descriptors(&mut self) {
        if self.is_root() {
            self.watches_by_other_numbers();
        }
        let places: BTreeMap<u32, usize> =
            self.image.open_files.iter().map(|file| file.id).zip(0..).collect();
        for descriptor in &self.process.descriptors {
            let spare = self.spare(places[&descriptor.file]);
            let flags = if descriptor.close_on_exec { libc::O_CLOEXEC } else { 0 };
            let args = args![spare, descriptor.fd, flags];
            self.program.call(self.leader, Sysno::dup3, args).note(format!("descriptor {}", descriptor.fd));
        }
    }

    /// What must wait for the threads, and for descriptors at their numbers; then all helpers are closed. What belongs to files and not
    /// to descriptors the root does for all.
    pub(super) fn finish_files(&mut self) {
        self.open_late_files();
        if self.process.descriptors_of.is_some() {
            return;
        }
        if self.is_root() {
            self.watches_of_late_files();
            self.owners();
            self.watches();
            self.arm_timers();
            self.finish_removed_files();
            self.finish_queues();
        } else {
            self.watches_of_own_signals();
        }
        self.asynchronous();
        let kept = if self.is_root() { self.watchers() } else { Vec::new() };
        let mut from = self.site.fd_base;
        // The companion has not yet said its last word.
        let own = self.site.own.then(|| [self.site.stream(2), self.site.word()]);
        for number in own.into_iter().flatten().chain(kept) {
            if from < number {
                let args = args![from, number - 1, 0];
                self.program.call(self.leader, Sysno::close_range, args).note("helpers");
            }
            from = number + 1;
        }
        self.program.call(self.leader, Sysno::close_range, args![from, LAST_FD, 0]).note("all helpers");
        self.watch_at_last();
    }

    /// Where the open file of an id waits for its number.
    fn spare_of(&self, file: u32) -> Option<i32> {
        let place = self.image.open_files.binary_search_by_key(&file, |file| file.id).ok()?;
        Some(self.spare(place))
    }
}
