//! Functions of libc's by which a process becomes another program: not in the midst of a checkpoint.
//!
//! A thread that was asked to stand still and becomes another program instead would take that request along, and the new program would
//! end by it. So the thread waits for the end of a checkpoint that is being made, and none begins before it has succeeded or failed.
//! Children are left alone: those made by vfork have the memory of the program itself.
//!
//! # Safety
//! Unsafe here: functions of libc's names and types; what callers give is what they would have to give libc. The lists of three of them
//! are their own arguments, laid one behind the other.

#![allow(unsafe_code, reason = "see Safety above")]

use core::ffi::{c_char, c_int};

use crate::api::sections;
use crate::home;
use crate::overrides::libcs;

type Text = *const c_char;
type List = *const *const c_char;

unsafe extern "C" {
    static environ: List;
}

/// Calls while no checkpoint is made. Comes back only when it has failed.
fn apart(call: impl FnOnce() -> c_int) -> c_int {
    if !home::is_home() {
        return call();
    }
    sections::enter();
    let result = call();
    // SAFETY: this thread's errno.
    let error = unsafe { *libc::__errno_location() };
    sections::leave();
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = error };
    result
}

/// See execve(2).
///
/// # Safety
/// As there.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn execve(path: Text, list: List, environment: List) -> c_int {
    // SAFETY: the caller's; libc's function of this name has this type.
    apart(|| unsafe { libcs!(execve: fn(Text, List, List) -> c_int)(path, list, environment) })
}

/// See execveat(2).
///
/// # Safety
/// As there.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn execveat(
    folder: c_int,
    path: Text,
    list: List,
    environment: List,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's; libc's function of this name has this type.
    apart(|| unsafe {
        libcs!(execveat: fn(c_int, Text, List, List, c_int) -> c_int)(folder, path, list, environment, flags)
    })
}

/// See fexecve(3).
///
/// # Safety
/// As there.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn fexecve(fd: c_int, list: List, environment: List) -> c_int {
    // SAFETY: the caller's; libc's function of this name has this type.
    apart(|| unsafe { libcs!(fexecve: fn(c_int, List, List) -> c_int)(fd, list, environment) })
}

/// See execvpe(3).
///
/// # Safety
/// As there.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn execvpe(name: Text, list: List, environment: List) -> c_int {
    // SAFETY: the caller's; libc's function of this name has this type.
    apart(|| unsafe { libcs!(execvpe: fn(Text, List, List) -> c_int)(name, list, environment) })
}

/// See execv(3).
///
/// # Safety
/// As there.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn execv(path: Text, list: List) -> c_int {
    // SAFETY: the caller's.
    unsafe { execve(path, list, environ) }
}

/// See execvp(3).
///
/// # Safety
/// As there.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn execvp(name: Text, list: List) -> c_int {
    // SAFETY: the caller's.
    unsafe { execvpe(name, list, environ) }
}

/// The environment comes behind the end of the list.
#[cfg(feature = "standalone")]
unsafe extern "C" fn with_environment(path: Text, list: List) -> c_int {
    let mut end = list;
    // SAFETY: the caller of execle(3) gives a null pointer at the end of the list, and the environment after it.
    unsafe {
        while !end.read().is_null() {
            end = end.add(1);
        }
        execve(path, list, end.add(1).cast::<List>().read())
    }
}

/// Functions whose list is their arguments: those in registers are laid before those on the stack, where the return address was.
#[cfg(feature = "standalone")]
macro_rules! listed {
    ($name:literal, $function:ident) => {
        core::arch::global_asm!(
            ".pushsection .text.rewake_ckpt, \"ax\"",
            concat!(".globl ", $name),
            concat!(".type ", $name, ", @function"),
            concat!($name, ":"),
            "pop r11",
            "push r9",
            "push r8",
            "push rcx",
            "push rdx",
            "push rsi",
            "mov rsi, rsp",
            "push r11",
            "call {function}",
            "pop r11",
            "add rsp, 40",
            "push r11",
            "ret",
            ".popsection",
            function = sym $function,
        );
    };
}

#[cfg(feature = "standalone")]
listed!("execl", execv);
#[cfg(feature = "standalone")]
listed!("execlp", execvp);
#[cfg(feature = "standalone")]
listed!("execle", with_environment);
