//! The seed of a restored process: shared memory that holds its program, and the clone that starts to walk it.
//!
//! [`SharedStage`] is memory at an address free in both our own and the new process; both see the program, its results and its
//! barriers there. [`SharedStage::clone_seed`] makes the child, which enters the executor at once and never returns to Rust.
//!
//! # Safety
//! Unsafe here: mapping the stage at an address the kernel confirms to be free, slices of exactly that mapping while it exists,
//! atomics on its words (the child writes them concurrently), and the clone whose child executes only the jump to the executor.

#![allow(unsafe_code, reason = "mapping and cloning, see Safety above")]

use std::arch::asm;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::addr::{PAGE_SIZE, RemoteAddr};
use crate::executor;
use crate::program::{Assembled, CallRef, DataRef, Failure, TrackRef};

/// Memory shared with the process being made, holding an assembled program.
#[derive(Debug)]
pub struct SharedStage {
    base: RemoteAddr,
    len: usize,
}

impl SharedStage {
    /// Maps `len` bytes of fresh shared memory at `base`, which must be free, and copies the program in. The pages of the
    /// executor become read-only and executable.
    ///
    /// # Errors
    /// The kernel's, e.g. EEXIST where something is mapped at `base` already.
    ///
    /// # Panics
    /// When the program was assembled for another address or is larger than `len`.
    pub fn map(base: RemoteAddr, len: u64, program: &Assembled) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        assert!(program.code() == base && program.bytes().len() <= len, "program fits its stage");
        let at = base.get() as *mut libc::c_void;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: the kernel guarantees that MAP_FIXED_NOREPLACE replaces nothing; the result is checked to be `at`.
        let got = unsafe { libc::mmap(at, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if got == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stage = Self { base, len };
        let code = executor::code().len().next_multiple_of(4096);
        // SAFETY: the mapping was made above with at least this length, and no one else knows of it yet.
        unsafe {
            std::slice::from_raw_parts_mut(at.cast::<u8>(), program.bytes().len())
                .copy_from_slice(program.bytes());
            if libc::mprotect(at, code, libc::PROT_READ | libc::PROT_EXEC) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(stage)
    }

    /// The stage's address range.
    #[must_use]
    pub fn range(&self) -> (RemoteAddr, u64) {
        (self.base, self.len as u64)
    }

    /// A copy of the memory as it is now, for [`Assembled::failure`] and [`Assembled::result`].
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        (0..self.len / 8).flat_map(|index| self.load(index * 8).to_le_bytes()).collect()
    }

    /// The first track that has stopped at an entry by now, if any has.
    #[must_use]
    pub fn failure(&self, program: &Assembled) -> Option<Failure> {
        program.failure_by(|offset| self.load(offset))
    }

    /// What a call returned, as it is now.
    #[must_use]
    pub fn result(&self, program: &Assembled, at: CallRef) -> u64 {
        self.load(program.result_offset(at))
    }

    fn load(&self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len, "a word lies within the stage");
        // SAFETY: aligned and within our mapping (read-write or read-execute); volatile because the child may write.
        unsafe { ((self.base.get() + offset as u64) as *const u64).read_volatile() }
    }

    /// How many have come to the barrier `word`.
    #[must_use]
    pub fn arrived(&self, program: &Assembled, word: DataRef) -> u32 {
        self.word(program, word).load(Ordering::Acquire)
    }

    /// Writes the first eight bytes of `word`.
    pub fn store(&self, program: &Assembled, word: DataRef, value: u64) {
        let offset = program.data_offset(word);
        assert!(
            offset.is_multiple_of(8) && word.len >= 8 && offset + 8 <= self.len,
            "a word within the stage"
        );
        // SAFETY: aligned and within our mapping, which lives as long as self; the new process only reads it.
        unsafe { ((self.base.get() + offset as u64) as *mut u64).write_volatile(value) };
    }

    /// Comes to the barrier `word` as one party, waking the others.
    pub fn arrive(&self, program: &Assembled, word: DataRef) {
        let word = self.word(program, word);
        word.fetch_add(1, Ordering::AcqRel);
        futex(word, libc::FUTEX_WAKE, i32::MAX.cast_unsigned(), None);
    }

    /// Sleeps until the barrier `word` no longer holds `seen`, or the time is over; may wake early.
    pub fn wait_change(&self, program: &Assembled, word: DataRef, seen: u32, timeout: Duration) {
        futex(self.word(program, word), libc::FUTEX_WAIT, seen, Some(timeout));
    }

    fn word(&self, program: &Assembled, word: DataRef) -> &AtomicU32 {
        let offset = program.data_offset(word);
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.len, "a barrier lies within the stage");
        // SAFETY: aligned and within our mapping, which lives as long as self; other parties use atomic instructions too.
        unsafe { AtomicU32::from_ptr((self.base.get() + offset as u64) as *mut u32) }
    }

    /// Walks `track` with this very process, which must have one thread: what it was is gone, and the stage with it all that is left.
    /// All signals are blocked from here on.
    pub fn enter(self, program: &Assembled, track: TrackRef) -> ! {
        let _blocked = BlockedSignals::block();
        let (code, entry, context) =
            (program.code().get(), program.first_entry(track).get(), program.context(track).get());
        // SAFETY: the executor uses no stack and never comes back; nothing of this process is used by anybody any more.
        unsafe {
            asm!(
                "jmp {code}",
                code = in(reg) code,
                in("r12") entry,
                in("r13") context,
                options(noreturn),
            );
        }
    }

    /// Makes the child that walks `track`. `pid` asks for that id. All signals are blocked in it.
    ///
    /// # Errors
    /// The kernel's: EEXIST if the id is taken, EPERM if we may not choose it.
    pub fn clone_seed(&self, program: &Assembled, track: TrackRef, pid: Option<i32>) -> io::Result<i32> {
        let _blocked = BlockedSignals::block();
        let set_tid = [pid.unwrap_or(0)];
        let mut args = [0u64; 11]; // struct clone_args
        args[4] = libc::SIGCHLD.unsigned_abs().into();
        if pid.is_some() {
            args[8] = set_tid.as_ptr() as u64;
            args[9] = 1;
        }
        let (code, entry, context) =
            (program.code().get(), program.first_entry(track).get(), program.context(track).get());
        let result: i64;
        // SAFETY: without CLONE_VM the child has its own copy of everything but the stage; it executes nothing but the jump to
        // the executor, which uses no stack and never comes back. The parent only gets the result.
        unsafe {
            asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "jmp r8",
                "2:",
                inlateout("rax") libc::SYS_clone3 => result,
                in("rdi") args.as_ptr(),
                in("rsi") size_of_val(&args),
                in("r8") code,
                in("r12") entry,
                in("r13") context,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        match i32::try_from(result) {
            Ok(errno) if errno < 0 => Err(io::Error::from_raw_os_error(-errno)),
            Ok(pid) => Ok(pid),
            Err(_) => Err(io::Error::other("clone3 returned no process id")),
        }
    }
}

impl Drop for SharedStage {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and every borrow of it ends before self.
        unsafe { libc::munmap(self.base.get() as *mut libc::c_void, self.len) };
    }
}

/// All signals blocked, until dropped; by the system call itself, since libc would leave its own two out.
struct BlockedSignals(u64);

impl BlockedSignals {
    fn block() -> Self {
        let (all, mut old) = (u64::MAX, 0u64);
        // SAFETY: both sets are 8 bytes on our stack, as the last argument says.
        unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, &raw mut old, 8)
        };
        Self(old)
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<u64>();
        // SAFETY: the set is 8 bytes, filled by the kernel.
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const self.0, none, 8) };
    }
}

fn futex(word: &AtomicU32, operation: i32, value: u32, timeout: Option<Duration>) {
    let time = timeout.map(|time| libc::timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word outlives the call and the time, where given, is on our stack. Every result means: look again.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, time) };
}

/// A registration with rseq(2) as libc made it for its threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnRseq {
    /// Address of the calling thread's area.
    pub address: RemoteAddr,
    /// Signature before abort handlers.
    pub signature: u32,
}

/// The calling thread's rseq area, if libc keeps one. A forked child has the same.
#[must_use]
pub fn own_rseq() -> Option<OwnRseq> {
    const SIGNATURE: u32 = 0x5305_3053;
    let thread_pointer: u64;
    // SAFETY: dlsym gets a C string; the symbol, where there is one, is glibc's constant `ptrdiff_t`; reading fs:0 is what the
    // x86-64 ABI defines for every thread with thread-local storage.
    unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr());
        if symbol.is_null() {
            return None;
        }
        asm!("mov {}, fs:0", out(reg) thread_pointer, options(nostack, readonly));
        let offset = symbol.cast::<i64>().read();
        let address = RemoteAddr::new(thread_pointer.wrapping_add_signed(offset));
        Some(OwnRseq { address, signature: SIGNATURE })
    }
}

/// Size of the smallest page, asserted to be what addresses assume.
const _: () = assert!(PAGE_SIZE == 4096);
