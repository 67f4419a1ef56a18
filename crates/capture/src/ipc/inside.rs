//! Looking from inside of another IPC namespace: a copy of this process goes there and sends what it finds.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use prost::Message;
use rewake_linux::fork::{self, Forked};
use rewake_linux::proc::Proc;
use rustix::fs::OFlags;
use rustix::process::WaitOptions;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What the copy sends.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(bytes = "vec", tag = "1")]
    found: Vec<u8>,
    #[prost(string, optional, tag = "2")]
    error: Option<String>,
}

/// Looks in the IPC namespace of process `pid`, which is ours unless it is `another`.
///
/// # Errors
/// As `look`; or when there is no way into the namespace.
pub(super) fn of<T: Message + Default>(
    pid: i32,
    another: bool,
    look: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    if !another {
        return look();
    }
    let (mut reader, mut writer) = io::pipe()?;
    match fork::fork()? {
        Forked::Child => {
            drop(reader);
            let found = catch_unwind(AssertUnwindSafe(|| enter(pid).and_then(|()| look())));
            let answer = match found {
                Ok(Ok(found)) => Answer { found: found.encode_to_vec(), error: None },
                Ok(Err(error)) => Answer { found: Vec::new(), error: Some(error.to_string()) },
                Err(_) => Answer { found: Vec::new(), error: Some("the look failed".to_owned()) },
            };
            let sent = writer.write_all(&answer.encode_to_vec());
            fork::leave(i32::from(sent.is_err()))
        }
        Forked::Parent(child) => {
            drop(writer);
            let mut bytes = Vec::new();
            let read = reader.read_to_end(&mut bytes);
            let ended = rustix::process::waitpid(Some(child), WaitOptions::empty())?;
            read?;
            if ended.is_none_or(|(_, status)| status.exit_status() != Some(0)) {
                return Err(io::Error::other("the process that looked inside was killed"));
            }
            let Answer { found, error } = Answer::decode(bytes.as_slice()).map_err(io::Error::other)?;
            match error {
                Some(error) => Err(io::Error::other(error)),
                None => T::decode(found.as_slice()).map_err(io::Error::other),
            }
        }
    }
}

/// Goes into the namespace; a user namespace that is not ours gives the right to.
fn enter(pid: i32) -> io::Result<()> {
    let (own, theirs) =
        (Proc::own().map_err(io::Error::other)?, Proc::open_living(pid).map_err(io::Error::other)?);
    let open = |kind| theirs.open_file(kind, OFlags::RDONLY).map_err(io::Error::other);
    let (user, ipc) = (open("ns/user")?, open("ns/ipc")?);
    let number = |proc: &Proc| proc.namespace("user").map_err(io::Error::other);
    if number(&own)? != number(&theirs)? {
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
    }
    Ok(move_into_link_name_space(ipc.as_fd(), Some(LinkNameSpaceType::InterProcessCommunication))?)
}
