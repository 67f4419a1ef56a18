//! `/proc/PID/stat`: one line of numbers, many of them the layout of memory.

use super::text::{ParseError, decimal, words};
use super::{Proc, ProcError};
use crate::addr::RemoteAddr;

/// The fields of `/proc/PID/stat` that a checkpoint needs, named as in proc(5).
///
/// Addresses are 0 when we may not trace the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Process or thread id.
    pub pid: i32,
    /// Name of the thread, at most 15 bytes, of any kind.
    pub comm: Vec<u8>,
    /// `R`, `S`, `D`, `T`, `t`, `Z`, `X`, `I`...
    pub state: char,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Controlling terminal, the kernel's encoding; 0 if none.
    pub tty_nr: i32,
    /// Foreground process group of that terminal; -1 if none.
    pub tpgid: i32,
    /// Kernel flags (`PF_*`).
    pub flags: u32,
    /// Number of threads.
    pub num_threads: u32,
    /// When the process started, in clock ticks since boot: with the pid, its identity.
    pub starttime: u64,
    /// Start of the program's text.
    pub start_code: RemoteAddr,
    /// End of the program's text.
    pub end_code: RemoteAddr,
    /// Bottom (that is, highest address in use at start) of the stack.
    pub start_stack: RemoteAddr,
    /// Signal sent to the parent at exit.
    pub exit_signal: i32,
    /// Processor it ran on last.
    pub processor: u32,
    /// Start of initialised and uninitialised data.
    pub start_data: RemoteAddr,
    /// End of that data.
    pub end_data: RemoteAddr,
    /// Start of the heap that `brk` grows.
    pub start_brk: RemoteAddr,
    /// Start of the arguments.
    pub arg_start: RemoteAddr,
    /// End of the arguments.
    pub arg_end: RemoteAddr,
    /// Start of the environment.
    pub env_start: RemoteAddr,
    /// End of the environment.
    pub env_end: RemoteAddr,
    /// How a thread that has ended did so, as `wait` tells it.
    pub exit_code: i32,
}

/// The first field behind the name has this number in proc(5).
const FIRST_FIELD: usize = 3;

impl Stat {
    /// Parses the text of the file.
    ///
    /// # Errors
    /// When it is not as Linux (3.5 or later) writes it.
    pub fn parse(text: &[u8]) -> Result<Self, ParseError> {
        // The name may hold parentheses, spaces and line feeds; no later field has a parenthesis.
        let missing = || ParseError::expected("a name in parentheses", text);
        let open = text.iter().position(|&byte| byte == b'(').ok_or_else(missing)?;
        let close = text.iter().rposition(|&byte| byte == b')').ok_or_else(missing)?;
        let comm = text.get(open + 1..close).ok_or_else(missing)?.to_vec();
        let fields: Vec<&[u8]> = words(text[close + 1..].trim_ascii()).collect();
        let field = |number: usize| {
            fields.get(number - FIRST_FIELD).copied().ok_or_else(|| {
                ParseError(format!(
                    "expected at least {number} fields, found {}",
                    fields.len() + FIRST_FIELD - 1
                ))
            })
        };
        let int = |number| decimal::<i32>(field(number)?, "a number");
        let unsigned = |number| decimal::<u32>(field(number)?, "a number");
        let address = |number| decimal(field(number)?, "an address").map(RemoteAddr::new);
        Ok(Self {
            pid: decimal(text[..open].trim_ascii(), "a process id")?,
            comm,
            state: field(3)?.first().copied().map_or('?', char::from),
            ppid: int(4)?,
            pgrp: int(5)?,
            session: int(6)?,
            tty_nr: int(7)?,
            tpgid: int(8)?,
            flags: unsigned(9)?,
            num_threads: unsigned(20)?,
            starttime: decimal(field(22)?, "a time")?,
            start_code: address(26)?,
            end_code: address(27)?,
            start_stack: address(28)?,
            exit_signal: int(38)?,
            processor: unsigned(39)?,
            start_data: address(45)?,
            end_data: address(46)?,
            start_brk: address(47)?,
            arg_start: address(48)?,
            arg_end: address(49)?,
            env_start: address(50)?,
            env_end: address(51)?,
            exit_code: int(52)?,
        })
    }
}

impl Proc {
    /// `/proc/PID/stat`.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn stat(&self) -> Result<Stat, ProcError> {
        Stat::parse(&self.read("stat")?).map_err(self.malformed("stat"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nasty_name() {
        let text = b"4242 (a) R 1 (x\n) S 1 4242 4242 34816 4243 4194304 100 0 0 0 5 6 0 0 20 -5 3 0 1234567 1000 200 \
            18446744073709551615 4194304 4198400 140730000000000 0 0 0 0 4096 16386 0 0 0 17 1 0 0 0 0 0 4202496 \
            4206592 4300000 140730000000100 140730000000200 140730000000300 140730000000400 0\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.pid, 4242);
        assert_eq!(stat.comm, b"a) R 1 (x\n");
        assert_eq!((stat.state, stat.ppid, stat.tty_nr, stat.tpgid), ('S', 1, 34816, 4243));
        assert_eq!((stat.num_threads, stat.starttime, stat.exit_signal), (3, 1_234_567, 17));
        assert_eq!(stat.start_code.get(), 4_194_304);
        assert_eq!(stat.start_stack.get(), 140_730_000_000_000);
        assert_eq!(stat.start_data.get(), 4_202_496);
        assert_eq!(stat.start_brk.get(), 4_300_000);
        assert_eq!(stat.env_end.get(), 140_730_000_000_400);
    }

    #[test]
    fn hostile_text() {
        for text in [&b""[..], b"1", b"1 (", b"1 )(", b"1 (a) S 1 2", b"x (a) S 1 1 1 1"] {
            assert!(Stat::parse(text).is_err(), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn our_own() {
        let stat = Proc::own().unwrap().stat().unwrap();
        assert_eq!(stat.pid, std::process::id().cast_signed());
        assert_eq!(stat.ppid, std::os::unix::process::parent_id().cast_signed());
        assert_eq!(stat.exit_signal, libc::SIGCHLD);
        assert!(stat.start_code < stat.end_code && stat.arg_start < stat.env_end);
        assert!(stat.start_data <= stat.end_data && stat.end_data <= stat.start_brk);
    }
}
