//! Unix sockets. They are made before other files are opened: bound, listening, connected, in this order, each by whom its other side is to
//! tell of ([`passing`]). When all files are there, what waited in them is sent again ([`messages`]); last come connections of sockets
//! for datagrams, what was shut down or closed, and options ([`finish`]).

mod bind;
mod finish;
mod join;
mod messages;
mod passing;

use std::collections::BTreeMap;

use rewake_image::records::{UnixName, UnixSocket, open_file};
use rewake_linux::program::{DataRef, Sysno, TrackRef};
use rewake_linux::socket::unix::sockaddr;

use super::super::{Planner, args};
use crate::error::RestoreError;
use crate::sockets::Place;

const DATAGRAM: u32 = 2;
/// Nothing here waits: what would, fails.
const NEW: u32 = (libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC).cast_unsigned();

/// What is known of all sockets while they are planned.
#[derive(Debug, Default)]
pub(super) struct Web {
    /// The descriptors at which they wait for theirs, by id.
    numbers: BTreeMap<u32, i32>,
    /// The places among the image's open files of those that are open.
    open: BTreeMap<u32, usize>,
    /// By id of a name: the descriptor of its file, and that of a listener that is there only meanwhile.
    names: BTreeMap<u32, (i32, i32)>,
    /// Who is connected to whom by way of a listener: client and server, by the id of the server's name.
    joined: BTreeMap<u32, Vec<(u32, u32)>>,
    /// Made with one another.
    pairs: Vec<(u32, u32)>,
    /// Sockets for datagrams that were made in a pair and are connected to others since, or to nobody.
    parted: Vec<u32>,
    /// Those that are connected to an address, each before the one it is connected to.
    later: Vec<u32>,
    /// Listeners that are there only meanwhile, and their type.
    meanwhile: BTreeMap<u32, u32>,
}

impl Web {
    fn number(&self, socket: u32) -> i32 {
        self.numbers.get(&socket).copied().unwrap_or(-1)
    }
}

impl<'a> Planner<'a> {
    fn socket(&self, id: u32) -> Option<&'a UnixSocket> {
        let sockets = &self.image.unix_sockets;
        sockets.binary_search_by_key(&id, |socket| socket.id).ok().map(|at| &sockets[at])
    }

    fn name(&self, id: u32) -> Option<&'a UnixName> {
        let names = &self.image.unix_names;
        names.binary_search_by_key(&id, |name| name.id).ok().map(|at| &names[at])
    }

    /// Fills them, and makes them what they were, when all files are open.
    pub(super) fn finish_sockets(&mut self, web: &Web) -> Result<(), RestoreError> {
        self.enlarge(web);
        self.reconnect(web, &web.parted);
        self.send_all(web)?;
        self.reconnect(web, &web.later);
        self.close_and_finish(web);
        Ok(())
    }

    /// Makes all of them, empty.
    pub(super) fn unix_sockets(&mut self) -> Result<Web, RestoreError> {
        let mut web = self.web();
        self.weave(&mut web)?;
        for (one, other) in web.pairs.clone() {
            self.pair(&web, one, other);
        }
        let in_pair: Vec<u32> = web.pairs.iter().flat_map(|(one, other)| [*one, *other]).collect();
        let accepted: Vec<u32> = web.joined.values().flatten().map(|(_, server)| *server).collect();
        for socket in &self.image.unix_sockets {
            if !in_pair.contains(&socket.id) && !accepted.contains(&socket.id) {
                self.make_socket(web.number(socket.id), socket.r#type);
            }
        }
        for (name, kind) in web.meanwhile.clone() {
            self.make_socket(web.names[&name].1, kind);
        }
        self.bind_all(&web, &accepted);
        self.join_all(&web);
        Ok(web)
    }

    fn web(&self) -> Web {
        let mut web = Web::default();
        for (at, file) in self.image.open_files.iter().enumerate() {
            if let Some(open_file::Kind::Socket(end)) = &file.kind {
                web.numbers.insert(end.socket, self.spare(at));
                web.open.insert(end.socket, at);
            }
        }
        let (sockets, names) = (&self.image.unix_sockets, &self.image.unix_names);
        // Behind all others.
        let mut next = self.image.open_files.len() + self.image.removed_files.len() + self.made.len();
        let mut number = || {
            next += 1;
            self.spare(next - 1)
        };
        for socket in sockets {
            web.numbers.entry(socket.id).or_insert_with(&mut number);
        }
        for name in names {
            web.names.insert(name.id, (number(), number()));
        }
        web
    }

    /// Decides how each comes to its peer.
    fn weave(&self, web: &mut Web) -> Result<(), RestoreError> {
        for socket in &self.image.unix_sockets {
            let Some(peer) = socket.peer.and_then(|peer| self.socket(peer)) else { continue };
            if socket.r#type == DATAGRAM {
                self.weave_datagrams(web, socket, peer)?;
            } else if socket.id < peer.id {
                self.weave_connection(web, socket, peer);
            }
        }
        let outside = self.image.unix_sockets.iter().filter(|socket| socket.outside.is_some());
        web.later.extend(outside.map(|socket| socket.id));
        let mates = web.pairs.iter().flat_map(|(one, other)| [(*one, *other), (*other, *one)]);
        let mates: BTreeMap<u32, u32> = mates.collect();
        let parted = |socket: &&UnixSocket| {
            let mate = mates.get(&socket.id);
            mate.is_some() && socket.peer.as_ref() != mate && web.open.contains_key(&socket.id)
        };
        let parted = self.image.unix_sockets.iter().filter(|socket| socket.r#type == DATAGRAM).filter(parted);
        web.parted = parted.map(|socket| socket.id).collect();
        web.later.retain(|id| !mates.contains_key(id));
        self.put_in_order(&mut web.later);
        Ok(())
    }

    /// Nobody can be connected to one that is connected to another one.
    fn put_in_order(&self, later: &mut Vec<u32>) {
        let mut rest = std::mem::take(later);
        while !rest.is_empty() {
            let peer = |id: u32| self.socket(id).and_then(|socket| socket.peer);
            let awaited = |id: u32| {
                rest.iter().any(|other| *other != id && peer(*other) == Some(id) && peer(id) != Some(*other))
            };
            let next = rest.iter().position(|id| !awaited(*id)).unwrap_or(0);
            later.push(rest.remove(next));
        }
    }

    fn weave_datagrams(
        &self,
        web: &mut Web,
        socket: &UnixSocket,
        peer: &UnixSocket,
    ) -> Result<(), RestoreError> {
        let is_paired =
            |web: &Web, id: u32| web.pairs.iter().any(|(one, other)| [*one, *other].contains(&id));
        let mutual = peer.peer == Some(socket.id) || !web.open.contains_key(&peer.id);
        let by_pair = peer.name.is_none() || mutual && socket.peer_credentials.is_some();
        let together =
            web.pairs.iter().any(|pair| *pair == (peer.id, socket.id) || *pair == (socket.id, peer.id));
        if together {
            return Ok(());
        }
        if by_pair && socket.id != peer.id && !is_paired(web, socket.id) && !is_paired(web, peer.id) {
            web.pairs.push((socket.id, peer.id));
            return Ok(());
        }
        if peer.name.is_none() {
            return Err(RestoreError::Unsupported {
                pid: self.process.pid,
                object: format!("unix socket {}", socket.id),
                reason: format!("it is connected to socket {}, which has no address", peer.id),
            });
        }
        web.later.push(socket.id);
        Ok(())
    }

    /// A stream that has a name at one end at least was made by way of a listener of that name.
    fn weave_connection(&self, web: &mut Web, one: &UnixSocket, other: &UnixSocket) {
        let listens = |name: u32| {
            self.image.unix_sockets.iter().any(|socket| socket.name == Some(name) && socket.backlog.is_some())
        };
        let (client, server, name) = match (one.name, other.name) {
            (None, None) => return web.pairs.push((one.id, other.id)),
            (Some(name), None) => (other, one, name),
            (Some(name), Some(others)) if listens(name) && !listens(others) => (other, one, name),
            (_, Some(name)) => (one, other, name),
        };
        if !listens(name) {
            web.meanwhile.insert(name, one.r#type);
        }
        web.joined.entry(name).or_default().push((client.id, server.id));
    }

    fn make_socket(&mut self, number: i32, kind: u32) {
        let args = args![libc::AF_UNIX, kind | NEW, 0];
        let call = self.program.call(self.leader, Sysno::socket, args);
        call.accept(rewake_linux::program::Accept::Exactly(0)).note("unix socket");
        self.move_up(0, number);
    }

    /// The address of a name as the program uses it here: by the file's descriptor, which is short and works from anywhere.
    fn address(&mut self, web: &Web, name: u32) -> Option<DataRef> {
        let record = self.name(name)?;
        let address = match self.place_of(name) {
            Place::Abstract | Place::Outside(None) => sockaddr(&record.text),
            _ => sockaddr(format!("/proc/self/fd/{}", web.names.get(&name)?.0).as_bytes()),
        };
        Some(self.program.bytes(&address))
    }

    fn place_of(&self, name: u32) -> Place {
        match self.name(name) {
            Some(name) if name.is_abstract() => Place::Abstract,
            _ => self.site.sockets.places.get(&name).copied().unwrap_or(Place::Private),
        }
    }

    fn close_on(&mut self, track: TrackRef, number: i32) {
        self.program.call(track, Sysno::close, args![number]);
    }
}
