//! The ids of threads that libc has written into mutexes: in another life they are others.
//!
//! A held mutex keeps its owner's id. Which memory is a mutex nobody tells, so all memory that the program can write is looked through
//! for words that can be nothing else: a lock, its owner (the id of one of the threads, as it was), a count of users, and a kind.
//!
//! # Safety
//! Unsafe here: memory that is mapped, present and writable, while no other thread runs; libc's list of robust mutexes, as the
//! kernel reads it.

#![allow(unsafe_code, reason = "see Safety above")]

use rewake_linux::addr::RemoteAddr;
use rewake_linux::pagemap::{PageMap, Query, Run};
use rewake_linux::proc::Proc;

use crate::raw;
use crate::stand::Slot;

/// In a lock word: the id of the owner.
const OWNER: u32 = 0x3fff_ffff;
/// Kinds of mutexes, and those whose lock word holds the owner: robust and priority-inheriting ones.
const KINDS: u32 = 0x1ff;
const ROBUST: u32 = 0x10;
const INHERITING: u32 = 0x20;
/// More users or recursions no mutex has.
const MANY: u32 = 1 << 16;
/// Words of a mutex that are looked at.
const WORDS: usize = 5;
/// Bytes of a mutex up to its links.
const LEAST: u64 = 24;
const LOCKED: core::ops::RangeInclusive<u32> = 1..=2;

/// Ids as they were and as they are now, in ascending order of the first.
#[derive(Clone, Debug, Default)]
pub struct Ids(Vec<(u32, u32)>);

impl Ids {
    /// Of threads that changed theirs.
    pub fn new(ids: impl Iterator<Item = (i32, i32)>) -> Self {
        let mut ids: Vec<(u32, u32)> = ids
            .filter(|(then, now)| then != now)
            .map(|(then, now)| (then.unsigned_abs(), now.unsigned_abs()))
            .collect();
        ids.sort_unstable();
        Self(ids)
    }

    fn now(&self, then: u32) -> Option<u32> {
        self.0.binary_search_by_key(&then, |(then, _)| *then).ok().map(|at| self.0[at].1)
    }

    /// What lock and owner of a mutex become, if these are the first words of one that is held by a thread whose id changed.
    #[must_use]
    pub fn changed(&self, [lock, count, owner, users, kind]: [u32; WORDS]) -> Option<(u32, u32)> {
        let now = self.now(owner)?;
        if kind & !KINDS != 0 || !(1..MANY).contains(&users) || count >= MANY {
            return None;
        }
        if kind & (ROBUST | INHERITING) != 0 {
            return (lock & OWNER == owner).then_some((lock & !OWNER | now, now));
        }
        LOCKED.contains(&lock).then_some((lock, now))
    }

    /// Puts all mutexes right that lie in memory this process can write.
    ///
    /// # Safety
    /// No other thread runs.
    pub unsafe fn put_right(&self) {
        if self.0.is_empty() {
            return;
        }
        let Ok(own) = Proc::own() else { return };
        let (Ok(maps), Ok(mut pages)) = (own.maps(), PageMap::of(&own)) else { return };
        let both = (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned();
        let mut runs: Vec<Run> = Vec::new();
        for mapping in maps.iter().filter(|mapping| mapping.protection & both == both) {
            runs.clear();
            let query = if mapping.shared { Query::RESIDENT } else { Query::ANONYMOUS };
            if pages.scan_into(mapping.start..mapping.end, query, &mut runs).is_err() {
                continue;
            }
            for run in &runs {
                // SAFETY: present, readable and writable; nobody else runs.
                unsafe { self.look_through(run.start, run.end()) };
            }
        }
    }

    /// Looks through memory that is there.
    ///
    /// # Safety
    /// It can be read and written, and nobody else does.
    pub unsafe fn look_through(&self, start: RemoteAddr, end: RemoteAddr) {
        let (Some(&(lowest, _)), Some(&(highest, _))) = (self.0.first(), self.0.last()) else { return };
        let mut at = start.get();
        while at + LEAST <= end.get() {
            let words = at as *mut u32;
            // SAFETY: the caller's; mutexes are aligned to eight bytes.
            unsafe {
                let owner = words.add(2).read();
                if (lowest..=highest).contains(&owner)
                    && let Some((lock, owner)) = self.changed(words.cast::<[u32; WORDS]>().read())
                {
                    words.write(lock);
                    words.add(2).write(owner);
                }
            }
            at += 8;
        }
    }
}

/// Puts the list of robust mutexes right that the calling thread holds: the kernel looks at their lock words when it ends.
///
/// # Safety
/// The slot is the calling thread's.
pub unsafe fn put_robust_list_right(slot: &Slot) {
    const MOST: usize = 1 << 20;
    let (mut head, mut len) = (core::ptr::null_mut::<u64>(), 0u64);
    // SAFETY: two words of ours.
    let told = unsafe {
        raw::call(libc::SYS_get_robust_list, [0, &raw mut head as u64, &raw mut len as u64, 0, 0, 0])
    };
    if told != 0 || head.is_null() {
        return;
    }
    let (then, now) = (slot.tid.unsigned_abs(), raw::gettid().unsigned_abs());
    // SAFETY: libc keeps the list as the kernel wants it: links, then where the lock word lies from each; the entry in the making.
    unsafe {
        let offset = head.add(1).read().cast_signed();
        let put_right = |entry: u64| {
            if entry & !1 == 0 {
                return;
            }
            let lock = (entry & !1).wrapping_add_signed(offset) as *mut u32;
            if lock.read() & OWNER == then {
                lock.write(lock.read() & !OWNER | now);
                if lock.add(2).read() == then {
                    lock.add(2).write(now);
                }
            }
        };
        put_right(head.add(2).read());
        let mut entry = head.read();
        for _ in 0..MOST {
            if entry & !1 == head as u64 || entry & !1 == 0 {
                return;
            }
            let next = ((entry & !1) as *const u64).read();
            put_right(entry);
            entry = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_looks_like_a_held_mutex_is_changed() {
        let ids = Ids::new([(100, 200), (50, 60), (7, 7)].into_iter());
        assert_eq!(ids.changed([1, 1, 100, 1, 1]), Some((1, 200)));
        assert_eq!(ids.changed([2, 0, 50, 1, 2]), Some((2, 60)));
        assert_eq!(ids.changed([0x8000_0000 | 100, 0, 100, 1, 0x10]), Some((0x8000_0000 | 200, 200)));
        for other in [
            [0, 0, 100, 1, 0],
            [1, 0, 101, 1, 0],
            [1, 0, 7, 1, 0],
            [1, 0, 100, 0, 0],
            [1, 0, 100, 1, 0x1000],
            [1, 0, 100, 1, 0x20],
            [3, 0, 100, 1, 0],
        ] {
            assert_eq!(ids.changed(other), None, "{other:?}");
        }
    }

    #[test]
    fn memory_is_looked_through() {
        let ids = Ids::new([(100, 200)].into_iter());
        let mut memory = [0u64; 512];
        let mutex = |memory: &mut [u64; 512], at: usize| {
            memory[at] = 1 | 1 << 32;
            memory[at + 1] = 100 | 1 << 32;
            memory[at + 2] = 1;
        };
        mutex(&mut memory, 3);
        mutex(&mut memory, 509);
        memory[100] = 100;
        let before = memory;
        let range = memory.as_mut_ptr_range();
        // SAFETY: the array, which nobody else uses.
        unsafe { ids.look_through(RemoteAddr::new(range.start as u64), RemoteAddr::new(range.end as u64)) };
        for (at, (then, now)) in before.iter().zip(&memory).enumerate() {
            let expected = if [4, 510].contains(&at) { 200 | 1 << 32 } else { *then };
            assert_eq!(*now, expected, "word {at}");
        }
    }
}
