//! `resume -o`: the files that the program was writing go back with its memory, all or none, whatever dies when.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use super::refusals::Mounted;
use crate::process::{self, Finished, PATIENCE, Running};
use crate::random::Random;
use crate::report::Report;
use crate::subject::Subject;
use crate::workshop::Workshop;

/// Instants at which `resume -o` is killed.
const SHOTS: u32 = 200;
/// Instants at which it is asked to end.
const POLITE_SHOTS: u32 = 40;
const SOON: Duration = Duration::from_secs(10);
/// Bytes of `log` in the end.
const WHOLE_LOG: u64 = 1200 * 600;
/// Files that the program writes.
const WRITTEN: [&str; 2] = ["log", "state"];

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test("resume -o: the files end as without interruption", || ends_as_uninterrupted(workshop));
    report.test("changed files are refused by name, with the remedies", || refused_by_default(workshop));
    report.test("resume -o: files shrunk, grown, deleted, replaced since", || whatever_happened(workshop));
    report.test("resume -o: a file that another writes to is refused", || open_elsewhere(workshop));
    report.test("resume -o: a full disk changes nothing", || full_disk(workshop));
    report.test("resume -o: a failure later on undoes the files", || later_failure(workshop));
    report.test("a changed input is left alone, its saved content used", || changed_input(workshop));
    report.test("--files 0: the remedy says that there is no content", || no_contents(workshop));
    report.test(&format!("resume -o: SIGTERM at {POLITE_SHOTS} instants undoes at once"), || {
        shoot(workshop, "putback-term", Signal::TERM, POLITE_SHOTS)
    });
    report.test(&format!("resume -o: SIGKILL at {SHOTS} instants, then any command"), || {
        shoot(workshop, "putback-kill", Signal::KILL, SHOTS)
    });
}

/// All that must be as before, or as saved.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    bytes: Vec<u8>,
    mtime: (i64, i64),
    mode: u32,
}

impl Facts {
    fn of(path: &Path) -> Result<Self> {
        let facts = fs::metadata(path).with_context(|| path.display().to_string())?;
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        Ok(Facts { bytes, mtime: (facts.mtime(), facts.mtime_nsec()), mode: facts.mode() })
    }

    /// Makes the file at `path` this again, in place.
    fn write(&self, path: &Path) -> Result<()> {
        let file = File::options().write(true).open(path).with_context(|| path.display().to_string())?;
        file.write_all_at(&self.bytes, 0)?;
        file.set_len(self.bytes.len().try_into()?)?;
        let (seconds, nanoseconds) = (u64::try_from(self.mtime.0)?, u32::try_from(self.mtime.1)?);
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds))?;
        Ok(())
    }
}

/// The program was captured at its 200th step, ran on to its last one and was killed.
struct Bench {
    subject: Subject,
    image: PathBuf,
    saved: Vec<Facts>,
    after: Vec<Facts>,
}

impl Bench {
    fn new(workshop: &Workshop, name: &str, level: &str) -> Result<Self> {
        Self::with_image(workshop, name, level, |folder| Ok(folder.join("image")))
    }

    fn with_image(
        workshop: &Workshop,
        name: &str,
        level: &str,
        place: impl FnOnce(&Path) -> Result<PathBuf>,
    ) -> Result<Self> {
        let folder = workshop.folder(name)?;
        fs::write(folder.join("hold"), "")?;
        let input: Vec<u8> =
            (0..1000u32).map(|number| b'0' + u8::try_from(number % 10).unwrap_or(0)).collect();
        fs::write(folder.join("input"), input)?;
        let image = place(&folder)?;
        let mut subject = Subject::start(&workshop.compile("file_writer", &[])?, &[], folder)?;
        let mut save = workshop.command(["save", "-p", &subject.pid().to_string(), "--files", level, "-d"]);
        save.arg(&image);
        process::run(save, &subject.folder, "save")?.expect_code("save", 0)?;
        let folder = subject.folder.clone();
        let all = |folder: &Path| {
            WRITTEN.iter().map(|name| Facts::of(&folder.join(name))).collect::<Result<Vec<_>>>()
        };
        let saved = all(&folder)?;
        fs::remove_file(folder.join("hold"))?;
        let whole = process::await_some(PATIENCE, || {
            fs::metadata(folder.join("log")).is_ok_and(|log| log.len() == WHOLE_LOG).then_some(())
        });
        whole.context("the program left running does not come to its end")?;
        // Its last step ends with the other file.
        std::thread::sleep(Duration::from_millis(50));
        subject.end();
        let after = all(&folder)?;
        ensure!(after != saved, "the program did not write");
        Ok(Bench { subject, image, saved, after })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.subject.folder.join(name)
    }

    fn now(&self) -> Result<Vec<Facts>> {
        WRITTEN.iter().map(|name| Facts::of(&self.path(name))).collect()
    }

    /// A command of the tool; what waits is noted in this test's folder.
    fn command(&self, workshop: &Workshop, arguments: &[&str]) -> Command {
        let mut command = workshop.command(arguments);
        command.env("XDG_STATE_HOME", self.path("state-of-rewake")).current_dir(&self.subject.folder);
        command
    }

    fn resume(&self, workshop: &Workshop, options: &[&str]) -> Command {
        let mut command = self.command(workshop, &["resume", "-d"]);
        command.arg(&self.image).args(options);
        command
    }

    /// `resume` fails with these words; the files are as they were, and no journal is left.
    fn refuses(&self, workshop: &Workshop, options: &[&str], words: &[&str]) -> Result<()> {
        let before = self.now()?;
        let ended = process::run(self.resume(workshop, options), &self.subject.folder, "resume")?;
        ended.expect_code("resume", 125)?;
        words.iter().try_for_each(|word| ended.expect_words("resume", &[word]))?;
        self.nothing_waits()?;
        ensure!(self.now()? == before, "a failed resume changed files");
        process::nothing_left(&[], SOON)
    }

    fn nothing_waits(&self) -> Result<()> {
        let entries = fs::read_dir(&self.image).context("the image")?.flatten();
        let left: Vec<_> = entries
            .map(|entry| entry.file_name())
            .filter(|name| name != "records" && name != "pages")
            .collect();
        ensure!(left.is_empty(), "left in the image: {left:?}");
        let waiting = fs::read_dir(self.path("state-of-rewake/rewake/pending"));
        let waiting = waiting.map_or(0, Iterator::count);
        ensure!(waiting == 0, "{waiting} links to journals are left");
        Ok(())
    }

    /// Resumes, lets the program come to its end, and compares its files with those it had come to before.
    fn resume_to_the_end(&self, workshop: &Workshop, options: &[&str]) -> Result<Finished> {
        self.finish(Running::start(self.resume(workshop, options), &self.subject.folder, "resume")?)
    }

    fn finish(&self, resumed: Running) -> Result<Finished> {
        if self.path("hold").exists() {
            fs::remove_file(self.path("hold"))?;
        }
        self.subject.go()?;
        let finished = resumed.finish(PATIENCE).context("resume -o")?;
        self.subject.expect_pass(finished.status, &finished.errors).context("resume -o")?;
        fs::remove_file(self.path("go"))?;
        for ((name, now), after) in WRITTEN.iter().zip(self.now()?).zip(&self.after) {
            let (now, after) = (&now.bytes, &after.bytes);
            let at = now.iter().zip(after).position(|(now, after)| now != after);
            ensure!(now == after, "{name}: {} bytes, not {}, other from {at:?} on", now.len(), after.len());
        }
        self.nothing_waits()?;
        Ok(finished)
    }
}

fn ends_as_uninterrupted(workshop: &Workshop) -> Result<()> {
    let bench = Bench::new(workshop, "putback", "1")?;
    let finished = bench.resume_to_the_end(workshop, &["-o"])?;
    finished.expect_words("resume -o", &["files put back"])?;
    bench.resume_to_the_end(workshop, &["--on-changed", "restore"]).context("once more").map(drop)
}

fn refused_by_default(workshop: &Workshop) -> Result<()> {
    let bench = Bench::new(workshop, "putback-refused", "1")?;
    let (log, state) = (bench.path("log"), bench.path("state"));
    let words = [&log.display().to_string(), &state.display().to_string(), "-o", "--on-changed as-is"];
    bench.refuses(workshop, &[], &words)
}

fn no_contents(workshop: &Workshop) -> Result<()> {
    let bench = Bench::new(workshop, "putback-none", "0")?;
    for options in [&[][..], &["-o"]] {
        bench.refuses(workshop, options, &["no contents", "--files 0", "--on-changed as-is"])?;
    }
    Ok(())
}

/// Does something to the file of that name.
type Deed = fn(&Path) -> Result<()>;

/// What somebody can do to the files while the program is not there.
const DEEDS: [(&str, Deed); 6] = [
    ("shrunk", |path| Ok(File::options().write(true).open(path)?.set_len(10)?)),
    ("emptied", |path| Ok(fs::write(path, "")?)),
    ("grown", |path| Ok(File::options().append(true).open(path)?.write_all(&[7; 3_000_001])?)),
    ("deleted", |path| Ok(fs::remove_file(path)?)),
    ("replaced", |path| {
        fs::write(path.with_extension("new"), "something else altogether")?;
        Ok(fs::rename(path.with_extension("new"), path)?)
    }),
    ("sparse", |path| {
        let file = File::create(path)?;
        Ok(file.set_len(1 << 40)?)
    }),
];

fn whatever_happened(workshop: &Workshop) -> Result<()> {
    let bench = Bench::new(workshop, "putback-changes", "1")?;
    for (what, deed) in DEEDS {
        for name in WRITTEN {
            deed(&bench.path(name)).context(what)?;
            bench.resume_to_the_end(workshop, &["-o"]).with_context(|| format!("{name} {what}"))?;
        }
    }
    Ok(())
}

fn open_elsewhere(workshop: &Workshop) -> Result<()> {
    let bench = Bench::new(workshop, "putback-busy", "1")?;
    let writer = File::options().append(true).open(bench.path("log"))?;
    let words =
        [&bench.path("log").display().to_string(), "open for writing", &std::process::id().to_string()];
    bench.refuses(workshop, &["-o"], &words)?;
    drop(writer);
    // A reader (`tail -f`) does no harm.
    let _reader = File::open(bench.path("log"))?;
    bench.resume_to_the_end(workshop, &["-o"]).map(drop)
}

/// The image's file system has no room for the journal.
fn full_disk(workshop: &Workshop) -> Result<()> {
    let mut mounted = None;
    let bench = Bench::with_image(workshop, "putback-full", "1", |folder| {
        let place = folder.join("small");
        fs::create_dir(&place)?;
        mounted = Some(Mounted::new(&["-t", "tmpfs", "-o", "size=16m", "tmpfs"], &place)?);
        Ok(place.join("image"))
    })?;
    let filler = bench.path("small/filler");
    let mut full = File::create(&filler)?;
    while full.write_all(&[0; 65536]).is_ok() {}
    full.set_len(full.metadata()?.len().saturating_sub(500_000))?;
    bench.refuses(workshop, &["-o"], &["space", "remedy"])?;
    drop(full);
    fs::remove_file(filler)?;
    bench.resume_to_the_end(workshop, &["-o"]).map(drop)
}

/// The id is taken: that shows when the files are back already.
fn later_failure(workshop: &Workshop) -> Result<()> {
    let bench = Bench::new(workshop, "putback-later", "1")?;
    fs::write(bench.path("hold"), "")?;
    let first =
        Running::start(bench.resume(workshop, &["--on-changed", "as-is"]), &bench.subject.folder, "first")?;
    let pid = bench.subject.pid();
    let awake = process::await_some(SOON, || {
        process::glimpse(pid).filter(|seen| seen.tracer == 0 && "RS".contains(seen.state))
    });
    awake.context("the program does not wake")?;
    std::thread::sleep(Duration::from_millis(100));
    // It is the program itself that has its files open for writing.
    let before = bench.now()?;
    let ended = process::run(bench.resume(workshop, &["-o"]), &bench.subject.folder, "resume")?;
    ended.expect_code("resume", 125)?;
    ended.expect_words("resume", &["open for writing"])?;
    ensure!(bench.now()? == before, "a failed resume changed files");
    process::signal(pid, Signal::KILL);
    first.finish(PATIENCE)?;
    process::nothing_left(&[], SOON)?;
    // Now a page that is read late is damaged: the failure comes when the files are back.
    let pages = File::options().read(true).write(true).open(bench.image.join("pages"))?;
    let damaged = || -> Result<u64> {
        let mut byte = [0];
        pages.read_exact_at(&mut byte, 0)?;
        pages.write_all_at(&[byte[0] ^ 1], 0)?;
        Ok(0)
    };
    damaged()?;
    bench.refuses(workshop, &["-o"], &["checksum"])?;
    damaged()?;
    bench.resume_to_the_end(workshop, &["-o"]).map(drop)
}

fn changed_input(workshop: &Workshop) -> Result<()> {
    let bench = Bench::new(workshop, "putback-input", "2")?;
    let other = "none of the digits that it was made of";
    fs::write(bench.path("input"), other)?;
    bench.resume_to_the_end(workshop, &["-o"])?.expect_words("resume -o", &["privately"])?;
    ensure!(fs::read_to_string(bench.path("input"))? == other, "the input was overwritten");
    fs::remove_file(bench.path("input"))?;
    bench.resume_to_the_end(workshop, &["-o"]).context("input gone")?;
    ensure!(!bench.path("input").exists(), "the input was made anew");
    Ok(())
}

/// What was found after a shot.
#[derive(Default)]
struct Tally {
    waited: u32,
    put_back: u32,
    awake: u32,
}

fn shoot(workshop: &Workshop, name: &str, signal: Signal, shots: u32) -> Result<()> {
    let bench = Bench::new(workshop, name, "1")?;
    fs::write(bench.path("hold"), "")?;
    let span = measure(workshop, &bench)?;
    let mut random = Random::new(11);
    let mut tally = Tally::default();
    for shot in 1..=shots {
        // Most of it is what happens to the files; the rest may take longer than measured.
        let delay = span.mul_f64(f64::from(u32::try_from(random.below(1150))?) / 1000.0);
        let what = || format!("shot {shot} of {shots}, after {delay:?} of {span:?}");
        shoot_once(workshop, &bench, signal, delay, &mut tally).with_context(what)?;
    }
    let Tally { waited, put_back, awake } = tally;
    println!(
        "         of {shots} shots: {waited} left files to undo, {put_back} came after the files were put back for good ({awake} programs were awake); it takes {span:.1?}"
    );
    ensure!(signal != Signal::KILL || waited > 0, "no shot found files to undo");
    bench.resume_to_the_end(workshop, &["-o"]).context("undisturbed at the end").map(drop)
}

/// Median time until the program goes on.
fn measure(workshop: &Workshop, bench: &Bench) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        let running = Running::start(bench.resume(workshop, &["-o"]), &bench.subject.folder, "resume")?;
        let awake = process::await_some(PATIENCE, || {
            process::glimpse(bench.subject.pid()).filter(|seen| seen.tracer == 0 && seen.state == 'S')
        });
        times.push(begun.elapsed());
        awake.context("the program does not wake")?;
        std::thread::sleep(Duration::from_millis(20));
        process::signal(bench.subject.pid(), Signal::KILL);
        running.finish(PATIENCE)?;
        ensure!(bench.now()? == bench.saved, "the files are not as they were at the capture");
        as_after(bench)?;
    }
    times.sort();
    Ok(times[2])
}

fn as_after(bench: &Bench) -> Result<()> {
    for (name, after) in WRITTEN.iter().zip(&bench.after) {
        after.write(&bench.path(name))?;
    }
    ensure!(bench.now()? == bench.after, "the test cannot make the files what they were");
    Ok(())
}

fn shoot_once(
    workshop: &Workshop,
    bench: &Bench,
    signal: Signal,
    delay: Duration,
    tally: &mut Tally,
) -> Result<()> {
    let mut running = Running::start(bench.resume(workshop, &["-o"]), &bench.subject.folder, "resume")?;
    std::thread::sleep(delay);
    let group = Pid::from_raw(running.child.id().try_into()?).context("its group")?;
    // It may have ended by itself; then that shows below.
    let _ = kill_process_group(group, signal);
    process::wait(&mut running.child, PATIENCE).context("resume does not end")?;
    tally.awake += u32::from(
        process::glimpse(bench.subject.pid()).is_some_and(|seen| seen.tracer == 0 && seen.state == 'S'),
    );
    process::signal(bench.subject.pid(), Signal::KILL);
    process::nothing_left(&[], SOON)?;
    let waits = bench.image.join("undo").exists();
    tally.waited += u32::from(waits);
    ensure!(!waits || signal == Signal::KILL, "a resume that could undo its files did not");
    if signal == Signal::KILL {
        let mut list = bench.command(workshop, &["list"]);
        let elsewhere = bench.path("elsewhere");
        fs::create_dir_all(&elsewhere)?;
        list.arg(&elsewhere).current_dir(&elsewhere);
        let listed = process::run(list, &bench.subject.folder, "list")?;
        listed.expect_code("list", 0)?;
        ensure!(
            !waits || listed.errors.contains("did not come to its end"),
            "list says nothing: {}",
            listed.errors
        );
    }
    let now = bench.now()?;
    if now == bench.saved {
        ensure!(!waits, "files were kept that wait to be undone");
        tally.put_back += 1;
        as_after(bench)?;
    } else if now != bench.after {
        let mix: Vec<_> = now
            .iter()
            .zip(&bench.saved)
            .zip(&bench.after)
            .map(|((now, saved), after)| (now == saved, now == after))
            .collect();
        bail!("neither as before nor put back; (as saved, as before) by file: {mix:?}");
    }
    if bench.image.join("undo.new").exists()
        && signal == Signal::KILL
        && !bench.path("state-of-rewake").exists()
    {
        // Killed before there was anything to find: the next command on the image clears it.
        return Ok(());
    }
    ensure!(!bench.image.join("undo").exists(), "a journal is left");
    Ok(())
}
