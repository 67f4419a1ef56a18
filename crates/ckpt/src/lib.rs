//! Checkpoints of a program's own wish: the functions of `ckpt.h` for programs in Rust.
//!
//! The library itself is no part of this crate: it is linked in (`-C link-arg=libckpt.a -C link-arg=cmain.o`) or preloaded
//! (`LD_PRELOAD=libckpt.so`). Without it the program runs as well, and every function says that it is not there ([`Error::is_absent`]).
//!
//! ```no_run
//! use rewake_ckpt::Life;
//!
//! let mut sum = 0u64;
//! for round in 0..1_000_000u64 {
//!     sum += round;
//!     if round % 100_000 == 0 {
//!         match rewake_ckpt::here() {
//!             Ok(Life::Saved) => eprintln!("round {round} is on the disk"),
//!             Ok(Life::Woken) => eprintln!("goes on in round {round}"),
//!             Err(error) => eprintln!("no checkpoint: {error}"),
//!         }
//!     }
//! }
//! println!("{sum}");
//! ```
//!
//! # Safety
//! Unsafe here: calls of the library's C functions as `ckpt.h` says; their addresses, which are null where there is no library.

#![allow(unsafe_code, reason = "see Safety above")]

mod address;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::marker::PhantomData;
use std::mem::transmute;

/// `errno.h`
const ENOSYS: c_int = 38;

/// Which life this is, after a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The checkpoint was made, and the program goes on.
    Saved,
    /// This is a process woken from it.
    Woken,
}

/// Why a call failed. The program goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    number: c_int,
    text: String,
}

impl Error {
    /// The error number, as in `errno.h`; which one means what is said in `ckpt.h`.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.number
    }

    /// The library is not there, or not active.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.number == ENOSYS
    }

    fn of(result: c_int) -> Self {
        let text = address::ckpt_error().map_or_else(
            || "the program has no libckpt: link it in or preload it".to_owned(),
            |address| {
                // SAFETY: the library's function of this name; its text is valid until the next call of this thread.
                let text = unsafe {
                    CStr::from_ptr(transmute::<usize, extern "C" fn() -> *const c_char>(address)())
                };
                text.to_string_lossy().into_owned()
            },
        );
        Self { number: -result, text }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (error {})", self.text, self.number)
    }
}

impl std::error::Error for Error {}

/// Calls a function of the library that takes nothing.
fn plain(address: Option<usize>) -> c_int {
    // SAFETY: the library's functions that are called so take nothing and return a number.
    address.map_or(-ENOSYS, |address| unsafe { transmute::<usize, extern "C" fn() -> c_int>(address)() })
}

fn done(result: c_int) -> Result<(), Error> {
    if result < 0 { Err(Error::of(result)) } else { Ok(()) }
}

/// Whether the library is in this program.
#[must_use]
pub fn is_there() -> bool {
    address::ckpt_here().is_some()
}

/// Makes a checkpoint now; returns when the image is complete and durable, and once more in every process woken from it.
///
/// # Errors
/// There is no image; `ckpt.h` lists the numbers.
pub fn here() -> Result<Life, Error> {
    match plain(address::ckpt_here()) {
        0 => Ok(Life::Saved),
        1 => Ok(Life::Woken),
        error => Err(Error::of(error)),
    }
}

fn ranged(address: Option<usize>, start: *mut u8, length: usize) -> Result<(), Error> {
    let Some(address) = address else { return Err(Error::of(-ENOSYS)) };
    // SAFETY: the library's functions that are called so take an address and a length; they do not touch what is there.
    done(unsafe {
        transmute::<usize, extern "C" fn(*mut c_void, usize) -> c_int>(address)(start.cast(), length)
    })
}

/// Leaves the pages that lie wholly in these bytes out of images.
///
/// # Safety
/// Whoever reads them in another life finds zeros, or what the file has where they are of a private mapping of a file: nothing may rely
/// on what was there, nor on its being a valid value of its type. They are [included](include) again before they are given back.
///
/// # Errors
/// `ckpt.h` lists the numbers.
pub unsafe fn exclude(start: *mut u8, length: usize) -> Result<(), Error> {
    ranged(address::ckpt_exclude(), start, length)
}

/// Keeps all pages again that these bytes touch.
///
/// # Errors
/// `ckpt.h` lists the numbers.
pub fn include(start: *mut u8, length: usize) -> Result<(), Error> {
    ranged(address::ckpt_include(), start, length)
}

/// While it is there no checkpoint is made; one that is asked for meanwhile is made when the last thread leaves its last section.
#[derive(Debug)]
#[must_use = "checkpoints are made again when it is dropped"]
pub struct Section {
    /// It belongs to its thread.
    of_this_thread: PhantomData<*const ()>,
}

/// Begins a section without checkpoints; without the library it is one anyway.
///
/// ```
/// let shared = std::sync::Mutex::new(1);
/// {
///     let _section = rewake_ckpt::section();
///     // What begins here ends in the same process.
///     *shared.lock().unwrap() += 1;
/// }
/// ```
pub fn section() -> Section {
    // Fails only where there is no library, or as many sections in one another as numbers.
    plain(address::ckpt_disable());
    Section { of_this_thread: PhantomData }
}

impl Drop for Section {
    fn drop(&mut self) {
        plain(address::ckpt_enable());
    }
}

/// Has a function called before each checkpoint, for good. Threads, order and what it may do: see `ckpt_on_checkpoint` in `ckpt.h`.
///
/// # Errors
/// `ckpt.h` lists the numbers.
pub fn on_checkpoint<F: Fn() + Send + Sync + 'static>(function: F) -> Result<(), Error> {
    extern "C" fn call<F: Fn()>(function: *mut c_void) {
        // SAFETY: the box below, which stays.
        unsafe { (*function.cast::<F>())() };
    }
    type Add = extern "C" fn(extern "C" fn(*mut c_void), *mut c_void) -> c_int;
    let Some(address) = address::ckpt_on_checkpoint() else { return Err(Error::of(-ENOSYS)) };
    let argument = Box::into_raw(Box::new(function)).cast();
    // SAFETY: the library's function of this name has this type.
    done(unsafe { transmute::<usize, Add>(address)(call::<F>, argument) })
}

/// Has a function called after each checkpoint, and after each that failed, for good; see `ckpt_on_resume` in `ckpt.h`.
///
/// # Errors
/// `ckpt.h` lists the numbers.
pub fn on_resume<F: Fn(Result<Life, Error>) + Send + Sync + 'static>(function: F) -> Result<(), Error> {
    extern "C" fn call<F: Fn(Result<Life, Error>)>(how: c_int, function: *mut c_void) {
        let how = match how {
            0 => Ok(Life::Saved),
            1 => Ok(Life::Woken),
            error => Err(Error::of(error)),
        };
        // SAFETY: the box below, which stays.
        unsafe { (*function.cast::<F>())(how) };
    }
    type Add = extern "C" fn(extern "C" fn(c_int, *mut c_void), *mut c_void) -> c_int;
    let Some(address) = address::ckpt_on_resume() else { return Err(Error::of(-ENOSYS)) };
    let argument = Box::into_raw(Box::new(function)).cast();
    // SAFETY: the library's function of this name has this type.
    done(unsafe { transmute::<usize, Add>(address)(call::<F>, argument) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_library_everything_says_so() {
        assert!(!is_there());
        let error = here().unwrap_err();
        assert!(error.is_absent() && error.to_string().contains("preload"), "{error}");
        assert!(include(std::ptr::null_mut(), 1).unwrap_err().is_absent());
        assert!(on_checkpoint(|| ()).unwrap_err().is_absent());
        assert!(on_resume(|_| ()).unwrap_err().is_absent());
        drop(section());
    }
}
