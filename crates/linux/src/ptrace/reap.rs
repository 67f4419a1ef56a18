//! Beginning to trace a thread of a process in the midst of execve(2).
//!
//! A thread that executes another program kills the others and waits until each is gone; one that we trace is gone when we have waited
//! for it. Meanwhile it holds a lock that every PTRACE_SEIZE of its process takes. So whoever seizes a thread and waits for that lock
//! must take note of the dead in between: the handler of a timer does.
//!
//! # Safety
//! The handler makes one system call with a pointer to a local of its own, and leaves `errno` as it was. The dispositions and the timer
//! are put back as they were; their structures are locals that outlive the calls.

#![allow(unsafe_code, reason = "a signal handler and its timer, see Safety above")]

use std::ptr::null_mut;

use super::{Options, PtraceError, Running, seize};

/// How long a seizure may take before the dead are looked for, and how often they are then.
const PATIENCE_US: libc::suseconds_t = 5_000;

/// Takes note of tracees that have ended. Any wait for tracees tells of stops too; where there is one, nobody is dead that anybody
/// waits for: an execve kills also those that have stopped.
extern "C" fn reap(_signal: i32) {
    // SAFETY: the location of this thread's errno is always valid.
    let errno = unsafe { *libc::__errno_location() };
    while let Some(dead) = first_dead() {
        // SAFETY: no status is asked for; waitpid may be called in a handler.
        unsafe { libc::waitpid(dead, null_mut(), libc::WNOHANG | libc::__WALL) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

fn first_dead() -> Option<i32> {
    // SAFETY: an all-zero siginfo_t is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: the siginfo_t is a local; waitid may be called in a handler.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) };
    // SAFETY: waitid filled in the members of SIGCHLD's variant, or left all zero.
    let tid = unsafe { info.si_pid() };
    let dead = matches!(info.si_code, libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED);
    (result == 0 && tid != 0 && dead).then_some(tid)
}

/// As [`seize`]. Tracees (and children) of this thread that end meanwhile may be waited for by this: their end is then unknown.
///
/// # Errors
/// As [`seize`].
pub fn seize_while_reaping(tid: i32, options: Options) -> Result<Running, PtraceError> {
    // SAFETY: an all-zero sigaction is valid: no mask, no flags.
    let (mut new, mut old): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    new.sa_sigaction = reap as extern "C" fn(i32) as usize;
    new.sa_flags = libc::SA_RESTART;
    let period = libc::timeval { tv_sec: 0, tv_usec: PATIENCE_US };
    let none = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let (on, off) = (
        libc::itimerval { it_interval: period, it_value: period },
        libc::itimerval { it_interval: none, it_value: none },
    );
    // SAFETY: see the head of the module.
    unsafe {
        libc::sigaction(libc::SIGALRM, &raw const new, &raw mut old);
        libc::setitimer(libc::ITIMER_REAL, &raw const on, null_mut());
    }
    let seized = seize(tid, options);
    // SAFETY: see the head of the module.
    unsafe {
        libc::setitimer(libc::ITIMER_REAL, &raw const off, null_mut());
        libc::sigaction(libc::SIGALRM, &raw const old, null_mut());
    }
    seized
}
