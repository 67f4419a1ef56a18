//! Giving sockets their addresses. One that is a path is bound by somebody who stands in the right folder, with a umask that gives the file
//! its permissions; one whose file is gone, in a file system that nobody else sees and that vanishes with him.

use rewake_image::records::UnixName;
use rewake_linux::program::{Accept, Sysno, TrackRef};
use rewake_linux::socket::unix::sockaddr;

use super::super::super::{MadeSocket, Planner, RemovedSocket, args};
use super::{DATAGRAM, Web};
use crate::sockets::{Place, Stale, first_path, last_name};

const PERMISSIONS: u32 = 0o777;
/// Somewhere to mount something.
const THERE: &[u8] = b"/proc";

impl Planner<'_> {
    /// Binds every socket that has a name of its own, those that listen only meanwhile too.
    pub(super) fn bind_all(&mut self, web: &Web, accepted: &[u32]) {
        let mut private = Vec::new();
        let own = self.image.unix_sockets.iter().filter(|socket| !accepted.contains(&socket.id));
        let own = own.filter_map(|socket| Some((socket.name?, web.number(socket.id))));
        let meanwhile = web.meanwhile.keys().map(|name| (*name, web.names[name].1));
        let all: Vec<(u32, i32)> = own.chain(meanwhile).collect();
        for (id, number) in all {
            let Some(name) = self.name(id) else { continue };
            match self.place_of(id) {
                Place::Abstract => {
                    let leader = self.leader;
                    self.bind(leader, number, name);
                }
                Place::Real { folder, before, stale } => {
                    self.bind_real(web, name, number, (folder, before), stale);
                }
                Place::Private => private.push((name, number)),
                // Nobody of ours has it.
                Place::Outside(_) => {}
            }
        }
        for name in &self.image.unix_names {
            if let (Place::Outside(Some(folder)), Some(file)) = (self.place_of(name.id), &name.file) {
                let (leader, folder) = (self.leader, self.folder(folder));
                self.open_place(leader, folder, last_name(&file.path), web.names[&name.id].0);
            }
        }
        self.bind_private(web, &private);
    }

    fn bind(&mut self, track: TrackRef, number: i32, name: &UnixName) {
        let address = self.program.bytes(&sockaddr(&name.text));
        let len = u64::try_from(address.len).expect("a short address");
        let call = self.program.call(track, Sysno::bind, args![number, address, len]);
        call.note(format!("unix socket {}", name.shown()));
    }

    fn bind_real(
        &mut self,
        web: &Web,
        name: &UnixName,
        number: i32,
        (folder, before): (usize, Option<usize>),
        stale: Option<Stale>,
    ) {
        let Some(file) = &name.file else { return };
        let (leader, shown) = (self.leader, format!("unix socket {}", name.shown()));
        let last = last_name(&file.path);
        let place = (self.folder(folder), self.program.string(last));
        if let Some(was) = stale {
            let call = self.program.call(leader, Sysno::unlinkat, args![place.0, place.1, 0]);
            call.accept(Accept::SuccessOr(libc::ENOENT)).note(format!("what is left of {shown}"));
            let removed = self.program.call(leader, Sysno::gettid, args![]).done();
            self.removed_sockets.push(RemovedSocket { folder, name: last.to_vec(), removed, was });
        }
        let stands = self.program.string(&name.folder);
        let mut made = None;
        self.pass_by(None, |plan, track| {
            let program = &mut plan.program;
            let enter = if name.text.starts_with(b"/") { Sysno::chroot } else { Sysno::chdir };
            if name.folder != b"/" || enter == Sysno::chdir {
                program.call(track, enter, args![stands]).note(shown.clone());
            }
            program.call(track, Sysno::umask, args![!file.mode & PERMISSIONS]);
            plan.bind(track, number, name);
            // Its result, which is not 0, says that the file was made.
            made = Some(plan.program.call(track, Sysno::gettid, args![]).done());
        });
        let first = first_path(name);
        if let Some(made) = made {
            let (folder, name) = before.map_or((folder, last), |before| (before, last_name(&first)));
            self.made_sockets.push(MadeSocket { folder, name: name.to_vec(), made });
        }
        if let Some(before) = before {
            let from = (self.folder(before), self.program.string(last_name(&first)));
            let args = args![from.0, from.1, place.0, place.1];
            let call = self.program.call(leader, Sysno::renameat, args);
            call.note(format!("{shown} became {}", String::from_utf8_lossy(&file.path)));
            let made = self.program.call(leader, Sysno::gettid, args![]).done();
            self.made_sockets.push(MadeSocket { folder, name: last.to_vec(), made });
        }
        let number = web.names[&name.id].0;
        self.open_place(leader, place.0, last, number);
        let empty = self.program.string(b"");
        let args = args![number, empty, name.uid, name.gid, libc::AT_EMPTY_PATH];
        self.program.call(leader, Sysno::fchownat, args).accept(Accept::Any).note("owner");
    }

    /// The number of a folder that `resume` opened.
    fn folder(&self, index: usize) -> i32 {
        self.site.first_folder() + i32::try_from(index).unwrap_or(i32::MAX)
    }

    /// The file of a socket, at a number of ours.
    fn open_place(&mut self, track: TrackRef, folder: i32, name: &[u8], number: i32) {
        let note = format!("unix socket {}", String::from_utf8_lossy(name));
        let name = self.program.string(name);
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let call = self.program.call(track, Sysno::openat, args![folder, name, flags, 0]);
        call.accept(Accept::Exactly(0)).note(note);
        self.program.call(track, Sysno::dup3, args![0, number, libc::O_CLOEXEC]);
        self.close_on(track, 0);
    }

    fn bind_private(&mut self, web: &Web, all: &[(&UnixName, i32)]) {
        if all.is_empty() {
            return;
        }
        self.pass_by(None, |plan, track| {
            let program = &mut plan.program;
            let (root, there, kind) = (program.string(b"/"), program.string(THERE), program.string(b"tmpfs"));
            program
                .call(track, Sysno::unshare, args![libc::CLONE_NEWNS])
                .note("a file system for names that are gone");
            program.call(track, Sysno::mount, args![0, root, 0, libc::MS_REC | libc::MS_SLAVE, 0]);
            program.call(track, Sysno::mount, args![kind, there, kind, 0, 0]);
            program.call(track, Sysno::chroot, args![there]);
            program.call(track, Sysno::chdir, args![root]);
            for (name, number) in all {
                for folder in folders(&name.text) {
                    let path = plan.program.string(folder);
                    let call = plan.program.call(track, Sysno::mkdirat, args![libc::AT_FDCWD, path, 0o700]);
                    call.accept(Accept::SuccessOr(libc::EEXIST));
                }
                plan.bind(track, *number, name);
                plan.open_place(track, libc::AT_FDCWD, &name.text, web.names[&name.id].0);
                let path = plan.program.string(&name.text);
                plan.program.call(track, Sysno::unlinkat, args![libc::AT_FDCWD, path, 0]);
            }
        });
    }

    /// Whether a socket is for datagrams.
    pub(super) fn is_datagram(&self, socket: u32) -> bool {
        self.socket(socket).is_some_and(|socket| socket.r#type == DATAGRAM)
    }
}

/// The folders that a path goes through, from the outside in.
fn folders(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = text.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| &text[..at])
}
