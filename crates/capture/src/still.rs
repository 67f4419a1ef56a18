//! What the front finds out while the target stands still, and the image of it.

use std::collections::{BTreeSet, HashMap};

use rewake_image::Image;
use rewake_image::records::{Manifest, OpenFile, PageStream, Pipe, PosixQueue, Process, open_file};
use rewake_linux::memory::ProcessMemory;
use rewake_linux::mqueue::Journal;
use rewake_linux::proc::Proc;
use rewake_linux::twin;

use crate::ahead::passing;
use crate::capture::has_ended;
use crate::contents::{Contents, MAPPED, Source};
use crate::error::{CaptureError, During, Result};
use crate::family::Told;
use crate::files::{self, Files, QueueSource, Target};
use crate::findings::Findings;
use crate::ipc;
use crate::ipc::contents::Segments;
use crate::memory::{self, Memory, Space};
use crate::own::{Ceiling, Counted};
use crate::pages::{self, Earlier, EarlierFiles, Plan};
use crate::spaces::Ids;
use crate::{Options, preflight};

/// Asks those who stand still for the messages of their queues.
pub(crate) type AskQueues<'a> = &'a mut dyn FnMut() -> Result<Vec<PosixQueue>>;

/// All processes, none of which moves.
pub(crate) struct StandingStill {
    pub(crate) told: Told,
    pub(crate) plan: Plan,
    living: Vec<Proc>,
    memory: Memory,
    files: Files,
    pipes: Vec<Pipe>,
    queues: Vec<PosixQueue>,
}

/// Whether memory may be written to without a trace in the page tables.
fn past_the_tables(files: &Files, processes: &[Process]) -> bool {
    let direct = libc::O_DIRECT.cast_unsigned();
    files.open.iter().any(|file| file.flags & direct != 0)
        || processes.iter().any(|process| !process.aio_contexts.is_empty())
}

impl StandingStill {
    /// Looks at everything that the guardian has not told; `phase` hears what is being looked at.
    ///
    /// # Errors
    /// When one of them was killed meanwhile, or holds what cannot be captured.
    pub(crate) fn look(
        options: &Options,
        mut told: Told,
        journal: &Journal,
        queues: AskQueues<'_>,
        phase: &mut dyn FnMut(&'static str),
        (earlier, copied): (Option<&Earlier>, Option<&EarlierFiles>),
    ) -> Result<Self> {
        let mut family = told.pids.clone();
        // A copy of one of them has what that one has, and is no outsider.
        family.extend(twin::copies_of(options.pid));
        let with = |has: fn(&Process) -> bool| {
            let those = told.pids.iter().zip(&told.processes).filter(|(_, process)| has(process));
            those.map(|(pid, _)| preflight::open(*pid)).collect::<Result<Vec<Proc>>>()
        };
        let living = with(|process| process.exit_status.is_none())?;
        let with_files = with(|process| process.exit_status.is_none() && process.descriptors_of.is_none())?;
        let with_memory = with(|process| process.memory.is_some())?;
        let mut findings = Findings::new(options.pid);
        let mut contents = Contents::new(options.file_level);
        let told_of = told.pids.iter().copied().zip(&mut told.processes);
        told_of.into_iter().try_for_each(|(pid, process)| memory::aio::wait(pid, process))?;
        phase("files");
        let target = Target { procs: &with_files, family: &family, still: true };
        let mut files = files::survey(target, &mut contents, &mut findings)?;
        phase("memory");
        let mut memory = memory::survey(&with_memory, &family, earlier, &mut contents, &mut findings)?;
        if let Some(space) = memory.spaces.first_mut() {
            space.excluded.clone_from(&options.excluded);
            space.excluded.sort_unstable_by_key(|range| range.start);
        }
        for (pid, process) in told.pids.iter().zip(&mut told.processes) {
            executable(*pid, process, &mut contents)?;
        }
        for space in &memory.spaces {
            let those = told.pids.iter().zip(&mut told.processes);
            for (_, process) in those.filter(|(pid, _)| **pid == space.pid) {
                findings.turn_to(space.pid);
                memory::aio::read(space.pid, process, &space.vmas, &mut findings)?;
            }
        }
        ipc::check_attached(&told.ipc, &memory.attachments(), &mut findings);
        let mut segments = Segments::read(options.pid, &told.ipc, &memory)?;
        if earlier.is_some() && past_the_tables(&files, &told.processes) {
            return Err(passing(
                options.pid,
                "memory",
                "it began to be written to past its page tables (O_DIRECT, AIO) while it was copied",
            ));
        }
        let plan = pages::plan(&with_memory, &memory, &contents, &mut segments, (earlier, copied))?;
        findings.into_result()?;
        let ids = Ids::of_all(living.iter().map(Proc::id))?;
        for (pid, process) in told.pids.iter().zip(&mut told.processes) {
            files.removed.tell(*pid, &ids, process);
        }
        let inner = told.processes.iter().map(|process| process.pid);
        files.sockets.translate(&told.pids.iter().copied().zip(inner).collect());
        phase("queues");
        let learned = learned(&told, &files.queues, queues)?;
        let queues = files.queues.iter().map(|queue| queue.read(journal, &learned)).collect::<Result<_>>()?;
        let pipes = files.pipes.iter().map(files::PipeSource::read).collect::<Result<_>>()?;
        Ok(Self { told, plan, living, memory, files, pipes, queues })
    }

    /// Makes sure that there is not more of anything than somebody allowed.
    ///
    /// # Errors
    /// Naming the first that there is more of.
    pub(crate) fn within(&self, pid: i32, ceilings: &[Ceiling]) -> Result<()> {
        for Ceiling { of, name, most } in ceilings {
            let (what, count) = match of {
                Counted::Processes => ("processes", self.told.processes.len()),
                Counted::SemaphoreSets => ("semaphore sets", self.told.ipc.sets.len()),
                Counted::Semaphores => {
                    let sizes = self.told.ipc.sets.iter().map(|set| set.values.len());
                    ("semaphores of a set", sizes.max().unwrap_or(0))
                }
                Counted::MessageQueues => ("message queues", self.told.ipc.queues.len()),
                Counted::Segments => {
                    let segments = self.plan.shared.iter().filter(|shared| shared.segment.is_some());
                    ("shared memory segments", segments.count())
                }
            };
            if u64::try_from(count).unwrap_or(u64::MAX) > *most {
                let reason = format!("{count} are more than {name} {most}, with which the library was built");
                let error = CaptureError::failed("capture", pid, what, reason);
                return Err(error.advise(format!("build the library with a higher {name} in user_config.h")));
            }
        }
        Ok(())
    }

    /// Makes sure that nobody was killed while we looked, and that no request came to its end.
    ///
    /// # Errors
    /// Naming who was, or whose request did.
    pub(crate) fn nothing_moved(&self) -> Result<()> {
        for (pid, process) in self.told.pids.iter().zip(&self.told.processes) {
            memory::aio::still(*pid, &process.aio_contexts)?;
        }
        match self.living.iter().find(|proc| has_ended(proc)) {
            Some(proc) => Err(CaptureError::failed("read", proc.id(), "process", "it was killed meanwhile")),
            None => Ok(()),
        }
    }

    /// The content of each process's vdso, in the order of the address spaces.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(crate) fn vdsos(&self) -> Result<Vec<Vec<u8>>> {
        self.memory.spaces.iter().map(vdso).collect()
    }

    /// How many files are open for writing and not in the image.
    pub(crate) fn files_for_writing(&self) -> usize {
        for_writing(&self.files.open)
    }

    /// The image, but for what is written already: its page stream.
    pub(crate) fn into_image(
        self,
        mut manifest: Manifest,
        mut stream: PageStream,
        vdsos: Vec<Vec<u8>>,
    ) -> Image {
        let Self { told, plan, memory, mut files, pipes, queues, .. } = self;
        let Told { mut processes, pids, filters, ipc } = told;
        manifest.own_ipc = ipc.own;
        stream.spare = plan.spare;
        for (pid, process) in pids.iter().zip(&mut processes) {
            process.descriptors = files.descriptors.remove(pid).unwrap_or_default();
            process.locks = files.locks.remove(pid).unwrap_or_default();
        }
        let records = processes.iter_mut().filter_map(|process| process.memory.as_mut());
        for (((record, space), pages), vdso) in records.zip(memory.spaces).zip(plan.private).zip(vdsos) {
            let policies = std::mem::replace(&mut record.vmas, space.vmas);
            memory::add_policies(&mut record.vmas, policies);
            record.pages = pages;
            record.vdso_crc = if vdso.is_empty() { 0 } else { crc32c::crc32c(&vdso) };
            record.vdso = vdso;
        }
        Image {
            manifest,
            processes,
            mapped_files: memory.files,
            shared_memory: plan.shared,
            open_files: files.open,
            pipes,
            file_contents: plan.contents,
            seccomp_filters: filters,
            removed_files: files.removed.files,
            semaphore_sets: ipc.sets,
            message_queues: ipc.queues,
            unix_sockets: files.sockets.records,
            unix_names: files.sockets.names,
            posix_queues: queues,
            stream,
            unknown: Vec::new(),
        }
    }
}

/// What queues hold, and who is told of the next message (mq_notify).
fn learned(told: &Told, queues: &[QueueSource], ask: AskQueues<'_>) -> Result<Vec<PosixQueue>> {
    if queues.is_empty() {
        return Ok(Vec::new());
    }
    let inner: HashMap<i32, &Process> = told.pids.iter().copied().zip(&told.processes).collect();
    for pid in queues.iter().map(|queue| queue.told).filter(|pid| *pid != 0) {
        if inner.get(&pid).is_none_or(|process| process.descriptors_of.is_some()) {
            let reason = "it is told of the next message (mq_notify) and has its descriptors from another process \
                          (CLONE_FILES), which is not supported";
            let error = CaptureError::failed("capture", pid, "message queue", reason);
            return Err(error.advise("let the program take that back first (mq_notify with no event)"));
        }
    }
    let mut learned = ask()?;
    for one in learned.iter_mut().filter_map(|queue| queue.notification.as_mut()) {
        one.pid = inner.get(&one.pid).map_or(0, |process| process.pid);
    }
    Ok(learned)
}

/// The executable's content, where it is kept.
fn executable(pid: i32, process: &mut Process, contents: &mut Contents) -> Result<()> {
    let Some(exe) = process.memory.as_mut().and_then(|memory| memory.exe.as_mut()) else { return Ok(()) };
    let link = preflight::open(pid)?.exe().during("readlink", pid, "exe")?;
    exe.content = if link.reachable {
        contents.named(&link, Source::exe(pid), false, MAPPED)
    } else {
        Some(contents.unlinked(&link, Source::exe(pid), false))
    };
    Ok(())
}

/// How many files are open for writing and not in the image.
fn for_writing(open: &[OpenFile]) -> usize {
    let written = open.iter().filter_map(|file| match &file.kind {
        Some(open_file::Kind::Regular(regular))
            if regular.content.is_none() && file.flags & libc::O_ACCMODE.cast_unsigned() != 0 =>
        {
            regular.identity.as_ref().map(|identity| &identity.path)
        }
        _ => None,
    });
    written.collect::<BTreeSet<_>>().len()
}

/// The content of the vdso.
fn vdso(space: &Space) -> Result<Vec<u8>> {
    let pid = space.pid;
    let Some((address, len)) = space.vdso else { return Ok(Vec::new()) };
    let mut bytes = vec![0; usize::try_from(len).during("read", pid, "vdso")?];
    let failed = |operation, source| CaptureError::failed(operation, pid, "vdso", source);
    let target = ProcessMemory::open(pid).map_err(|error| failed("open", error.source))?;
    target.read_exact_at(address, &mut bytes).map_err(|error| failed("read", error.source))?;
    Ok(bytes)
}
