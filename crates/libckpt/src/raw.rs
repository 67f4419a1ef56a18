//! System calls as the kernel gives them: no `errno`, no cancellation, nothing that a handler may not do.
//!
//! # Safety
//! Unsafe here: raw system calls with arguments of our own; wherever a caller answers for them, the function is unsafe.

#![allow(unsafe_code, reason = "see Safety above")]

use rewake_linux::program::Sysno;
use rewake_linux::walk::system_call;

/// Makes a call. The result is the kernel's: negative error numbers.
///
/// # Safety
/// Whatever the call demands of its arguments.
pub unsafe fn call(number: i64, args: [u64; 6]) -> i64 {
    // SAFETY: the caller's.
    unsafe { system_call(number.cast_unsigned(), args) }.cast_signed()
}

/// The calling thread's id.
#[must_use]
pub fn gettid() -> i32 {
    // SAFETY: no arguments.
    let id = unsafe { call(libc::SYS_gettid, [0; 6]) };
    i32::try_from(id).unwrap_or(0)
}

/// This process's id.
#[must_use]
pub fn getpid() -> i32 {
    // SAFETY: no arguments.
    let id = unsafe { call(libc::SYS_getpid, [0; 6]) };
    i32::try_from(id).unwrap_or(0)
}

/// Fresh memory, zero; `None` where there is none.
#[must_use]
pub fn map(len: usize, flags: i32) -> Option<*mut u8> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = flags | libc::MAP_ANONYMOUS;
    let args = [0, len as u64, word(protection), word(flags), u64::MAX, 0];
    // SAFETY: a new mapping where the kernel likes.
    let at = unsafe { call(libc::SYS_mmap, args) };
    (at > 0).then_some(at as *mut u8)
}

/// Fresh memory that is shared with copies of this process, and not there before it is touched, even where the program locks all its
/// memory in advance: the kernel fills what can be used when it is mapped, not shared memory that can be used only later.
#[must_use]
pub fn map_untouched(len: usize) -> Option<*mut u8> {
    let flags = libc::MAP_ANONYMOUS | libc::MAP_SHARED | libc::MAP_NORESERVE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping where the kernel likes.
    unsafe {
        let at = call(libc::SYS_mmap, [0, len as u64, word(libc::PROT_NONE), word(flags), u64::MAX, 0]);
        if at <= 0 {
            return None;
        }
        if call(libc::SYS_mprotect, [at.cast_unsigned(), len as u64, word(protection), 0, 0, 0]) != 0 {
            unmap(at as *mut u8, len);
            return None;
        }
        Some(at as *mut u8)
    }
}

/// Gives memory back.
///
/// # Safety
/// Nobody uses it any more.
pub unsafe fn unmap(at: *mut u8, len: usize) {
    // SAFETY: the caller's.
    unsafe { call(libc::SYS_munmap, [at as u64, len as u64, 0, 0, 0, 0]) };
}

/// Closes a descriptor of ours.
pub fn close(fd: i32) {
    // SAFETY: a number; only this library knows of those it is called with.
    unsafe { call(libc::SYS_close, [word(fd), 0, 0, 0, 0, 0]) };
}

/// Waits until a futex no longer holds `seen`, or for `nanoseconds`; may wake early.
pub fn futex_wait(futex: &core::sync::atomic::AtomicU32, seen: u32, nanoseconds: Option<u64>) {
    let time = nanoseconds.map(|all| [all / 1_000_000_000, all % 1_000_000_000]);
    let time = time.as_ref().map_or(core::ptr::null(), |time| time.as_ptr());
    let args = [futex.as_ptr() as u64, word(libc::FUTEX_WAIT), seen.into(), time as u64, 0, 0];
    // SAFETY: the word outlives the call; every result means: look again.
    unsafe { call(Sysno::futex.number().cast_signed(), args) };
}

/// Wakes all that wait for a futex.
pub fn futex_wake(futex: &core::sync::atomic::AtomicU32) {
    let args = [futex.as_ptr() as u64, word(libc::FUTEX_WAKE), i32::MAX as u64, 0, 0, 0];
    // SAFETY: the word outlives the call.
    unsafe { call(Sysno::futex.number().cast_signed(), args) };
}

/// Nanoseconds of a clock that only goes forward.
#[must_use]
pub fn now() -> u64 {
    let mut time = [0u64; 2];
    // SAFETY: a `timespec` of ours.
    unsafe {
        call(libc::SYS_clock_gettime, [word(libc::CLOCK_MONOTONIC), time.as_mut_ptr() as u64, 0, 0, 0, 0])
    };
    time[0] * 1_000_000_000 + time[1]
}

/// A number as an argument.
#[must_use]
pub const fn word(number: i32) -> u64 {
    (number as i64).cast_unsigned()
}

/// Writes as much as goes at once.
pub fn write(fd: i32, bytes: &[u8]) {
    let args = [word(fd), bytes.as_ptr() as u64, bytes.len() as u64, 0, 0, 0];
    // SAFETY: bytes of ours.
    unsafe { call(libc::SYS_write, args) };
}

/// Reads until the end, or the buffer is full; how much.
pub fn read(fd: i32, bytes: &mut [u8]) -> usize {
    let mut len = 0;
    while len < bytes.len() {
        let rest = &mut bytes[len..];
        let args = [word(fd), rest.as_mut_ptr() as u64, rest.len() as u64, 0, 0, 0];
        // SAFETY: a buffer of ours.
        let read = unsafe { call(libc::SYS_read, args) };
        match usize::try_from(read) {
            Ok(read @ 1..) => len += read,
            Err(_) if read == -i64::from(libc::EINTR) => {}
            _ => break,
        }
    }
    len
}

/// Opens a file for reading, whose path ends with a zero byte; a negative error number where that fails.
#[must_use]
pub fn open(path: &[u8], flags: i32) -> i32 {
    let flags = word(flags | libc::O_CLOEXEC);
    // SAFETY: a string of ours.
    let opened =
        unsafe { call(libc::SYS_openat, [word(libc::AT_FDCWD), path.as_ptr() as u64, flags, 0, 0, 0]) };
    i32::try_from(opened).unwrap_or(-libc::EBADF)
}

/// The state of a process or thread, as its file `stat` tells it, whose path ends with a zero byte; `None` where there is none, or its
/// name is not the one that is looked for.
#[must_use]
pub fn state_in(path: &[u8], is_name: impl Fn(&[u8]) -> bool) -> Option<u8> {
    let file = open(path, 0);
    if file < 0 {
        return None;
    }
    let mut text = [0u8; 64];
    let len = read(file, &mut text);
    close(file);
    // The id, the name in brackets, which may have brackets itself, the state.
    let shown = &text[..len];
    let begin = shown.iter().position(|byte| *byte == b'(')? + 1;
    let end = shown.iter().rposition(|byte| *byte == b')')?;
    if !is_name(shown.get(begin..end)?) {
        return None;
    }
    shown.get(end + 2).copied()
}
