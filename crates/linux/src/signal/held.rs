//! Signals held back while something must be finished or undone.
//!
//! # Safety
//! The calls change the mask of the calling thread; their sets are 8 bytes on our stack, as their last argument says.
#![allow(unsafe_code, reason = "rustix offers no signal masks")]

use super::SignalSet;

/// Signals that are held back for the calling thread until this is dropped; those that came meanwhile then act.
#[derive(Debug)]
pub struct HeldSignals {
    before: SignalSet,
    held: SignalSet,
}

impl HeldSignals {
    /// Holds these signals back.
    #[must_use]
    pub fn hold(signals: SignalSet) -> Self {
        let mut before = 0u64;
        let set = signals.bits();
        // SAFETY: see the head of the module.
        unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const set, &raw mut before, 8)
        };
        let before = SignalSet::from_bits(before);
        Self { before, held: signals.difference(before) }
    }

    /// One of them that came meanwhile.
    #[must_use]
    pub fn came(&self) -> Option<i32> {
        let mut pending = 0u64;
        // SAFETY: see the head of the module.
        unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut pending, 8) };
        SignalSet::from_bits(pending).intersection(self.held).iter().next()
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        let (set, none) = (self.before.bits(), std::ptr::null_mut::<u64>());
        // SAFETY: see the head of the module.
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const set, none, 8) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_waits() {
        let held = HeldSignals::hold(SignalSet::EMPTY.with(libc::SIGURG));
        assert_eq!(held.came(), None);
        // SAFETY: a number; the signal is held back, and ignored otherwise.
        assert_eq!(unsafe { libc::raise(libc::SIGURG) }, 0);
        assert_eq!(held.came(), Some(libc::SIGURG));
    }
}
