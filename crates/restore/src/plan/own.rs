//! A process that becomes the program itself, without a tracer: `=recover` of a program with the library inside.
//!
//! Nobody sets registers from outside: each thread leaves the program of the restore for code of the image, which stood still on purpose
//! and knows how to go on. Nobody chooses ids: what needs one gets that which the process or thread has now. A companion, not the
//! parent, watches over it and has the last word: a byte in a pipe, which ends when it does.

mod ids;

use rewake_image::records::{Limit, Thread, open_file};
use rewake_linux::program::{Accept, Sysno, TrackRef};

use super::{Planner, args};

pub(super) use ids::Named;

/// Places in `struct user_regs_struct`.
const RIP: usize = 16;
const RSP: usize = 19;
const FS_BASE: usize = 21;
const GS_BASE: usize = 22;
const ARCH_SET_GS: i32 = 0x1001;
const ARCH_SET_FS: i32 = 0x1002;
const FAILED: &[u8] = b"libckpt: =recover has failed, and nothing of the program has run\n";

impl Planner<'_> {
    /// The first steps.
    pub(super) fn begin_as_oneself(&mut self) {
        self.word("the companion is there");
        self.leave_registrations();
    }

    /// Waits for a word of the companion's; its end is an end of what it says.
    fn word(&mut self, note: &str) {
        let (place, from) = (self.program.zeros(8), self.site.word());
        let call = self.program.call(self.leader, Sysno::read, args![from, place, 1]);
        call.accept(Accept::Exactly(1)).note(note);
    }

    /// In the way of failure: the leader says so.
    pub(super) fn say_that_it_failed(&mut self) {
        if self.site.own {
            let text = self.program.string(FAILED);
            let len = u64::try_from(FAILED.len()).unwrap_or_default();
            let args = [self.site.stream(2).into(), text.into(), len.into()];
            self.program.call(self.leader, Sysno::write, args).accept(Accept::Any);
        }
    }

    /// In the way of failure of a thread: whoever waits for this process to end may take files as they are then for what they were. So it
    /// lives on until the companion has made them that, has said why, and is gone.
    pub(super) fn await_companion(&mut self, track: TrackRef) {
        if !self.site.own {
            return;
        }
        let (place, from) = (self.program.zeros(8), self.site.word());
        // Words that were not heard come first, of which there are two.
        for _ in 0..3 {
            let call = self.program.call(track, Sysno::read, args![from, place, 8]);
            call.accept(Accept::Any).retry().note("the companion is gone");
        }
    }

    /// Nobody may raise what he was given: the program gets as much of its own limits as there is.
    pub(super) fn limit_here(&self, limit: Limit, own: Option<(u64, u64)>) -> Limit {
        let Some((_, hard)) = own.filter(|_| self.site.own) else { return limit };
        Limit { soft: limit.soft.min(hard), hard: limit.hard.min(hard), ..limit }
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
        self.program.barrier(track, self.parked, all).note("ready");
        if track == self.leader {
            self.word("the companion lets go");
            let helpers = args![self.site.stream(2), self.site.word(), 0];
            self.program.call(self.leader, Sysno::close_range, helpers).note("the last helpers");
        }
        if let Some(ready) = self.ready {
            self.program.barrier(track, ready, all).note("all is well");
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
