//! The record of the process: what can be told from outside while it stands still.

use std::path::Path;

use rewake_image::build_id;
use rewake_image::records::{AddressSpace, Credentials, FileIdentity, Limit, MappedFile, MmFields, Process};
use rewake_linux::host::Host;
use rewake_linux::proc::{Proc, Status};

use crate::error::{During, Result};
use crate::files::identity;
use crate::spaces::{self, Ids};

/// Kernels before this one may show what the tracer was told, instead of what wait(2) would tell of a stop.
const SHOWS_STOPS: (u32, u32) = (6, 0);

/// Whether it is known of a process that stands still by job control whether its parent has waited for that.
pub(crate) fn shows_stops() -> bool {
    Host::here().is_ok_and(|host| host.kernel_version() >= SHOWS_STOPS)
}

/// All of a process but threads, descriptors, mappings, and what only itself can tell (see [`crate::ask`]).
///
/// # Errors
/// When the process was killed meanwhile, or may not be looked at.
pub(crate) fn outside(proc: &Proc, ids: &Ids) -> Result<Process> {
    let pid = proc.id();
    let stat = proc.stat().during("read", pid, "stat")?;
    let status = proc.status().during("read", pid, "status")?;
    let exe = proc.exe().during("read", pid, "exe")?;
    let limits = proc.limits().during("read", pid, "limits")?;
    let fields = MmFields {
        start_code: stat.start_code.get(),
        end_code: stat.end_code.get(),
        start_data: stat.start_data.get(),
        end_data: stat.end_data.get(),
        start_brk: stat.start_brk.get(),
        brk: 0,
        start_stack: stat.start_stack.get(),
        arg_start: stat.arg_start.get(),
        arg_end: stat.arg_end.get(),
        env_start: stat.env_start.get(),
        env_end: stat.env_end.get(),
    };
    // By the kernel's link: so it is there whatever became of the file's name.
    let build_id = build_id::of(Path::new(&format!("/proc/{pid}/exe")));
    let executable = FileIdentity { build_id, ..identity(&exe) };
    let memory = AddressSpace {
        fields: Some(fields),
        auxv: proc.auxv().during("read", pid, "auxv")?,
        exe: Some(MappedFile { identity: Some(executable), ..MappedFile::default() }),
        ..AddressSpace::default()
    };
    // Only the first thread has one, also when it has ended.
    let whole = Proc::open(pid).and_then(|proc| proc.stat()).during("read stat", pid, "process")?;
    let [own, parent, group, session] = spaces::relations(&status, &stat, ids);
    let text = |file| proc.read(file).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(Process {
        oom_score_adj: text("oom_score_adj").and_then(|text| text.trim().parse().ok()),
        coredump_filter: text("coredump_filter").and_then(|text| u32::from_str_radix(text.trim(), 16).ok()),
        login_uid: text("loginuid").and_then(|text| text.trim().parse().ok()),
        pid: own,
        ppid: parent,
        exit_signal: Some(whole.exit_signal).filter(|signal| *signal != libc::SIGCHLD),
        stop_told: whole.exit_code == 0,
        pgid: group,
        sid: session,
        clocks: spaces::clocks(proc),
        exe: exe.target,
        comm: proc.comm().during("read", pid, "comm")?,
        cmdline: proc.cmdline().during("read", pid, "cmdline")?,
        umask: status.umask.unwrap_or(0o022),
        cwd: proc.cwd().during("read", pid, "cwd")?.target,
        root: proc.root().during("read", pid, "root")?.target,
        personality: proc.personality().during("read", pid, "personality")?,
        limits: limits
            .iter()
            .map(|limit| Limit { resource: limit.resource, soft: limit.soft, hard: limit.hard })
            .collect(),
        credentials: Some(credentials(&status)),
        memory: Some(memory),
        ..Process::default()
    })
}

/// The credentials of a thread, or of the process: those of its first thread.
pub(crate) fn credentials(status: &Status) -> Credentials {
    Credentials {
        uids: status.uids.to_vec(),
        gids: status.gids.to_vec(),
        groups: status.groups.clone(),
        cap_inheritable: status.capabilities.inheritable,
        cap_permitted: status.capabilities.permitted,
        cap_effective: status.capabilities.effective,
        cap_bounding: status.capabilities.bounding,
        cap_ambient: status.capabilities.ambient,
        no_new_privs: status.no_new_privs,
    }
}
