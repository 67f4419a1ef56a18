//! Signals as values: sets of them, and what the kernel tells about one.

mod held;

use std::fmt;

pub use held::HeldSignals;

/// Signals 1 to 64, as the kernel keeps masks: bit `n - 1` stands for signal `n`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SignalSet(u64);

impl SignalSet {
    /// No signal.
    pub const EMPTY: Self = Self(0);
    /// Every signal. The kernel leaves SIGKILL and SIGSTOP out of a mask by itself.
    pub const ALL: Self = Self(u64::MAX);

    /// From the kernel's bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The kernel's bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether `signal` is in the set; a number outside 1 to 64 never is.
    #[must_use]
    pub const fn contains(self, signal: i32) -> bool {
        self.0 & Self::bit(signal) != 0
    }

    /// The set with `signal` in it.
    #[must_use]
    pub const fn with(self, signal: i32) -> Self {
        Self(self.0 | Self::bit(signal))
    }

    /// The set without `signal`.
    #[must_use]
    pub const fn without(self, signal: i32) -> Self {
        Self(self.0 & !Self::bit(signal))
    }

    /// Signals in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Signals in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Signals of this set that are not in the other.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether no signal is in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The signals, in order of number.
    pub fn iter(self) -> impl Iterator<Item = i32> {
        (1..=64).filter(move |&signal| self.contains(signal))
    }

    const fn bit(signal: i32) -> u64 {
        match signal {
            1..=64 => 1 << (signal - 1),
            _ => 0,
        }
    }
}

impl fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Size of `siginfo_t`, in bytes.
pub const SIGINFO_SIZE: usize = 128;

/// `siginfo_t` as the kernel gave it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SigInfo([u8; SIGINFO_SIZE]);

impl SigInfo {
    /// From the kernel's bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; SIGINFO_SIZE]) -> Self {
        Self(bytes)
    }

    /// The kernel's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; SIGINFO_SIZE] {
        &self.0
    }

    /// `si_signo`.
    #[must_use]
    pub fn signal(&self) -> i32 {
        self.word(0)
    }

    /// `si_code`: who sent it (`SI_USER`, `SI_TKILL`, `SI_KERNEL`...).
    #[must_use]
    pub fn code(&self) -> i32 {
        self.word(8)
    }

    /// `si_pid`; only signals sent by a process have one.
    #[must_use]
    pub fn sender(&self) -> i32 {
        self.word(16)
    }

    fn word(&self, at: usize) -> i32 {
        i32::from_le_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }
}

impl fmt::Debug for SigInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigInfo {{ signal: {}, code: {}, sender: {} }}", self.signal(), self.code(), self.sender())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_follows_the_kernels_bits() {
        let set = SignalSet::EMPTY.with(1).with(64).with(0).with(65);
        assert_eq!(set.bits(), 1 | 1 << 63);
        assert_eq!(set.iter().collect::<Vec<_>>(), [1, 64]);
        assert!(!set.without(64).contains(64));
        assert_eq!(SignalSet::ALL.difference(set).intersection(set), SignalSet::EMPTY);
    }
}
