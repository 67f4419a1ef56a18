//! Functions of libc's that programs find here instead: those that could keep the signal from coming, and waits whose time the signal must
//! not make longer.
//!
//! Each does what libc's does, with one signal less, or with a note when it began.
//!
//! # Safety
//! Unsafe here: functions of libc's names and types; what callers give is what they would have to give libc.

#![allow(unsafe_code, reason = "see Safety above")]

use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::entry::{Action, SA_RESTORER, restorer, set_action};
use crate::returns::{SA_SIGINFO, as_wanted, returning_here};
use crate::{again, raw, settings};

/// Signals that libc keeps for itself.
const LIBCS: u64 = 1 << 31 | 1 << 32;
const SET: u64 = 8;
const HIGHEST: c_int = 64;

/// The set of our signal.
fn ours() -> u64 {
    1 << (settings::signal() - 1)
}

/// A set as the kernel has it.
unsafe fn bits(set: *const libc::sigset_t) -> u64 {
    // SAFETY: the caller's; libc's sets begin with the kernel's word.
    unsafe { set.cast::<u64>().read() }
}

/// A copy of a set without our signal, at `place`; null as it is.
unsafe fn without_ours(set: *const libc::sigset_t, place: &mut libc::sigset_t) -> *const libc::sigset_t {
    if set.is_null() {
        return set;
    }
    // SAFETY: the caller gives a set of libc's.
    unsafe {
        *place = set.read();
        let first = (&raw mut *place).cast::<u64>();
        first.write(first.read() & !ours());
    }
    place
}

fn empty() -> libc::sigset_t {
    // SAFETY: a set is numbers.
    unsafe { core::mem::zeroed() }
}

fn failed(error: i64) -> c_int {
    // SAFETY: this thread's errno.
    unsafe { *libc::__errno_location() = i32::try_from(error).unwrap_or(libc::EINVAL) };
    -1
}

unsafe fn mask(how: c_int, set: *const libc::sigset_t, old: *mut libc::sigset_t) -> i64 {
    // SAFETY: the caller gives what pthread_sigmask(3) takes.
    unsafe {
        // The program sees what it set, though the kernel is not told.
        let virtually = again::blocks_ours();
        let was = *virtually;
        let wanted = if set.is_null() { 0 } else { bits(set) & ours() };
        let new = if set.is_null() { 0 } else { bits(set) & !(LIBCS | ours()) };
        let mut before = 0u64;
        let new = if set.is_null() { core::ptr::null() } else { &raw const new };
        let result = raw::call(
            libc::SYS_rt_sigprocmask,
            [raw::word(how), new as u64, &raw mut before as u64, SET, 0, 0],
        );
        if result == 0 {
            match how {
                libc::SIG_BLOCK => *virtually |= wanted,
                libc::SIG_UNBLOCK => *virtually &= !wanted,
                _ if !new.is_null() => *virtually = wanted,
                _ => {}
            }
        }
        if result == 0 && !old.is_null() {
            old.write(empty());
            old.cast::<u64>().write(before | was);
        }
        -result
    }
}

/// See pthread_sigmask(3).
///
/// # Safety
/// As there.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_sigmask(
    how: c_int,
    set: *const libc::sigset_t,
    old: *mut libc::sigset_t,
) -> c_int {
    // SAFETY: the caller's.
    i32::try_from(unsafe { mask(how, set, old) }).unwrap_or(libc::EINVAL)
}

/// See sigprocmask(2).
///
/// # Safety
/// As there.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn sigprocmask(
    how: c_int,
    set: *const libc::sigset_t,
    old: *mut libc::sigset_t,
) -> c_int {
    // SAFETY: the caller's.
    match unsafe { mask(how, set, old) } {
        0 => 0,
        error => failed(error),
    }
}

/// What the program would do about our signal, were it not ours.
static WANTED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

fn swap_wanted(new: Option<Action>) -> Action {
    let old = [0, 1, 2, 3].map(|at: usize| WANTED[at].load(Ordering::Relaxed));
    for (place, word) in WANTED.iter().zip(new.unwrap_or(old)) {
        place.store(word, Ordering::Relaxed);
    }
    old
}

/// See sigaction(2).
///
/// # Safety
/// As there.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    // 32 and 33 are libc's own.
    if !(1..=HIGHEST).contains(&signal) || (32..34).contains(&signal) {
        return failed(libc::EINVAL.into());
    }
    // SAFETY: the caller gives structures of libc's.
    let new = (!new.is_null()).then(|| unsafe {
        let flags = u64::from((*new).sa_flags.cast_unsigned()) | SA_RESTORER;
        [(*new).sa_sigaction as u64, flags, restorer(), bits(&raw const (*new).sa_mask) & !ours()]
    });
    let before = if signal == settings::signal() {
        Ok(swap_wanted(new))
    } else {
        set_action(signal, new.map(returning_here).as_ref())
    };
    let before = match before {
        Ok(before) => as_wanted(before),
        Err(error) => return failed(error),
    };
    if !old.is_null() {
        let [handler, flags, restorer, blocked] = before;
        let flags = u32::try_from(flags & u64::from(u32::MAX) & !SA_RESTORER).unwrap_or(0).cast_signed();
        // SAFETY: as above.
        unsafe {
            (*old).sa_sigaction = usize::try_from(handler).unwrap_or(0);
            (*old).sa_flags = flags;
            (*old).sa_mask = empty();
            (&raw mut (*old).sa_mask).cast::<u64>().write(blocked);
            (&raw mut (*old).sa_restorer).cast::<u64>().write(restorer);
        }
    }
    0
}

/// libc's own functions that are called from here.
const NAMES: &[&str] = &[
    "sigsuspend\0",
    "sigwait\0",
    "sigwaitinfo\0",
    "sigtimedwait\0",
    "signalfd\0",
    "ppoll\0",
    "pselect\0",
    "epoll_pwait\0",
    "epoll_pwait2\0",
    "poll\0",
    "epoll_wait\0",
    "nanosleep\0",
    "clock_nanosleep\0",
    "usleep\0",
    "signal\0",
    "bsd_signal\0",
    "__sysv_signal\0",
    "sigset\0",
    "sighold\0",
    "sigrelse\0",
    "sigignore\0",
    "siginterrupt\0",
    "semget\0",
    "msgget\0",
    "execve\0",
    "execveat\0",
    "execvpe\0",
    "fexecve\0",
];

static FOUND: [AtomicPtr<c_void>; NAMES.len()] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; NAMES.len()];

/// Finds all of them: later the lock of the loader may be held by a thread that stands still.
pub fn find_all() {
    for at in 0..NAMES.len() {
        find(at);
    }
}

fn find(at: usize) -> *mut c_void {
    // SAFETY: a name with a zero byte at its end.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, NAMES[at].as_ptr().cast::<c_char>()) };
    FOUND[at].store(found, Ordering::Relaxed);
    found
}

/// libc's function of the name at this place. Others may call before the library has started.
pub(crate) fn real(at: usize) -> *mut c_void {
    let found = FOUND[at].load(Ordering::Relaxed);
    if found.is_null() { find(at) } else { found }
}

/// Where a name stands in the list.
pub(crate) const fn place(name: &str) -> usize {
    let mut at = 0;
    while at < NAMES.len() {
        let (one, other) = (NAMES[at].as_bytes(), name.as_bytes());
        let mut same = 0;
        while same < one.len() && same < other.len() && one[same] == other[same] {
            same += 1;
        }
        if same == one.len() && same == other.len() {
            return at;
        }
        at += 1;
    }
    panic!("a name of the list")
}

/// libc's own function of a name.
macro_rules! libcs {
    ($name:ident: fn($($type:ty),*) -> $result:ty) => {{
        const AT: usize = $crate::overrides::place(concat!(stringify!($name), "\0"));
        core::mem::transmute::<*mut core::ffi::c_void, unsafe extern "C" fn($($type),*) -> $result>($crate::overrides::real(AT))
    }};
}
pub(crate) use libcs;

/// Functions that take a set they wait for, or block meanwhile: without our signal in it.
macro_rules! without_ours {
    ($(#[$doc:meta])* $name:ident($($before:ident: $type:ty,)* [$set:ident] $(, $after:ident: $other:ty)*) -> $result:ty) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As there.
        #[cfg_attr(feature = "standalone", unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($($before: $type,)* $set: *const libc::sigset_t $(, $after: $other)*) -> $result {
            let mut place = empty();
            // SAFETY: the caller's; libc's function of this name has this type.
            unsafe {
                let began = again::begin_wait();
                let set = without_ours($set, &mut place);
                let result = libcs!($name: fn($($type,)* *const libc::sigset_t $(, $other)*) -> $result)($($before,)* set $(, $after)*);
                again::end_wait(began);
                result
            }
        }
    };
}

/// Functions that wait: with a note when they began.
macro_rules! noted {
    ($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) -> $result:ty) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As there.
        #[cfg_attr(feature = "standalone", unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $result {
            let began = again::begin_wait();
            // SAFETY: the caller's; libc's function of this name has this type.
            let result = unsafe { libcs!($name: fn($($type),*) -> $result)($($argument),*) };
            again::end_wait(began);
            result
        }
    };
}

without_ours!(/// See sigsuspend(2).
    sigsuspend([set]) -> c_int);
without_ours!(/// See sigwait(3).
    sigwait([set], signal: *mut c_int) -> c_int);
without_ours!(/// See sigwaitinfo(2).
    sigwaitinfo([set], info: *mut libc::siginfo_t) -> c_int);
without_ours!(/// See sigtimedwait(2).
    sigtimedwait([set], info: *mut libc::siginfo_t, time: *const libc::timespec) -> c_int);
without_ours!(/// See signalfd(2).
    signalfd(fd: c_int, [set], flags: c_int) -> c_int);
without_ours!(/// See ppoll(2).
    ppoll(files: *mut libc::pollfd, count: libc::nfds_t, time: *const libc::timespec, [set]) -> c_int);
without_ours!(/// See pselect(2).
    pselect(count: c_int, read: *mut libc::fd_set, write: *mut libc::fd_set, other: *mut libc::fd_set,
        time: *const libc::timespec, [set]) -> c_int);
without_ours!(/// See epoll_pwait(2).
    epoll_pwait(epoll: c_int, events: *mut libc::epoll_event, most: c_int, time: c_int, [set]) -> c_int);
without_ours!(/// See epoll_pwait2(2).
    epoll_pwait2(epoll: c_int, events: *mut libc::epoll_event, most: c_int, time: *const libc::timespec, [set]) -> c_int);
noted!(/// See poll(2).
    poll(files: *mut libc::pollfd, count: libc::nfds_t, time: c_int) -> c_int);
noted!(/// See epoll_wait(2).
    epoll_wait(epoll: c_int, events: *mut libc::epoll_event, most: c_int, time: c_int) -> c_int);
noted!(/// See nanosleep(2).
    nanosleep(wanted: *const libc::timespec, left: *mut libc::timespec) -> c_int);
noted!(/// See clock_nanosleep(2).
    clock_nanosleep(clock: libc::clockid_t, flags: c_int, wanted: *const libc::timespec, left: *mut libc::timespec) -> c_int);
noted!(/// See usleep(3).
    usleep(microseconds: libc::useconds_t) -> c_int);

/// What the program has that nothing shows from inside, so that it would be missing in an image.
static HIDDEN_IPC: AtomicU32 = AtomicU32::new(0);
const SETS: u32 = 1;
const QUEUES: u32 = 2;

/// Why an image would be missing something, by name.
#[must_use]
pub fn hidden_ipc() -> Option<&'static str> {
    match HIDDEN_IPC.load(Ordering::Relaxed) {
        0 => None,
        QUEUES => Some("System V message queues"),
        _ => Some("System V semaphores"),
    }
}

/// See semget(2).
///
/// # Safety
/// As there.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn semget(key: libc::key_t, count: c_int, flags: c_int) -> c_int {
    HIDDEN_IPC.fetch_or(SETS, Ordering::Relaxed);
    // SAFETY: the caller's; libc's function of this name has this type.
    unsafe { libcs!(semget: fn(libc::key_t, c_int, c_int) -> c_int)(key, count, flags) }
}

/// See msgget(2).
///
/// # Safety
/// As there.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn msgget(key: libc::key_t, flags: c_int) -> c_int {
    HIDDEN_IPC.fetch_or(QUEUES, Ordering::Relaxed);
    // SAFETY: the caller's; libc's function of this name has this type.
    unsafe { libcs!(msgget: fn(libc::key_t, c_int) -> c_int)(key, flags) }
}

/// Functions of old that set what is done about one signal.
macro_rules! handler {
    ($(#[$doc:meta])* $name:ident, $flags:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As there.
        #[cfg_attr(feature = "standalone", unsafe(no_mangle))]
        pub unsafe extern "C" fn $name(signal: c_int, handler: usize) -> usize {
            if signal == settings::signal() {
                let flags = $flags as u32;
                return usize::try_from(swap_wanted(Some([handler as u64, flags.into(), restorer(), 0]))[0]).unwrap_or(0);
            }
            // SAFETY: the caller's; libc's function of this name has this type.
            let before = unsafe { libcs!($name: fn(c_int, usize) -> usize)(signal, handler) };
            return_to_us(signal, None);
            before
        }
    };
}

/// Has the handler that libc has set return as others do. `before` is what the program wanted until then, where libc has changed only a part
/// of what there was.
fn return_to_us(signal: c_int, before: Option<Action>) {
    if let Ok([handler, flags, restorer, blocked]) = set_action(signal, None)
        && handler > libc::SIG_IGN as u64
    {
        let flags = before.map_or(flags, |[_, wanted, ..]| flags & (wanted | !SA_SIGINFO));
        let [handler, flags, restorer, blocked] = returning_here([handler, flags, restorer, blocked]);
        let _set = set_action(signal, Some(&[handler, flags, restorer, blocked & !ours()]));
    }
}

handler!(/// See signal(2).
    signal, libc::SA_RESTART);
handler!(/// See bsd_signal(3).
    bsd_signal, libc::SA_RESTART);
handler!(/// See sysv_signal(3).
    __sysv_signal, libc::SA_RESETHAND.cast_unsigned() | libc::SA_NODEFER.cast_unsigned());

/// See sigset(3).
///
/// # Safety
/// As there.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn sigset(signal: c_int, disposition: usize) -> usize {
    const SIG_HOLD: usize = 2;
    if signal != settings::signal() {
        // SAFETY: the caller's; libc's function of this name has this type.
        let before = unsafe { libcs!(sigset: fn(c_int, usize) -> usize)(signal, disposition) };
        return_to_us(signal, None);
        return before;
    }
    // SAFETY: this thread's own words.
    let blocked = unsafe { again::blocks_ours() };
    let was = *blocked != 0;
    let hold = disposition == SIG_HOLD;
    let new = (!hold).then_some([disposition as u64, 0, restorer(), 0]);
    let [before, ..] = swap_wanted(new);
    *blocked = if hold { ours() } else { 0 };
    if was { SIG_HOLD } else { usize::try_from(before).unwrap_or(0) }
}

/// Functions of old that do one thing about one signal.
macro_rules! about_one {
    ($(#[$doc:meta])* $name:ident($signal:ident $(, $argument:ident: $type:ty)*) $ours:block) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As there.
        #[cfg_attr(feature = "standalone", unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($signal: c_int $(, $argument: $type)*) -> c_int {
            if $signal == settings::signal() {
                $ours
                return 0;
            }
            // SAFETY: the caller's; libc's function of this name has this type.
            unsafe { libcs!($name: fn(c_int $(, $type)*) -> c_int)($signal $(, $argument)*) }
        }
    };
}

about_one!(/// See sighold(3).
sighold(signal) {
    // SAFETY: this thread's own words.
    unsafe { *again::blocks_ours() = ours() };
});
about_one!(/// See sigrelse(3).
sigrelse(signal) {
    // SAFETY: this thread's own words.
    unsafe { *again::blocks_ours() = 0 };
});
about_one!(/// See sigignore(3).
sigignore(signal) {
    swap_wanted(Some([libc::SIG_IGN as u64, 0, restorer(), 0]));
});

/// See siginterrupt(3).
///
/// # Safety
/// As there.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn siginterrupt(signal: c_int, flag: c_int) -> c_int {
    if signal == settings::signal() {
        let [handler, flags, restorer, mask] = swap_wanted(None);
        let restart = u64::from(libc::SA_RESTART.cast_unsigned());
        let flags = if flag == 0 { flags | restart } else { flags & !restart };
        swap_wanted(Some([handler, flags, restorer, mask]));
        return 0;
    }
    let before = set_action(signal, None).map(as_wanted).ok();
    // SAFETY: the caller's; libc's function of this name has this type.
    let result = unsafe { libcs!(siginterrupt: fn(c_int, c_int) -> c_int)(signal, flag) };
    return_to_us(signal, before);
    result
}
