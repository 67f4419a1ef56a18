//! The order of the phases.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rewake_image::records::{self, Manifest, UnixName};
use rewake_image::{Image, PAGE_SIZE, PageWriter, PendingImage};
use rewake_linux::cpu::Cpu;
use rewake_linux::fork::{self, StopsBlocked};
use rewake_linux::host::Host;
use rewake_linux::mqueue::Journal;
use rewake_linux::proc::Proc;
use rewake_linux::twin;

use crate::ahead::{self, Ahead, passing};
use crate::error::{CaptureError, During, Result};
use crate::family::Told;
use crate::guardian::Guardian;
use crate::pages::{EarlierFiles, Part};
use crate::still::StandingStill;
use crate::{Mode, Options, Progress, Summary, commit, kin, preflight};

/// What a killed program may need to be gone when its guardian cannot tell any more.
const DYING: Duration = Duration::from_millis(200);

/// Before a target is frozen anew in which something stood in the way that may be over in a moment: at first, and at most.
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_millis(320);

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

/// See [`crate::capture`]. What may be over in a moment is waited for, while the target runs.
pub(crate) fn run(options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Summary> {
    let mut attempt = Attempt { begin: Instant::now(), lived: !kin::has_left(options.pid), in_advance: true };
    let mut wait = FIRST_WAIT;
    loop {
        match attempt.make(options, progress) {
            Err(error) if error.is_passing() && wait <= LONGEST_WAIT => {
                tracing::debug!(%error, ?wait, "tried again");
                std::thread::sleep(wait);
                wait *= 2;
                attempt.in_advance = false;
            }
            done => return done,
        }
    }
}

/// What goes wrong with a target that ends by itself goes wrong because of that.
fn unless_ended<T>(pid: i32, lived: bool, done: Result<T>) -> Result<T> {
    done.map_err(|error| {
        if !lived || !kin::has_left(pid) {
            return error;
        }
        let reason = "it has ended by itself before it could be captured";
        CaptureError::failed("capture", pid, "process", reason).advise("nothing is left to capture")
    })
}

/// One of them.
#[derive(Clone, Copy)]
struct Attempt {
    /// When the first one began.
    begin: Instant,
    /// The target was there then.
    lived: bool,
    /// Mappings are looked at before the target stands still, where that can be trusted.
    in_advance: bool,
}

impl Attempt {
    fn make(self, options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Summary> {
        let pid = options.pid;
        let mut phases = Phases { progress, current: None };
        phases.begin("preflight");
        self.look(options)?;
        let manifest = manifest(options)?;
        let pending = commit::create(pid, &options.dir)?;
        let dir = pending.target().to_owned();
        fork::ignore(&[libc::SIGXFSZ]).during("signal", pid, "SIGXFSZ")?;
        // Ctrl-Z takes effect when the target is released: declared before the guardian, these are let through after it is gone.
        let mut stops = Some(StopsBlocked::new().during("sigprocmask", pid, "stop signals")?);
        let journal = Journal::new().during("create", pid, "journal of message queues")?;
        let mut guardian = Guardian::start(pid, &pending, &journal, options.freeze_timeout)?;

        let writer = PageWriter::create(&pending, options.compression)
            .map_err(|error| commit::image_error("create", pid, error))?;
        let before = self.go_ahead(options, &writer, &mut guardian, &mut phases)?;
        let told = self.freeze(pid, &mut guardian, &mut phases)?;
        let written =
            look_and_write(options, (manifest, told), writer, before, &journal, &mut guardian, &mut phases);
        // What goes wrong with a target that was let go meanwhile goes wrong because of that.
        let Written { image, paused, files_for_writing, strays } =
            written.map_err(|error| guardian.let_go_because().unwrap_or(error))?;
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
        let total = self.begin.elapsed();
        Ok(Summary { files_for_writing, strays, bytes, paused, total, ..summary(dir, &image) })
    }

    /// What can be told of the target before it is touched.
    fn look(self, options: &Options) -> Result<()> {
        let mut obstacles = unless_ended(options.pid, self.lived, preflight::look(options))?;
        if obstacles.is_empty() {
            return Ok(());
        }
        // These were waited for.
        obstacles.iter_mut().for_each(|obstacle| obstacle.passing = false);
        Err(CaptureError::Refused(obstacles))
    }

    /// What can be copied before the target stands still. One that is to be killed misses nothing while it does.
    fn go_ahead(
        self,
        options: &Options,
        writer: &PageWriter,
        guardian: &mut Guardian,
        phases: &mut Phases<'_>,
    ) -> Result<Before> {
        let mut before = Before::default();
        if options.kill {
            return Ok(before);
        }
        if self.in_advance {
            phases.begin("copy files");
            let files = ahead::copy_files(options, writer, guardian, phases.progress);
            if let Some((files, paused)) = unless_ended(options.pid, self.lived, files)? {
                before = Before { files: Some(files), paused, memory: None };
            }
        }
        // Nor is memory copied ahead unless somebody asks for it: see ARCHITECTURE, pre-copy.
        if options.mode == Mode::PreCopy {
            phases.begin("pre-copy");
            let stream = before.files.as_ref().map_or(0, EarlierFiles::stream);
            let memory = Ahead::copy(options, self.in_advance, (writer, stream), guardian, phases.progress);
            before.memory = unless_ended(options.pid, self.lived, memory)?;
            let paused = before.memory.as_ref().map_or(Duration::ZERO, |memory| memory.paused);
            before.paused = before.paused.max(paused);
        }
        Ok(before)
    }

    fn freeze(self, pid: i32, guardian: &mut Guardian, phases: &mut Phases<'_>) -> Result<Told> {
        phases.begin("freeze");
        unless_ended(pid, self.lived, guardian.freeze())
    }
}

/// What was copied while the target ran.
#[derive(Default)]
struct Before {
    files: Option<EarlierFiles>,
    memory: Option<Ahead>,
    /// How long it stood still for that, at most.
    paused: Duration,
}

/// Looks at the target that stands still, and writes what is not written yet. It goes on as soon as nothing of it is needed any more.
fn look_and_write(
    options: &Options,
    (manifest, told): (Manifest, Told),
    writer: PageWriter,
    mut before: Before,
    journal: &Journal,
    guardian: &mut Guardian,
    phases: &mut Phases<'_>,
) -> Result<Written> {
    let copied = (before.memory.as_ref().map(|ahead| &ahead.pages), before.files.as_ref());
    let mut begin = |phase| phases.begin(phase);
    let frozen = StandingStill::look(options, told, journal, &mut || guardian.queues(), &mut begin, copied)?;
    let room = before.memory.as_mut().filter(|ahead| frozen.plan.rest() <= ahead.most);
    let room = room.map(|ahead| std::mem::take(&mut ahead.room));
    write_pages(options, manifest, frozen, (writer, room, before), guardian, phases)
}

/// What the image itself tells.
pub(crate) fn summary(dir: PathBuf, image: &Image) -> Summary {
    Summary {
        dir,
        pids: image.processes.len(),
        threads: image.thread_count(),
        bytes: 0,
        memory: image.stream.stream_length,
        files_for_writing: 0,
        files_stored: image.file_contents.len(),
        aio_contexts: image.processes.iter().map(|process| process.aio_contexts.len()).sum(),
        outside_sockets: outside_sockets(image),
        strays: Vec::new(),
        paused: Duration::ZERO,
        total: Duration::ZERO,
    }
}

fn outside_sockets(image: &Image) -> Vec<String> {
    let ids: BTreeSet<u32> = image.unix_sockets.iter().filter_map(|socket| socket.outside).collect();
    image.unix_names.iter().filter(|name| ids.contains(&name.id)).map(UnixName::shown).collect()
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
pub(crate) fn has_ended(proc: &Proc) -> bool {
    proc.stat().map_or_else(|error| error.is_gone(), |stat| matches!(stat.state, 'Z' | 'X'))
}

/// An image whose pages are written.
struct Written {
    image: Image,
    /// When the pause is over.
    paused: Option<Duration>,
    files_for_writing: usize,
    /// Processes that were below the target once, and are no more.
    strays: Vec<String>,
}

/// Writes the pages and, unless the target is to be killed, lets it go on at once: before that, if all that is left fits into memory.
fn write_pages(
    options: &Options,
    mut manifest: Manifest,
    mut frozen: StandingStill,
    (writer, room, mut before): (PageWriter, Option<Vec<u8>>, Before),
    guardian: &mut Guardian,
    phases: &mut Phases<'_>,
) -> Result<Written> {
    let pid = options.pid;
    let files = before.files.take();
    let mut settled = None;
    if let Some(room) = room {
        phases.begin("hold");
        frozen.plan.hold(pid, room)?;
        settled = Some(settle(options, &frozen, std::mem::take(&mut before), guardian, phases)?);
    }
    phases.begin("pages");
    let total = frozen.plan.total;
    writer.reserve(total).map_err(|error| commit::image_error("write", pid, error))?;
    let carried = total - frozen.plan.rest();
    (phases.progress)(Progress::Pages { done: carried, total });
    let progress = &mut phases.progress;
    frozen.plan.write(pid, &writer, &mut |done| progress(Progress::Pages { done: carried + done, total }))?;
    let (vdsos, paused) = match settled {
        Some(settled) => settled,
        None => settle(options, &frozen, before, guardian, phases)?,
    };
    if let Some(files) = files
        && !files.is_settled(pid, &writer)?
    {
        return Err(passing(
            pid,
            "files",
            "one that it only adds to was written anew in the moment of the freeze",
        ));
    }
    let stream = writer.finish().map_err(|error| commit::image_error("write", pid, error))?;
    let files_for_writing = frozen.files_for_writing();
    manifest.root_pid = frozen.told.processes.first().map_or(0, |root| root.pid);
    let strays = kin::strays(&frozen.told.pids).into_iter();
    let strays =
        strays.map(|stat| format!("{} ({})", stat.pid, String::from_utf8_lossy(&stat.comm))).collect();
    Ok(Written { image: frozen.into_image(manifest, stream, vdsos), paused, files_for_writing, strays })
}

/// The last that is asked of a target that stands still: then it goes on, unless it is to be killed. Its longest pause, when that is over.
fn settle(
    options: &Options,
    frozen: &StandingStill,
    before: Before,
    guardian: &mut Guardian,
    phases: &mut Phases<'_>,
) -> Result<(Vec<Vec<u8>>, Option<Duration>)> {
    let vdsos = frozen.vdsos()?;
    frozen.nothing_moved()?;
    if options.kill {
        guardian.confirm()?;
        return Ok((vdsos, None));
    }
    phases.begin("thaw");
    let paused = guardian.release(false)?;
    before.memory.as_ref().map_or(Ok(()), Ahead::settle)?;
    Ok((vdsos, Some(paused.max(before.paused))))
}

/// Writes the pages of a process that this one is a copy of, and lets it go as soon as nothing of it is needed any more; the image, how
/// long it stood still, and how many files are open for writing and not in the image.
pub(crate) fn write_stream(
    options: &Options,
    mut manifest: Manifest,
    frozen: StandingStill,
    pending: &PendingImage,
    let_go: &mut dyn FnMut() -> Result<Duration>,
) -> Result<(Image, Duration, usize)> {
    let pid = options.pid;
    let goes_on = twin::has_snapshot(pid);
    let written = |error| commit::image_error("write", pid, error);
    let writer = PageWriter::create(pending, options.compression)
        .map_err(|error| commit::image_error("create", pid, error))?;
    writer.reserve(frozen.plan.total).map_err(written)?;
    frozen.plan.write_alone(pid, &writer, if goes_on { Part::Urgent } else { Part::All })?;
    let vdsos = frozen.vdsos()?;
    frozen.nothing_moved()?;
    let paused = let_go()?;
    if goes_on {
        frozen.plan.write_alone(pid, &writer, Part::Rest)?;
    }
    let stream = writer.finish().map_err(written)?;
    let files_for_writing = frozen.files_for_writing();
    manifest.root_pid = frozen.told.processes.first().map_or(0, |root| root.pid);
    Ok((frozen.into_image(manifest, stream, vdsos), paused, files_for_writing))
}

/// Where and how the image is made.
pub(crate) fn manifest(options: &Options) -> Result<Manifest> {
    let pid = options.pid;
    let host = Host::here().during("read", pid, "host")?;
    let cpu = Cpu::here().during("read", pid, "processor")?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Manifest {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        lineage: options.lineage.clone(),
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
        ..Manifest::default()
    })
}
