//! Which copy of the library acts where a program has several: linked with `libckpt.a` and with `cmain.o`, which both carry all of it, or
//! linked and preloaded as well.
//!
//! Of those linked in, the one whose names the program's calls lead to. A preloaded one stands back where the program's headers say that
//! another one is linked in.
//!
//! # Safety
//! Unsafe here: addresses of labels of ours; headers and notes of the program as the kernel mapped it.

#![allow(unsafe_code, reason = "see Safety above")]

use core::arch::global_asm;
use core::ffi::CStr;
use core::sync::atomic::{AtomicU32, Ordering};

/// 1: this copy acts.
static ACTS: AtomicU32 = AtomicU32::new(0);
/// 1: the program does not carry it.
static PRELOADED: AtomicU32 = AtomicU32::new(0);

/// How `c/cmain.c` calls itself in a note.
const NAME: &[u8] = b"Rewake\0";

global_asm!(
    ".pushsection .data.rewake_ckpt, \"aw\"",
    ".balign 8",
    ".globl rewake_ckpt_acting",
    ".globl rewake_ckpt_itself",
    ".hidden rewake_ckpt_itself",
    "rewake_ckpt_acting:",
    "rewake_ckpt_itself:",
    ".quad 0",
    ".popsection",
);

/// This copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// It acts.
    Acts,
    /// Another one does.
    StandsBack,
    /// None can: the program has another C library than glibc.
    Cannot(&'static str),
    /// Nor can the program run: it is linked statically, and has not even the functions that ours stand before.
    Unusable(&'static str),
}

/// Finds out, at the start.
#[must_use]
pub fn find_out() -> Copy {
    let (acting, itself): (u64, u64);
    // SAFETY: addresses only.
    unsafe {
        core::arch::asm!(
            "mov {acting}, [rip + rewake_ckpt_acting@GOTPCREL]",
            "lea {itself}, [rip + rewake_ckpt_itself]",
            acting = out(reg) acting,
            itself = out(reg) itself,
            options(nostack, readonly),
        );
    }
    if acting != itself {
        return Copy::StandsBack;
    }
    if linked_statically() {
        return Copy::Unusable(STATIC);
    }
    // SAFETY: the kernel gave the program these headers.
    let headers = unsafe { Headers::of_program() };
    if headers.linked_in && !headers.holds(itself) {
        return Copy::StandsBack;
    }
    if !headers.loaded {
        return Copy::Unusable(STATIC);
    }
    if !glibc() {
        return Copy::Cannot(
            "its C library is not glibc (musl keeps signal 34 for itself): capture it from outside (chkpnt)",
        );
    }
    ACTS.store(1, Ordering::Relaxed);
    PRELOADED.store((!headers.linked_in).into(), Ordering::Relaxed);
    Copy::Acts
}

/// Whether this copy acts.
#[must_use]
pub fn acts() -> bool {
    ACTS.load(Ordering::Relaxed) != 0
}

/// Whether it acts in a program that was not linked with it.
#[must_use]
pub fn is_preloaded() -> bool {
    PRELOADED.load(Ordering::Relaxed) != 0
}

const STATIC: &str = "it is linked statically: link it dynamically, or without the library";

/// Whether the functions of libc that ours stand before are not there: from an archive nobody took them.
fn linked_statically() -> bool {
    let (first, second): (u64, u64);
    // SAFETY: addresses only.
    unsafe {
        core::arch::asm!(
            "mov {first}, [rip + getauxval@GOTPCREL]",
            "mov {second}, [rip + dlsym@GOTPCREL]",
            first = out(reg) first,
            second = out(reg) second,
            options(nostack, readonly),
        );
    }
    first == 0 || second == 0
}

fn glibc() -> bool {
    const NAME: &CStr = c"gnu_get_libc_version";
    // SAFETY: a string of ours.
    unsafe { !libc::dlsym(libc::RTLD_DEFAULT, NAME.as_ptr()).is_null() }
}

/// What the headers of the program say.
struct Headers {
    /// A loader loaded it.
    loaded: bool,
    /// It carries a copy of the library.
    linked_in: bool,
    /// Where it lies.
    start: u64,
    end: u64,
}

impl Headers {
    const fn holds(&self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// # Safety
    /// Called in a program that the kernel has started.
    unsafe fn of_program() -> Self {
        // SAFETY: the C library's copy of what the kernel gave.
        let (first, count) = unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
        let count = usize::try_from(count).unwrap_or(0);
        let mut found = Self { loaded: false, linked_in: false, start: u64::MAX, end: 0 };
        if first == 0 {
            return found;
        }
        // SAFETY: so many headers are there.
        let headers = unsafe { core::slice::from_raw_parts(first as *const libc::Elf64_Phdr, count) };
        let own =
            headers.iter().find(|header| header.p_type == libc::PT_PHDR).map_or(0, |header| header.p_vaddr);
        let base = if own == 0 { 0 } else { first.wrapping_sub(own) };
        for header in headers {
            let start = base.wrapping_add(header.p_vaddr);
            match header.p_type {
                libc::PT_INTERP => found.loaded = true,
                libc::PT_LOAD => {
                    found.start = found.start.min(start);
                    found.end = found.end.max(start + header.p_memsz);
                }
                libc::PT_NOTE => {
                    let len = usize::try_from(header.p_memsz).unwrap_or(0);
                    // SAFETY: notes are in what is mapped.
                    let notes = unsafe { core::slice::from_raw_parts(start as *const u8, len) };
                    found.linked_in |= is_ours(notes, if header.p_align == 8 { 8 } else { 4 });
                }
                _ => {}
            }
        }
        found
    }
}

/// Whether one of these notes is ours.
fn is_ours(mut notes: &[u8], align: usize) -> bool {
    const HEADER: usize = 12;
    let number = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).map_or(0, u32::from_ne_bytes) as usize;
    while notes.len() > HEADER {
        let (name, content) = (number(&notes[..4]), number(&notes[4..8]));
        let rest = &notes[HEADER..];
        if rest.get(..name) == Some(NAME) {
            return true;
        }
        let whole = (HEADER + name).next_multiple_of(align) + content.next_multiple_of(align);
        let Some(next) = notes.get(whole..) else { return false };
        notes = next;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read() {
        let note = |name: &[u8], content: &[u8]| {
            let mut note = Vec::new();
            note.extend(u32::try_from(name.len()).unwrap().to_ne_bytes());
            note.extend(u32::try_from(content.len()).unwrap().to_ne_bytes());
            note.extend(1u32.to_ne_bytes());
            note.extend(name);
            note.resize(note.len().next_multiple_of(4), 0);
            note.extend(content);
            note.resize(note.len().next_multiple_of(4), 0);
            note
        };
        let others = [note(b"GNU\0", &[7; 20]), note(b"", &[1; 3])].concat();
        assert!(!is_ours(&others, 4));
        assert!(is_ours(&[others.clone(), note(NAME, &[])].concat(), 4));
        assert!(is_ours(&[note(NAME, &[1]), others].concat(), 4));
        assert!(!is_ours(&[0xff; 64], 4));
        assert!(!is_ours(&[], 4));
    }
}
