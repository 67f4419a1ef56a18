//! Looking before freezing: everything that is known to stand in the way, all of it at once.
//!
//! The checks here read `/proc` and compare by kcmp(2), nothing else. Those that cost little run again when the target stands
//! still, since things change.

mod others;

use std::time::{Duration, Instant};

use rewake_linux::attributes;
use rewake_linux::kcmp::Shared;
use rewake_linux::proc::{Proc, Stat, Status};
use rewake_linux::twin;

use crate::Options;
use crate::contents::Contents;
use crate::error::{CaptureError, During, Obstacle, Result};
use crate::files::Target;
use crate::findings::Findings;
use crate::{files, ipc, kin, memory, relations, spaces, threads, timers};

/// How often files and memory of a running tree are looked at, if each time a process ends meanwhile.
const SURVEYS: u32 = 5;

/// How often a tree is looked at in which something seems to be in the way, and how long we wait between.
const LOOKS: u32 = 4;
const BETWEEN: Duration = Duration::from_millis(5);
/// For how long what may pass by itself is waited for, and how long between two looks.
const PASSING: Duration = Duration::from_millis(500);
const BETWEEN_PASSING: Duration = Duration::from_millis(20);

const LATER: &str = "capture the program at a time when it does not use this";

/// Opens the target.
///
/// # Errors
/// When there is no such process.
pub(crate) fn open(pid: i32) -> Result<Proc> {
    Proc::open_living(pid).map_err(|error| {
        let gone = error.is_gone();
        let error = CaptureError::failed("open", pid, format!("/proc/{pid}"), error);
        if gone { error.advise("give the id of a running process with -p; ps -e lists them") } else { error }
    })
}

/// Everything that can be known before the freeze. A running program is seen in states that do not last (a pipe that one process has
/// and another one not yet, a process in the midst of an execve): only what is seen each time stands in the way, and the frozen
/// program is looked at again.
///
/// # Errors
/// When the target is gone or the look itself fails, again and again.
pub(crate) fn look(options: &Options) -> Result<Vec<Obstacle>> {
    let look = || look_once(options).map(Findings::into_obstacles);
    let begin = Instant::now();
    let mut found = look();
    for number in 1.. {
        let passing = |found: &Vec<Obstacle>| found.iter().all(|obstacle| obstacle.passing);
        let waits = found.as_ref().is_ok_and(passing) && begin.elapsed() < PASSING;
        if found.as_ref().is_ok_and(Vec::is_empty) || number >= LOOKS && !waits {
            break;
        }
        std::thread::sleep(if waits { BETWEEN_PASSING } else { BETWEEN });
        found = match (found, look()) {
            (Ok(mut found), Ok(again)) => {
                found.retain(|obstacle| again.contains(obstacle));
                Ok(found)
            }
            (Ok(found), Err(_)) => Ok(found),
            (Err(_), again) => again,
        };
    }
    found
}

fn look_once(options: &Options) -> Result<Findings> {
    let pid = options.pid;
    let mut findings = Findings::new(pid);
    if pid <= 0 {
        return Err(CaptureError::failed("open", pid, "-p", "a process id is a positive number"));
    }
    let proc = open(pid)?;
    check_options(options, &mut findings);
    if !check_what_it_is(&proc, &mut findings)? {
        return Ok(findings);
    }
    check_not_ourselves(pid, &mut findings)?;
    look_at_tree(options, &mut findings)?;
    // Those that end while we look do not count.
    findings.forget(|member| member != pid && kin::has_left(member));
    Ok(findings)
}

fn look_at_tree(options: &Options, findings: &mut Findings) -> Result<()> {
    let pid = options.pid;
    let counts = |member: i32| member == pid || !kin::has_left(member);
    let (living, ended) = kin::members(pid)?;
    let procs: Vec<Proc> = living.iter().filter_map(|member| open(*member).ok()).collect();
    let family: Vec<i32> = living.iter().chain(&ended).copied().collect();
    let mut permitted = true;
    for proc in &procs {
        findings.turn_to(proc.id());
        permitted &= check_permission(proc, findings) || !counts(proc.id());
    }
    if !permitted {
        return Ok(());
    }
    for proc in &procs {
        findings.turn_to(proc.id());
        let checked = check_member(proc, findings);
        if counts(proc.id()) {
            checked?;
        }
    }
    others::check(&procs, &family, findings);
    let mut found = Findings::new(pid);
    match relations::look(&procs, &ended, &mut found) {
        Ok(()) => findings.append(found),
        // It is looked at again when the tree stands still.
        Err(error) => tracing::debug!(%error, "a process ended meanwhile"),
    }
    ipc::check_namespace(pid, &family, findings)?;
    for _ in 0..SURVEYS {
        let living: Vec<Proc> =
            family.iter().filter(|member| counts(**member)).filter_map(|member| open(*member).ok()).collect();
        let mut found = Findings::new(pid);
        match survey(options, &living, &family, &mut found) {
            Ok(()) => {
                findings.append(found);
                break;
            }
            Err(error) if living.iter().all(|proc| counts(proc.id())) => return Err(error),
            // All of this is looked at again when the tree stands still.
            Err(error) => tracing::debug!(%error, "a process ended meanwhile"),
        }
    }
    Ok(())
}

/// What will go into the image counts in the freeze only.
fn survey(options: &Options, procs: &[Proc], family: &[i32], findings: &mut Findings) -> Result<()> {
    let mut contents = Contents::new(options.file_level);
    files::survey(Target { procs, family, still: false }, &mut contents, findings)?;
    memory::survey(procs, family, None, &mut contents, findings).map(|_| ())
}

/// Everything that can be told of one process of the tree.
fn check_member(proc: &Proc, findings: &mut Findings) -> Result<()> {
    check_running(proc, findings)?;
    check_state(proc, findings)?;
    check_namespaces_of_threads(proc, findings)
}

/// What must hold for the command itself.
fn check_options(options: &Options, findings: &mut Findings) {
    let dir = options.dir.display();
    if options.dir.symlink_metadata().is_ok() {
        findings.add(
            format!("image {dir}"),
            "it exists already",
            "choose another directory with -d, or remove this one",
        );
    }
    let parent = options.dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
        findings.add(
            format!("image {dir}"),
            format!("there is no folder {} to put it into", parent.display()),
            "make the folder first, or choose another place with -d",
        );
    }
}

/// Whether the id is a living process of users; nothing more is asked when not.
fn check_what_it_is(proc: &Proc, findings: &mut Findings) -> Result<bool> {
    let stat = proc.stat().during("read stat", proc.id(), "process")?;
    let name = String::from_utf8_lossy(&stat.comm).into_owned();
    if stat.flags & kin::PF_KTHREAD != 0 {
        findings.add(name, "it is a thread of the kernel", "give the id of a program");
        return Ok(false);
    }
    let status = proc.status().during("read status", proc.id(), "process")?;
    if status.tgid != proc.id() {
        let process = status.tgid;
        findings.add(
            name,
            format!("it is a thread of process {process}"),
            format!("give the id of the process: -p {process}"),
        );
        return Ok(false);
    }
    if matches!(stat.state, 'Z' | 'X') {
        findings.add(
            name,
            "it has ended (a zombie that its parent did not wait for)",
            "nothing is left to capture",
        );
        return Ok(false);
    }
    Ok(true)
}

fn check_not_ourselves(pid: i32, findings: &mut Findings) -> Result<()> {
    let mut ancestor = rustix::process::getpid().as_raw_nonzero().get();
    let own = ancestor;
    while ancestor > 0 {
        if ancestor == pid {
            let reason = if pid == own {
                "it is this command itself"
            } else {
                "this command runs below it: it would freeze itself"
            };
            findings.add(
                format!("process {pid}"),
                reason,
                "run the command from another terminal, or in a session of its own (setsid)",
            );
            return Ok(());
        }
        ancestor = match Proc::open(ancestor).and_then(|proc| proc.stat()) {
            Ok(Stat { ppid, .. }) => ppid,
            Err(error) if error.is_gone() => 0,
            Err(error) => return Err(error).during("read stat", ancestor, "ancestors of this command"),
        };
    }
    Ok(())
}

/// Whether we may look into the target at all.
fn check_permission(proc: &Proc, findings: &mut Findings) -> bool {
    let tried =
        proc.exe().map(|_| ()).and_then(|()| proc.open_file("mem", rustix::fs::OFlags::RDONLY).map(|_| ()));
    let Err(error) = tried else { return true };
    let reason = if error.is_denied() {
        let own = rustix::process::getuid().as_raw();
        let owner = proc.status().map(|status| status.uids[0]).ok().filter(|owner| *owner != own);
        owner.map_or_else(
            || {
                "the kernel does not let this user trace it (not dumpable, or ptrace is restricted)"
                    .to_owned()
            },
            |owner| format!("it belongs to user {owner}"),
        )
    } else {
        error.to_string()
    };
    findings.add(
        format!("process {}", proc.id()),
        reason,
        "run the command as the owner of the process, or as root",
    );
    false
}

/// Not traced.
fn check_running(proc: &Proc, findings: &mut Findings) -> Result<()> {
    let pid = proc.id();
    for tid in proc.threads().during("list threads", pid, "task")? {
        let Ok(status) = proc.thread(tid).and_then(|thread| thread.status()) else { continue };
        if status.tracer_pid != 0 {
            let tracer = status.tracer_pid;
            let name = Proc::open(tracer).and_then(|proc| proc.comm()).unwrap_or_default();
            let name = String::from_utf8_lossy(&name).into_owned();
            findings.add_thread(
                tid,
                format!("it is traced by process {tracer} ({name})"),
                "end the debugger or tracer first",
            );
        }
    }
    Ok(())
}

/// Everything about process and threads that may change while the target runs. Called again in the freeze.
///
/// # Errors
/// When the target is gone or the look itself fails.
pub(crate) fn check_state(proc: &Proc, findings: &mut Findings) -> Result<()> {
    let pid = proc.id();
    check_word_size(proc, findings)?;
    spaces::check(proc, findings)?;
    timers::check(proc, pid, findings)?;
    check_directories(proc, findings)?;
    check_threads(proc, findings)
}

/// 64-bit code only.
fn check_word_size(proc: &Proc, findings: &mut Findings) -> Result<()> {
    use std::io::Read as _;
    const EM_X86_64: u16 = 62;
    let pid = proc.id();
    let exe = proc.exe().during("readlink", pid, "exe")?;
    let object = format!("executable {}", String::from_utf8_lossy(&exe.target));
    if !exe.deleted && !exe.reachable {
        let reason = "the file cannot be found under its name";
        findings.add(&object, reason, "make it reachable under that name");
    }
    let mut head = [0; 20];
    let mut file = proc.open_file("exe", rustix::fs::OFlags::RDONLY).during("open", pid, &object)?;
    file.read_exact(&mut head).during("read", pid, &object)?;
    let machine = u16::from_le_bytes([head[18], head[19]]);
    if !head.starts_with(b"\x7fELF\x02\x01") || machine != EM_X86_64 {
        findings.add(
            object,
            "only 64-bit programs of x86-64 are supported",
            "use a 64-bit build of the program",
        );
    }
    Ok(())
}

/// A thread may have left for namespaces of its own, by unshare(2) or setns(2).
fn check_namespaces_of_threads(proc: &Proc, findings: &mut Findings) -> Result<()> {
    const KINDS: &[&str] =
        &["mnt", "net", "ipc", "uts", "cgroup", "time", "pid_for_children", "time_for_children"];
    let pid = proc.id();
    let of_process: Vec<_> = KINDS.iter().map(|kind| proc.namespace(kind).ok()).collect();
    for tid in proc.threads().during("list threads", pid, "task")? {
        // One that ends meanwhile does not count.
        let Ok(thread) = proc.thread(tid) else { continue };
        for (kind, theirs) in KINDS.iter().zip(&of_process) {
            if thread.namespace(kind).is_ok_and(|own| theirs.is_some_and(|theirs| own != theirs)) {
                let reason = format!("its namespace {kind} is not the one of the first thread");
                findings.add_thread(tid, reason, LATER);
            }
        }
    }
    Ok(())
}

fn check_directories(proc: &Proc, findings: &mut Findings) -> Result<()> {
    let pid = proc.id();
    let root = proc.root().during("readlink", pid, "root directory")?;
    if root.deleted || !root.reachable {
        let name = format!("root directory {}", String::from_utf8_lossy(&root.target));
        let reason = "it was deleted or cannot be found under its name";
        findings.add(name, reason, "run the command inside the same root directory");
    }
    let cwd = proc.cwd().during("readlink", pid, "working directory")?;
    // One that was removed is made anew; whether it can be, is asked with the other files.
    if !cwd.deleted && !cwd.reachable {
        let name = format!("working directory {}", String::from_utf8_lossy(&cwd.target));
        findings.add(
            name,
            "it cannot be found under its name",
            "make it reachable under that name, or let the program change to another one",
        );
    }
    Ok(())
}

/// What threads must have in common, and must not have at all.
fn check_threads(proc: &Proc, findings: &mut Findings) -> Result<()> {
    let pid = proc.id();
    for tid in proc.threads().during("list threads", pid, "task")? {
        let text = match proc.thread(tid).and_then(|thread| thread.read("status")) {
            Ok(text) => text,
            // It ended meanwhile.
            Err(error) if error.is_gone() || error.is_missing() => continue,
            Err(error) => return Err(error).during("read status", pid, format!("thread {tid}")),
        };
        let status = Status::parse(&text).during("read status", pid, format!("thread {tid}"))?;
        // The first thread, ended while others run.
        if matches!(status.state, b'Z' | b'X') {
            continue;
        }
        // A copy asks nobody from outside.
        if !twin::is_of(pid) {
            check_thread(tid, &status, findings);
        }
        if has_shadow_stack(&text) {
            findings.add_thread(
                tid,
                "shadow stacks are not supported yet",
                "start the program without them (GLIBC_TUNABLES=glibc.cpu.x86_shstk=off)",
            );
        }
        if tid == proc.living() {
            check_addresses(&status, findings);
        } else {
            check_sharing(proc, tid, findings)?;
        }
    }
    Ok(())
}

/// Whether the line of the processor's features in a thread's status names the shadow stack.
fn has_shadow_stack(status: &[u8]) -> bool {
    let mut lines = status.split(|byte| *byte == b'\n');
    lines.any(|line| {
        line.strip_prefix(b"x86_Thread_features:")
            .is_some_and(|on| on.windows(5).any(|word| word == b"shstk"))
    })
}

/// Tags in addresses, which only a new process may be given, and only before it has threads.
fn check_addresses(thread: &Status, findings: &mut Findings) {
    if thread.untag_mask.is_some_and(|mask| mask != u64::MAX) {
        let reason = "addresses with tags (linear address masking, LAM) are not supported yet";
        findings.add("memory", reason, "start the program without them");
    }
}

fn check_thread(tid: i32, thread: &Status, findings: &mut Findings) {
    if thread.seccomp != 0 && !attributes::can_suspend_seccomp() {
        let reason = "it runs under seccomp, and this user may not suspend that to ask it";
        let remedy = "run the command as root (with CAP_SYS_ADMIN, outside of any sandbox of its own)";
        findings.add_thread(tid, reason, remedy);
    }
}

/// Threads made by raw clone(2) may have descriptors or directories of their own.
fn check_sharing(proc: &Proc, tid: i32, findings: &mut Findings) -> Result<()> {
    // One that ends has given them up.
    if !threads::shares(Shared::Files, proc, tid)? && !kin::ends(proc, tid) {
        findings.add_thread(tid, "it has descriptors of its own", LATER);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_addresses_are_refused() {
        let found = |untag_mask| {
            let mut findings = Findings::new(1);
            check_addresses(&Status { untag_mask, ..Status::default() }, &mut findings);
            findings.into_obstacles().iter().map(|one| one.reason.clone()).collect::<String>()
        };
        assert!(found(Some(0x81ff_ffff_ffff_ffff)).contains("LAM"));
        assert_eq!([found(Some(u64::MAX)), found(None)], [String::new(), String::new()]);
    }
}
