//! `/proc/PID/fdinfo/N`: what the kernel knows of one descriptor.

use super::maps::take_device;
use super::text::{ParseError, decimal, key_value, lines, number, words};
use super::{Proc, ProcError};

/// What the kernel tells of one descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FdInfo {
    /// Position of the open file description.
    pub position: u64,
    /// `open` flags of the description, with `O_CLOEXEC` of the descriptor.
    pub flags: u32,
    /// Mount the file was opened through.
    pub mount: i32,
    /// Inode (told since Linux 5.14).
    pub inode: Option<u64>,
    /// Locks held through this descriptor.
    pub locks: Vec<Lock>,
    /// All other lines, key and value: what an eventfd, a timerfd, an epoll... has inside.
    pub others: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A lock on a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// Which call made it.
    pub kind: LockKind,
    /// Exclusive rather than shared.
    pub write: bool,
    /// A lease that somebody wants broken.
    pub breaking: bool,
    /// Who made it, in the reader's pid namespace; -1 for locks of a description.
    pub pid: i32,
    /// Device of the file, as `dev_t`.
    pub device: u64,
    /// Inode of the file.
    pub inode: u64,
    /// First byte locked.
    pub start: u64,
    /// Bytes locked; 0 to the end of the file, however it grows.
    pub length: u64,
}

/// Kinds of locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// `fcntl(F_SETLK)`, of the process.
    Posix,
    /// `flock`, of the description.
    Flock,
    /// `fcntl(F_OFD_SETLK)`, of the description.
    Ofd,
    /// `fcntl(F_SETLEASE)`.
    Lease,
    /// Any other, such as a delegation.
    Other,
}

impl FdInfo {
    /// Parses the text of the file.
    ///
    /// # Errors
    /// When a line that is needed is missing or not as Linux writes it.
    pub fn parse(text: &[u8]) -> Result<Self, ParseError> {
        let mut info = Self::default();
        let mut has_flags = false;
        for line in lines(text) {
            let Some((key, value)) = key_value(line) else { continue };
            match key {
                b"pos" => info.position = decimal::<i64>(value, "a position")?.cast_unsigned(),
                b"flags" => {
                    info.flags = number(value, 8, "open flags")?;
                    has_flags = true;
                }
                b"mnt_id" => info.mount = decimal(value, "a mount")?,
                b"ino" => info.inode = Some(decimal(value, "an inode")?),
                b"lock" => info.locks.push(Lock::parse(value)?),
                _ => info.others.push((key.to_vec(), value.to_vec())),
            }
        }
        if has_flags { Ok(info) } else { Err(ParseError::expected("flags", text)) }
    }

    /// Whether the descriptor closes on execve.
    #[must_use]
    pub const fn close_on_exec(&self) -> bool {
        self.flags & libc::O_CLOEXEC.cast_unsigned() != 0
    }

    /// The numbers of the first of the other lines that has this key: all runs of digits of `base` in it.
    #[must_use]
    pub fn numbers(&self, key: &str, base: u32) -> Vec<u64> {
        let value = String::from_utf8_lossy(self.other(key).unwrap_or_default()).into_owned();
        let runs = value.split(|letter: char| !letter.is_digit(base));
        runs.filter_map(|digits| u64::from_str_radix(digits, base).ok()).collect()
    }

    /// The value of the first of the other lines that has this key.
    #[must_use]
    pub fn other(&self, key: &str) -> Option<&[u8]> {
        self.others.iter().find(|(name, _)| name == key.as_bytes()).map(|(_, value)| value.as_slice())
    }
}

impl Lock {
    /// `1: POSIX  ADVISORY  WRITE 123 08:01:456 0 EOF`
    fn parse(text: &[u8]) -> Result<Self, ParseError> {
        let words: Vec<&[u8]> = words(text).collect();
        let [_, kind, state, access, pid, file, start, end] = words[..] else {
            return Err(ParseError::expected("a lock of eight words", text));
        };
        let kind = match kind {
            b"POSIX" => LockKind::Posix,
            b"FLOCK" => LockKind::Flock,
            b"OFDLCK" => LockKind::Ofd,
            b"LEASE" => LockKind::Lease,
            _ => LockKind::Other,
        };
        let mut inode = file;
        let device = take_device(&mut inode)?;
        let inode = inode.strip_prefix(b":").ok_or_else(|| ParseError::expected("an inode", text))?;
        let start: u64 = decimal(start, "start of a lock")?;
        let length = match end {
            b"EOF" => 0,
            // The end shown is the last byte that is locked.
            _ => decimal::<u64>(end, "end of a lock")?
                .checked_sub(start)
                .and_then(|length| length.checked_add(1))
                .ok_or_else(|| ParseError::expected("a lock that ends behind its start", text))?,
        };
        Ok(Self {
            kind,
            write: access == b"WRITE",
            breaking: kind == LockKind::Lease && state != b"ACTIVE",
            pid: decimal(pid, "owner of a lock")?,
            device,
            inode: decimal(inode, "an inode")?,
            start,
            length,
        })
    }
}

impl Proc {
    /// `fdinfo/FD`.
    ///
    /// # Errors
    /// [`ProcError::Missing`] when the descriptor is not open; otherwise as [`ProcError`] tells apart.
    pub fn fdinfo(&self, fd: i32) -> Result<FdInfo, ProcError> {
        let file = format!("fdinfo/{fd}");
        FdInfo::parse(&self.read(&file)?).map_err(self.malformed(&file))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn sample() {
        let text = b"pos:\t4096\nflags:\t02100002\nmnt_id:\t24\nino:\t77\nlock:\t1: POSIX  ADVISORY  WRITE 123 08:01:456 10 19\n\
            lock:\t2: FLOCK  ADVISORY  READ  124 fe:00:456 0 EOF\nlock:\t3: OFDLCK ADVISORY  WRITE -1 fe:00:456 5 EOF\n\
            eventfd-count:                3\ntfd:        5 events:       19 data:  5  pos:0 ino:1 sdev:2\n";
        let info = FdInfo::parse(text).unwrap();
        assert_eq!((info.position, info.mount, info.inode), (4096, 24, Some(77)));
        assert_eq!(info.flags & 3, libc::O_RDWR.cast_unsigned());
        assert!(info.close_on_exec());
        assert_eq!(
            info.locks[0],
            Lock {
                kind: LockKind::Posix,
                write: true,
                breaking: false,
                pid: 123,
                device: libc::makedev(8, 1),
                inode: 456,
                start: 10,
                length: 10
            }
        );
        assert_eq!(
            (info.locks[1].kind, info.locks[1].write, info.locks[1].length),
            (LockKind::Flock, false, 0)
        );
        assert_eq!((info.locks[2].kind, info.locks[2].pid, info.locks[2].start), (LockKind::Ofd, -1, 5));
        assert_eq!(info.other("eventfd-count"), Some(&b"3"[..]));
        assert_eq!(info.numbers("eventfd-count", 16), [3]);
        assert_eq!(info.numbers("none", 10), []);
        assert_eq!(info.others.len(), 2);
    }

    #[test]
    fn hostile_text() {
        for text in [
            &b""[..],
            b"pos:\t0\n",
            b"flags:\t9\n",
            b"flags:\t0\nlock:\t1: POSIX\n",
            b"flags:\t0\nlock:\t1: POSIX  ADVISORY  WRITE 123 08:01:456 10 3\n",
            b"flags:\t0\nlock:\t1: POSIX  ADVISORY  WRITE 123 08-01:456 10 3\n",
        ] {
            assert!(FdInfo::parse(text).is_err(), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn our_own_file_and_locks() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello").unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let proc = Proc::own().unwrap();
        let info = proc.fdinfo(file.as_raw_fd()).unwrap();
        assert_eq!(info.position, 5);
        assert!(info.close_on_exec());
        assert_eq!(info.locks.len(), 1);
        assert_eq!((info.locks[0].kind, info.locks[0].write), (LockKind::Flock, true));
        assert_eq!(info.inode, Some(info.locks[0].inode));
        assert!(proc.fdinfo(999_999).unwrap_err().is_missing());
    }
}
