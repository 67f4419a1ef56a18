//! The order of the phases.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rewake_image::records::{self, Manifest, OpenFile, Pipe, Process, open_file};
use rewake_image::{Image, PAGE_SIZE, PageWriter, PendingImage};
use rewake_linux::cpu::Cpu;
use rewake_linux::fork::{self, StopsBlocked};
use rewake_linux::host::Host;
use rewake_linux::memory::ProcessMemory;
use rewake_linux::proc::Proc;

use crate::contents::{Contents, MAPPED, Source};
use crate::error::{CaptureError, During, Result};
use crate::files::Files;
use crate::findings::Findings;
use crate::guardian::Guardian;
use crate::memory::Memory;
use crate::pages::Plan;
use crate::spaces::Ids;
use crate::{Options, Progress, Summary, commit, files, memory, pages, preflight};

/// What a killed program may need to be gone when its guardian cannot tell any more.
const DYING: Duration = Duration::from_millis(200);

/// Tells the caller and the trace which phase runs, and the trace how long it took.
struct Phases<'a> {
    progress: &'a mut dyn FnMut(Progress),
    current: Option<(&'static str, Instant)>,
}

impl Phases<'_> {
    fn begin(&mut self, name: &'static str) {
        self.end();
        self.current = Some((name, Instant::now()));
        (self.progress)(Progress::Phase(name));
    }

    fn end(&mut self) {
        if let Some((phase, begin)) = self.current.take() {
            tracing::debug!(phase, elapsed = ?begin.elapsed());
        }
    }
}

/// See [`crate::capture`].
pub(crate) fn run(options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Summary> {
    let begin = Instant::now();
    let pid = options.pid;
    let mut phases = Phases { progress, current: None };
    phases.begin("preflight");
    preflight::look(options)?.into_result()?;
    let manifest = manifest(options)?;
    let pending = commit::create(pid, &options.dir)?;
    let dir = pending.target().to_owned();
    fork::ignore(&[libc::SIGXFSZ]).during("signal", pid, "SIGXFSZ")?;
    // Ctrl-Z takes effect when the target is released: declared before the guardian, these are let through after it is gone.
    let mut stops = Some(StopsBlocked::new().during("sigprocmask", pid, "stop signals")?);
    let mut guardian = Guardian::start(pid, &pending, options.freeze_timeout)?;

    phases.begin("freeze");
    let (process, seccomp_filters) = guardian.freeze()?;
    let written = look_at_frozen(options, process, &mut phases)
        .and_then(|frozen| write_pages(options, manifest, frozen, &pending, &mut guardian, &mut phases));
    // What goes wrong with a target that was let go meanwhile goes wrong because of that.
    let Written { mut image, paused, files_for_writing } =
        written.map_err(|error| guardian.let_go_because().unwrap_or(error))?;
    image.seccomp_filters = seccomp_filters;
    if paused.is_some() {
        drop(stops.take());
    }

    phases.begin("commit");
    let arm = || if options.kill { guardian.arm() } else { Ok(()) };
    let bytes = commit::commit(pid, pending, &image, arm)? + image.stream.file_length;
    let paused = match paused {
        Some(paused) => paused,
        None => {
            phases.begin("kill");
            kill(pid, &dir, &mut guardian)?
        }
    };
    guardian.dismiss();
    phases.end();
    Ok(Summary {
        dir,
        pids: 1,
        threads: image.process.threads.len(),
        bytes,
        memory: image.stream.stream_length,
        files_for_writing,
        files_stored: image.file_contents.len(),
        aio_contexts: image.process.aio_contexts.len(),
        paused,
        total: begin.elapsed(),
    })
}

/// Kills the target, whose image is durable; an image whose program lives on is none.
fn kill(pid: i32, dir: &Path, guardian: &mut Guardian) -> Result<Duration> {
    let proc = Proc::open_living(pid);
    let begin = Instant::now();
    let error = match guardian.release(true) {
        Ok(paused) => return Ok(paused),
        Err(error) => error,
    };
    // The guardian may have been killed after it did its work.
    std::thread::sleep(DYING);
    if proc.map_or_else(|error| error.is_gone(), |proc| has_ended(&proc)) {
        return Ok(begin.elapsed());
    }
    match std::fs::remove_dir_all(dir) {
        Ok(()) => Err(error),
        Err(left) => Err(error.advise(format!("remove {} by hand, that failed: {left}", dir.display()))),
    }
}

/// Whether a process is gone, or dead and not waited for yet.
fn has_ended(proc: &Proc) -> bool {
    proc.stat().map_or_else(|error| error.is_gone(), |stat| matches!(stat.state, 'Z' | 'X'))
}

/// What the front finds out while the target stands still.
struct FrozenState {
    proc: Proc,
    process: Process,
    memory: Memory,
    files: Files,
    pipes: Vec<Pipe>,
    plan: Plan,
}

fn look_at_frozen(options: &Options, mut process: Process, phases: &mut Phases<'_>) -> Result<FrozenState> {
    let pid = options.pid;
    let proc = preflight::open(pid)?;
    let mut findings = Findings::new(pid);
    let mut contents = Contents::new(options.file_level);
    memory::aio::wait(pid, &mut process)?;
    phases.begin("files");
    let files = files::survey(&proc, &mut contents, &mut findings)?;
    phases.begin("memory");
    let memory = memory::survey(&proc, &mut contents, &mut findings)?;
    memory::aio::read(pid, &mut process, &memory.vmas, &mut findings)?;
    executable(&proc, &mut process, &mut contents)?;
    let plan = pages::plan(&proc, &memory, &contents)?;
    findings.into_result()?;
    files.removed.tell(&Ids::of(&proc)?, &mut process);
    let pipes = files.pipes.iter().map(|pipe| pipe.read(&proc)).collect::<Result<_>>()?;
    Ok(FrozenState { proc, process, memory, files, pipes, plan })
}

/// The executable's content, where it is kept.
fn executable(proc: &Proc, process: &mut Process, contents: &mut Contents) -> Result<()> {
    let link = proc.exe().during("readlink", proc.id(), "exe")?;
    let content = if link.reachable {
        contents.named(&link, Source::Exe, false, MAPPED)
    } else {
        Some(contents.unlinked(&link, Source::Exe, false))
    };
    if let Some(exe) = process.memory.as_mut().and_then(|memory| memory.exe.as_mut()) {
        exe.content = content;
    }
    Ok(())
}

/// An image whose pages are written.
struct Written {
    image: Image,
    /// When the pause is over.
    paused: Option<Duration>,
    files_for_writing: usize,
}

/// Writes the pages and, unless the target is to be killed, lets it go on at once.
fn write_pages(
    options: &Options,
    mut manifest: Manifest,
    frozen: FrozenState,
    pending: &PendingImage,
    guardian: &mut Guardian,
    phases: &mut Phases<'_>,
) -> Result<Written> {
    let pid = options.pid;
    phases.begin("pages");
    let total = frozen.plan.total;
    let writer = PageWriter::create(pending, options.compression)
        .map_err(|error| commit::image_error("create", pid, error))?;
    writer.reserve(total).map_err(|error| commit::image_error("write", pid, error))?;
    (phases.progress)(Progress::Pages { done: 0, total });
    let progress = &mut phases.progress;
    frozen.plan.write(pid, &writer, &mut |done| progress(Progress::Pages { done, total }))?;
    let vdso = vdso(pid, &frozen.memory)?;
    memory::aio::still(pid, &frozen.process.aio_contexts)?;
    if has_ended(&frozen.proc) {
        return Err(CaptureError::failed("read", pid, "process", "it was killed meanwhile"));
    }
    let paused = if options.kill {
        guardian.confirm()?;
        None
    } else {
        phases.begin("thaw");
        Some(guardian.release(false)?)
    };
    let stream = writer.finish().map_err(|error| commit::image_error("write", pid, error))?;
    let FrozenState { mut process, memory, files, pipes, plan, .. } = frozen;
    let files_for_writing = for_writing(&files.open);
    process.descriptors = files.descriptors;
    process.locks = files.locks;
    if let Some(record) = &mut process.memory {
        let policies = std::mem::replace(&mut record.vmas, memory.vmas);
        memory::add_policies(&mut record.vmas, policies);
        record.pages = plan.private;
        record.vdso_crc = if vdso.is_empty() { 0 } else { crc32c::crc32c(&vdso) };
        record.vdso = vdso;
    }
    // As it sees itself.
    manifest.root_pid = process.pid;
    let image = Image {
        manifest,
        process,
        mapped_files: memory.files,
        shared_memory: plan.shared,
        open_files: files.open,
        pipes,
        file_contents: plan.contents,
        seccomp_filters: Vec::new(),
        removed_files: files.removed.files,
        stream,
        unknown: Vec::new(),
    };
    Ok(Written { image, paused, files_for_writing })
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
fn vdso(pid: i32, memory: &Memory) -> Result<Vec<u8>> {
    let Some((address, len)) = memory.vdso else { return Ok(Vec::new()) };
    let mut bytes = vec![0; usize::try_from(len).during("read", pid, "vdso")?];
    let target = ProcessMemory::open(pid)
        .map_err(|error| CaptureError::failed("open", pid, "memory", error.source))?;
    target
        .read_exact_at(address, &mut bytes)
        .map_err(|error| CaptureError::failed("read", pid, "vdso", error.source))?;
    Ok(bytes)
}

/// Where and how the image is made.
fn manifest(options: &Options) -> Result<Manifest> {
    let pid = options.pid;
    let host = Host::here().during("read", pid, "host")?;
    let cpu = Cpu::here().during("read", pid, "processor")?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Manifest {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        created_unix_ns: u64::try_from(created.as_nanos()).unwrap_or(0),
        host: Some(records::Host {
            hostname: host.hostname,
            machine_id: host.machine_id.unwrap_or_default(),
            boot_id: host.boot_id,
            kernel_release: host.kernel_release,
            architecture: host.architecture,
        }),
        cpu: Some(records::Cpu {
            vendor: cpu.vendor,
            model: cpu.model,
            features: cpu.features,
            xcr0: cpu.xcr0,
            xsave_size: cpu.xsave_size,
            components: cpu
                .components
                .iter()
                .map(|part| records::XsaveComponent {
                    index: part.index,
                    offset: part.offset,
                    size: part.size,
                })
                .collect(),
        }),
        root_pid: pid,
        page_size: u32::try_from(PAGE_SIZE).expect("a page is small"),
        file_level: options.file_level.into(),
        uid: rustix::process::getuid().as_raw(),
    })
}
