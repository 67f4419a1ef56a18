//! What a plan has to know of the process that will run it: this one, since the seed is its clone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use rewake_image::records::vma::Backing;
use rewake_image::records::{AddressSpace, Vma, open_file};
use rewake_image::{Births, Image};
use rewake_linux::addr::RemoteAddr;
use rewake_linux::attributes;
use rewake_linux::memory::ProcessMemory;
use rewake_linux::proc::{ClockOffsets, MappingKind, Proc, ProcError};
use rewake_linux::seed;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::Options;
use crate::contents::Prepared;
use crate::credentials::Identity;
use crate::error::RestoreError;
use crate::plan::{Plan, Site, Special, check, free_gap, plan};
use crate::removed::{self, Places};
use crate::sockets;
use crate::spaces::Spaces;
use crate::streams::Streams;

/// Descriptors below this are left to the image and to ourselves in any case.
const LOWEST_FD_BASE: i32 = 64;
/// Far above what any kernel's fs.nr_open allows in practice, and far from the end of the numbers.
const HIGHEST_FD: i32 = 1 << 28;
/// The streams and the page stream, and one for each file that is being opened.
const HELPERS: u64 = 8;
/// The kernel gives none below to anybody.
const LOWEST_SPARE_ID: i32 = 300;

/// Plans the image's restore for a seed cloned from this process, and checks the plan.
///
/// # Errors
/// What cannot be planned, by name.
pub fn plan_here(
    image: &Image,
    options: &Options,
    prepared: &Prepared,
    spaces: &Spaces,
    streams: &Streams,
) -> Result<(Plan, Site), RestoreError> {
    let mut site = survey(image, options, prepared, spaces)?;
    site.streams.clone_from(streams);
    // A first time for the size, a second time with the place.
    let len = plan(image, &site)?.program.assembled_size();
    let own = Proc::own().and_then(|own| own.maps()).map_err(|source| proc_error(image, source))?;
    let memory = image.memories().flat_map(|memory| &memory.vmas);
    let taken = own.iter().map(|mapping| (mapping.start.get(), mapping.end.get()));
    let taken = taken.chain(memory.map(|vma| (vma.start, vma.end))).collect();
    let aside: u64 = site.specials.iter().map(|special| special.len).sum();
    let stage = free_gap(taken, len + aside).ok_or_else(|| RestoreError::Unsupported {
        pid: image.root().pid,
        object: "memory".into(),
        reason: format!("no free address range of {len} bytes for the program of the restore"),
    })?;
    (site.stage, site.stage_len, site.aside) = (RemoteAddr::new(stage), len, RemoteAddr::new(stage + len));
    let plan = plan(image, &site)?;
    assert!(plan.program.assembled_size() == len, "a plan's size does not depend on its place");
    check::check(&plan, &site).map_err(|violation| RestoreError::Unsupported {
        pid: image.root().pid,
        object: "plan".into(),
        reason: violation.to_string(),
    })?;
    Ok((plan, site))
}

/// A program with file capabilities is not dumpable, nor is its clone, which we could then not trace. Nobody gains by it: who
/// traces us must have all our capabilities.
pub fn allow_tracing() {
    // Where this is refused, the tracing will be, by name.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable);
}

fn survey(
    image: &Image,
    options: &Options,
    prepared: &Prepared,
    spaces: &Spaces,
) -> Result<Site, RestoreError> {
    let own = Proc::own().map_err(|source| proc_error(image, source))?;
    let specials = specials(&own).map_err(|source| proc_error(image, source))?;
    let vdso = another_vdso(image, &specials)?;
    raise_descriptor_limit();
    let limits = own.limits().map_err(|source| proc_error(image, source))?;
    // They are among our descriptors.
    let mut removed = removed::places(image, &options.dir)?;
    let mut identity = Identity::own_for(image.root().pid)?;
    // In a user namespace they have no numbers any more, but are still ours.
    identity.groups.clone_from(&spaces.groups);
    let sockets = sockets::survey(image, &identity, spaces.inside, &mut removed.folders)?;
    let own_fds = own.fd_numbers().map_err(|source| proc_error(image, source))?;
    let highest = numbers(image).chain(own_fds).max().unwrap_or(0);
    if highest >= HIGHEST_FD {
        return Err(RestoreError::Unsupported {
            pid: image.root().pid,
            object: format!("descriptor {highest}"),
            reason: format!("no process has descriptors of {HIGHEST_FD} and above"),
        });
    }
    let fd_base = (highest + 1).max(LOWEST_FD_BASE);
    check_descriptor_limit(image, fd_base, prepared, &removed)?;
    let mut site = Site {
        stage: RemoteAddr::new(1 << 32),
        stage_len: 4096,
        aside: RemoteAddr::new((1 << 32) + 4096),
        specials,
        vdso,
        fd_base,
        // From inside of a pid namespace of its own nobody sees us.
        parent: if spaces.inside { 0 } else { i32::try_from(std::process::id()).unwrap_or_default() },
        inside: spaces.inside,
        limits: limits.iter().map(|limit| (limit.soft, limit.hard)).collect(),
        rseq: seed::own_rseq(),
        identity,
        new_session: options.new_session,
        timer_ids: attributes::can_choose_timer_ids(),
        hands: hands(),
        clocks: clocks(spaces.shift),
        same_boot: spaces.keeps_clocks.unwrap_or_else(|| is_same_boot(image)),
        spare_ids: spare_ids(image),
        own_group: (!options.new_session && !spaces.inside)
            .then(|| rustix::process::getpgrp().as_raw_nonzero().get()),
        ipc: spaces.ipc.clone(),
        own: spaces.own,
        sockets,
        prepared: BTreeMap::new(),
        streams: Streams::new(),
        removed,
        login_uid: own
            .read("loginuid")
            .ok()
            .and_then(|text| String::from_utf8(text).ok()?.trim().parse().ok()),
    };
    site.prepared = prepared.numbers(site.first_prepared());
    Ok(site)
}

/// Our own mappings that only the kernel can make: those of whoever is born of us.
fn specials(own: &Proc) -> Result<Vec<Special>, ProcError> {
    let maps = own.maps()?;
    let specials = maps.iter().filter_map(|mapping| {
        let kind = match mapping.kind() {
            MappingKind::Vdso => Backing::Vdso,
            MappingKind::Vvar => Backing::Vvar,
            MappingKind::VvarVclock => Backing::VvarVclock,
            _ => return None,
        };
        Some(Special { kind, start: mapping.start, len: mapping.end.get() - mapping.start.get() })
    });
    Ok(specials.collect())
}

/// Ids for processes that are there only meanwhile, and one for who makes sockets. One that is taken nevertheless makes the restore fail.
fn spare_ids(image: &Image) -> Vec<i32> {
    let ghosts = Births::plan(&image.processes).map_or(0, |births| births.spare_ids());
    if ghosts == 0 && image.unix_sockets.is_empty() {
        return Vec::new();
    }
    let limit = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok();
    let limit = limit.and_then(|limit| limit.trim().parse().ok()).unwrap_or(32_768);
    let threads = image.processes.iter().flat_map(|process| &process.threads).map(|thread| thread.tid);
    let taken: BTreeSet<i32> =
        image.processes.iter().flat_map(|one| [one.pid, one.pgid, one.sid]).chain(threads).collect();
    let free = |id: &i32| !taken.contains(id) && !std::path::Path::new(&format!("/proc/{id}")).exists();
    (LOWEST_SPARE_ID..limit).rev().filter(free).take(ghosts + 1).collect()
}

/// What the clocks show by which timers can be set.
fn clocks(shift: ClockOffsets) -> BTreeMap<i32, u64> {
    let clocks = [
        (libc::CLOCK_REALTIME, ClockId::Realtime),
        (libc::CLOCK_MONOTONIC, ClockId::Monotonic),
        (libc::CLOCK_BOOTTIME, ClockId::Boottime),
        (libc::CLOCK_REALTIME_ALARM, ClockId::Realtime),
        (libc::CLOCK_BOOTTIME_ALARM, ClockId::Boottime),
    ];
    let nanoseconds = |clock| {
        let now = clock_gettime(clock);
        let shift = match clock {
            ClockId::Monotonic => shift.monotonic,
            ClockId::Boottime => shift.boottime,
            _ => 0,
        };
        let now = u64::try_from(now.tv_sec).ok()? * 1_000_000_000 + u64::try_from(now.tv_nsec).ok()?;
        now.checked_add_signed(shift)
    };
    clocks.into_iter().filter_map(|(number, clock)| Some((number, nanoseconds(clock)?))).collect()
}

/// Whether the image was made on this host since it was started.
pub fn is_same_boot(image: &Image) -> bool {
    let then = image.manifest.host.as_ref().map(|host| &host.boot_id);
    let now = rewake_linux::host::Host::here().ok().map(|host| host.boot_id);
    now.is_some_and(|now| !now.is_empty() && then == Some(&now))
}

/// The numbers of all descriptors, and those that watches were added by.
fn numbers(image: &Image) -> impl Iterator<Item = i32> {
    let watched = image.open_files.iter().flat_map(|file| match &file.kind {
        Some(open_file::Kind::Epoll(epoll)) => &epoll.watches[..],
        _ => &[],
    });
    let descriptors = image.processes.iter().flat_map(|process| &process.descriptors);
    descriptors.map(|descriptor| descriptor.fd).chain(watched.map(|watch| watch.fd))
}

/// The content of our own vdso, if any program of the image had another one.
fn another_vdso(image: &Image, specials: &[Special]) -> Result<Option<Vec<u8>>, RestoreError> {
    let kinds = [Backing::Vdso, Backing::Vvar, Backing::VvarVclock];
    let alike = |vma: &Vma| {
        let own = specials.iter().find(|special| special.kind == vma.backing());
        own.is_some_and(|own| own.len == vma.length())
    };
    let vmas = image.memories().flat_map(|memory| &memory.vmas);
    let alike = vmas.filter(|vma| kinds.contains(&vma.backing())).all(alike);
    let Some(own) = specials.iter().find(|special| special.kind == Backing::Vdso) else { return Ok(None) };
    let pid = image.root().pid;
    let system =
        |source| RestoreError::System { operation: "read", pid, object: "our own vdso".into(), source };
    let mut bytes = vec![0; usize::try_from(own.len).unwrap_or_default()];
    let id = i32::try_from(std::process::id()).unwrap_or_default();
    let read = ProcessMemory::open(id).and_then(|memory| memory.read_exact_at(own.start, &mut bytes));
    read.map_err(|error| system(error.source))?;
    let has_vdso = |memory: &&AddressSpace| memory.vmas.iter().any(|vma| vma.backing() == Backing::Vdso);
    let mut crcs = image.memories().filter(has_vdso).map(|memory| memory.vdso_crc);
    let crc = crc32c::crc32c(&bytes);
    Ok(Some(bytes).filter(|_| !alike || crcs.any(|wanted| wanted != crc)))
}

/// The restore opens files at numbers above all of the program's; the program gets its own limit at the end.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where this is not possible, the check that follows says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn check_descriptor_limit(
    image: &Image,
    fd_base: i32,
    prepared: &Prepared,
    removed: &Places,
) -> Result<(), RestoreError> {
    // The number of a folder around a removed one counts all that were made before.
    let made = 2 * image.removed_files.len() + removed.folders.len() + removed.around(image);
    let sockets = image.unix_sockets.len() + 2 * image.unix_names.len();
    let made = made + sockets + image.posix_queues.len();
    let files = image.open_files.len() + made + prepared.ids().count();
    let files = u64::try_from(files).unwrap_or(u64::MAX);
    let needed = files.saturating_add(HELPERS).saturating_add(fd_base.unsigned_abs().into());
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if needed <= limit {
        return Ok(());
    }
    Err(RestoreError::Descriptors { pid: image.root().pid, needed, limit })
}

fn proc_error(image: &Image, source: ProcError) -> RestoreError {
    RestoreError::System {
        operation: "survey",
        pid: image.root().pid,
        object: "resume itself".into(),
        source: io::Error::other(source),
    }
}

/// How many processes may fill memory beside the leader: what there are processors for, but none where a user may hardly have more
/// processes, which are the program's then.
fn hands() -> usize {
    const MOST: usize = 4;
    const TIGHT: u64 = 1 << 10;
    let tight = getrlimit(Resource::Nproc).current.is_some_and(|limit| limit < TIGHT);
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if tight { 0 } else { processors.min(MOST) - 1 }
}
