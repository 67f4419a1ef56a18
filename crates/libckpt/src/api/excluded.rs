//! Memory that need not be kept: its pages are left out of images, and come back as they are in a new mapping.
//!
//! Pages that the program gives back (munmap) are excluded no more, as the kernel forgets the advice that each of them carries as well
//! (`MADV_DONTDUMP`): what is mapped there later is kept.
//!
//! # Safety
//! Unsafe here: advice about memory of the caller's, which changes nothing of its content.

#![allow(unsafe_code, reason = "see Safety above")]

use core::ffi::c_int;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{fail, lock, unlock};
use crate::raw;

/// Most ranges.
const MOST: usize = 1024;
const PAGE: u64 = 4096;

/// Beginning and end; nothing where the end is 0.
static TABLE: [[AtomicU64; 2]; MOST] = [const { [const { AtomicU64::new(0) }; 2] }; MOST];
static LOCK: AtomicU32 = AtomicU32::new(0);

fn get(at: usize) -> Range<u64> {
    let [start, end] = &TABLE[at];
    start.load(Ordering::Relaxed)..end.load(Ordering::Relaxed)
}

/// The copy may see any moment of this: each excludes what was excluded before, or will be.
fn set(at: usize, range: &Range<u64>) {
    let [start, end] = &TABLE[at];
    if get(at).is_empty() || range.is_empty() {
        end.store(0, Ordering::SeqCst);
    }
    start.store(range.start, Ordering::SeqCst);
    end.store(range.end, Ordering::SeqCst);
}

/// All ranges.
#[must_use]
pub fn ranges() -> Vec<Range<u64>> {
    (0..MOST).map(get).filter(|range| !range.is_empty()).collect()
}

fn advise(range: &Range<u64>, advice: c_int) -> i64 {
    let args = [range.start, range.end - range.start, raw::word(advice), 0, 0, 0];
    // SAFETY: this advice is about core files only.
    unsafe { raw::call(libc::SYS_madvise, args) }
}

fn range(address: u64, length: u64) -> Option<Range<u64>> {
    let end = address.checked_add(length)?;
    end.checked_add(PAGE).map(|_| address..end)
}

/// See ckpt.h.
pub fn exclude(address: u64, length: u64) -> c_int {
    let Some(all) = range(address, length) else {
        return fail(libc::EINVAL, "memory beyond the end of addresses");
    };
    let whole = all.start.next_multiple_of(PAGE)..all.end & !(PAGE - 1);
    if whole.is_empty() {
        return 0;
    }
    lock(&LOCK);
    let result = insert(&whole);
    unlock(&LOCK);
    result.map_or_else(|(error, why)| fail(error, why), |()| 0)
}

fn insert(whole: &Range<u64>) -> Result<(), (c_int, &'static str)> {
    let touches = |at: &usize| {
        let known = get(*at);
        !known.is_empty() && known.start <= whole.end && whole.start <= known.end
    };
    let Some(place) = (0..MOST).find(touches).or_else(|| (0..MOST).find(|at| get(*at).is_empty())) else {
        return Err((libc::ENOSPC, "there are as many excluded ranges as can be"));
    };
    match advise(whole, libc::MADV_DONTDUMP) {
        0 => {}
        error if error == -i64::from(libc::ENOMEM) => {
            return Err((libc::ENOMEM, "not all of it is mapped"));
        }
        _ => return Err((libc::EINVAL, "memory of a device cannot be excluded")),
    }
    let mut union = whole.clone();
    for at in (0..MOST).filter(touches) {
        let known = get(at);
        union = union.start.min(known.start)..union.end.max(known.end);
    }
    set(place, &union);
    for at in (0..MOST).filter(|at| *at != place).filter(touches) {
        set(at, &(0..0));
    }
    Ok(())
}

/// See ckpt.h.
pub fn include(address: u64, length: u64) -> c_int {
    let Some(all) = range(address, length) else {
        return fail(libc::EINVAL, "memory beyond the end of addresses");
    };
    let wide = all.start & !(PAGE - 1)..all.end.next_multiple_of(PAGE);
    lock(&LOCK);
    for at in 0..MOST {
        let known = get(at);
        let part = known.start.max(wide.start)..known.end.min(wide.end);
        if known.is_empty() || part.is_empty() {
            continue;
        }
        // What is gone by now need not be advised.
        advise(&part, libc::MADV_DODUMP);
        let (left, right) = (known.start..part.start, part.end..known.end);
        let spare = (0..MOST).find(|at| get(*at).is_empty());
        if !left.is_empty()
            && !right.is_empty()
            && let Some(spare) = spare
        {
            set(spare, &right);
        }
        // Where there is no room for both, more is kept than need be.
        set(at, if left.is_empty() { &right } else { &left });
    }
    unlock(&LOCK);
    0
}

/// Whoever held the lock is not there.
pub fn in_child() {
    LOCK.store(0, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_cut() {
        // SAFETY: new memory of ours.
        let memory = raw::map(16 << 12, libc::MAP_PRIVATE).expect("memory") as u64;
        let page = |count: u64| memory + (count << 12);
        let of = |from: u64, to: u64| page(from)..page(to);
        assert_eq!(exclude(memory + 1, 2), 0);
        assert_eq!(ranges(), []);
        assert_eq!(exclude(memory + 1, (4 << 12) - 1), 0);
        assert_eq!(ranges(), [of(1, 4)]);
        assert_eq!(exclude(page(8), 4 << 12), 0);
        assert_eq!(ranges(), [of(1, 4), of(8, 12)]);
        assert_eq!(exclude(page(4), 4 << 12), 0);
        assert_eq!(ranges(), [of(1, 12)]);
        assert_eq!(include(page(5) + 7, 1), 0);
        assert_eq!(ranges(), [of(1, 5), of(6, 12)]);
        assert_eq!(include(page(0), 2 << 12), 0);
        assert_eq!(include(page(11), 1 << 20), 0);
        assert_eq!(ranges(), [of(2, 5), of(6, 11)]);
        assert_eq!(include(memory, 16 << 12), 0);
        assert_eq!(ranges(), []);
        // SAFETY: nobody uses it any more.
        unsafe { raw::unmap(memory as *mut u8, 16 << 12) };
        assert_eq!(exclude(memory, 1 << 12), -libc::ENOMEM);
        assert_eq!(exclude(u64::MAX - 5, 20), -libc::EINVAL);
        assert_eq!(ranges(), []);
    }
}
