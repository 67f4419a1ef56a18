//! Calls that the capture interrupted, and how the resumed thread goes on with them.
//!
//! Most go on by themselves: the thread gets the registers it had, error number and all, and the kernel restarts the call as it
//! would have after the interruption. Not so -ERESTART_RESTARTBLOCK: what it restarts from is kept in the kernel and is gone. Where
//! the image tells the time that was left, the thread makes the call once more for just that, and is interrupted in it: then the
//! kernel has again what it needs, down to the end of the time-out. Where it does not, the call begins again.

use rewake_image::records::Thread;
use rewake_linux::arch::x86_64::{Interruption, Registers};
use rewake_linux::program::Sysno;

const TIMER_ABSTIME: u64 = 1;
const FUTEX_COMMAND: u64 = 0x7f;
/// The only wait of futex(2) whose time-out is relative.
const FUTEX_WAIT: u64 = 0;
const NANOSECONDS: u64 = 1_000_000_000;
const NANOSECONDS_PER_MS: u64 = 1_000_000;
/// Bytes of a `syscall` instruction.
const SYSCALL_LEN: u64 = 2;

/// How a thread goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GoOn {
    /// With the registers it had; the kernel restarts what is to be restarted.
    AsItWas,
    /// In the call made anew for the time that was left.
    Waiting(Wait),
    /// By calling again from the beginning.
    Again,
}

/// An argument of a call made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// As the program gave it.
    Same(u64),
    /// The address of a `timespec` with the time that was left.
    TimeLeft,
}

/// A call made anew for the time that was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The call.
    pub call: Sysno,
    /// Its arguments.
    pub args: [Argument; 6],
    /// Seconds and nanoseconds that were left.
    pub left: [u64; 2],
}

/// How `thread` goes on.
#[must_use]
pub fn go_on(thread: &Thread) -> GoOn {
    let registers = registers_of(thread);
    if Interruption::of(&registers) != Interruption::RestartBlock {
        return GoOn::AsItWas;
    }
    let Some(left) = thread.remaining_ns else { return GoOn::Again };
    wait(&registers, left).map_or(GoOn::Again, GoOn::Waiting)
}

fn wait(registers: &Registers, left: u64) -> Option<Wait> {
    let [a, b, c, d, e, f] =
        [registers.rdi(), registers.rsi(), registers.rdx(), registers.r10(), registers.r8(), registers.r9()]
            .map(Argument::Same);
    let number = registers.orig_rax();
    let calls = [Sysno::nanosleep, Sysno::clock_nanosleep, Sysno::poll, Sysno::futex];
    let call = calls.into_iter().find(|call| call.number() == number)?;
    let args = match call {
        Sysno::nanosleep => [Argument::TimeLeft, b, c, d, e, f],
        Sysno::clock_nanosleep if registers.rsi() & TIMER_ABSTIME == 0 => [a, b, Argument::TimeLeft, d, e, f],
        Sysno::poll => [a, b, Argument::Same(left.div_ceil(NANOSECONDS_PER_MS)), d, e, f],
        Sysno::futex if registers.rsi() & FUTEX_COMMAND == FUTEX_WAIT => [a, b, c, Argument::TimeLeft, e, f],
        _ => return None,
    };
    Some(Wait { call, args, left: [left / NANOSECONDS, left % NANOSECONDS] })
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

/// Whether these registers are those of a thread interrupted in the call made for it.
#[must_use]
pub fn is_waiting(registers: &Registers, wait: &Wait) -> bool {
    Interruption::of(registers) == Interruption::RestartBlock && registers.orig_rax() == wait.call.number()
}

/// Registers of a thread whose call came to its end, with this result, before the thread could be interrupted in it.
#[must_use]
pub fn has_returned(registers: &Registers, result: u64) -> Registers {
    let mut out = *registers;
    out.set_rax(result);
    out.set_orig_rax(u64::MAX);
    out
}

#[cfg(test)]
mod tests {
    use rewake_linux::arch::x86_64::regs::WORDS;

    use super::*;

    fn thread(rax: i64, call: Sysno, args: [u64; 6], remaining_ns: Option<u64>) -> Thread {
        let mut registers = Registers::from_words([0; WORDS]);
        registers.set_call(0, args);
        registers.set_rax(rax.cast_unsigned());
        registers.set_orig_rax(call.number());
        registers.set_rip(0x1000);
        Thread { registers: registers.words().to_vec(), remaining_ns, ..Thread::default() }
    }

    fn waits(call: Sysno, args: [u64; 6], left: u64) -> Wait {
        match go_on(&thread(-516, call, args, Some(left))) {
            GoOn::Waiting(wait) => wait,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn waits_go_on_for_the_time_left() {
        let same = Argument::Same;
        let wait = waits(Sysno::nanosleep, [1, 2, 0, 0, 0, 0], 1_500_000_000);
        assert_eq!((wait.args[0], wait.args[1], wait.left), (Argument::TimeLeft, same(2), [1, 500_000_000]));
        let wait = waits(Sysno::clock_nanosleep, [1, 0, 3, 4, 0, 0], 7);
        assert_eq!((wait.args[0], wait.args[2], wait.args[3]), (same(1), Argument::TimeLeft, same(4)));
        let wait = waits(Sysno::poll, [1, 2, 9999, 0, 0, 0], 1_000_001);
        assert_eq!(wait.args[..3], [same(1), same(2), same(2)]);
        let wait = waits(Sysno::futex, [1, 128, 3, 4, 5, 6], 7);
        assert_eq!(wait.args, [same(1), same(128), same(3), Argument::TimeLeft, same(5), same(6)]);
    }

    #[test]
    fn others_begin_again_or_go_on_as_they_were() {
        assert_eq!(go_on(&thread(-516, Sysno::nanosleep, [1; 6], None)), GoOn::Again);
        assert_eq!(go_on(&thread(-516, Sysno::clock_nanosleep, [1; 6], Some(5))), GoOn::Again);
        assert_eq!(go_on(&thread(-516, Sysno::futex, [1, 128 | 9, 1, 1, 1, 1], Some(5))), GoOn::Again);
        assert_eq!(go_on(&thread(-516, Sysno::munmap, [1; 6], Some(5))), GoOn::Again);
        assert_eq!(go_on(&thread(-512, Sysno::read, [1; 6], None)), GoOn::AsItWas);
        let again = again(&registers_of(&thread(-516, Sysno::poll, [0; 6], None)));
        assert_eq!((again.rax(), again.rip(), again.system_call()), (7, 0xffe, None));
    }
}
