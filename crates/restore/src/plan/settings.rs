//! Settings of a thread that few programs change.

use rewake_image::records::Thread;
use rewake_linux::program::{Sysno, TrackRef};

use super::{Planner, args};

const PR_SET_TSC: i32 = 26;
const PR_TSC_SIGSEGV: i32 = 2;
const PR_MCE_KILL: i32 = 33;
const PR_MCE_KILL_SET: i32 = 1;
const PR_SET_SPECULATION_CTRL: i32 = 53;
const PR_SET_IO_FLUSHER: i32 = 57;

impl Planner<'_> {
    pub(super) fn thread_settings(&mut self, track: TrackRef, thread: &Thread) {
        let program = &mut self.program;
        if thread.memory_policy != 0 {
            let nodes = program.bytes(&thread.memory_policy_nodes);
            // The kernel is told one more than the number of bits.
            let bits =
                u64::try_from(thread.memory_policy_nodes.len()).expect("image lengths are checked") * 8;
            let args = args![thread.memory_policy, nodes, bits + 1];
            program.call(track, Sysno::set_mempolicy, args).note("memory policy");
        }
        if let Some(policy) = thread.machine_check {
            let args = args![PR_MCE_KILL, PR_MCE_KILL_SET, policy, 0, 0];
            program.call(track, Sysno::prctl, args).note("policy for memory errors");
        }
        if thread.io_flusher {
            let args = args![PR_SET_IO_FLUSHER, 1, 0, 0, 0];
            program.call(track, Sysno::prctl, args).note("I/O flusher");
        }
        for control in &thread.speculation {
            let args = args![PR_SET_SPECULATION_CTRL, control.kind, control.value, 0, 0];
            program.call(track, Sysno::prctl, args).note("speculation control");
        }
        if thread.tsc_faults {
            let args = args![PR_SET_TSC, PR_TSC_SIGSEGV];
            program.call(track, Sysno::prctl, args).note("reading the time stamp counter is a fault");
        }
    }
}
