//! The terminal: lent to the program, taken back when the program stops or ends.
//!
//! A terminal has one foreground process group. The shell makes ours it; the program is in another, so Ctrl-C, Ctrl-Z and the right to
//! read go to the program only while ours is exchanged for the program's. SIGTTOU is held back meanwhile (see `signals`), else we
//! would be stopped for asking from the background.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, fstat};
use rustix::process::Pid;
use rustix::termios::{tcgetpgrp, tcsetpgrp};

use super::signals::own_group;

/// Our controlling terminal, if there is one.
pub struct Terminal {
    device: Option<OwnedFd>,
    /// The program gets it at once and not only when it asks (by being stopped for reading from it).
    at_once: bool,
}

impl Terminal {
    /// Finds it.
    pub fn find() -> Self {
        let stdin = io::stdin();
        let usable = |device: BorrowedFd<'_>| tcgetpgrp(device).is_ok();
        let on_stdin = stdin.is_terminal() && usable(stdin.as_fd());
        let device = if on_stdin {
            stdin.as_fd().try_clone_to_owned().ok()
        } else {
            controlling().filter(|d| usable(d.as_fd()))
        };
        // In `resume | less` both belong to the foreground group: less must keep the terminal until the program really wants it.
        let in_pipeline =
            fstat(io::stdout()).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        Self { device, at_once: on_stdin && !in_pipeline }
    }

    /// Gives the terminal to `group` at the beginning and after a stop, if it is ours to give.
    pub fn offer(&self, group: Pid) -> bool {
        self.at_once && self.lend(group)
    }

    /// Gives the terminal to `group` if it is ours to give, or says that it has it already.
    pub fn lend(&self, group: Pid) -> bool {
        let Some(device) = &self.device else { return false };
        match tcgetpgrp(device) {
            Ok(owner) if owner == group => true,
            // Not possible when the program leads a session of its own.
            Ok(owner) if Some(owner) == own_group() => tcsetpgrp(device, group).is_ok(),
            _ => false,
        }
    }

    /// Takes the terminal back from `group`; says whether that group had it.
    pub fn take_back(&self, group: Pid) -> bool {
        let (Some(device), Some(ours)) = (&self.device, own_group()) else { return false };
        let lent = group != ours && tcgetpgrp(device).is_ok_and(|owner| owner == group);
        if lent {
            // Fails when the terminal has gone: then nobody needs it.
            let _ = tcsetpgrp(device, ours);
        }
        lent
    }
}

fn controlling() -> Option<OwnedFd> {
    File::options().read(true).write(true).open("/dev/tty").ok().map(OwnedFd::from)
}
