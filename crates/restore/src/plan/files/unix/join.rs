//! Connecting sockets: in pairs, or by way of listeners, each side by whom the other one is to tell of.

use rewake_image::records::PeerCredentials;
use rewake_linux::program::{Accept, Sysno, TrackRef};

use super::super::super::{Planner, args};
use super::{NEW, Web};

/// More than will ever wait at once; the kernel makes it less.
const MANY: u32 = 1 << 16;
/// `SOCK_PASSCRED` and its like, which connections have from their listeners.
const INHERITED: [u32; 4] = [16, 34, 76, 83];

impl Planner<'_> {
    pub(super) fn pair(&mut self, web: &Web, one: u32, other: u32) {
        let (Some(socket), Some(peer)) = (self.socket(one), self.socket(other)) else { return };
        let credentials = socket.peer_credentials.as_ref().or(peer.peer_credentials.as_ref());
        let numbers = [web.number(one), web.number(other)];
        let ends = self.program.zeros(8);
        self.act(credentials, |plan, track| {
            let args = args![libc::AF_UNIX, socket.r#type | NEW, 0, ends];
            plan.program.call(track, Sysno::socketpair, args).note("pair of unix sockets");
            for (end, number) in [0, 1].into_iter().zip(numbers) {
                plan.program.call(track, Sysno::dup3, args![end, number, libc::O_CLOEXEC]);
                plan.close_on(track, end);
            }
        });
    }

    /// All connections by way of listeners: first those that were accepted, then those that wait.
    pub(super) fn join_all(&mut self, web: &Web) {
        for (name, joined) in &web.joined {
            let own = self.image.unix_sockets.iter();
            let own = own.filter(|socket| socket.name == Some(*name) && socket.backlog.is_some());
            let listener = own.map(|socket| web.number(socket.id)).next().unwrap_or(web.names[name].1);
            let mut listening = None;
            for (client, server) in joined {
                self.connect_and_accept(web, *name, listener, (*client, *server), &mut listening);
            }
        }
        for socket in &self.image.unix_sockets {
            let (Some(backlog), Some(name)) = (socket.backlog, socket.name) else { continue };
            let number = web.number(socket.id);
            if !socket.pending.is_empty() {
                for option in socket.options.iter().filter(|option| INHERITED.contains(&option.option)) {
                    self.set_option(number, option);
                }
            }
            for client in &socket.pending {
                let Some(record) = self.socket(*client) else { continue };
                self.listen(number, record.peer_credentials.as_ref(), MANY);
                let credentials = record.accepted_credentials.as_ref();
                self.connect(web, web.number(*client), name, credentials);
            }
            self.listen(number, socket.peer_credentials.as_ref(), backlog);
        }
    }

    fn connect_and_accept(
        &mut self,
        web: &Web,
        name: u32,
        listener: i32,
        (client, server): (u32, u32),
        listening: &mut Option<Option<PeerCredentials>>,
    ) {
        let (Some(client), Some(server)) = (self.socket(client), self.socket(server)) else { return };
        let wanted = client.peer_credentials.clone();
        if listening.as_ref() != Some(&wanted) {
            self.listen(listener, wanted.as_ref(), MANY);
            *listening = Some(wanted);
        }
        self.connect(web, web.number(client.id), name, server.peer_credentials.as_ref());
        let call = self.program.call(self.leader, Sysno::accept4, args![listener, 0, 0, NEW]);
        call.accept(Accept::Exactly(0)).note("connection of a unix socket");
        self.move_up(0, web.number(server.id));
    }

    fn listen(&mut self, number: i32, credentials: Option<&PeerCredentials>, backlog: u32) {
        self.act(credentials, |plan, track| {
            plan.program.call(track, Sysno::listen, args![number, backlog]).note("unix socket listens");
        });
    }

    fn connect(&mut self, web: &Web, number: i32, name: u32, credentials: Option<&PeerCredentials>) {
        self.act(credentials, |plan, track| plan.connect_on(track, web, number, name));
    }

    pub(super) fn connect_on(&mut self, track: TrackRef, web: &Web, number: i32, name: u32) {
        let Some(address) = self.address(web, name) else { return };
        let len = u64::try_from(address.len).expect("a short address");
        let shown = self.name(name).map(rewake_image::records::UnixName::shown).unwrap_or_default();
        let call = self.program.call(track, Sysno::connect, args![number, address, len]);
        call.note(format!("unix socket to {shown}"));
    }
}
