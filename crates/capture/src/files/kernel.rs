//! Files that the kernel makes up as they are read: `/proc`, `/sys`, control groups. They are opened again under their names and go on
//! at their positions. What tells of a process must tell of the captured one; what keeps state of its own for each opening is refused.

use rewake_image::records::{KernelFile, open_file};
use rewake_linux::attributes;
use rewake_linux::proc::{FileStat, Proc};
use rewake_linux::virtual_files::Virtual;
use rustix::fs::{AtFlags, FileType, OFlags, SeekFrom};

use super::kind::{LET_FINISH, refuse};
use super::{Seen, Target, pidfd};
use crate::findings::Refusal;
use crate::spaces::Ids;

const MOUNT: &str = "/proc/";

pub(super) fn record(
    target: Target<'_>,
    proc: &Proc,
    one: &Seen,
    system: Virtual,
) -> Result<open_file::Kind, Refusal> {
    let name = system.name();
    if matches!(system, Virtual::Other(_)) {
        return refuse(format!("open files of {name} are not supported"), LET_FINISH);
    }
    let Ok(path) = std::str::from_utf8(&one.link.target) else {
        return refuse(format!("a file of {name} whose name is no text"), LET_FINISH);
    };
    let path = match system {
        Virtual::Proc => of_whom(target, proc, one, path)?,
        _ => path.to_owned(),
    };
    if one.link.deleted {
        return refuse("it is gone: what it told of was removed", "let the program close it");
    }
    if !is_there(proc, one) {
        return refuse("the file cannot be found under its name", "make it reachable under that name");
    }
    if let Some(reason) = own_state(one, system, &path) {
        return refuse(reason, LET_FINISH);
    }
    let position = one.info.position;
    if position != 0 && !one.flags().contains(OFlags::PATH) && !can_be_sought(proc, one) {
        return refuse("it was read in part, and the kernel lets nobody go to a position in it", LET_FINISH);
    }
    Ok(open_file::Kind::KernelFile(KernelFile { path: path.into_bytes(), position }))
}

/// The path as the target has it. A file below the folder of a process must be about one of the target's: others will not be there.
fn of_whom(target: Target<'_>, proc: &Proc, one: &Seen, path: &str) -> Result<String, Refusal> {
    let Some(below) = path.strip_prefix(MOUNT) else {
        // The root itself.
        return if path == "/proc" {
            Ok(path.to_owned())
        } else {
            refuse("only the /proc that is mounted at /proc is supported", LET_FINISH)
        };
    };
    let mut words = below.split('/').map(str::to_owned).collect::<Vec<_>>();
    let Ok(whose) = words[0].parse::<i32>() else { return Ok(path.to_owned()) };
    let strange = |id: i32| {
        let reason = if one.link.deleted || !is_there(proc, one) {
            format!("it tells of the process or thread {id}, which has ended")
        } else {
            format!("it tells of another process, {id}")
        };
        refuse(reason, "let the program close it, and look anew when it wants to know")
    };
    let Some(id) = inner_id(target, proc, one, whose) else { return strange(whose) };
    if one.in_flight {
        return refuse(pidfd::IN_FLIGHT, LET_FINISH);
    }
    words[0] = id.to_string();
    if words.len() > 2
        && words[1] == "task"
        && let Ok(thread) = words[2].parse::<i32>()
    {
        let Some(id) = inner_id(target, proc, one, thread) else { return strange(thread) };
        words[2] = id.to_string();
    }
    Ok(format!("{MOUNT}{}", words.join("/")))
}

/// The target's own id for the one of its processes and threads that `/proc` shows under this number.
fn inner_id(target: Target<'_>, proc: &Proc, one: &Seen, shown: i32) -> Option<i32> {
    let ours = FileStat::of_path(b"/proc").is_ok_and(|ours| ours.device == one.link.stat.device);
    if ours {
        return pidfd::member(target, shown);
    }
    // A /proc that counts as the target does.
    let ids = Ids::of_all(target.family.iter().copied()).or_else(|_| Ids::of(proc)).ok()?;
    pidfd::member(target, ids.outer(shown)?)
}

/// Whether the name leads there, here or in the target's mounts.
fn is_there(proc: &Proc, one: &Seen) -> bool {
    let same = |stat: rustix::fs::Stat| FileStat::from_stat(&stat).same_file(&one.link.stat);
    let path = &one.link.target;
    let mut theirs = b"root".to_vec();
    theirs.extend(path);
    rustix::fs::lstat(&path[..]).is_ok_and(same)
        || rustix::fs::statat(proc, &theirs[..], AtFlags::SYMLINK_NOFOLLOW).is_ok_and(same)
}

/// What the kernel may keep for this opening alone and shows nobody.
fn own_state(one: &Seen, system: Virtual, path: &str) -> Option<String> {
    let folder = FileType::from_raw_mode(one.link.stat.mode) != FileType::RegularFile;
    if folder || one.flags().contains(OFlags::PATH) {
        return None;
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let pressure = path.starts_with("/proc/pressure/") || name.ends_with(".pressure");
    if pressure && one.writes() {
        return Some("it may hold a trigger for pressure, which the kernel does not show".into());
    }
    match system {
        Virtual::Proc if path == "/proc/mtrr" && one.writes() => {
            Some("memory types set through it last as long as it is open".into())
        }
        Virtual::Proc if name == "channel" => Some("requests of the kernel wait in it".into()),
        Virtual::Cgroup if name == "cgroup.event_control" => {
            Some("events may be registered through it, which the kernel does not show".into())
        }
        Virtual::Cgroup if name.ends_with(".peak") && one.writes() => {
            Some("a peak may have been reset for it alone, which the kernel does not show".into())
        }
        Virtual::Trace if !name.starts_with("trace_marker") => {
            Some("files of tracefs other than trace_marker hold a state for each opening".into())
        }
        _ => None,
    }
}

/// Asks for the position it has: nothing moves.
fn can_be_sought(proc: &Proc, one: &Seen) -> bool {
    let own = attributes::duplicate(proc.id(), one.fd);
    own.is_ok_and(|own| rustix::fs::seek(own, SeekFrom::Current(0)).is_ok())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd as _;

    use super::*;

    fn look(file: &File) -> Result<open_file::Kind, Refusal> {
        let proc = Proc::own().unwrap();
        let fd = file.as_raw_fd();
        let link = proc.link(&format!("fd/{fd}")).unwrap();
        let seen = Seen { pid: proc.id(), fd, link, info: proc.fdinfo(fd).unwrap(), in_flight: false };
        let target = Target { procs: &[], family: &[proc.id()], still: false };
        record(target, &proc, &seen, Virtual::of(file).unwrap())
    }

    #[test]
    fn ones_own_files_are_told_from_those_of_others() {
        let own = std::process::id();
        let kind = look(&File::open("/proc/self/stat").unwrap()).unwrap();
        let path = format!("/proc/{own}/stat").into_bytes();
        assert_eq!(kind, open_file::Kind::KernelFile(KernelFile { path, position: 0 }));
        let refusal = look(&File::open("/proc/1/stat").unwrap()).unwrap_err();
        assert!(refusal.reason.contains("another process, 1"), "{}", refusal.reason);
        let ended = std::thread::spawn(|| File::open("/proc/thread-self/comm").unwrap());
        let ended = ended.join().unwrap();
        // Its id may still be there for a moment.
        while look(&ended).is_ok() {
            std::thread::yield_now();
        }
        assert!(look(&ended).unwrap_err().reason.contains("has ended"));
    }

    #[test]
    fn positions_are_kept_where_they_mean_something() {
        let file = File::open("/proc/self/maps").unwrap();
        assert_eq!(rustix::io::read(&file, &mut [0; 100]).unwrap(), 100);
        let Ok(open_file::Kind::KernelFile(record)) = look(&file) else { panic!() };
        assert_eq!(record.position, 100);
        let kind = look(&File::open("/sys/kernel").unwrap()).unwrap();
        assert_eq!(
            kind,
            open_file::Kind::KernelFile(KernelFile { path: b"/sys/kernel".to_vec(), position: 0 })
        );
    }
}
