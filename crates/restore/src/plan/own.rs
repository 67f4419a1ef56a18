//! A process that becomes the program itself, without a tracer: `=recover` of a program with the library inside.
//!
//! Nobody sets registers from outside: each thread leaves the program of the restore for code of the image, which stood still on purpose
//! and knows how to go on. Nobody chooses ids: what needs one gets that which the process or thread has now. A companion, not the
//! parent, watches over it and has the last word: see [`Verdict`].

use rewake_image::records::{Limit, Thread, open_file};
use rewake_linux::program::{Accept, CallRef, DataRef, Sysno, TrackRef, Value};

use super::{Planner, args};

/// Places in `struct user_regs_struct`.
const RIP: usize = 16;
const RSP: usize = 19;
const FS_BASE: usize = 21;
const GS_BASE: usize = 22;
const ARCH_SET_GS: i32 = 0x1001;
const ARCH_SET_FS: i32 = 0x1002;
const ARCH_GET_GS: i32 = 0x1004;

/// What the companion lets the process know when all its threads are ready: the number of a clock, which is there or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything is verified and in place.
    GoOn,
    /// It must not go on.
    End,
}

impl Verdict {
    /// The word that says it.
    #[must_use]
    pub const fn word(self) -> u64 {
        match self {
            Self::GoOn => libc::CLOCK_REALTIME.cast_unsigned() as u64,
            Self::End => u32::MAX as u64,
        }
    }
}

impl Planner<'_> {
    /// The first steps.
    pub(super) fn begin_as_oneself(&mut self) {
        let note = "the companion is there";
        self.program.barrier(self.leader, self.gate, 2).note(note);
        self.leave_registrations();
    }

    /// The id that a process or thread of the image has now.
    pub(super) fn id(&mut self, track: TrackRef, id: i32) -> Value {
        if !self.site.own {
            return id.into();
        }
        // Each asks for itself: what its maker knows of it may not be written yet.
        let call = if id == self.process.pid { Sysno::getpid } else { Sysno::gettid };
        let own: CallRef = self.program.call(track, call, args![]).note("its id now").done();
        own.into()
    }

    /// Has the leader write the id that a thread has now to a word of the program's data, where the plan is for a process that keeps its
    /// ids: the base of a segment nobody uses meanwhile can be set to a number and asked for at an address.
    pub(super) fn write_id(&mut self, id: i32, at: DataRef) {
        if !self.site.own {
            return;
        }
        let now = match self.ids.get(&id) {
            Some(call) => (*call).into(),
            None => self.id(self.leader, id),
        };
        let (set, get) = (Value::from(ARCH_SET_GS), Value::from(ARCH_GET_GS));
        self.program.call(self.leader, Sysno::arch_prctl, [set, now]).note(format!("id of {id} now"));
        self.program.call(self.leader, Sysno::arch_prctl, [get, at.into()]);
    }

    /// The clock of processor time that a timer counts: the process's and the first thread's can be named without their ids.
    pub(super) fn clock_now(&self, clock: i32) -> i32 {
        /// All bits set but these: of the caller.
        const OWNER: i32 = !7;
        let of_first = !(clock & OWNER) >> 3 == self.process.pid;
        if self.site.own && clock < 0 && of_first { clock | OWNER } else { clock }
    }

    /// Nobody may raise what he was given: the program gets as much of its own limits as there is.
    pub(super) fn limit_here(&self, limit: Limit, own: Option<(u64, u64)>) -> Limit {
        let Some((_, hard)) = own.filter(|_| self.site.own) else { return limit };
        Limit { soft: limit.soft.min(hard), hard, ..limit }
    }

    /// What is set through files of `/proc`: by the process itself, as far as it may.
    fn proc_files(&mut self) {
        let files = [
            ("oom_score_adj", self.process.oom_score_adj.map(|value| value.to_string())),
            ("coredump_filter", self.process.coredump_filter.map(|value| format!("{value:#x}"))),
        ];
        for (file, value) in files.into_iter().filter_map(|(file, value)| Some((file, value?))) {
            let path = self.program.string(format!("/proc/self/{file}").as_bytes());
            let text = self.program.string(value.as_bytes());
            let len = u64::try_from(value.len()).unwrap_or_default();
            let args = args![libc::AT_FDCWD, path, libc::O_WRONLY | libc::O_CLOEXEC, 0];
            let fd = self.program.call(self.leader, Sysno::openat, args).accept(Accept::Any).done();
            let args = [fd.into(), text.into(), len.into()];
            self.program.call(self.leader, Sysno::write, args).accept(Accept::Any).note(file);
            self.program.call(self.leader, Sysno::close, [fd.into()]).accept(Accept::Any);
        }
    }

    /// Positions in files that the kernel makes up: when all is made that they tell of.
    fn positions(&mut self) {
        let image = self.image;
        for file in &image.open_files {
            let Some(open_file::Kind::KernelFile(kernel)) = &file.kind else { continue };
            let mut descriptors = self.process.descriptors.iter();
            if let Some(descriptor) = descriptors.find(|descriptor| descriptor.file == file.id)
                && kernel.position != 0
            {
                let args = args![descriptor.fd, kernel.position, libc::SEEK_SET];
                let call = self.program.call(self.leader, Sysno::lseek, args);
                call.accept(Accept::Exactly(kernel.position)).note("position in a file of the kernel's");
            }
        }
    }

    /// The last steps of a thread: all meet, and go on where they stood still.
    pub(super) fn leave_as_oneself(&mut self, track: TrackRef, thread: &Thread) {
        let register = |at: usize| thread.registers.get(at).copied().unwrap_or_default();
        let all = u32::try_from(self.process.threads.len()).expect("image counts are checked");
        self.program.barrier(track, self.parked, all + 1).note("ready; the companion lets go");
        if let Some(verdict) = self.verdict {
            let now = self.program.zeros(16);
            let args = [Value::Word(verdict), now.into()];
            self.program.call(track, Sysno::clock_getres, args).note("all is well");
        }
        if track == self.leader {
            self.proc_files();
            self.positions();
        }
        for (code, base) in [(ARCH_SET_GS, register(GS_BASE)), (ARCH_SET_FS, register(FS_BASE))] {
            self.program.call(track, Sysno::arch_prctl, args![code, base]).accept(Accept::Success);
        }
        let told = [self.site.stage.into(), self.site.stage_len.into()];
        let (place, stack) = (register(RIP).into(), register(RSP).into());
        self.program.leave(track, place, stack, told).note("where it stood still");
    }
}
