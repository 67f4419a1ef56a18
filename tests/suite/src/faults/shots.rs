//! Signals at random instants: to `chkpnt`, to its guardian, to `resume`.

mod target;
mod watched;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use self::target::{COUNTERS, Kind, Target};
use crate::process::{self, PATIENCE, Running};
use crate::random::Random;
use crate::report::Report;
use crate::subject::PASSED;
use crate::workshop::Workshop;

/// Instants tried for each signal to the command.
const SHOTS: u32 = 200;
/// Instants at which the guardian is killed: of a running program, and of each that is hard to hold.
const GUARDIAN_SHOTS: u32 = 100;
const HARD_SHOTS: u32 = 40;
/// After so many shots a command runs undisturbed and must clear what the dead ones left.
const CLEAN_EVERY: u32 = 20;
/// How soon the target must be seen to go on, and helpers must be gone.
const SOON: Duration = Duration::from_secs(5);
/// Exit code of a process that was killed, as the runner tells it.
const KILLED: i32 = 128 + 9;

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    for (name, signal, seed) in
        [("SIGINT", Signal::INT, 1), ("SIGTERM", Signal::TERM, 2), ("SIGKILL", Signal::KILL, 3)]
    {
        report.test(&format!("{name} to chkpnt at {SHOTS} instants"), || {
            shoot_front(workshop, name, signal, seed, Kind::Running)
        });
    }
    for (of, kind, seed) in [("a tree", Kind::Tree, 6), ("a program copied while it runs", Kind::Large, 7)] {
        report.test(&format!("SIGKILL to chkpnt of {of} at {SHOTS} instants"), || {
            shoot_front(workshop, "SIGKILL", Signal::KILL, seed, kind)
        });
    }
    for (of, kind, shots) in [
        ("a running program", Kind::Running, GUARDIAN_SHOTS),
        ("a stopped program", Kind::Stopped, HARD_SHOTS),
        ("a program whose first thread ended", Kind::Leaderless, HARD_SHOTS),
        ("a static program with musl", Kind::Musl, HARD_SHOTS),
        ("a tree of processes", Kind::Tree, GUARDIAN_SHOTS),
        ("a program copied while it runs", Kind::Large, GUARDIAN_SHOTS),
    ] {
        report.test(&format!("SIGKILL to the guardian of {of} at {shots} instants"), || {
            shoot_helpers(workshop, kind, shots, "guardian", process::children)
        });
    }
    for (whom, victims) in
        [("watcher", watcher as fn(u32) -> Vec<u32>), ("chkpnt, guardian and watcher at once", all_at_once)]
    {
        let name =
            format!("SIGKILL to the {whom} of a program copied while it runs at {HARD_SHOTS} instants");
        report.test(&name, || shoot_helpers(workshop, Kind::Large, HARD_SHOTS, whom, victims));
    }
    watched::run(workshop, report);
    for (of, kind) in [("", Kind::Running), (" of a tree", Kind::Tree)] {
        report.test(&format!("SIGKILL to resume{of} at {SHOTS} instants"), || shoot_resume(workshop, kind));
    }
}

/// The range of random instants, from the start of a command until a little after its end. The machine is not always
/// as fast as when it was measured, so the range follows: it shrinks when a shot came late, grows when it came early.
struct Instants {
    random: Random,
    span: Duration,
    late_share: f64,
}

impl Instants {
    /// About `late_share` of the shots will come after what they aim at.
    fn new(seed: u64, span: Duration, late_share: f64) -> Self {
        Instants { random: Random::new(seed), span, late_share }
    }

    fn pick(&mut self) -> Duration {
        Duration::from_micros(self.random.below(u64::try_from(self.span.as_micros()).unwrap_or(u64::MAX)))
    }

    fn learn(&mut self, late: bool) {
        let step = 0.06;
        let factor = if late { 1.0 - step * (1.0 - self.late_share) } else { 1.0 + step * self.late_share };
        self.span = self.span.mul_f64(factor);
    }
}

fn shoot_front(workshop: &Workshop, name: &str, signal: Signal, seed: u64, kind: Kind) -> Result<()> {
    let mut target = Target::start(workshop, &format!("chkpnt-{name}-{kind:?}"), kind)?;
    let span = target.measure(workshop)?;
    let mut instants = Instants::new(seed, span, 0.2);
    let mut images = 0;
    for shot in 1..=SHOTS {
        let delay = instants.pick();
        let what = format!("shot {shot} of {SHOTS}, {name} after {delay:?} of {:?}", instants.span);
        let image = shoot_front_once(workshop, &target, signal, delay).with_context(|| what.clone())?;
        instants.learn(image);
        images += u32::from(image);
        if shot % CLEAN_EVERY == 0 {
            target.undisturbed(workshop).with_context(|| format!("after {what}"))?;
        }
    }
    println!(
        "         {images} of {SHOTS} shots came after the image was complete (one command takes {span:.1?})"
    );
    target.subject.pass().context("self-check of the target at the end")
}

fn shoot_front_once(workshop: &Workshop, target: &Target, signal: Signal, delay: Duration) -> Result<bool> {
    let command = target.save_command(workshop);
    let running = Running::start(command, &target.subject.folder, "save")?;
    std::thread::sleep(delay);
    process::signal(running.child.id(), signal);
    let ended = running.finish(PATIENCE)?;
    process::nothing_left(&[target.subject.pid()], SOON)?;
    target.goes_on()?;
    target.image_is_whole_or_absent(workshop, &ended)
}

/// What answers for the calls of a program that is copied while it runs.
fn watcher(front: u32) -> Vec<u32> {
    process::children(front).into_iter().flat_map(process::children).collect()
}

/// Nobody is left who could clear up.
fn all_at_once(front: u32) -> Vec<u32> {
    let helpers: Vec<u32> = process::children(front).into_iter().chain(watcher(front)).collect();
    if helpers.is_empty() { helpers } else { [vec![front], helpers].concat() }
}

/// Kills those of the command `front` that `victims` names.
fn shoot_helpers(
    workshop: &Workshop,
    kind: Kind,
    shots: u32,
    whom: &str,
    victims: fn(u32) -> Vec<u32>,
) -> Result<()> {
    let mut target = Target::start(workshop, &format!("{}-{kind:?}", whom.replace(' ', "-")), kind)?;
    let span = target.measure(workshop)?;
    let mut instants = Instants::new(4, span, 0.1);
    let (mut hits, mut tries, mut successes) = (0, 0, 0);
    while hits < shots {
        tries += 1;
        ensure!(tries < shots * 10, "only {hits} of {tries} tries found a {whom} to kill");
        let delay = instants.pick();
        let span = instants.span;
        let command = target.save_command(workshop);
        let mut running = Running::start(command, &target.subject.folder, "save")?;
        std::thread::sleep(delay);
        instants.learn(matches!(running.child.try_wait(), Ok(Some(_))));
        let front = running.child.id();
        let victims = victims(front);
        victims.iter().for_each(|&pid| process::signal(pid, Signal::KILL));
        hits += u32::from(!victims.is_empty());
        let what = || format!("shot {hits}, {whom} killed after {delay:?} of {span:?}");
        let ended = running.finish(PATIENCE).with_context(what)?;
        ensure!(
            matches!(ended.status.code(), Some(0 | 1)) || victims.contains(&front),
            "{}: chkpnt ended with {}",
            what(),
            process::describe(ended.status)
        );
        successes += u32::from(ended.status.success() && !victims.is_empty());
        process::nothing_left(&[target.subject.pid()], SOON).with_context(what)?;
        target.is_unharmed().with_context(what)?;
        target.image_is_whole_or_absent(workshop, &ended).with_context(what)?;
        if tries % CLEAN_EVERY == 0 {
            target.undisturbed(workshop).with_context(what)?;
        }
    }
    println!("         {hits} killed; {successes} of these commands succeeded all the same");
    target.undisturbed(workshop)?;
    target.wake()?;
    target.subject.pass().context("self-check of the target at the end")
}

fn shoot_resume(workshop: &Workshop, kind: Kind) -> Result<()> {
    let mut target = Target::start(workshop, &format!("resume-{kind:?}"), kind)?;
    target.subject.save_and_kill(workshop)?;
    let span = measure_resume(workshop, &target)?;
    let mut instants = Instants::new(5, span, 0.4);
    let mut awake = 0;
    for shot in 1..=SHOTS {
        let delay = instants.pick();
        let what = format!("shot {shot} of {SHOTS}, SIGKILL after {delay:?} of {:?}", instants.span);
        let before = target.counters()?;
        let mut running = Running::start(resume(workshop, &target), &target.subject.folder, "resume")?;
        std::thread::sleep(delay);
        running.child.kill().context("killing resume")?;
        running.child.wait().context("waiting for resume")?;
        let late = nothing_or_whole(&target, before).context(what)?;
        instants.learn(late);
        awake += u32::from(late);
    }
    println!(
        "         {awake} of {SHOTS} programs were awake already and ran to their end (it takes {span:.1?} to wake)"
    );
    target.subject.resume_and_pass(workshop, &["--on-changed", "as-is"]).context("undisturbed at the end")?;
    process::nothing_left(&[], SOON)
}

fn resume(workshop: &Workshop, target: &Target) -> Command {
    let mut command = target.subject.resume_command(workshop);
    command.args(["--on-changed", "as-is"]);
    command
}

/// Median time from the start of `resume` until the program counts on.
fn measure_resume(workshop: &Workshop, target: &Target) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..5 {
        target.subject.rewind()?;
        let before = target.counters()?;
        let begun = Instant::now();
        let running = Running::start(resume(workshop, target), &target.subject.folder, "resume")?;
        let counts = process::await_some(PATIENCE, || target.counters().ok().filter(|now| *now != before));
        times.push(begun.elapsed());
        target.subject.go()?;
        let ended = running.finish(PATIENCE)?;
        ensure!(counts.is_some(), "the resumed program does not count");
        target.subject.expect_pass(ended.status, &ended.errors).context("measuring resume")?;
    }
    target.subject.rewind()?;
    times.sort();
    Ok(times[2])
}

/// After `resume` died there is no process of the program, or all of it, running to its end.
fn nothing_or_whole(target: &Target, before: [u64; COUNTERS]) -> Result<bool> {
    let (me, pid) = (std::process::id(), target.subject.pid());
    let whole = || {
        let threads = process::threads_of_tree(pid);
        let ended = if target.kind == Kind::Tree { "" } else { "ZX" };
        threads.len() == target.threads
            && threads.iter().all(|thread| {
                thread.tracer == 0 && !"tT".contains(thread.state) && !ended.contains(thread.state)
            })
    };
    let settled = process::await_some(SOON, || {
        process::reap_all(&process::children(me));
        let left = process::children(me);
        (left.is_empty() || (left == [pid] && whole())).then_some(left)
    });
    match settled.as_deref() {
        None => {
            let threads = process::threads_of_tree(pid);
            process::nothing_left(&[], Duration::ZERO).with_context(|| format!("half alive: {threads:?}"))?;
            bail!("half alive: {threads:?}")
        }
        Some([]) => Ok(false),
        Some(_) => runs_to_its_end(target, &before),
    }
}

/// Whether the program runs to its end; false if it was only looked at while it was dying with `resume`, having done nothing.
fn runs_to_its_end(target: &Target, before: &[u64]) -> Result<bool> {
    let pid = target.subject.pid();
    let awake = target.goes_on();
    let never_ran = target.counters()? == before;
    target.subject.go()?;
    let code = process::await_some(SOON, || process::reap(pid));
    let tree = target.kind == Kind::Tree;
    process::nothing_left(&[], if tree { SOON } else { Duration::ZERO })?;
    // A tree some of which was let go before `resume` died is killed whole, by a process that this leaves behind for a moment.
    if (never_ran || tree) && code == Some(KILLED) {
        target.subject.rewind()?;
        return Ok(false);
    }
    awake?;
    let said = target.subject.said();
    ensure!(
        code == Some(0) && said == PASSED,
        "the program left behind ended with {code:?} and said {said:?}"
    );
    target.subject.rewind()?;
    Ok(true)
}
