//! Attributes of a thread that the kernel tells another process, stopped or not.
//!
//! # Safety
//! Every block here is one system call that writes into a local variable of the size the call is told.

#![allow(unsafe_code, reason = "system calls without a safe wrapper, see Safety above")]

use std::io;

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
