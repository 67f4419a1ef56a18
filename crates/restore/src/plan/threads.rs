//! Threads: cloned with their ids, each sets its own state and parks.

use std::collections::BTreeMap;

use rewake_image::records::Thread;
use rewake_linux::program::{Accept, Sysno, TrackRef, Value};

use super::{Planner, args};
use crate::error::RestoreError;
use crate::interrupted::{Argument, GoOn, go_on};

const PR_SET_NAME: i32 = 15;
const PR_SET_TIMERSLACK: i32 = 29;
const IOPRIO_WHO_PROCESS: i32 = 1;
const PRIO_PROCESS: i32 = 0;
const SS_ONSTACK: u32 = 1;
const SS_DISABLE: u32 = 2;
/// VM, FS, FILES, SIGHAND, THREAD, SYSVSEM: what makes a thread.
const CLONE_THREAD_FLAGS: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;
const CLONE_FS: u64 = 0x200;
/// Parties that never come: the thread waits for the tracer.
const NEVER: u32 = u32::MAX;
const FAILED: i32 = 125;

impl<'a> Planner<'a> {
    pub(super) fn leader_thread(&self) -> Result<&'a Thread, RestoreError> {
        let pid = self.process.pid;
        let found = self.process.threads.iter().find(|thread| thread.tid == pid);
        found.ok_or_else(|| RestoreError::Unsupported {
            pid,
            object: "leader thread".into(),
            reason: "the image has none".into(),
        })
    }

    pub(super) fn threads(&mut self) -> Result<(), RestoreError> {
        let process = self.process;
        let others = process.threads.iter().filter(|thread| thread.tid != process.pid);
        let tracks: Vec<(&Thread, TrackRef)> =
            others.map(|thread| (thread, self.program.track(format!("thread {}", thread.tid)))).collect();
        let mut companions: BTreeMap<i32, Vec<(&Thread, TrackRef)>> = BTreeMap::new();
        for (thread, track) in &tracks {
            self.tids.insert(*track, thread.tid);
            if let Some(with) = shared_with(thread) {
                companions.entry(with).or_default().push((thread, *track));
            }
        }
        for (thread, track) in tracks {
            if shared_with(thread).is_none() {
                self.spawn_by_leader(track, thread);
            }
            // Who shares a working folder with it, and not with the leader, is its child in that.
            for (companion, its_track) in companions.remove(&thread.tid).unwrap_or_default() {
                self.spawn(track, its_track, companion, CLONE_THREAD_FLAGS);
            }
            self.tell_own_folder(track, thread.tid);
            self.thread_state(track, thread);
            self.park(track, thread);
            self.program.on_failure(track);
            self.await_companion(track);
            self.program.call(track, Sysno::exit_group, args![FAILED]).accept(Accept::Any);
        }
        Ok(())
    }

    fn spawn_by_leader(&mut self, track: TrackRef, thread: &Thread) {
        // A folder without a name is open as a helper, which the leader closes: a thread is born in it.
        let folder = removed_folder(thread).and_then(|id| self.removed_number(id));
        if let Some(number) = folder {
            let call = self.program.call(self.leader, Sysno::fchdir, args![number]);
            call.note(format!("working folder of thread {}", thread.tid));
        }
        // One of its own from the beginning: the leader may change the process's root before the thread has found its folder.
        let flags = match thread.own_fs {
            Some(_) => CLONE_THREAD_FLAGS & !CLONE_FS,
            None => CLONE_THREAD_FLAGS,
        };
        self.spawn(self.leader, track, thread, flags);
        if folder.is_some() {
            self.working_folder();
        }
    }

    fn spawn(&mut self, by: TrackRef, track: TrackRef, thread: &Thread, flags: u64) {
        if self.site.own {
            let call = self.program.thread(by, track, flags).note(format!("thread {}", thread.tid)).done();
            self.ids.insert(thread.tid, call);
            return;
        }
        let tid = self.program.bytes(&thread.tid.to_le_bytes());
        // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size
        let clone = self.program.words(&[flags, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        self.program.point(clone, 64, tid);
        self.program.spawn(by, track, clone).note(format!("thread {}", thread.tid));
    }

    /// What a thread can only set for itself.
    pub(super) fn thread_state(&mut self, track: TrackRef, thread: &Thread) {
        let program = &mut self.program;
        let mut name = thread.comm.clone();
        name.truncate(15);
        let name = program.string(&name);
        program.call(track, Sysno::prctl, args![PR_SET_NAME, name]).note("name");
        if thread.exited {
            program.call(track, Sysno::set_tid_address, args![0]).accept(Accept::Any);
            self.last_of_thread(track, thread);
            return;
        }
        if let Some(own) = thread.own_fs.as_ref().filter(|own| own.shared_with.is_none()) {
            let root = program.string(&own.root);
            if own.cwd_removed.is_none() {
                let cwd = program.string(&own.cwd);
                let note = format!("working folder {}", String::from_utf8_lossy(&own.cwd));
                program.call(track, Sysno::chdir, args![cwd]).note(note);
            }
            if own.root != b"/" {
                let note = format!("root {}", String::from_utf8_lossy(&own.root));
                program.call(track, Sysno::chroot, args![root]).note(note);
            }
            program.call(track, Sysno::umask, args![own.umask]);
        }
        program.call(track, Sysno::set_tid_address, args![thread.clear_child_tid]).accept(Accept::Any);
        if thread.robust_list != 0 {
            let args = args![thread.robust_list, thread.robust_list_len];
            program.call(track, Sysno::set_robust_list, args).note("robust list");
        }
        if let Some(rseq) = thread.rseq.filter(|rseq| rseq.address != 0) {
            let args = args![rseq.address, rseq.size, 0, rseq.signature];
            program.call(track, Sysno::rseq, args).note("restartable sequences");
        }
        let stack = thread.alternate_stack.unwrap_or_default();
        // On it or not is seen by the stack pointer; none at all has to be said.
        let flags = if stack.size == 0 { SS_DISABLE } else { stack.flags & !SS_ONSTACK };
        let stack = program.words(&[stack.address, flags.into(), stack.size]);
        program.call(track, Sysno::sigaltstack, args![stack, 0]).note("alternate signal stack");
        if thread.timer_slack_ns != 0 {
            program
                .call(track, Sysno::prctl, args![PR_SET_TIMERSLACK, thread.timer_slack_ns])
                .note("timer slack");
        }
        self.scheduling(track, thread);
        self.thread_settings(track, thread);
        self.pending_of_thread(track, thread);
        self.last_of_thread(track, thread);
    }

    /// What a thread has to do last, ended or not: the process ends as its leader, and is asked for by its credentials.
    fn last_of_thread(&mut self, track: TrackRef, thread: &Thread) {
        self.seccomp(track, thread);
        self.credentials(track, thread);
        // A detached program must outlive `resume`, the parent it would die with.
        let death = if self.site.new_session && self.is_root() { 0 } else { thread.parent_death_signal };
        self.program
            .call(track, Sysno::prctl, args![libc::PR_SET_PDEATHSIG, death])
            .note("parent death signal");
        if let Some(changed) = self.changed {
            let threads = u32::try_from(self.process.threads.len()).expect("image counts are checked");
            self.program.barrier(track, changed, threads).note("all are who they were");
        }
    }

    fn scheduling(&mut self, track: TrackRef, thread: &Thread) {
        let program = &mut self.program;
        if let Some(sched) = thread.scheduling {
            // struct sched_attr, version 0
            let nice = u64::from(sched.nice.cast_unsigned());
            let attr = program.words(&[
                48 | u64::from(sched.policy) << 32,
                sched.flags,
                nice | u64::from(sched.priority) << 32,
                sched.runtime_ns,
                sched.deadline_ns,
                sched.period_ns,
            ]);
            let note = format!("scheduling policy {}, nice {}", sched.policy, sched.nice);
            program.call(track, Sysno::sched_setattr, args![0, attr, 0]).note(note);
            // Some policies leave the nice value alone, which counts again once the thread changes its policy.
            program.call(track, Sysno::setpriority, args![PRIO_PROCESS, 0, sched.nice]).note("nice value");
        }
        if !thread.affinity.is_empty() {
            let len = u64::try_from(thread.affinity.len()).expect("image lengths are checked");
            let mask = program.bytes(&thread.affinity);
            // A host without any of these CPUs keeps what it gives.
            let accept = Accept::SuccessOr(libc::EINVAL);
            program
                .call(track, Sysno::sched_setaffinity, args![0, len, mask])
                .accept(accept)
                .note("CPU affinity");
        }
        if thread.io_priority != 0 {
            let args = args![IOPRIO_WHO_PROCESS, 0, thread.io_priority];
            program.call(track, Sysno::ioprio_set, args).note("I/O priority");
        }
    }

    /// Says that all is done and waits for the tracer: in the call the thread was in, or at the barrier.
    pub(super) fn park(&mut self, track: TrackRef, thread: &Thread) {
        if self.site.own {
            return self.leave_as_oneself(track, thread);
        }
        let GoOn::Waiting(wait) = go_on(thread) else {
            self.program.barrier(track, self.parked, NEVER).note("ready; the tracer lets go");
            return;
        };
        self.program.barrier(track, self.parked, 1).note("ready");
        let left = self.program.words(&wait.left);
        let args = wait.args.map(|argument| match argument {
            Argument::Same(value) => Value::from(value),
            Argument::TimeLeft => Value::from(left),
        });
        let call = self.program.call(track, wait.call, args).accept(Accept::Any);
        self.waits.insert(thread.tid, call.note("for the time that was left").done());
        self.program.barrier(track, self.never, NEVER).note("the tracer lets go");
    }
}

fn shared_with(thread: &Thread) -> Option<i32> {
    thread.own_fs.as_ref()?.shared_with
}

/// The removed folder that is a thread's own working folder.
fn removed_folder(thread: &Thread) -> Option<u32> {
    thread.own_fs.as_ref()?.cwd_removed
}
