//! What belongs to the process as a whole: birth, fields of the address space, attributes, limits.

use rewake_image::records::AddressSpace;
use rewake_linux::program::{Accept, Sysno};

use super::{Planner, args};
use crate::error::RestoreError;

const PR_SET_DUMPABLE: i32 = 4;
const PR_SET_MM: i32 = 35;
const PR_SET_MM_MAP: i32 = 14;
const PR_SET_CHILD_SUBREAPER: i32 = 36;
const PR_SET_THP_DISABLE: i32 = 41;
const PR_SET_MDWE: i32 = 65;
const PR_SET_MEMORY_MERGE: i32 = 67;
const RSEQ_UNREGISTER: i32 = 1;
/// Sizes that libc registers: the original 32 bytes, then what newer kernels' features need.
const RSEQ_SIZES: [u32; 3] = [32, 64, 96];
/// Exit status of a seed that could not go on; nobody but `resume` sees it.
const FAILED: i32 = 125;

impl Planner<'_> {
    pub(super) fn birth(&mut self) {
        let Self { program, leader, site, .. } = self;
        program
            .call(*leader, Sysno::prctl, args![libc::PR_SET_PDEATHSIG, libc::SIGKILL])
            .note("die with resume");
        // The parent may have died before it could be asked to take us along.
        let parent = site.parent.unsigned_abs().into();
        program
            .call(*leader, Sysno::getppid, args![])
            .accept(Accept::Exactly(parent))
            .note("resume is still there");
        program.barrier(*leader, self.gate, 2).note("resume traces us");
        self.leave_registrations();
    }

    /// What libc has registered with the kernel lies in memory that goes.
    pub(super) fn leave_registrations(&mut self) {
        let Self { program, leader, site, .. } = self;
        if let Some(rseq) = site.rseq {
            for size in RSEQ_SIZES {
                let args = args![rseq.address, size, RSEQ_UNREGISTER, rseq.signature];
                program
                    .call(*leader, Sysno::rseq, args)
                    .accept(Accept::Any)
                    .note("leave libc's registration");
            }
        }
        program.call(*leader, Sysno::set_robust_list, args![0, 24]).note("no robust list");
    }

    /// Session or group of its own, when what belongs to the terminal of `resume`'s session has been opened.
    pub(super) fn session(&mut self) {
        let Self { program, leader, site, .. } = self;
        if self.tree.made_by(self.process.pid, true).next().is_some() {
            // Some are born before.
        } else if site.own {
            // It stays the process that the shell started, in the group that has the terminal.
        } else if site.new_session || self.process.sid == self.process.pid {
            program.call(*leader, Sysno::setsid, args![]).note("own session");
        } else {
            program.call(*leader, Sysno::setpgid, args![0, 0]).note("own process group");
        }
        if self.tree.is_tree() {
            let default = program.zeros(32);
            let args = args![libc::SIGCHLD, default, 0, 8];
            program.call(*leader, Sysno::rt_sigaction, args).note("children are to be waited for");
        }
    }

    /// A mount namespace with the `/proc` of the new pid namespace. Nothing else in it differs from the one outside, nor reaches it.
    pub(super) fn own_proc(&mut self) {
        // Files that tell of other processes have no other name.
        let accept = if self.tells_of_others() { Accept::Success } else { Accept::SuccessOr(libc::EPERM) };
        let Self { program, leader, .. } = self;
        let leader = *leader;
        let (root, proc, kind) = (program.string(b"/"), program.string(b"/proc"), program.string(b"proc"));
        program.call(leader, Sysno::unshare, args![libc::CLONE_NEWNS]).note("mount namespace");
        program
            .call(leader, Sysno::mount, args![0, root, 0, libc::MS_REC | libc::MS_SLAVE, 0])
            .note("mounts of its own stay its own");
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let mounted = program
            .call(leader, Sysno::mount, args![kind, proc, kind, flags, 0])
            .accept(accept)
            .note("/proc of the pid namespace");
        self.own_proc = Some(mounted.done());
    }

    /// What the kernel knows of the address space; the executable too, unless it is that of the parent: it cannot be set while it is
    /// mapped.
    pub(super) fn mm_fields(&mut self, memory: &AddressSpace, same_program: bool) {
        let fields = memory.fields.unwrap_or_default();
        let auxv = self.program.bytes(&memory.auxv);
        let auxv_len = u64::try_from(memory.auxv.len()).expect("image lengths are checked");
        // struct prctl_mm_map; the executable waits at descriptor 0, the lowest free.
        let exe = memory.exe.as_ref().filter(|_| !same_program);
        let exe_fd: u64 = if exe.is_some() { 0 } else { u32::MAX.into() };
        let map = self.program.words(&[
            fields.start_code,
            fields.end_code,
            fields.start_data,
            fields.end_data,
            fields.start_brk,
            fields.brk,
            fields.start_stack,
            fields.arg_start,
            fields.arg_end,
            fields.env_start,
            fields.env_end,
            0,
            auxv_len | exe_fd << 32,
        ]);
        self.program.point(map, 88, auxv);
        if let Some(exe) = exe
            && let Some(identity) = &exe.identity
        {
            self.open_mapped(exe, identity, libc::O_RDONLY);
        }
        let args = args![PR_SET_MM, PR_SET_MM_MAP, map, 104, 0];
        self.program
            .call(self.leader, Sysno::prctl, args)
            .note("fields of the address space and /proc/PID/exe");
        if exe.is_some() {
            self.program.call(self.leader, Sysno::close, args![0]);
        }
    }

    /// Makes the working folder of the process the leader's own.
    pub(super) fn working_folder(&mut self) {
        let Self { leader, process, .. } = *self;
        let note = format!("working folder {}", String::from_utf8_lossy(&process.cwd));
        match process.cwd_removed.and_then(|id| self.removed_number(id)) {
            Some(number) => self.program.call(leader, Sysno::fchdir, args![number]),
            None => {
                let cwd = self.program.string(&process.cwd);
                self.program.call(leader, Sysno::chdir, args![cwd])
            }
        }
        .note(note);
    }

    /// The login id of the audit, which every thread gets from the one that makes it. Where the kernel does not let it be changed, people
    /// are told.
    fn login_uid(&mut self) {
        let Some(uid) =
            self.process.login_uid.filter(|uid| self.site.login_uid.is_some_and(|own| own != *uid))
        else {
            return;
        };
        if self.site.own {
            return;
        }
        let (text, path) = (uid.to_string(), self.program.string(b"/proc/self/loginuid"));
        let (data, length) =
            (self.program.string(text.as_bytes()), u64::try_from(text.len()).unwrap_or_default());
        let args = args![libc::AT_FDCWD, path, libc::O_WRONLY | libc::O_CLOEXEC, 0];
        let file =
            self.program.call(self.leader, Sysno::openat, args).accept(Accept::Any).note("login uid").done();
        let call = self.program.call(self.leader, Sysno::write, [file.into(), data.into(), length.into()]);
        self.login_uid = Some(call.accept(Accept::Any).note(format!("login uid {uid}")).done());
        self.program.call(self.leader, Sysno::close, [file.into()]).accept(Accept::Any);
    }

    pub(super) fn attributes(&mut self) {
        if self.process.folders_of.is_none() {
            self.working_folder();
        }
        self.login_uid();
        let Self { program, leader, process, .. } = self;
        let leader = *leader;
        if process.folders_of.is_none() {
            program.call(leader, Sysno::umask, args![process.umask]);
        }
        program.call(leader, Sysno::personality, args![process.personality]).note("personality");
        let subreaper = i32::from(process.child_subreaper);
        program.call(leader, Sysno::prctl, args![PR_SET_CHILD_SUBREAPER, subreaper]).note("child subreaper");
        let (thp, flags) = (i32::from(process.thp_disabled), process.thp_disable_flags);
        program
            .call(leader, Sysno::prctl, args![PR_SET_THP_DISABLE, thp, flags, 0, 0])
            .note("huge pages disabled");
        if process.memory_merge {
            let args = args![PR_SET_MEMORY_MERGE, 1, 0, 0, 0];
            program.call(leader, Sysno::prctl, args).note("equal pages of all memory are merged");
        }
        for bit in 0..32 {
            let command = 1u32 << bit;
            if process.membarrier & command != 0 {
                program.call(leader, Sysno::membarrier, args![command, 0, 0]).note("membarrier registration");
            }
        }
    }

    /// What must come after everything else has been opened, cloned and closed.
    pub(super) fn last_things(&mut self) -> Result<(), RestoreError> {
        self.clocks_of_threads();
        self.pending_signals();
        self.finish_files();
        self.ask_for_news();
        self.locks();
        self.limits();
        if self.process.root != b"/" && self.process.folders_of.is_none() {
            let root = self.program.string(&self.process.root);
            let note = format!("root {}", String::from_utf8_lossy(&self.process.root));
            self.program.call(self.leader, Sysno::chroot, args![root]).note(note);
        }
        if self.process.lock_future != 0 {
            let call = self.program.call(self.leader, Sysno::mlockall, args![self.process.lock_future]);
            call.note("memory mapped later is locked");
        }
        if self.process.mdwe != 0 {
            let args = args![PR_SET_MDWE, self.process.mdwe, 0, 0, 0];
            self.program.call(self.leader, Sysno::prctl, args).note("memory cannot be made executable");
        }
        for timer in &self.process.interval_timers {
            let split = |us: u64| [us / 1_000_000, us % 1_000_000];
            let words = [split(timer.interval_us), split(timer.remaining_us)].concat();
            let value = self.program.words(&words);
            let args = args![timer.which, value, 0];
            self.program.call(self.leader, Sysno::setitimer, args).note("interval timer");
        }
        self.timers()
    }

    fn limits(&mut self) {
        for limit in &self.process.limits {
            let own = self.site.limits.get(usize::try_from(limit.resource).unwrap_or(usize::MAX)).copied();
            let wanted = self.limit_here(*limit, own);
            if own == Some((wanted.soft, wanted.hard)) {
                continue;
            }
            let limit = &wanted;
            let new = self.program.words(&[limit.soft, limit.hard]);
            let note = format!("limit {} to {} of {}", limit.resource, limit.soft, limit.hard);
            self.program.call(self.leader, Sysno::prlimit64, args![0, limit.resource, new, 0]).note(note);
        }
    }

    pub(super) fn park_leader(&mut self) -> Result<(), RestoreError> {
        let thread = self.leader_thread()?;
        self.thread_state(self.leader, thread);
        // Becoming somebody else changes it.
        let dumpable = i32::from(self.process.dumpable);
        self.program.call(self.leader, Sysno::prctl, args![PR_SET_DUMPABLE, dumpable]).note("dumpable");
        self.park(self.leader, thread);
        self.program.on_failure(self.leader);
        self.say_that_it_failed();
        self.await_companion(self.leader);
        self.program.call(self.leader, Sysno::exit_group, args![FAILED]).accept(Accept::Any);
        Ok(())
    }
}
