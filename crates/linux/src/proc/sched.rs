//! `/proc/PID/sched`: when a thread last ran.

use super::text::{ParseError, decimal, key_value, lines};
use super::{Proc, ProcError};

const NANOSECONDS_PER_MS: u64 = 1_000_000;
const FRACTION_DIGITS: usize = 6;

/// What the scheduler remembers of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sched {
    /// When the thread's time was last accounted, in nanoseconds of its CPU's scheduler clock: for a thread that sleeps, when it
    /// fell asleep. Clocks of CPUs differ by the time a hypervisor took from them.
    pub accounted_ns: u64,
    /// How often it gave its CPU away to wait for something.
    pub voluntary_switches: u64,
}

impl Sched {
    /// Parses the text of the file.
    ///
    /// # Errors
    /// When it is not as Linux writes it.
    pub fn parse(text: &[u8]) -> Result<Self, ParseError> {
        let (mut accounted_ns, mut voluntary_switches) = (None, None);
        for line in lines(text) {
            let Some((key, value)) = key_value(line) else { continue };
            match key.trim_ascii() {
                b"se.exec_start" => accounted_ns = Some(milliseconds(value)?),
                b"nr_voluntary_switches" => voluntary_switches = Some(decimal(value, "number of switches")?),
                _ => {}
            }
        }
        let missing = |what| ParseError::expected(what, text);
        Ok(Self {
            accounted_ns: accounted_ns.ok_or_else(|| missing("se.exec_start"))?,
            voluntary_switches: voluntary_switches.ok_or_else(|| missing("nr_voluntary_switches"))?,
        })
    }
}

/// Nanoseconds of `4331939.553224`.
fn milliseconds(value: &[u8]) -> Result<u64, ParseError> {
    let point = value.iter().position(|&byte| byte == b'.');
    let point = point.ok_or_else(|| ParseError::expected("milliseconds", value))?;
    let fraction = &value[point + 1..];
    if fraction.len() != FRACTION_DIGITS {
        return Err(ParseError::expected("six digits behind the point", value));
    }
    let whole: u64 = decimal(&value[..point], "milliseconds")?;
    let nanoseconds: u64 = decimal(fraction, "nanoseconds")?;
    let sum = whole.checked_mul(NANOSECONDS_PER_MS).and_then(|whole| whole.checked_add(nanoseconds));
    sum.ok_or_else(|| ParseError::expected("milliseconds", value))
}

impl Proc {
    /// What the scheduler remembers of this thread.
    ///
    /// # Errors
    /// [`ProcError::Missing`] where the kernel was built without `CONFIG_SCHED_DEBUG`; otherwise as [`ProcError`] tells apart.
    pub fn sched(&self) -> Result<Sched, ProcError> {
        Sched::parse(&self.read("sched")?).map_err(self.malformed("sched"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_text_is_read() {
        let text = b"sleep (4711, #threads: 1)\n-----\nse.exec_start                                :       4331939.553224\nnr_voluntary_switches                        :                    3\n";
        let sched = Sched::parse(text).expect("a text of the kernel's");
        assert_eq!(sched, Sched { accounted_ns: 4_331_939_553_224, voluntary_switches: 3 });
        assert!(Sched::parse(b"se.exec_start : 12\n").is_err());
        assert!(Sched::parse(b"").is_err());
    }
}
