//! Seccomp filters, and strict mode.
//!
//! All threads meet once before, and `resume` begins to trace them in a way that no filter counts (`PTRACE_O_SUSPEND_SECCOMP`): what the
//! restore still has to do is not what the program may do. Filters that all threads begin with are installed by the leader for all of
//! them at once (TSYNC), so that they are one and the same, as they mostly were; the rest by each thread for itself.

use rewake_image::records::{Process, Thread};
use rewake_linux::program::{Sysno, TrackRef};

use super::{Planner, args};

const PR_SET_SECCOMP: i32 = 22;
const MODE_STRICT: u32 = 1;
const SET_MODE_FILTER: i32 = 1;
const FLAG_TSYNC: u64 = 1;
/// Speculation is set for itself.
const FLAG_SPEC_ALLOW: u64 = 4;
const INSTRUCTION: usize = 8;

impl Planner<'_> {
    /// Before credentials: a filter may have been installed with rights that the thread gave up later.
    pub(super) fn seccomp(&mut self, track: TrackRef, thread: &Thread) {
        let Some(traced) = self.traced else { return };
        let all = u32::try_from(self.image.thread_count()).expect("image counts are checked");
        self.program.barrier(track, traced, all + 1).note("resume suspends seccomp");
        let threads = u32::try_from(self.process.threads.len()).expect("image counts are checked");
        let common = common(self.process);
        if track == self.leader {
            for id in &thread.seccomp_filters[..common] {
                self.filter(track, *id, FLAG_TSYNC);
            }
        }
        self.program.barrier(track, self.filtered, threads).note("all have the filters they share");
        for id in thread.seccomp_filters.iter().skip(common) {
            self.filter(track, *id, 0);
        }
        if thread.seccomp_mode == MODE_STRICT {
            self.program.call(track, Sysno::prctl, args![PR_SET_SECCOMP, MODE_STRICT]).note("strict seccomp");
        }
    }

    fn filter(&mut self, track: TrackRef, id: u32, flags: u64) {
        let Some(filter) = self.image.seccomp_filters.iter().find(|filter| filter.id == id) else { return };
        let count = filter.instructions.len() / INSTRUCTION;
        let instructions = self.program.bytes(&filter.instructions);
        // struct sock_fprog
        let program = self.program.words(&[u64::try_from(count).expect("image lengths are checked"), 0]);
        self.program.point(program, 8, instructions);
        let args = args![SET_MODE_FILTER, filter.flags | flags | FLAG_SPEC_ALLOW, program];
        // With TSYNC the result may also be the thread that cannot take part.
        let call = self.program.call(track, Sysno::seccomp, args);
        call.accept(rewake_linux::program::Accept::Exactly(0)).note(format!("seccomp filter {id}"));
    }
}

/// Whether any thread runs under seccomp.
#[must_use]
pub(super) fn is_used(process: &Process) -> bool {
    process.threads.iter().any(|thread| thread.seccomp_mode != 0)
}

/// How many filters all threads begin with.
fn common(process: &Process) -> usize {
    let Some((first, others)) = process.threads.split_first() else { return 0 };
    let same = |thread: &Thread| {
        let pairs = first.seccomp_filters.iter().zip(&thread.seccomp_filters);
        pairs.take_while(|(one, other)| one == other).count()
    };
    if others.is_empty() { 0 } else { others.iter().map(same).min().unwrap_or(0) }
}
