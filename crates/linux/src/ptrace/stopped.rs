//! What can be done with a stopped tracee.

use std::ffi::c_void;
use std::marker::PhantomData;

use super::{Options, PtraceError, Running, Stopped, wait};
use crate::arch::x86_64::regs::WORDS;
use crate::arch::x86_64::{Registers, XState};
use crate::signal::{SIGINFO_SIZE, SigInfo, SignalSet};

const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
const PTRACE_SECCOMP_GET_FILTER: u32 = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: u32 = 0x420d;
const NT_PRSTATUS: usize = 1;
const NT_X86_XSTATE: usize = 0x202;
/// Enough for every processor so far (AMX: 11 KiB); more is asked for when it is not.
const XSTATE_GUESS: usize = 16 << 10;
const PEEK_BATCH: usize = 64;

/// Where a thread's restartable sequences are registered; all 0: nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RseqConfiguration {
    /// Address of `struct rseq`.
    pub address: u64,
    /// Its size as registered, in bytes.
    pub size: u32,
    /// The four bytes before every abort handler.
    pub signature: u32,
    /// Flags it was registered with.
    pub flags: u32,
}

/// A seccomp filter of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeccompFilter {
    /// `SECCOMP_FILTER_FLAG_*`, as far as the kernel tells.
    pub flags: u64,
    /// `struct sock_filter`, 8 bytes each.
    pub instructions: Vec<u8>,
}

/// What became of a tracee that was to be let go.
#[derive(Debug)]
pub enum Detached {
    /// It runs on by itself.
    Free,
    /// It was killed meanwhile and is to be waited for.
    Gone(Running),
}

/// `struct ptrace_rseq_configuration`.
#[repr(C)]
#[derive(Default)]
struct RawRseq {
    address: u64,
    size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}

/// `struct ptrace_peeksiginfo_args`.
#[repr(C)]
struct PeekArgs {
    offset: u64,
    flags: u32,
    count: i32,
}

impl Stopped {
    /// The thread's id.
    #[must_use]
    pub const fn tid(&self) -> i32 {
        self.tid
    }

    /// General registers, exactly as the kernel has them.
    ///
    /// # Errors
    /// When the tracee is gone.
    pub fn registers(&self) -> Result<Registers, PtraceError> {
        let mut words = [0u64; WORDS];
        let mut iov = libc::iovec { iov_base: words.as_mut_ptr().cast(), iov_len: size_of_val(&words) };
        self.request(
            "PTRACE_GETREGSET (general)",
            libc::PTRACE_GETREGSET,
            number(NT_PRSTATUS),
            (&raw mut iov).cast(),
        )?;
        Ok(Registers::from_words(words))
    }

    /// Sets the general registers.
    ///
    /// # Errors
    /// When the tracee is gone, or an address in them is not one of user space (EIO).
    pub fn set_registers(&self, registers: &Registers) -> Result<(), PtraceError> {
        let mut words = *registers.words();
        let mut iov = libc::iovec { iov_base: words.as_mut_ptr().cast(), iov_len: size_of_val(&words) };
        self.request(
            "PTRACE_SETREGSET (general)",
            libc::PTRACE_SETREGSET,
            number(NT_PRSTATUS),
            (&raw mut iov).cast(),
        )?;
        Ok(())
    }

    /// Extended state.
    ///
    /// # Errors
    /// When the tracee is gone, or the processor has no xsave (ENODEV).
    ///
    /// # Panics
    /// Never: the kernel's area has at least its header.
    pub fn xstate(&self) -> Result<XState, PtraceError> {
        let mut bytes = vec![0u8; XSTATE_GUESS];
        loop {
            let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let at = (&raw mut iov).cast();
            self.request("PTRACE_GETREGSET (xstate)", libc::PTRACE_GETREGSET, number(NT_X86_XSTATE), at)?;
            if iov.iov_len < bytes.len() {
                bytes.truncate(iov.iov_len);
                bytes.shrink_to_fit();
                return Ok(XState::from_bytes(bytes).expect("the kernel's xsave area has a header"));
            }
            bytes.resize(bytes.len() * 2, 0);
        }
    }

    /// Sets the extended state.
    ///
    /// # Errors
    /// When the tracee is gone, or the state does not fit this processor (EINVAL).
    pub fn set_xstate(&self, xstate: &XState) -> Result<(), PtraceError> {
        let mut bytes = xstate.as_bytes().to_vec();
        let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let at = (&raw mut iov).cast();
        self.request("PTRACE_SETREGSET (xstate)", libc::PTRACE_SETREGSET, number(NT_X86_XSTATE), at)?;
        Ok(())
    }

    /// The signal mask. Inside a call that lends the thread another one (`sigsuspend`, `ppoll`...), the one it returns to.
    ///
    /// # Errors
    /// When the tracee is gone.
    pub fn signal_mask(&self) -> Result<SignalSet, PtraceError> {
        let mut bits = 0u64;
        self.request(
            "PTRACE_GETSIGMASK",
            libc::PTRACE_GETSIGMASK,
            number(size_of::<u64>()),
            (&raw mut bits).cast(),
        )?;
        Ok(SignalSet::from_bits(bits))
    }

    /// Sets the signal mask, also the one an interrupted call would return to.
    ///
    /// # Errors
    /// When the tracee is gone.
    pub fn set_signal_mask(&self, mask: SignalSet) -> Result<(), PtraceError> {
        let mut bits = mask.bits();
        self.request(
            "PTRACE_SETSIGMASK",
            libc::PTRACE_SETSIGMASK,
            number(size_of::<u64>()),
            (&raw mut bits).cast(),
        )?;
        Ok(())
    }

    /// All pending signals, in the order of their queue: those of the whole process (`shared`) or of this thread.
    ///
    /// # Errors
    /// When the tracee is gone.
    pub fn pending(&self, shared: bool) -> Result<Vec<SigInfo>, PtraceError> {
        let mut all = Vec::new();
        loop {
            let mut batch = [[0u8; SIGINFO_SIZE]; PEEK_BATCH];
            let mut args = PeekArgs { offset: all.len() as u64, flags: shared.into(), count: 64 };
            let (from, to) = ((&raw mut args).cast(), batch.as_mut_ptr().cast());
            let count = self.request("PTRACE_PEEKSIGINFO", libc::PTRACE_PEEKSIGINFO, from, to)?;
            let count = usize::try_from(count).unwrap_or(0).min(PEEK_BATCH);
            all.extend(batch[..count].iter().copied().map(SigInfo::from_bytes));
            if count == 0 {
                return Ok(all);
            }
        }
    }

    /// The signal whose delivery the tracee stopped at.
    ///
    /// # Errors
    /// When the tracee is gone or stopped for another reason (EINVAL).
    pub fn siginfo(&self) -> Result<SigInfo, PtraceError> {
        let mut bytes = [0u8; SIGINFO_SIZE];
        self.request("PTRACE_GETSIGINFO", libc::PTRACE_GETSIGINFO, number(0), bytes.as_mut_ptr().cast())?;
        Ok(SigInfo::from_bytes(bytes))
    }

    /// Gives up the signal whose delivery the tracee stopped at: it is dropped also if the tracer dies before it resumes the
    /// tracee. (Otherwise the kernel delivers it then.)
    pub fn give_up_signal(&self) {
        let _ = wait::take(self.tid);
    }

    /// Where the thread's restartable sequences are registered.
    ///
    /// # Errors
    /// When the tracee is gone, or the kernel cannot tell (before 5.13: EIO).
    pub fn rseq(&self) -> Result<RseqConfiguration, PtraceError> {
        let mut raw = RawRseq::default();
        let to = (&raw mut raw).cast();
        let size = number(size_of::<RawRseq>());
        self.request("PTRACE_GET_RSEQ_CONFIGURATION", PTRACE_GET_RSEQ_CONFIGURATION, size, to)?;
        let RawRseq { address, size, signature, flags, .. } = raw;
        Ok(RseqConfiguration { address, size, signature, flags })
    }

    /// Whether the thread has its system calls dispatched to itself (`PR_SET_SYSCALL_USER_DISPATCH`). Kernels too old to tell
    /// (before 6.4) count as no.
    ///
    /// # Errors
    /// When the tracee is gone.
    pub fn dispatches_syscalls(&self) -> Result<bool, PtraceError> {
        let mut mode_selector_offset_len = [0u64; 4];
        let (size, to) =
            (number(size_of_val(&mode_selector_offset_len)), mode_selector_offset_len.as_mut_ptr().cast());
        let name = "PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG";
        match self.request(name, PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, size, to) {
            Ok(_) => Ok(mode_selector_offset_len[0] != 0),
            Err(error) if error.source.raw_os_error() == Some(libc::EIO) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the process is stopped by job control: told in a stop that we asked for.
    ///
    /// # Errors
    /// As [`Stopped::siginfo`].
    pub fn is_in_group_stop(&self) -> Result<bool, PtraceError> {
        Ok(self.siginfo()?.signal() != libc::SIGTRAP)
    }

    /// Changes how the tracee is traced.
    ///
    /// # Errors
    /// When the tracee is gone, or we may not.
    pub fn set_options(&self, options: Options) -> Result<(), PtraceError> {
        let bits = usize::try_from(options.bits()).unwrap_or(0);
        self.request("PTRACE_SETOPTIONS", libc::PTRACE_SETOPTIONS, number(0), number(bits)).map(|_| ())
    }

    /// The thread's seccomp filters, first installed first.
    ///
    /// # Errors
    /// When the tracee is gone, or we may not read them (without CAP_SYS_ADMIN: EACCES).
    pub fn seccomp_filters(&self) -> Result<Vec<SeccompFilter>, PtraceError> {
        const INSTRUCTION: usize = 8;
        let name = "PTRACE_SECCOMP_GET_FILTER";
        let mut all = Vec::new();
        loop {
            let at = number(all.len());
            let length = match self.request(name, PTRACE_SECCOMP_GET_FILTER, at, number(0)) {
                Ok(length) => usize::try_from(length).unwrap_or(0),
                Err(error) if error.source.raw_os_error() == Some(libc::ENOENT) => return Ok(all),
                Err(error) => return Err(error),
            };
            let mut instructions = vec![0u8; length * INSTRUCTION];
            self.request(name, PTRACE_SECCOMP_GET_FILTER, at, instructions.as_mut_ptr().cast())?;
            let mut offset_flags = [all.len() as u64, 0];
            let (size, to) = (number(size_of_val(&offset_flags)), offset_flags.as_mut_ptr().cast());
            self.request("PTRACE_SECCOMP_GET_METADATA", PTRACE_SECCOMP_GET_METADATA, size, to)?;
            all.push(SeccompFilter { flags: offset_flags[1], instructions });
        }
    }

    /// Lets the tracee run on, delivering `signal` (0: none) when it stopped at a signal's delivery.
    ///
    /// # Errors
    /// When the tracee is not ours. One that was killed counts as running: waiting tells.
    pub fn cont(self, signal: i32) -> Result<Running, PtraceError> {
        self.resume("PTRACE_CONT", libc::PTRACE_CONT, signal)
    }

    /// Lets the tracee run to the next entry or exit of a system call.
    ///
    /// # Errors
    /// As [`Stopped::cont`].
    pub fn syscall(self) -> Result<Running, PtraceError> {
        self.resume("PTRACE_SYSCALL", libc::PTRACE_SYSCALL, 0)
    }

    /// Ends the tracing and lets the thread run on, delivering `signal` (0: none) when it stopped at a signal's delivery.
    ///
    /// # Errors
    /// When the tracee is not ours.
    pub fn detach(self, signal: i32) -> Result<Detached, PtraceError> {
        match self.request("PTRACE_DETACH", libc::PTRACE_DETACH, number(0), signal_number(signal)) {
            Ok(_) => Ok(Detached::Free),
            Err(error) if error.is_gone() => Ok(Detached::Gone(self.into_running())),
            Err(error) => Err(error),
        }
    }

    /// Asks for a stop as soon as the tracee is resumed and has left the system call it is entering.
    pub fn interrupt_next(&self) -> Result<(), PtraceError> {
        self.request("PTRACE_INTERRUPT", libc::PTRACE_INTERRUPT, number(0), number(0)).map(|_| ())
    }

    pub(super) fn at_syscall_entry(&self) -> Result<bool, PtraceError> {
        const ENTRY: u8 = 1;
        let mut info = [0u64; 16];
        let (size, to) = (number(size_of_val(&info)), info.as_mut_ptr().cast());
        self.request("PTRACE_GET_SYSCALL_INFO", libc::PTRACE_GET_SYSCALL_INFO, size, to)?;
        Ok(info[0].to_le_bytes()[0] == ENTRY)
    }

    pub(super) fn into_running(self) -> Running {
        Running { tid: self.tid, thread_bound: PhantomData }
    }

    fn resume(self, name: &'static str, request: u32, signal: i32) -> Result<Running, PtraceError> {
        match self.request(name, request, number(0), signal_number(signal)) {
            Ok(_) => Ok(self.into_running()),
            Err(error) if error.is_gone() => Ok(self.into_running()),
            Err(error) => Err(error),
        }
    }

    /// One ptrace request. `addr` and `data` are numbers or pointers to locals of the caller.
    fn request(
        &self,
        name: &'static str,
        request: u32,
        addr: *mut c_void,
        data: *mut c_void,
    ) -> Result<i64, PtraceError> {
        // SAFETY: each caller passes numbers, or pointers to its own locals of the size that the request writes; no request
        // used here keeps a pointer.
        let result = unsafe { libc::ptrace(request, self.tid, addr, data) };
        if result == -1 { Err(PtraceError::last(name, self.tid)) } else { Ok(result) }
    }
}

/// A number where ptrace takes a pointer.
fn number(number: usize) -> *mut c_void {
    std::ptr::without_provenance_mut(number)
}

fn signal_number(signal: i32) -> *mut c_void {
    number(usize::try_from(signal).unwrap_or(0))
}
