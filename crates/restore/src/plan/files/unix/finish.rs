//! What comes when all that waited was sent: connections of sockets for datagrams, what was closed or shut down, options, flags.

use rewake_image::records::{SocketOption, UnixSocket};
use rewake_linux::program::{Accept, Sysno};

use super::super::super::{Planner, args};
use super::super::STATUS;
use super::Web;

const SO_SNDBUF: u32 = 7;
const SO_RCVBUF: u32 = 8;
const SO_SNDBUFFORCE: u32 = 32;
const SO_RCVBUFFORCE: u32 = 33;
const SO_LOCK_FILTER: u32 = 44;
/// The size of a buffer where nobody has set another one.
const USUAL: u32 = 212_992;

impl Planner<'_> {
    /// Send buffers that are larger than usual must be so before anything is sent.
    pub(super) fn enlarge(&mut self, web: &Web) {
        for socket in &self.image.unix_sockets {
            let large = |option: &&SocketOption| option.option == SO_SNDBUF && number(&option.value) > USUAL;
            for option in socket.options.iter().filter(large) {
                self.set_option(web.number(socket.id), option);
            }
        }
    }

    /// Connects sockets for datagrams to others than those they were made with; or to nobody. What was sent to one before that is lost.
    pub(super) fn reconnect(&mut self, web: &Web, later: &[u32]) {
        let leader = self.leader;
        for id in later {
            let Some(socket) = self.socket(*id) else { continue };
            let name = || socket.peer.and_then(|peer| self.socket(peer)?.name);
            match socket.outside.or_else(name) {
                Some(name) => self.connect_on(leader, web, web.number(*id), name),
                None => self.disconnect(web.number(*id)),
            }
        }
    }

    pub(super) fn close_and_finish(&mut self, web: &Web) {
        let leader = self.leader;
        for socket in self.image.unix_sockets.iter().filter(|socket| socket.reset) {
            // Its peer is closed with this unread.
            let byte = self.program.bytes(&[0]);
            let call = self.program.call(leader, Sysno::write, args![web.number(socket.id), byte, 1]);
            call.accept(Accept::Exactly(1)).note("what nobody read before the connection was closed");
        }
        for socket in &self.image.unix_sockets {
            if !web.open.contains_key(&socket.id) {
                self.close_on(leader, web.number(socket.id));
            }
        }
        for name in web.meanwhile.keys() {
            self.close_on(leader, web.names[name].1);
        }
        for socket in &self.image.unix_sockets {
            if let Some(at) = web.open.get(&socket.id) {
                self.finish_socket(web, socket, self.image.open_files[*at].flags);
            }
        }
    }

    fn finish_socket(&mut self, web: &Web, socket: &UnixSocket, flags: u32) {
        let (leader, number) = (self.leader, web.number(socket.id));
        let left = socket.peer.is_some_and(|peer| !web.open.contains_key(&peer));
        if socket.shutdown != 0 && (!left || self.is_datagram(socket.id)) {
            let args = args![number, socket.shutdown - 1];
            self.program.call(leader, Sysno::shutdown, args).note("unix socket is shut down");
        }
        let last = |option: &&SocketOption| option.option == SO_LOCK_FILTER;
        for option in socket.options.iter().filter(|option| !last(option)) {
            self.set_option(number, option);
        }
        if !socket.filter.is_empty() {
            let instructions = self.program.bytes(&socket.filter);
            let count = u64::try_from(socket.filter.len() / 8).expect("image lengths are checked");
            let filter = self.program.words(&[count, 0]);
            self.program.point(filter, 8, instructions);
            let args = args![number, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, filter, 16];
            self.program.call(leader, Sysno::setsockopt, args).note("filter of a unix socket");
        }
        for option in socket.options.iter().filter(last) {
            self.set_option(number, option);
        }
        let args = args![number, libc::F_SETFL, flags & STATUS];
        self.program.call(leader, Sysno::fcntl, args).note("flags of a unix socket");
    }

    /// Sizes are told twice as large as they are set; who may, goes above the usual limits.
    pub(super) fn set_option(&mut self, number: i32, option: &SocketOption) {
        let SocketOption { option, value } = option;
        let note = format!("option {option} of a unix socket");
        let size = self::number(value) / 2;
        let value = match *option {
            SO_SNDBUF | SO_RCVBUF => self.program.bytes(&size.to_le_bytes()),
            _ => self.program.bytes(value),
        };
        let len = u64::try_from(value.len).expect("image lengths are checked");
        let args = args![number, libc::SOL_SOCKET, *option, value, len];
        self.program.call(self.leader, Sysno::setsockopt, args).note(note.clone());
        let force = match *option {
            SO_SNDBUF => SO_SNDBUFFORCE,
            SO_RCVBUF => SO_RCVBUFFORCE,
            _ => return,
        };
        let args = args![number, libc::SOL_SOCKET, force, value, len];
        let call = self.program.call(self.leader, Sysno::setsockopt, args);
        call.accept(Accept::SuccessOr(libc::EPERM)).note(note);
    }

    fn disconnect(&mut self, number: i32) {
        let nobody = self.program.bytes(&[0; 16]);
        let call = self.program.call(self.leader, Sysno::connect, args![number, nobody, 16]);
        call.note("unix socket is no longer connected");
    }
}

fn number(value: &[u8]) -> u32 {
    value.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}
