//! `/proc/PID/limits`: the resource limits of a process.

use super::text::{ParseError, decimal, lines, words};
use super::{Proc, ProcError};

/// One resource limit, in the units of getrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// `RLIMIT_*` number.
    pub resource: u32,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is unlimited.
    pub hard: u64,
}

/// What each `RLIMIT_*` is called in `/proc/PID/limits`; the place is the number.
pub const RESOURCES: [&str; 16] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// Parses `/proc/PID/limits`; the result is in order of `RLIMIT_*` number.
///
/// # Errors
/// When one of the 16 limits is missing or not as Linux writes it.
pub fn parse_limits(text: &[u8]) -> Result<[Limit; 16], ParseError> {
    let mut limits = [Limit { resource: 0, soft: 0, hard: 0 }; 16];
    for ((resource, name), limit) in (0..).zip(RESOURCES).zip(&mut limits) {
        let rest = lines(text)
            .find_map(|line| line.strip_prefix(name.as_bytes()))
            .ok_or_else(|| ParseError(format!("no \"{name}\"")))?;
        let mut values = words(rest).map(value);
        let mut next = || values.next().unwrap_or_else(|| Err(ParseError::expected("two limits", rest)));
        *limit = Limit { resource, soft: next()?, hard: next()? };
    }
    Ok(limits)
}

fn value(word: &[u8]) -> Result<u64, ParseError> {
    if word == b"unlimited" { Ok(u64::MAX) } else { decimal(word, "a limit") }
}

impl Proc {
    /// The resource limits, in order of `RLIMIT_*` number.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn limits(&self) -> Result<[Limit; 16], ProcError> {
        parse_limits(&self.read("limits")?).map_err(self.malformed("limits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_agree_with_the_system_call() {
        let limits = Proc::own().unwrap().limits().unwrap();
        for (number, limit) in (0..).zip(limits) {
            assert_eq!(limit.resource, number);
        }
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(limits[7].soft, files.current.unwrap_or(u64::MAX));
        assert_eq!(limits[7].hard, files.maximum.unwrap_or(u64::MAX));
        let stack = rustix::process::getrlimit(rustix::process::Resource::Stack);
        assert_eq!(limits[3].soft, stack.current.unwrap_or(u64::MAX));
    }

    #[test]
    fn sample() {
        let own = Proc::own().unwrap().read("limits").unwrap();
        let text = String::from_utf8(own).unwrap();
        let without = text.replace("Max nice priority", "Max something");
        assert!(parse_limits(without.as_bytes()).is_err());
        let text = RESOURCES
            .map(|name| format!("{name:<26}unlimited            7            us        \n"))
            .concat();
        let limits = parse_limits(text.as_bytes()).unwrap();
        assert_eq!(limits[15], Limit { resource: 15, soft: u64::MAX, hard: 7 });
        assert!(parse_limits(text.replace("unlimited            7", "8").as_bytes()).is_err());
    }
}
