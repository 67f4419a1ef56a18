//! What is done about a target that runs on before it stands still (pre-copy), and what has to be looked at again afterwards.

use std::time::Duration;

use rewake_image::PageWriter;
use rewake_linux::attributes::{self, Scheduling};
use rewake_linux::cgroup;
use rewake_linux::host::Host;
use rewake_linux::proc::Proc;

use crate::contents::Contents;
use crate::error::{CaptureError, During, Obstacle, Result};
use crate::files::{self, Target};
use crate::findings::Findings;
use crate::guardian::Guardian;
use crate::pages::{Candidates, Earlier, EarlierFiles, can_be_tracked};
use crate::watch::Watch;
use crate::{Mode, Options, Progress, kin};

/// Memory that is read while the target stands still and written when it runs again: room made for it in advance, and at most.
const HOLD_LEAST: u64 = 8 << 20;
const HOLD_MOST: u64 = 256 << 20;
/// The part that may be held of the memory that is left to us and to the target.
const HOLD_PART: u64 = 4;

/// A target with less memory of its own stands still no longer than it would twice.
const WORTH_IT: u64 = 8 << 20;

/// Kernels before this one say of pages that were written to that they were not: of those that were moved (mremap) until 6.13, of those in
/// swap or on their way to another place until 6.9. They learned to tell written pages with 6.7.
const KERNEL: (u32, u32) = (6, 13);

/// What was copied while the target ran.
pub(crate) struct Ahead {
    pub(crate) pages: Earlier,
    /// How long it stood still, to be asked for the means.
    pub(crate) paused: Duration,
    /// Memory that was touched, for what is left to be read when it stands still.
    pub(crate) room: Vec<u8>,
    /// More than this is not held.
    pub(crate) most: u64,
}

impl Ahead {
    /// Copies what can be copied while the target runs, from this place in the stream on; `None` when nothing can be, or nobody asks for it
    /// and it would gain nothing.
    ///
    /// # Errors
    /// When the image cannot be written or the target is gone; when somebody asks for it and this way is closed here or for this target.
    pub(crate) fn copy(
        options: &Options,
        mappings_in_advance: bool,
        (writer, stream): (&PageWriter, u64),
        guardian: &mut Guardian,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Option<Self>> {
        let pid = options.pid;
        let asked = options.mode == Mode::PreCopy;
        let most = most_held(pid);
        // One that cannot be, or gains nothing, is not stopped twice.
        let large = || cgroup::anonymous_memory(pid).is_some_and(|bytes| bytes >= WORTH_IT);
        let pays = || most >= HOLD_LEAST && large() && is_as_prompt_as(pid);
        let wanted = can_be(pid)? && (asked || pays());
        let (watched, paused) = if wanted { guardian.track()? } else { (None, Duration::ZERO) };
        let Some(watch) = watched.map(|(_, watch)| begun(pid, watch)).transpose()?.flatten() else {
            return if asked { Err(impossible(pid)) } else { Ok(None) };
        };
        let mut pages = Earlier::new(pid, watch, stream);
        let mut done = 0;
        let rest = pages.rounds(writer, &mut |bytes| {
            done += bytes;
            progress(Progress::Pages { done, total: done });
        })?;
        if mappings_in_advance {
            pages.look_at_mappings()?;
        }
        let expected = usize::try_from((rest * 2 + HOLD_LEAST).min(most)).unwrap_or(0);
        // Not zeros: those would be mapped when they are written only.
        Ok(Some(Self { pages, paused, room: vec![1; expected], most }))
    }

    /// Looks at what was taken for granted while the target stood still. It runs again.
    ///
    /// # Errors
    /// When that was wrong.
    pub(crate) fn settle(&self) -> Result<()> {
        if self.pages.flags_are_the_same().unwrap_or(false) {
            return Ok(());
        }
        Err(passing(
            self.pages.pid(),
            "mappings",
            "they, or advice given for them (madvise), were changed in the moment of the freeze",
        ))
    }
}

/// Copies contents of files while the target runs, if they are so large that a pause more is worth it, and the disk has room for them
/// twice. How long that was.
///
/// # Errors
/// When the image cannot be written or the target is gone.
pub(crate) fn copy_files(
    options: &Options,
    writer: &PageWriter,
    guardian: &mut Guardian,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<(EarlierFiles, Duration)>> {
    let pid = options.pid;
    let candidates = candidates(options)?.filter(|those| writer.has_room(those.size() * 2));
    let Some(mut candidates) = candidates else { return Ok(None) };
    guardian.hold()?;
    let noted = note(pid, &mut candidates);
    let paused = guardian.release(false)?;
    if let Err(error) = noted {
        tracing::debug!(%error, "a process was killed meanwhile");
        return Ok(None);
    }
    let files = candidates.copy(pid, writer, &mut |done, total| progress(Progress::Pages { done, total }))?;
    Ok(Some((files, paused)))
}

/// Notes what they are like, while the target stands still.
fn note(pid: i32, candidates: &mut Candidates) -> Result<()> {
    let living = kin::members(pid)?.0;
    let procs = living.into_iter().map(|member| Proc::open_living(member).during("open", member, "process"));
    candidates.note(&procs.collect::<Result<Vec<Proc>>>()?)
}

/// Those that the image is to have, as far as a look at the running target tells.
fn candidates(options: &Options) -> Result<Option<Candidates>> {
    let (living, ended) = kin::members(options.pid)?;
    let procs: Vec<Proc> = living.iter().filter_map(|member| Proc::open_living(*member).ok()).collect();
    let family: Vec<i32> = living.into_iter().chain(ended).collect();
    let (mut contents, mut findings) = (Contents::new(options.file_level), Findings::new(options.pid));
    let target = Target { procs: &procs, family: &family, still: false };
    match files::survey(target, &mut contents, &mut findings) {
        Ok(_) => Ok(Candidates::of(contents.openable())),
        Err(error) => {
            tracing::debug!(%error, "a process ended meanwhile");
            Ok(None)
        }
    }
}

/// Watches for the first time; `None` when the kernel does not allow it.
fn begun(pid: i32, mut watch: Watch) -> Result<Option<Watch>> {
    match watch.renew() {
        Ok(watched) => Ok(watched.then_some(watch)),
        Err(error) => Err(CaptureError::failed("watch", pid, "memory", error).advise("try again")),
    }
}

/// Whether kernel and target allow it, as far as can be told without touching it.
fn can_be(pid: i32) -> Result<bool> {
    let known = Host::here().is_ok_and(|host| host.kernel_version() >= KERNEL);
    let alone = known && kin::members(pid)?.0.len() == 1;
    Ok(alone && Proc::open_living(pid).is_ok_and(|proc| can_be_tracked(&proc)))
}

/// Whether a process of ours comes to run as soon as one of the target: whom calls of the target wait for must not have to stand back.
fn is_as_prompt_as(pid: i32) -> bool {
    let is = |one: &Scheduling, policies: &[i32]| policies.contains(&one.policy.cast_signed());
    match (attributes::scheduling(0), attributes::scheduling(pid)) {
        (Ok(own), Ok(target)) if is(&own, &[libc::SCHED_OTHER]) => {
            is(&target, &[libc::SCHED_BATCH, libc::SCHED_IDLE])
                || is(&target, &[libc::SCHED_OTHER]) && own.nice <= target.nice
        }
        _ => false,
    }
}

/// How much may be held in memory without bringing ourselves or the target near a limit: who is over it is ended by the kernel.
fn most_held(pid: i32) -> u64 {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let left = [own, pid].into_iter().filter_map(cgroup::memory_left).min();
    left.map_or(HOLD_MOST, |left| (left / HOLD_PART).min(HOLD_MOST))
}

/// What may not be so the next time.
pub(crate) fn passing(pid: i32, object: &str, reason: &str) -> CaptureError {
    CaptureError::Refused(vec![Obstacle {
        pid,
        object: object.into(),
        reason: reason.into(),
        remedy: "try again in a moment".into(),
        passing: true,
    }])
}

fn impossible(pid: i32) -> CaptureError {
    CaptureError::Refused(vec![Obstacle {
        pid,
        object: "memory".into(),
        reason: "it cannot be copied while the program runs: that takes Linux 6.13, a program of one process that may make a userfaultfd, \
                 and no files without a cache (O_DIRECT) and no asynchronous I/O (AIO) in use"
            .into(),
        remedy: "leave --mode to chkpnt (auto), or use --mode stop".into(),
        passing: false,
    }])
}
