//! Recovery: the process of the image takes the place of this one, and its threads put right what is not as it was.
//!
//! # Safety
//! Unsafe here: slots of threads that wait here; memory of the restore's when all have left it; the word where libc keeps a
//! thread's id.

#![allow(unsafe_code, reason = "see Safety above")]

use core::ffi::CStr;
use core::sync::atomic::{AtomicU32, Ordering};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rewake_image::{Image, build_id};
use rewake_restore::{IpcPolicy, OnChanged, Options, OutsideSockets, Pids, RestoreError};

use crate::ids::{self, Ids};
use crate::lead::{FACTS, disperse};
use crate::stand::{STANDING, Since, Slot, standing};
use crate::start::TID_OFFSET;
use crate::{raw, store};

/// Status of a recovery that failed: never the program's own.
pub const FAILED: u64 = 125;

/// Threads that are back.
static BACK: AtomicU32 = AtomicU32::new(0);
/// Counts lives.
static LIFE: AtomicU32 = AtomicU32::new(0);

/// Becomes the program of the latest image, or of this one. Comes back never: what goes wrong ends this process.
pub fn run(dir: Option<&CStr>) {
    let place = dir.map_or_else(store::of_this_program, |dir| {
        PathBuf::from(std::ffi::OsStr::from_bytes(dir.to_bytes()))
    });
    let error = recover(&place);
    eprintln!("{error}");
    // SAFETY: it never returns.
    unsafe { raw::call(libc::SYS_exit_group, [FAILED, 0, 0, 0, 0, 0]) };
}

fn told(error: &RestoreError) -> String {
    let remedy = error.remedy().map(|remedy| format!("\n  {remedy}")).unwrap_or_default();
    format!("libckpt: {error}{remedy}")
}

fn recover(place: &Path) -> String {
    let dir = match rewake_image::store::resolve(place) {
        Ok(dir) => dir,
        Err(error) => {
            let place = place.display();
            return format!(
                "libckpt: nothing to recover in {place}: {error}\n  make a checkpoint first: ckpt PID"
            );
        }
    };
    if let Err(refusal) = check_program(&dir) {
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
    match rewake_restore::own::become_program(&options, &mut |error| eprintln!("{}", told(error))) {
        Ok(never) => match never {},
        Err(error) => told(&error),
    }
}

/// The image must be of this very program: by its build id; where it has none, by its size and the time when it was written.
fn check_program(dir: &Path) -> Result<(), String> {
    let shown = dir.display();
    let failed = |error: &dyn std::fmt::Display| format!("libckpt: {error}");
    let image = Image::open(dir).map_err(|error| failed(&error))?;
    let exe = image.root().memory.as_ref().and_then(|memory| memory.exe.as_ref());
    let Some(then) = exe.and_then(|exe| exe.identity.as_ref()) else {
        return Err(format!("libckpt: {shown} does not say of which program it is"));
    };
    let own = Path::new("/proc/self/exe");
    let (same, how) = if then.build_id.is_empty() {
        use std::os::unix::fs::MetadataExt as _;
        let now = std::fs::metadata(own).map_err(|error| failed(&error))?;
        let time = (now.mtime(), now.mtime_nsec());
        let same = then.size == now.size() && (then.mtime_s, i64::from(then.mtime_ns)) == time;
        (same, "which has no build id, and another size or time".to_owned())
    } else {
        let now = build_id::of(own);
        let text = format!("build id {}, this one has {}", hexadecimal(&then.build_id), hexadecimal(&now));
        (now == then.build_id, text)
    };
    if same {
        return Ok(());
    }
    let path = then.as_path().display();
    Err(format!(
        "libckpt: {shown} is an image of another program, {path} ({how})\n  recover it with that program, as it was when the image was made"
    ))
}

fn hexadecimal(id: &[u8]) -> String {
    if id.is_empty() { "none".to_owned() } else { id.iter().map(|byte| format!("{byte:02x}")).collect() }
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
    let changed = Ids::new(slots().map(|slot| (slot.tid, slot.tid_now.load(Ordering::Acquire))));
    // SAFETY: all others wait.
    unsafe { changed.put_right() };
    drop(changed);
    crate::entry::give_back();
    for fd in [&FACTS.memory, &FACTS.orders_in, &FACTS.orders_out] {
        fd.store(-1, Ordering::Relaxed);
    }
    crate::mark::set(crate::settings::signal());
    crate::writer::nobody();
    crate::later::forget();
    disperse();
    BACK.store(0, Ordering::Release);
    LIFE.fetch_add(1, Ordering::AcqRel);
    raw::futex_wake(&LIFE);
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
