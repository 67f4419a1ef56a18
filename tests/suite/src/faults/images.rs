//! Images that are broken, and hosts that are in the way: `verify` finds any flipped bit, `resume` ends with 125,
//! says why and leaves nothing.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process::{self, PATIENCE, Running};
use crate::random::Random;
use crate::report::{Report, Skip};
use crate::subject::Subject;
use crate::workshop::Workshop;

const SOON: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);
/// Bits flipped, one at a time, that `verify` must find.
const FLIPS: u32 = 2000;
/// Instants at which the process is killed that `resume` is making.
const KILLS: u32 = 40;
/// Wake-ups in which those are killed that help to fill memory, and how many must be hit at least.
const HELPERS: u32 = 12;
const HITS: u32 = 3;
/// Bits flipped that `resume` must refuse.
const RESUME_FLIPS: u32 = 100;

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test(&format!("verify finds each of {FLIPS} flipped bits"), || verify_flips(workshop));
    report.test(&format!("resume refuses each of {RESUME_FLIPS} images with a flipped bit"), || {
        resume_flips(workshop)
    });
    report.test("resume refuses truncated images", || truncated(workshop));
    report.test("resume refuses an image whose file is missing", || missing_file(workshop));
    report.test("resume of a folder that is no image", || no_image(workshop));
    report.test("resume while the pid is taken", || pid_taken(workshop));
    report.test(&format!("SIGKILL to the new process at {KILLS} instants of its making"), || {
        killed_while_made(workshop)
    });
    report.test(&format!("SIGKILL to {HELPERS} helpers that fill memory"), || helpers_killed(workshop));
    report.test("resume after a file changed", || file_changed(workshop));
    for how in ["replaced", "overwritten"] {
        report.test(&format!("resume, the executable was {how}: --files 3 has it"), || {
            executable_upgraded(workshop, how)
        });
    }
    report.test("resume, a library opened by the program was replaced: --files 3 has it", || {
        library_upgraded(workshop)
    });
    report.test("resume after a file was deleted", || file_deleted(workshop));
    report.test("resume passes on SIGTERM and ends as the program does", || passes_on_sigterm(workshop));
}

/// A program captured and killed.
fn captured(workshop: &Workshop, name: &str, program: &str, arguments: &[&str]) -> Result<Subject> {
    let mut subject = Subject::start(&workshop.compile(program, &[])?, arguments, prepared(workshop, name)?)?;
    subject.save_and_kill(workshop)?;
    Ok(subject)
}

fn prepared(workshop: &Workshop, name: &str) -> Result<PathBuf> {
    let folder = workshop.folder(name)?;
    fs::write(folder.join("input"), "something to read\n")?;
    Ok(folder)
}

/// `resume` says so and leaves nothing, or the program was awake already and `resume` ends as it did. It never hangs, though the
/// threads it traces have to be waited for one by one.
fn killed_while_made(workshop: &Workshop) -> Result<()> {
    let subject = captured(workshop, "killed-while-made", "threads", &["300"])?;
    let mut unfinished = 0;
    for shot in 0..KILLS {
        let running = Running::start(subject.resume_command(workshop), &subject.folder, "resume")?;
        process::await_some(SOON, || process::glimpse(subject.pid())).context("no new process")?;
        std::thread::sleep(Duration::from_millis(1) * shot);
        process::signal(subject.pid(), rustix::process::Signal::KILL);
        let finished = running.finish(SOON).with_context(|| format!("shot {shot}: resume"))?;
        let failed = finished.status.code() == Some(125);
        ensure!(
            failed || finished.status.signal() == Some(9),
            "shot {shot}: resume: {}",
            process::describe(finished.status)
        );
        unfinished += u32::from(failed);
        process::nothing_left(&[], SOON).with_context(|| format!("shot {shot}"))?;
    }
    ensure!(unfinished > 0, "every process was complete before it was killed");
    subject.resume_and_pass(workshop, &[]).context("undisturbed at the end")
}

/// The children that a process which is being made has.
fn helpers(pid: u32) -> Vec<u32> {
    let told = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    told.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn helpers_killed(workshop: &Workshop) -> Result<()> {
    if std::thread::available_parallelism()?.get() == 1 {
        return Err(Skip("one processor has no helpers".to_owned()).into());
    }
    let subject = captured(workshop, "helpers-killed", "mem_large", &["128"])?;
    let mut hits = 0;
    for shot in 0..HELPERS {
        let running = Running::start(subject.resume_command(workshop), &subject.folder, "resume")?;
        // They work for some milliseconds only: who pauses between two looks misses them.
        let begun = Instant::now();
        let shot_at = loop {
            let found = helpers(subject.pid());
            if !found.is_empty() || begun.elapsed() > SOON {
                break found;
            }
        };
        shot_at.iter().for_each(|pid| process::signal(*pid, rustix::process::Signal::KILL));
        let failed = process::await_some(SECOND, || process::glimpse(subject.pid()).is_none().then_some(()));
        if failed.is_none() {
            process::signal(subject.pid(), rustix::process::Signal::KILL);
        }
        let finished = running.finish(SOON).with_context(|| format!("shot {shot}: resume"))?;
        if failed.is_some() {
            finished.expect_code("resume", 125)?;
            hits += 1;
        }
        process::nothing_left(&[], SOON).with_context(|| format!("shot {shot}"))?;
    }
    ensure!(hits >= HITS, "only {hits} of {HELPERS} were hit at work");
    subject.resume_and_pass(workshop, &[]).context("undisturbed at the end")
}

fn files(image: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(image)?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    ensure!(!files.is_empty(), "the image is empty");
    Ok(files)
}

/// Flips one bit, lets `check` look, flips it back. The small file of records is hit as often as the large ones.
fn flip(random: &mut Random, files: &[PathBuf], check: impl FnOnce() -> Result<()>) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let path = &files[usize::try_from(random.below(files.len().try_into()?))?];
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let (offset, bit) = (random.below(file.metadata()?.len()), random.below(8));
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ (1 << bit)], offset)?;
    let result = check().with_context(|| format!("bit {bit} of byte {offset} of {}", path.display()));
    file.write_all_at(&byte, offset)?;
    result
}

fn verify(workshop: &Workshop, subject: &Subject, code: i32) -> Result<()> {
    let mut command = workshop.command(["verify"]);
    command.arg(subject.image());
    process::run(command, &subject.folder, "verify")?.expect_code("verify", code)
}

fn verify_flips(workshop: &Workshop) -> Result<()> {
    let subject = captured(workshop, "verify-flips", "busy", &["1"])?;
    let (mut random, files) = (Random::new(6), files(&subject.image())?);
    verify(workshop, &subject, 0).context("the image as it was written")?;
    for _ in 0..FLIPS {
        flip(&mut random, &files, || verify(workshop, &subject, 1))?;
    }
    verify(workshop, &subject, 0).context("with every bit back")
}

/// Resuming fails with 125 and these words, and leaves no process.
fn refuses(workshop: &Workshop, subject: &Subject, words: &[&str]) -> Result<()> {
    let ended = subject.resume(workshop)?;
    ended.expect_code("resume", 125)?;
    ended.expect_words("resume", words)?;
    process::nothing_left(&[], SOON)
}

fn resume_flips(workshop: &Workshop) -> Result<()> {
    let subject = captured(workshop, "resume-flips", "busy", &["1"])?;
    let (mut random, files) = (Random::new(7), files(&subject.image())?);
    for _ in 0..RESUME_FLIPS {
        flip(&mut random, &files, || {
            refuses(
                workshop,
                &subject,
                &["checksum|not a rewake image|made by a newer rewake|records:|header"],
            )
        })?;
    }
    subject.resume_and_pass(workshop, &["--on-changed", "as-is"]).context("with every bit back")
}

fn truncated(workshop: &Workshop) -> Result<()> {
    let subject = captured(workshop, "truncated", "busy", &["1"])?;
    for path in files(&subject.image())? {
        let whole = fs::read(&path)?;
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..length])?;
            refuses(workshop, &subject, &["truncated|not a rewake image|too short|ends|bytes"])
                .with_context(|| format!("{} cut to {length} bytes", path.display()))?;
        }
        fs::write(&path, &whole)?;
    }
    subject.resume_and_pass(workshop, &["--on-changed", "as-is"]).context("whole again")
}

fn missing_file(workshop: &Workshop) -> Result<()> {
    let subject = captured(workshop, "missing-file", "busy", &["1"])?;
    for path in files(&subject.image())? {
        let aside = subject.folder.join("aside");
        fs::rename(&path, &aside)?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        refuses(workshop, &subject, &["no such file|it has no file", name])?;
        fs::rename(&aside, &path)?;
    }
    Ok(())
}

fn no_image(workshop: &Workshop) -> Result<()> {
    let subject = captured(workshop, "no-image", "busy", &["1"])?;
    fs::remove_dir_all(subject.image())?;
    refuses(workshop, &subject, &["no such directory"])?;
    fs::create_dir(subject.image())?;
    refuses(workshop, &subject, &["no complete image in this store"])
}

fn pid_taken(workshop: &Workshop) -> Result<()> {
    let mut subject =
        Subject::start(&workshop.compile("busy", &[])?, &["1"], prepared(workshop, "pid-taken")?)?;
    subject.save(workshop)?;
    let mut command = subject.resume_command(workshop);
    command.args(["--on-changed", "as-is"]);
    let ended = process::run(command, &subject.folder, "resume")?;
    ended.expect_code("resume", 125)?;
    ended.expect_words("resume", &[&subject.pid().to_string()])?;
    subject.pass().context("the program that has the pid")?;
    process::nothing_left(&[], SOON)
}

fn file_changed(workshop: &Workshop) -> Result<()> {
    let subject = captured(workshop, "file-changed", "refused", &["reading"])?;
    let input = subject.folder.join("input");
    fs::write(&input, "something else, and longer\n")?;
    refuses(workshop, &subject, &[&input.display().to_string()])?;
    let plan = |options: &[&str]| {
        let mut command = subject.resume_command(workshop);
        command.arg("--plan").args(options);
        process::run(command, &subject.folder, "resume")
    };
    let refused = plan(&[])?;
    refused.expect_code("resume --plan", 125)?;
    refused.expect_words("resume --plan", &[&input.display().to_string()])?;
    plan(&["--on-changed", "as-is"])?.expect_code("resume --plan", 0)?;
    subject.resume_and_pass(workshop, &["--on-changed", "as-is"]).context("as it is")
}

/// The program is upgraded on the disk while it is away: a self-contained image has the one it ran, another image says what is missing.
fn executable_upgraded(workshop: &Workshop, how: &str) -> Result<()> {
    let compiled = workshop.compile("busy", &[])?;
    for level in ["3", "1"] {
        let folder = prepared(workshop, &format!("upgraded-{how}-{level}"))?;
        let program = folder.join("program");
        fs::copy(&compiled, &program)?;
        let mut subject = Subject::start(&program, &["1"], folder)?;
        let mut save = workshop.command(["save", "-p", &subject.pid().to_string(), "--files", level]);
        save.args(["--kill", "-d"]).arg(subject.image());
        process::run(save, &subject.folder, "save")?.expect_code("save", 0)?;
        subject.wait_for_end()?;
        let other = workshop.compile("pause", &[])?;
        if how == "replaced" {
            fs::copy(&other, subject.folder.join("new"))?;
            fs::rename(subject.folder.join("new"), &program)?;
        } else {
            fs::write(&program, fs::read(&other)?)?;
        }
        if level == "3" {
            subject.resume_and_pass(workshop, &["-o"]).context("self-contained")?;
        } else {
            refuses(workshop, &subject, &[&program.display().to_string()])?;
        }
    }
    Ok(())
}

/// The same for a library that the program has opened by itself.
fn library_upgraded(workshop: &Workshop) -> Result<()> {
    let ours = workshop.compile("answer", &["-shared", "-fPIC"])?;
    let other = workshop.compile("answer", &["-shared", "-fPIC", "-DANSWER=7"])?;
    for level in ["3", "1"] {
        let folder = prepared(workshop, &format!("library-upgraded-{level}"))?;
        let library = folder.join("libanswer.so");
        fs::copy(&ours, &library)?;
        let mut subject =
            Subject::start(&workshop.compile("mem_dlopen", &[])?, &[&library.display().to_string()], folder)?;
        let mut save = workshop.command(["save", "-p", &subject.pid().to_string(), "--files", level]);
        save.args(["--kill", "-d"]).arg(subject.image());
        process::run(save, &subject.folder, "save")?.expect_code("save", 0)?;
        subject.wait_for_end()?;
        fs::copy(&other, subject.folder.join("new"))?;
        fs::rename(subject.folder.join("new"), &library)?;
        if level == "3" {
            subject.resume_and_pass(workshop, &["-o"]).context("self-contained")?;
        } else {
            refuses(workshop, &subject, &[&library.display().to_string()])?;
        }
    }
    Ok(())
}

fn file_deleted(workshop: &Workshop) -> Result<()> {
    let subject = captured(workshop, "file-deleted", "refused", &["reading"])?;
    let input = subject.folder.join("input");
    fs::remove_file(&input)?;
    refuses(workshop, &subject, &[&input.display().to_string()])
}

fn passes_on_sigterm(workshop: &Workshop) -> Result<()> {
    use std::os::unix::process::ExitStatusExt;
    let subject = captured(workshop, "passes-on", "refused", &["reading"])?;
    let running = Running::start(subject.resume_command(workshop), &subject.folder, "resume")?;
    let awake = process::await_some(SOON, || {
        process::glimpse(subject.pid()).filter(|seen| seen.state == 'S' && seen.tracer == 0)
    });
    std::thread::sleep(Duration::from_millis(50));
    process::signal(running.child.id(), rustix::process::Signal::TERM);
    let ended = running.finish(PATIENCE)?;
    ensure!(awake.is_some(), "the program never woke");
    ensure!(ended.status.signal() == Some(15), "resume ended with {}", process::describe(ended.status));
    ensure!(process::glimpse(subject.pid()).is_none(), "the program is still there");
    process::nothing_left(&[], SOON)
}
