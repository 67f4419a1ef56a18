//! Ids that are others in this life: told when each is known, and written wherever the kernel is to find them.
//!
//! An entry of a program can take what an earlier one returned, but not reckon with it, nor write it anywhere: what is needed of both,
//! calls do that leave nothing behind.

use std::collections::BTreeSet;

use rewake_image::records::PendingSignal;
use rewake_linux::program::{CallRef, DataRef, Sysno, TrackRef, Value};

use super::super::{Planner, args};

const ARCH_SET_GS: i32 = 0x1001;
const ARCH_GET_GS: i32 = 0x1004;
/// Bytes of a file behind its position.
const FIONREAD: u64 = 0x541b;
/// In a clock of processor time: all bits set but these mean "of the caller".
const CLOCK_OWNER: i32 = !7;
/// In such a clock: it is a thread's.
const CLOCK_OF_THREAD: i32 = 4;
/// What is below the number of a thread in its clock.
const CLOCK_BITS: i32 = 7;
/// Places in a `siginfo_t`: how it was sent; by which process and which user, if it was by one.
const CODE: usize = 8;
const SENDER: usize = 16;
const SENDERS_USER: usize = 20;
/// How processes send signals: kill, sigqueue, a message queue, tgkill.
const SENT: [i32; 4] = [0, -1, -3, -6];
/// The longest `PID/task/TID`.
const LONGEST: usize = 40;

/// Where a thread writes the name of its folder in `/proc`, and says that it has.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Named {
    /// `/proc/PID/task/TID`.
    path: DataRef,
    /// A barrier of the thread and the first one.
    written: DataRef,
}

impl Planner<'_> {
    /// The id that a process or thread of the image has now.
    pub(in super::super) fn id(&mut self, track: TrackRef, id: i32) -> Value {
        if !self.site.own {
            return id.into();
        }
        // Each asks for itself: what its maker knows of it may not be written yet.
        let call = if id == self.process.pid { Sysno::getpid } else { Sysno::gettid };
        let own: CallRef = self.program.call(track, call, args![]).note("its id now").done();
        own.into()
    }

    /// The same for whoever of them it is.
    pub(in super::super) fn id_of_any(&mut self, id: i32) -> Value {
        match self.ids.get(&id) {
            Some(call) => (*call).into(),
            None => self.id(self.leader, id),
        }
    }

    /// Has the leader write the id that a thread has now to a word of the program's data, where the plan is for a process that does not
    /// keep its ids.
    pub(in super::super) fn write_id(&mut self, id: i32, at: DataRef) {
        if self.site.own {
            let now = self.id_of_any(id);
            self.write_word(self.leader, now, at, format!("id of {id} now"));
        }
    }

    /// The base of a segment nobody uses meanwhile can be set to a number and asked for at an address.
    fn write_word(&mut self, track: TrackRef, word: Value, at: DataRef, note: String) {
        let (set, get) = (Value::from(ARCH_SET_GS), Value::from(ARCH_GET_GS));
        self.program.call(track, Sysno::arch_prctl, [set, word]).note(note);
        self.program.call(track, Sysno::arch_prctl, [get, at.into()]);
    }

    /// A signal that the process has sent to itself is from who it is now.
    pub(in super::super) fn sender_now(&mut self, track: TrackRef, pending: &PendingSignal, info: DataRef) {
        let number = |at: usize| {
            let bytes = pending.siginfo.get(at..)?.first_chunk::<4>()?;
            Some(i32::from_le_bytes(*bytes))
        };
        let by_itself = number(CODE).is_some_and(|code| SENT.contains(&code))
            && number(SENDER) == Some(self.process.pid)
            && info.len >= SENDERS_USER + 4;
        if !self.site.own || !by_itself {
            return;
        }
        let pid = self.id(track, self.process.pid);
        self.write_word(track, pid, info.skip(SENDER), "who sent it".into());
        // That was a whole word, and the user's id is in its other half.
        let rest = self.program.zeros(8);
        let ids = [info.skip(SENDERS_USER), rest, rest.skip(4)].map(Value::from);
        self.program.call(track, Sysno::getresuid, ids).note("and as which user");
    }

    /// Works out what clocks of the processor time of single threads are called now, while there are descriptors yet.
    ///
    /// They hold the complement of the thread's id: the position of an empty file is made eight times that id, and how much of the file
    /// is left is then less than nothing by as much.
    pub(in super::super) fn clocks_of_threads(&mut self) {
        if !self.site.own {
            return;
        }
        let timers = self.process.posix_timers.iter().map(|timer| timer.clock);
        let clocks: BTreeSet<i32> = timers.filter(|clock| thread_of(*clock).is_some()).collect();
        for clock in clocks {
            let Some(tid) = thread_of(clock) else { continue };
            let (leader, id) = (self.leader, self.id_of_any(tid));
            let (name, place) = (self.program.string(b"clock"), self.program.zeros(8));
            let file = self.program.call(leader, Sysno::memfd_create, args![name, libc::MFD_CLOEXEC]);
            let file = file.note(format!("clock of thread {tid}")).done();
            let set = [file.into(), id, libc::SEEK_SET.into()];
            let mut at = self.program.call(leader, Sysno::lseek, set).done();
            for _ in 0..3 {
                at = self.program.call(leader, Sysno::lseek, args![file, at, libc::SEEK_CUR]).done();
            }
            // The complement is one less than the negative, here of a number eight times as large.
            let more = 8 - (clock & CLOCK_BITS);
            self.program.call(leader, Sysno::lseek, args![file, more, libc::SEEK_CUR]);
            self.program.call(leader, Sysno::ioctl, args![file, FIONREAD, place]);
            self.program.call(leader, Sysno::close, args![file]);
            self.clocks.insert(clock, place);
        }
    }

    /// The clock that a timer counts by. That of the process can be named without its id.
    pub(in super::super) fn clock_now(&self, clock: i32) -> Value {
        if let Some(place) = self.clocks.get(&clock) {
            return Value::Word(*place);
        }
        let of_process = clock < 0 && !(clock & CLOCK_OWNER) >> 3 == self.process.pid;
        let of_caller = self.site.own && of_process && clock & CLOCK_OF_THREAD == 0;
        Value::from(if of_caller { clock | CLOCK_OWNER } else { clock })
    }

    /// A thread writes what its folder in `/proc` is called now, if there are files to be opened in it.
    pub(in super::super) fn tell_own_folder(&mut self, track: TrackRef, tid: i32) {
        if !self.site.own || !self.tells_of_thread(tid) {
            return;
        }
        let begin = b"/proc/";
        let room = [begin.as_slice(), &[0; LONGEST]].concat();
        let (path, written) = (self.program.bytes(&room), self.program.zeros(4));
        let link = self.program.string(b"/proc/thread-self");
        let args = args![libc::AT_FDCWD, link, path.skip(begin.len()), LONGEST as u64 - 1];
        self.program.call(track, Sysno::readlinkat, args).note("its folder in /proc");
        self.program.barrier(track, written, 2).note("it has told its folder");
        self.named.insert(tid, Named { path, written });
    }

    /// Opens the folder of a thread in `/proc`: that among the threads of its process, or that which is hidden beside those of
    /// processes. `None` if the thread has told none.
    pub(in super::super) fn open_folder_of(&mut self, tid: i32, hidden: bool) -> Option<CallRef> {
        let Named { path, written } = *self.named.get(&tid)?;
        let leader = self.leader;
        self.program.barrier(leader, written, 2).note(format!("thread {tid} has told its folder"));
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let note = format!("folder of thread {tid} in /proc");
        if !hidden {
            let args = args![libc::AT_FDCWD, path, flags, 0];
            return Some(self.program.call(leader, Sysno::openat, args).note(note).done());
        }
        // Behind `/proc/`, our own id, which is this process's, and `/task/`.
        let begin = format!("/proc/{}/task/", self.site.parent).len();
        let proc = self.program.string(b"/proc");
        let all = self.program.call(leader, Sysno::openat, args![libc::AT_FDCWD, proc, flags, 0]).done();
        let args = args![all, path.skip(begin), flags, 0];
        let folder = self.program.call(leader, Sysno::openat, args).note(note).done();
        self.program.call(leader, Sysno::close, args![all]);
        Some(folder)
    }
}

/// The thread whose processor time a clock counts, if it names one.
fn thread_of(clock: i32) -> Option<i32> {
    let of_thread = clock < 0 && clock & CLOCK_OF_THREAD != 0;
    Some(!(clock & CLOCK_OWNER) >> 3).filter(|tid| of_thread && *tid != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_tell_their_threads() {
        assert_eq!(thread_of(!77 << 3 | 6), Some(77));
        assert_eq!(thread_of(!77 << 3 | 2), None);
        assert_eq!(thread_of(!0 << 3 | 6), None);
        assert_eq!(thread_of(1), None);
    }

    #[test]
    fn what_is_left_of_an_empty_file_is_the_clock() {
        for clock in [!77 << 3 | 6, !4_194_303 << 3 | 4] {
            let tid = thread_of(clock).expect("of a thread");
            let position = 8 * tid + (8 - (clock & CLOCK_BITS));
            assert_eq!(-position, clock);
        }
    }
}
