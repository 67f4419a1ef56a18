//! A capture from inside: the caller is a copy (fork) of the process to be captured, whose threads all stand still of their own will
//! and answer what they are asked.
//!
//! The phases are those of a capture from outside, without guardian, tracing and rights: [`Company`] stands for what holds the threads.

mod folders;

use std::io;
use std::time::{Duration, Instant};

use rewake_image::PendingImage;
use rewake_image::records::{PendingSignal, Process, RestartableSequence};
use rewake_linux::inside::COPY;
use rewake_linux::mqueue::Journal;
use rewake_linux::proc::Proc;
use rewake_linux::program::{Program, TrackRef};
use rewake_linux::remote::Outcome;

use crate::ask::{Questions, ask_policies, check_outcome};
use crate::error::{CaptureError, During, Result};
use crate::family::Told;
use crate::findings::Findings;
use crate::spaces::Ids;
use crate::still::StandingStill;
use crate::{Options, Summary, commit, ipc, preflight, threads};

/// What there may be at most of something.
#[derive(Clone, Copy, Debug)]
pub struct Ceiling {
    /// Of what.
    pub of: Counted,
    /// Under which name somebody set it.
    pub name: &'static str,
    /// How many.
    pub most: u64,
}

/// What can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Processes.
    Processes,
    /// System V semaphore sets.
    SemaphoreSets,
    /// Semaphores in the largest set.
    Semaphores,
    /// System V message queues.
    MessageQueues,
    /// System V shared memory segments.
    Segments,
}

const SUPPORTED_OUTSIDE: &str = "capture the program from outside instead (chkpnt)";

/// A thread that stands still.
#[derive(Clone, Debug, Default)]
pub struct StandingThread {
    /// Its id.
    pub tid: i32,
    /// What it goes on with when it is woken, in the order of `struct user_regs_struct`.
    pub registers: Vec<u64>,
    /// Its extended state, an xsave area.
    pub xstate: Vec<u8>,
    /// Address, size and signature of its registration with rseq(2), if it has one.
    pub rseq: Option<(u64, u32, u32)>,
    /// `siginfo_t` of each signal that is pending for it alone.
    pub pending: Vec<Vec<u8>>,
}

/// Who holds the threads, and speaks with them.
pub trait Company {
    /// The process.
    fn pid(&self) -> i32;
    /// All its threads; each stands still until [`Company::let_go`].
    fn threads(&self) -> &[StandingThread];
    /// `siginfo_t` of each signal that is pending for the whole process.
    fn pending(&self) -> &[Vec<u8>];
    /// Seccomp mode and number of filters that the process began with: what was done to it, not by it.
    fn seccomp_at_start(&self) -> (u32, u32);
    /// Makes threads walk tracks of plain calls, all at once.
    ///
    /// # Errors
    /// When the program is too large, or the threads do not answer.
    fn run(&mut self, program: &Program, tracks: &[(TrackRef, i32)]) -> io::Result<Outcome>;
    /// How long they have stood still by now.
    fn since_stop(&self) -> Duration;
    /// Lets all threads go on; how long they stood still.
    ///
    /// # Errors
    /// When they do not answer: the process is gone.
    fn let_go(&mut self) -> io::Result<Duration>;
}

/// Makes a place for an image.
///
/// # Errors
/// When something is there already or the parent folder cannot be written.
pub fn create(options: &Options) -> Result<PendingImage> {
    commit::create(options.pid, &options.dir)
}

/// Captures the process. The image is durable when this returns; the threads were let go before: when their memory was written, or as
/// soon as the rest of it is in a snapshot ([`rewake_linux::twin`]).
///
/// # Errors
/// When there is no image: a step failed, or the process has state that cannot be captured. The threads may stand still yet.
pub fn capture(
    options: &Options,
    pending: PendingImage,
    ceilings: &[Ceiling],
    company: &mut dyn Company,
) -> Result<Summary> {
    let pid = options.pid;
    carry_out(options, pending, ceilings, company).map_err(|error| {
        // What goes wrong with a process that has ended goes wrong because of that.
        if is_over(pid) {
            CaptureError::failed("capture", pid, "process", "it ended meanwhile")
        } else {
            error
        }
    })
}

/// Whether a process has ended, or is about to: its threads lose their memory and files before anybody is told of its end.
#[must_use]
pub fn is_over(pid: i32) -> bool {
    /// `PF_EXITING`
    const EXITING: u32 = 4;
    let Ok(proc) = Proc::open_living(pid) else {
        // Where there is no /proc it lives all the same.
        let pid = rustix::process::Pid::from_raw(pid);
        return pid.is_none_or(|pid| rustix::process::test_kill_process(pid).is_err());
    };
    let ends = |tid: i32| {
        let stat = proc.thread(tid).and_then(|thread| thread.stat());
        let gone = |stat: rewake_linux::proc::Stat| "ZX".contains(stat.state) || stat.flags & EXITING != 0;
        stat.map_or_else(|error| error.is_gone(), gone)
    };
    proc.threads().map_or_else(|error| error.is_gone(), |all| all.into_iter().all(ends))
}

fn carry_out(
    options: &Options,
    pending: PendingImage,
    ceilings: &[Ceiling],
    company: &mut dyn Company,
) -> Result<Summary> {
    // All is counted from when the first thread stood still.
    let (begin, before) = (Instant::now(), company.since_stop());
    let pid = options.pid;
    let manifest = crate::capture::manifest(options)?;
    let journal = Journal::new().during("create", pid, "journal of message queues")?;
    let told = ask(company)?;
    let frozen =
        StandingStill::look(options, told, &journal, &mut || Err(queues(pid)), &mut |_| {}, (None, None))?;
    frozen.within(pid, ceilings)?;
    let mut let_go = || company.let_go().during("thaw", pid, "process");
    let (image, paused, files_for_writing) =
        crate::capture::write_stream(options, manifest, frozen, &pending, &mut let_go)?;
    let dir = pending.target().to_owned();
    let bytes = commit::commit(pid, pending, &image, || Ok(()))? + image.stream.file_length;
    let told = crate::capture::summary(dir, &image);
    Ok(Summary { files_for_writing, bytes, paused, total: before + begin.elapsed(), ..told })
}

fn queues(pid: i32) -> CaptureError {
    let reason = "POSIX message queues are not supported from inside yet";
    CaptureError::failed("capture", pid, "message queue", reason).advise(SUPPORTED_OUTSIDE)
}

/// All that the process and its threads can tell of themselves.
fn ask(company: &mut dyn Company) -> Result<Told> {
    let pid = company.pid();
    let proc = preflight::open(pid)?;
    let ids = Ids::of(&proc)?;
    folders::learn(company)?;
    let mut findings = Findings::new(pid);
    preflight::check_state(&proc, &mut findings)?;
    check_alone(&proc, &mut findings)?;
    check_seccomp(&proc, company.seccomp_at_start(), &mut findings)?;
    findings.into_result()?;

    let mut findings = Findings::new(pid);
    let tids: Vec<i32> = company.threads().iter().map(|thread| thread.tid).collect();
    let questions = Questions::new(&proc, tids.into_iter())?;
    let outcome = run(company, &questions.program, &questions.tracks)?;
    let mut process = questions.tell(&proc, &ids, &outcome, &mut findings)?;
    let mut owners = threads::Owners::new();
    for standing in company.threads().to_vec() {
        let tid = standing.tid;
        let mut thread = threads::outside(&proc, &ids, state(standing))?;
        thread.credentials.take_if(|own| Some(&*own) == process.credentials.as_ref());
        // What it began with it will begin with again, wherever that is.
        thread.seccomp_mode = 0;
        questions.tell_thread(tid, &outcome, &mut thread, &mut findings);
        threads::settle_own_fs(&proc, tid, &mut thread, &mut owners, &mut findings)?;
        process.threads.push(thread);
    }
    // It runs.
    process.stop_told = false;
    process.threads.sort_by_key(|thread| thread.tid);
    process.pending = company.pending().iter().map(|one| pending_signal(one)).collect();
    policies(company, &questions, &outcome, &mut process)?;
    findings.into_result()?;
    Ok(Told { processes: vec![process], pids: vec![pid], filters: Vec::new(), ipc: ipc::Objects::default() })
}

/// Memory policies, where there are any.
fn policies(
    company: &mut dyn Company,
    questions: &Questions,
    outcome: &Outcome,
    process: &mut Process,
) -> Result<()> {
    let starts = questions.with_policies(outcome);
    let (Some(&(_, tid)), Some(memory)) = (questions.tracks.first(), process.memory.as_mut()) else {
        return Ok(());
    };
    if !starts.is_empty() {
        let (program, track, policies) = ask_policies(tid, &starts);
        memory.vmas = policies.tell(&run(company, &program, &[(track, tid)])?);
    }
    Ok(())
}

fn run(company: &mut dyn Company, program: &Program, tracks: &[(TrackRef, i32)]) -> Result<Outcome> {
    let pid = company.pid();
    let outcome = company.run(program, tracks).during("ask", pid, "process")?;
    check_outcome(pid, program, &outcome)?;
    Ok(outcome)
}

fn state(standing: StandingThread) -> threads::State {
    threads::State {
        tid: standing.tid,
        registers: standing.registers,
        xstate: standing.xstate,
        // Each stands in a signal handler, which gives it back its own when it returns.
        signal_mask: u64::MAX,
        pending: standing.pending.iter().map(|one| pending_signal(one)).collect(),
        rseq: standing.rseq.map(|(address, size, signature)| RestartableSequence {
            address,
            size,
            signature,
            flags: 0,
        }),
    }
}

fn pending_signal(siginfo: &[u8]) -> PendingSignal {
    PendingSignal { siginfo: siginfo.to_vec() }
}

/// One process, all of whose threads stand here.
fn check_alone(proc: &Proc, findings: &mut Findings) -> Result<()> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let children = proc.children().during("list children", proc.id(), "children")?;
    // Copies that write the images before are its children where it is the first process of a container.
    let copies = |child: &i32| {
        Proc::open(*child).and_then(|child| child.comm()).is_ok_and(|name| name == COPY.to_bytes())
    };
    if let Some(child) = children.into_iter().find(|child| *child != own && !copies(child)) {
        let reason = format!("it has a child, process {child}; families are not supported from inside yet");
        findings.add("children", reason, SUPPORTED_OUTSIDE);
    }
    let status = proc.thread(proc.id()).and_then(|leader| leader.status());
    if status.during("read status", proc.id(), "first thread")?.state == b'Z' {
        let reason = "it has ended while others run, which is not supported from inside";
        findings.add("first thread", reason, SUPPORTED_OUTSIDE);
    }
    Ok(())
}

/// A sandbox around the program is not its state; filters that it installed itself are.
fn check_seccomp(proc: &Proc, at_start: (u32, u32), findings: &mut Findings) -> Result<()> {
    for tid in proc.threads().during("list threads", proc.id(), "task")? {
        let status = proc.thread(tid).and_then(|thread| thread.status());
        let status = status.during("read status", proc.id(), format!("thread {tid}"))?;
        if (status.seccomp, status.seccomp_filters) != at_start {
            let reason = "it has put itself under seccomp, which is not supported from inside";
            findings.add_thread(tid, reason, SUPPORTED_OUTSIDE);
        }
    }
    Ok(())
}
