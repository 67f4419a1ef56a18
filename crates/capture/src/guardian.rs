//! The guardian: a small process of its own that holds the target by ptrace while the front writes the image.
//!
//! It is forked from the front before that has any other thread, leaves its session and ignores the signals of a terminal, so that
//! whatever ends the front leaves somebody to thaw the target and to remove the unfinished image. When the guardian itself is killed,
//! the kernel detaches its tracees and they go on.

mod protocol;

use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use rewake_image::records::Process;
use rewake_linux::fork::{self, Forked};
use rustix::process::{Pid, WaitOptions};

use self::protocol::{Reply, Request};
use crate::error::{CaptureError, During, Result};
use crate::freeze::{self, Frozen};

/// The front's end: dropping it thaws the target.
#[derive(Debug)]
pub(crate) struct Guardian {
    socket: Option<UnixStream>,
    child: Pid,
    pid: i32,
}

impl Guardian {
    /// Forks the guardian of target `pid`. It removes `temporary` when the front dies.
    ///
    /// # Errors
    /// When this process has more than one thread, or the system is out of processes or descriptors.
    pub(crate) fn start(pid: i32, temporary: &Path, freeze_timeout: Duration) -> Result<Self> {
        let (front, guardian) = UnixStream::pair().during("socketpair", pid, "guardian")?;
        match fork::fork().during("fork", pid, "guardian")? {
            Forked::Parent(child) => Ok(Self { socket: Some(front), child, pid }),
            Forked::Child => {
                drop(front);
                let keeper = Keeper { socket: guardian, pid, freeze_timeout, held: None };
                let served = catch_unwind(AssertUnwindSafe(|| keeper.serve(temporary)));
                fork::leave(i32::from(served.is_err()))
            }
        }
    }

    /// Stops the target.
    ///
    /// # Errors
    /// When it does not stop or cannot be asked; then it goes on.
    pub(crate) fn freeze(&mut self) -> Result<Process> {
        match self.request(Request::Freeze)? {
            Reply::Frozen(process) => Ok(*process),
            _ => Err(self.lost("freeze", "an answer to another question".into())),
        }
    }

    /// Makes sure that the target has stood still until now.
    ///
    /// # Errors
    /// When the guardian is gone: the target goes on, and what was read of it since is worth nothing.
    pub(crate) fn confirm(&mut self) -> Result<()> {
        match self.request(Request::Confirm)? {
            Reply::Held => Ok(()),
            _ => Err(self.lost("hold", "an answer to another question".into())),
        }
    }

    /// Lets the target go on, or kills it. The time it stood still.
    ///
    /// # Errors
    /// When the guardian is gone; the kernel has let the target go on then.
    pub(crate) fn release(&mut self, kill: bool) -> Result<Duration> {
        match self.request(if kill { Request::Kill } else { Request::Thaw })? {
            Reply::Released(paused) => Ok(paused),
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
        CaptureError::failed(operation, self.pid, object, source)
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

/// The guardian's own end.
struct Keeper {
    socket: UnixStream,
    pid: i32,
    freeze_timeout: Duration,
    held: Option<Frozen>,
}

impl Keeper {
    /// Serves until the front says that it is over, or is gone.
    fn serve(mut self, temporary: &Path) {
        if let Err(error) = leave_the_terminal() {
            let error = CaptureError::failed("setsid", self.pid, "guardian", error);
            let _front_gone = Reply::Failed(error).send(&mut self.socket);
            return;
        }
        while let Ok(Some(request)) = Request::receive(&mut self.socket) {
            let reply = match request {
                Request::Freeze => self.freeze(),
                Request::Thaw => self.release(false),
                Request::Kill => self.release(true),
                Request::Confirm => self.confirm(),
                Request::Leave => return,
            };
            if reply.unwrap_or_else(Reply::Failed).send(&mut self.socket).is_err() {
                break;
            }
        }
        drop(self.held.take());
        remove(temporary);
    }

    fn freeze(&mut self) -> Result<Reply> {
        let begin = Instant::now();
        let mut frozen = freeze::freeze(self.pid, self.freeze_timeout)?;
        tracing::debug!(phase = "freeze", elapsed = ?begin.elapsed());
        let asked = Instant::now();
        let process = frozen.ask()?;
        tracing::debug!(phase = "ask", elapsed = ?asked.elapsed());
        self.held = Some(frozen);
        Ok(Reply::Frozen(Box::new(process)))
    }

    fn confirm(&self) -> Result<Reply> {
        if self.held.is_some() { Ok(Reply::Held) } else { Err(self.not_held()) }
    }

    fn not_held(&self) -> CaptureError {
        CaptureError::failed("hold", self.pid, "guardian", "the target is not held")
    }

    fn release(&mut self, kill: bool) -> Result<Reply> {
        let frozen = self.held.take().ok_or_else(|| self.not_held())?;
        Ok(Reply::Released(frozen.release(kill)?))
    }
}

/// A session of its own, deaf to what a terminal or the end of the front sends. Standard input and output are let go, so that
/// nobody waits for the guardian to close them; standard error stays for traces only when there are any.
fn leave_the_terminal() -> std::io::Result<()> {
    fork::ignore(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE, libc::SIGTSTP])?;
    rustix::process::setsid()?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    if !tracing::enabled!(tracing::Level::DEBUG) {
        rustix::stdio::dup2_stderr(&null)?;
    }
    Ok(())
}

/// Removes the unfinished image of a front that died. After a commit nothing is there any more: the name is never used again.
fn remove(temporary: &Path) {
    if let Err(error) = rewake_image::remove_pending(temporary) {
        tracing::debug!(%error, path = %temporary.display(), "unfinished image stays");
    }
}
