//! Calls that the capture interrupted, and how the resumed thread goes on with them.
//!
//! Most go on by themselves: the thread gets the registers it had, error number and all, and the kernel restarts the call as it
//! would have after the interruption. Not so -ERESTART_RESTARTBLOCK: what it restarts from is kept in the kernel and is gone.
//! A sleep that told its program the remaining time sleeps just that; every other call begins again.

use rewake_image::records::Thread;
use rewake_linux::addr::RemoteAddr;
use rewake_linux::arch::x86_64::{Interruption, Registers};
use rewake_linux::program::Sysno;

const TIMER_ABSTIME: u64 = 1;
/// Bytes of a `syscall` instruction.
const SYSCALL_LEN: u64 = 2;

/// How a thread goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GoOn {
    /// With the registers it had; the kernel restarts what is to be restarted.
    AsItWas,
    /// In a sleep made anew for the time that was left.
    Sleeping(Sleep),
    /// By calling again from the beginning.
    Again,
}

/// A sleep for the time that was left, which the kernel wrote where the program wanted to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sleep {
    /// `nanosleep` or `clock_nanosleep`.
    pub call: Sysno,
    /// Clock and flags, for `clock_nanosleep`.
    pub clock: u64,
    /// Where the remaining time is, and is to be written again.
    pub remaining: RemoteAddr,
}

/// How `thread` goes on.
#[must_use]
pub fn go_on(thread: &Thread) -> GoOn {
    let registers = registers_of(thread);
    if Interruption::of(&registers) != Interruption::RestartBlock {
        return GoOn::AsItWas;
    }
    let (clock, remaining, call) = match registers.orig_rax() {
        nr if nr == Sysno::nanosleep.number() => (0, registers.rsi(), Sysno::nanosleep),
        nr if nr == Sysno::clock_nanosleep.number() && registers.rsi() & TIMER_ABSTIME == 0 => {
            (registers.rdi(), registers.r10(), Sysno::clock_nanosleep)
        }
        _ => return GoOn::Again,
    };
    if remaining == 0 {
        return GoOn::Again;
    }
    GoOn::Sleeping(Sleep { call, clock, remaining: RemoteAddr::new(remaining) })
}

/// A thread's registers; an image that decodes has all of them.
#[must_use]
pub fn registers_of(thread: &Thread) -> Registers {
    Registers::from_words(std::array::from_fn(|at| thread.registers.get(at).copied().unwrap_or_default()))
}

/// Registers that make the call again from its beginning.
#[must_use]
pub fn again(registers: &Registers) -> Registers {
    let mut out = *registers;
    out.set_rax(registers.orig_rax());
    out.set_orig_rax(u64::MAX);
    out.set_rip(registers.rip().wrapping_sub(SYSCALL_LEN));
    out
}

/// Whether these registers are those of a thread interrupted in the sleep made for it.
#[must_use]
pub fn is_asleep(registers: &Registers, sleep: &Sleep) -> bool {
    Interruption::of(registers) == Interruption::RestartBlock && registers.orig_rax() == sleep.call.number()
}

/// Registers of a thread whose time was over before it could be interrupted in its sleep.
#[must_use]
pub fn has_slept(registers: &Registers) -> Registers {
    let mut out = *registers;
    out.set_rax(0);
    out.set_orig_rax(u64::MAX);
    out
}

#[cfg(test)]
mod tests {
    use rewake_linux::arch::x86_64::regs::WORDS;

    use super::*;

    fn thread(rax: i64, orig_rax: u64, rdi: u64, rsi: u64, r10: u64) -> Thread {
        let mut registers = Registers::from_words([0; WORDS]);
        registers.set_call(0, [rdi, rsi, 0, r10, 0, 0]);
        registers.set_rax(rax.cast_unsigned());
        registers.set_orig_rax(orig_rax);
        registers.set_rip(0x1000);
        Thread { registers: registers.words().to_vec(), ..Thread::default() }
    }

    #[test]
    fn sleeps_with_the_time_left_go_on_with_it() {
        let GoOn::Sleeping(sleep) = go_on(&thread(-516, 35, 0x10, 0x20, 0)) else { panic!("a sleep") };
        assert_eq!((sleep.call, sleep.remaining), (Sysno::nanosleep, RemoteAddr::new(0x20)));
        let GoOn::Sleeping(sleep) = go_on(&thread(-516, 230, 1, 0, 0x30)) else { panic!("a sleep") };
        assert_eq!(
            (sleep.call, sleep.clock, sleep.remaining),
            (Sysno::clock_nanosleep, 1, RemoteAddr::new(0x30))
        );
    }

    #[test]
    fn others_begin_again_or_go_on_as_they_were() {
        assert_eq!(go_on(&thread(-516, 35, 0x10, 0, 0)), GoOn::Again);
        assert_eq!(go_on(&thread(-516, 202, 0x10, 0, 0)), GoOn::Again);
        assert_eq!(go_on(&thread(-512, 0, 3, 0x20, 0)), GoOn::AsItWas);
        let again = again(&registers_of(&thread(-516, 7, 0, 0, 0)));
        assert_eq!((again.rax(), again.rip(), again.system_call()), (7, 0xffe, None));
    }
}
