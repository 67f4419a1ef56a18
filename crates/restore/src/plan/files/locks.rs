//! Locks, and who gets signals about open files.

use rewake_image::records::{FileLock, OpenFile, file_lock};
use rewake_linux::program::Sysno;

use super::super::{Planner, args};
use super::STATUS;

const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;
const F_OWNER_PGRP: u32 = 2;
const ASYNC: u32 = libc::O_ASYNC.cast_unsigned();

impl Planner<'_> {
    /// Owners may be threads, so those must be there; and a file that is to cause signals does so from now on.
    pub(super) fn owners(&mut self) {
        let image = self.image;
        for file in &image.open_files {
            if let Some(spare) = self.spare_of(file.id) {
                self.owner(spare, file);
            }
        }
    }

    fn owner(&mut self, spare: i32, file: &OpenFile) {
        if file.owner_pid != 0 {
            // A program that was in another group now leads its own.
            let outside = file.owner_type == F_OWNER_PGRP && file.owner_pid == self.image.root().pgid;
            let id = match (outside, self.site.own_group) {
                (true, Some(group)) if self.site.own => group,
                (true, _) => self.process.pid,
                _ => file.owner_pid,
            };
            // Room behind it: an id that is told later comes as a whole word.
            let kind_and_id = u64::from(file.owner_type) | u64::from(id.unsigned_abs()) << 32;
            let owner = self.program.words(&[kind_and_id, 0]);
            if file.owner_type != F_OWNER_PGRP {
                self.write_id(id, owner.skip(4));
            }
            let args = args![spare, F_SETOWN_EX, owner];
            self.program.call(self.leader, Sysno::fcntl, args).note("owner for signals");
        }
        if file.owner_signal != 0 {
            let args = args![spare, F_SETSIG, file.owner_signal];
            self.program.call(self.leader, Sysno::fcntl, args).note("signal to the owner");
        }
    }

    /// Signals on input and output tell the number through which they were asked for: of the first process that has the file.
    pub(super) fn asynchronous(&mut self) {
        let image = self.image;
        for file in image.open_files.iter().filter(|file| file.flags & ASYNC != 0) {
            let mut having = image.processes.iter().filter_map(|process| {
                let mut own = process.descriptors.iter();
                Some((process.pid, own.find(|descriptor| descriptor.file == file.id)?.fd))
            });
            if let Some((pid, number)) = having.next()
                && pid == self.process.pid
            {
                let args = args![number, libc::F_SETFL, file.flags & (STATUS | ASYNC)];
                self.program.call(self.leader, Sysno::fcntl, args).note("signals on input and output");
            }
        }
    }

    /// Locks come last: closing any descriptor of a file drops the process's POSIX locks on it.
    pub(in super::super) fn locks(&mut self) {
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
                    let kind = if lock.write { libc::F_WRLCK } else { libc::F_RDLCK };
                    let args = args![lock.fd, libc::F_SETLEASE, kind];
                    self.program.call(self.leader, Sysno::fcntl, args).note(format!("lease, {note}"));
                }
            }
        }
    }

    fn record_lock(&mut self, lock: &FileLock, command: i32, note: String) {
        // struct flock: type and whence as 16-bit numbers, start, length, pid
        let kind = if lock.write { libc::F_WRLCK } else { libc::F_RDLCK };
        let kind = u64::try_from(kind).expect("lock types are not negative");
        let data = self.program.words(&[kind, lock.start, lock.length, 0]);
        self.program.call(self.leader, Sysno::fcntl, args![lock.fd, command, data]).note(note);
    }
}
