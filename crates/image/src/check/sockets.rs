//! Whether unix sockets make sense and lead to one another.

use std::collections::{BTreeMap, BTreeSet};

use super::files::identity;
use super::{ascending, ensure, path};
use crate::records::open_file::Kind;
use crate::records::{OpenFile, PeerCredentials, UnixMessage, UnixName, UnixSocket};
use crate::{Image, ImageError};

/// Options of `SOL_SOCKET` that an image may have: those that a unix socket keeps and that can be set.
pub const SOCKET_OPTIONS: [u32; 36] = [
    1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 18, 20, 21, 29, 34, 35, 36, 37, 40, 41, 42, 43, 44, 45, 46, 47,
    69, 72, 73, 74, 75, 76, 82, 83,
];
/// Each is a descriptor of the restore for a moment.
const MOST: usize = 1 << 16;
/// Most messages in a queue; the kernel counts about 768 bytes of memory for each.
pub(crate) const MAX_MESSAGES: usize = 1 << 20;
/// `SCM_MAX_FD`.
const MAX_FILES: usize = 253;
/// `NGROUPS_MAX`.
const MAX_GROUPS: usize = 65_536;
/// `sizeof sun_path`.
const MAX_TEXT: usize = 108;
/// The longest value is a `struct timeval`.
const MAX_VALUE: usize = 16;
/// Most instructions of a filter (`BPF_MAXINSNS`) and the length of one.
const FILTER: (usize, usize) = (4096, 8);

const STREAM: u32 = 1;
const DATAGRAM: u32 = 2;
const SEQUENTIAL: u32 = 5;
/// Receiving and sending.
const BOTH: u32 = 3;

type Sockets<'a> = BTreeMap<u32, &'a UnixSocket>;

pub(super) fn check(image: &Image) -> Result<(), ImageError> {
    let (sockets, names) = (image.unix_sockets.len(), image.unix_names.len());
    ensure!(sockets <= MOST, "UnixSocket", "{sockets} of them, at most {MOST} are possible");
    ensure!(names <= MOST, "UnixName", "{names} of them, at most {MOST} are possible");
    ascending(image.unix_names.iter().map(|name| name.id), "UnixName", "id")?;
    image.unix_names.iter().try_for_each(name)?;
    ascending(image.unix_sockets.iter().map(|socket| socket.id), "UnixSocket", "id")?;
    let known: Sockets<'_> = image.unix_sockets.iter().map(|socket| (socket.id, socket)).collect();
    let names: BTreeSet<u32> = image.unix_names.iter().map(|name| name.id).collect();
    let files: BTreeSet<u32> = image.open_files.iter().map(|file| file.id).collect();
    let open = open(&image.open_files, &known)?;
    let outside: BTreeSet<u32> = image.unix_sockets.iter().filter_map(|socket| socket.outside).collect();
    let reachable = |name: &&UnixName| name.is_abstract() || name.file.is_some();
    let reachable: BTreeSet<u32> = image.unix_names.iter().filter(reachable).map(|name| name.id).collect();
    let mut waiting = BTreeSet::new();
    for one in &image.unix_sockets {
        let record = &format!("UnixSocket {}", one.id);
        if let Some(name) = one.name {
            ensure!(names.contains(&name), record, "its name {name} is not there");
            ensure!(!outside.contains(&name), record, "its name {name} is somebody else's");
        }
        if let Some(name) = one.outside {
            let sound = one.r#type == DATAGRAM && one.peer.is_none() && reachable.contains(&name);
            ensure!(sound, record, "it cannot be connected to somebody else's socket of name {name}");
        }
        state(one, record)?;
        connected(one, &known, &open, record)?;
        for id in &one.pending {
            let client = known.get(id).filter(|client| can_wait(client, one));
            ensure!(client.is_some(), record, "socket {id} cannot wait to be accepted");
            ensure!(waiting.insert(*id), record, "socket {id} waits to be accepted twice");
        }
        ensure!(one.queue.len() <= MAX_MESSAGES, record, "{} messages", one.queue.len());
        one.queue.iter().try_for_each(|message| queued(message, one, &known, &files, record))?;
    }
    Ok(())
}

/// A socket has one open file at most; which ones have any.
fn open(files: &[OpenFile], known: &Sockets<'_>) -> Result<BTreeSet<u32>, ImageError> {
    let mut open = BTreeSet::new();
    for file in files {
        if let Some(Kind::Socket(end)) = &file.kind {
            let record = format!("OpenFile {}", file.id);
            ensure!(known.contains_key(&end.socket), record, "socket {} is not there", end.socket);
            ensure!(open.insert(end.socket), record, "socket {} is open twice", end.socket);
        }
    }
    Ok(open)
}

fn name(name: &UnixName) -> Result<(), ImageError> {
    let record = &format!("UnixName {}", name.id);
    let length = name.text.len();
    ensure!((1..=MAX_TEXT).contains(&length), record, "an address of {length} bytes");
    ensure!(name.is_abstract() || !name.text.contains(&0), record, "a path with a zero byte in it");
    match &name.file {
        Some(file) => {
            ensure!(!name.is_abstract(), record, "an abstract name that is a file");
            path(&name.folder, record, "folder")?;
            identity(Some(file), record)
        }
        None => Ok(()),
    }
}

fn state(one: &UnixSocket, record: &str) -> Result<(), ImageError> {
    let kind = one.r#type;
    ensure!([STREAM, DATAGRAM, SEQUENTIAL].contains(&kind), record, "type {kind} is impossible");
    let listens = one.backlog.is_some();
    let may_listen = kind != DATAGRAM && one.peer.is_none() && one.name.is_some();
    ensure!(!listens || may_listen, record, "it cannot listen");
    ensure!(listens || one.pending.is_empty(), record, "connections wait although it does not listen");
    ensure!(one.shutdown <= BOTH, record, "shutdown {:#x} is impossible", one.shutdown);
    for option in &one.options {
        let (number, length) = (option.option, option.value.len());
        ensure!(SOCKET_OPTIONS.contains(&number), record, "option {number} is impossible");
        ensure!((1..=MAX_VALUE).contains(&length), record, "option {number} of {length} bytes");
    }
    let (instructions, rest) = (one.filter.len() / FILTER.1, one.filter.len() % FILTER.1);
    ensure!(rest == 0 && instructions <= FILTER.0, record, "a filter of {} bytes", one.filter.len());
    let credentials = [&one.peer_credentials, &one.accepted_credentials];
    credentials.into_iter().flatten().try_for_each(|one| sound(one, record))
}

fn sound(credentials: &PeerCredentials, record: &str) -> Result<(), ImageError> {
    let (pid, groups) = (credentials.pid, credentials.groups.len());
    ensure!((0..=super::MAX_PID).contains(&pid), record, "credentials of process {pid}");
    ensure!(groups <= MAX_GROUPS, record, "credentials with {groups} groups");
    Ok(())
}

fn connected(
    one: &UnixSocket,
    known: &Sockets<'_>,
    open: &BTreeSet<u32>,
    record: &str,
) -> Result<(), ImageError> {
    let Some(id) = one.peer else {
        ensure!(!one.reset, record, "a connection is reset that it does not have");
        return Ok(());
    };
    let peer = known.get(&id).filter(|peer| peer.r#type == one.r#type);
    let mutual = one.r#type == DATAGRAM || peer.is_some_and(|peer| peer.peer == Some(one.id) && id != one.id);
    ensure!(peer.is_some() && mutual, record, "it cannot be connected to socket {id}");
    ensure!(!one.reset || !open.contains(&id), record, "reset by socket {id}, which is still open");
    Ok(())
}

/// Whether a socket can be a connection that a listener has not accepted yet.
fn can_wait(client: &UnixSocket, listener: &UnixSocket) -> bool {
    client.r#type == listener.r#type
        && client.peer.is_none()
        && client.backlog.is_none()
        && client.queue.is_empty()
}

fn queued(
    message: &UnixMessage,
    one: &UnixSocket,
    known: &Sockets<'_>,
    files: &BTreeSet<u32>,
    record: &str,
) -> Result<(), ImageError> {
    let datagram = one.r#type == DATAGRAM;
    ensure!(datagram || one.peer.is_some(), record, "data in a socket that is not connected");
    ensure!(one.r#type != STREAM || !message.data.is_empty(), record, "a part of a stream without data");
    ensure!(message.files.len() <= MAX_FILES, record, "{} files in a message", message.files.len());
    for file in &message.files {
        ensure!(files.contains(file), record, "a message has file {file}, which is not there");
    }
    ensure!(datagram == message.sender.is_some(), record, "a message of the wrong kind of sender");
    if let Some(sender) = message.sender {
        let sound = known.get(&sender).is_some_and(|sender| sender.r#type == DATAGRAM);
        ensure!(sound, record, "a message from socket {sender}, which cannot have sent it");
    }
    message.credentials.iter().try_for_each(|credentials| sound(credentials, record))
}
