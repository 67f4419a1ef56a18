//! Settings that few programs change: asked of every thread. Those that a resumed program would not have again are refused by name
//! where one is not as it is by default.
//!
//! Questions that a kernel does not know are answered with an error, which means: nothing of it is set.

use rewake_image::records::{Process, SpeculationControl, Thread};
use rewake_linux::attributes;
use rewake_linux::program::{Accept, CallRef, DataRef, Program, Sysno, TrackRef, Value};
use rewake_linux::remote::Outcome;

use super::prctl;
use crate::findings::Findings;

const PR_MCE_KILL_GET: u32 = 34;
const PR_MCE_KILL_DEFAULT: i64 = 2;
const PR_GET_SPECULATION_CTRL: u32 = 52;
const PR_GET_IO_FLUSHER: u32 = 58;
const PR_GET_MEMORY_MERGE: u32 = 68;
const ARCH_GET_CPUID: u32 = 0x1011;
/// `PR_SPEC_STORE_BYPASS` and `PR_SPEC_INDIRECT_BRANCH`.
const SPECULATION: [u32; 2] = [0, 1];
/// `PR_SPEC_PRCTL`: the setting is the thread's own.
const PR_SPEC_PRCTL: i64 = 1;
/// `PR_SPEC_DISABLE`, `PR_SPEC_FORCE_DISABLE` and `PR_SPEC_DISABLE_NOEXEC`.
const PR_SPEC_DISABLED: i64 = 4 | 8 | 16;
const PR_GET_TSC: u32 = 25;
const PR_TSC_ENABLE: u64 = 1;
const PR_GET_THP_DISABLE: u32 = 42;
const PR_GET_MDWE: u32 = 66;
/// Bytes of a set of memory nodes, and the number the kernel is told: one more than its bits.
const NODES: usize = 128;
const NODES_BITS: u64 = 1025;
const KEYCTL_GET_KEYRING_ID: u32 = 0;
const KEYCTL_DESCRIBE: u32 = 6;
const KEYCTL_READ: u32 = 11;
const THREAD_KEYRING: i32 = -1;
const PROCESS_KEYRING: i32 = -2;
const SESSION_KEYRING: i32 = -3;

/// Where the answers about the process will be.
pub(super) struct ProcessSettings {
    memory_merge: CallRef,
    thp: CallRef,
    mdwe: CallRef,
    descriptor_table: CallRef,
    trial: CallRef,
    trial_lock: CallRef,
    trial_pages: DataRef,
    process_keyring: CallRef,
}

impl ProcessSettings {
    pub(super) fn ask(program: &mut Program, track: TrackRef) -> Self {
        let zero = Value::from(0);
        let memory_merge = prctl(program, track, PR_GET_MEMORY_MERGE, zero);
        let thp = prctl(program, track, PR_GET_THP_DISABLE, zero);
        let mdwe = prctl(program, track, PR_GET_MDWE, zero);
        let entry = program.zeros(8);
        let descriptor_table = any(program, track, Sysno::modify_ldt, [zero, entry.into(), 8.into()]);
        // Locks on memory mapped later show in a new mapping only: msync(2) does not invalidate what is locked. Its page is there at
        // once, unless locks wait for the first touch.
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let args = [zero, 4096.into(), libc::PROT_READ.into(), private.into(), Value::from(-1), zero];
        let trial = any(program, track, Sysno::mmap, args);
        let args = [trial.into(), 4096.into(), libc::MS_INVALIDATE.into()];
        let trial_lock = any(program, track, Sysno::msync, args);
        let trial_pages = program.zeros(8);
        any(program, track, Sysno::mincore, [trial.into(), 4096.into(), trial_pages.into()]);
        any(program, track, Sysno::munmap, [trial.into(), 4096.into()]);
        let process_keyring = keyring(program, track, PROCESS_KEYRING);
        Self { memory_merge, thp, mdwe, descriptor_table, trial, trial_lock, trial_pages, process_keyring }
    }

    pub(super) fn tell(&self, outcome: &Outcome, process: &mut Process, findings: &mut Findings) {
        process.memory_merge = outcome.result(self.memory_merge) > 0;
        let thp = u32::try_from(outcome.result(self.thp)).unwrap_or(0);
        (process.thp_disabled, process.thp_disable_flags) = (thp & 1 != 0, thp & !1);
        process.mdwe = u32::try_from(outcome.result(self.mdwe)).unwrap_or(0);
        // An error of modify_ldt comes as a 32-bit number: far larger than what was asked for.
        if (1..=8).contains(&outcome.result(self.descriptor_table)) {
            let reason = "a local descriptor table (modify_ldt) is not supported yet";
            findings.add("process", reason, "run the program without 16-bit or 32-bit code segments");
        }
        if outcome.result(self.trial) == -i64::from(libc::EAGAIN) {
            let reason =
                "it locks all memory that is mapped later (mlockall MCL_FUTURE) and may lock no more";
            findings.add("process", reason, "raise its limit of locked memory (prlimit --memlock)");
        }
        if outcome.result(self.trial_lock) == -i64::from(libc::EBUSY) {
            let there = outcome.data(self.trial_pages)[0] & 1 != 0;
            let flags = libc::MCL_FUTURE | if there { 0 } else { libc::MCL_ONFAULT };
            process.lock_future = flags.unsigned_abs();
        }
        if outcome.result(self.process_keyring) >= 0 {
            findings.add("process keyring", "keyrings are not supported yet", WITHOUT_KEYS);
        }
    }
}

const WITHOUT_KEYS: &str = "let the program revoke its keys first, or run it without them";

/// Where the answers about a thread will be.
pub(super) struct ThreadSettings {
    policy: DataRef,
    nodes: DataRef,
    machine_check: CallRef,
    io_flusher: CallRef,
    tsc: DataRef,
    cpuid: CallRef,
    speculation: [CallRef; 2],
    thread_keyring: CallRef,
    session: SessionKeyring,
}

impl ThreadSettings {
    pub(super) fn ask(program: &mut Program, track: TrackRef) -> Self {
        let zero = Value::from(0);
        let (policy, nodes, tsc) = (program.zeros(8), program.zeros(NODES), program.zeros(8));
        let args = [policy.into(), nodes.into(), NODES_BITS.into(), zero, zero];
        any(program, track, Sysno::get_mempolicy, args);
        let machine_check = prctl(program, track, PR_MCE_KILL_GET, zero);
        let io_flusher = prctl(program, track, PR_GET_IO_FLUSHER, zero);
        prctl(program, track, PR_GET_TSC, tsc.into());
        let cpuid = any(program, track, Sysno::arch_prctl, [ARCH_GET_CPUID.into(), zero]);
        let speculation = SPECULATION.map(|kind| prctl(program, track, PR_GET_SPECULATION_CTRL, kind.into()));
        let thread_keyring = keyring(program, track, THREAD_KEYRING);
        let session = SessionKeyring::ask(program, track);
        Self { policy, nodes, machine_check, io_flusher, tsc, cpuid, speculation, thread_keyring, session }
    }

    pub(super) fn tell(&self, outcome: &Outcome, thread: &mut Thread, findings: &mut Findings) {
        // The mode is an int.
        thread.memory_policy = u32::try_from(outcome.word(self.policy, 0) & u64::from(u32::MAX)).unwrap_or(0);
        if thread.memory_policy != 0 {
            thread.memory_policy_nodes = outcome.data(self.nodes).to_vec();
        }
        let machine_check = outcome.result(self.machine_check);
        let unusual = machine_check >= 0 && machine_check != PR_MCE_KILL_DEFAULT;
        thread.machine_check = u32::try_from(machine_check).ok().filter(|_| unusual);
        thread.io_flusher = outcome.result(self.io_flusher) > 0;
        thread.tsc_faults = outcome.word(self.tsc, 0) > PR_TSC_ENABLE;
        let kinds = SPECULATION.into_iter().zip(self.speculation);
        thread.speculation = kinds
            .filter_map(|(kind, call)| {
                let result = outcome.result(call);
                let own = result > 0 && result & PR_SPEC_PRCTL != 0;
                let value = u32::try_from(result & PR_SPEC_DISABLED).ok()?;
                (own && value != 0).then_some(SpeculationControl { kind, value })
            })
            .collect();
        let mut refuse = |holds: bool, reason: &str, remedy: &str| {
            if holds {
                findings.add_thread(thread.tid, reason, remedy);
            }
        };
        refuse(
            outcome.result(self.cpuid) == 0,
            "a signal at the CPUID instruction (ARCH_SET_CPUID) is not supported yet",
            "run the program without that setting",
        );
        refuse(
            outcome.result(self.thread_keyring) >= 0,
            "a keyring of its own is not supported yet",
            WITHOUT_KEYS,
        );
        refuse(
            self.session.is_its_own(outcome),
            "a session keyring with a name or keys of its own is not supported yet",
            "run the command in the session the program was started in, or start the program without that keyring",
        );
    }
}

/// Logins and services make session keyrings for all they start: without keys such a one is like any other.
struct SessionKeyring {
    id: CallRef,
    description: DataRef,
    length: CallRef,
    size: CallRef,
    /// Of the first key in it.
    first: DataRef,
}

impl SessionKeyring {
    fn ask(program: &mut Program, track: TrackRef) -> Self {
        let session = Value::from(SESSION_KEYRING);
        let (description, keys) = (program.zeros(64), program.zeros(16));
        let id = keyring(program, track, SESSION_KEYRING);
        let args = [KEYCTL_DESCRIBE.into(), session, description.into(), 64.into()];
        let length = any(program, track, Sysno::keyctl, args);
        let args = [KEYCTL_READ.into(), session, keys.into(), 16.into()];
        let size = any(program, track, Sysno::keyctl, args);
        let first = program.zeros(64);
        let args = [KEYCTL_DESCRIBE.into(), Value::Word(keys), first.into(), 64.into()];
        any(program, track, Sysno::keyctl, args);
        Self { id, description, length, size, first }
    }

    /// Whether it is not this command's and holds what others do not.
    fn is_its_own(&self, outcome: &Outcome) -> bool {
        let id = outcome.result(self.id);
        if id < 0 || attributes::session_keyring().is_ok_and(|own| i64::from(own) == id) {
            return false;
        }
        let described = outcome.result(self.length) > 0;
        if described && !is_anonymous(outcome.data(self.description)) {
            return true;
        }
        match outcome.result(self.size) {
            4 => !is_of_a_user(outcome.data(self.first)),
            size => size > 0,
        }
    }
}

/// Whether a description is that of the keyring that all processes of a user have: another one's, if a thread became somebody else.
fn is_of_a_user(description: &[u8]) -> bool {
    name_of(description).is_some_and(|name| name.starts_with(b"_uid."))
}

/// Whether a description, `type;uid;gid;permissions;name`, is that of a keyring nobody gave a name.
fn is_anonymous(description: &[u8]) -> bool {
    name_of(description).is_some_and(|name| name == b"_ses" || name.starts_with(b"_uid_ses."))
}

/// A description longer than the buffer is not written at all.
fn name_of(description: &[u8]) -> Option<&[u8]> {
    let description = description.split(|byte| *byte == 0).next().unwrap_or_default();
    description.splitn(5, |byte| *byte == b';').nth(4)
}

/// A call whose answer may also be that the kernel does not know it.
fn any<const N: usize>(program: &mut Program, track: TrackRef, call: Sysno, args: [Value; N]) -> CallRef {
    program.call(track, call, args).accept(Accept::Any).done()
}

/// Asks for the id of a keyring without making it.
fn keyring(program: &mut Program, track: TrackRef, which: i32) -> CallRef {
    any(program, track, Sysno::keyctl, [KEYCTL_GET_KEYRING_ID.into(), which.into(), Value::from(0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_keyrings_without_a_name_are_told_from_others() {
        assert!(is_anonymous(b"keyring;0;0;3f130000;_ses\0\0"));
        assert!(is_anonymous(b"keyring;1000;65534;3f3f0000;_uid_ses.1000\0"));
        assert!(!is_anonymous(b"keyring;0;0;3f130000;mine\0"));
        assert!(!is_anonymous(b"\0\0"));
        assert!(is_of_a_user(b"keyring;2010;65534;1f3f0000;_uid.2010\0"));
        assert!(!is_of_a_user(b"user;0;0;3f010000;token\0") && !is_of_a_user(b"\0"));
    }
}
