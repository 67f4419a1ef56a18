//! Making a second process of this one: the guardian that holds a target while its parent writes the image.
//!
//! # Safety
//! A child of fork(2) may go on with ordinary Rust only if no other thread existed that could have held a lock; [`fork`] checks it.
//! [`ignore`] installs no handler. [`StopsBlocked`] changes the calling thread's mask, with sets of its own.

#![allow(unsafe_code, reason = "fork and signal dispositions, see Safety above")]

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

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
    copy()
}

fn copy() -> io::Result<Forked> {
    // SAFETY: this process has a single thread, so the child inherits no lock that nobody will release; or its maker has said that it
    // waits for none: libc sees to those of its own malloc.
    match unsafe { libc::fork() } {
        0 => Ok(Forked::Child),
        pid => {
            Pid::from_raw(pid).filter(|_| pid > 0).map(Forked::Parent).ok_or_else(io::Error::last_os_error)
        }
    }
}

/// Makes a child that only serves: of the descriptors it has these and the three standard ones, and it ends when `serve` returns.
///
/// # Errors
/// As [`fork`].
pub fn server<const N: usize>(
    fds: [OwnedFd; N],
    subject: i32,
    serve: fn([OwnedFd; N], i32),
) -> io::Result<Pid> {
    match fork()? {
        Forked::Parent(child) => Ok(child),
        Forked::Child => {
            let mut keep = vec![0, 1, 2];
            keep.extend(fds.iter().map(AsRawFd::as_raw_fd));
            // SAFETY: this process never returns to whoever owns the others, and `serve` is a function, which carries none of them.
            unsafe { close_all_but(&keep) };
            let served = catch_unwind(AssertUnwindSafe(|| serve(fds, subject)));
            leave(i32::from(served.is_err()))
        }
    }
}

/// Makes a copy of this process that is not its child: one between the two ends at once. It leads a session of its own, with all signals
/// blocked, so that what ends a program does not end it.
///
/// This process may have threads that others have started. The copy must not wait for what they may hold: the locks of streams and of
/// the loader.
///
/// # Errors
/// When the kernel makes no process.
pub fn fork_apart() -> io::Result<Forked> {
    let between = match copy()? {
        Forked::Parent(between) => between,
        Forked::Child => {
            let made = copy();
            if matches!(made, Ok(Forked::Child)) {
                let _already = rustix::process::setsid();
                block_all();
                return Ok(Forked::Child);
            }
            leave(i32::from(made.is_err()))
        }
    };
    let ended = rustix::process::waitpid(Some(between), rustix::process::WaitOptions::empty())?;
    match ended.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Ok(Forked::Parent(between)),
        _ => Err(io::Error::other("no process was made")),
    }
}

fn block_all() {
    let mut all = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises our set before it is used.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut());
    }
}

/// Closes every descriptor but these.
///
/// # Safety
/// Whoever owns one of the others must never use or close it again: for children that never return to them.
pub(crate) unsafe fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep.iter().map(|fd| fd.unsigned_abs()).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        if fd > first {
            // SAFETY: the caller's.
            unsafe { libc::close_range(first, fd - 1, 0) };
        }
        first = fd + 1;
    }
    // SAFETY: the caller's.
    unsafe { libc::close_range(first, u32::MAX, 0) };
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

/// The stop signals of a terminal (`SIGTSTP`, `SIGTTIN`, `SIGTTOU`) wait while this lives: in this thread and those it makes meanwhile.
/// Dropping it lets them take effect.
#[derive(Debug)]
#[must_use = "the signals are blocked only as long as this lives"]
pub struct StopsBlocked {
    before: libc::sigset_t,
    /// The mask is that of the thread that made it.
    of_this_thread: PhantomData<*const ()>,
}

impl StopsBlocked {
    /// Blocks them.
    ///
    /// # Errors
    /// As the kernel's; there is none for valid signals.
    pub fn new() -> io::Result<Self> {
        let (mut stops, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: sigemptyset initialises our set before anything is added to it.
        unsafe { libc::sigemptyset(stops.as_mut_ptr()) };
        for signal in [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU] {
            // SAFETY: the set is ours and initialised above.
            unsafe { libc::sigaddset(stops.as_mut_ptr(), signal) };
        }
        // SAFETY: both sets are ours; the first is initialised, the second is written by the call.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, stops.as_ptr(), before.as_mut_ptr()) } {
            0 => {
                // SAFETY: the call succeeded, so it has written the mask as it was.
                let before = unsafe { before.assume_init() };
                Ok(Self { before, of_this_thread: PhantomData })
            }
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Drop for StopsBlocked {
    fn drop(&mut self) {
        // SAFETY: the set is one the kernel gave for this very thread: a pointer within keeps this value from others.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

/// Ends this process at once: no destructors, no exit handlers of the process it was copied from.
pub fn leave(code: i32) -> ! {
    // SAFETY: _exit takes a number and never returns.
    unsafe { libc::_exit(code) }
}
