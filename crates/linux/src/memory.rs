//! A target's memory, read and written through `/proc/PID/mem`.
//!
//! It needs the *permission* to trace the target, not the tracing itself. Large pieces are fastest (2.3 GB/s with 4 MiB reads).
//! The file belongs to the address space that the process has when it is opened: after an `execve` it reads nothing.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use crate::addr::{PAGE_SIZE, RemoteAddr};
use crate::proc::Proc;

/// Access to a target's memory failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} failed for pid {pid} (memory at {address}, {len} bytes): {source}")]
pub struct MemoryError {
    /// "open", "read" or "write".
    pub operation: &'static str,
    /// The process.
    pub pid: i32,
    /// Where.
    pub address: RemoteAddr,
    /// How much, in bytes.
    pub len: usize,
    /// What the kernel said.
    pub source: io::Error,
}

/// An open `/proc/PID/mem`.
#[derive(Debug)]
pub struct ProcessMemory {
    pid: i32,
    file: File,
}

impl ProcessMemory {
    /// Opens the memory of process `pid` for reading and writing.
    ///
    /// # Errors
    /// When the process is gone or we may not trace it.
    pub fn open(pid: i32) -> Result<Self, MemoryError> {
        let open = || {
            // The first thread may have ended, and has no memory then.
            let living = Proc::open_living(pid).map_or(pid, |process| process.living());
            let path = format!("/proc/{living}/mem");
            match File::options().read(true).write(true).open(&path) {
                // In a container `/proc` may be for reading only, which most need.
                Err(error) if error.raw_os_error() == Some(libc::EROFS) => File::open(&path),
                opened => opened,
            }
        };
        Self::new(pid, crate::twin::memory_of(pid).unwrap_or_else(open))
    }

    /// The private memory that process `pid` had when this one became a copy of it; where there is no such snapshot, what it has now.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn snapshot(pid: i32) -> Result<Self, MemoryError> {
        crate::twin::snapshot_of(pid).map_or_else(|| Self::open(pid), |file| Self::new(pid, file))
    }

    fn new(pid: i32, file: io::Result<File>) -> Result<Self, MemoryError> {
        let address = RemoteAddr::default();
        let file = file.map_err(|source| MemoryError { operation: "open", pid, address, len: 0, source })?;
        Ok(Self { pid, file })
    }

    /// The process.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Reads up to `into.len()` bytes; fewer where a mapping ends. 0: the address space is gone.
    ///
    /// # Errors
    /// When nothing is mapped at `address`.
    pub fn read_at(&self, address: RemoteAddr, into: &mut [u8]) -> Result<usize, MemoryError> {
        let len = into.len();
        self.file.read_at(into, address.get()).map_err(|source| self.error("read", address, len, source))
    }

    /// Fills `into`.
    ///
    /// # Errors
    /// When not all of it is mapped.
    pub fn read_exact_at(&self, address: RemoteAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        let len = into.len();
        self.file
            .read_exact_at(into, address.get())
            .map_err(|source| self.error("read", address, len, source))
    }

    /// Fills `into` with what is there now, and with zeros where nothing is. Tells where that was: whole pages, but for the ends of what was
    /// asked for.
    pub fn read_there_at(&self, address: RemoteAddr, into: &mut [u8]) -> Vec<Range<RemoteAddr>> {
        let mut gone: Vec<Range<RemoteAddr>> = Vec::new();
        let mut done = 0;
        while done < into.len() {
            let at = address + done as u64;
            match self.file.read_at(&mut into[done..], at.get()) {
                Ok(count @ 1..) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It fails at the page where the last one has ended early.
                Ok(_) | Err(_) => {
                    let len = (PAGE_SIZE - at.get() % PAGE_SIZE).min((into.len() - done) as u64);
                    let end = done + usize::try_from(len).unwrap_or(usize::MAX);
                    into[done..end].fill(0);
                    match gone.last_mut().filter(|last| last.end == at) {
                        Some(last) => last.end = at + len,
                        None => gone.push(at..at + len),
                    }
                    done = end;
                }
            }
        }
        gone
    }

    /// A 64-bit word.
    ///
    /// # Errors
    /// When it is not mapped.
    pub fn read_word(&self, address: RemoteAddr) -> Result<u64, MemoryError> {
        let mut word = [0; 8];
        self.read_exact_at(address, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// Writes all bytes. Write protection of the mapping does not matter (private pages are copied).
    ///
    /// # Errors
    /// When not all of it is mapped.
    pub fn write_all_at(&self, address: RemoteAddr, bytes: &[u8]) -> Result<(), MemoryError> {
        let written = self.file.write_all_at(bytes, address.get());
        written.map_err(|source| self.error("write", address, bytes.len(), source))
    }

    fn error(
        &self,
        operation: &'static str,
        address: RemoteAddr,
        len: usize,
        source: io::Error,
    ) -> MemoryError {
        MemoryError { operation, pid: self.pid, address, len, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_its_own_process() {
        let mut place = Box::new([1_u8, 2, 3, 4]);
        let address = RemoteAddr::new(place.as_mut_ptr().addr() as u64);
        let memory = ProcessMemory::open(std::process::id().cast_signed()).unwrap();
        let mut bytes = [0; 4];
        memory.read_exact_at(address, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4]);
        memory.write_all_at(address, &[5, 6]).unwrap();
        assert_eq!(std::hint::black_box(&place)[..], [5, 6, 3, 4]);
        let error = memory.read_word(RemoteAddr::new(0)).unwrap_err().to_string();
        assert!(error.contains("memory at 0x0, 8 bytes"), "{error}");
    }

    #[test]
    fn what_lies_behind_a_gap_is_read() {
        let place = vec![7_u8; 6 * 4096];
        let begin = (place.as_ptr().addr() as u64).next_multiple_of(PAGE_SIZE);
        let page = |number: u64| RemoteAddr::new(begin + number * PAGE_SIZE);
        // Nobody maps anything there meanwhile: a file without content is mapped, pages of which nobody can read.
        let file = rustix::fs::memfd_create("empty", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        for number in [1, 2] {
            cover(page(number), &file);
        }
        let memory = ProcessMemory::open(std::process::id().cast_signed()).unwrap();
        let mut bytes = vec![9; 4 * 4096 + 100];
        assert_eq!(memory.read_there_at(page(0), &mut bytes), [page(1)..page(3)]);
        let expected = [vec![7; 4096], vec![0; 2 * 4096], vec![7; 4096 + 100]].concat();
        assert!(bytes == expected);
        assert_eq!(
            memory.read_there_at(RemoteAddr::new(0x1ff0), &mut bytes[..32]),
            [RemoteAddr::new(0x1ff0)..RemoteAddr::new(0x2010)]
        );
        assert_eq!(memory.read_there_at(page(0), &mut bytes[..5000]), [page(1)..page(0) + 5000]);
        std::mem::forget(place);
    }

    #[allow(
        unsafe_code,
        reason = "a mapping in the midst of memory that the test has allocated and never gives back"
    )]
    fn cover(at: RemoteAddr, file: &rustix::fd::OwnedFd) {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        // SAFETY: memory of the caller's, which nobody uses any more.
        let mapped = unsafe {
            mmap(at.get() as *mut _, 4096, ProtFlags::READ, MapFlags::PRIVATE | MapFlags::FIXED, file, 0)
        };
        mapped.unwrap();
    }
}
