//! Named pipes, filled through an end of our own that both reads and writes: while that is there, no opening waits and nothing is
//! lost. A reader to whom it is no hang-up that nobody writes must not have seen it.

use rewake_image::records::{FileIdentity, OpenFile, Pipe};
use rewake_linux::program::{Accept, Sysno};

use super::super::{Planner, args};
use super::pipes::End;
use super::{ACCESS, STATUS};

const PATH: u32 = libc::O_PATH.cast_unsigned();
const NONBLOCK: u32 = libc::O_NONBLOCK.cast_unsigned();
const CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();
const DIRECT: i32 = libc::O_DIRECT;
/// Our own end, which gets the lowest number, and the next one.
const OWN: i32 = 0;
const NEXT: i32 = 1;

impl Planner<'_> {
    pub(super) fn fifo(&mut self, pipe: &Pipe, identity: &FileIdentity, ends: &[End<'_>]) {
        let note = format!("fifo {}", String::from_utf8_lossy(&identity.path));
        let path = match pipe.removed.and_then(|id| self.removed_number(id)) {
            Some(number) => format!("/proc/self/fd/{number}").into_bytes(),
            None => identity.path.clone(),
        };
        let (files, ends): (Vec<&End<'_>>, Vec<&End<'_>>) =
            ends.iter().partition(|(_, file, _)| file.flags & PATH != 0);
        for (index, ..) in files {
            self.open_at(&path, PATH, OWN, &note);
            self.move_up(OWN, self.spare(*index));
        }
        if ends.is_empty() {
            return;
        }
        self.open_at(&path, libc::O_RDWR.cast_unsigned() | NONBLOCK, OWN, &note);
        if !pipe.packets.is_empty() {
            let args = args![OWN, libc::F_SETFL, DIRECT | libc::O_NONBLOCK];
            self.program.call(self.leader, Sysno::fcntl, args).note("packet mode");
        }
        self.fill_pipe(pipe, OWN, &note);
        let (waiting, others): (Vec<&End<'_>>, Vec<&End<'_>>) =
            ends.into_iter().partition(|(_, _, end)| end.awaits_writer);
        for (index, file, _) in others {
            self.fifo_end(OWN, self.spare(*index), file, &note);
        }
        let mut own = OWN;
        if !waiting.is_empty() {
            // Somebody must keep what is in it.
            self.open_at(b"/proc/self/fd/0", NONBLOCK, NEXT, &note);
            self.program.call(self.leader, Sysno::close, args![own]).note("the last writer");
            own = NEXT;
        }
        for (index, file, _) in waiting {
            self.fifo_end(own, self.spare(*index), file, &note);
        }
        self.program.call(self.leader, Sysno::close, args![own]).note(note);
    }

    /// Another description of the fifo at `own`.
    fn fifo_end(&mut self, own: i32, spare: i32, file: &OpenFile, note: &str) {
        let (path, got) = (format!("/proc/self/fd/{own}"), if own == OWN { NEXT } else { OWN });
        self.open_at(path.as_bytes(), file.flags & ACCESS | NONBLOCK, got, note);
        self.move_up(got, spare);
        let args = args![spare, libc::F_SETFL, file.flags & STATUS];
        self.program.call(self.leader, Sysno::fcntl, args).note(format!("{note} flags"));
    }

    fn open_at(&mut self, path: &[u8], flags: u32, number: i32, note: &str) {
        let path = self.program.string(path);
        let args = args![libc::AT_FDCWD, path, flags | CLOEXEC, 0];
        let call = self.program.call(self.leader, Sysno::openat, args);
        call.accept(Accept::Exactly(number.unsigned_abs().into())).note(note);
    }
}
