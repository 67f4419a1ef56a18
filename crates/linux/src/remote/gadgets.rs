//! Instructions of the target's own that a first remote call is made with.
//!
//! # Safety
//! The one unsafe block searches a slice of ours with memmem(3).

#![allow(unsafe_code, reason = "memmem, see Safety above")]

use super::RemoteError;
use crate::addr::RemoteAddr;
use crate::memory::ProcessMemory;
use crate::proc::{Mapping, MappingKind};
use crate::program::Sysno;

/// `syscall; ret`.
const SYSCALL_RET: &[u8] = &[0x0f, 0x05, 0xc3];
/// `mov $15, %rax; syscall`: the restorer of glibc, musl...
const SIGRETURN_64: &[u8] = &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
/// `mov $15, %eax; syscall`: of Go and others.
const SIGRETURN_32: &[u8] = &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05];
/// `pop %rax; ret`: for programs that never handle a signal and have no restorer.
const POP_RAX_RET: &[u8] = &[0x58, 0xc3];
/// The number that the way back is made with.
pub(super) const RT_SIGRETURN: u64 = Sysno::rt_sigreturn.number();
/// Bytes read at once.
const CHUNK: usize = 128 << 10;
/// Bytes of a chunk that are read again with the next, so that nothing is cut in two.
const OVERLAP: usize = 16;

/// Addresses of instructions in the target that never change while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gadgets {
    /// `syscall; ret`.
    pub syscall_ret: RemoteAddr,
    /// How a `ret` leads into `rt_sigreturn`.
    pub way_back: WayBack,
}

/// What stands on a stack below a frame, so that a `ret` there ends in `rt_sigreturn` with the frame on top of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayBack {
    /// The C library's own `rt_sigreturn`.
    Sigreturn(RemoteAddr),
    /// `pop %rax; ret` into `syscall`.
    PopRax(RemoteAddr),
}

impl Gadgets {
    /// Looks for both in the target's code: files' and the vdso's, the C library first.
    ///
    /// # Errors
    /// [`RemoteError::NoGadget`] when one is not there; when memory cannot be read.
    pub fn find(maps: &[Mapping], memory: &ProcessMemory) -> Result<Self, RemoteError> {
        let mut code: Vec<&Mapping> = maps.iter().filter(|mapping| is_code(mapping)).collect();
        code.sort_by_key(|mapping| rank(mapping));
        let mut search = Search::default();
        let mut buffer = vec![0; CHUNK];
        for mapping in code {
            search.mapping(mapping, memory, &mut buffer)?;
            if let (Some(syscall_ret), Some(sigreturn)) = (search.syscall_ret, search.sigreturn) {
                return Ok(Self { syscall_ret, way_back: WayBack::Sigreturn(sigreturn) });
            }
        }
        if let (Some(syscall_ret), Some(pop)) = (search.syscall_ret, search.pop_rax_ret) {
            return Ok(Self { syscall_ret, way_back: WayBack::PopRax(pop) });
        }
        let missing = if search.syscall_ret.is_none() { "syscall; ret" } else { "mov $15, %eax; syscall" };
        Err(RemoteError::NoGadget { pid: memory.pid(), missing })
    }

    /// The words below a frame.
    #[must_use]
    pub fn words_below(&self) -> Vec<u64> {
        match self.way_back {
            WayBack::Sigreturn(sigreturn) => vec![sigreturn.get()],
            WayBack::PopRax(pop) => vec![pop.get(), RT_SIGRETURN, self.syscall_ret.get()],
        }
    }
}

#[derive(Default)]
struct Search {
    syscall_ret: Option<RemoteAddr>,
    sigreturn: Option<RemoteAddr>,
    pop_rax_ret: Option<RemoteAddr>,
}

impl Search {
    fn mapping(
        &mut self,
        mapping: &Mapping,
        memory: &ProcessMemory,
        buffer: &mut [u8],
    ) -> Result<(), RemoteError> {
        let mut at = mapping.start;
        while at < mapping.end && (self.syscall_ret.is_none() || self.sigreturn.is_none()) {
            let left = usize::try_from(mapping.end.get() - at.get()).unwrap_or(usize::MAX);
            let buffer = &mut buffer[..left.min(CHUNK)];
            // A file may have been cut short behind its mapping: what lies behind its end cannot be read.
            let Ok(len) = memory.read_at(at, buffer) else { return Ok(()) };
            if len == 0 {
                return Ok(());
            }
            self.bytes(at, &buffer[..len]);
            if len == left {
                break;
            }
            at = at + len.saturating_sub(OVERLAP).max(1) as u64;
        }
        Ok(())
    }

    fn bytes(&mut self, at: RemoteAddr, bytes: &[u8]) {
        let find = |pattern| position(bytes, pattern).map(|offset| at + offset as u64);
        self.syscall_ret = self.syscall_ret.or_else(|| find(SYSCALL_RET));
        self.sigreturn = self.sigreturn.or_else(|| find(SIGRETURN_64)).or_else(|| find(SIGRETURN_32));
        self.pop_rax_ret = self.pop_rax_ret.or_else(|| find(POP_RAX_RET));
    }
}

fn is_code(mapping: &Mapping) -> bool {
    let executable = mapping.protection & libc::PROT_EXEC.cast_unsigned() != 0;
    executable && matches!(mapping.kind(), MappingKind::File(_) | MappingKind::Vdso)
}

/// The C library has both, near its beginning; the vdso is small.
fn rank(mapping: &Mapping) -> u8 {
    let MappingKind::File(path) = mapping.kind() else { return 1 };
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    if name.starts_with(b"libc.") || name.starts_with(b"libc-") || name.starts_with(b"ld-musl") {
        0
    } else {
        2
    }
}

fn position(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    // SAFETY: both slices are ours and passed with their lengths; memmem returns null or a pointer into the first.
    let found =
        unsafe { libc::memmem(bytes.as_ptr().cast(), bytes.len(), pattern.as_ptr().cast(), pattern.len()) };
    (!found.is_null()).then(|| found.addr() - bytes.as_ptr().addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_found_where_they_are() {
        let bytes = [0x90, 0x0f, 0x05, 0x0f, 0x05, 0xc3, 0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05];
        let mut search = Search::default();
        search.bytes(RemoteAddr::new(0x1000), &bytes);
        assert_eq!(search.syscall_ret, Some(RemoteAddr::new(0x1003)));
        assert_eq!(search.sigreturn, Some(RemoteAddr::new(0x1006)));
        assert_eq!(position(&bytes, &[0xcc]), None);
        assert_eq!(search.pop_rax_ret, None);
        search.bytes(RemoteAddr::new(0x2000), &[0x90, 0x58, 0xc3]);
        assert_eq!(search.pop_rax_ret, Some(RemoteAddr::new(0x2001)));
    }

    #[test]
    fn both_ways_back_end_at_the_frame() {
        let syscall_ret = RemoteAddr::new(0x1000);
        let gadgets = |way_back| Gadgets { syscall_ret, way_back };
        assert_eq!(gadgets(WayBack::Sigreturn(RemoteAddr::new(5))).words_below(), [5]);
        assert_eq!(gadgets(WayBack::PopRax(RemoteAddr::new(5))).words_below(), [5, 15, 0x1000]);
    }

    #[test]
    fn a_process_with_a_c_library_has_gadgets() {
        let own = crate::proc::Proc::own().unwrap();
        let memory = ProcessMemory::open(own.id()).unwrap();
        let gadgets = Gadgets::find(&own.maps().unwrap(), &memory).unwrap();
        let mut bytes = [0; 3];
        memory.read_exact_at(gadgets.syscall_ret, &mut bytes).unwrap();
        assert_eq!(bytes, SYSCALL_RET);
    }
}
