//! POSIX message queues. Nobody can look at a message without receiving it: so all are received and sent again, in the same order, while
//! the programs that use the queue stand still. Whoever does so keeps account in memory that another process shares, which can finish it.
//!
//! # Safety
//! Every block here is one system call on a descriptor that lives through it, with buffers of ours of at least the length it is told; or
//! touches the shared memory of a [`Journal`] within its bounds, word by word, as long as it is mapped.

#![allow(unsafe_code, reason = "system calls without a safe wrapper and shared memory, see Safety above")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::proc::Proc;

/// `MQUEUE_MAGIC`.
const MAGIC: i64 = 0x1980_0202;
/// Words before the messages.
const HEADER: usize = 8;
const ACTIVE: usize = 0;
const PID: usize = 1;
const FD: usize = 2;
const TOTAL: usize = 3;
const SIZE: usize = 4;
const BYTES: usize = 5;
const PUTTING: usize = 6;

/// For how long there may be no room for a message that goes back, and between looks.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(1);

/// What a queue is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Most messages, and the longest of them.
    pub max_messages: u64,
    /// Bytes of the longest.
    pub message_size: u64,
    /// Messages in it now.
    pub messages: u64,
}

/// What a queue's file says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Bytes of all messages.
    pub bytes: u64,
    /// Somebody asked to be told of the next message (mq_notify).
    pub notice: Option<Notice>,
}

/// Who is told of the next message, as far as the kernel shows it: not what comes with the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// `SIGEV_*`.
    pub kind: i32,
    /// The signal, if it is one.
    pub signal: i32,
    /// The process, in our pid namespace; 0: in none of those.
    pub pid: i32,
}

/// Whether a file (`O_PATH` will do) is a message queue.
#[must_use]
pub fn is_queue(file: impl AsFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|system| system.f_type == MAGIC)
}

fn check(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Asks.
///
/// # Errors
/// When it is no queue.
pub fn attributes(queue: impl AsFd) -> io::Result<Attributes> {
    // struct mq_attr: flags, most messages, message size, messages, four more.
    let mut words = [0u64; 8];
    let (fd, nothing) = (queue.as_fd().as_raw_fd(), std::ptr::null::<u64>());
    // SAFETY: the kernel writes one `struct mq_attr`.
    check(unsafe { libc::syscall(libc::SYS_mq_getsetattr, fd, nothing, words.as_mut_ptr()) })?;
    Ok(Attributes { max_messages: words[1], message_size: words[2], messages: words[3] })
}

/// Reads what its file says.
///
/// # Errors
/// When it may not be read.
pub fn state(queue: &File) -> io::Result<State> {
    let mut text = [0; 256];
    let length = queue.read_at(&mut text, 0)?;
    let text = String::from_utf8_lossy(&text[..length]).into_owned();
    let word = |key: &str| text.split_whitespace().find_map(|word| word.strip_prefix(key));
    let number = |key: &str| word(key).and_then(|word| word.parse::<i32>().ok()).unwrap_or(0);
    let notice = Notice { kind: number("NOTIFY:"), signal: number("SIGNO:"), pid: number("NOTIFY_PID:") };
    let nobody = Notice { kind: 0, signal: 0, pid: 0 };
    let bytes = word("QSIZE:").and_then(|word| word.parse().ok()).unwrap_or(0);
    Ok(State { bytes, notice: (notice != nobody).then_some(notice) })
}

/// Sends messages that somebody else has received and did not come to send again.
///
/// # Errors
/// When the queue is gone, or may not be written.
pub fn put_back(pid: i32, fd: i32, messages: &[Message]) -> io::Result<()> {
    let queue = reopen(pid, fd)?;
    messages.iter().try_for_each(|(priority, content)| send(&queue, content, *priority))
}

/// Sends a message. Should the target go on meanwhile and have filled the queue, there is room again later.
fn send(queue: &File, content: &[u8], priority: u32) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        let (fd, nothing) = (queue.as_raw_fd(), std::ptr::null::<u64>());
        let (data, length) = (content.as_ptr(), content.len());
        // SAFETY: the bytes of the message, which live through the call; no time is given: the queue does not block.
        let sent =
            check(unsafe { libc::syscall(libc::SYS_mq_timedsend, fd, data, length, priority, nothing) });
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && begin.elapsed() < PATIENCE => {
                std::thread::sleep(PAUSE);
            }
            sent => return sent.map(drop),
        }
    }
}

/// The queue of that name (it begins with a slash) in our IPC namespace.
///
/// # Errors
/// When there is none, or it may not be read.
pub fn open(name: &[u8]) -> io::Result<File> {
    let name = plain(name)?;
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the name ends with a zero byte.
    let fd = check(unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0, 0) })?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel gave it to us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// Takes a queue's name away.
///
/// # Errors
/// When there is none, or it is another's.
pub fn unlink(name: &[u8]) -> io::Result<()> {
    let name = plain(name)?;
    // SAFETY: the name ends with a zero byte.
    check(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) }).map(drop)
}

/// As the kernel takes it.
fn plain(name: &[u8]) -> io::Result<CString> {
    let name = name.strip_prefix(b"/").unwrap_or(name);
    CString::new(name).map_err(io::Error::other)
}

/// Account of the queue whose messages are in our hands.
#[derive(Debug)]
pub struct Journal {
    file: File,
}

/// A message, and its priority.
pub type Message = (u32, Vec<u8>);

impl Journal {
    /// An empty one: processes that are forked from now on share it.
    ///
    /// # Errors
    /// When the kernel gives no memory file.
    pub fn new() -> io::Result<Self> {
        Ok(Self { file: rustix::fs::memfd_create("rewake-queue", MemfdFlags::CLOEXEC)?.into() })
    }

    /// The messages of the queue at descriptor `fd` of process `pid`; they are in it again.
    ///
    /// # Errors
    /// When it may not be read and written, or somebody else received or sent meanwhile.
    pub fn read(&self, pid: i32, fd: i32) -> io::Result<Vec<Message>> {
        let queue = reopen(pid, fd)?;
        let Attributes { message_size, messages, .. } = attributes(&queue)?;
        if messages == 0 {
            return Ok(Vec::new());
        }
        let number = |number: u64| usize::try_from(number).map_err(io::Error::other);
        let (total, size) = (number(messages)?, number(message_size)?);
        let words = HEADER + total * (2 + size.div_ceil(8));
        self.file.set_len(0)?;
        self.file.set_len(u64::try_from(words * 8).map_err(io::Error::other)?)?;
        let shared = Shared::map(&self.file)?;
        let header = [
            (PID, u64::from(pid.unsigned_abs())),
            (FD, u64::from(fd.unsigned_abs())),
            (TOTAL, messages),
            (SIZE, message_size),
            (BYTES, state(&queue)?.bytes),
            (ACTIVE, 1),
        ];
        header.into_iter().for_each(|(at, word)| shared.put(at, word));
        shared.all(&queue)?;
        let message = |place: usize| {
            let at = shared.slot(place);
            let length = usize::try_from(shared.get(at + 1).saturating_sub(1)).unwrap_or(0);
            let bytes = (0..length.div_ceil(8)).flat_map(|word| shared.get(at + 2 + word).to_le_bytes());
            (u32::try_from(shared.get(at) & 0xffff_ffff).unwrap_or(0), bytes.take(length).collect())
        };
        Ok((0..total).map(message).collect())
    }

    /// Finishes what another process began and did not come to finish.
    ///
    /// # Errors
    /// When the queue is gone, or may not be read and written.
    pub fn recover(&self) -> io::Result<()> {
        if self.file.metadata()?.len() == 0 {
            return Ok(());
        }
        let shared = Shared::map(&self.file)?;
        if shared.get(ACTIVE) == 0 {
            return Ok(());
        }
        let number = |at| i32::try_from(shared.get(at)).map_err(io::Error::other);
        shared.finish(&reopen(number(PID)?, number(FD)?)?)
    }
}

/// A queue for ourselves: whose it is may have it for one of both only.
fn reopen(pid: i32, fd: i32) -> io::Result<File> {
    let proc = Proc::open_living(pid).map_err(io::Error::other)?;
    proc.open_file(&format!("fd/{fd}"), OFlags::RDWR | OFlags::NONBLOCK).map_err(io::Error::other)
}

/// The journal, mapped: words.
struct Shared {
    words: NonNull<u64>,
    count: usize,
}

impl Shared {
    fn map(file: &File) -> io::Result<Self> {
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, where the kernel finds room.
        let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, rights, MapFlags::SHARED, file, 0)? };
        let words = NonNull::new(at.cast::<u64>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { words, count: bytes / 8 })
    }

    fn place(&self, at: usize) -> *mut u64 {
        assert!(at < self.count, "word {at} of {}", self.count);
        // SAFETY: within the mapping.
        unsafe { self.words.as_ptr().add(at) }
    }

    fn get(&self, at: usize) -> u64 {
        // SAFETY: within the mapping, aligned; whoever shares it has stopped, or waits for us.
        unsafe { self.place(at).read_volatile() }
    }

    fn put(&self, at: usize, word: u64) {
        // SAFETY: as above.
        unsafe { self.place(at).write_volatile(word) };
    }

    /// Priority, length and one, then the bytes.
    fn slot(&self, place: usize) -> usize {
        let size = usize::try_from(self.get(SIZE)).unwrap_or(usize::MAX);
        HEADER + place * (2 + size.div_ceil(8))
    }

    /// Receives all and sends them again. Should the target go on meanwhile, which others held, and take some: what we have.
    fn all(&self, queue: &File) -> io::Result<()> {
        let total = usize::try_from(self.get(TOTAL)).map_err(io::Error::other)?;
        let outcome = (0..total).try_for_each(|place| {
            let received = self.receive(queue, place);
            received.inspect_err(|_| self.put(TOTAL, u64::try_from(place).unwrap_or(0)))
        });
        self.put(PUTTING, 1);
        for place in 0..usize::try_from(self.get(TOTAL)).map_err(io::Error::other)? {
            self.send(queue, place)?;
        }
        self.put(ACTIVE, 0);
        outcome
    }

    /// Receives what is left, then sends what is not there yet: how much that is, the queue itself tells.
    fn finish(&self, queue: &File) -> io::Result<()> {
        let there = || usize::try_from(attributes(queue)?.messages).map_err(io::Error::other);
        let total = usize::try_from(self.get(TOTAL)).map_err(io::Error::other)?;
        if self.get(PUTTING) == 0 {
            let mut received = total.checked_sub(there()?).ok_or(io::ErrorKind::ResourceBusy)?;
            self.measure(queue, received)?;
            while received < total {
                self.receive(queue, received)?;
                received += 1;
            }
            self.put(PUTTING, 1);
        }
        for place in there()?..total {
            self.send(queue, place)?;
        }
        self.put(ACTIVE, 0);
        Ok(())
    }

    /// Whoever received the last message may not have come to note its length.
    fn measure(&self, queue: &File, received: usize) -> io::Result<()> {
        let Some(last) = received.checked_sub(1).map(|last| self.slot(last) + 1) else { return Ok(()) };
        if self.get(last) == 0 {
            let before: u64 = (0..received - 1).map(|place| self.get(self.slot(place) + 1) - 1).sum();
            let left = state(queue)?.bytes;
            self.put(last, self.get(BYTES).saturating_sub(left).saturating_sub(before) + 1);
        }
        Ok(())
    }

    fn receive(&self, queue: &File, place: usize) -> io::Result<()> {
        let (at, size) = (self.slot(place), usize::try_from(self.get(SIZE)).unwrap_or(0));
        let data = if size == 0 { self.place(at) } else { self.place(at + 2) };
        let (fd, nothing) = (queue.as_raw_fd(), std::ptr::null::<u64>());
        // SAFETY: the slot has room for the longest message, and a word for the priority; no time is given: the queue does not block.
        let length = check(unsafe {
            libc::syscall(libc::SYS_mq_timedreceive, fd, data, size, self.place(at), nothing)
        })?;
        self.put(at + 1, u64::try_from(length).map_err(io::Error::other)? + 1);
        Ok(())
    }

    fn send(&self, queue: &File, place: usize) -> io::Result<()> {
        let at = self.slot(place);
        let length = self.get(at + 1).saturating_sub(1).min(self.get(SIZE));
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let words = (0..length.div_ceil(8)).map(|word| self.get(at + 2 + word));
        let content: Vec<u8> = words.flat_map(u64::to_le_bytes).take(length).collect();
        send(queue, &content, u32::try_from(self.get(at) & 0xffff_ffff).unwrap_or(0))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and nobody has a reference into it.
        let _ = unsafe { rustix::mm::munmap(self.words.as_ptr().cast(), self.count * 8) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Queue(File, Vec<u8>);

    impl Drop for Queue {
        fn drop(&mut self) {
            unlink(&self.1).unwrap();
        }
    }

    fn queue(name: &str) -> Queue {
        let name = format!("/rewake-unit-{name}-{}", std::process::id()).into_bytes();
        let words = [0u64, 10, 24, 0, 0, 0, 0, 0];
        let (path, flags) =
            (plain(&name).unwrap(), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NONBLOCK);
        // SAFETY: name and attributes live through the call.
        let fd = unsafe { libc::syscall(libc::SYS_mq_open, path.as_ptr(), flags, 0o600, words.as_ptr()) };
        // SAFETY: new, and ours.
        let file = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) };
        Queue(file.into(), name)
    }

    fn fill(queue: &Queue) -> Vec<Message> {
        for (priority, text) in [(3, "three"), (0, "zero"), (7, ""), (3, "three again"), (0, "zero again")] {
            send(&queue.0, text.as_bytes(), priority).unwrap();
        }
        let all = [(7, ""), (3, "three"), (3, "three again"), (0, "zero"), (0, "zero again")];
        all.map(|(priority, text)| (priority, text.as_bytes().to_vec())).to_vec()
    }

    #[test]
    fn messages_are_read_and_there_again() {
        let queue = queue("read");
        let expected = fill(&queue);
        let (pid, fd) = (i32::try_from(std::process::id()).unwrap(), queue.0.as_raw_fd());
        let journal = Journal::new().unwrap();
        for _ in 0..2 {
            assert_eq!(journal.read(pid, fd).unwrap(), expected);
        }
        assert!(is_queue(&queue.0) && !is_queue(std::io::stdin()));
        assert_eq!(
            attributes(&queue.0).unwrap(),
            Attributes { max_messages: 10, message_size: 24, messages: 5 }
        );
        assert_eq!(state(&queue.0).unwrap(), State { bytes: 30, notice: None });
        assert_eq!(open(&queue.1).and_then(|same| state(&same)).unwrap().bytes, 30);
    }

    /// At every step.
    #[test]
    fn whatever_was_begun_is_finished() {
        for steps in 0..=10usize {
            let queue = queue(&format!("finish-{steps}"));
            let expected = fill(&queue);
            let (pid, fd) = (i32::try_from(std::process::id()).unwrap(), queue.0.as_raw_fd());
            let journal = Journal::new().unwrap();
            journal.read(pid, fd).unwrap();
            let shared = Shared::map(&journal.file).unwrap();
            (0..5).for_each(|place| (0..5).for_each(|word| shared.put(shared.slot(place) + word, 0)));
            shared.put(PUTTING, 0);
            shared.put(ACTIVE, 1);
            for place in 0..steps.min(5) {
                shared.receive(&queue.0, place).unwrap();
            }
            match steps {
                // Killed right after it had received.
                1..5 => shared.put(shared.slot(steps - 1) + 1, 0),
                5.. => {
                    shared.put(PUTTING, 1);
                    (0..steps - 5).for_each(|place| shared.send(&queue.0, place).unwrap());
                }
                0 => {}
            }
            journal.recover().unwrap();
            assert_eq!(shared.get(ACTIVE), 0);
            assert_eq!(Journal::new().unwrap().read(pid, fd).unwrap(), expected, "after {steps} steps");
        }
    }
}
