//! Recovery: the process of the image takes the place of this one, and its threads put right what is not as it was.
//!
//! # Safety
//! Unsafe here: slots of threads that wait here; memory of the restore's when all have left it; the word where libc keeps a
//! thread's id.

#![allow(unsafe_code, reason = "see Safety above")]

mod before;
mod choose;
mod twins;

use core::ffi::CStr;
use core::sync::atomic::{AtomicU32, Ordering};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rewake_image::{Image, PageReader, RECORDS_FILE};
use rewake_restore::{IpcPolicy, OnChanged, Options, OutsideSockets, Pids, RestoreError};

use crate::ids::{self, Ids};
use crate::lead::{FACTS, disperse};
use crate::stand::{STANDING, Since, Slot, standing};
use crate::start::TID_OFFSET;
use crate::{entry, helper, raw, remedy};

/// Status of a recovery that failed: never the program's own.
pub const FAILED: u64 = 125;

/// How often a later image is taken when one is removed meanwhile.
const TRIES: u32 = 8;

/// Threads that are back.
static BACK: AtomicU32 = AtomicU32::new(0);
/// Counts lives.
static LIFE: AtomicU32 = AtomicU32::new(0);

/// Words that may stand before the wish.
pub const MOST_BEFORE: usize = 8;

/// What is to be recovered.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Words before the wish: a script, say.
    pub words: [Option<&'a CStr>; MOST_BEFORE],
    /// The image, or a store.
    pub dir: Option<&'a CStr>,
    /// A word too many.
    pub more: Option<&'a CStr>,
}

/// Becomes the program of the latest image, or of the one that is named. Comes back never: what goes wrong ends this process. Where there are
/// more words than that one, somebody wants what is not done.
pub fn run(wanted: &Wanted<'_>) {
    entry::put_off();
    if let Some(more) = wanted.more {
        let more = more.to_string_lossy();
        fail(&format!(
            "libckpt: =recover takes no more than a folder, not {more:?}\n  the recovered program has the arguments it was started with"
        ));
    }
    let place = wanted.dir.map_or_else(crate::store::of_this_program, |dir| {
        PathBuf::from(std::ffi::OsStr::from_bytes(dir.to_bytes()))
    });
    fail(&before::check().map_or_else(|error| error, |()| recover(&place, wanted)));
}

fn fail(why: &str) {
    eprintln!("{why}");
    // SAFETY: it never returns.
    unsafe { raw::call(libc::SYS_exit_group, [FAILED, 0, 0, 0, 0, 0]) };
}

fn told(error: &RestoreError) -> String {
    let remedy = error.remedy().map(|remedy| format!("\n  {}", remedy::here(&remedy))).unwrap_or_default();
    format!("libckpt: {error}{remedy}")
}

fn recover(place: &Path, wanted: &Wanted<'_>) -> String {
    let mut tries = TRIES;
    loop {
        let latest = rewake_image::store::resolve(place).ok();
        let (why, dir) = match choose::image(place, wanted) {
            Ok(dir) => (recover_image(dir.clone()), dir),
            // Removed between two looks at the store.
            Err(why) => (why, PathBuf::new()),
        };
        tries -= 1;
        // An image that is removed meanwhile (`keep`) is so because there is a later one.
        let later = rewake_image::store::resolve(place).ok().filter(|later| Some(later) != latest.as_ref());
        if tries == 0 || later.is_none() || !dir.as_os_str().is_empty() && dir.join(RECORDS_FILE).exists() {
            return why;
        }
    }
}

/// Becomes the program of this image; comes back with what went wrong, while this process is as it was.
fn recover_image(dir: PathBuf) -> String {
    // Held by the companion until the program has its files.
    let _alone = match twins::alone(&dir) {
        Ok(alone) => alone,
        Err(refusal) => return refusal,
    };
    if let Err(refusal) = check_image(&dir) {
        return refusal;
    }
    let options = Options {
        dir,
        on_changed: OnChanged::Restore,
        pids: Pids::Auto,
        ipc: IpcPolicy::Auto,
        clock: None,
        outside_sockets: OutsideSockets::default(),
        new_session: false,
    };
    let mut note = |text: &str| eprintln!("libckpt: {text}");
    match rewake_restore::own::become_program(&options, &mut note, &mut before::undo, &mut |error| {
        eprintln!("{}", told(error))
    }) {
        Ok(never) => match never {},
        Err(error) => told(&error),
    }
}

fn check_image(dir: &Path) -> Result<(), String> {
    let image = Image::open(dir).map_err(|error| format!("libckpt: {error}"))?;
    check_ids(dir, &image)?;
    twins::check(&image)
}

/// Whether it can be told which memory keeps ids of threads: those of containers are numbers like all others.
fn check_ids(dir: &Path, image: &Image) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("libckpt: {error}");
    let reader = PageReader::open(dir, &image.stream).map_err(|error| failed(&error))?;
    match ids::doubtful(image, &reader).map_err(|error| failed(&error))? {
        None => Ok(()),
        Some(address) => Err(format!(
            "libckpt: a thread of the program may hold a lock near {address:#x}, or the program has numbers there that look like one: thread ids this small cannot be told from others\n  resume -d {} gives threads the very same ids",
            dir.display()
        )),
    }
}

/// What a thread does that finds itself in another life. When this returns it may go on.
pub fn put_right(slot: &Slot, leads: bool, since: Since) {
    // SAFETY: its own slot.
    unsafe { ids::put_robust_list_right(slot) };
    put_id_right(slot);
    slot.tid_now.store(raw::gettid(), Ordering::Release);
    let life = LIFE.load(Ordering::Acquire);
    let all = standing();
    if BACK.fetch_add(1, Ordering::AcqRel) + 1 == all {
        raw::futex_wake(&BACK);
    }
    if !leads {
        while LIFE.load(Ordering::Acquire) == life {
            raw::futex_wait(&LIFE, life, None);
        }
        return;
    }
    loop {
        let back = BACK.load(Ordering::Acquire);
        if back == all {
            break;
        }
        raw::futex_wait(&BACK, back, None);
    }
    if let Since::Recovered(stage, len) = since {
        // SAFETY: all threads have left the program of the restore.
        unsafe { raw::unmap(stage as *mut u8, usize::try_from(len).unwrap_or(0)) };
    }
    // There may be little room on this stack.
    match raw::map(STACK, libc::MAP_PRIVATE | libc::MAP_NORESERVE) {
        // SAFETY: new memory, given back when nobody is on it any more; all others wait.
        Some(stack) => unsafe {
            let used = stack as u64..stack as u64 + STACK as u64;
            helper::on_stack(used.end, put_mutexes_right, &raw const used as u64);
            raw::unmap(stack, STACK);
        },
        None => {
            let mut used = 0..0u64;
            let here = &raw mut used;
            // SAFETY: the line above.
            unsafe { here.write(here as u64 - FRAMES..here as u64) };
            put_mutexes_right(here as u64);
        }
    }
    crate::entry::give_back();
    crate::home::settle();
    crate::voice::learn();
    for fd in [&FACTS.memory, &FACTS.orders_in, &FACTS.orders_out] {
        fd.store(-1, Ordering::Relaxed);
    }
    crate::mark::set(crate::settings::signal());
    crate::writer::nobody();
    crate::later::forget();
    crate::positions::again();
    disperse();
    BACK.store(0, Ordering::Release);
    LIFE.fetch_add(1, Ordering::AcqRel);
    raw::futex_wake(&LIFE);
}

/// Bytes of the stack that is used for what takes some.
const STACK: usize = 1 << 20;

/// More than the frames take of those that use it.
const FRAMES: u64 = 32 << 10;

/// `used` leads to the addresses of the stack that this runs on.
extern "C" fn put_mutexes_right(used: u64) {
    // SAFETY: the caller's, who waits for our return.
    let used = unsafe { &*(used as *const core::ops::Range<u64>) };
    let changed = Ids::new(slots().map(|slot| (slot.tid, slot.tid_now.load(Ordering::Acquire))));
    // SAFETY: all others wait.
    unsafe { changed.put_right(used) };
}

/// libc keeps the id of each thread; the kernel gave it another one.
fn put_id_right(slot: &Slot) {
    let offset = TID_OFFSET.load(Ordering::Relaxed);
    if offset == 0 {
        return;
    }
    let at = slot.fs_base.wrapping_add_signed(i64::from(offset)) as *mut i32;
    // SAFETY: where libc keeps it: the same for all of its threads, and checked against the id the thread had.
    unsafe {
        if at.read_volatile() == slot.tid {
            at.write_volatile(raw::gettid());
        }
    }
}

/// Those that are back.
fn slots() -> impl Iterator<Item = &'static Slot> {
    // SAFETY: slots of threads that wait in this module, until who leads lets them go.
    let get = |slot: *mut Slot| unsafe { slot.as_ref() };
    std::iter::successors(get(STANDING.load(Ordering::Acquire)), move |slot| get(slot.next))
}
