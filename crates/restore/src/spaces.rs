//! Namespaces: where the new process gets its ids and its clocks.
//!
//! Whoever may choose ids gives the program its own again. Everybody else gives it a pid namespace of its own, in which all ids are free;
//! who may not even make that goes into a user namespace first, which every user may. `resume` itself stays outside of the pid namespace
//! and so is the program's parent as ever; an init of ours is the namespace's first process.

use std::collections::BTreeMap;
use std::io;

use rewake_image::Image;
use rewake_image::records::{Clocks, Process};
use rewake_linux::host::{Capability, CapabilitySet};
use rewake_linux::namespaces::{self, Init};
use rewake_linux::proc::{ClockOffsets, Proc};
use rustix::time::{ClockId, clock_gettime};

use crate::credentials::Identity;
use crate::error::RestoreError;
use crate::ipc::{self, Origin};
use crate::{Clock, Options, Pids, survey};

/// The id of a pid namespace's own first process.
const INIT: i32 = 1;

/// Why the program gets namespaces of its own, for people.
pub const NOTE_FORBIDDEN: &str =
    "this user may not choose process ids: the program gets the same ids in a pid namespace of its own";
/// In a container that hides parts of `/proc` the kernel gives no new one.
pub const NOTE_PROC: &str = "the kernel gives the program no /proc of its own (a container hides parts of it): there it finds ids of outside";

/// What the new process lives in.
#[derive(Debug)]
pub struct Spaces {
    /// A pid namespace of its own.
    pub inside: bool,
    /// And a user namespace: capabilities count inside only.
    pub user: bool,
    /// What the program's clocks show more than ours.
    pub shift: ClockOffsets,
    /// Whether the program's clocks go on where they were; `None`: they are the host's, as they were.
    pub keeps_clocks: Option<bool>,
    /// Our supplementary groups, in ascending order.
    pub groups: Vec<u32>,
    /// Where System V objects come from.
    pub ipc: Origin,
    /// Our own process becomes the program, and keeps its ids.
    pub own: bool,
    /// What to tell people.
    pub note: Option<&'static str>,
}

impl Spaces {
    /// Decides; nothing is made yet.
    ///
    /// # Errors
    /// When ids were asked for that cannot be given.
    pub fn decide(options: &Options, image: &Image) -> Result<Self, RestoreError> {
        let pid = image.root().pid;
        let (inside, note) = match options.pids {
            Pids::Same if !namespaces::may_choose_ids() => return Err(RestoreError::PidForbidden { pid }),
            Pids::Same => (false, None),
            Pids::Auto if namespaces::may_choose_ids() => (false, None),
            Pids::Auto => (true, Some(NOTE_FORBIDDEN)),
            Pids::Namespace => (true, None),
        };
        let ipc = ipc::origin(options, image, survey::is_same_boot(image))?;
        let admin = CapabilitySet::own_effective().is_ok_and(|own| own.has(Capability::SysAdmin));
        if ipc.own && !admin && options.pids == Pids::Same {
            return Err(RestoreError::Namespace {
                pid,
                namespace: "ipc",
                source: io::ErrorKind::PermissionDenied.into(),
            });
        }
        // A user namespace gives the right, and takes that to choose process ids outside.
        let inside = inside || ipc.own && !admin;
        let user = inside && !admin;
        if inside
            && image.processes.iter().any(|process| process.threads.iter().any(|thread| thread.tid == INIT))
        {
            return Err(RestoreError::PidTaken { pid: INIT, owner: "the init of the new namespace".into() });
        }
        let own = Identity::own_for(pid)?;
        let others = |process: &Process| {
            process.threads.iter().any(|thread| Identity::of(process, thread).has_other_ids(&own))
        };
        if user && image.processes.iter().any(others) {
            let differences = "ids that are not ours, and a user namespace of our own has no others".into();
            return Err(RestoreError::Credentials { pid, differences });
        }
        Ok(Self {
            inside,
            user,
            shift: ClockOffsets::default(),
            keeps_clocks: None,
            groups: own.groups,
            ipc,
            own: false,
            note,
        })
    }

    /// For a process that becomes the program itself.
    ///
    /// # Errors
    /// When the process cannot look at itself, or System V objects cannot be had.
    pub fn ours(options: &Options, image: &Image) -> Result<Self, RestoreError> {
        let ipc = ipc::origin(options, image, survey::is_same_boot(image))?;
        let groups = Identity::own_for(image.root().pid)?.groups;
        let shift = ClockOffsets::default();
        Ok(Self { inside: false, user: false, shift, keeps_clocks: None, groups, ipc, own: true, note: None })
    }

    /// Goes into what was decided, and gives the program's clocks what the image says. The namespace lives as long as the result.
    ///
    /// # Errors
    /// When the kernel or an administrator does not allow it.
    pub fn enter(&mut self, image: &Image, clock: Option<Clock>) -> Result<Option<Init>, RestoreError> {
        let pid = image.root().pid;
        let refused = |namespace, source| RestoreError::Namespace { pid, namespace, source };
        let mut init = None;
        if self.user {
            namespaces::enter_user_namespace().map_err(|source| refused("user", source))?;
        }
        if self.inside {
            namespaces::unshare_pids().map_err(|source| refused("pid", source))?;
            init = Some(Init::start(pid).map_err(|source| refused("pid", source))?);
        }
        let Some(clocks) = image.root().clocks.as_ref() else {
            return if clock == Some(Clock::Keep) { Err(no_clocks(pid)) } else { Ok(init) };
        };
        // A thread may be inside of the vdso, reading the page that only a time namespace has: once in one, always in one.
        if clocks.own || clock == Some(Clock::Keep) {
            let keep = clock != Some(Clock::Go);
            let (shift, offsets) = offsets(clocks, keep).map_err(|source| refused("time", source))?;
            namespaces::unshare_clocks(offsets).map_err(|source| refused("time", source))?;
            (self.shift, self.keeps_clocks) = (shift, Some(keep));
        }
        Ok(init)
    }
}

/// What becomes of the program's `CLOCK_MONOTONIC`, if that is another host's or another start's: times by it mean another moment now.
#[must_use]
pub fn clock_note(image: &Image, spaces: &Spaces) -> Option<String> {
    let then = image.root().clocks.as_ref()?;
    if spaces.keeps_clocks == Some(true) || survey::is_same_boot(image) {
        return None;
    }
    let now = clock_gettime(ClockId::Monotonic).tv_sec;
    let then = then.monotonic_ns / 1_000_000_000;
    Some(format!(
        "this host was started anew, or is another one: the program's CLOCK_MONOTONIC showed {then} s and shows {now} s now, and \
         waits until a time by it end then; resume with --clock keep to let it go on where it was"
    ))
}

fn no_clocks(pid: i32) -> RestoreError {
    let reason = "the image does not say where they were".into();
    RestoreError::Unsupported { pid, object: "clocks".into(), reason }
}

/// What makes our clocks, as they are now, those of the image, or leaves them: counted from ours, and from the host's.
fn offsets(then: &Clocks, keep: bool) -> io::Result<(ClockOffsets, ClockOffsets)> {
    let own = Proc::own().and_then(|own| own.clock_offsets()).map_err(io::Error::other)?;
    let shift = |id, then: u64| {
        if !keep {
            return Some(0);
        }
        let now = clock_gettime(id);
        let now = now.tv_sec.checked_mul(1_000_000_000)?.checked_add(now.tv_nsec)?;
        i64::try_from(then).ok()?.checked_sub(now)
    };
    let both = || {
        let monotonic = shift(ClockId::Monotonic, then.monotonic_ns)?;
        let boottime = shift(ClockId::Boottime, then.boottime_ns)?;
        let offsets = ClockOffsets {
            monotonic: own.monotonic.checked_add(monotonic)?,
            boottime: own.boottime.checked_add(boottime)?,
        };
        Some((ClockOffsets { monotonic, boottime }, offsets))
    };
    both().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// The ids out here of the process `pid` and all below it, and of their threads, by their ids in there.
///
/// # Errors
/// When the process is gone.
pub fn outer_ids(pid: i32) -> Result<BTreeMap<i32, i32>, rewake_linux::proc::ProcError> {
    let mut ids = BTreeMap::new();
    let mut waiting = vec![pid];
    while let Some(pid) = waiting.pop() {
        let proc = match Proc::open(pid) {
            Err(error) if error.is_gone() && !ids.is_empty() => continue,
            proc => proc?,
        };
        for tid in proc.threads()? {
            let status = proc.thread(tid)?.status()?;
            ids.insert(status.ns_pids.last().copied().unwrap_or(tid), tid);
        }
        waiting.extend(proc.children()?);
    }
    Ok(ids)
}
