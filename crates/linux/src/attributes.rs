//! Attributes of a thread that the kernel tells another process, stopped or not.
//!
//! # Safety
//! Every block here is one system call that writes into a local variable of the size the call is told.

#![allow(unsafe_code, reason = "system calls without a safe wrapper, see Safety above")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What sched_getattr(2) tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scheduling {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value, -20 to 19.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// Deadline scheduling: nanoseconds.
    pub runtime_ns: u64,
    /// Deadline scheduling: nanoseconds.
    pub deadline_ns: u64,
    /// Deadline scheduling: nanoseconds.
    pub period_ns: u64,
}

/// `struct sched_attr`, the first version (48 bytes).
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

fn check(result: libc::c_long) -> io::Result<u64> {
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// How a thread is scheduled.
///
/// # Errors
/// When there is no such thread.
pub fn scheduling(tid: i32) -> io::Result<Scheduling> {
    let mut attr = SchedAttr::default();
    let size = std::mem::size_of::<SchedAttr>();
    // SAFETY: the kernel writes at most `size` bytes, which is the size of `attr`.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size, 0) })?;
    let SchedAttr { policy, flags, nice, priority, runtime, deadline, period, .. } = attr;
    Ok(Scheduling {
        policy,
        flags,
        nice,
        priority,
        runtime_ns: runtime,
        deadline_ns: deadline,
        period_ns: period,
    })
}

/// Makes this thread one that works for moments and is to begin them soon: since Linux 6.12 those with a short slice come first. It needs
/// no right; what is not scheduled as most are stays as it is.
///
/// # Errors
/// When the kernel does not allow it.
pub fn be_prompt() -> io::Result<()> {
    /// The shortest slice there is.
    const SLICE_NS: u64 = 100_000;
    let Scheduling { policy, nice, flags, .. } = scheduling(0)?;
    if policy != libc::SCHED_OTHER.cast_unsigned() {
        return Ok(());
    }
    let size = u32::try_from(std::mem::size_of::<SchedAttr>()).map_err(io::Error::other)?;
    let attr = SchedAttr { size, policy, nice, flags, runtime: SLICE_NS, ..SchedAttr::default() };
    // SAFETY: the kernel reads `size` bytes, which is the size of `attr`.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) }).map(drop)
}

/// The processors a thread may run on: little-endian bits, as long as the kernel's mask.
///
/// # Errors
/// When there is no such thread.
pub fn affinity(tid: i32) -> io::Result<Vec<u8>> {
    let mut mask = vec![0u8; 4096];
    // SAFETY: the kernel writes at most `mask.len()` bytes into `mask`.
    let len =
        check(unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, mask.len(), mask.as_mut_ptr()) })?;
    mask.truncate(usize::try_from(len).map_err(io::Error::other)?);
    Ok(mask)
}

/// A thread's I/O priority, as ioprio_set(2) takes it.
///
/// # Errors
/// When there is no such thread.
pub fn io_priority(tid: i32) -> io::Result<u32> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: the call takes two numbers.
    let priority = check(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) })?;
    u32::try_from(priority).map_err(io::Error::other)
}

/// Whether we may suspend seccomp filters of what we trace, and read them.
#[must_use]
pub fn can_suspend_seccomp() -> bool {
    use crate::proc::Proc;
    const CAP_SYS_ADMIN: u32 = 21;
    /// The number of the first user namespace, in all kernels.
    const INITIAL: u64 = 0xefff_fffd;
    let Ok(own) = Proc::own() else { return false };
    let initial = own.namespace("user").is_ok_and(|number| number == INITIAL);
    initial
        && own.status().is_ok_and(|status| {
            status.seccomp == 0 && status.capabilities.effective & 1 << CAP_SYS_ADMIN != 0
        })
}

/// Whether a process may choose the ids of its POSIX timers (Linux 6.15).
#[must_use]
pub fn can_choose_timer_ids() -> bool {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    const GET: u64 = 2;
    // SAFETY: the call takes numbers only.
    unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0) >= 0 }
}

/// The id of the calling thread's session keyring.
///
/// # Errors
/// When the kernel has no keyrings.
pub fn session_keyring() -> io::Result<i32> {
    const KEYCTL_GET_KEYRING_ID: i32 = 0;
    const KEY_SPEC_SESSION_KEYRING: i32 = -3;
    // SAFETY: the call takes three numbers.
    let id = check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0)
    })?;
    i32::try_from(id).map_err(io::Error::other)
}

/// Who gets signals about an open file (`F_SETOWN`, `F_SETSIG`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalOwner {
    /// `F_OWNER_TID`, `F_OWNER_PID` or `F_OWNER_PGRP`.
    pub kind: u32,
    /// Id of the thread, process or group; 0 for nobody.
    pub id: i32,
    /// The signal; 0 for the kernel's choice.
    pub signal: u32,
}

impl SignalOwner {
    /// `F_OWNER_TID`: the id is that of a thread.
    pub const THREAD: u32 = 0;
    /// `F_OWNER_PID`: the id is that of a process.
    pub const PROCESS: u32 = 1;
    /// `F_OWNER_PGRP`: the id is that of a process group.
    pub const GROUP: u32 = 2;
}

/// `struct f_owner_ex`.
#[repr(C)]
#[derive(Default)]
struct OwnerEx {
    kind: i32,
    id: i32,
}

/// Asks who gets signals about an open file.
///
/// # Errors
/// When the descriptor is one that only names a file (`O_PATH`).
pub fn signal_owner(file: impl AsFd) -> io::Result<SignalOwner> {
    const F_GETOWN_EX: i32 = 16;
    const F_GETSIG: i32 = 11;
    let fd = file.as_fd().as_raw_fd();
    let mut owner = OwnerEx::default();
    // SAFETY: the kernel writes one `struct f_owner_ex`, which `owner` is.
    check(unsafe { libc::fcntl(fd, F_GETOWN_EX, &raw mut owner) }.into())?;
    // SAFETY: the call takes two numbers.
    let signal = check(unsafe { libc::fcntl(fd, F_GETSIG) }.into())?;
    Ok(SignalOwner {
        kind: u32::try_from(owner.kind).map_err(io::Error::other)?,
        id: owner.id,
        signal: u32::try_from(signal).map_err(io::Error::other)?,
    })
}

/// A descriptor of another process, as one of our own.
///
/// # Errors
/// `EBADF` when it is not open there, `EPERM` when we may not trace that process.
pub fn duplicate(pid: i32, fd: i32) -> io::Result<OwnedFd> {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    if let Some(own) = crate::twin::descriptor_of(pid, fd) {
        return own;
    }
    // `PIDFD_THREAD`, Linux 6.9: for one that is not the first of its process.
    const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned());
    // The first thread may have ended, and has no descriptors then.
    let living = crate::proc::Proc::open_living(pid).map_or(pid, |process| process.living());
    let living = Pid::from_raw(living).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    let process = pidfd_open(living, PidfdFlags::empty()).or_else(|_| pidfd_open(living, THREAD))?;
    Ok(pidfd_getfd(process, fd, PidfdGetfdFlags::empty())?)
}

/// How the process (or thread) that a pidfd refers to ended, as wait(2) tells it, if it has ended and was waited for, and the kernel
/// tells (Linux 6.15).
#[must_use]
pub fn pidfd_exit_status(pidfd: impl AsFd) -> Option<i32> {
    /// `PIDFD_GET_INFO` with the first version of `struct pidfd_info`; `PIDFD_INFO_EXIT`.
    const GET_INFO: libc::c_ulong = 0xc040_ff0b;
    const EXIT: u64 = 1 << 3;
    let mut info = PidfdInfo { mask: EXIT, ..PidfdInfo::default() };
    // SAFETY: the kernel writes one `struct pidfd_info` of the size that is part of the request, which `info` is.
    let result = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), GET_INFO, &raw mut info) };
    (result == 0 && info.mask & EXIT != 0).then_some(info.exit_code)
}

/// `struct pidfd_info`, the first version (64 bytes).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}
