//! Unix sockets of all kinds.

use crate::Image;
use crate::records::open_file::Kind;
use crate::records::{
    Descriptor, FileIdentity, OpenFile, PeerCredentials, SocketEnd, SocketOption, UnixMessage, UnixName,
    UnixSocket,
};

const STREAM: u32 = 1;
const DATAGRAM: u32 = 2;
const PASS_CREDENTIALS: u32 = 16;

/// A stream pair with data and a descriptor in flight; a stream whose peer is gone; a listener with a connection that waits; a socket
/// for datagrams that holds one of another one, which is gone.
pub(super) fn add(image: &mut Image) {
    image.unix_names = vec![
        UnixName {
            id: 0,
            text: b"socket".to_vec(),
            file: Some(FileIdentity {
                path: b"/home/user/socket".to_vec(),
                mode: 0o140_755,
                ..FileIdentity::default()
            }),
            uid: 1000,
            gid: 1000,
            folder: b"/home/user".to_vec(),
            renamed: false,
        },
        UnixName { id: 1, text: b"\0abstract".to_vec(), ..UnixName::default() },
        UnixName { id: 2, text: b"/home/user/gone".to_vec(), ..UnixName::default() },
        UnixName { id: 3, text: b"\0somebody's".to_vec(), ..UnixName::default() },
    ];
    let credentials = |pid| Some(PeerCredentials { pid, uid: 1000, gid: 1000, groups: vec![1000] });
    let message = UnixMessage { data: b"data".to_vec(), ..UnixMessage::default() };
    let socket = |id, kind, peer| UnixSocket { id, r#type: kind, peer, ..UnixSocket::default() };
    let option = SocketOption { option: PASS_CREDENTIALS, value: 1i32.to_le_bytes().to_vec() };
    image.unix_sockets = vec![
        UnixSocket {
            queue: vec![UnixMessage { files: vec![1], credentials: credentials(0), ..message.clone() }],
            peer_credentials: credentials(super::PID),
            ..socket(0, STREAM, Some(1))
        },
        UnixSocket {
            peer_credentials: credentials(super::PID),
            shutdown: 1,
            options: vec![option],
            ..socket(1, STREAM, Some(0))
        },
        UnixSocket { reset: true, ..socket(2, STREAM, Some(3)) },
        socket(3, STREAM, Some(2)),
        UnixSocket {
            name: Some(0),
            backlog: Some(5),
            pending: vec![5],
            peer_credentials: credentials(super::PID),
            ..socket(4, STREAM, None)
        },
        UnixSocket { accepted_credentials: credentials(super::PID), ..socket(5, STREAM, None) },
        UnixSocket {
            queue: vec![UnixMessage { sender: Some(7), ..message }],
            name: Some(2),
            filter: vec![6, 0, 0, 0, 0, 0, 4, 0],
            ..socket(6, DATAGRAM, None)
        },
        UnixSocket { name: Some(1), ..socket(7, DATAGRAM, None) },
        UnixSocket { outside: Some(3), ..socket(8, DATAGRAM, None) },
    ];
    for socket in [0, 1, 2, 4, 5, 6, 8] {
        let id = image.open_files.last().map_or(0, |file| file.id) + 1;
        let fd = image.processes[0].descriptors.last().map_or(0, |descriptor| descriptor.fd) + 1;
        let kind = Some(Kind::Socket(SocketEnd { socket }));
        image.open_files.push(OpenFile { id, flags: 2, kind, ..OpenFile::default() });
        image.processes[0].descriptors.push(Descriptor { fd, file: id, close_on_exec: false });
    }
}
