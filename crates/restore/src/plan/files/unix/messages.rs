//! What waited in sockets is sent again: each message by the socket, and where it tells so by the process, that had sent it.

use rewake_image::records::{PeerCredentials, UnixMessage, UnixSocket};
use rewake_linux::program::{Accept, DataRef, Sysno, TrackRef};

use super::super::super::{Planner, args};
use super::{DATAGRAM, Web};
use crate::error::RestoreError;

const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
/// `struct cmsghdr`.
const CONTROL: usize = 16;
const CREDENTIALS: i32 = 2;
const RIGHTS: i32 = 1;

impl<'a> Planner<'a> {
    pub(super) fn send_all(&mut self, web: &Web) -> Result<(), RestoreError> {
        for socket in &self.image.unix_sockets {
            let mut rest = &socket.queue[..];
            while let Some(first) = rest.first() {
                let same = rest.iter().take_while(|one| sender(one) == sender(first)).count();
                let (now, later) = rest.split_at(same);
                let calls = now.iter().map(|message| self.message(web, socket, message));
                let calls: Vec<(i32, DataRef, u64)> = calls.collect::<Result<_, _>>()?;
                self.as_sender(sender(first), |plan, track| plan.send(track, &calls));
                rest = later;
            }
        }
        Ok(())
    }

    fn send(&mut self, track: TrackRef, calls: &[(i32, DataRef, u64)]) {
        for (from, header, length) in calls {
            let call = self.program.call(track, Sysno::sendmsg, args![*from, *header, FLAGS]);
            call.accept(Accept::Exactly(*length)).note("what waited in a unix socket");
        }
    }

    /// Lets a process of that id send. User and group it may claim, where it may have any.
    fn as_sender(&mut self, who: Option<i32>, work: impl FnOnce(&mut Self, TrackRef)) {
        let identity = &self.site.identity;
        let own = |pid| PeerCredentials {
            pid,
            uid: identity.uids[1],
            gid: identity.gids[1],
            groups: identity.groups.clone(),
        };
        let who = who.map(own);
        self.act(who.as_ref(), work);
    }

    /// Whether a message can tell again who sent it.
    fn tells(&self, credentials: &PeerCredentials) -> bool {
        let (sockets, identity) = (&self.site.sockets, &self.site.identity);
        let ids = credentials.uid == identity.uids[1] && credentials.gid == identity.gids[1];
        let number = credentials.pid == self.image.root().pid || sockets.free_ids.contains(&credentials.pid);
        number && (ids || sockets.may_change)
    }

    /// By which descriptor, with which `struct msghdr`, and how long.
    fn message(
        &mut self,
        web: &Web,
        socket: &UnixSocket,
        message: &UnixMessage,
    ) -> Result<(i32, DataRef, u64), RestoreError> {
        let (from, address) = self.way(web, socket, message)?;
        let data = self.program.bytes(&message.data);
        let length = u64::try_from(message.data.len()).expect("image lengths are checked");
        let part = self.program.words(&[0, length]);
        self.program.point(part, 0, data);
        let mut control = Vec::new();
        if let Some(credentials) = message.credentials.as_ref().filter(|one| self.tells(one)) {
            let words =
                [credentials.pid.cast_unsigned(), credentials.uid, credentials.gid].map(u32::to_le_bytes);
            add_control(&mut control, CREDENTIALS, &words.concat());
        }
        if !message.files.is_empty() {
            let numbers = message.files.iter().filter_map(|file| self.spare_of(*file)).map(i32::to_le_bytes);
            add_control(&mut control, RIGHTS, &numbers.collect::<Vec<_>>().concat());
        }
        // struct msghdr: name, its length, parts, how many, control, its length, flags
        let name_len = address.map_or(0, |address| u64::try_from(address.len).expect("a short address"));
        let control_len = u64::try_from(control.len()).expect("few files");
        let header = self.program.words(&[0, name_len, 0, 1, 0, control_len, 0]);
        if let Some(address) = address {
            self.program.point(header, 0, address);
        }
        self.program.point(header, 16, part);
        if !control.is_empty() {
            let control = self.program.bytes(&control);
            self.program.point(header, 32, control);
        }
        Ok((from, header, length))
    }

    /// The descriptor that sends to a socket, and the address that it needs for it.
    fn way(
        &mut self,
        web: &Web,
        socket: &UnixSocket,
        message: &UnixMessage,
    ) -> Result<(i32, Option<DataRef>), RestoreError> {
        if socket.r#type != DATAGRAM {
            return Ok((web.number(socket.peer.unwrap_or(socket.id)), None));
        }
        let sender = message.sender.unwrap_or(socket.id);
        let together = |pair: &&(u32, u32)| **pair == (sender, socket.id) || **pair == (socket.id, sender);
        let from = web.number(sender);
        if web.pairs.iter().any(|pair| together(&pair)) && !web.parted.contains(&sender) {
            return Ok((from, None));
        }
        match socket.name.and_then(|name| self.address(web, name)) {
            Some(address) => Ok((from, Some(address))),
            None => Err(RestoreError::Unsupported {
                pid: self.process.pid,
                object: format!("unix socket {}", socket.id),
                reason:
                    "a datagram waits in it, which has no address, from a socket that is not connected to it"
                        .into(),
            }),
        }
    }
}

fn sender(message: &UnixMessage) -> Option<i32> {
    message.credentials.as_ref().map(|credentials| credentials.pid)
}

fn add_control(control: &mut Vec<u8>, kind: i32, content: &[u8]) {
    control.extend((CONTROL + content.len()).to_le_bytes());
    control.extend([libc::SOL_SOCKET, kind].map(i32::to_le_bytes).concat());
    control.extend(content);
    control.resize(control.len().next_multiple_of(8), 0);
}
