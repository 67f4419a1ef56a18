//! What has to be known of this host before unix sockets are planned: which of their names can be had, and whose ids.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rewake_image::Image;
use rewake_image::records::{FileIdentity, PeerCredentials, UnixName, UnixSocket, path_of};
use rewake_linux::socket::unix;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::credentials::Identity;
use crate::error::RestoreError;
use crate::host::is_privileged_binary;
use crate::removed;

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SYS_ADMIN: u32 = 21;
const PERMISSIONS: u32 = 0o7777;

/// Where a name is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is no path.
    Abstract,
    /// In its folder.
    Real {
        /// The folder that the file is in: an index into the folders that the program gets.
        folder: usize,
        /// The one that it was in at first, where it has another name since.
        before: Option<usize>,
        /// What is left of a socket that nobody has any more is there, and is removed before.
        stale: Option<Stale>,
    },
    /// Somebody else's socket has it: in this folder, if it is a file.
    Outside(Option<usize>),
    /// In a file system that nobody else sees: nothing of it is there any more.
    Private,
}

/// The file of a socket that nobody has any more: all that there is to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was read and changed last: seconds, nanoseconds.
    pub times: [(i64, i64); 2],
}

/// What was found out.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    /// By id of the [`UnixName`].
    pub places: BTreeMap<u32, Place>,
    /// Ids that a process can have for a moment: nobody has them.
    pub free_ids: BTreeSet<i32>,
    /// Whether it can have other user and group ids than ours, or claim to.
    pub may_change: bool,
    /// Whether file systems can be mounted for it alone.
    pub may_mount: bool,
}

/// Looks at all names and ids that the image's sockets have.
///
/// # Errors
/// A name that somebody else has, or that cannot be had.
pub fn survey(
    image: &Image,
    identity: &Identity,
    inside: bool,
    folders: &mut Vec<Arc<OwnedFd>>,
) -> Result<Sockets, RestoreError> {
    let has = |capability: u32| identity.capabilities.effective & 1 << capability != 0;
    let mut sockets = Sockets {
        may_change: !is_privileged_binary() && has(CAP_SETUID) && has(CAP_SETGID),
        may_mount: inside || has(CAP_SYS_ADMIN),
        ..Sockets::default()
    };
    for name in &image.unix_names {
        let is_outside = image.unix_sockets.iter().any(|socket| socket.outside == Some(name.id));
        let place = if is_outside { outside(image, name, folders) } else { place(image, name, folders) }?;
        if place == Place::Private && !sockets.may_mount && is_bound_again(image, name.id) {
            let reason = "its file is gone; binding it without one takes CAP_SYS_ADMIN, or namespaces of its own \
                          (--pids namespace)";
            return Err(taken(image, name, reason.to_owned()));
        }
        sockets.places.insert(name.id, place);
    }
    let members: BTreeSet<i32> = image.processes.iter().map(|process| process.pid).collect();
    let is_free = |pid: &i32| {
        // The first process of a new namespace is not ours.
        let nobody = || if inside { *pid > 1 } else { !Path::new(&format!("/proc/{pid}")).exists() };
        *pid > 0 && (members.contains(pid) || nobody())
    };
    sockets.free_ids = credentials(image).map(|one| one.pid).filter(is_free).collect();
    Ok(sockets)
}

/// All credentials that sockets and messages tell.
fn credentials(image: &Image) -> impl Iterator<Item = &PeerCredentials> {
    image.unix_sockets.iter().flat_map(|socket| {
        let messages = socket.queue.iter().filter_map(|message| message.credentials.as_ref());
        socket.peer_credentials.iter().chain(&socket.accepted_credentials).chain(messages)
    })
}

fn is_bound_again(image: &Image, name: u32) -> bool {
    image.unix_sockets.iter().any(|socket| socket.name == Some(name))
}

fn place(image: &Image, name: &UnixName, folders: &mut Vec<Arc<OwnedFd>>) -> Result<Place, RestoreError> {
    if name.is_abstract() {
        return match unix::is_abandoned(&name.text) {
            Ok(false) => Err(taken(image, name, "another program has this address".to_owned())),
            _ => Ok(Place::Abstract),
        };
    }
    let Some(file) = &name.file else { return Ok(Place::Private) };
    let mut open = |path: &Path| -> Result<usize, RestoreError> {
        let folder = path.parent().ok_or(Errno::NOENT).and_then(removed::open_as_it_was);
        let folder = folder.map_err(|error| taken(image, name, format!("the folder it was in: {error}")))?;
        folders.push(Arc::new(folder));
        Ok(folders.len() - 1)
    };
    let folder = open(file.as_path())?;
    let before = if name.renamed { Some(open(path_of(&first_path(name)))?) } else { None };
    let stale = stale(&folders[folder], file).map_err(|reason| taken(image, name, reason))?;
    Ok(Place::Real { folder, before, stale })
}

/// Where somebody else's socket is to be reached again.
fn outside(image: &Image, name: &UnixName, folders: &mut Vec<Arc<OwnedFd>>) -> Result<Place, RestoreError> {
    let failed = |reason: io::Error| RestoreError::Unreachable {
        pid: image.root().pid,
        name: name.shown(),
        source: reason,
    };
    let Some(file) = &name.file else {
        unix::takes_datagrams(&name.text).map_err(failed)?;
        return Ok(Place::Outside(None));
    };
    let folder = file.as_path().parent().ok_or(Errno::NOENT).and_then(removed::open_as_it_was);
    let folder = folder.map_err(|error| failed(error.into()))?;
    by_short_name(&folder, last_name(&file.path), unix::takes_datagrams).map_err(failed)?;
    folders.push(Arc::new(folder));
    Ok(Place::Outside(Some(folders.len() - 1)))
}

/// Connects sockets to nobody that were connected to somebody else's: to one that is closed. It has an address for a moment, so that
/// they get what waits in them before they are connected.
pub fn lead_nowhere(image: &mut Image) {
    let id = image.unix_sockets.last().map_or(0, |socket| socket.id.saturating_add(1));
    let name = image.unix_names.last().map_or(0, |name| name.id.saturating_add(1));
    let mut outside = image.unix_sockets.iter_mut().filter(|socket| socket.outside.is_some()).peekable();
    let Some(kind) = outside.peek().map(|socket| socket.r#type) else { return };
    for socket in outside {
        socket.outside = None;
        socket.peer = Some(id);
    }
    image.unix_sockets.push(UnixSocket { id, r#type: kind, name: Some(name), ..UnixSocket::default() });
    let text = format!("\0rewake-nowhere-{}", std::process::id()).into_bytes();
    image.unix_names.push(UnixName { id: name, text, ..UnixName::default() });
}

/// The path at which a name was bound, whatever became of the file since.
#[must_use]
pub fn first_path(name: &UnixName) -> Vec<u8> {
    let text = name.text.iter().position(|byte| *byte != b'/').map_or(&[][..], |at| &name.text[at..]);
    [name.folder.strip_suffix(b"/").unwrap_or(&name.folder), b"/", text].concat()
}

/// The last name of a path.
#[must_use]
pub fn last_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// What is in the place of a socket, if nobody has that any more.
fn stale(folder: &OwnedFd, file: &FileIdentity) -> Result<Option<Stale>, String> {
    let name = last_name(&file.path);
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(format!("its place cannot be looked at ({error})")),
        Ok(there) if FileType::from_raw_mode(there.st_mode) != FileType::Socket => {
            Err("another file is in its place".to_owned())
        }
        Ok(there) => match is_abandoned(folder, name) {
            Ok(true) => Ok(Some(Stale::of(&there))),
            Ok(false) => Err("another program has a socket in its place".to_owned()),
            Err(error) => Err(format!("a socket is in its place that cannot be asked for ({error})")),
        },
    }
}

fn is_abandoned(folder: &OwnedFd, name: &[u8]) -> io::Result<bool> {
    by_short_name(folder, name, unix::is_abandoned)
}

/// By a short name, whatever the length of the path.
fn by_short_name<T>(
    folder: &OwnedFd,
    name: &[u8],
    ask: impl FnOnce(&[u8]) -> io::Result<T>,
) -> io::Result<T> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    ask(format!("/proc/self/fd/{}", file.as_raw_fd()).as_bytes())
}

/// Removes the file of a socket that a failed restore made; whatever else is in its place by now stays.
pub fn remove_abandoned(folder: &OwnedFd, name: &[u8]) {
    let there = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
    let is_socket = there.is_ok_and(|there| FileType::from_raw_mode(there.st_mode) == FileType::Socket);
    if is_socket && is_abandoned(folder, name).unwrap_or(false) {
        let removed = rustix::fs::unlinkat(folder, name, AtFlags::empty());
        tracing::debug!(name = %name.escape_ascii(), ?removed, "left by a restore that failed");
    }
}

/// Makes the file of a socket again that a failed restore removed, unless something else is there by now.
pub fn put_back(folder: &OwnedFd, name: &[u8], was: &Stale) {
    let done = was.make(folder, name);
    tracing::debug!(name = %name.escape_ascii(), ?done, "the file of a socket that nobody has is put back");
}

impl Stale {
    fn of(stat: &rustix::fs::Stat) -> Self {
        let parts = |nanoseconds: u64| i64::try_from(nanoseconds).unwrap_or(0);
        let times = [(stat.st_atime, parts(stat.st_atime_nsec)), (stat.st_mtime, parts(stat.st_mtime_nsec))];
        Self { mode: stat.st_mode & PERMISSIONS, uid: stat.st_uid, gid: stat.st_gid, times }
    }

    fn make(&self, folder: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        let none = Mode::empty();
        rustix::fs::mknodat(folder, name, FileType::Socket, none, 0)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(folder, name, flags, none)?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        // Somebody else's comes to be ours where we may not give it away.
        let _ = rustix::fs::chownat(&file, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::chmod(&path, Mode::from_raw_mode(self.mode))?;
        let [last_access, last_modification] =
            self.times.map(|(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec });
        let times = Timestamps { last_access, last_modification };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())
    }
}

fn taken(image: &Image, name: &UnixName, reason: String) -> RestoreError {
    let pid = image.root().pid;
    RestoreError::Socket { pid, name: name.shown(), reason }
}

/// Who makes a socket, or sends a message, so that it tells of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The root of the tree, as whoever `resume` is.
    Leader,
    /// A thread of the root's with other ids, or a process that is there only for a moment.
    Passing(PeerCredentials),
}

impl Sockets {
    /// Who can do it; and whether that is who it was.
    #[must_use]
    pub fn actor(
        &self,
        image: &Image,
        identity: &Identity,
        wanted: Option<&PeerCredentials>,
    ) -> (Actor, bool) {
        let Some(wanted) = wanted else { return (Actor::Leader, true) };
        let mut wanted = wanted.clone();
        wanted.groups.sort_unstable();
        let same = (wanted.uid, wanted.gid) == (identity.uids[1], identity.gids[1])
            && wanted.groups == identity.groups;
        let is_root = wanted.pid == image.root().pid;
        if same && is_root {
            return (Actor::Leader, true);
        }
        let exact = (is_root || self.free_ids.contains(&wanted.pid)) && (same || self.may_change);
        if exact {
            return (Actor::Passing(wanted), true);
        }
        if !same && self.may_change {
            // Who it was counts more than by which number.
            return (Actor::Passing(PeerCredentials { pid: image.root().pid, ..wanted }), false);
        }
        (Actor::Leader, false)
    }
}

/// What people should know of them.
#[must_use]
pub fn notes(image: &Image, sockets: &Sockets, identity: &Identity) -> Vec<String> {
    let differs = |wanted: &Option<PeerCredentials>| !sockets.actor(image, identity, wanted.as_ref()).1;
    let is_open = |socket: &UnixSocket| differs(&socket.peer_credentials);
    let count = image.unix_sockets.iter().filter(|socket| is_open(socket)).count();
    let mut notes = Vec::new();
    if count > 0 {
        notes.push(format!(
            "{count} unix sockets tell of another process at their other side (SO_PEERCRED) than before: its id is not to \
             be had"
        ));
    }
    let outside = image
        .unix_names
        .iter()
        .filter(|name| matches!(sockets.places.get(&name.id), Some(Place::Outside(_))));
    notes.extend(outside.map(|name| {
        format!("connected again to {}, a socket of another program that has this address now", name.shown())
    }));
    notes
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn only_what_nobody_has_any_more_is_in_nobodys_way() {
        let folder = std::env::temp_dir().join(format!("rewake-sockets-test-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("a folder");
        let path = folder.join("socket");
        let file = FileIdentity { path: path.as_os_str().as_bytes().to_vec(), ..FileIdentity::default() };
        let open = removed::open_as_it_was(&folder.canonicalize().expect("a path")).expect("open");
        let refused = |word: &str| stale(&open, &file).is_err_and(|reason| reason.contains(word));
        assert_eq!(stale(&open, &file), Ok(None));
        let listener = UnixListener::bind(&path).expect("bound");
        assert!(refused("another program has"));
        remove_abandoned(&open, b"socket");
        assert!(path.exists(), "somebody has it");
        drop(listener);
        let left = stale(&open, &file).expect("it is a socket").expect("nobody has it");
        remove_abandoned(&open, b"socket");
        assert_eq!(stale(&open, &file), Ok(None));
        let other = Stale { mode: 0o751, times: [(1000, 7), (2000, 9)], ..left };
        for there in [left, other] {
            put_back(&open, b"socket", &there);
            assert_eq!(stale(&open, &file), Ok(Some(there)));
            remove_abandoned(&open, b"socket");
        }
        put_back(&open, b"socket", &left);
        put_back(&open, b"socket", &other);
        assert_eq!(stale(&open, &file), Ok(Some(left)), "something was there");
        remove_abandoned(&open, b"socket");
        let datagrams = UnixDatagram::bind(&path).expect("it was removed");
        assert!(refused("another program has"));
        drop(datagrams);
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, "").expect("a file");
        assert!(refused("another file"));
        remove_abandoned(&open, b"socket");
        assert!(path.exists(), "it is no socket");
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn where_a_name_was_bound() {
        let name = |text: &[u8], folder: &[u8]| {
            first_path(&UnixName { text: text.to_vec(), folder: folder.to_vec(), ..UnixName::default() })
        };
        assert_eq!(name(b"a/b", b"/home"), b"/home/a/b");
        assert_eq!(name(b"/run/a", b"/"), b"/run/a");
        assert_eq!(name(b"//run/a", b"/jail"), b"/jail/run/a");
        assert_eq!(last_name(b"/run/a"), b"a");
    }
}
