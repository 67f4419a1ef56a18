//! What the front and its guardian say to each other: frames of a kind, a length and that many bytes.
//!
//! Both ends are the same program, forked: there is no version, and a frame that is not understood is a broken peer.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use prost::Message as _;
use rewake_image::records::{PosixQueue, Process, SeccompFilter};
use rustix::net::{self, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::error::{CaptureError, Obstacle};
use crate::family::Told;
use crate::ipc::Objects;

/// No frame is longer: a process of a thousand threads with the largest register sets needs 12 MB.
const MAX_FRAME: u32 = 1 << 30;

/// From the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Request {
    /// Stop the target and tell all about it.
    Freeze = 1,
    /// Let it go on.
    Thaw = 2,
    /// Kill it.
    Kill = 3,
    /// The image is committed or given up: leave.
    Leave = 4,
    /// Say whether the target stands still as ever: what was read until now belongs together.
    Confirm = 5,
    /// The image is about to get its name: from then on the target is to be killed, whoever is there to ask for it.
    Arm = 6,
    /// Look at the messages of POSIX queues, and at who is told of the next one.
    Queues = 7,
    /// Take from the target, in a moment's pause, the means to be told which pages it writes to, and give them to a watcher.
    Track = 8,
    /// Stop the target for a moment: nothing is told of it.
    Hold = 9,
}

/// From the guardian.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The target stands still; this is all of it but pages and descriptors.
    Frozen(Box<Told>),
    /// The target has stood still since it was frozen; also the answer to [`Request::Arm`].
    Held,
    /// What the queues hold, and who is told of the next message.
    Queues(Vec<PosixQueue>),
    /// The process that is watched and a socket of its watcher, none where that is not to be had; and how long it stood still.
    Tracked(Option<(i32, OwnedFd)>, Duration),
    /// The target goes on, or is dead as asked; how long it stood still.
    Released(Duration),
    /// It did not work; the target goes on.
    Failed(CaptureError),
}

/// A [`CaptureError`] on the wire.
#[derive(Clone, PartialEq, prost::Message)]
struct Failure {
    #[prost(string, tag = "1")]
    operation: String,
    #[prost(string, tag = "2")]
    object: String,
    #[prost(string, tag = "3")]
    source: String,
    #[prost(string, optional, tag = "4")]
    remedy: Option<String>,
    #[prost(int32, tag = "5")]
    pid: i32,
    #[prost(message, repeated, tag = "6")]
    obstacles: Vec<WireObstacle>,
}

/// A target that stands still, on the wire.
#[derive(Clone, PartialEq, prost::Message)]
struct WireFrozen {
    #[prost(message, repeated, tag = "1")]
    processes: Vec<Process>,
    #[prost(message, repeated, tag = "2")]
    filters: Vec<SeccompFilter>,
    #[prost(int32, repeated, tag = "3")]
    pids: Vec<i32>,
    #[prost(message, required, tag = "4")]
    ipc: Objects,
}

/// Message queues, on the wire.
#[derive(Clone, PartialEq, prost::Message)]
struct WireQueues {
    #[prost(message, repeated, tag = "1")]
    queues: Vec<PosixQueue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireObstacle {
    #[prost(int32, tag = "1")]
    pid: i32,
    #[prost(string, tag = "2")]
    object: String,
    #[prost(string, tag = "3")]
    reason: String,
    #[prost(string, tag = "4")]
    remedy: String,
    #[prost(bool, tag = "5")]
    passing: bool,
}

impl From<&CaptureError> for Failure {
    fn from(error: &CaptureError) -> Self {
        match error {
            CaptureError::Failed { operation, pid, object, source, remedy } => Self {
                operation: operation.clone(),
                object: object.clone(),
                source: source.to_string(),
                remedy: remedy.clone(),
                pid: *pid,
                obstacles: Vec::new(),
            },
            CaptureError::Refused(obstacles) => {
                let obstacles = obstacles.iter().cloned().map(|o| {
                    let Obstacle { pid, object, reason, remedy, passing } = o;
                    WireObstacle { pid, object, reason, remedy, passing }
                });
                Self { obstacles: obstacles.collect(), ..Self::default() }
            }
        }
    }
}

impl From<Failure> for CaptureError {
    fn from(failure: Failure) -> Self {
        if !failure.obstacles.is_empty() {
            let obstacles = failure.obstacles.into_iter().map(|o| {
                let WireObstacle { pid, object, reason, remedy, passing } = o;
                Obstacle { pid, object, reason, remedy, passing }
            });
            return Self::Refused(obstacles.collect());
        }
        let Failure { operation, object, source, remedy, pid, .. } = failure;
        Self::Failed { operation, pid, object, source: source.into(), remedy }
    }
}

fn nanoseconds(time: Duration) -> [u8; 8] {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).to_le_bytes()
}

/// Sends a descriptor, with one byte.
fn send_descriptor(to: impl AsFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    net::sendmsg(to, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The descriptor that comes with the next byte.
fn receive_descriptor(from: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    net::recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    fds.next().and_then(|mut fds| fds.next()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn write_frame(to: &mut impl Write, kind: u8, payload: &[u8]) -> io::Result<()> {
    let len = u32::try_from(payload.len()).ok().filter(|&len| len <= MAX_FRAME);
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "frame too long"))?;
    let mut head = [kind, 0, 0, 0, 0];
    head[1..].copy_from_slice(&len.to_le_bytes());
    to.write_all(&head)?;
    to.write_all(payload)
}

/// The next frame; `None` when the peer is gone.
fn read_frame(from: &mut impl Read) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut head = [0; 5];
    match from.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    if len > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    let mut payload = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    from.read_exact(&mut payload)?;
    Ok(Some((head[0], payload)))
}

impl Request {
    /// Sends it.
    pub(crate) fn send(self, to: &mut impl Write) -> io::Result<()> {
        write_frame(to, self as u8, &[])
    }

    /// The next request; `None` when the front is gone.
    pub(crate) fn receive(from: &mut impl Read) -> io::Result<Option<Self>> {
        let Some((kind, _)) = read_frame(from)? else { return Ok(None) };
        use Request::{Arm, Confirm, Freeze, Hold, Kill, Leave, Queues, Thaw, Track};
        [Freeze, Thaw, Kill, Leave, Confirm, Arm, Queues, Track, Hold]
            .into_iter()
            .find(|&request| request as u8 == kind)
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown request"))
    }
}

const FROZEN: u8 = 1;
const RELEASED: u8 = 2;
const FAILED: u8 = 3;
const HELD: u8 = 4;
const QUEUES: u8 = 5;
const TRACKED: u8 = 6;

impl Reply {
    /// Sends it.
    pub(crate) fn send(&self, to: &mut (impl Write + AsFd)) -> io::Result<()> {
        match self {
            Self::Tracked(means, paused) => {
                let mut payload = nanoseconds(*paused).to_vec();
                payload.extend(means.iter().flat_map(|(pid, _)| pid.to_le_bytes()));
                write_frame(to, TRACKED, &payload)?;
                means.iter().try_for_each(|(_, fd)| send_descriptor(&*to, fd.as_fd()))
            }
            Self::Frozen(told) => {
                let Told { processes, pids, filters, ipc } = told.as_ref().clone();
                let frozen = WireFrozen { processes, filters, pids, ipc };
                write_frame(to, FROZEN, &frozen.encode_to_vec())
            }
            Self::Released(paused) => write_frame(to, RELEASED, &nanoseconds(*paused)),
            Self::Held => write_frame(to, HELD, &[]),
            Self::Queues(queues) => {
                write_frame(to, QUEUES, &WireQueues { queues: queues.clone() }.encode_to_vec())
            }
            Self::Failed(error) => write_frame(to, FAILED, &Failure::from(error).encode_to_vec()),
        }
    }

    /// The next reply; `None` when the guardian is gone.
    pub(crate) fn receive(from: &mut (impl Read + AsFd)) -> io::Result<Option<Self>> {
        let Some((kind, payload)) = read_frame(from)? else { return Ok(None) };
        let reply = match kind {
            TRACKED => {
                let (paused, pid) = payload.split_first_chunk().ok_or(io::ErrorKind::InvalidData)?;
                let pid = pid.first_chunk().map(|pid| i32::from_le_bytes(*pid));
                let means = pid.map(|pid| receive_descriptor(from).map(|fd| (pid, fd))).transpose()?;
                Self::Tracked(means, Duration::from_nanos(u64::from_le_bytes(*paused)))
            }
            FROZEN => {
                let frozen = WireFrozen::decode(payload.as_slice()).map_err(io::Error::other)?;
                let WireFrozen { processes, filters, pids, ipc } = frozen;
                Self::Frozen(Box::new(Told { processes, pids, filters, ipc }))
            }
            RELEASED => {
                let paused = payload.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
                Self::Released(Duration::from_nanos(u64::from_le_bytes(paused)))
            }
            FAILED => Self::Failed(Failure::decode(payload.as_slice()).map_err(io::Error::other)?.into()),
            HELD => Self::Held,
            QUEUES => Self::Queues(WireQueues::decode(payload.as_slice()).map_err(io::Error::other)?.queues),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "unknown reply")),
        };
        Ok(Some(reply))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn round_trip(reply: &Reply) -> Reply {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        reply.send(&mut one).unwrap();
        Reply::receive(&mut other).unwrap().unwrap()
    }

    #[test]
    fn requests_and_the_end_of_the_peer() {
        let mut wire = Vec::new();
        Request::Freeze.send(&mut wire).unwrap();
        Request::Leave.send(&mut wire).unwrap();
        let mut wire = wire.as_slice();
        assert_eq!(Request::receive(&mut wire).unwrap(), Some(Request::Freeze));
        assert_eq!(Request::receive(&mut wire).unwrap(), Some(Request::Leave));
        assert_eq!(Request::receive(&mut wire).unwrap(), None);
        assert!(Request::receive(&mut [u8::MAX, 0, 0, 0, 0].as_slice()).is_err());
    }

    #[test]
    fn errors_keep_their_text_and_remedy() {
        let error = CaptureError::failed("freeze", 5, "thread 6", "in D state").advise("wait");
        let Reply::Failed(error) = round_trip(&Reply::Failed(error)) else { panic!("kind of reply") };
        assert_eq!(error.to_string(), "freeze failed for pid 5 (thread 6): in D state");
        assert_eq!(error.remedy().as_deref(), Some("wait"));
        let obstacle =
            Obstacle { pid: 1, object: "a".into(), reason: "b".into(), remedy: "c".into(), passing: true };
        let Reply::Failed(error) = round_trip(&Reply::Failed(CaptureError::Refused(vec![obstacle.clone()])))
        else {
            panic!("kind of reply")
        };
        assert_eq!(error.obstacles(), [obstacle]);
    }

    #[test]
    fn a_process_and_a_pause_survive_the_wire() {
        let process = Process { pid: 42, comm: b"x".to_vec(), ..Process::default() };
        let filter = SeccompFilter { id: 1, flags: 2, instructions: vec![3; 8] };
        let told = Told {
            processes: vec![process],
            pids: vec![4242],
            filters: vec![filter],
            ipc: Objects { own: true, ..Objects::default() },
        };
        let frozen = Reply::Frozen(Box::new(told.clone()));
        let Reply::Frozen(read) = round_trip(&frozen) else { panic!("kind of reply") };
        assert_eq!(*read, told);
        let Reply::Released(paused) = round_trip(&Reply::Released(Duration::from_micros(7))) else {
            panic!("kind of reply")
        };
        assert_eq!(paused, Duration::from_micros(7));
    }
}
