//! All of several processes go on, or none: a process that kills them should we die before they are all on their own.
//!
//! The kernel kills what we trace when we die, but lets tracees go only one by one: between the first and the last some would live on
//! without the others.
//!
//! # Safety
//! Unsafe here: the child, which never returns to whoever owns them, closes all descriptors but its own.

#![allow(unsafe_code, reason = "closing what a child has inherited, see Safety above")]

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use crate::fork::{self, Forked};

/// Dropped without having been dissolved it kills them.
#[derive(Debug)]
pub struct Bond {
    undertaker: Pid,
    control: Option<PipeWriter>,
}

impl Bond {
    /// Binds these processes to each other.
    ///
    /// # Errors
    /// When this process has more than one thread, one of them is gone, or the kernel makes no process or descriptors.
    pub fn tie(pids: &[i32]) -> io::Result<Self> {
        // In a pid namespace of its own the child would know them by other ids.
        let open = |pid: &i32| -> io::Result<OwnedFd> {
            let pid = Pid::from_raw(*pid).ok_or(io::ErrorKind::InvalidInput)?;
            Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
        };
        let held = pids.iter().map(open).collect::<io::Result<Vec<OwnedFd>>>()?;
        let (orders, control) = io::pipe()?;
        let (mut ready, tell) = io::pipe()?;
        match fork::fork()? {
            Forked::Child => {
                drop((control, ready));
                fork::leave(i32::from(watch(&held, orders, tell).is_err()))
            }
            Forked::Parent(undertaker) => {
                drop((orders, tell));
                let bond = Self { undertaker, control: Some(control) };
                match ready.read(&mut [0])? {
                    1 => Ok(bond),
                    _ => Err(io::Error::other("a process is gone, or there are too many")),
                }
            }
        }
    }

    /// Each is on its own from now on.
    ///
    /// # Errors
    /// When nobody can be told any more.
    pub fn dissolve(mut self) -> io::Result<()> {
        self.control.as_mut().map_or(Ok(()), |control| control.write_all(&[1]))
    }
}

impl Drop for Bond {
    fn drop(&mut self) {
        self.control = None;
        while let Err(rustix::io::Errno::INTR) =
            rustix::process::waitpid(Some(self.undertaker), WaitOptions::empty())
        {}
    }
}

/// What the other process does: it holds them by descriptors, so that no id that is used again can be mistaken for one of theirs.
fn watch(held: &[OwnedFd], mut orders: PipeReader, mut tell: PipeWriter) -> io::Result<()> {
    // What ends us by a key of the terminal must leave somebody to end them.
    fork::ignore(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE, libc::SIGTSTP])?;
    rustix::process::setsid()?;
    let mut keep: Vec<i32> = held.iter().map(AsRawFd::as_raw_fd).collect();
    keep.extend([orders.as_raw_fd(), tell.as_raw_fd()]);
    // SAFETY: this process leaves when we are done, so nobody uses a descriptor again but these.
    unsafe { fork::close_all_but(&keep) };
    tell.write_all(&[1])?;
    drop(tell);
    let dissolved = loop {
        match orders.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            told => break matches!(told, Ok(1)),
        }
    };
    if !dissolved {
        for process in held {
            // One that is dead already is as it should be.
            let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
        }
    }
    Ok(())
}
