//! Unix sockets for people.

use crate::Image;
use crate::records::UnixSocket;

/// What a socket is, its name and what waits in it.
pub(super) fn describe(image: &Image, id: u32) -> String {
    let find = |id| image.unix_sockets.binary_search_by_key(&id, |socket| socket.id).ok();
    let Some(socket) = find(id).map(|at| &image.unix_sockets[at]) else { return String::new() };
    let kind = match socket.r#type {
        1 => "unix stream",
        2 => "unix datagrams",
        _ => "unix packets",
    };
    let mut parts = vec![kind.to_owned()];
    let name = |socket: &UnixSocket| {
        let name = image.unix_names.iter().find(|name| Some(name.id) == socket.name);
        name.map(crate::records::UnixName::shown)
    };
    parts.extend(name(socket));
    if let Some(peer) = socket.peer {
        let peer = find(peer).and_then(|at| name(&image.unix_sockets[at]));
        parts.push(peer.map_or_else(|| "connected".to_owned(), |peer| format!("connected to {peer}")));
    }
    if let Some(name) = image.unix_names.iter().find(|name| Some(name.id) == socket.outside) {
        parts.push(format!("connected to {} of another program", name.shown()));
    }
    if socket.backlog.is_some() {
        parts.push(format!("listens, {} waiting", socket.pending.len()));
    }
    let bytes: usize = socket.queue.iter().map(|message| message.data.len()).sum();
    if !socket.queue.is_empty() {
        parts.push(format!("{bytes} bytes to receive"));
    }
    parts.join(", ")
}
