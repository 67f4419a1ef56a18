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
mod tests;
