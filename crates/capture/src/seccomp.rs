//! Seccomp: suspended while the target is asked, and read from outside.
//!
//! The filters do not count while the target's threads make our calls; they do again before it goes on, and at once should its
//! guardian die. A thread of it that is just then on its way back could be killed by its own filter: that is the one case in which
//! the death of the guardian can harm a target, and lasts the milliseconds of the questions.

use std::collections::BTreeMap;

use rewake_image::records::{SeccompFilter, Thread};
use rewake_linux::proc::Proc;
use rewake_linux::ptrace::{Options, Stopped};

use crate::error::{During, Result};
use crate::findings::Findings;

const MODE_FILTER: u32 = 2;
/// `BPF_RET | BPF_K`, and what it returns to wake a supervisor.
const RETURN_CONSTANT: u16 = 0x06;
const USER_NOTIF: u32 = 0x7fc0_0000;
const ACTION: u32 = 0xffff_0000;
/// Bytes of a `struct sock_filter`: code, two jumps, constant.
const INSTRUCTION: usize = 8;

/// Suspends seccomp in the threads that have it; their ids.
///
/// # Errors
/// When it is not permitted, or a thread was killed meanwhile.
pub(crate) fn suspend(proc: &Proc, threads: &BTreeMap<i32, Stopped>) -> Result<Vec<i32>> {
    let mut suspended = Vec::new();
    for (tid, stopped) in threads {
        let object = format!("thread {tid}");
        let status = proc.thread(*tid).and_then(|thread| thread.status());
        if status.during("read status", proc.id(), &object)?.seccomp == 0 {
            continue;
        }
        let options = Options { suspend_seccomp: true, ..Options::default() };
        stopped.set_options(options).during("suspend seccomp", proc.id(), &object)?;
        suspended.push(*tid);
    }
    Ok(suspended)
}

/// Lets seccomp count again.
///
/// # Errors
/// When a thread was killed meanwhile.
pub(crate) fn resume(pid: i32, threads: &BTreeMap<i32, Stopped>, suspended: &[i32]) -> Result<()> {
    for (tid, stopped) in threads.iter().filter(|(tid, _)| suspended.contains(tid)) {
        stopped.set_options(Options::default()).during("resume seccomp", pid, format!("thread {tid}"))?;
    }
    Ok(())
}

/// The filters of all threads, each once.
#[derive(Debug, Default)]
pub(crate) struct Filters(BTreeMap<(Vec<u8>, u64), u32>);

impl Filters {
    /// Reads those of a thread.
    ///
    /// # Errors
    /// When the thread was killed meanwhile, or the kernel does not tell.
    pub(crate) fn read(
        &mut self,
        pid: i32,
        stopped: &Stopped,
        thread: &mut Thread,
        findings: &mut Findings,
    ) -> Result<()> {
        if thread.seccomp_mode != MODE_FILTER {
            return Ok(());
        }
        let filters = stopped.seccomp_filters();
        for filter in filters.during("read seccomp filters", pid, format!("thread {}", thread.tid))? {
            if wakes_a_supervisor(&filter.instructions) {
                let reason = "a seccomp filter of it asks a supervisor, which is not supported yet";
                findings.add_thread(thread.tid, reason, "run the program without that supervisor");
            }
            let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX) + 1;
            let id = *self.0.entry((filter.instructions, filter.flags)).or_insert(next);
            thread.seccomp_filters.push(id);
        }
        Ok(())
    }

    /// The records, in order of id.
    pub(crate) fn into_records(self) -> Vec<SeccompFilter> {
        let record = |((instructions, flags), id)| SeccompFilter { id, flags, instructions };
        let mut records: Vec<SeccompFilter> = self.0.into_iter().map(record).collect();
        records.sort_by_key(|filter| filter.id);
        records
    }
}

fn wakes_a_supervisor(instructions: &[u8]) -> bool {
    instructions.chunks_exact(INSTRUCTION).any(|one| {
        let code = u16::from_le_bytes([one[0], one[1]]);
        let constant = u32::from_le_bytes([one[4], one[5], one[6], one[7]]);
        code == RETURN_CONSTANT && constant & ACTION == USER_NOTIF
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_asks_a_supervisor_is_known() {
        let instruction = |code: u16, constant: u32| {
            let [a, b] = code.to_le_bytes();
            [&[a, b, 0, 0][..], &constant.to_le_bytes()].concat()
        };
        assert!(wakes_a_supervisor(&instruction(6, 0x7fc0_0001)));
        assert!(!wakes_a_supervisor(&instruction(6, 0x7fff_0000)));
        assert!(!wakes_a_supervisor(&instruction(0x15, 0x7fc0_0000)));
    }
}
