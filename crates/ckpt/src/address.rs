//! Addresses of the library's functions, as linker and loader find them: weak names, which lead nowhere where there is no library.
//!
//! # Safety
//! Unsafe here: a word of the table that the loader fills in is read.

#![allow(unsafe_code, reason = "see Safety above")]

/// For each name a function that tells its address.
macro_rules! weak {
    ($($name:ident)*) => {$(
        /// The function of this name, if it is there.
        pub fn $name() -> Option<usize> {
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            {
                let address: usize;
                // SAFETY: a word of the loader's table, which is there whether the name was found or not.
                unsafe {
                    core::arch::asm!(
                        concat!(".weak ", stringify!($name)),
                        concat!("mov {}, [rip + ", stringify!($name), "@GOTPCREL]"),
                        out(reg) address,
                        options(nostack, readonly, preserves_flags),
                    );
                }
                (address != 0).then_some(address)
            }
            #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
            None
        }
    )*};
}

weak! {
    ckpt_here ckpt_exclude ckpt_include ckpt_disable ckpt_enable ckpt_on_checkpoint ckpt_on_resume ckpt_error
}
