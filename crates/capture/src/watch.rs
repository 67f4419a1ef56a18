//! Watching memory of a target that runs: a process that does nothing else registers its mappings with the userfaultfd, of which it holds
//! the only descriptor.
//!
//! Watched mappings do not merge with others, and mremap across both would fail. So a call of the target that unmaps watched memory, or
//! maps over it, waits until we have registered what came in its place. Whoever is waited for must never stand still nor be slow: not
//! the front, which a terminal stops and a disk delays, and not the guardian, which waits for the target while it freezes it. The watcher
//! writes to no file and holds no lock; when it dies, or the front does, the kernel lets all that wait go on and takes the watch away.
//!
//! What is mapped beside watched memory wakes nobody. It is registered at the next pass, which comes soon.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rewake_linux::addr::RemoteAddr;
use rewake_linux::attributes;
use rewake_linux::fork;
use rewake_linux::proc::{Mapping, MappingKind, Proc};
use rewake_linux::userfault::WriteTracking;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Between two passes, at least; and how many times longer than a pass it is.
const CALM: Duration = Duration::from_millis(5);
const CALM_FACTOR: u32 = 50;
/// How long the front waits for an answer, and the guardian for its end; and between two looks whether it has come.
const PATIENCE: Duration = Duration::from_secs(5);
const ENDING: Duration = Duration::from_micros(200);
/// A pass takes some tenths of a microsecond for each mapping, and each call that unmaps something waits for one.
pub(crate) const MOST_MAPPINGS: usize = 4096;

/// Looks at the mappings of a target that changes them all the time.
const SURVEYS: u32 = 10;

/// What the kernel calls private memory of huge pages that have no file.
const HUGE: &[u8] = b"/anon_hugepage";

/// Answers of the watcher.
const WATCHED: u8 = 1;
const IMPOSSIBLE: u8 = 2;

/// The front's end: dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct Watch(UnixStream);

impl Watch {
    /// By the socket that [`Watcher::start`] gave.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket.into())
    }

    /// Looks for memory that is not watched yet; `false` when none can be.
    ///
    /// # Errors
    /// When the watcher is gone.
    pub(crate) fn renew(&mut self) -> io::Result<bool> {
        let mut answer = [0];
        self.0.set_read_timeout(Some(PATIENCE))?;
        self.0.write_all(&[WATCHED])?;
        self.0.read_exact(&mut answer)?;
        Ok(answer == [WATCHED])
    }
}

/// The guardian's end: dropping it ends the watch, and the process.
#[derive(Debug)]
pub(crate) struct Watcher {
    child: Pid,
    /// Another descriptor of the front's end.
    socket: UnixStream,
}

impl Watcher {
    /// Makes the process that watches target `pid`, by a descriptor fresh from userfaultfd(2); and a socket for [`Watch`].
    ///
    /// # Errors
    /// When the system is out of processes or descriptors.
    pub(crate) fn start(pid: i32, means: OwnedFd) -> io::Result<(Self, OwnedFd)> {
        let (front, own) = UnixStream::pair()?;
        let socket = front.try_clone()?;
        let child = fork::server([means, own.into()], pid, serve)?;
        Ok((Self { child, socket }, front.into()))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ended_before = self.socket.shutdown(Shutdown::Both);
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            match waitpid(Some(self.child), WaitOptions::NOHANG) {
                Ok(None) | Err(Errno::INTR) => std::thread::sleep(ENDING),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        // It was not waited for: the id is still its own.
        let _ended = kill_process(self.child, Signal::KILL);
        while let Err(Errno::INTR) = waitpid(Some(self.child), WaitOptions::empty()) {}
    }
}

/// Whether a mapping is one of private, ordinary memory.
pub(crate) fn is_trackable(mapping: &Mapping) -> bool {
    let special = matches!(
        mapping.kind(),
        MappingKind::Vdso | MappingKind::Vvar | MappingKind::VvarVclock | MappingKind::Vsyscall
    );
    !mapping.shared && !special && !mapping.name.starts_with(HUGE)
}

fn serve([means, front]: [OwnedFd; 2], pid: i32) {
    let mut front = UnixStream::from(front);
    // As soon as others it is in any case.
    let _not_sooner = attributes::be_prompt();
    match WriteTracking::new(means) {
        Ok(tracking) => {
            let mut watching = Watching { tracking, pid, zones: Vec::new() };
            watching.serve(&mut front);
            watching.end();
        }
        Err(error) => {
            tracing::debug!(pid, %error, "memory cannot be watched");
            let _front_gone = front.write_all(&[IMPOSSIBLE]);
        }
    }
}

/// The watcher's state.
struct Watching {
    tracking: WriteTracking,
    pid: i32,
    /// Parts of the address space in which everything can be watched.
    zones: Vec<Range<RemoteAddr>>,
}

impl Watching {
    /// Until the front is gone or wants no more.
    fn serve(&mut self, front: &mut UnixStream) {
        let mut calm = CALM;
        loop {
            let mut ready = [PollFd::new(&self.tracking, PollFlags::IN), PollFd::new(&*front, PollFlags::IN)];
            let wait = Timespec { tv_sec: 0, tv_nsec: calm.subsec_nanos().into() };
            let polled = poll(&mut ready, Some(&wait));
            let [waits, asks] = ready.map(|one| !one.revents().is_empty());
            match polled {
                Err(Errno::INTR) => continue,
                Err(_) => return,
                Ok(_) if asks => {
                    let mut request = [0];
                    if front.read_exact(&mut request).is_err() {
                        return;
                    }
                    let watched = self.survey();
                    if !watched {
                        self.end();
                    }
                    let answer = if watched { WATCHED } else { IMPOSSIBLE };
                    if front.write_all(&[answer]).is_err() || !watched {
                        return;
                    }
                }
                Ok(_) => calm = self.pass(waits),
            }
        }
    }

    /// Registers what is new; then one who waits goes on. If others wait yet, the next pass comes at once. How long none need come.
    fn pass(&mut self, waits: bool) -> Duration {
        let begin = Instant::now();
        self.renew();
        let took = begin.elapsed();
        if waits {
            // It cannot fail in a way that could be mended; whoever waits is let go at the latest with this process.
            let _taken = self.tracking.take_event();
        }
        (took * CALM_FACTOR).clamp(CALM, Duration::from_millis(900))
    }

    /// Leaves the target's memory as it was, all mappings one that would be. Whoever waits goes on.
    fn end(&self) {
        for zone in &self.zones {
            if self.tracking.unregister(zone).is_err() {
                let maps = Proc::open_living(self.pid).and_then(|proc| proc.maps()).unwrap_or_default();
                for mapping in maps.iter().filter(|mapping| is_trackable(mapping)) {
                    // What else there is goes with the descriptor.
                    let _not_ours = self.tracking.unregister(&(mapping.start..mapping.end));
                }
            }
        }
        // The kernel lets go all others that wait.
        let _taken = self.tracking.take_event();
    }

    fn renew(&mut self) {
        if !self.zones.iter().all(|zone| self.tracking.register(zone).is_ok()) {
            self.survey();
        }
    }

    /// Finds out anew what can be watched, and registers it. Whether the target may be watched.
    fn survey(&mut self) -> bool {
        let mut refused: Vec<Range<RemoteAddr>> = Vec::new();
        for _ in 0..SURVEYS {
            let Ok(maps) = Proc::open_living(self.pid).and_then(|proc| proc.maps()) else { break };
            let range = |mapping: &Mapping| mapping.start..mapping.end;
            let can_be = |mapping: &Mapping| is_trackable(mapping) && !refused.contains(&range(mapping));
            // That one lies behind all addresses that a program may have.
            let ours = maps.iter().filter(|mapping| mapping.kind() != MappingKind::Vsyscall);
            self.zones = zones(ours.map(|mapping| (range(mapping), can_be(mapping))));
            // A zone at once: of what we read some may be elsewhere by now.
            let fails = |zone: &Range<RemoteAddr>| self.tracking.register(zone).is_err();
            let failed: Vec<_> = self.zones.iter().filter(|zone| fails(zone)).cloned().collect();
            let known = refused.len();
            refused.retain(&fails);
            if failed.is_empty() && refused.len() == known {
                return maps.len() <= MOST_MAPPINGS;
            }
            let within = |mapping: &&Mapping| {
                failed.iter().any(|zone| zone.contains(&mapping.start)) && is_trackable(mapping)
            };
            refused.extend(maps.iter().filter(within).map(range).filter(fails));
        }
        false
    }
}

/// From the first mapping that can be watched to the next that cannot, or to the end of the last.
fn zones(parts: impl Iterator<Item = (Range<RemoteAddr>, bool)>) -> Vec<Range<RemoteAddr>> {
    let mut zones: Vec<Range<RemoteAddr>> = Vec::new();
    let mut open = false;
    for (range, can_be) in parts {
        match zones.last_mut().filter(|_| open) {
            Some(zone) if can_be => zone.end = range.end,
            Some(zone) => zone.end = range.start,
            None if can_be => zones.push(range),
            None => {}
        }
        open = can_be;
    }
    zones
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_reach_to_what_cannot_be_watched() {
        let range = |start: u64, end: u64| RemoteAddr::new(start)..RemoteAddr::new(end);
        let parts = [
            (range(0x1000, 0x2000), false),
            (range(0x3000, 0x4000), true),
            (range(0x6000, 0x7000), true),
            (range(0x9000, 0xa000), false),
            (range(0xa000, 0xb000), false),
            (range(0xc000, 0xd000), true),
        ];
        assert_eq!(zones(parts.into_iter()), [range(0x3000, 0x9000), range(0xc000, 0xd000)]);
    }
}
