//! The guardian's own end.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rewake_image::PendingImage;
use rewake_linux::fork;
use rewake_linux::mqueue::Journal;
use rewake_linux::proc::Proc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;

use super::protocol::{Reply, Request};
use crate::error::{CaptureError, During, Result};
use crate::family::Family;
use crate::waiting::Begun;
use crate::watch::Watcher;

/// Between looks at whether the front still runs, while the target is held.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// How long an answer may wait for a front that does not read it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Holds the target, and is what is left when the front is gone.
pub(super) struct Keeper {
    socket: UnixStream,
    front: Pid,
    pid: i32,
    freeze_timeout: Duration,
    held: Option<Family>,
    /// Waits that stops before the last one have interrupted.
    interrupted: BTreeMap<i32, Begun>,
    /// The front was found stopped, and the target let go.
    let_go: bool,
    /// Device and inode of the image that the target is to be killed for, until that has been tried.
    armed: Option<(u64, u64)>,
    /// What watches memory of the target, until we leave.
    watcher: Option<Watcher>,
}

impl Keeper {
    /// For the front with process id `front`.
    pub(super) const fn new(socket: UnixStream, front: Pid, pid: i32, freeze_timeout: Duration) -> Self {
        Self {
            socket,
            front,
            pid,
            freeze_timeout,
            held: None,
            interrupted: BTreeMap::new(),
            let_go: false,
            armed: None,
            watcher: None,
        }
    }

    /// Serves until the front says that it is over, or is gone.
    pub(super) fn serve(mut self, pending: &PendingImage, journal: &Journal) {
        let prepared =
            leave_the_terminal().and_then(|()| self.socket.set_write_timeout(Some(ANSWER_TIMEOUT)));
        if let Err(error) = prepared {
            let error = CaptureError::failed("setsid", self.pid, "guardian", error);
            let _front_gone = Reply::Failed(error).send(&mut self.socket);
            return;
        }
        while let Some(request) = self.next(pending, journal) {
            let reply = match request {
                Request::Freeze => self.freeze(),
                Request::Thaw => self.release(false),
                Request::Kill => self.release(true),
                Request::Confirm => self.confirm(),
                Request::Arm => self.arm(pending),
                Request::Queues => self.queues(),
                Request::Track => self.track(),
                Request::Hold => self.hold(),
                Request::Leave => return,
            };
            if reply.unwrap_or_else(Reply::Failed).send(&mut self.socket).is_err() {
                break;
            }
        }
        self.finish(pending, journal);
    }

    /// The next request; `None` when the front is gone. Lets the target go when the front stands still itself.
    fn next(&mut self, pending: &PendingImage, journal: &Journal) -> Option<Request> {
        while self.held.is_some() {
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&LOOK)) {
                Ok(0) if self.front_is_stopped() => {
                    tracing::debug!("the front is stopped");
                    // A target whose image has its name is only waiting to be killed.
                    if !self.is_published(pending) {
                        put_back(journal);
                        self.held = None;
                        self.let_go = true;
                    }
                    break;
                }
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
        Request::receive(&mut self.socket).ok().flatten()
    }

    fn front_is_stopped(&self) -> bool {
        let stat = Proc::open(self.front.as_raw_nonzero().get()).and_then(|front| front.stat());
        stat.is_ok_and(|stat| stat.state == 'T')
    }

    fn freeze(&mut self) -> Result<Reply> {
        let begin = Instant::now();
        let mut family = Family::freeze(self.pid, self.freeze_timeout)?;
        tracing::debug!(phase = "freeze", elapsed = ?begin.elapsed());
        family.remember(&self.interrupted);
        let asked = Instant::now();
        let told = family.ask()?;
        tracing::debug!(phase = "ask", elapsed = ?asked.elapsed());
        self.held = Some(family);
        Ok(Reply::Frozen(Box::new(told)))
    }

    fn hold(&mut self) -> Result<Reply> {
        let family = Family::freeze(self.pid, self.freeze_timeout)?;
        self.interrupted.extend(family.interrupted());
        self.held = Some(family);
        Ok(Reply::Held)
    }

    fn track(&mut self) -> Result<Reply> {
        let mut family = Family::freeze(self.pid, self.freeze_timeout)?;
        self.interrupted.extend(family.interrupted());
        let means = family.userfault()?;
        let paused = family.release(false)?;
        let Some((pid, means)) = means else { return Ok(Reply::Tracked(None, paused)) };
        let (watcher, watch) = Watcher::start(pid, means).during("fork", pid, "watcher")?;
        self.watcher = Some(watcher);
        Ok(Reply::Tracked(Some((pid, watch)), paused))
    }

    fn confirm(&self) -> Result<Reply> {
        if self.held.is_some() { Ok(Reply::Held) } else { Err(self.not_held()) }
    }

    fn queues(&mut self) -> Result<Reply> {
        match &mut self.held {
            Some(family) => family.queues().map(Reply::Queues),
            None => Err(self.not_held()),
        }
    }

    fn arm(&mut self, pending: &PendingImage) -> Result<Reply> {
        let held = self.confirm()?;
        let image = rustix::fs::fstat(pending).during("stat", self.pid, "image")?;
        self.armed = Some((image.st_dev, image.st_ino));
        Ok(held)
    }

    fn not_held(&self) -> CaptureError {
        if !self.let_go {
            return CaptureError::failed("hold", self.pid, "guardian", "the target is not held");
        }
        let text = "the command was stopped while the target stood still; it was let go";
        CaptureError::failed("hold", self.pid, "process", text).advise("try again")
    }

    fn release(&mut self, kill: bool) -> Result<Reply> {
        let frozen = self.held.take().ok_or_else(|| self.not_held())?;
        // Whatever comes of it, the image stays from now on.
        self.armed = None;
        Ok(Reply::Released(frozen.release(kill)?))
    }

    /// Whether the image that the target is to be killed for has its name.
    fn is_published(&self, pending: &PendingImage) -> bool {
        let named = std::fs::symlink_metadata(pending.target()).map(|named| (named.dev(), named.ino()));
        self.armed.is_some_and(|image| named.is_ok_and(|named| named == image))
    }

    /// The front is gone: what it had not finished is undone, or done if its image has its name.
    fn finish(mut self, pending: &PendingImage, journal: &Journal) {
        if self.held.is_some() {
            put_back(journal);
        }
        let published = self.is_published(pending);
        match self.held.take() {
            Some(frozen) if published => kill(frozen, pending.target()),
            Some(frozen) => drop(frozen),
            // It was let go before, and the image that got its name all the same is of a program that runs.
            None if published => remove_dir(pending.target()),
            None => {}
        }
        if let Err(error) = rewake_image::remove_pending(pending.path()) {
            tracing::debug!(%error, path = %pending.path().display(), "unfinished image stays");
        }
    }
}

/// Messages that the front took out of a queue to look at them, and did not come to put back.
fn put_back(journal: &Journal) {
    if let Err(error) = journal.recover() {
        tracing::debug!(%error, "messages of a queue are lost");
    }
}

/// Kills the target, as soon as the name of its image is durable.
fn kill(frozen: Family, image: &Path) {
    let parent = image.parent().unwrap_or(image);
    if let Err(error) = std::fs::File::open(parent).and_then(|parent| parent.sync_all()) {
        tracing::debug!(%error, "the name of the image may not last");
        remove_dir(image);
    } else if let Err(error) = frozen.release(true) {
        tracing::debug!(%error, "kill");
    }
}

fn remove_dir(image: &Path) {
    if let Err(error) = std::fs::remove_dir_all(image) {
        tracing::debug!(%error, path = %image.display(), "image of a running program stays");
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
