//! What libraries may have done before `main` in a process that is to become the program of an image: it is no part of that program.
//!
//! # Safety
//! Unsafe here: raw system calls with numbers and structures of ours; threads that end leave memory that nobody uses any more.

#![allow(unsafe_code, reason = "see Safety above")]

use std::time::Duration;

use crate::entry;
use crate::gather::each_thread;
use crate::{SIGSTAND, raw, voice};

/// How long threads may take to end, in nanoseconds, and between two looks at them.
const PATIENCE: u64 = 5_000_000_000;
const LOOK: Duration = Duration::from_millis(1);
/// Timers of a process that does not tell which it has.
const TIMERS: u32 = 4096;

/// Looks for what cannot be undone.
///
/// # Errors
/// A text for people.
pub fn check() -> Result<(), String> {
    if has_children() {
        let text = "libckpt: this process has children already: of a library that has started them before main, or of the shell that has become this program (exec)\n  recover the program without that library, or as a process of its own";
        return Err(text.to_owned());
    }
    Ok(())
}

/// Ends threads and timers. Threads may hold locks of libc's when they end, which nobody may need from then on.
#[must_use]
pub fn undo() -> bool {
    if !be_alone() {
        voice::say(b"libckpt: a library has started threads that do not end");
        voice::say(b"  recover the program without that library");
        return false;
    }
    forget_timers();
    true
}

fn be_alone() -> bool {
    let (own, begin) = (raw::gettid(), raw::now());
    entry::let_threads_end();
    loop {
        let mut others = 0;
        let all = each_thread(&mut |tid| {
            if tid != own {
                others += 1;
                let args = [raw::word(raw::getpid()), raw::word(tid), raw::word(SIGSTAND), 0, 0, 0];
                // SAFETY: to a thread of this process, which ends by it.
                unsafe { raw::call(libc::SYS_tgkill, args) };
            }
        });
        if all && others == 0 {
            return true;
        }
        if raw::now() - begin > PATIENCE {
            return false;
        }
        std::thread::sleep(LOOK);
    }
}

fn has_children() -> bool {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    let mut info = [0u64; 16];
    let args = [raw::word(libc::P_ALL.cast_signed()), 0, info.as_mut_ptr() as u64, raw::word(options), 0, 0];
    // SAFETY: room for a siginfo_t of ours; nobody is waited for.
    unsafe { raw::call(libc::SYS_waitid, args) != -i64::from(libc::ECHILD) }
}

fn forget_timers() {
    let delete = |id: u32| {
        // SAFETY: a number.
        unsafe { raw::call(libc::SYS_timer_delete, [id.into(), 0, 0, 0, 0, 0]) };
    };
    match std::fs::read_to_string("/proc/self/timers") {
        Ok(text) => text.lines().filter_map(|line| line.strip_prefix("ID: ")?.parse().ok()).for_each(delete),
        Err(_) => (0..TIMERS).for_each(delete),
    }
    let never = [0u64; 4];
    for which in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
        // SAFETY: a structure of ours.
        unsafe { raw::call(libc::SYS_setitimer, [raw::word(which), never.as_ptr() as u64, 0, 0, 0, 0]) };
    }
}
