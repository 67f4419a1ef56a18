//! Making a second process of this one: the guardian that holds a target while its parent writes the image.
//!
//! # Safety
//! A child of fork(2) may go on with ordinary Rust only if no other thread existed that could have held a lock; [`fork`] checks it.
//! [`ignore`] installs no handler.

#![allow(unsafe_code, reason = "fork and signal dispositions, see Safety above")]

use std::io;

use rustix::process::Pid;

/// Which of the two processes this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The one that called, with the child's id.
    Parent(Pid),
    /// The new one.
    Child,
}

/// Makes a copy of this process.
///
/// # Errors
/// When this process has more than one thread ([`io::ErrorKind::InvalidInput`]), or the kernel makes no process.
pub fn fork() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        let text = format!("a process of {threads} threads cannot be copied");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    // SAFETY: this process has a single thread, so the child inherits no lock that nobody will release.
    match unsafe { libc::fork() } {
        0 => Ok(Forked::Child),
        pid => {
            Pid::from_raw(pid).filter(|_| pid > 0).map(Forked::Parent).ok_or_else(io::Error::last_os_error)
        }
    }
}

/// Makes this process ignore signals.
///
/// # Errors
/// When a number is no signal, or one that cannot be ignored.
pub fn ignore(signals: &[i32]) -> io::Result<()> {
    for &signal in signals {
        // SAFETY: SIG_IGN runs no code of ours.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Ends this process at once: no destructors, no exit handlers of the process it was copied from.
pub fn leave(code: i32) -> ! {
    // SAFETY: _exit takes a number and never returns.
    unsafe { libc::_exit(code) }
}
