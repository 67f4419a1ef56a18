//! Pipes with all their ends in the image: made, sized and filled; a second description of an end is opened through the first.

use std::collections::BTreeMap;

use rewake_image::records::{OpenFile, Pipe, PipeEnd, open_file};
use rewake_linux::program::{Accept, DataRef, Sysno};

use super::super::{Planner, args};
use super::{ACCESS, STATUS};

/// Where pipe2(2) puts the ends, since nothing else is below the helpers.
const READ: i32 = 0;
const WRITE: i32 = 1;
const PATH: u32 = libc::O_PATH.cast_unsigned();

/// An open file that is an end of a pipe, and its place among the open files.
pub(super) type End<'a> = (usize, &'a OpenFile, &'a PipeEnd);

impl Planner<'_> {
    pub(super) fn pipes(&mut self) {
        let image = self.image;
        let mut all_ends: BTreeMap<u32, Vec<End<'_>>> = BTreeMap::new();
        for (index, file) in image.open_files.iter().enumerate() {
            if let Some(open_file::Kind::Pipe(end)) = &file.kind {
                all_ends.entry(end.pipe).or_default().push((index, file, end));
            }
        }
        for pipe in &image.pipes {
            let ends = all_ends.remove(&pipe.id).unwrap_or_default();
            match &pipe.fifo {
                Some(identity) => self.fifo(pipe, identity, &ends),
                None => self.pipe(pipe, &ends),
            }
        }
    }

    fn pipe(&mut self, pipe: &Pipe, ends: &[End<'_>]) {
        let note = format!("pipe {}", pipe.id);
        let numbers = self.program.zeros(8);
        let mode = if pipe.packets.is_empty() { 0 } else { libc::O_DIRECT };
        let args = args![numbers, mode | libc::O_CLOEXEC];
        self.program.call(self.leader, Sysno::pipe2, args).note(note.clone());
        self.fill_pipe(pipe, WRITE, &note);
        let (files, ends): (Vec<&End<'_>>, Vec<&End<'_>>) =
            ends.iter().partition(|(_, file, _)| file.flags & PATH != 0);
        for (index, file, _) in files {
            self.reopen_pipe(READ, self.spare(*index), file);
        }
        for (write, number) in [(false, READ), (true, WRITE)] {
            let mut same = ends.iter().filter(|(_, _, end)| end.write == write && !end.both);
            if let Some((index, file, _)) = same.next() {
                let spare = self.spare(*index);
                self.program.call(self.leader, Sysno::dup3, args![number, spare, libc::O_CLOEXEC]);
                let args = args![spare, libc::F_SETFL, file.flags & STATUS];
                self.program.call(self.leader, Sysno::fcntl, args).note(format!("{note} flags"));
                for (other, file, _) in same {
                    self.reopen_pipe(number, self.spare(*other), file);
                }
            }
        }
        for (index, file, _) in ends.iter().filter(|(_, _, end)| end.both) {
            self.reopen_pipe(WRITE, self.spare(*index), file);
        }
        self.program.call(self.leader, Sysno::close_range, args![READ, WRITE, 0]);
    }

    /// Size and content, through the writing end at `number`.
    pub(super) fn fill_pipe(&mut self, pipe: &Pipe, number: i32, note: &str) {
        if pipe.capacity != 0 {
            let args = args![number, libc::F_SETPIPE_SZ, pipe.capacity];
            self.program.call(self.leader, Sysno::fcntl, args).note(format!("{note} capacity"));
        }
        if pipe.content.is_empty() {
            return;
        }
        let content = self.program.bytes(&pipe.content);
        if pipe.packets.is_empty() {
            return self.write_pipe(number, content, content.len, format!("{note} content"));
        }
        let mut at = 0;
        for packet in &pipe.packets {
            let len = usize::try_from(*packet).expect("image lengths are checked");
            self.write_pipe(number, content.skip(at), len, format!("{note} packet"));
            at += len;
        }
    }

    fn write_pipe(&mut self, number: i32, content: DataRef, len: usize, note: String) {
        let len = u64::try_from(len).expect("image lengths are checked");
        let call = self.program.call(self.leader, Sysno::write, args![number, content, len]);
        call.accept(Accept::Exactly(len)).note(note);
    }

    /// Another description of the end at `number`. Descriptors 0 and 1 are still the pipe here, so it comes to 2.
    fn reopen_pipe(&mut self, number: i32, spare: i32, file: &OpenFile) {
        let path = self.program.string(format!("/proc/self/fd/{number}").as_bytes());
        let flags = file.flags & (ACCESS | PATH) | (libc::O_NONBLOCK | libc::O_CLOEXEC).cast_unsigned();
        let args = args![libc::AT_FDCWD, path, flags, 0];
        self.program
            .call(self.leader, Sysno::openat, args)
            .accept(Accept::Exactly(2))
            .note("same end of the pipe");
        self.move_up(2, spare);
        if file.flags & PATH == 0 {
            // Packet mode is nothing that a pipe could be opened with.
            let args = args![spare, libc::F_SETFL, file.flags & STATUS];
            self.program.call(self.leader, Sysno::fcntl, args).note("flags of the pipe");
        }
    }
}
