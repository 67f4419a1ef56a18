//! The guardian: a small process of its own that holds the target by ptrace while the front writes the image.
//!
//! It is forked from the front before that has any other thread, leaves its session and ignores the signals of a terminal, so that
//! whatever ends the front leaves somebody to thaw the target and to remove the unfinished image. A front that is stopped (SIGSTOP)
//! would hold the target as long: then too it is let go. When the guardian itself is killed, the kernel detaches its tracees and
//! they go on.
//!
//! A target that is to be killed must neither run on beside its image nor die without one. So the front arms the guardian before the
//! image gets its name, and an armed guardian that is alone looks whether it has got it.

mod keeper;
mod protocol;

use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rewake_image::PendingImage;
use rewake_image::records::PosixQueue;
use rewake_linux::fork::{self, Forked};
use rewake_linux::mqueue::Journal;
use rustix::process::{Pid, WaitOptions};

use self::keeper::Keeper;
use self::protocol::{Reply, Request};
use crate::error::{CaptureError, During, Result};
use crate::family::Told;
use crate::watch::Watch;

/// The front's end: dropping it thaws the target.
#[derive(Debug)]
pub(crate) struct Guardian {
    socket: Option<UnixStream>,
    child: Pid,
    pid: i32,
    /// The target goes on, or is dead, because we said so.
    released: bool,
}

impl Guardian {
    /// Forks the guardian of target `pid`. It removes `pending` when the front dies.
    ///
    /// # Errors
    /// When this process has more than one thread, or the system is out of processes or descriptors.
    pub(crate) fn start(
        pid: i32,
        pending: &PendingImage,
        journal: &Journal,
        freeze_timeout: Duration,
    ) -> Result<Self> {
        let (front, guardian) = UnixStream::pair().during("socketpair", pid, "guardian")?;
        let caller = rustix::process::getpid();
        match fork::fork().during("fork", pid, "guardian")? {
            Forked::Parent(child) => Ok(Self { socket: Some(front), child, pid, released: false }),
            Forked::Child => {
                drop(front);
                let keeper = Keeper::new(guardian, caller, pid, freeze_timeout);
                let served = catch_unwind(AssertUnwindSafe(|| keeper.serve(pending, journal)));
                fork::leave(i32::from(served.is_err()))
            }
        }
    }

    /// Has it watched which pages the target writes to; the process, and how long it stood still for that.
    ///
    /// # Errors
    /// As [`Guardian::freeze`].
    pub(crate) fn track(&mut self) -> Result<(Option<(i32, Watch)>, Duration)> {
        match self.request(Request::Track)? {
            Reply::Tracked(watched, paused) => {
                Ok((watched.map(|(pid, socket)| (pid, Watch::new(socket))), paused))
            }
            _ => Err(self.lost("track", "an answer to another question".into())),
        }
    }

    /// Stops the target.
    ///
    /// # Errors
    /// When it does not stop or cannot be asked; then it goes on.
    pub(crate) fn freeze(&mut self) -> Result<Told> {
        self.released = false;
        match self.request(Request::Freeze)? {
            Reply::Frozen(told) => Ok(*told),
            _ => Err(self.lost("freeze", "an answer to another question".into())),
        }
    }

    /// Stops the target for a moment, for what is looked at in between; then [`Guardian::release`] lets it go.
    ///
    /// # Errors
    /// When it does not stop.
    pub(crate) fn hold(&mut self) -> Result<()> {
        self.held(Request::Hold)
    }

    /// Makes sure that the target has stood still until now.
    ///
    /// # Errors
    /// When the guardian is gone: the target goes on, and what was read of it since is worth nothing.
    pub(crate) fn confirm(&mut self) -> Result<()> {
        self.held(Request::Confirm)
    }

    /// What POSIX queues hold, and who is told of the next message (mq_notify). Process ids are those out here. Queues that no process of
    /// the target can look at for us are not among them.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub(crate) fn queues(&mut self) -> Result<Vec<PosixQueue>> {
        match self.request(Request::Queues)? {
            Reply::Queues(queues) => Ok(queues),
            _ => Err(self.lost("ask", "an answer to another question".into())),
        }
    }

    /// Says that the image is about to get its name, and that the target is to be killed then.
    ///
    /// # Errors
    /// As [`Guardian::confirm`]: the image must not get its name.
    pub(crate) fn arm(&mut self) -> Result<()> {
        self.held(Request::Arm)
    }

    fn held(&mut self, request: Request) -> Result<()> {
        match self.request(request)? {
            Reply::Held => Ok(()),
            _ => Err(self.lost("hold", "an answer to another question".into())),
        }
    }

    /// Why the target has not stood still until now, or until it was released; `None` when it has.
    pub(crate) fn let_go_because(&mut self) -> Option<CaptureError> {
        if self.released { None } else { self.confirm().err() }
    }

    /// Lets the target go on, or kills it. The time it stood still.
    ///
    /// # Errors
    /// When the guardian is gone; the kernel has let the target go on then.
    pub(crate) fn release(&mut self, kill: bool) -> Result<Duration> {
        match self.request(if kill { Request::Kill } else { Request::Thaw })? {
            Reply::Released(paused) => {
                self.released = true;
                Ok(paused)
            }
            _ => Err(self.lost("thaw", "an answer to another question".into())),
        }
    }

    /// Sends the guardian away: there is nothing left to undo.
    pub(crate) fn dismiss(mut self) {
        if let Some(socket) = &mut self.socket
            && let Err(error) = Request::Leave.send(socket)
        {
            tracing::debug!(%error, "the guardian left before it was told to");
        }
    }

    fn request(&mut self, request: Request) -> Result<Reply> {
        let Some(socket) = &mut self.socket else {
            return Err(self.lost("hold", "already dismissed".into()));
        };
        let reply = request.send(socket).and_then(|()| Reply::receive(socket));
        match reply {
            Ok(Some(Reply::Failed(error))) => Err(error),
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(self.lost("hold", "it died; the kernel let the target go on".into())),
            Err(error) => {
                let text = format!("it died; the kernel let the target go on ({error})");
                Err(self.lost("hold", text.into()))
            }
        }
    }

    fn lost(&self, operation: &str, source: Box<dyn std::error::Error + Send + Sync>) -> CaptureError {
        let object = format!("guardian process {}", self.child.as_raw_nonzero());
        CaptureError::failed(operation, self.pid, object, source).advise("try again")
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.socket.take());
        while let Err(rustix::io::Errno::INTR) =
            rustix::process::waitpid(Some(self.child), WaitOptions::empty())
        {}
    }
}
