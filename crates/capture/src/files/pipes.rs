//! Pipes with all their ends in the target, one of which may be closed: found by inode, read without taking anything out.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;

use rewake_image::records::{FileIdentity, Pipe};
use rewake_linux::attributes;
use rewake_linux::proc::{Proc, holders};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, OFlags};
use rustix::pipe::SpliceFlags;

use super::removed::Removed;
use super::{Seen, fifos, identity};
use crate::error::{CaptureError, During, Result};
use crate::kin;

/// Standard error.
const HIGHEST_STREAM: i32 = 2;

/// A pipe whose ends are all in the target.
#[derive(Clone, Debug)]
pub(crate) struct PipeSource {
    pub(crate) id: u32,
    /// Device and inode.
    pub(crate) inode: (u64, u64),
    /// A process and its descriptor that leads to it; a reading one, if there is any.
    pid: i32,
    fd: i32,
    reads: bool,
    /// A named one, where it is or was, and its id if it was removed.
    fifo: Option<(FileIdentity, Option<u32>)>,
    /// No end of it is open, only the file as such (O_PATH).
    only_path: bool,
}

/// Finds the pipes that have all their ends among `seen` and none anywhere else.
pub(super) fn inside(family: &[i32], seen: &[Seen], removed: &Removed) -> Vec<PipeSource> {
    let ends: Vec<&Seen> = seen
        .iter()
        .filter(|one| {
            FileType::from_raw_mode(one.link.stat.mode) == FileType::Fifo
                && one.link.target.starts_with(b"pipe:")
        })
        .collect();
    let mut pipes: Vec<PipeSource> = Vec::new();
    for one in &ends {
        let inode = one.inode();
        let any = |test: fn(&Seen) -> bool| ends.iter().any(|other| other.inode() == inode && test(other));
        if pipes.iter().any(|pipe| pipe.inode == inode) {
            continue;
        }
        // A standard stream that nobody reads any more becomes resume's; one that nobody writes to any more keeps what is in it.
        let standard_output = |other: &Seen| other.writes() && other.fd <= HIGHEST_STREAM;
        let lonely = || !any(standard_output) && other_end_is_closed(one);
        if any(Seen::reads) && any(Seen::writes) || lonely() {
            pipes.push(PipeSource {
                id: 0,
                inode,
                pid: one.pid,
                fd: one.fd,
                reads: true,
                fifo: None,
                only_path: false,
            });
        }
    }
    named(seen, removed, &mut pipes);
    let elsewhere =
        holders(&pipes.iter().map(|pipe| pipe.inode).collect(), |pid| !kin::is_outsider(family, pid));
    pipes.retain(|pipe| pipe.only_path || !elsewhere.contains_key(&pipe.inode));
    for (id, pipe) in (0..).zip(&mut pipes) {
        pipe.id = id;
    }
    pipes
}

/// Whether nobody holds the other end any more. Only the target's own description tells; one opened anew would count from now on.
fn other_end_is_closed(one: &Seen) -> bool {
    let Ok(own) = attributes::duplicate(one.pid, one.fd) else { return false };
    let mut ends = [PollFd::new(&own, PollFlags::IN | PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A reading end without writers hangs up, a writing end without readers is in error.
    rustix::event::poll(&mut ends, Some(&now)).is_ok()
        && ends[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Adds the fifos that may have all their ends among `seen`.
fn named(seen: &[Seen], removed: &Removed, pipes: &mut Vec<PipeSource>) {
    for one in seen.iter().filter(|one| fifos::is_one(one, removed)) {
        if pipes.iter().any(|pipe| pipe.inode == one.inode()) {
            continue;
        }
        let ends: Vec<&Seen> = seen.iter().filter(|other| other.inode() == one.inode()).collect();
        if !fifos::may_be_inside(&ends) {
            continue;
        }
        let reader = ends.iter().find(|end| end.reads());
        let end = reader.or_else(|| ends.iter().find(|end| end.writes()));
        pipes.push(PipeSource {
            id: 0,
            inode: one.inode(),
            pid: end.map_or(one.pid, |end| end.pid),
            fd: end.map_or(one.fd, |end| end.fd),
            reads: reader.is_some(),
            fifo: Some((identity(&one.link), removed.id(&one.link))),
            only_path: end.is_none(),
        });
    }
}

impl PipeSource {
    /// Whether it is a named one.
    pub(crate) const fn is_fifo(&self) -> bool {
        self.fifo.is_some()
    }

    /// Capacity and content; the pipe keeps both. The target stands still.
    ///
    /// # Errors
    /// When it cannot be opened, or its content does not fit into a pipe of ours.
    pub(crate) fn read(&self) -> Result<Pipe> {
        let (pid, object) = (self.pid, format!("pipe at descriptor {}", self.fd));
        let proc = Proc::open_living(pid).during("open", pid, "process")?;
        let fifo = || self.fifo.as_ref().map(|(identity, _)| identity.clone());
        let removed = self.fifo.as_ref().and_then(|(_, removed)| *removed);
        if self.only_path {
            return Ok(Pipe { id: self.id, fifo: fifo(), removed, ..Pipe::default() });
        }
        let opened = || {
            let name = format!("fd/{}", self.fd);
            proc.open_file(&name, OFlags::RDONLY | OFlags::NONBLOCK).during("open", pid, &object)
        };
        let mut source = match &self.fifo {
            None => opened()?,
            // Opened anew, it would tell those who wait for a reader of a fifo that there is one.
            Some(_) => attributes::duplicate(pid, self.fd).during("pidfd_getfd", pid, &object)?.into(),
        };
        let capacity = rustix::pipe::fcntl_getpipe_size(&source).during("read the capacity", pid, &object)?;
        let waiting = rustix::io::ioctl_fionread(&source).during("read the fill level", pid, &object)?;
        let waiting = usize::try_from(waiting).during("read the fill level", pid, &object)?;
        let (mut content, mut packets) = (Vec::new(), Vec::new());
        if waiting > 0 {
            if !self.reads {
                source = opened()?;
            }
            let copy = || copy(&source, capacity, waiting, pid, &object).map(File::from);
            (content, packets) = parts(copy()?, copy()?, waiting).during("read a pipe", pid, &object)?;
        }
        let capacity = u32::try_from(capacity).during("read the capacity", pid, "pipe")?;
        Ok(Pipe { id: self.id, capacity, content, packets, fifo: fifo(), removed })
    }
}

/// The reading end of a pipe with the same content. Nobody holds its writing end, so that it ends behind it.
fn copy(source: &File, capacity: usize, len: usize, pid: i32, object: &str) -> Result<OwnedFd> {
    let (reader, writer) = std::io::pipe().during("make a pipe", pid, object)?;
    rustix::pipe::fcntl_setpipe_size(&writer, capacity)
        .during("set the capacity of a pipe", pid, object)
        .map_err(|error| error.advise("raise /proc/sys/fs/pipe-max-size"))?;
    let copied = rustix::pipe::tee(source, &writer, len, SpliceFlags::NONBLOCK).during("tee", pid, object)?;
    if copied != len {
        let cause = format!("{copied} of {len} bytes");
        return Err(CaptureError::failed("tee", pid, object, cause));
    }
    Ok(reader.into())
}

/// Content, and the lengths of its packets (O_DIRECT), if that is what it is made of. A read ends with a packet, and takes all of it
/// away however little is asked for: that tells them from other content, in a second copy.
fn parts(mut copy: File, mut another: File, len: usize) -> std::io::Result<(Vec<u8>, Vec<u32>)> {
    let (mut content, mut packets) = (vec![0; len], Vec::new());
    let mut at = 0;
    while at < len {
        let part = copy.read(&mut content[at..])?;
        if part == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        packets.push(u32::try_from(part).map_err(std::io::Error::other)?);
        at += part;
    }
    if len == 1 {
        return Ok((content, Vec::new()));
    }
    let mut byte = [0];
    for _ in &packets {
        another.read_exact(&mut byte)?;
    }
    match (another.read(&mut byte)?, packets.len()) {
        (0, _) => Ok((content, packets)),
        (_, 1) => Ok((content, Vec::new())),
        _ => {
            Err(std::io::Error::other("it holds packets and other data at once, which cannot be told apart"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contents::Contents;
    use crate::files;
    use crate::findings::Findings;
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    use std::sync::Mutex;

    fn of(proc: &Proc) -> files::Target<'_> {
        static OWN: std::sync::OnceLock<[i32; 1]> = std::sync::OnceLock::new();
        files::Target {
            procs: std::slice::from_ref(proc),
            family: OWN.get_or_init(|| [proc.id()]),
            still: false,
        }
    }

    /// A child that is being started holds all our pipes for a moment.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    #[test]
    fn a_pipe_to_oneself_is_read_and_stays_full() {
        let _alone = ONE_AT_A_TIME.lock().unwrap();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, 8192).unwrap();
        writer.write_all(&[7; 5000]).unwrap();
        let proc = Proc::own().unwrap();
        let files =
            files::survey(of(&proc), &mut Contents::default(), &mut Findings::new(proc.id())).unwrap();
        let stat = rustix::fs::fstat(&reader).unwrap();
        let source = files.pipes.iter().find(|pipe| pipe.inode == (stat.st_dev, stat.st_ino)).unwrap();
        for _ in 0..2 {
            let record = source.read().unwrap();
            assert_eq!((record.capacity, record.content.as_slice()), (8192, &[7; 5000][..]));
        }
        let ends = [(reader.as_raw_fd(), false), (writer.as_raw_fd(), true)];
        for (fd, write) in ends {
            let id = files.descriptors[&proc.id()].iter().find(|one| one.fd == fd).unwrap().file;
            let kind = files.open.iter().find(|one| one.id == id).and_then(|one| one.kind.clone());
            let end = rewake_image::records::PipeEnd { pipe: source.id, write, ..Default::default() };
            assert_eq!(kind, Some(rewake_image::records::open_file::Kind::Pipe(end)));
        }
        drop(writer);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, [7; 5000]);
    }

    #[test]
    fn packets_are_told_from_other_content() {
        let lengths = |packets: bool, writes: &[&[u8]]| {
            let flags =
                if packets { rustix::pipe::PipeFlags::DIRECT } else { rustix::pipe::PipeFlags::empty() };
            let (reader, writer) = rustix::pipe::pipe_with(flags).unwrap();
            let mut sum = 0;
            for bytes in writes {
                sum += rustix::io::write(&writer, bytes).unwrap();
            }
            let source = File::from(reader);
            let again = || File::from(copy(&source, 65536, sum, 1, "").unwrap());
            parts(again(), again(), sum).unwrap().1
        };
        assert_eq!(lengths(true, &[b"first", b"2", &[7; 4096], b"last"]), [5, 1, 4096, 4]);
        assert_eq!(lengths(true, &[b"only"]), [4]);
        assert_eq!(lengths(false, &[b"first", &[7; 9000], b"last"]), []);
    }

    #[test]
    fn a_pipe_that_another_process_holds_is_not_inside() {
        let _alone = ONE_AT_A_TIME.lock().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let held = reader.try_clone().unwrap();
        // Below nobody of ours: whoever takes in orphans.
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "exec 3<&0; sleep 100 <&3 >/dev/null 2>&1 & echo $!"]).stdin(held);
        let told = String::from_utf8(shell.output().unwrap().stdout).unwrap();
        drop(shell);
        let orphan = rustix::process::Pid::from_raw(told.trim().parse().unwrap()).unwrap();
        let proc = Proc::own().unwrap();
        let stat = rustix::fs::fstat(&writer).unwrap();
        let mut findings = Findings::new(proc.id());
        let files = files::survey(of(&proc), &mut Contents::default(), &mut findings).unwrap();
        rustix::process::kill_process(orphan, rustix::process::Signal::KILL).unwrap();
        assert!(!files.pipes.iter().any(|pipe| pipe.inode == (stat.st_dev, stat.st_ino)));
        let name = format!("descriptor {}: pipe:[{}]", reader.as_raw_fd(), stat.st_ino);
        assert!(
            findings.into_obstacles().iter().any(|one| one.object == name && one.reason.contains("outside"))
        );
    }
}
