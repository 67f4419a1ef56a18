//! What can go wrong in a restore, each with one cause and, where there is one, a remedy.

use std::io;

use rewake_image::ImageError;

use crate::putback::PutBackError;
use crate::putback::decide::Remedies;

/// A restore that failed. Nothing it made is left.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image asks for something that cannot be done.
    #[error("resume failed for pid {pid} ({object}): {reason}")]
    Unsupported {
        /// The process in the image.
        pid: i32,
        /// What it has.
        object: String,
        /// Why that cannot be.
        reason: String,
    },
    /// This host lacks what the program may be using.
    #[error("resume failed for pid {pid} (CPU): this host lacks {missing}")]
    Cpu {
        /// The process in the image.
        pid: i32,
        /// Features or state components, by name.
        missing: String,
    },
    /// The program ran as somebody else.
    #[error("resume failed for pid {pid} (credentials): it ran with {differences}")]
    Credentials {
        /// The process in the image.
        pid: i32,
        /// Ids and capability sets, its and ours.
        differences: String,
    },
    /// Files are no longer what they were.
    #[error("resume failed for pid {pid} (files): {}", list(changes))]
    Changed {
        /// The process in the image.
        pid: i32,
        /// Each file and what is different.
        changes: Vec<String>,
        /// What can be done about them.
        remedies: Remedies,
        /// Whose content the image has, 0 to 3.
        level: u32,
    },
    /// Files could not be put back; they are as they were before.
    #[error("resume failed for pid {pid} (files): {source}")]
    PutBack {
        /// The process in the image.
        pid: i32,
        /// Why not.
        source: PutBackError,
    },
    /// Files of this image wait to be made what they were before an earlier resume.
    #[error("resume failed: {0}")]
    Waiting(PutBackError),
    /// The restore failed, and files that had been put back could not all be made as they were before.
    #[error("{error}; then files could not be made as they were before: {left}")]
    NotUndone {
        /// Why it failed.
        error: Box<RestoreError>,
        /// Which files, and why not.
        left: String,
        /// What can be done about that.
        remedy: String,
    },
    /// The restore failed, and what it had made for a moment could not all be removed again.
    #[error("{error}; then what it had made could not be removed again: {left}")]
    Left {
        /// Why it failed.
        error: Box<RestoreError>,
        /// Folders and fifos, and why not.
        left: String,
    },
    /// The limit of descriptors leaves no room for the restore.
    #[error(
        "resume failed for pid {pid} (limit of descriptors): it needs {needed} for a moment, {limit} are allowed"
    )]
    Descriptors {
        /// The process in the image.
        pid: i32,
        /// So many.
        needed: u64,
        /// Our hard limit.
        limit: u64,
    },
    /// The program's hard limits are above ours, and we may not raise them.
    #[error("resume failed for pid {pid} (limits): it had higher hard limits than ours: {limits}")]
    Limits {
        /// The process in the image.
        pid: i32,
        /// Each by its name, as in /proc/PID/limits, with both values.
        limits: String,
    },
    /// The id of the process or of one of its threads belongs to somebody else.
    #[error("clone3 failed for pid {pid} (id of a process or thread): taken by {owner}")]
    PidTaken {
        /// The id wanted.
        pid: i32,
        /// Who has it: id, name, state.
        owner: String,
    },
    /// We may not choose the process id.
    #[error("clone3 failed for pid {pid} (process id): choosing it is not permitted")]
    PidForbidden {
        /// The id wanted.
        pid: i32,
    },
    /// The id or the key of a System V object belongs to somebody else.
    #[error("resume failed for pid {pid} ({object}): {reason}")]
    IpcTaken {
        /// The process in the image.
        pid: i32,
        /// Its kind, id and key.
        object: String,
        /// Whose, and which.
        reason: String,
    },
    /// We may not choose the id of a System V object.
    #[error(
        "resume failed for pid {pid} ({object}): it is not there any more, and choosing ids is not permitted"
    )]
    IpcForbidden {
        /// The process in the image.
        pid: i32,
        /// Its kind, id and key.
        object: String,
    },
    /// Namespaces are not to be had.
    #[error("unshare failed for pid {pid} ({namespace} namespace): {source}")]
    Namespace {
        /// The process in the image.
        pid: i32,
        /// "user", "pid" or "time".
        namespace: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else made the image or could have changed it.
    #[error("resume failed for pid {pid} (image {path}): {reason}")]
    Foreign {
        /// The process in the image.
        pid: i32,
        /// The directory or file.
        path: String,
        /// Whose it is, or who may write it.
        reason: String,
        /// What can be done.
        remedy: &'static str,
    },
    /// The address of a unix socket is not to be had.
    #[error("resume failed for pid {pid} (unix socket {name}): {reason}")]
    Socket {
        /// The process in the image.
        pid: i32,
        /// The address, `@` before an abstract one.
        name: String,
        /// Why not.
        reason: String,
    },
    /// Somebody else's unix socket is not there.
    #[error(
        "connect failed for pid {pid} (unix socket {name} of another program, to which this one sends): {source}"
    )]
    Unreachable {
        /// The process in the image.
        pid: i32,
        /// The address, `@` before an abstract one.
        name: String,
        /// Why not.
        source: std::io::Error,
    },
    /// An entry of the planned program was not accepted.
    #[error("{operation} failed for pid {pid} ({object}): {source}")]
    Entry {
        /// The system call.
        operation: String,
        /// The process in the image.
        pid: i32,
        /// What was being restored.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The new process died before it was complete.
    #[error("resume failed for pid {pid} (new process): {reason}")]
    Died {
        /// The process in the image.
        pid: i32,
        /// How.
        reason: String,
    },
    /// Something else the kernel refused.
    #[error("{operation} failed for pid {pid} ({object}): {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The process in the image.
        pid: i32,
        /// On what.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn list(changes: &[String]) -> String {
    changes.join("; ")
}

impl RestoreError {
    /// What the user can do about it, in one line.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Image(source) => return source.remedy().map(Into::into),
            Self::Cpu { .. } => {
                "resume on a host whose CPU has these (`rewake show DIR` lists what is needed)"
            }
            Self::Credentials { .. } => {
                "resume it as the user it ran as, with the same groups and capabilities"
            }
            Self::Changed { remedies, level, .. } => return Some(changed_remedy(*remedies, *level)),
            Self::PutBack { source, .. } => return source.remedy().map(Into::into),
            Self::Waiting(source) => return source.remedy().map(Into::into),
            Self::NotUndone { remedy, .. } => remedy,
            Self::Left { .. } => {
                "take out what somebody put into them, then remove them (rmdir), and resume again"
            }
            Self::Descriptors { .. } => "raise the hard limit (ulimit -Hn), then resume again",
            Self::Limits { .. } => {
                "resume where these limits are as high (ulimit -H shows them); raising them takes CAP_SYS_RESOURCE"
            }
            Self::Socket { .. } => {
                "end the program that has it, or remove or put back what is in its way, then resume again"
            }
            Self::Unreachable { .. } => {
                "start the program that has this address (a system log, for example), or resume with --outside-sockets dead-end: then it is as if that program had ended"
            }
            Self::PidTaken { .. } => {
                "end that process or wait for its end, then resume again; or resume with other ids outside (--pids namespace)"
            }
            Self::IpcTaken { .. } => {
                "resume in an IPC namespace of its own (--ipc namespace); or remove that object, if nobody needs it (ipcrm, for POSIX queues rm in /dev/mqueue), then resume again"
            }
            Self::IpcForbidden { .. } => {
                "resume in an IPC namespace of its own (--ipc namespace), or as root, or let root allow it: setcap cap_checkpoint_restore+ep on the rewake binary"
            }
            Self::PidForbidden { .. } => {
                "resume in a pid namespace of its own (--pids namespace), or as root, or let root allow it: setcap cap_checkpoint_restore+ep on the rewake binary"
            }
            Self::Namespace { namespace, .. } => return Some(namespace_remedy(namespace)),
            Self::Foreign { remedy, .. } => remedy,
            Self::Entry { source, operation, .. } => return entry_remedy(operation, source),
            Self::Unsupported { .. } | Self::Died { .. } | Self::System { .. } => return None,
        };
        Some(text.to_owned())
    }
}

fn changed_remedy(remedies: Remedies, level: u32) -> String {
    let mut ways = Vec::new();
    if remedies.restore && !remedies.not_stored {
        ways.push("have resume put back what the program was writing: -o (--on-changed restore)".to_owned());
    } else if level == 0 {
        ways.push(
            "put them back by hand (the image has no contents of files: it was made with --files 0)"
                .to_owned(),
        );
    } else if remedies.restore {
        ways.push("put back by hand those that the image has no content of, then resume with -o".to_owned());
    } else {
        ways.push(format!(
            "put them back by hand (the image has no content of them: it was made with --files {level})"
        ));
    }
    if remedies.as_is {
        ways.push("go on with the files as they are: --on-changed as-is".to_owned());
    }
    ways.join(", or ")
}

fn namespace_remedy(namespace: &str) -> String {
    let text = match namespace {
        "time" => "resume in namespaces of its own (--pids namespace), or do without --clock keep",
        _ => {
            "let root allow namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns), or setcap cap_checkpoint_restore+ep on the rewake binary"
        }
    };
    text.to_owned()
}

fn entry_remedy(operation: &str, source: &io::Error) -> Option<String> {
    let text = match (operation, source.raw_os_error()?) {
        ("clone3", libc::EAGAIN) => {
            "raise the limit of processes (ulimit -u, the cgroup's pids.max), then resume again"
        }
        ("clone3", libc::EPERM) => "let root allow it: setcap cap_checkpoint_restore+ep on the rewake binary",
        ("prlimit64", libc::EPERM) => {
            "raise the hard limit in the shell first (ulimit -H); that takes CAP_SYS_RESOURCE"
        }
        ("sched_setattr" | "setpriority" | "ioprio_set", libc::EPERM) => {
            "resume as root, or as one who may set these (ulimit -e, ulimit -r)"
        }
        ("rt_sigqueueinfo" | "rt_tgsigqueueinfo", libc::EAGAIN) => {
            "raise the limit of pending signals (ulimit -i)"
        }
        ("openat" | "chdir", libc::ENOENT) => "put the file or folder back in its place",
        ("mkdirat" | "mknodat", libc::EEXIST) => "something of that name came just now: resume again",
        ("openat" | "chdir", libc::EACCES) => "resume as a user who may open it",
        ("prctl", libc::EINVAL) => "raise the limit of data (ulimit -d), if there is one",
        (_, libc::ENOMEM) => {
            "free memory, or raise the limits (ulimit -v, ulimit -d, ulimit -l, vm.max_map_count, the cgroup's), then resume again"
        }
        ("fcntl" | "flock", libc::EAGAIN | libc::EACCES) => {
            "another process holds the lock: wait until it lets go"
        }
        _ => return None,
    };
    Some(text.to_owned())
}
