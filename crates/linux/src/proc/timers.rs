//! `/proc/PID/timers`: POSIX timers made with `timer_create`.

use super::text::{ParseError, decimal, key_value, lines, number};
use super::{Proc, ProcError};

/// A POSIX timer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PosixTimer {
    /// Id that the process knows it by.
    pub id: i32,
    /// Signal it sends.
    pub signal: i32,
    /// Value that comes with the signal.
    pub value: u64,
    /// How it tells, in the kernel's words: `signal/pid.123`, `none/tid.5`...
    pub notify: Vec<u8>,
    /// `CLOCK_*` number; negative for clocks of processes.
    pub clock: i32,
}

impl PosixTimer {
    /// How it tells, as `timer_create` takes it: `SIGEV_*` with `SIGEV_THREAD_ID`, and the id of the process or thread that is told
    /// (0 when that has ended).
    ///
    /// # Errors
    /// When it is not as Linux writes it.
    pub fn event(&self) -> Result<(i32, i32), ParseError> {
        let malformed = || ParseError::expected("notification of a timer", &self.notify);
        let slash = self.notify.iter().position(|&byte| byte == b'/').ok_or_else(malformed)?;
        let kind = match &self.notify[..slash] {
            b"signal" => libc::SIGEV_SIGNAL,
            b"none" => libc::SIGEV_NONE,
            b"thread" => libc::SIGEV_THREAD,
            _ => return Err(malformed()),
        };
        let (to_thread, id) = match &self.notify[slash + 1..] {
            [b't', b'i', b'd', b'.', id @ ..] => (libc::SIGEV_THREAD_ID, id),
            [b'p', b'i', b'd', b'.', id @ ..] => (0, id),
            _ => return Err(malformed()),
        };
        Ok((kind | to_thread, decimal(id, "who a timer tells")?))
    }
}

/// Parses `/proc/PID/timers`.
///
/// # Errors
/// When it is not as Linux writes it.
pub fn parse_timers(text: &[u8]) -> Result<Vec<PosixTimer>, ParseError> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in lines(text) {
        let Some((key, value)) = key_value(line) else { continue };
        if key == b"ID" {
            let id = decimal(value, "id of a timer")?;
            timers.push(PosixTimer { id, signal: 0, value: 0, notify: Vec::new(), clock: 0 });
            continue;
        }
        let timer = timers.last_mut().ok_or_else(|| ParseError::expected("ID of a timer", line))?;
        match key {
            b"signal" => {
                let slash = value.iter().position(|&byte| byte == b'/');
                let slash = slash.ok_or_else(|| ParseError::expected("signal/value", value))?;
                timer.signal = decimal(&value[..slash], "signal of a timer")?;
                // A pointer: printed with or without 0x, all zeros or "(null)" for none.
                let pointer = value[slash + 1..].strip_prefix(b"0x").unwrap_or(&value[slash + 1..]);
                timer.value = if pointer == b"(null)" { 0 } else { number(pointer, 16, "value of a timer")? };
            }
            b"notify" => timer.notify = value.to_vec(),
            b"ClockID" => timer.clock = decimal(value, "clock of a timer")?,
            _ => {}
        }
    }
    Ok(timers)
}

impl Proc {
    /// The POSIX timers of the process.
    ///
    /// # Errors
    /// [`ProcError::Missing`] when the kernel was built without `CONFIG_CHECKPOINT_RESTORE`; otherwise as [`ProcError`] tells apart.
    pub fn timers(&self) -> Result<Vec<PosixTimer>, ProcError> {
        parse_timers(&self.read("timers")?).map_err(self.malformed("timers"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample() {
        let text = b"ID: 0\nsignal: 14/000000000000002a\nnotify: signal/pid.77\nClockID: 1\n\
            ID: 3\nsignal: 0/(null)\nnotify: none/tid.78\nClockID: -6\n";
        let timers = parse_timers(text).unwrap();
        assert_eq!(timers.len(), 2);
        assert_eq!((timers[0].id, timers[0].signal, timers[0].value, timers[0].clock), (0, 14, 42, 1));
        assert_eq!(timers[0].notify, b"signal/pid.77");
        assert_eq!((timers[1].id, timers[1].value, timers[1].clock), (3, 0, -6));
        assert_eq!(timers[0].event().unwrap(), (libc::SIGEV_SIGNAL, 77));
        assert_eq!(timers[1].event().unwrap(), (libc::SIGEV_NONE | libc::SIGEV_THREAD_ID, 78));
        assert!(PosixTimer { notify: b"signal/uid.1".to_vec(), ..timers[0].clone() }.event().is_err());
        assert!(parse_timers(b"signal: 1/0\n").is_err());
        assert!(parse_timers(b"ID: 0\nsignal: 1\n").is_err());
        assert_eq!(parse_timers(b"").unwrap(), []);
    }

    #[test]
    fn we_have_none() {
        assert_eq!(Proc::own().unwrap().timers().unwrap(), []);
    }
}
