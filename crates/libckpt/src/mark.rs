//! The mark: memory by whose name others see that the library is in a process, and which signal it waits for.
//!
//! A page that nobody can touch, of a memfd of that name; where there is no memfd, one that is named. It is there only while the library
//! acts: absent from images, made anew in another life, gone with exec. Of two copies of the library in one process the second finds it.
//!
//! # Safety
//! Unsafe here: raw system calls with text and buffers of ours.

#![allow(unsafe_code, reason = "see Safety above")]

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use rewake_linux::inside::{MARK, SHOWN};

use crate::raw;

const PAGE: u64 = 4096;
/// Flag of memfd_create(2): never executable, as some hosts demand; older kernels do not know it.
const NOEXEC_SEAL: u32 = 8;
const PR_SET_VMA: i32 = 0x5356_4d41;
/// Room for the name, the number and a zero byte.
const NAME: usize = MARK.len() + 3;

/// Where it is; 0 for nowhere.
static PLACE: AtomicU64 = AtomicU64::new(0);

/// Makes the mark, in this life.
pub fn set(signal: i32) {
    let mut name = [0u8; NAME];
    name[..MARK.len()].copy_from_slice(MARK.as_bytes());
    let digit = |value: u32| b'0' + u8::try_from(value % 10).unwrap_or(0);
    name[MARK.len()] = digit(signal.unsigned_abs() / 10);
    name[MARK.len() + 1] = digit(signal.unsigned_abs());
    let place = of_file(&name).or_else(|| named(&name));
    PLACE.store(place.unwrap_or(0), Ordering::Relaxed);
}

/// Its addresses, if it is there.
#[must_use]
pub fn range() -> Option<Range<u64>> {
    let place = PLACE.load(Ordering::Relaxed);
    (place != 0).then(|| place..place + PAGE)
}

fn of_file(name: &[u8; NAME]) -> Option<u64> {
    let flags = libc::MFD_CLOEXEC;
    // SAFETY: a string of ours.
    let create = |flags: u32| unsafe {
        let made = raw::call(libc::SYS_memfd_create, [name.as_ptr() as u64, flags.into(), 0, 0, 0, 0]);
        i32::try_from(made).ok().filter(|fd| *fd >= 0)
    };
    let fd = create(flags | NOEXEC_SEAL).or_else(|| create(flags))?;
    let place = page(libc::MAP_PRIVATE, fd);
    raw::close(fd);
    place
}

fn named(name: &[u8; NAME]) -> Option<u64> {
    let place = page(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
    let args = [raw::word(PR_SET_VMA), 0, place, PAGE, name.as_ptr() as u64, 0];
    // SAFETY: a page and a string of ours. A kernel that does not know names leaves it without one.
    unsafe { raw::call(libc::SYS_prctl, args) };
    Some(place)
}

fn page(flags: i32, fd: i32) -> Option<u64> {
    let args = [0, PAGE, raw::word(libc::PROT_NONE), raw::word(flags), raw::word(fd), 0];
    // SAFETY: a new mapping where the kernel likes.
    let place = unsafe { raw::call(libc::SYS_mmap, args) };
    u64::try_from(place).ok().filter(|place| *place != 0)
}

/// Whether a mark is in this process, whichever copy of the library made it.
#[must_use]
pub fn is_there() -> bool {
    let flags = raw::word(libc::O_CLOEXEC);
    let path = c"/proc/self/maps".as_ptr() as u64;
    // SAFETY: a string of ours.
    let file = unsafe { raw::call(libc::SYS_openat, [raw::word(libc::AT_FDCWD), path, flags, 0, 0, 0]) };
    let Ok(file @ 0..) = i32::try_from(file) else { return false };
    let mut seen = SHOWN.map(|shown| Seen { name: shown.as_bytes(), len: 0 });
    let mut found = false;
    let mut buffer = [0u8; 4096];
    while !found {
        let args = [raw::word(file), buffer.as_mut_ptr() as u64, buffer.len() as u64, 0, 0, 0];
        // SAFETY: a buffer of ours.
        let read = unsafe { raw::call(libc::SYS_read, args) };
        let Ok(read @ 1..) = usize::try_from(read) else { break };
        found = buffer[..read.min(buffer.len())].iter().any(|byte| {
            let [a, b] = &mut seen;
            // Both look at every byte.
            a.sees(*byte) | b.sees(*byte)
        });
    }
    raw::close(file);
    found
}

/// How much of a name the last bytes were; its first byte is nowhere else in it.
struct Seen {
    name: &'static [u8],
    len: usize,
}

impl Seen {
    fn sees(&mut self, byte: u8) -> bool {
        self.len = match self.name.get(self.len) {
            Some(wanted) if *wanted == byte => self.len + 1,
            _ => usize::from(self.name.first() == Some(&byte)),
        };
        self.len == self.name.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_once_it_is_set() {
        assert!(!is_there());
        set(34);
        assert!(is_there());
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let signals: Vec<i32> = maps.lines().filter_map(rewake_linux::inside::signal_in).collect();
        assert_eq!(signals, [34]);
        let start = format!("{:x}-", range().unwrap().start);
        assert!(maps.lines().any(|line| line.starts_with(&start) && line.contains("---p")));
    }

    #[test]
    fn a_name_is_seen_behind_the_beginning_of_another() {
        let mut seen = Seen { name: b"/memfd:", len: 0 };
        let text = b"/mem/memfd:";
        let count = text.iter().filter(|byte| seen.sees(**byte)).count();
        assert_eq!(count, 1);
    }
}
