//! `/proc/PID/timens_offsets`: how far a process's clocks are from the host's.

use std::fmt;

use super::text::{ParseError, decimal, lines, words};
use super::{Proc, ProcError};

const NANOSECONDS: i64 = 1_000_000_000;

/// What has to be added to the host's clocks, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClockOffsets {
    /// `CLOCK_MONOTONIC` and its kin.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME` and its kin.
    pub boottime: i64,
}

impl ClockOffsets {
    /// Parses the text of the file.
    ///
    /// # Errors
    /// When it is not as Linux writes it.
    pub fn parse(text: &[u8]) -> Result<Self, ParseError> {
        let mut offsets = Self::default();
        for line in lines(text) {
            let mut words = words(line);
            let (Some(name), Some(seconds), Some(rest)) = (words.next(), words.next(), words.next()) else {
                return Err(ParseError::expected("a clock, seconds and nanoseconds", line));
            };
            let (seconds, rest): (i64, i64) = (decimal(seconds, "seconds")?, decimal(rest, "nanoseconds")?);
            let offset = seconds
                .checked_mul(NANOSECONDS)
                .and_then(|whole| whole.checked_add(rest))
                .ok_or_else(|| ParseError::expected("an offset", line))?;
            match name {
                b"monotonic" => offsets.monotonic = offset,
                b"boottime" => offsets.boottime = offset,
                _ => {}
            }
        }
        Ok(offsets)
    }
}

impl fmt::Display for ClockOffsets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, offset) in [("monotonic", self.monotonic), ("boottime", self.boottime)] {
            let (seconds, rest) = (offset.div_euclid(NANOSECONDS), offset.rem_euclid(NANOSECONDS));
            writeln!(formatter, "{name} {seconds} {rest}")?;
        }
        Ok(())
    }
}

impl Proc {
    /// How far this process's clocks are from the host's; zero on kernels without time namespaces. The kernel tells of the namespace its
    /// children will be in.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn clock_offsets(&self) -> Result<ClockOffsets, ProcError> {
        match self.read("timens_offsets") {
            Ok(text) => ClockOffsets::parse(&text).map_err(self.malformed("timens_offsets")),
            Err(error) if error.is_missing() => Ok(ClockOffsets::default()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample() {
        let text = b"monotonic           5         7\nboottime          -2 500000000\n";
        let offsets = ClockOffsets::parse(text).unwrap();
        assert_eq!(offsets, ClockOffsets { monotonic: 5_000_000_007, boottime: -1_500_000_000 });
        assert_eq!(offsets.to_string(), "monotonic 5 7\nboottime -2 500000000\n");
        assert_eq!(ClockOffsets::parse(offsets.to_string().as_bytes()).unwrap(), offsets);
        assert!(ClockOffsets::parse(b"monotonic x 0\n").is_err());
        assert!(ClockOffsets::parse(b"monotonic 99999999999999 0\n").is_err());
        assert!(Proc::own().unwrap().clock_offsets().is_ok());
    }
}
