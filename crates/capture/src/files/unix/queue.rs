//! What waits in a socket: read by looking (`MSG_PEEK`), so that it all stays there.

use std::io;
use std::os::fd::OwnedFd;

use rewake_linux::socket::unix::{self, Message};

use super::look::refusal;
use crate::findings::Refusal;

/// Room for a datagram at first, and at most.
const ROOM: usize = 1 << 20;
const MOST: usize = 1 << 28;
/// `RCV_SHUTDOWN`.
const RECEIVING: u32 = 1;

/// A socket whose looks begin at its first byte and move on, until this is dropped: then as they were before.
struct Walk<'a> {
    socket: &'a OwnedFd,
    before: i32,
}

/// Where the socket's looks begin (`SO_PEEK_OFF`); -1: always at the first byte.
fn looks_from(socket: &OwnedFd) -> io::Result<i32> {
    let offset = unix::option(socket, libc::SO_PEEK_OFF.cast_unsigned())?;
    Ok(offset.first_chunk().map_or(-1, |bytes| i32::from_ne_bytes(*bytes)))
}

impl<'a> Walk<'a> {
    fn begin(socket: &'a OwnedFd) -> io::Result<Self> {
        let walk = Self { socket, before: looks_from(socket)? };
        walk.go_to(0)?;
        Ok(walk)
    }

    fn go_to(&self, offset: usize) -> io::Result<()> {
        let offset = i32::try_from(offset).map_err(io::Error::other)?;
        unix::set_option(self.socket, libc::SO_PEEK_OFF, offset)
    }
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        // It was taken a moment ago.
        let _ = unix::set_option(self.socket, libc::SO_PEEK_OFF, self.before);
    }
}

/// All of it, in order. `reset`: an error waits to be told.
pub(super) fn read(socket: &OwnedFd, kind: i32, shutdown: u32, reset: bool) -> Result<Vec<Message>, Refusal> {
    let failed = |error: io::Error| refusal(format!("what waits in it cannot be looked at ({error})"));
    let total = unix::readable(socket).map_err(failed)?;
    let messages = if kind == libc::SOCK_STREAM {
        if total == 0 {
            return Ok(Vec::new());
        }
        stream(socket, total).map_err(failed)?
    } else {
        if reset {
            // A look would take the error away.
            return match total {
                0 => Ok(Vec::new()),
                _ => Err(refusal("messages wait in it behind an error that the program was not told yet")),
            };
        }
        // Packets end where nothing more can come; what looks empty there is the end.
        let end = kind == libc::SOCK_SEQPACKET && shutdown & RECEIVING != 0;
        packets(socket, end.then_some(total)).map_err(failed)?
    };
    if messages.iter().any(|message| message.files_missing) {
        return Err(refusal("more descriptors are on their way through it than this command may have open"));
    }
    let sum: usize = messages.iter().map(|message| message.data.len()).sum();
    if kind == libc::SOCK_STREAM && sum != total {
        return Err(refusal("data out of band (MSG_OOB) waits in it"));
    }
    Ok(messages)
}

/// The parts of a stream. Where descriptors come along, a part begins with them, as one look may find them behind other data.
fn stream(socket: &OwnedFd, total: usize) -> io::Result<Vec<Message>> {
    if looks_from(socket)? < 0
        && let Some(all) = unix::peek(socket, total)?
        && all.length == total
        && all.files.is_empty()
    {
        return Ok(vec![all]);
    }
    let walk = Walk::begin(socket)?;
    let (mut parts, mut at) = (Vec::new(), 0);
    while at < total {
        let Some(mut part) = unix::peek(socket, total - at)?.filter(|part| part.length > 0) else { break };
        let end = at + part.data.len();
        if !part.files.is_empty() {
            walk.go_to(at)?;
            let before = unix::before_last_piece(socket, part.data.len())?;
            walk.go_to(end)?;
            if before > 0 {
                let carrying = part.data.split_off(before);
                parts.push(Message { credentials: part.credentials, data: part.data, ..Message::default() });
                part.data = carrying;
            }
        }
        parts.push(part);
        at = end;
    }
    Ok(parts)
}

/// Packets or datagrams. `end`: behind so many bytes an empty one is none.
fn packets(socket: &OwnedFd, end: Option<usize>) -> io::Result<Vec<Message>> {
    let is_end = |message: &Message, at| message.length == 0 && message.files.is_empty() && end == Some(at);
    let mut all: Vec<Message> = Vec::new();
    if looks_from(socket)? < 0 {
        let Some(first) = unix::peek(socket, ROOM)?.filter(|first| !is_end(first, 0)) else {
            return Ok(Vec::new());
        };
        // The walk passes over an empty one at its beginning that was looked at.
        all.extend(Some(first).filter(|first| first.length == 0));
    }
    let walk = Walk::begin(socket)?;
    let (mut at, mut room) = (0, ROOM);
    while let Some(message) = unix::peek(socket, room)? {
        if is_end(&message, at) {
            break;
        }
        if message.length > message.data.len() {
            if message.length > MOST {
                return Err(io::Error::other(format!("a message of {} bytes", message.length)));
            }
            room = message.length;
            walk.go_to(at)?;
            continue;
        }
        at += message.length;
        all.push(message);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    fn look(socket: impl std::os::fd::AsFd, kind: i32) -> Vec<(Vec<u8>, usize)> {
        let socket = socket.as_fd().try_clone_to_owned().unwrap();
        let messages = read(&socket, kind, 0, false).unwrap();
        messages.into_iter().map(|message| (message.data, message.files.len())).collect()
    }

    #[test]
    fn datagrams_keep_their_borders_and_stay() {
        let (one, other) = UnixDatagram::pair().unwrap();
        for data in [&b""[..], b"second", b"", b"fourth one"] {
            one.send(data).unwrap();
        }
        let expected = [b"".to_vec(), b"second".to_vec(), b"".to_vec(), b"fourth one".to_vec()];
        let got = look(&other, libc::SOCK_DGRAM);
        assert_eq!(got.into_iter().map(|(data, _)| data).collect::<Vec<_>>(), expected);
        let mut buffer = [0; 100];
        for data in &expected {
            assert_eq!(other.recv(&mut buffer).unwrap(), data.len());
        }
    }

    #[test]
    fn a_stream_is_cut_where_descriptors_come_along() {
        use rustix::fd::AsRawFd as _;
        let (one, mut other) = UnixStream::pair().unwrap();
        (&one).write_all(b"before").unwrap();
        unix::send_with(&one, b"with", &[other.as_raw_fd()]).unwrap();
        (&one).write_all(b"after").unwrap();
        let expected = [(b"before".to_vec(), 0), (b"with".to_vec(), 1), (b"after".to_vec(), 0)];
        for _ in 0..2 {
            assert_eq!(look(&other, libc::SOCK_STREAM), expected);
        }
        let off = unix::option(other.as_fd(), libc::SO_PEEK_OFF.cast_unsigned()).unwrap();
        assert_eq!(off, (-1_i32).to_ne_bytes());
        let mut all = [0; 15];
        other.read_exact(&mut all).unwrap();
        assert_eq!(&all, b"beforewithafter");
    }
}
