//! Programs of system calls: the one language in which Rewake asks anything of a process, new or live.
//!
//! A [`Program`] is data: *tracks* (one per thread) of [`Call`]s, and a segment of bytes they point into. Building one is ordinary
//! safe Rust; [`Program::assemble`] turns it into the bytes that the [executor](crate::executor) walks in the target, and
//! [`Program::listing`] prints it, strace-like, for people and for snapshot tests.
//!
//! ```
//! use rewake_linux::program::{Program, Sysno, Value};
//! let mut program = Program::new();
//! let track = program.track("leader");
//! let path = program.string(b"/etc/hostname");
//! let file = program.call(track, Sysno::openat, [Value::from(-100), path.into(), Value::from(0)]).note("a file");
//! let file = file.done();
//! program.call(track, Sysno::close, [Value::Result(file)]);
//! assert!(program.listing().contains("close($0.0)"));
//! ```

mod assemble;
mod listing;
mod sysno;

pub use assemble::{Assembled, CONTEXT_SIZE, ENTRY_SIZE, Failure, flag};
pub use sysno::Sysno;

/// A value known when the program is built, or a reference that [`Program::assemble`] or the executor fills in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Const(u64),
    /// What an earlier call returned.
    Result(CallRef),
    /// The address of bytes in the program's data.
    Data(DataRef),
    /// What a word of the program's data holds when the call is made, written there by an earlier call.
    Word(DataRef),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Const(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Const(value.into())
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Self::Const(i64::from(value).cast_unsigned())
    }
}

impl From<crate::addr::RemoteAddr> for Value {
    fn from(value: crate::addr::RemoteAddr) -> Self {
        Self::Const(value.get())
    }
}

impl From<DataRef> for Value {
    fn from(value: DataRef) -> Self {
        Self::Data(value)
    }
}

impl From<CallRef> for Value {
    fn from(value: CallRef) -> Self {
        Self::Result(value)
    }
}

/// Names a track of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrackRef(pub(crate) usize);

impl TrackRef {
    /// The track at a place in its program, from 0.
    #[must_use]
    pub const fn at(index: usize) -> Self {
        Self(index)
    }

    /// Place of the track in the program, from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

/// Names a call of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallRef {
    /// The track the call is in.
    pub track: TrackRef,
    /// Its place there, from 0.
    pub index: usize,
}

/// Bytes in a program's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRef {
    /// Offset in the data, in bytes.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

impl DataRef {
    /// The part of these bytes that begins `offset` bytes in.
    ///
    /// # Panics
    /// When `offset` is past the end.
    #[must_use]
    pub fn skip(self, offset: usize) -> Self {
        assert!(offset <= self.len, "offset {offset} within {} bytes of data", self.len);
        Self { offset: self.offset + offset, len: self.len - offset }
    }
}

/// Which results let the program go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Whatever comes.
    Any,
    /// Anything but an error number.
    Success,
    /// Success, or this error number (positive, as in `libc::EINVAL`).
    SuccessOr(i32),
    /// Just this number.
    Exactly(u64),
    /// The whole length asked for, in as many calls as it takes: `rsi`, `rdx` and `r10` move on with each part.
    FullTransfer,
}

/// What an entry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// One system call.
    Call(Sysno),
    /// `clone3`; the child walks the track named, the parent goes on.
    Spawn(TrackRef),
    /// A `clone` whose child is a thread and walks this track: where `clone3` is not permitted, as in many containers.
    Thread(TrackRef),
    /// Waits until as many threads as the second argument says have come to the 32-bit word at the first.
    Barrier,
    /// The thread goes on with code that is there by then: at the first argument, standing on the second, with the other two as that
    /// code's arguments. What it finds has to be prepared for that.
    Leave,
}

/// One entry of a track.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What it does.
    pub action: Action,
    /// Up to six arguments; those not given are 0.
    pub args: Vec<Value>,
    /// Results that let the program go on.
    pub accept: Accept,
    /// Whether an EINTR means: again.
    pub retry: bool,
    /// The object it is about, for listings and errors.
    pub note: String,
}

/// The entries of one thread.
#[derive(Clone, Debug, Default)]
pub struct Track {
    /// For listings and errors: "leader", "thread 4711".
    pub name: String,
    /// Walked in order.
    pub calls: Vec<Call>,
    /// Where the thread goes when a result is not accepted: an index into `calls`, from where it is walked on.
    pub on_failure: Option<usize>,
}

/// Pointers inside the data, filled in by [`Program::assemble`].
#[derive(Clone, Copy, Debug)]
enum Pointer {
    Data(DataRef),
    FirstEntry(TrackRef),
    Context(TrackRef),
}

/// A program of system calls. See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Program {
    tracks: Vec<Track>,
    data: Vec<u8>,
    pointers: Vec<(usize, Pointer)>,
}

/// Gives details of the call just added; see [`Program::call`].
#[derive(Debug)]
pub struct CallBuilder<'a> {
    call: &'a mut Call,
    at: CallRef,
}

impl CallBuilder<'_> {
    /// Sets which results let the program go on; [`Accept::Success`] if never called.
    pub fn accept(self, accept: Accept) -> Self {
        self.call.accept = accept;
        self
    }

    /// Makes EINTR mean: again.
    pub fn retry(self) -> Self {
        self.call.retry = true;
        self
    }

    /// Names the object the call is about.
    pub fn note(self, note: impl Into<String>) -> Self {
        self.call.note = note.into();
        self
    }

    /// The call's name, to refer to its result.
    pub fn done(self) -> CallRef {
        self.at
    }
}

impl Program {
    /// A program with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an empty track.
    pub fn track(&mut self, name: impl Into<String>) -> TrackRef {
        self.tracks.push(Track { name: name.into(), ..Track::default() });
        TrackRef(self.tracks.len() - 1)
    }

    /// All tracks, in order of their references.
    #[must_use]
    pub fn tracks(&self) -> &[Track] {
        &self.tracks
    }

    /// The call a reference names.
    #[must_use]
    pub fn get(&self, at: CallRef) -> &Call {
        &self.tracks[at.track.0].calls[at.index]
    }

    /// The data as it is before the program runs; pointers in it are still zero.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Number of entries in all tracks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tracks.iter().map(|track| track.calls.len()).sum()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds bytes to the data, 16-byte aligned.
    pub fn bytes(&mut self, bytes: &[u8]) -> DataRef {
        let offset = self.data.len().next_multiple_of(16);
        self.data.resize(offset, 0);
        self.data.extend_from_slice(bytes);
        DataRef { offset, len: bytes.len() }
    }

    /// Adds `len` zero bytes to the data, 16-byte aligned.
    pub fn zeros(&mut self, len: usize) -> DataRef {
        let offset = self.data.len().next_multiple_of(16);
        self.data.resize(offset + len, 0);
        DataRef { offset, len }
    }

    /// Adds 64-bit words to the data.
    pub fn words(&mut self, words: &[u64]) -> DataRef {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    /// Adds a string to the data, with the zero byte that ends it.
    ///
    /// # Panics
    /// When the string holds a zero byte itself: checked where strings enter from an image.
    pub fn string(&mut self, string: &[u8]) -> DataRef {
        assert!(!string.contains(&0), "a C string holds no zero byte");
        let mut bytes = string.to_vec();
        bytes.push(0);
        self.bytes(&bytes)
    }

    /// Makes the word `offset` bytes into `at` point to `to`.
    pub fn point(&mut self, at: DataRef, offset: usize, to: DataRef) {
        assert!(offset + 8 <= at.len, "a pointer at {offset} within {} bytes", at.len);
        self.pointers.push((at.offset + offset, Pointer::Data(to)));
    }

    /// Adds a system call to a track. Unless told otherwise, only [`Accept::Success`] lets the program go on.
    pub fn call<const N: usize>(&mut self, track: TrackRef, nr: Sysno, args: [Value; N]) -> CallBuilder<'_> {
        self.push(track, Action::Call(nr), &args)
    }

    /// Adds a `clone3` to `track` whose child walks `child`. `args` is `struct clone_args` in the data (at least 64 bytes);
    /// its stack fields are filled in here.
    pub fn spawn(&mut self, track: TrackRef, child: TrackRef, args: DataRef) -> CallBuilder<'_> {
        const STACK: usize = 40;
        let slot = self.zeros(16);
        self.pointers.push((slot.offset, Pointer::Context(child)));
        self.pointers.push((slot.offset + 8, Pointer::FirstEntry(child)));
        self.point(args, STACK, slot);
        self.data[args.offset + STACK + 8..][..8].copy_from_slice(&16u64.to_le_bytes());
        let len = args.len as u64;
        self.push(track, Action::Spawn(child), &[args.into(), len.into()])
    }

    /// Adds a `clone` with these flags to `track` whose child is a thread and walks `child`.
    pub fn thread(&mut self, track: TrackRef, child: TrackRef, flags: u64) -> CallBuilder<'_> {
        let slot = self.zeros(24);
        self.pointers.push((slot.offset, Pointer::Context(child)));
        self.pointers.push((slot.offset + 8, Pointer::FirstEntry(child)));
        // The child finds both below the end of its stack.
        let stack = DataRef { offset: slot.offset + 16, len: 8 };
        let zero = Value::from(0);
        self.push(track, Action::Thread(child), &[flags.into(), stack.into(), zero, zero, zero])
    }

    /// Adds a barrier: the thread waits until `parties` have come to `word` (4 bytes of data, zero at first).
    pub fn barrier(&mut self, track: TrackRef, word: DataRef, parties: u32) -> CallBuilder<'_> {
        self.push(track, Action::Barrier, &[word.into(), parties.into()])
    }

    /// Adds the end of a track: the thread goes on at `place` with its stack pointer at `stack` and these two arguments.
    pub fn leave(
        &mut self,
        track: TrackRef,
        place: Value,
        stack: Value,
        told: [Value; 2],
    ) -> CallBuilder<'_> {
        self.push(track, Action::Leave, &[place, stack, told[0], told[1]])
    }

    /// From here on are the entries that a thread walks when a result was not accepted.
    pub fn on_failure(&mut self, track: TrackRef) {
        let track = &mut self.tracks[track.0];
        track.on_failure = Some(track.calls.len());
    }

    /// Takes an entry out; results that later entries refer to by place move along. For tests that show what an entry is for.
    ///
    /// # Panics
    /// When there is no such entry.
    #[doc(hidden)]
    pub fn remove(&mut self, track: TrackRef, index: usize) {
        self.tracks[track.0].calls.remove(index);
    }

    fn push(&mut self, track: TrackRef, action: Action, args: &[Value]) -> CallBuilder<'_> {
        assert!(args.len() <= 6, "a system call has at most six arguments");
        let calls = &mut self.tracks[track.0].calls;
        let at = CallRef { track, index: calls.len() };
        let args = args.to_vec();
        calls.push(Call { action, args, accept: Accept::Success, retry: false, note: String::new() });
        CallBuilder { call: calls.last_mut().expect("just pushed"), at }
    }
}
