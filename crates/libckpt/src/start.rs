//! The start of a program: the library looks around, takes its signal, or lets an image take over (`=recover`).
//!
//! # Safety
//! Unsafe here: arguments as libc gives them to functions before `main`; glibc's own constants and thread data.

#![allow(unsafe_code, reason = "see Safety above")]

use core::ffi::CStr;
use core::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, Ordering};

use crate::acting::{self, Copy};
use crate::recover::{MOST_BEFORE, Wanted};
use crate::voice::Line;
use crate::{entry, home, launcher, overrides, raw, recover, settings, voice};

/// Where libc keeps a thread's id, from its thread pointer; 0 if that is not known.
pub static TID_OFFSET: AtomicI32 = AtomicI32::new(0);
static RSEQ_OFFSET: AtomicI64 = AtomicI64::new(0);
static RSEQ_SIZE: AtomicU32 = AtomicU32::new(0);
static SECCOMP: AtomicU32 = AtomicU32::new(0);
static FILTERS: AtomicU32 = AtomicU32::new(0);

/// glibc registers no less.
const RSEQ_LEAST: u32 = 32;
/// How far into a thread's own data the id is looked for, in bytes.
const TID_WITHIN: i32 = 4096;

/// Arguments as the kernel gave them.
type Arguments = *const *const core::ffi::c_char;

/// Called by libc before `main`, where the library is an artifact of its own.
#[cfg_attr(feature = "standalone", used, unsafe(no_mangle), unsafe(link_section = ".init_array.00101"))]
#[allow(non_upper_case_globals, reason = "a name for linkers")]
pub static rewake_ckpt_start: extern "C" fn(i32, Arguments, Arguments) = start;

extern "C" fn start(count: i32, arguments: Arguments, environment: Arguments) {
    voice::learn();
    match acting::find_out() {
        Copy::Acts => {}
        Copy::StandsBack => return,
        Copy::Cannot(why) => return refuse(why),
        Copy::Unusable(why) => {
            refuse(why);
            // SAFETY: it never returns.
            unsafe { raw::call(libc::SYS_exit_group, [recover::FAILED, 0, 0, 0, 0, 0]) };
        }
    }
    learn();
    overrides::find_all();
    // SAFETY: libc calls the functions of this table with the arguments of `main`.
    unsafe { settings::read(environment) };
    // SAFETY: libc calls the functions of this table with the arguments of `main`.
    match unsafe { asked(count, arguments) } {
        Asked::Run => {
            home::begin();
            entry::install();
        }
        Asked::Recover(wanted) => recover::run(&wanted),
    }
}

fn refuse(why: &str) {
    let mut line = Line::new(b"libckpt: no checkpoints of this program: ");
    line.text(why.as_bytes());
    line.say();
}

enum Asked<'a> {
    Run,
    Recover(Wanted<'a>),
}

/// `=recover`, `=recover DIR`, `= recover`, `= recover DIR`: before all other words. Where the library is preloaded, a script and words for
/// its interpreter may stand before it: `python3 job.py =recover`, which is also what the kernel makes of `./job.py =recover`. A program that
/// only starts another (`nice ./prog =recover`) is not asked.
///
/// # Safety
/// So many strings are there.
unsafe fn asked<'a>(count: i32, arguments: Arguments) -> Asked<'a> {
    let get = |at: usize| {
        // SAFETY: the caller's.
        i32::try_from(at).is_ok_and(|at| at < count).then(|| unsafe { CStr::from_ptr(*arguments.add(at)) })
    };
    for before in 0..=if acting::is_preloaded() { MOST_BEFORE } else { 0 } {
        let first = 1 + before;
        let rest = match (get(first), get(first + 1)) {
            (Some(word), _) if word == c"=recover" => first + 1,
            (Some(word), Some(second)) if word == c"=" && second == c"recover" => first + 2,
            _ => continue,
        };
        if before > 0 && launcher::is_this() {
            return Asked::Run;
        }
        let words = core::array::from_fn(|at| get(1 + at).filter(|_| at < before));
        return Asked::Recover(Wanted { words, dir: get(rest), more: get(rest + 1) });
    }
    Asked::Run
}

/// Seccomp mode and number of filters at the start.
#[must_use]
pub fn seccomp() -> (u32, u32) {
    (SECCOMP.load(Ordering::Relaxed), FILTERS.load(Ordering::Relaxed))
}

/// Where libc registers restartable sequences, from the thread pointer, and how long they are; `None` if it does not.
#[must_use]
pub fn rseq() -> Option<(i64, u32)> {
    let size = RSEQ_SIZE.load(Ordering::Relaxed);
    (size != 0).then(|| (RSEQ_OFFSET.load(Ordering::Relaxed), size.max(RSEQ_LEAST)))
}

fn learn() {
    // SAFETY: where the symbols are there they are constants of glibc's of these types.
    unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr());
        let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr());
        if !offset.is_null() && !size.is_null() {
            RSEQ_OFFSET.store(offset.cast::<i64>().read(), Ordering::Relaxed);
            RSEQ_SIZE.store(size.cast::<u32>().read(), Ordering::Relaxed);
        }
    }
    TID_OFFSET.store(tid_offset().unwrap_or(0), Ordering::Relaxed);
    learn_seccomp();
}

/// Where libc keeps the id of a thread: as it tells debuggers, or else where the first thread's id stands.
fn tid_offset() -> Option<i32> {
    let thread_pointer: u64;
    // SAFETY: what the x86-64 ABI defines for every thread with thread-local storage.
    unsafe { core::arch::asm!("mov {}, fs:0", out(reg) thread_pointer, options(nostack, readonly)) };
    let own = raw::gettid();
    let page_end = i32::try_from(4096 - thread_pointer % 4096).unwrap_or(0) + 4096;
    let known = |offset: &i32| {
        let at = thread_pointer.wrapping_add_signed(i64::from(*offset));
        // SAFETY: within glibc's data of the first thread, which is more than two thousand bytes long.
        unsafe { (at as *const i32).read_volatile() == own }
    };
    told_offset().filter(known).or_else(|| (0..TID_WITHIN.min(page_end).min(2048)).step_by(4).find(known))
}

/// What glibc tells libthread_db of its field `tid`: bits of an element, number of elements, offset.
fn told_offset() -> Option<i32> {
    // SAFETY: where the symbol is there it is a constant of glibc's of that type.
    unsafe {
        let told = libc::dlsym(libc::RTLD_DEFAULT, c"_thread_db_pthread_tid".as_ptr()).cast::<[u32; 3]>();
        let [bits, count, offset] = if told.is_null() { return None } else { told.read() };
        (bits == 32 && count == 1 && offset < 4096).then(|| i32::try_from(offset).ok())?
    }
}

fn learn_seccomp() {
    // SAFETY: no further arguments.
    let mode = unsafe { raw::call(libc::SYS_prctl, [raw::word(libc::PR_GET_SECCOMP), 0, 0, 0, 0, 0]) };
    if mode == 0 {
        return;
    }
    let mut buffer = [0u8; 4096];
    let flags = raw::word(libc::O_CLOEXEC);
    let path = c"/proc/self/status".as_ptr() as u64;
    // SAFETY: a string and a buffer of ours.
    let read = unsafe {
        let file = raw::call(libc::SYS_openat, [raw::word(libc::AT_FDCWD), path, flags, 0, 0, 0]);
        let Ok(file) = i32::try_from(file) else { return };
        let args = [raw::word(file), buffer.as_mut_ptr() as u64, buffer.len() as u64, 0, 0, 0];
        let read = raw::call(libc::SYS_read, args);
        raw::close(file);
        usize::try_from(read).unwrap_or(0)
    };
    for line in buffer[..read.min(buffer.len())].split(|byte| *byte == b'\n') {
        let number = |text: &[u8]| {
            text.iter()
                .filter(|byte| byte.is_ascii_digit())
                .fold(0u32, |sum, byte| sum.wrapping_mul(10).wrapping_add(u32::from(byte - b'0')))
        };
        if let Some(mode) = line.strip_prefix(b"Seccomp:") {
            SECCOMP.store(number(mode), Ordering::Relaxed);
        } else if let Some(filters) = line.strip_prefix(b"Seccomp_filters:") {
            FILTERS.store(number(filters), Ordering::Relaxed);
        }
    }
}
