//! Standing for the program: what `resume` does while the program it woke is running.
//!
//! To whoever started it, `resume` looks like the program. It lends it the terminal, stops when the program is stopped and makes it
//! go on when it is itself continued, passes on the signals it gets, and ends as the program ends. It is also the subreaper of
//! whatever the program leaves behind, and collects it quietly.

mod signals;
mod terminal;

use std::io;
use std::process::ExitCode;

use rustix::process::{
    Pid, Resource, Rlimit, WaitOptions, getpid, getrlimit, set_child_subreaper, setrlimit, wait,
};
use signals::{Received, Signals};
use terminal::Terminal;
use tracing::{debug, trace};

/// How the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this status.
    Exited(u8),
    /// Of this signal.
    Killed(i32),
}

impl Ending {
    /// Ends as the program did. After a death by signal this returns only where that signal cannot kill us.
    pub fn follow(self) -> ExitCode {
        match self {
            Self::Exited(status) => ExitCode::from(status),
            Self::Killed(number) => {
                let hard = getrlimit(Resource::Core).maximum;
                // The program's core is of interest, ours is not.
                let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: hard });
                signals::die_of(number);
                ExitCode::from(u8::try_from(number).map_or(u8::MAX, |number| number.saturating_add(128)))
            }
        }
    }
}

/// Makes us fit to be the program's parent; to be called before there is a program. Signals keep their meaning: until the program runs,
/// Ctrl-C ends us and the half-made process with us.
pub fn prepare() -> io::Result<()> {
    // Ignored by whoever started us, it would make the kernel throw away how the program ended.
    signals::set_default(libc::SIGCHLD)?;
    // Any pid turns it on.
    set_child_subreaper(Some(Pid::INIT))?;
    Ok(())
}

/// Stands for the program.
pub struct Company {
    signals: Signals,
    terminal: Terminal,
    program: Pid,
}

impl Company {
    /// Begins, just before the program is let go: lends it the terminal and holds signals back, which from now on are meant for it.
    pub fn begin(program: Pid) -> io::Result<Self> {
        let company = Self { signals: Signals::hold()?, terminal: Terminal::find(), program };
        company.terminal.offer(company.group());
        Ok(company)
    }

    /// The program will not run after all.
    pub fn give_up(self) {
        self.terminal.take_back(self.program);
    }

    /// Waits until the program has ended, and does meanwhile what is to be done.
    pub fn keep(self) -> io::Result<Ending> {
        loop {
            let group = self.group();
            // Children first: several deaths make one SIGCHLD, and the first may have come before signals were held back.
            if let Some(ending) = self.collect()? {
                // A script that started us goes on without a shell that would take the terminal back.
                self.terminal.take_back(group);
                debug!(?ending, "the program has ended");
                return Ok(ending);
            }
            let received = self.signals.next()?;
            trace!(?received, "signal");
            match received.number {
                libc::SIGCHLD => {}
                libc::SIGCONT => self.go_on(),
                _ => self.pass_on(received),
            }
        }
    }

    /// Takes note of children that changed, the program and those it left to us.
    fn collect(&self) -> io::Result<Option<Ending>> {
        while let Some((pid, status)) = wait(WaitOptions::NOHANG | WaitOptions::UNTRACED)? {
            if pid != self.program {
                trace!(pid = pid.as_raw_nonzero(), ?status, "a process left by the program");
                continue;
            }
            if let Some(code) = status.exit_status() {
                return Ok(Some(Ending::Exited(u8::try_from(code).unwrap_or(u8::MAX))));
            }
            if let Some(number) = status.terminating_signal() {
                return Ok(Some(Ending::Killed(number)));
            }
            if let Some(number) = status.stopping_signal() {
                self.stop_too(number);
            }
        }
        Ok(None)
    }

    /// The program was stopped by `number`: so are we, and whoever continues us continues it.
    fn stop_too(&self, number: i32) {
        debug!(signal = number, "the program has stopped");
        let group = self.group();
        let wants_terminal = matches!(number, libc::SIGTTIN | libc::SIGTTOU);
        if wants_terminal && self.terminal.lend(group) {
            self.signal_group(libc::SIGCONT);
            return;
        }
        let had_terminal = self.terminal.take_back(group);
        // Ctrl-Z would have stopped all of our group, had the terminal been ours.
        let whom = if had_terminal && number == libc::SIGTSTP { 0 } else { getpid().as_raw_nonzero().get() };
        let stopped = signals::send(whom, number).and_then(|()| self.signals.let_through(number));
        if let Err(error) = stopped {
            debug!(%error, "cannot stop");
        }
        // Continued? Then by a SIGCONT that still waits. If not, there was nobody to continue us (the process group is orphaned) and
        // the kernel left us running; the program is not left stopped for ever either.
        let continued = self.signals.take(libc::SIGCONT);
        if !continued && wants_terminal {
            // What the kernel does to a stopped group that becomes orphaned. Continued alone, it would read and stop again, for ever.
            self.signal_group(libc::SIGHUP);
        }
        self.go_on();
    }

    /// We were continued, or never stopped: so is the program.
    fn go_on(&self) {
        self.terminal.offer(self.group());
        self.signal_group(libc::SIGCONT);
    }

    fn pass_on(&self, received: Received) {
        let Received { number, from_kernel, sender, value } = received;
        let program = self.program.as_raw_nonzero().get();
        if sender == Some(program) {
            // Meant for the parent the program had when it was captured.
            return;
        }
        let stops = matches!(number, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU);
        if from_kernel || stops {
            // As the terminal does: to all of the group.
            self.signal_group(number);
            return;
        }
        let sent = match value {
            Some(value) => signals::send_with_value(program, number, value),
            None => signals::send(program, number),
        };
        if let Err(error) = sent {
            debug!(signal = number, %error, "cannot pass on");
        }
    }

    fn signal_group(&self, number: i32) {
        // Group 1 cannot be named so: kill(-1) means everybody.
        let (group, init) = (self.group(), Pid::INIT);
        let whom = if group == init { self.program } else { group }.as_raw_nonzero().get();
        if let Err(error) = signals::send(if group == init { whom } else { -whom }, number) {
            debug!(signal = number, %error, "cannot pass on");
        }
    }

    /// The program's process group now: a program may change it. It is not collected while this is asked, so the id is its own.
    fn group(&self) -> Pid {
        signals::group_of(self.program).unwrap_or(self.program)
    }
}
