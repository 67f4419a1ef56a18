//! Signals as messages: held back by the mask, taken one by one, let through on purpose; and the groups they are sent to.
//!
//! # Safety
//! The calls below are C functions without a safe counterpart. They get pointers only to values on the stack of the calling function,
//! which the kernel and libc fill or read before they return, and no signal handler is installed: what arrives is either taken by
//! [`Signals::take`] or acts by its default.
#![allow(
    unsafe_code,
    reason = "signal masks, sigtimedwait, kill and sigqueue are not offered by rustix, nor process groups outside our pid namespace"
)]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use rustix::process::Pid;

/// The kernel's highest signal number.
const LAST: i32 = 64;

/// Raised by a fault of our own, or (SIGPIPE) about a stream of our own: they are not messages for the program.
const OUR_OWN: [i32; 8] = [
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGPIPE,
    libc::SIGABRT,
];

/// Needed whatever the caller of this program left as their disposition.
const ALWAYS: [i32; 3] = [libc::SIGCHLD, libc::SIGCONT, libc::SIGTTOU];

/// The signals that are held back. They stay so until the process ends.
pub struct Signals {
    held: libc::sigset_t,
}

/// A signal that was taken.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Its number.
    pub number: i32,
    /// The kernel sent it, on behalf of the terminal (Ctrl-C) or of an expired limit: not another process.
    pub from_kernel: bool,
    /// The process that sent it, when one did.
    pub sender: Option<i32>,
    /// The value that came with it (sigqueue).
    pub value: Option<libc::sigval>,
}

impl Signals {
    /// Holds back, from now on, all signals that can be passed on. Those that our caller wants ignored (`nohup`) stay ignored.
    pub fn hold() -> io::Result<Self> {
        let mut held = empty_set();
        for number in (1..=LAST).filter(|number| !OUR_OWN.contains(number)) {
            if ALWAYS.contains(&number) || !is_ignored(number) {
                // Refused for SIGKILL-like numbers and those libc keeps for itself: then it is simply not in the set.
                // SAFETY: `held` is an initialised set on our stack.
                unsafe { libc::sigaddset(&raw mut held, number) };
            }
        }
        change_mask(libc::SIG_BLOCK, &held)?;
        Ok(Self { held })
    }

    /// Waits for the next signal.
    pub fn next(&self) -> io::Result<Received> {
        loop {
            match wait(&self.held, None) {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                outcome => return outcome,
            }
        }
    }

    /// Takes `number` if it is waiting.
    pub fn take(&self, number: i32) -> bool {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        wait(&set_of(number), Some(&now)).is_ok()
    }

    /// Lets `number` act on us by its default if it is waiting; returns when it has (when we were stopped and go on).
    pub fn let_through(&self, number: i32) -> io::Result<()> {
        let set = set_of(number);
        change_mask(libc::SIG_UNBLOCK, &set)?;
        change_mask(libc::SIG_BLOCK, &set)
    }
}

/// Gives `number` its default disposition.
pub fn set_default(number: i32) -> io::Result<()> {
    // SAFETY: SIG_DFL installs no code.
    match unsafe { libc::signal(number, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Sends a signal to process `pid`; to a process group when negative, to our own when 0.
pub fn send(pid: i32, number: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::kill(pid, number) })
}

/// Sends a signal with a value to process `pid`.
pub fn send_with_value(pid: i32, number: i32, value: libc::sigval) -> io::Result<()> {
    // SAFETY: the value is passed on as it came and never followed as a pointer here.
    check(unsafe { libc::sigqueue(pid, number, value) })
}

/// Dies of `number`, as the program did. Returns only if that signal cannot kill us (we are the first process of a pid namespace).
pub fn die_of(number: i32) {
    // Each may fail (SIGKILL has no disposition); what counts is whether we survive.
    let _ = set_default(number);
    let _ = change_mask(libc::SIG_UNBLOCK, &set_of(number));
    // SAFETY: no memory is passed, no handler is installed.
    unsafe { libc::raise(number) };
}

/// The process group of `pid`; `None` when there is no such process, or its group lies outside our pid namespace and has no number here.
pub fn group_of(pid: Pid) -> Option<Pid> {
    // SAFETY: no memory is passed.
    Pid::from_raw(unsafe { libc::getpgid(pid.as_raw_nonzero().get()) }.max(0))
}

/// Our own process group; `None` when it lies outside our pid namespace.
pub fn own_group() -> Option<Pid> {
    // SAFETY: no memory is passed.
    Pid::from_raw(unsafe { libc::getpgrp() })
}

fn wait(set: &libc::sigset_t, timeout: Option<&libc::timespec>) -> io::Result<Received> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let timeout = timeout.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: set, info and timeout (if any) are on the stacks of this function and its callers.
    let number = unsafe { libc::sigtimedwait(set, info.as_mut_ptr(), timeout) };
    check(number)?;
    // SAFETY: all bytes were zeroed, and siginfo_t is valid for any bytes.
    let info = unsafe { info.assume_init() };
    let by_process = matches!(info.si_code, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL);
    Ok(Received {
        number,
        from_kernel: info.si_code == libc::SI_KERNEL,
        // SAFETY: these codes say that the sender's field is the one that was filled.
        sender: by_process.then(|| unsafe { info.si_pid() }),
        // SAFETY: this code says that the value's field was filled.
        value: (info.si_code == libc::SI_QUEUE).then(|| unsafe { info.si_value() }),
    })
}

fn is_ignored(number: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only asks; the answer goes to our stack.
    if unsafe { libc::sigaction(number, ptr::null(), action.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: all bytes were zeroed, and any bytes make a struct sigaction.
    unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigemptyset makes a set of what is on our stack.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn set_of(number: i32) -> libc::sigset_t {
    let mut set = empty_set();
    // SAFETY: the set is initialised.
    unsafe { libc::sigaddset(&raw mut set, number) };
    set
}

fn change_mask(how: i32, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the set is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(how, set, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
