//! A thread's general registers: the 27 words of `user_regs_struct`, the regset `NT_PRSTATUS`.

use std::fmt;

use crate::addr::RemoteAddr;

/// Number of 64-bit words in [`Registers`].
pub const WORDS: usize = 27;

/// Code segment of 64-bit programs; 32-bit ones have 0x23.
pub const CODE_SEGMENT_64: u64 = 0x33;

/// `user_regs_struct` word for word, in the kernel's order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Registers([u64; WORDS]);

macro_rules! registers {
    ($($index:literal $name:ident $set:ident)*) => {
        impl Registers {
            $(
                #[doc = concat!("The register `", stringify!($name), "`.")]
                #[must_use]
                pub const fn $name(&self) -> u64 {
                    self.0[$index]
                }

                #[doc = concat!("Sets the register `", stringify!($name), "`.")]
                pub const fn $set(&mut self, value: u64) {
                    self.0[$index] = value;
                }
            )*
        }

        impl fmt::Debug for Registers {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut out = f.debug_struct("Registers");
                $(out.field(stringify!($name), &format_args!("{:#x}", self.$name()));)*
                out.finish()
            }
        }
    };
}

registers! {
    0 r15 set_r15
    1 r14 set_r14
    2 r13 set_r13
    3 r12 set_r12
    4 rbp set_rbp
    5 rbx set_rbx
    6 r11 set_r11
    7 r10 set_r10
    8 r9 set_r9
    9 r8 set_r8
    10 rax set_rax
    11 rcx set_rcx
    12 rdx set_rdx
    13 rsi set_rsi
    14 rdi set_rdi
    15 orig_rax set_orig_rax
    16 rip set_rip
    17 cs set_cs
    18 eflags set_eflags
    19 rsp set_rsp
    20 ss set_ss
    21 fs_base set_fs_base
    22 gs_base set_gs_base
    23 ds set_ds
    24 es set_es
    25 fs set_fs
    26 gs set_gs
}

impl Registers {
    /// From the kernel's words.
    #[must_use]
    pub const fn from_words(words: [u64; WORDS]) -> Self {
        Self(words)
    }

    /// The kernel's words.
    #[must_use]
    pub const fn words(&self) -> &[u64; WORDS] {
        &self.0
    }

    /// Where the thread goes on.
    #[must_use]
    pub const fn instruction(&self) -> RemoteAddr {
        RemoteAddr::new(self.rip())
    }

    /// The system call the thread is in or just left; `None` when it was stopped elsewhere.
    #[must_use]
    pub const fn system_call(&self) -> Option<u64> {
        if self.orig_rax().cast_signed() < 0 { None } else { Some(self.orig_rax()) }
    }

    /// Sets number and arguments of a system call, to be made by the `syscall` instruction at `rip`. Nothing is left to be
    /// restarted: `orig_rax` becomes -1.
    pub const fn set_call(&mut self, number: u64, args: [u64; 6]) {
        self.set_rax(number);
        self.set_orig_rax(u64::MAX);
        self.set_rdi(args[0]);
        self.set_rsi(args[1]);
        self.set_rdx(args[2]);
        self.set_r10(args[3]);
        self.set_r8(args[4]);
        self.set_r9(args[5]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_at_the_kernels_places() {
        let at = |offset: usize| {
            Registers::from_words(std::array::from_fn(|i| if i == offset / 8 { 7 } else { 0 }))
        };
        assert_eq!(at(std::mem::offset_of!(libc::user_regs_struct, rip)).rip(), 7);
        assert_eq!(at(std::mem::offset_of!(libc::user_regs_struct, orig_rax)).orig_rax(), 7);
        assert_eq!(at(std::mem::offset_of!(libc::user_regs_struct, fs_base)).fs_base(), 7);
        assert_eq!(at(std::mem::offset_of!(libc::user_regs_struct, gs)).gs(), 7);
        assert_eq!(at(std::mem::offset_of!(libc::user_regs_struct, rdi)).rdi(), 7);
        assert_eq!(size_of::<libc::user_regs_struct>(), WORDS * 8);
    }
}
