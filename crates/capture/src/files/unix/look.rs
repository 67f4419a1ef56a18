//! One socket, as its own process has it.

use std::io;
use std::os::fd::OwnedFd;

use rewake_image::check::SOCKET_OPTIONS;
use rewake_image::records::{PeerCredentials, SocketOption};
use rewake_linux::attributes;
use rewake_linux::socket::diag::{self, Diag};
use rewake_linux::socket::{self, unix};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::names::Outside;
use super::{Queued, queue};
use crate::files::Seen;
use crate::files::kind::LET_FINISH;
use crate::findings::Refusal;

const SO_PASSPIDFD: u32 = 76;

/// A unix socket, as the kernel tells of it.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) inode: u64,
    /// A process that has it.
    pub(super) pid: i32,
    /// `SOCK_*`.
    pub(super) kind: i32,
    pub(super) told: diag::UnixSocket,
    /// Its address, and that of its peer.
    pub(super) name: Option<Vec<u8>>,
    pub(super) peer_name: Option<Vec<u8>>,
    /// The file that it is bound to, where we may ask for it.
    pub(super) bound: Option<OwnedFd>,
    pub(super) peer: Option<PeerCredentials>,
    /// Memory of what it sent that was not received yet.
    pub(super) unreceived: usize,
    pub(super) options: Vec<SocketOption>,
    pub(super) filter: Vec<u8>,
    /// Its peer closed the connection with data unread.
    pub(super) reset: bool,
    pub(super) queued: Queued,
    /// Somebody else's socket that it is connected to.
    pub(super) outside: Option<Outside>,
    /// Why it cannot be captured.
    pub(super) refusal: Option<Refusal>,
}

impl Look {
    /// Looks at the socket behind a descriptor; `None` if it is no unix socket, or was closed meanwhile. What waits in it is looked at
    /// only in a target that stands still.
    pub(super) fn at(one: &Seen, diag: &io::Result<Diag>, still: bool) -> Option<Self> {
        let own = attributes::duplicate(one.pid, one.fd).ok()?;
        let known = socket::look(&own).ok().filter(|known| known.family == libc::AF_UNIX)?;
        let mut look = Self {
            inode: one.inode().1,
            pid: one.pid,
            kind: known.kind,
            told: diag::UnixSocket::default(),
            name: None,
            peer_name: None,
            bound: unix::bound_file(&own).ok(),
            peer: None,
            unreceived: 0,
            options: Vec::new(),
            filter: Vec::new(),
            reset: false,
            queued: Queued::default(),
            outside: None,
            refusal: None,
        };
        look.refusal = look.ask(&own, diag, still).err();
        Some(look)
    }

    fn ask(&mut self, own: &OwnedFd, diag: &io::Result<Diag>, still: bool) -> Result<(), Refusal> {
        let unknown = |error: &io::Error| refusal(format!("it cannot be looked at ({error})"));
        let failed = |error: io::Error| unknown(&error);
        let diag = diag.as_ref().map_err(|error| {
            refusal(format!("the kernel does not tell what it is connected to (unix_diag): {error}"))
        })?;
        let inode = u32::try_from(self.inode).map_err(|error| failed(io::Error::other(error)))?;
        self.told = diag.ask(inode).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => refusal("it belongs to another network namespace"),
            _ => failed(error),
        })?;
        self.name = unix::name(own).map_err(failed)?;
        self.peer_name = unix::peer_name(own).ok().flatten();
        let peer = unix::peer_credentials(own).map_err(failed)?;
        self.peer =
            peer.map(|(one, groups)| PeerCredentials { pid: one.pid, uid: one.uid, gid: one.gid, groups });
        self.options = options(own, self.kind);
        self.filter = unix::filter(own).map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES) => refusal("it has a filter that cannot be read (eBPF)"),
            _ => failed(error),
        })?;
        if self.told.listens {
            return Ok(());
        }
        self.unreceived = unix::unreceived(own).map_err(failed)?;
        self.reset = in_error(own).map_err(failed)?;
        // Nothing ever came to a stream that leads nowhere.
        let may_hold = self.told.peer.is_some() || !self.is_connection();
        if still && may_hold {
            self.queued.messages = queue::read(own, self.kind, self.told.shutdown, self.reset)?;
            if !self.queued.messages.is_empty() && self.has(SO_PASSPIDFD) {
                return Err(refusal(
                    "a message waits in it that tells of its sender by a pidfd (SO_PASSPIDFD)",
                ));
            }
        }
        Ok(())
    }

    fn has(&self, option: u32) -> bool {
        self.options.iter().any(|one| one.option == option && one.value.iter().any(|byte| *byte != 0))
    }

    /// Whether data goes both ways, between two.
    pub(super) fn is_connection(&self) -> bool {
        self.kind != libc::SOCK_DGRAM
    }
}

pub(super) fn refusal(reason: impl Into<String>) -> Refusal {
    Refusal::new(reason, LET_FINISH)
}

/// Whether an error waits to be told. To ask for it would take it away.
fn in_error(own: &OwnedFd) -> io::Result<bool> {
    let mut ends = [PollFd::new(own, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut ends, Some(&now))?;
    Ok(ends[0].revents().contains(PollFlags::ERR))
}

/// Options that are not as they are in a new socket of that type.
fn options(own: &OwnedFd, kind: i32) -> Vec<SocketOption> {
    let Ok(new) = unix::new(kind) else { return Vec::new() };
    let differs = |option: u32| {
        let value = unix::option(own, option).ok()?;
        let usual = unix::option(&new, option).ok()?;
        (value != usual).then_some(SocketOption { option, value })
    };
    SOCKET_OPTIONS.into_iter().filter_map(differs).collect()
}
