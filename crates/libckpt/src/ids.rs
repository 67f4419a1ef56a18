//! The ids of threads that libc has written into locks: in another life they are others.
//!
//! Held robust mutexes are in a list that each thread has. Other locks keep their owner's id too, as far as they look at it: recursive
//! and error-checking mutexes, priority-inheriting ones, and locks for many readers that a writer holds. Which memory is such a lock nobody
//! tells, so all memory that the program can write is looked through for words that are one down to the last, or for somebody who wrote
//! the id of a thread into just such words. Where ids are as small as everyday numbers (in containers) that is not sure enough: then an
//! image with any such words is refused ([`doubtful`]).
//!
//! # Safety
//! Unsafe here: memory that is mapped, present and writable, while no other thread runs, but for what is used meanwhile: the stack
//! and the memory of the library itself; libc's list of robust mutexes, as the kernel reads it.

#![allow(unsafe_code, reason = "see Safety above")]

mod doubt;

pub use doubt::doubtful;

use core::ops::Range;

use rewake_linux::addr::RemoteAddr;
use rewake_linux::pagemap::{PageMap, Query, Run};
use rewake_linux::proc::Proc;

use crate::stand::Slot;
use crate::{arena, raw};

/// In a lock word: the id of the owner.
const OWNER: u32 = 0x3fff_ffff;
/// Kinds of mutexes that look at their owner, whether they are for one process or for many.
const RECURSIVE: u32 = 1;
const CHECKING: u32 = 2;
const TYPE: u32 = 3;
const INHERITING: u32 = 0x20;
const FOR_MANY: u32 = 0x80;
/// More users or recursions no lock has.
const MANY: u32 = 1 << 16;
/// A lock that a writer holds: bits of its number of readers.
const WRITTEN: u32 = 3;
/// Words of a mutex and of a lock for many readers.
const MUTEX: usize = 10;
const WORDS: usize = 14;
const LOCKED: core::ops::RangeInclusive<u32> = 1..=2;
/// Ids below this are numbers of everyday. The kernel gives them out once only, at the start of a host or of a namespace.
const SMALL: i32 = 300;

/// What a word of a lock becomes.
type Change = (usize, u32);

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

    /// What becomes of a lock, if these words are one that is held by a thread whose id changed.
    #[must_use]
    pub fn changed(&self, words: &[u32; WORDS]) -> Option<[Change; 2]> {
        self.mutex(words).or_else(|| self.written(words))
    }

    /// The same of those that numbers of somebody's may look like: not where the id stands twice beside a kind that is rare.
    fn is_doubtful(&self, words: &[u32; WORDS]) -> bool {
        let inheriting = words[4] & INHERITING != 0 && self.mutex(words).is_some();
        !inheriting && self.changed(words).is_some()
    }

    /// `pthread_mutex_t`: lock, count, owner, users, kind, spins; links of robust ones only.
    fn mutex(&self, words: &[u32; WORDS]) -> Option<[Change; 2]> {
        let &[lock, count, owner, users, kind, ref rest @ ..] = words;
        let now = self.now(owner)?;
        let is_one = (1..MANY).contains(&users) && rest[..MUTEX - 5].iter().all(|word| *word == 0);
        let held = match kind & !FOR_MANY {
            RECURSIVE => LOCKED.contains(&lock) && (1..MANY).contains(&count),
            CHECKING => LOCKED.contains(&lock) && count == 0,
            kind if kind & !TYPE == INHERITING => lock & OWNER == owner && count < MANY,
            _ => false,
        };
        let lock = if kind & INHERITING == 0 { lock } else { lock & !OWNER | now };
        (is_one && held).then_some([(0, lock), (2, now)])
    }

    /// `pthread_rwlock_t`: readers, writers, two futexes, padding, the writer, whether it is for many processes, padding, kind.
    fn written(&self, words: &[u32; WORDS]) -> Option<[Change; 2]> {
        /// In the number of writers: the lock is handed from one to the next.
        const HANDED_OVER: u32 = 1 << 31;
        let now = self.now(words[6])?;
        let futex = |word: u32| word == 1 || word == 3;
        let held = words[0] & WRITTEN == WRITTEN
            && words[0] < MANY
            && words[1] & !HANDED_OVER < MANY
            && futex(words[2])
            && futex(words[3])
            && words[7] <= 1
            && words[12] <= 2
            && [4, 5, 8, 9, 10, 11].iter().all(|at| words[*at] == 0);
        held.then_some([(6, now), (6, now)])
    }

    /// Puts all mutexes right that lie in memory this process can write, but for its own and the stack that this runs on.
    ///
    /// # Safety
    /// No other thread runs.
    pub unsafe fn put_right(&self, stack: &Range<u64>) {
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
                // SAFETY: called by the one thread there is; it takes no memory meanwhile.
                let own = |call: &mut dyn FnMut(Range<u64>)| unsafe {
                    call(stack.clone());
                    arena::each_range(call);
                };
                apart(run.start.get()..run.end().get(), &own, &mut |part| {
                    // SAFETY: present, readable and writable; nobody else runs, and this is not ours.
                    unsafe { self.look_through(RemoteAddr::new(part.start), RemoteAddr::new(part.end)) };
                });
            }
        }
    }

    /// Looks through memory that is there.
    ///
    /// # Safety
    /// It can be read and written, and nobody else does.
    pub unsafe fn look_through(&self, start: RemoteAddr, end: RemoteAddr) {
        let length = usize::try_from(end.get().saturating_sub(start.get())).unwrap_or(0);
        // SAFETY: the caller's; mutexes are aligned to eight bytes, as pages are.
        let words = unsafe { core::slice::from_raw_parts_mut(start.get() as *mut u32, length / 4) };
        self.each(words, &mut |memory, words| {
            for (at, word) in self.changed(words).iter().flatten() {
                memory[*at] = *word;
            }
        });
    }

    /// Calls for each place that may be a lock in some memory that begins with a multiple of eight bytes.
    fn each(&self, memory: &mut [u32], found: &mut dyn FnMut(&mut [u32], &[u32; WORDS])) {
        let (Some(&(lowest, _)), Some(&(highest, _))) = (self.0.first(), self.0.last()) else { return };
        let ids = lowest..=highest;
        for at in (0..memory.len().saturating_sub(MUTEX - 1)).step_by(2) {
            let here = &memory[at..memory.len().min(at + WORDS)];
            if ids.contains(&here[2]) || here.get(6).is_some_and(|word| ids.contains(word)) {
                // What is behind the end is nothing that a lock has there.
                let mut words = [u32::MAX; WORDS];
                for (to, from) in words.iter_mut().zip(here) {
                    // SAFETY: a word of ours or of the caller's. One by one, as nobody's `memcpy` need like to read there: that of
                    // AddressSanitizer does not.
                    *to = unsafe { core::ptr::from_ref(from).read_volatile() };
                }
                found(&mut memory[at..], &words);
            }
        }
    }
}

/// Called for each of some ranges.
type Each<'a> = &'a mut dyn FnMut(Range<u64>);

/// Calls for each part of a range that lies in none of some others, in ascending order.
fn apart(range: Range<u64>, others: &dyn Fn(Each<'_>), call: Each<'_>) {
    let mut at = range.start;
    while at < range.end {
        let mut next = range.end..range.end;
        others(&mut |other| {
            if other.end > at && other.start < next.start {
                next = other;
            }
        });
        if at < next.start {
            call(at..next.start);
        }
        at = next.end;
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

    fn words(first: &[u32]) -> [u32; WORDS] {
        std::array::from_fn(|at| first.get(at).copied().unwrap_or(0))
    }

    /// As glibc 2.36 writes them.
    #[test]
    fn only_what_is_a_held_lock_is_changed() {
        let ids = Ids::new([(100, 200), (50, 60), (7, 7)].into_iter());
        let changed = |first: &[u32]| ids.changed(&words(first));
        assert_eq!(changed(&[1, 1, 100, 1, 1]), Some([(0, 1), (2, 200)]));
        assert_eq!(changed(&[2, 3, 100, 2, 0x81]), Some([(0, 2), (2, 200)]));
        assert_eq!(changed(&[2, 0, 50, 1, 2]), Some([(0, 2), (2, 60)]));
        let waited_for = 0x8000_0000;
        assert_eq!(changed(&[waited_for | 100, 1, 100, 1, 0x20]), Some([(0, waited_for | 200), (2, 200)]));
        assert_eq!(changed(&[3, 0, 1, 1, 0, 0, 100]), Some([(6, 200); 2]));
        assert_eq!(changed(&[11, 0, 3, 3, 0, 0, 50, 1, 0, 0, 0, 0, 2]), Some([(6, 60); 2]));
        for other in [
            // Not held, by somebody else, by somebody who is who he was, by nobody.
            &[0, 0, 100, 1, 1][..],
            &[1, 1, 101, 1, 1],
            &[1, 1, 7, 1, 1],
            &[1, 1, 100, 0, 1],
            // These do not look at their owner.
            &[1, 0, 100, 1, 0],
            &[1, 0, 100, 1, 3],
            // Robust ones are in a list.
            &[100, 0, 100, 1, 0x10],
            // Numbers of somebody's.
            &[1, 0, 100, 3, 4],
            &[1, 0, 100, 1, 1],
            &[1, 1, 100, 1, 2],
            &[1, 1, 100, 1, 1, 1],
            &[1, 1, 100, 1, 1, 0, 0, 0, 0, 9],
            &[2, 0, 1, 1, 0, 0, 100],
            &[3, 0, 1, 1, 0, 0, 100, 2],
            &[3, 0, 0, 1, 0, 0, 100],
            &[3, 0, 1, 1, 0, 0, 100, 0, 0, 0, 0, 0, 3],
        ] {
            assert_eq!(changed(other), None, "{other:?}");
        }
    }

    #[test]
    fn what_is_our_own_is_left_out() {
        let parts = |range: Range<u64>, own: &[(u64, u64)]| {
            let mut parts = Vec::new();
            let own = |call: &mut dyn FnMut(Range<u64>)| own.iter().for_each(|(from, to)| call(*from..*to));
            apart(range, &own, &mut |part| parts.push((part.start, part.end)));
            parts
        };
        assert_eq!(parts(10..20, &[]), [(10, 20)]);
        assert_eq!(parts(10..20, &[(30, 40), (0, 10), (20, 30)]), [(10, 20)]);
        assert_eq!(parts(10..20, &[(16, 18), (12, 14)]), [(10, 12), (14, 16), (18, 20)]);
        assert_eq!(parts(10..20, &[(12, 14), (13, 15), (5, 11)]), [(11, 12), (15, 20)]);
        assert_eq!(parts(10..20, &[(18, 30), (0, 12)]), [(12, 18)]);
        assert_eq!(parts(10..20, &[(5, 30)]), []);
        assert_eq!(parts(10..10, &[(5, 30)]), []);
    }

    #[test]
    fn memory_is_looked_through_to_its_end() {
        let ids = Ids::new([(100, 200)].into_iter());
        let mut memory = [0u32; 1024];
        for at in [6, 1024 - MUTEX] {
            memory[at..at + 5].copy_from_slice(&[1, 1, 100, 1, 1]);
        }
        memory[300..307].copy_from_slice(&[3, 0, 1, 1, 0, 0, 100]);
        memory[500] = 100;
        let before = memory;
        let range = memory.as_mut_ptr_range();
        // SAFETY: the array, which nobody else uses.
        unsafe { ids.look_through(RemoteAddr::new(range.start as u64), RemoteAddr::new(range.end as u64)) };
        for (at, (then, now)) in before.iter().zip(&memory).enumerate() {
            let expected = if [8, 1024 - MUTEX + 2, 306].contains(&at) { 200 } else { *then };
            assert_eq!(*now, expected, "word {at}");
        }
    }
}
