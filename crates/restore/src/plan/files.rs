//! Open files, descriptors, pipes, locks.
//!
//! All numbers below [`Site::fd_base`](super::Site::fd_base) are closed first, so whatever is opened gets 0 (a pipe 0 and 1) and is
//! moved up to a number of its own at once; when the memory is in place the files take the numbers the image says.

use std::collections::BTreeMap;

use rewake_image::records::{FileIdentity, FileLock, MappedFile, OpenFile, PipeEnd, file_lock, open_file};
use rewake_linux::program::{Accept, Sysno};

use super::{Planner, args};
use crate::error::RestoreError;

/// Flags that open(2) may be given again; the rest belongs to the moment of creation or is told by the kernel only.
const REOPEN: u32 =
    !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY | libc::O_CLOEXEC).cast_unsigned();
const ACCESS: u32 = libc::O_ACCMODE.cast_unsigned();
/// Status flags that F_SETFL changes.
const STATUS: u32 =
    (libc::O_APPEND | libc::O_NONBLOCK | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME).cast_unsigned();
const LAST_FD: u32 = u32::MAX;
const F_SETSIG: i32 = 10;

impl Planner<'_> {
    pub(super) fn open_files(&mut self) -> Result<(), RestoreError> {
        let (leader, base) = (self.leader, self.site.fd_base);
        let program = &mut self.program;
        program.call(leader, Sysno::close_range, args![0, base - 1, 0]).note("what resume had open");
        let first_spare = self.site.spare();
        program.call(leader, Sysno::close_range, args![first_spare, LAST_FD, 0]);
        self.pipes();
        for (index, file) in self.image.open_files.iter().enumerate() {
            self.open_file(self.spare(index), file)?;
        }
        Ok(())
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
        match file.kind.as_ref().ok_or_else(|| unsupported("of no known kind"))? {
            Kind::Regular(regular) => {
                let identity = regular.identity.as_ref().ok_or_else(|| unsupported("without a path"))?;
                match regular.content.and_then(|content| self.site.prepared.get(&content)) {
                    Some(prepared) => self.open_prepared(spare, *prepared, file.flags, &identity.path),
                    None => self.open_path(spare, &identity.path, file.flags),
                }
                self.seek(spare, regular.position, &identity.path);
            }
            Kind::Directory(directory) => {
                let identity = directory.identity.as_ref().ok_or_else(|| unsupported("without a path"))?;
                self.open_path(spare, &identity.path, file.flags | libc::O_DIRECTORY.cast_unsigned());
                self.seek(spare, directory.position, &identity.path);
            }
            Kind::Device(device) => self.open_path(spare, &device.path, file.flags),
            Kind::Outside(stream) => {
                let own = self.site.stream(stream.standard_stream);
                let note = format!("{} becomes resume's", String::from_utf8_lossy(&stream.description));
                self.program.call(self.leader, Sysno::dup3, args![own, spare, 0]).note(note);
            }
            // Made with its other end.
            Kind::Pipe(_) => {}
            _ => return Err(unsupported("of a kind that this version cannot restore")),
        }
        self.owner(spare, file);
        Ok(())
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

    fn owner(&mut self, spare: i32, file: &OpenFile) {
        if file.owner_pid != 0 {
            let args = args![spare, libc::F_SETOWN, file.owner_pid];
            self.program.call(self.leader, Sysno::fcntl, args).note("owner for signals");
        }
        if file.owner_signal != 0 {
            let args = args![spare, F_SETSIG, file.owner_signal];
            self.program.call(self.leader, Sysno::fcntl, args).note("signal to the owner");
        }
    }

    /// Pipes whose both ends are inside: made, sized and filled; a second description of an end is opened through the first.
    fn pipes(&mut self) {
        let image = self.image;
        let mut all_ends: BTreeMap<u32, Vec<(usize, &OpenFile, &PipeEnd)>> = BTreeMap::new();
        for (index, file) in image.open_files.iter().enumerate() {
            if let Some(open_file::Kind::Pipe(end)) = &file.kind {
                all_ends.entry(end.pipe).or_default().push((index, file, end));
            }
        }
        for pipe in &image.pipes {
            let ends = all_ends.remove(&pipe.id).unwrap_or_default();
            let note = format!("pipe {}", pipe.id);
            let leader = self.leader;
            let numbers = self.program.zeros(8);
            self.program.call(leader, Sysno::pipe2, args![numbers, libc::O_CLOEXEC]).note(note.clone());
            if pipe.capacity != 0 {
                let args = args![1, libc::F_SETPIPE_SZ, pipe.capacity];
                self.program.call(leader, Sysno::fcntl, args).note(format!("{note} capacity"));
            }
            if !pipe.content.is_empty() {
                let len = u64::try_from(pipe.content.len()).expect("image lengths are checked");
                let content = self.program.bytes(&pipe.content);
                let call = self.program.call(leader, Sysno::write, args![1, content, len]);
                call.accept(Accept::Exactly(len)).note(format!("{note} content"));
            }
            for (write, number) in [(false, 0), (true, 1)] {
                let mut same = ends.iter().filter(|(_, _, end)| end.write == write);
                if let Some((index, file, _)) = same.next() {
                    let spare = self.spare(*index);
                    self.program.call(leader, Sysno::dup3, args![number, spare, libc::O_CLOEXEC]);
                    let args = args![spare, libc::F_SETFL, file.flags & STATUS];
                    self.program.call(leader, Sysno::fcntl, args).note(format!("{note} flags"));
                    for (other, file, _) in same {
                        self.reopen_pipe(spare, self.spare(*other), file);
                    }
                }
            }
            self.program.call(leader, Sysno::close_range, args![0, 1, 0]);
        }
    }

    /// Another description of the same end. Descriptors 0 and 1 are still the pipe here, so it comes to 2.
    fn reopen_pipe(&mut self, first: i32, spare: i32, file: &OpenFile) {
        let path = self.program.string(format!("/proc/self/fd/{first}").as_bytes());
        let flags = file.flags & (ACCESS | STATUS) | libc::O_CLOEXEC.cast_unsigned();
        let args = args![libc::AT_FDCWD, path, flags, 0];
        self.program
            .call(self.leader, Sysno::openat, args)
            .accept(Accept::Exactly(2))
            .note("same end of the pipe");
        self.move_up(2, spare);
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
        let places: BTreeMap<u32, usize> =
            self.image.open_files.iter().map(|file| file.id).zip(0..).collect();
        for descriptor in &self.process.descriptors {
            let spare = self.spare(places[&descriptor.file]);
            let flags = if descriptor.close_on_exec { libc::O_CLOEXEC } else { 0 };
            let args = args![spare, descriptor.fd, flags];
            self.program.call(self.leader, Sysno::dup3, args).note(format!("descriptor {}", descriptor.fd));
        }
        let base = self.site.fd_base;
        self.program.call(self.leader, Sysno::close_range, args![base, LAST_FD, 0]).note("all helpers");
    }

    /// Locks come last: closing any descriptor of a file drops the process's POSIX locks on it.
    pub(super) fn locks(&mut self) -> Result<(), RestoreError> {
        for lock in &self.process.locks {
            let note = format!("lock through descriptor {}", lock.fd);
            match lock.r#type() {
                file_lock::Type::Flock => {
                    let operation = if lock.write { libc::LOCK_EX } else { libc::LOCK_SH } | libc::LOCK_NB;
                    self.program.call(self.leader, Sysno::flock, args![lock.fd, operation]).note(note);
                }
                file_lock::Type::Posix => self.record_lock(lock, libc::F_SETLK, note),
                file_lock::Type::Ofd => self.record_lock(lock, libc::F_OFD_SETLK, note),
                file_lock::Type::Lease => {
                    return Err(RestoreError::Unsupported {
                        pid: self.process.pid,
                        object: note,
                        reason: "a lease".into(),
                    });
                }
            }
        }
        Ok(())
    }

    fn record_lock(&mut self, lock: &FileLock, command: i32, note: String) {
        // struct flock: type and whence as 16-bit numbers, start, length, pid
        let kind = if lock.write { libc::F_WRLCK } else { libc::F_RDLCK };
        let kind = u64::try_from(kind).expect("lock types are not negative");
        let data = self.program.words(&[kind, lock.start, lock.length, 0]);
        self.program.call(self.leader, Sysno::fcntl, args![lock.fd, command, data]).note(note);
    }
}
