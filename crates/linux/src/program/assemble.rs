//! From a [`Program`] to the bytes that the executor walks.
//!
//! Layout, from the base address: the executor's code (its own pages), one context per track, the entries of all tracks, the data.
//!
//! | entry, 80 bytes | context, 16 bytes |
//! |---|---|
//! | number, six arguments, result, flags, expected result | address of the entry that failed (0: none), entry to go on with then |

use super::{Accept, Action, Call, CallRef, Pointer, Program, TrackRef, Value};
use crate::addr::{RemoteAddr, page_up};
use crate::executor;

/// Size of an entry, in bytes.
pub const ENTRY_SIZE: usize = 80;
/// Size of a track's context, in bytes.
pub const CONTEXT_SIZE: usize = 16;
const RESULT: usize = 56;

/// Flags of an entry. Bits 0 to 5: that argument is the address of the value.
pub mod flag {
    /// An error is accepted only if it is the expected result.
    pub const SUCCESS: u64 = 1 << 8;
    /// Only the expected result is accepted.
    pub const EXACTLY: u64 = 1 << 9;
    /// In the child (result 0), go on with the entry and context found below the stack pointer.
    pub const SPAWN: u64 = 1 << 10;
    /// EINTR: again.
    pub const RETRY: u64 = 1 << 11;
    /// Repeat until the whole length is transferred.
    pub const FULL: u64 = 1 << 12;
    /// Not a call but a barrier.
    pub const BARRIER: u64 = 1 << 13;
    /// Not a call but the end of the track.
    pub const LEAVE: u64 = 1 << 14;
}

/// A program laid out for one base address.
#[derive(Clone, Debug)]
pub struct Assembled {
    base: RemoteAddr,
    bytes: Vec<u8>,
    contexts: usize,
    /// Offset of each track's first entry.
    first_entries: Vec<usize>,
    data: usize,
}

/// Where a program stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The entry whose result was not accepted.
    pub at: CallRef,
    /// The result as the kernel returned it: negative error numbers.
    pub result: i64,
}

impl Assembled {
    /// Everything, to be copied to the base address.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// First instruction of the executor.
    #[must_use]
    pub fn code(&self) -> RemoteAddr {
        self.base
    }

    /// First entry of a track: `r12` when its thread starts.
    #[must_use]
    pub fn first_entry(&self, track: TrackRef) -> RemoteAddr {
        self.base + self.first_entries[track.0] as u64
    }

    /// Context of a track: `r13` when its thread starts.
    #[must_use]
    pub fn context(&self, track: TrackRef) -> RemoteAddr {
        self.base + (self.contexts + track.0 * CONTEXT_SIZE) as u64
    }

    /// Address of bytes in the data.
    #[must_use]
    pub fn data(&self, data: super::DataRef) -> RemoteAddr {
        self.base + self.data_offset(data) as u64
    }

    /// Offset of bytes in the data from the base address.
    #[must_use]
    pub fn data_offset(&self, data: super::DataRef) -> usize {
        self.data + data.offset
    }

    /// What a call returned, read from `memory`: the program's bytes after it ran.
    #[must_use]
    pub fn result(&self, memory: &[u8], at: CallRef) -> u64 {
        word(memory, self.result_offset(at))
    }

    /// Offset of a call's result from the base address.
    #[must_use]
    pub fn result_offset(&self, at: CallRef) -> usize {
        self.first_entries[at.track.0] + at.index * ENTRY_SIZE + RESULT
    }

    /// The first track that stopped at an entry, read from `memory`: the program's bytes after it ran. A pointer that lies in no
    /// track (the target's memory is not trusted) counts as entry 0.
    #[must_use]
    pub fn failure(&self, memory: &[u8]) -> Option<Failure> {
        self.failure_by(|offset| word(memory, offset))
    }

    /// The same, with the program's words read one by one: `load` gets offsets from the base address.
    pub(crate) fn failure_by(&self, load: impl Fn(usize) -> u64) -> Option<Failure> {
        (0..self.first_entries.len()).find_map(|track| {
            let failed = load(self.contexts + track * CONTEXT_SIZE);
            if failed == 0 {
                return None;
            }
            let first = self.base.get() + self.first_entries[track] as u64;
            let end = self.first_entries.get(track + 1).copied().unwrap_or(self.data);
            let count = (end - self.first_entries[track]) / ENTRY_SIZE;
            let index = usize::try_from(failed.wrapping_sub(first)).unwrap_or(usize::MAX) / ENTRY_SIZE;
            let at = CallRef { track: TrackRef(track), index: if index < count { index } else { 0 } };
            Some(Failure { at, result: load(self.result_offset(at)).cast_signed() })
        })
    }
}

fn word(memory: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(memory[at..at + 8].try_into().expect("eight bytes"))
}

impl Program {
    /// Bytes that [`Program::assemble`] will make, in whole pages.
    #[must_use]
    pub fn assembled_size(&self) -> u64 {
        page_up((self.layout().2 + self.data().len()) as u64)
    }

    /// Offsets of contexts, of each track's entries, and of the data.
    fn layout(&self) -> (usize, Vec<usize>, usize) {
        let code = executor::code().len().next_multiple_of(4096);
        let mut at = code + self.tracks().len() * CONTEXT_SIZE;
        let mut first_entries = Vec::with_capacity(self.tracks().len());
        for track in self.tracks() {
            first_entries.push(at);
            at += track.calls.len() * ENTRY_SIZE;
        }
        (code, first_entries, at.next_multiple_of(16))
    }

    /// Lays the program out for `base`, a page-aligned address in the target.
    ///
    /// # Panics
    /// When `base` is not page-aligned, or a track lacks an end or its failure entries: mistakes of the program's author.
    #[must_use]
    pub fn assemble(&self, base: RemoteAddr) -> Assembled {
        assert!(base.is_page_aligned(), "base {base} is page-aligned");
        let (contexts, first_entries, data) = self.layout();
        let mut out = Assembled { base, bytes: Vec::new(), contexts, first_entries, data };
        out.bytes.reserve(data + self.data().len());
        out.bytes.extend_from_slice(executor::code());
        out.bytes.resize(contexts, 0);
        for (index, track) in self.tracks().iter().enumerate() {
            let tail = track.on_failure.expect("a track says where a failure goes");
            assert!(tail < track.calls.len(), "a track's failure entries exist");
            let tail = out.first_entry(TrackRef(index)) + (tail * ENTRY_SIZE) as u64;
            out.bytes.extend_from_slice(&0u64.to_le_bytes());
            out.bytes.extend_from_slice(&tail.get().to_le_bytes());
        }
        for call in self.tracks().iter().flat_map(|track| &track.calls) {
            let entry = encode(call, &out);
            out.bytes.extend_from_slice(&entry);
        }
        out.bytes.resize(data, 0);
        out.bytes.extend_from_slice(self.data());
        for &(offset, pointer) in &self.pointers {
            let to = match pointer {
                Pointer::Data(to) => out.data(to),
                Pointer::FirstEntry(track) => out.first_entry(track),
                Pointer::Context(track) => out.context(track),
            };
            out.bytes[data + offset..][..8].copy_from_slice(&to.get().to_le_bytes());
        }
        out
    }
}

fn encode(call: &Call, out: &Assembled) -> [u8; ENTRY_SIZE] {
    let (number, mut flags) = match call.action {
        Action::Call(nr) => (nr.number(), 0),
        Action::Spawn(_) => (super::Sysno::clone3.number(), flag::SPAWN),
        Action::Thread(_) => (super::Sysno::clone.number(), flag::SPAWN),
        Action::Barrier => (u64::MAX, flag::BARRIER),
        Action::Leave => (u64::MAX, flag::LEAVE),
    };
    let mut words = [0u64; ENTRY_SIZE / 8];
    words[0] = number;
    for (index, value) in call.args.iter().enumerate() {
        words[1 + index] = match *value {
            Value::Const(value) => value,
            Value::Data(data) => out.data(data).get(),
            Value::Word(data) => {
                assert!(data.len >= 8, "an argument has eight bytes");
                flags |= 1 << index;
                out.data(data).get()
            }
            Value::Result(at) => {
                flags |= 1 << index;
                (out.first_entry(at.track) + (at.index * ENTRY_SIZE + RESULT) as u64).get()
            }
        };
    }
    if call.retry {
        flags |= flag::RETRY;
    }
    let (accept, expected) = match call.accept {
        Accept::Any => (0, 0),
        Accept::Success => (flag::SUCCESS, 0),
        Accept::SuccessOr(errno) => (flag::SUCCESS, i64::from(-errno).cast_unsigned()),
        Accept::Exactly(value) => (flag::EXACTLY, value),
        Accept::FullTransfer => (flag::FULL, 0),
    };
    words[8] = flags | accept;
    words[9] = expected;
    let mut bytes = [0; ENTRY_SIZE];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
