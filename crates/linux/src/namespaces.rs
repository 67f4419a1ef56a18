//! Namespaces for a program that gets ids and clocks of its own, and the first process of a pid namespace.
//!
//! Whoever unshares a pid or time namespace stays outside of it: only its children are inside.
//!
//! # Safety
//! Unsafe here: unshare(2) of namespaces that change nothing about our memory, descriptors or signals; a clone3(2) that asks for an
//! id in use, and so never makes a process (should it, that one leaves at once); closing every descriptor in a child that never
//! returns to whoever owns them; pidfd_open, poll, wait and prctl with pointers to locals.

#![allow(unsafe_code, reason = "system calls, see Safety above")]

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, WaitOptions, getegid, geteuid};

use crate::fork::{self, Forked};
use crate::proc::ClockOffsets;

/// Name of the first process of a pid namespace of ours.
pub const INIT_NAME: &str = "rewake-init";

/// Whether we may choose the id of a new process in our own pid namespace. Asks for one that is taken: only the permission differs.
#[must_use]
pub fn may_choose_ids() -> bool {
    let taken = [std::process::id()];
    let mut args = [0u64; 11]; // struct clone_args
    args[4] = libc::SIGCHLD.unsigned_abs().into();
    args[8] = taken.as_ptr() as u64;
    args[9] = 1;
    // SAFETY: the arguments and the id live through the call. Our own id is in use as long as we ask, so the kernel makes no process.
    let result = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) };
    if result == 0 {
        fork::leave(0);
    }
    io::Error::last_os_error().raw_os_error() == Some(libc::EEXIST)
}

/// Goes into a user namespace of our own, in which our user and group keep their numbers and nobody else has one. There we may do
/// everything; outside we keep what a user without any right may.
///
/// # Errors
/// When the kernel or an administrator does not allow it.
pub fn enter_user_namespace() -> io::Result<()> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    unshare(libc::CLONE_NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Children made from now on live in a new pid namespace; the first is its init.
///
/// # Errors
/// EPERM without the right to; ENOSPC where namespaces are limited.
pub fn unshare_pids() -> io::Result<()> {
    unshare(libc::CLONE_NEWPID)
}

/// Children made from now on have these clocks.
///
/// # Errors
/// EPERM without the right to; EINVAL on a kernel without time namespaces; ERANGE where a clock would be before its beginning.
pub fn unshare_clocks(offsets: ClockOffsets) -> io::Result<()> {
    unshare(libc::CLONE_NEWTIME)?;
    // All in one write: the kernel takes each write as a whole.
    fs::write("/proc/self/timens_offsets", offsets.to_string())
}

fn unshare(kinds: i32) -> io::Result<()> {
    // SAFETY: none of these flags takes anything away that Rust code relies on.
    match unsafe { libc::unshare(kinds) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Who made a user namespace, and the inode of the one it was made in.
///
/// # Errors
/// When that lies outside of our own user namespace.
pub fn owner_and_parent(namespace: &fs::File) -> io::Result<(u32, u64)> {
    const NS_GET_PARENT: u64 = 0xb702;
    const NS_GET_OWNER_UID: u64 = 0xb704;
    let mut owner = 0u32;
    // SAFETY: the kernel writes one number, ours.
    if unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID, &raw mut owner) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no argument; the result is a new descriptor, nobody's but ours.
    let parent = unsafe {
        match libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) {
            fd if fd < 0 => return Err(io::Error::last_os_error()),
            fd => OwnedFd::from_raw_fd(fd),
        }
    };
    Ok((owner, rustix::fs::fstat(parent)?.st_ino))
}

/// The first process of a pid namespace: it collects orphans, and stays as long as anybody else is inside. Dropped, it ends, and all in
/// the namespace with it.
#[derive(Debug)]
pub struct Init {
    pid: Pid,
    control: Option<fs::File>,
}

impl Init {
    /// Makes it: to be called right after [`unshare_pids`]. `program` is the id, inside, of the process it will stay for.
    ///
    /// # Errors
    /// When this process has more than one thread, or the kernel makes no process.
    pub fn start(program: i32) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let (mut closed, open) = io::pipe()?;
        match fork::fork()? {
            Forked::Child => {
                drop(writer);
                serve(reader.into(), program)
            }
            Forked::Parent(pid) => {
                let init = Self { pid, control: Some(fs::File::from(OwnedFd::from(writer))) };
                drop(open);
                // Until it has none of our files any more: closing one later would be an event to whoever watches it.
                closed.read_to_end(&mut Vec::new())?;
                Ok(init)
            }
        }
    }

    /// Its id out here.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// From now on it stays, whatever becomes of us.
    ///
    /// # Errors
    /// When it is gone.
    pub fn let_go(&self) -> io::Result<()> {
        self.control.as_ref().map_or(Ok(()), |mut control| control.write_all(&[1]))
    }

    /// Does not end it any more when dropped.
    pub fn leave_alone(mut self) {
        self.control = None;
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        if let Some(control) = self.control.take() {
            drop(control);
            // Everything in the namespace is gone when it is; and it is not before we have waited for those in there that we trace.
            loop {
                match rustix::process::wait(WaitOptions::empty()) {
                    Ok(Some((pid, _))) if pid == self.pid => break,
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        }
    }
}

/// What the init does. Nobody but its namespace's ancestors can send it a signal.
fn serve(control: OwnedFd, program: i32) -> ! {
    // The dead vanish without being waited for. That none of these can be done does not keep it from its task.
    let _ = fork::ignore(&[libc::SIGCHLD]);
    let _ = rustix::process::setsid();
    let _ = std::env::set_current_dir("/");
    let _ = rustix::thread::set_name(c"rewake-init");
    // SAFETY: this process never returns from here, so nobody uses a descriptor again, or closes one, but `control`.
    unsafe { fork::close_all_but(&[control.as_raw_fd()]) };
    let mut byte = [0];
    let mut control = fs::File::from(control);
    let told = loop {
        match control.read(&mut byte) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result,
        }
    };
    drop(control);
    if matches!(told, Ok(1)) {
        wait_for(program);
        wait_for_children();
    }
    fork::leave(0)
}

/// Waits until the process has ended, whoever's child it is.
fn wait_for(program: i32) {
    // SAFETY: numbers only.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, program, 0) };
    let Ok(fd) = i32::try_from(pidfd) else { return };
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd of ours. A descriptor that is none (-1: the process is gone) is passed over by not asking.
    while fd >= 0 && unsafe { libc::poll(&raw mut poll, 1, -1) } < 0 && interrupted() {}
}

/// Waits until there is no child left. Children are ignored when they end, so this never finds one.
fn wait_for_children() {
    // SAFETY: no status is asked for.
    while unsafe { libc::wait(std::ptr::null_mut()) } >= 0 || interrupted() {}
}

fn interrupted() -> bool {
    io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::CapabilitySet;

    #[test]
    fn the_probe_agrees_with_the_capabilities() {
        let may = CapabilitySet::own_effective().unwrap().may_checkpoint_restore();
        // In a pid namespace of somebody else's capabilities count for nothing: then only the other way round holds.
        assert!(may || !may_choose_ids());
    }
}
