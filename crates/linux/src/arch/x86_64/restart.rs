//! System calls that a stop interrupted: how they go on.
//!
//! A stopped thread that was in a system call shows in `rax` one of the kernel's inner codes, never seen by a program. While the
//! thread stays in its stop and gets the same registers back, the kernel itself restarts the call. Whoever continues a thread in
//! another way (by `rt_sigreturn`, or in a new process) must do here what the kernel would have done.

use super::Registers;

/// Restart the call, unless a handler without `SA_RESTART` ran.
pub const ERESTARTSYS: i64 = 512;
/// Restart the call in any case.
pub const ERESTARTNOINTR: i64 = 513;
/// Restart the call unless any handler ran.
pub const ERESTARTNOHAND: i64 = 514;
/// Used inside the kernel only; listed for completeness.
pub const ENOIOCTLCMD: i64 = 515;
/// Go on through `restart_syscall` with what the kernel remembers in the thread (sleeps and their remaining time).
pub const ERESTART_RESTARTBLOCK: i64 = 516;

const SYS_IO_PGETEVENTS: i64 = 333;
/// Bytes of a `syscall` instruction.
const SYSCALL_LEN: u64 = 2;

/// Whether a stop interrupted a system call that is yet to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// No call, or one that has its final result.
    None,
    /// The same call again.
    Restart,
    /// A sleep whose remaining time only the kernel knows.
    RestartBlock,
}

impl Interruption {
    /// Reads it from a stopped thread's registers.
    #[must_use]
    pub const fn of(registers: &Registers) -> Self {
        if registers.system_call().is_none() {
            return Self::None;
        }
        match registers.rax().cast_signed().wrapping_neg() {
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => Self::Restart,
            ERESTART_RESTARTBLOCK => Self::RestartBlock,
            _ => Self::None,
        }
    }
}

/// The registers with which `rt_sigreturn` continues the thread as the kernel would: interrupted calls are made again. So is one
/// whose remaining time is lost: it may wait longer than it was asked to, which a program must expect, but no EINTR without a signal.
#[must_use]
pub const fn for_sigreturn(registers: &Registers) -> Registers {
    let mut out = match Interruption::of(registers) {
        Interruption::None => *registers,
        Interruption::Restart | Interruption::RestartBlock => again(registers),
    };
    out.set_orig_rax(u64::MAX);
    out
}

/// Registers that make a call again which ended with EINTR only because of our stop; `None` where nothing is to be put right.
///
/// Some calls never restart by themselves (signal(7)): `epoll_wait`, `semop`, reads from sockets with a timeout... A program whose
/// signal handlers did not run must not see their EINTR. `handler_due` says that a signal the program handles is pending and
/// unblocked: then its handler explains the EINTR, which stays.
#[must_use]
pub fn invisible_restart(registers: &Registers, handler_due: bool) -> Option<Registers> {
    let interrupted = registers.rax().cast_signed() == -i64::from(libc::EINTR);
    let call = registers.system_call()?;
    (interrupted && !handler_due && never_restarts(call)).then(|| again(registers))
}

/// A wait for events of an epoll instance with a time-out that a stop ended, to be made again by [`invisible_restart`]: the time-out, in
/// milliseconds.
#[must_use]
pub fn epoll_timeout(registers: &Registers) -> Option<u32> {
    let interrupted = registers.rax().cast_signed() == -i64::from(libc::EINTR);
    let call = registers.system_call()?.cast_signed();
    let waits = interrupted && [libc::SYS_epoll_wait, libc::SYS_epoll_pwait].contains(&call);
    // An int; negative is for ever.
    let timeout = u32::try_from(registers.r10() & u64::from(u32::MAX)).ok()?.cast_signed();
    u32::try_from(timeout).ok().filter(|timeout| waits && *timeout > 0)
}

/// Whether these are registers of [`invisible_restart`] that make such a call again.
#[must_use]
pub fn is_epoll_again(registers: &Registers) -> bool {
    let mut before = *registers;
    before.set_rax((-i64::from(libc::EINTR)).cast_unsigned());
    registers.system_call() == Some(registers.rax()) && epoll_timeout(&before).is_some()
}

/// Registers that make such a call for the time that was left of it, in nanoseconds: for a program that does not look at them again
/// (see [`forgets_r10`](super::forgets::forgets_r10)).
#[must_use]
pub fn with_epoll_time_left(registers: &Registers, left: u64) -> Registers {
    const NANOSECONDS_PER_MS: u64 = 1_000_000;
    let mut out = *registers;
    out.set_r10(left.div_ceil(NANOSECONDS_PER_MS).min(registers.r10() & u64::from(u32::MAX)));
    out
}

/// The stopped thread's critical section of restartable sequences: `struct rseq_cs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CriticalSection {
    /// Its first instruction.
    pub start: u64,
    /// Its length, in bytes.
    pub len: u64,
    /// Where the thread goes on when it was interrupted inside.
    pub abort: u64,
}

impl CriticalSection {
    /// From the 32 bytes of `struct rseq_cs`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Self { start: word(8), len: word(16), abort: word(24) }
    }

    /// Registers of a thread stopped inside the section: the stop interrupted it, so it aborts, as the kernel would have it the
    /// next time the thread runs. `None` outside.
    #[must_use]
    pub const fn aborted(&self, registers: &Registers) -> Option<Registers> {
        if registers.rip().wrapping_sub(self.start) >= self.len {
            return None;
        }
        let mut out = *registers;
        out.set_rip(self.abort);
        Some(out)
    }
}

const fn again(registers: &Registers) -> Registers {
    let mut out = *registers;
    out.set_rip(registers.rip().wrapping_sub(SYSCALL_LEN));
    out.set_rax(registers.orig_rax());
    out
}

/// Calls that end with EINTR after any interruption, with nothing done. Sockets with a timeout behave so in all their calls.
fn never_restarts(call: u64) -> bool {
    const CALLS: [i64; 21] = [
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_recvmmsg,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_connect,
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_io_getevents,
        SYS_IO_PGETEVENTS,
    ];
    CALLS.contains(&call.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped_in(call: i64, rax: i64) -> Registers {
        let mut registers = Registers::from_words([0; 27]);
        registers.set_rip(0x1002);
        registers.set_orig_rax(call.cast_unsigned());
        registers.set_rax(rax.cast_unsigned());
        registers
    }

    #[test]
    fn interrupted_calls_are_made_again() {
        for code in [ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND] {
            let registers = stopped_in(libc::SYS_read, -code);
            assert_eq!(Interruption::of(&registers), Interruption::Restart);
            let out = for_sigreturn(&registers);
            assert_eq!((out.rip(), out.rax()), (0x1000, libc::SYS_read.cast_unsigned()));
        }
    }

    #[test]
    fn sleeps_begin_again() {
        let registers = stopped_in(libc::SYS_nanosleep, -ERESTART_RESTARTBLOCK);
        assert_eq!(Interruption::of(&registers), Interruption::RestartBlock);
        let out = for_sigreturn(&registers);
        assert_eq!((out.rip(), out.rax()), (0x1000, libc::SYS_nanosleep.cast_unsigned()));
    }

    #[test]
    fn computing_threads_stay_as_they_are() {
        for rax in [-ERESTARTSYS, -ERESTART_RESTARTBLOCK, -4, 9] {
            let registers = stopped_in(-1, rax);
            assert_eq!(Interruption::of(&registers), Interruption::None);
            assert_eq!(for_sigreturn(&registers), registers);
            assert_eq!(invisible_restart(&registers, false), None);
        }
    }

    #[test]
    fn only_our_own_eintr_is_hidden() {
        let registers = stopped_in(libc::SYS_epoll_wait, -4);
        let out = invisible_restart(&registers, false).unwrap();
        assert_eq!((out.rip(), out.rax()), (0x1000, libc::SYS_epoll_wait.cast_unsigned()));
        assert_eq!(invisible_restart(&registers, true), None);
        assert_eq!(invisible_restart(&stopped_in(libc::SYS_epoll_wait, 1), false), None);
        assert_eq!(invisible_restart(&stopped_in(libc::SYS_nanosleep, -4), false), None);
    }

    #[test]
    fn waits_for_epoll_go_on_for_the_time_left() {
        let with = |call, rax, timeout: i32| {
            let mut registers = stopped_in(call, rax);
            registers.set_r10(i64::from(timeout).cast_unsigned());
            registers
        };
        assert_eq!(epoll_timeout(&with(libc::SYS_epoll_wait, -4, 1250)), Some(1250));
        assert_eq!(epoll_timeout(&with(libc::SYS_epoll_pwait, -4, 1)), Some(1));
        assert_eq!(epoll_timeout(&with(libc::SYS_epoll_wait, -4, -1)), None);
        assert_eq!(epoll_timeout(&with(libc::SYS_epoll_wait, -4, 0)), None);
        assert_eq!(epoll_timeout(&with(libc::SYS_epoll_wait, 1, 1250)), None);
        assert_eq!(epoll_timeout(&with(libc::SYS_poll, -4, 1250)), None);
        let registers = with(libc::SYS_epoll_wait, -4, 1250);
        assert!(!is_epoll_again(&registers) && is_epoll_again(&again(&registers)));
        assert_eq!(with_epoll_time_left(&registers, 649_000_001).r10(), 650);
        assert_eq!(with_epoll_time_left(&registers, u64::MAX).r10(), 1250);
    }

    #[test]
    fn critical_sections_abort() {
        let section = CriticalSection { start: 0x1000, len: 3, abort: 0x2000 };
        assert_eq!(section.aborted(&stopped_in(-1, 0)).unwrap().rip(), 0x2000);
        let behind = CriticalSection { start: 0x1000, len: 2, abort: 0x2000 };
        assert_eq!(behind.aborted(&stopped_in(-1, 0)), None);
    }
}
