//! A seed process walks the program; meanwhile every block of the page stream is verified.

mod left;

mod ids;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rewake_image::records::page_stream::Compression;
use rewake_image::{Image, PageReader};
use rewake_linux::arch::x86_64::Registers;
use rewake_linux::namespaces::Init;
use rewake_linux::proc::Proc;
use rewake_linux::program::{Action, Assembled, Sysno};
use rewake_linux::ptrace::{self, Event, ExitStatus, Poll, PtraceError, Running, StopReason};
use rewake_linux::seed::SharedStage;

use crate::Progress;
use crate::contents::Prepared;
use crate::error::RestoreError;
use crate::plan::{Plan, Site};
use crate::removed::Left;
use crate::spaces;

/// Pause between two looks at a seed that is busy.
const POLL: Duration = Duration::from_micros(100);

/// The process being made. Dropped before its release it is killed, and nothing is left.
#[derive(Debug)]
pub struct Seed<'a> {
    pid: i32,
    plan: &'a Plan,
    /// Those that it makes things in.
    folders: &'a [Arc<OwnedFd>],
    /// Its System V objects vanish with it.
    own_ipc: bool,
    /// Where is remembered what it made and we could not remove.
    left: &'a Left,
    options: ptrace::Options,
    threads: u32,
    assembled: Assembled,
    stage: SharedStage,
    /// The first threads of processes that we trace, by their ids in the image.
    leaders: BTreeMap<i32, Running>,
    /// The other threads by id, once we trace them.
    others: Option<BTreeMap<i32, Running>>,
    /// Ids out here by ids in there, where they are not the same.
    outer: BTreeMap<i32, i32>,
    /// Of the new process's namespace; dropped after the process is gone, it takes the namespace with it.
    init: Option<Init>,
}

/// The page stream as the seed reads it: the image's own file, or its content unpacked and verified into memory.
///
/// # Errors
/// A damaged block, or no memory.
pub fn page_source(image: &Image, reader: &PageReader) -> Result<OwnedFd, RestoreError> {
    let system = |operation, source| RestoreError::System {
        operation,
        pid: image.root().pid,
        object: "page stream".into(),
        source,
    };
    if image.stream.compression() == Compression::None {
        return reader.file().as_fd().try_clone_to_owned().map_err(|source| system("dup", source));
    }
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let memory = rustix::fs::memfd_create("rewake-pages", flags)
        .map_err(|errno| system("memfd_create", errno.into()))?;
    let mut file = File::from(memory);
    let mut buffer = reader.buffer()?;
    for block in 0..reader.blocks() {
        let bytes = reader.read_block(block, &mut buffer)?;
        file.write_all(bytes).map_err(|source| system("write", source))?;
    }
    file.seek(SeekFrom::Start(0)).map_err(|source| system("lseek", source))?;
    Ok(file.into())
}

/// Verifies every block of the stream while the seed fills its memory from the same pages of the file cache.
///
/// # Errors
/// The first damaged block; or why `go_on` says to stop.
pub fn verify(
    image: &Image,
    reader: &PageReader,
    go_on: &dyn Fn() -> Result<(), RestoreError>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), RestoreError> {
    let total = image.stream.stream_length;
    if image.stream.compression() != Compression::None {
        return Ok(());
    }
    let mut buffer = reader.buffer()?;
    let mut done = 0;
    for block in 0..reader.blocks() {
        go_on()?;
        done += u64::try_from(reader.read_block(block, &mut buffer)?.len()).unwrap_or_default();
        progress(Progress::Pages { done, total });
    }
    Ok(())
}

/// Clones the seed and lets it begin.
///
/// # Errors
/// When the id is taken or may not be chosen, or the kernel refuses something else.
pub fn start<'a>(
    image: &Image,
    plan: &'a Plan,
    site: &'a Site,
    pages: &OwnedFd,
    prepared: Prepared,
    init: Option<Init>,
    left: &'a Left,
) -> Result<Seed<'a>, RestoreError> {
    let pid = image.root().pid;
    let system = |operation, object: &str, source| RestoreError::System {
        operation,
        pid,
        object: object.into(),
        source,
    };
    let helpers = helper_descriptors(site, pages, None, &prepared)
        .map_err(|source| system("dup", "descriptors", source))?;
    let assembled = plan.program.assemble(site.stage);
    let stage = SharedStage::map(site.stage, site.stage_len, &assembled);
    let stage = stage.map_err(|source| system("mmap", "program of the restore", source))?;
    if plan.bears {
        // Those below whose parents end are ours: also when it all fails.
        let own = Some(rustix::process::getpid());
        let taken = rustix::process::set_child_subreaper(own);
        taken.map_err(|errno| system("prctl", "child subreaper", errno.into()))?;
    }
    ids::await_free(plan);
    let pid = ids::clone_seed(&stage, &assembled, plan, pid)?;
    // Before it begins: whoever watches one of these files would be told that it was closed.
    drop((helpers, prepared));
    let options = ptrace::Options { exit_kill: true, suspend_seccomp: plan.traced.is_some() };
    let threads = u32::try_from(image.thread_count()).expect("image counts are checked");
    let (folders, own_ipc) = (&site.removed.folders[..], site.ipc.own);
    let (leaders, others, outer) = (BTreeMap::new(), None, BTreeMap::new());
    let mut seed = Seed {
        pid,
        plan,
        folders,
        own_ipc,
        left,
        options,
        threads,
        assembled,
        stage,
        leaders,
        others,
        outer,
        init,
    };
    seed.wait_made();
    match ptrace::seize(pid, options) {
        Ok(leader) => drop(seed.leaders.insert(image.root().pid, leader)),
        // It may have failed before it was to be traced.
        Err(error) => {
            let error = || system("PTRACE_SEIZE", "new process", error.source);
            return Err(seed.failure().unwrap_or_else(error));
        }
    }
    seed.stage.arrive(&seed.assembled, plan.gate);
    Ok(seed)
}

/// Our standard streams, the page stream, prepared files and folders of removed ones at the numbers the plan expects them at; the seed inherits them.
pub fn helper_descriptors(
    site: &Site,
    pages: &OwnedFd,
    word: Option<&OwnedFd>,
    prepared: &Prepared,
) -> io::Result<Vec<OwnedFd>> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let streams =
        [io::stdin().as_fd().as_raw_fd(), io::stdout().as_fd().as_raw_fd(), io::stderr().as_fd().as_raw_fd()];
    let mut helpers = Vec::new();
    for (index, _) in (0u32..).zip(streams) {
        let min = site.stream(index);
        let own = match index {
            0 => rustix::io::fcntl_dupfd_cloexec(io::stdin(), min),
            1 => rustix::io::fcntl_dupfd_cloexec(io::stdout(), min),
            _ => rustix::io::fcntl_dupfd_cloexec(io::stderr(), min),
        };
        // A stream that was closed when we were started is as good as nothing.
        helpers.push(own.or_else(|_| rustix::io::fcntl_dupfd_cloexec(&null, min))?);
    }
    helpers.push(rustix::io::fcntl_dupfd_cloexec(pages, site.pages())?);
    if let Some(word) = word {
        helpers.push(rustix::io::fcntl_dupfd_cloexec(word, site.word())?);
    }
    for (file, number) in prepared.descriptors().zip(site.first_prepared()..) {
        helpers.push(rustix::io::fcntl_dupfd_cloexec(file, number)?);
    }
    for (folder, number) in site.removed.folders.iter().zip(site.first_folder()..) {
        helpers.push(rustix::io::fcntl_dupfd_cloexec(folder, number)?);
    }
    for (helper, expected) in helpers.iter().zip(site.fd_base..) {
        if helper.as_raw_fd() != expected {
            return Err(io::Error::other(format!("descriptor {expected} is in use")));
        }
    }
    Ok(helpers)
}

impl Seed<'_> {
    /// The new process's id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until all threads have done everything and wait to be let go.
    ///
    /// # Errors
    /// The entry that failed, or how the process died; or why `go_on` says to stop.
    pub fn wait_parked(&mut self, go_on: &dyn Fn() -> Result<(), RestoreError>) -> Result<(), RestoreError> {
        while self.stage.arrived(&self.assembled, self.plan.parked) < self.threads {
            go_on()?;
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            self.meet_the_born()?;
            self.meet()?;
            for (id, leader) in std::mem::take(&mut self.leaders) {
                let leader = self.look_at(leader)?;
                self.leaders.insert(id, leader);
            }
            std::thread::sleep(POLL);
        }
        self.learn_ids()
    }

    /// A process that is being made does not end.
    fn look_at(&self, leader: Running) -> Result<Running, RestoreError> {
        let died = |error: PtraceError| self.died(&error.to_string());
        match leader.try_wait().map_err(died)? {
            Poll::Pending(leader) => Ok(leader),
            Poll::Ready(Event::Exited(_, status)) => {
                Err(self.failure().unwrap_or_else(|| self.died(&describe(status))))
            }
            Poll::Ready(Event::Stopped(stopped, reason)) => {
                // The entries cause no signal that does not end the process; let it have what came from outside.
                let signal = if let StopReason::Signal(info) = reason { info.signal() } else { 0 };
                stopped.cont(signal).map_err(died)
            }
        }
    }

    /// Waits until it has removed what it makes for a moment: traced by us, it would die with us between.
    fn wait_made(&self) {
        let waiting = || self.stage.arrived(&self.assembled, self.plan.gate) == 0 && self.failure().is_none();
        let lives = || Proc::open(self.pid).and_then(|proc| proc.stat()).is_ok_and(|stat| stat.state != 'Z');
        while !self.plan.made.is_empty() && waiting() && lives() {
            std::thread::sleep(POLL);
        }
    }

    /// Whether the program needed a `/proc` of its own and the kernel gave it none.
    pub fn has_no_proc(&self) -> bool {
        let mounted = self.plan.own_proc.map_or(0, |call| self.stage.result(&self.assembled, call));
        mounted != 0
    }

    /// Whether the program keeps our login uid and had another one.
    pub fn has_our_login_uid(&self) -> bool {
        let written = self.plan.login_uid.map_or(1, |call| self.stage.result(&self.assembled, call));
        written.cast_signed() <= 0
    }

    /// The id out here of a process or thread.
    pub fn outer(&self, id: i32) -> i32 {
        /// Nobody's; 0 would be our own for some calls.
        const NOBODY: i32 = -1;
        if self.plan.own_proc.is_none() { id } else { self.outer.get(&id).copied().unwrap_or(NOBODY) }
    }

    fn learn_ids(&mut self) -> Result<(), RestoreError> {
        if self.plan.own_proc.is_some() {
            self.outer = spaces::outer_ids(self.pid).map_err(|error| self.died(&error.to_string()))?;
        }
        Ok(())
    }

    /// Comes to the meeting of all processes, if all others are there: from then on we trace those that go on, and our death is theirs.
    fn meet_the_born(&mut self) -> Result<(), RestoreError> {
        let Some((born, parties)) = self.plan.born else { return Ok(()) };
        if self.stage.arrived(&self.assembled, born) != parties - 1 {
            return Ok(());
        }
        self.learn_ids()?;
        let living: Vec<i32> = self.plan.living.values().copied().collect();
        for id in living.into_iter().filter(|id| !self.leaders.contains_key(id)).collect::<Vec<_>>() {
            let leader = self.seize(id)?;
            self.leaders.insert(id, leader);
        }
        self.stage.arrive(&self.assembled, born);
        Ok(())
    }

    /// Comes to the meeting of all threads, if there is one and all others are there: from then on we trace them.
    fn meet(&mut self) -> Result<(), RestoreError> {
        if let Some(traced) = self.plan.traced
            && self.others.is_none()
            && self.stage.arrived(&self.assembled, traced) == self.threads
        {
            self.trace_others()?;
            self.stage.arrive(&self.assembled, traced);
        }
        Ok(())
    }

    fn trace_others(&mut self) -> Result<(), RestoreError> {
        self.learn_ids()?;
        let threads: Vec<i32> = self.plan.threads.clone();
        let seized = threads.into_iter().map(|tid| Ok((tid, self.seize(tid)?)));
        self.others = Some(seized.collect::<Result<_, RestoreError>>()?);
        Ok(())
    }

    fn seize(&self, id: i32) -> Result<Running, RestoreError> {
        ptrace::seize(self.outer(id), self.options).map_err(|error| RestoreError::System {
            operation: error.operation,
            pid: self.pid,
            object: format!("thread {id}"),
            source: error.source,
        })
    }

    /// All threads of all processes, by their ids in the image, traced by us. They are the release's from then on.
    ///
    /// # Errors
    /// When we may not trace them.
    pub fn take_all(&mut self) -> Result<BTreeMap<i32, Running>, RestoreError> {
        if self.others.is_none() {
            self.trace_others()?;
        }
        let mut all = self.others.take().unwrap_or_default();
        all.append(&mut self.leaders);
        Ok(all)
    }

    /// Whether a thread with these registers has returned from the call made for it.
    pub fn has_returned(&self, registers: &Registers) -> bool {
        let never = self.assembled.data(self.plan.never).get();
        registers.system_call() == Some(Sysno::futex.number()) && registers.rdi() == never
    }

    /// What the call made for thread `tid` returned; 0 if none was made.
    pub fn returned(&self, tid: i32) -> u64 {
        let call = self.plan.waits.get(&tid);
        call.map_or(0, |call| self.stage.result(&self.assembled, *call))
    }

    /// Where SIGCHLD stands as a set of signals, and behind it a time that is over at once.
    pub fn news(&self) -> rewake_linux::addr::RemoteAddr {
        self.assembled.data(self.plan.news)
    }

    /// The range of the program in the new process.
    pub fn stage(&self) -> (rewake_linux::addr::RemoteAddr, u64) {
        self.stage.range()
    }

    /// Whether the new processes have a pid namespace of their own.
    pub fn has_namespace(&self) -> bool {
        self.init.is_some()
    }

    /// From now on the new process's namespace stays, whatever becomes of us.
    ///
    /// # Errors
    /// When its init is gone.
    pub fn keep_namespace(&self) -> Result<(), RestoreError> {
        let Some(init) = &self.init else { return Ok(()) };
        init.let_go().map_err(|error| self.died(&format!("its namespace's init is gone: {error}")))
    }

    /// The new process is on its own: dropping the seed kills nothing any more.
    pub fn let_go(mut self) {
        self.pid = 0;
        if let Some(init) = self.init.take() {
            init.leave_alone();
        }
    }

    pub fn died(&self, reason: &str) -> RestoreError {
        RestoreError::Died { pid: self.pid, reason: reason.to_owned() }
    }

    fn failure(&self) -> Option<RestoreError> {
        failure_of(self.plan, &self.stage, &self.assembled, self.pid)
    }
}

/// The entry at which the process `pid` stopped, if it did.
pub fn failure_of(plan: &Plan, stage: &SharedStage, assembled: &Assembled, pid: i32) -> Option<RestoreError> {
    let failure = stage.failure(assembled)?;
    let call = plan.program.get(failure.at);
    if let Action::Spawn(child) = call.action
        && failure.result == -i64::from(libc::EEXIST)
        && let Some(&tid) = plan.tids.get(&child)
    {
        return Some(RestoreError::PidTaken { pid: tid, owner: ids::owner_of(tid).0 });
    }
    let operation = match call.action {
        Action::Call(nr) => nr.name(),
        Action::Spawn(_) => "clone3",
        Action::Thread(_) => "clone",
        Action::Barrier => "barrier",
        Action::Leave => "leave",
    };
    let source = match i32::try_from(failure.result) {
        Ok(errno @ -4095..=-1) => io::Error::from_raw_os_error(-errno),
        _ => io::Error::other(format!("unexpected result {}", failure.result)),
    };
    let (operation, object) = (operation.to_owned(), object_of(plan, failure.at, &call.note));
    Some(RestoreError::Entry { operation, pid, object, source })
}

fn object_of(plan: &Plan, at: rewake_linux::program::CallRef, note: &str) -> String {
    let track = &plan.program.tracks()[at.track.index()].name;
    if note.is_empty() { format!("{track}, entry {}", at.index) } else { note.to_owned() }
}

impl Drop for Seed<'_> {
    fn drop(&mut self) {
        if self.pid == 0 {
            return;
        }
        // Its threads may be our tracees too, and it is not dead before each of them has been waited for.
        ptrace::kill_and_reap(self.pid);
        if self.plan.bears {
            // Those below died with it, or will, since they were not asked yet to. A namespace is not gone before we have waited for
            // those that we trace.
            let traced = self.plan.living.values().chain(&self.plan.threads).map(|id| self.outer(*id));
            traced.filter(|id| *id > 0).for_each(ptrace::kill_and_reap_tracee);
            let init = self.init.as_ref().map(Init::pid);
            ptrace::kill_and_reap_children(init);
        }
        self.remove_what_it_made();
        self.remove_objects();
        self.remove_queues();
    }
}

fn describe(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("it ended with status {code}"),
        ExitStatus::Signal(signal) => format!("it was killed by signal {signal}"),
        ExitStatus::Unknown => "it is gone".to_owned(),
    }
}
