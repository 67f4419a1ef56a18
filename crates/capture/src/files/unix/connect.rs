//! Who is connected to whom, and whether all of that is inside.

use std::collections::{HashMap, HashSet};

use rewake_image::records::{PeerCredentials, UnixName, UnixSocket};
use rewake_linux::proc::{Proc, holders};
use rewake_linux::socket::diag::Diag;
use rewake_linux::socket::unix;

use super::look::{Look, refusal};
use super::names::{Bases, Names, Outside};
use super::{Queued, Sockets, is_socket, message};
use crate::files::{Seen, Target};
use crate::findings::Refusal;
use crate::kin;

/// Standard error.
const HIGHEST_STREAM: i32 = 2;
/// `SHUTDOWN_MASK`.
const BOTH: u32 = 3;

const REMEDY: &str = "close the connection first, or capture the program together with the process at its other side (-p of \
                      an ancestor of both)";

fn outside(reason: String) -> Refusal {
    Refusal::new(reason, REMEDY)
}

/// Finds those that lead to the outside or hold what cannot be captured.
pub(super) fn judge(target: Target<'_>, seen: &[Seen], looks: &mut Vec<Look>, diag: Option<&Diag>) {
    let known: HashSet<u32> = looks.iter().filter_map(|look| u32::try_from(look.inode).ok()).collect();
    // All of them are of one file system.
    let device = seen.iter().find(|one| is_socket(one)).map_or(0, |one| one.inode().0);
    let peers = looks.iter().flat_map(|look| look.told.peer.iter().chain(&look.told.waiting));
    let all = peers.chain(&known).filter(|inode| **inode != 0);
    let wanted: HashSet<(u64, u64)> = all.map(|inode| (device, u64::from(*inode))).collect();
    // We have some ourselves, as copies of what is in flight.
    let copies = seen.iter().find(|one| one.in_flight).map(|one| one.pid);
    let inside = |pid| copies == Some(pid) || !kin::is_outsider(target.family, pid);
    let elsewhere: HashMap<u32, i32> = holders(&wanted, inside)
        .into_iter()
        .filter_map(|((_, inode), pid)| Some((u32::try_from(inode).ok()?, pid)))
        .collect();
    let waiting: HashMap<u32, usize> = looks
        .iter()
        .enumerate()
        .flat_map(|(at, look)| look.told.waiting.iter().map(move |inode| (*inode, at)))
        .collect();
    let around = Around { target, known, elsewhere, waiting };
    if let Some(diag) = diag {
        around.reach_outside(looks, diag);
    }
    for at in 0..looks.len() {
        if looks[at].refusal.is_none() {
            looks[at].refusal = around.link(looks, at).err();
        }
    }
    // A standard stream whose other side somebody else had and closed is taken over like one that somebody still has.
    looks.retain(|look| !around.is_left_stream(look, seen));
}

/// What is needed to tell the inside from the outside.
struct Around<'a> {
    target: Target<'a>,
    /// Inodes of the target's sockets.
    known: HashSet<u32>,
    /// Processes outside, by the inode of a socket that they have.
    elsewhere: HashMap<u32, i32>,
    /// By the inode of a connection that waits, the listener.
    waiting: HashMap<u32, usize>,
}

impl Around<'_> {
    /// Whether everything that a socket leads to is inside.
    fn link(&self, looks: &[Look], at: usize) -> Result<(), Refusal> {
        let look = &looks[at];
        let inode = u32::try_from(look.inode).unwrap_or(0);
        if let Some(pid) = self.elsewhere.get(&inode) {
            return Err(outside(format!("process {pid}, which is outside of the captured tree, has it too")));
        }
        self.senders(look, looks)?;
        if look.reset && !(look.is_connection() && look.told.peer == Some(0)) {
            return Err(refusal("an error waits in it to be told to the program"));
        }
        match look.told.peer {
            Some(0) => self.no_peer(look, inode),
            Some(peer) if !self.known.contains(&peer) && look.outside.is_none() => self.foreign(peer),
            _ => self.waiting(look, looks),
        }
    }

    /// Nobody else can send from an abstract name that another program has, also when that has sent before.
    fn senders(&self, look: &Look, looks: &[Look]) -> Result<(), Refusal> {
        let mut senders = look.queued.messages.iter().filter_map(|message| message.sender.as_ref());
        let is_foreign = |text: &&Vec<u8>| {
            text.first() == Some(&0)
                && !looks.iter().any(|other| other.name.as_ref() == Some(text))
                && unix::is_abandoned(text).is_ok_and(|abandoned| !abandoned)
        };
        match senders.find(is_foreign) {
            Some(text) => {
                let name = UnixName { text: text.clone(), ..UnixName::default() };
                Err(refusal(format!(
                    "a datagram waits in it from {}, a socket of another program",
                    name.shown()
                )))
            }
            None => Ok(()),
        }
    }

    /// Sockets for datagrams may be connected to somebody else's: each that can be connected again is.
    fn reach_outside(&self, looks: &mut [Look], diag: &Diag) {
        let mut bases = None;
        for look in looks.iter_mut().filter(|look| !look.is_connection() && look.refusal.is_none()) {
            let Some(peer) = look.told.peer.filter(|peer| *peer != 0 && !self.known.contains(peer)) else {
                continue;
            };
            let Ok(told) = diag.ask(peer) else { continue };
            let (bases, holder) =
                (bases.get_or_insert_with(|| Bases::of(self.target)), self.elsewhere.get(&peer).copied());
            match Outside::find(look, &told, holder, bases) {
                Ok(found) => look.outside = Some(found),
                // Who has it may be one of the target's, who is not there yet.
                Err(_) if holder.is_none() && !self.target.still => {}
                Err(why) => {
                    let whose = holder.map_or("nobody of the captured tree".to_owned(), |pid| {
                        format!("process {pid}, outside of the captured tree,")
                    });
                    look.refusal = Some(outside(format!("its other side belongs to {whose} {why}")));
                }
            }
        }
    }

    fn foreign(&self, peer: u32) -> Result<(), Refusal> {
        match self.elsewhere.get(&peer) {
            Some(pid) => {
                Err(outside(format!("its other side belongs to process {pid}, outside of the captured tree")))
            }
            // It may be on its way inside; the freeze will tell.
            None if !self.target.still => Ok(()),
            None => Err(outside("its other side is outside of the captured tree".into())),
        }
    }

    /// Its peer is gone, or nobody has accepted the connection yet.
    fn no_peer(&self, look: &Look, inode: u32) -> Result<(), Refusal> {
        if !look.is_connection() || look.told.shutdown == BOTH {
            return Ok(());
        }
        match self.waiting.get(&inode) {
            Some(_) if look.unreceived == 0 => Ok(()),
            Some(_) if !self.target.still => Ok(()),
            Some(_) => Err(Refusal::passing(
                "data was sent through it to a program that has not accepted the connection yet, which nobody can \
                 read before",
                "let the program accept the connection first; try again in a moment",
            )),
            // The listener may be on its way inside.
            None if !self.target.still => Ok(()),
            None => Err(outside(
                "its connection waits to be accepted by a program outside of the captured tree".into(),
            )),
        }
    }

    /// Connections that wait to be accepted.
    fn waiting(&self, look: &Look, looks: &[Look]) -> Result<(), Refusal> {
        if !self.target.still {
            // They come and go.
            return Ok(());
        }
        for client in &look.told.waiting {
            if *client == 0 {
                return Err(Refusal::passing(
                    "a connection waits in it to be accepted whose other side was closed already",
                    "let the program accept it first; try again in a moment",
                ));
            }
            if !looks.iter().any(|other| other.inode == u64::from(*client)) {
                let whose =
                    self.elsewhere.get(client).map_or(String::new(), |pid| format!(", of process {pid}"));
                let reason = format!(
                    "a connection from outside of the captured tree waits in it to be accepted{whose}"
                );
                return Err(outside(reason));
            }
        }
        Ok(())
    }

    /// Whether nobody has the other side of a standard stream any more, and it was somebody else's.
    fn is_left_stream(&self, look: &Look, seen: &[Seen]) -> bool {
        let inside = look.peer.as_ref().is_some_and(|peer| self.target.family.contains(&peer.pid));
        let is_stream = |one: &Seen| {
            one.inode().1 == look.inode && one.fd <= HIGHEST_STREAM && !one.in_flight && is_socket(one)
        };
        look.refusal.is_none()
            && look.told.peer == Some(0)
            && look.told.shutdown == BOTH
            && look.queued.messages.is_empty()
            && !inside
            && seen.iter().any(is_stream)
    }
}

/// The records of sockets that are all inside, by their places.
pub(super) fn records(target: Target<'_>, sockets: &mut Sockets, mut looks: Vec<Look>) {
    let bases = Bases::of(target);
    let mut names = Names::new(&bases);
    let by_inode: HashMap<u32, u32> =
        looks.iter().zip(0..).filter_map(|(look, id)| Some((u32::try_from(look.inode).ok()?, id))).collect();
    // The names of those that are there come first: what is gone had one of theirs, maybe.
    let ids: Vec<Option<u32>> = looks.iter().map(|look| names.of(look)).collect();
    let outside: Vec<Option<u32>> =
        looks.iter().map(|look| look.outside.as_ref().map(|one| names.of_outside(one))).collect();
    let queued: Vec<Queued> = looks.iter_mut().map(|look| std::mem::take(&mut look.queued)).collect();
    let mut messages = Vec::new();
    for ((look, id), (name, queued)) in looks.iter().zip(0..).zip(ids.into_iter().zip(queued)) {
        let record = record(look, id, name, &by_inode);
        messages.push(queued.messages.iter().map(|one| message(one, None)).collect::<Vec<_>>());
        let senders: Vec<Option<Vec<u8>>> = queued.messages.iter().map(|one| one.sender.clone()).collect();
        sockets.push(record, queued);
        if !look.is_connection() {
            messages.last_mut().into_iter().flatten().zip(senders).for_each(|(message, sender)| {
                // The name, until all sockets are known.
                message.sender = sender.map(|text| names.of_text(&text));
            });
        }
    }
    for (record, outside) in sockets.records.iter_mut().zip(outside) {
        record.outside = outside;
    }
    gone(sockets, &looks, &mut names);
    for (at, mut queue) in messages.into_iter().enumerate() {
        if !looks[at].is_connection() {
            for message in &mut queue {
                message.sender = Some(sender(sockets, &looks, at, message.sender));
            }
        }
        sockets.records[at].queue = queue;
    }
    for (record, look) in sockets.records.iter_mut().zip(&looks) {
        let is_waiting = look.is_connection() && look.told.peer == Some(0) && record.peer.is_none();
        record.accepted_credentials = is_waiting.then(|| credentials_of(look.pid)).flatten();
    }
    sockets.names = names.records;
}

fn record(look: &Look, id: u32, name: Option<u32>, by_inode: &HashMap<u32, u32>) -> UnixSocket {
    UnixSocket {
        id,
        r#type: look.kind.unsigned_abs(),
        name,
        peer: look.told.peer.and_then(|peer| by_inode.get(&peer)).copied(),
        backlog: look.told.listens.then_some(look.told.backlog),
        pending: look.told.waiting.iter().filter_map(|client| by_inode.get(client)).copied().collect(),
        shutdown: look.told.shutdown,
        peer_credentials: look.peer.clone(),
        accepted_credentials: None,
        queue: Vec::new(),
        options: look.options.clone(),
        reset: false,
        outside: None,
        filter: look.filter.clone(),
    }
}

/// Peers that were closed: each is made for its other side and closed again.
fn gone(sockets: &mut Sockets, looks: &[Look], names: &mut Names<'_>) {
    for (at, look) in looks.iter().enumerate() {
        let waits = look.is_connection() && look.told.shutdown != BOTH;
        if look.told.peer != Some(0) || waits {
            continue;
        }
        let name = look.peer_name.as_ref().map(|text| names.of_text(text));
        let (id, kind) = (sockets.records[at].id, sockets.records[at].r#type);
        let peer = sockets.add(kind, name, look.is_connection().then_some(id));
        let record = &mut sockets.records[at];
        record.peer = Some(peer);
        record.reset = look.reset;
    }
}

/// Which socket sent a datagram: the one that has the name it came from. Among those without one, the one that is connected to here,
/// or has sent something that was not received.
fn sender(sockets: &mut Sockets, looks: &[Look], receiver: usize, name: Option<u32>) -> u32 {
    let datagrams = |socket: &&UnixSocket| socket.r#type == libc::SOCK_DGRAM.unsigned_abs();
    let id = sockets.records[receiver].id;
    let found = {
        let mut all = sockets.records.iter().filter(datagrams).filter(|socket| socket.name == name);
        match name {
            Some(_) => all.next(),
            None => {
                let all: Vec<&UnixSocket> = all.collect();
                let connected = all.iter().find(|socket| socket.peer == Some(id));
                let peer = || all.iter().find(|socket| sockets.records[receiver].peer == Some(socket.id));
                let has_sent = |socket: &&&UnixSocket| {
                    usize::try_from(socket.id)
                        .is_ok_and(|at| looks.get(at).is_some_and(|look| look.unreceived > 0))
                };
                connected.or_else(peer).or_else(|| all.iter().find(has_sent)).copied()
            }
        }
    };
    match found {
        Some(socket) => socket.id,
        None => sockets.add(libc::SOCK_DGRAM.unsigned_abs(), name, None),
    }
}

/// Of the process that has a connection that waits: that it made the connection itself is likely, and nobody tells.
fn credentials_of(pid: i32) -> Option<PeerCredentials> {
    let status = Proc::open_living(pid).and_then(|proc| proc.status()).ok()?;
    Some(PeerCredentials { pid, uid: status.uids[1], gid: status.gids[1], groups: status.groups })
}
