//! `ckpt` and `rewake run --preload`: answers, refusals, and whoever dies meanwhile.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::{Inside, Library, kill, numbers, temporaries, verified};
use crate::faults::linked::compile;
use crate::faults::refusals::Mounted;
use crate::process::{self, PATIENCE, Running};
use crate::report::Report;
use crate::subject::Subject;
use crate::workshop::Workshop;

const LONG: Duration = Duration::from_secs(20);
const STORE: &str = "directory store\n";
/// Enough work for somebody to die meanwhile.
const SLOW: &str = "directory store\ncompress zstd\nmode stop\n";
/// How often somebody dies at some instant.
const TIMES: u64 = 12;

pub(super) fn run(workshop: &Workshop, report: &mut Report, library: Library<'_>) {
    let mut test = |name: &str, test: &dyn Fn() -> Result<()>| {
        report.test(&format!("libckpt: {name}"), test);
    };
    test("ckpt waits for the image and prints its place", &|| asked(workshop, library));
    test("ckpt as an ordinary user", &|| asked(&workshop.as_user()?, library));
    test("ckpt by root of a user's program", &|| by_root(workshop, library));
    test("ckpt of a program of somebody else's", &|| by_others(workshop, library));
    test("ckpt leaves programs without the library alone", &|| left_alone(workshop));
    test("ckpt of a stopped program", &|| stopped(workshop, library));
    test("requests during a checkpoint are served after it", &|| several(workshop, library));
    test("store that is not there is made", &|| {
        Inside::start(workshop, library, "missing", "threads", "directory a/b/store\n")?.saved_in("a/b/store")
    });
    test("store that cannot be written", &|| unwritable(workshop, library));
    test("store that is full", &|| full(workshop, library));
    test("program that cannot be captured now", &|| unable(workshop, library));
    test("ckpt is killed meanwhile", &|| ckpt_dies(workshop, library));
    test("the program is killed meanwhile", &|| program_dies(workshop, library));
    test("the copy is killed meanwhile", &|| copy_dies(workshop, library));
    test("rewake run --preload", &|| preloaded(workshop, library));
    test("rewake run --preload of programs that take no library", &|| cannot_preload(workshop, library));
    test("ckpt of a program that becomes another one", &|| becomes_another(workshop, library));
    test("checkpoints at intervals, by its own wish and by ckpt", &|| all_ways(workshop, library));
}

impl Inside<'_> {
    fn saved_in(self, store: &str) -> Result<()> {
        self.ckpt(&[])?.expect_code("ckpt", 0)?;
        verified(self.workshop, &self.folder, &self.folder.join(store))?;
        self.recovers()
    }

    /// `ckpt`, in the background.
    fn asking(&self, label: &str) -> Result<Running> {
        let command = self.workshop.command(["ckpt", &self.subject.pid().to_string()]);
        Running::start(command, &self.folder, label)
    }
}

fn asked(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let inside = Inside::start(workshop, library, "asked", "threads", STORE)?;
    let finished = inside.saved()?;
    let place = inside.store().canonicalize()?.join("1");
    let first = format!("saved {}: ", place.display());
    ensure!(
        finished.output.starts_with(&first) && finished.output.contains(" paused "),
        "{}",
        finished.output
    );
    let finished = inside.ckpt(&["--json"])?;
    finished.expect_code("ckpt", 0)?;
    let size: u64 = ["records", "pages"]
        .iter()
        .map(|file| fs::metadata(place.join(file)).map_or(0, |data| data.len()))
        .sum();
    for part in ["\"image\":\"", "store/2\"", "\"paused_ms\":", &format!("\"pid\":{}", inside.subject.pid())]
    {
        ensure!(finished.output.contains(part), "{} has no {part}", finished.output);
    }
    let told = finished.output.split_once("\"image_bytes\":").and_then(|(_, rest)| rest.split(',').next());
    let told: u64 = told.context("size")?.parse()?;
    ensure!(told.abs_diff(size) < size / 2, "{told} bytes of some {size}");
    ensure!(
        inside.errors().is_empty(),
        "the program's own error stream is not for this: {}",
        inside.errors()
    );
    inside.recovers()
}

fn by_root(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let user = workshop.as_user()?;
    let inside = Inside::start(&user, library, "by-root", "threads", STORE)?;
    let command = workshop.command(["ckpt", &inside.subject.pid().to_string()]);
    process::run(command, &inside.folder, "root")?.expect_code("ckpt", 0)?;
    inside.recovers()
}

fn by_others(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let user = workshop.as_user()?;
    let mut inside = Inside::start(workshop, library, "by-others", "threads", STORE)?;
    let command = user.command(["ckpt", &inside.subject.pid().to_string()]);
    let finished = process::run(command, &user.folder("by-others")?, "others")?;
    finished.expect_code("ckpt", 1)?;
    finished.expect_words("ckpt", &["owner of the process"])?;
    ensure!(numbers(&inside.store()).is_empty(), "there is an image");
    inside.subject.pass()
}

fn left_alone(workshop: &Workshop) -> Result<()> {
    // The second has a handler for the signal, but not the library's.
    for (name, arguments) in [("threads", &[][..]), ("signal_actions", &[][..])] {
        let program = workshop.compile(name, &[])?;
        let mut subject = Subject::start(&program, arguments, workshop.folder(&format!("alone-{name}"))?)?;
        let command = workshop.command(["ckpt", &subject.pid().to_string()]);
        let finished = process::run(command, &subject.folder, "ckpt")?;
        finished.expect_code("ckpt", 1)?;
        finished.expect_words("ckpt", &["no libckpt inside", "left alone", "chkpnt -p"])?;
        subject.pass()?;
    }
    let command = workshop.command(["ckpt", "4194304"]);
    let finished = process::run(command, &workshop.folder("alone-gone")?, "ckpt")?;
    finished.expect_code("ckpt", 1)?;
    finished.expect_words("ckpt", &["no such process"])
}

fn stopped(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let mut inside = Inside::start(workshop, library, "stopped", "threads", STORE)?;
    process::signal(inside.subject.pid(), Signal::STOP);
    inside.subject.await_stop()?;
    let finished = inside.ckpt(&[])?;
    process::signal(inside.subject.pid(), Signal::CONT);
    finished.expect_code("ckpt", 1)?;
    finished.expect_words("ckpt", &["it is stopped", "kill -CONT"])?;
    ensure!(numbers(&inside.store()).is_empty(), "there is an image");
    inside.subject.pass()
}

fn several(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    for mode in ["stop", "fork"] {
        let lines = format!("{SLOW}mode {mode}\n");
        let inside = Inside::start(workshop, library, &format!("several-{mode}"), "busy 48", &lines)?;
        let asking = (0..4).map(|at| inside.asking(&format!("ckpt{at}"))).collect::<Result<Vec<_>>>()?;
        kill(34, inside.subject.pid())?;
        let mut places = Vec::new();
        for (at, one) in asking.into_iter().enumerate() {
            let finished = one.finish(PATIENCE)?;
            finished.expect_code(&format!("ckpt {at}"), 0)?;
            places.push(finished.output.split(": ").next().unwrap_or_default().to_owned());
        }
        places.sort();
        places.dedup();
        ensure!(places.len() == 4, "each has an image of its own: {places:?}");
        // The signal that nobody waits for is served by any image that was begun after it; else there is a fifth.
        inside.await_images(4, LONG)?;
        ensure!(inside.errors().is_empty(), "{}", inside.errors());
        for number in numbers(&inside.store()) {
            verified(workshop, &inside.folder, &inside.store().join(number.to_string()))?;
        }
        inside.recovers()?;
    }
    Ok(())
}

fn unwritable(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let user = workshop.as_user()?;
    let inside = Inside::start(&user, library, "unwritable", "busy", STORE)?;
    // Made by root, for root.
    fs::create_dir(inside.store())?;
    let store = inside.store();
    inside.refused(&store, &["Permission denied"])
}

fn full(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let inside = Inside::start(workshop, library, "full", "busy 32", STORE)?;
    fs::create_dir(inside.store())?;
    let _mounted = Mounted::new(&["-t", "tmpfs", "-o", "size=4m", "tmpfs"], &inside.store())?;
    kill(34, inside.subject.pid())?;
    let said = process::await_some(LONG, || inside.errors().contains("space").then_some(()));
    said.with_context(|| format!("kill -34: {}", inside.errors()))?;
    let store = inside.store();
    inside.refused(&store, &["No space left"])
}

fn unable(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let inside = Inside::start(workshop, library, "unable", "refused socket", STORE)?;
    let store = inside.store();
    inside.refused(&store, &["socket"])
}

/// Ends somebody at another instant each time; whatever happens, the program goes on and no image is broken.
fn ckpt_dies(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let inside = Inside::start(workshop, library, "ckpt-dies", "busy 16", SLOW)?;
    for at in 0..TIMES {
        let mut asking = inside.asking("dying")?;
        std::thread::sleep(Duration::from_millis(at * 4));
        asking.child.kill()?;
        asking.child.wait()?;
    }
    inside.saved()?;
    for number in numbers(&inside.store()) {
        verified(workshop, &inside.folder, &inside.store().join(number.to_string()))?;
    }
    inside.recovers()
}

fn program_dies(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    for at in 0..TIMES {
        let mut inside = Inside::start(workshop, library, "program-dies", "busy 16", SLOW)?;
        let asking = inside.asking("ckpt")?;
        std::thread::sleep(Duration::from_millis(at * 8));
        process::signal(inside.subject.pid(), Signal::KILL);
        inside.subject.wait_for_end()?;
        let finished = asking.finish(PATIENCE).context("ckpt")?;
        match finished.status.code() {
            Some(0) => verified(workshop, &inside.folder, &inside.store())?,
            Some(1) => {
                finished.expect_words("ckpt", &["ended|gone|no such process|killed"])?;
                ensure!(numbers(&inside.store()).is_empty(), "it failed, but there is an image");
            }
            _ => bail!("ckpt: {} {}", process::describe(finished.status), finished.errors),
        }
        let clean = || temporaries(&inside.store()).is_empty().then_some(());
        process::await_some(LONG, clean).context("something is left of an image")?;
    }
    Ok(())
}

/// The process that writes, and in mode fork the one that keeps the memory.
fn copy_dies(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let mut killed = 0;
    for mode in ["stop", "fork"] {
        let lines = format!("{SLOW}mode {mode}\n");
        let inside = Inside::start(workshop, library, &format!("copy-dies-{mode}"), "busy 64", &lines)?;
        for at in 0..TIMES {
            let asking = inside.asking("ckpt")?;
            let copy = process::await_some(LONG, || copies(&inside.library).into_iter().next());
            std::thread::sleep(Duration::from_millis(at * 5));
            if let Some(copy) = copy {
                process::signal(copy, Signal::KILL);
            }
            let finished = asking.finish(PATIENCE).context("ckpt")?;
            if finished.status.code() != Some(0) {
                finished.expect_code("ckpt", 1)?;
                finished.expect_words("ckpt", &["ended before|read failed|gone"])?;
                killed += 1;
            }
        }
        inside.saved()?;
        ensure!(temporaries(&inside.store()).is_empty(), "something is left of an image");
        for number in numbers(&inside.store()) {
            verified(workshop, &inside.folder, &inside.store().join(number.to_string()))?;
        }
        inside.recovers()?;
    }
    ensure!(killed > TIMES / 2, "the copy was killed in time only {killed} times");
    Ok(())
}

/// Copies of programs that write images, of those with this library.
fn copies(library: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let read = |pid: u32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let library = library.display().to_string();
    pids.filter(|pid| read(*pid, "comm").trim() == "rewake-ckpt" && read(*pid, "maps").contains(&library))
        .collect()
}

fn preloaded(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let folder = workshop.folder("preloaded")?;
    let run = |rewake: &Path, library: Option<&Path>, words: &[&str]| {
        let mut command = workshop.program(rewake);
        command.args(["run", "--preload", "--"]).args(words).current_dir(&folder).env_remove("LD_PRELOAD");
        match library {
            Some(library) => command.env("REWAKE_LIBCKPT", library),
            None => command.env_remove("REWAKE_LIBCKPT"),
        };
        process::run(command, &folder, "run")
    };
    let library = library()?;
    // The library beside the binary, in ../lib/rewake, or where somebody says.
    let rewake = folder.join("bin/rewake");
    fs::create_dir_all(folder.join("bin"))?;
    fs::copy(workshop.rewake(), &rewake)?;
    let words = ["sh", "-c", "grep -q /memfd:rewake-ckpt-34 /proc/$$/maps && exit 7"];
    run(&rewake, Some(&library), &words)?.expect_code("named", 7)?;
    let finished = run(&rewake, None, &words)?;
    finished.expect_code("nowhere", 125)?;
    finished.expect_words("nowhere", &["there is no libckpt.so", "REWAKE_LIBCKPT"])?;
    let place: PathBuf = folder.join("lib/rewake");
    fs::create_dir_all(&place)?;
    symlink(&library, place.join("libckpt.so"))?;
    run(&rewake, None, &words)?.expect_code("in ../lib/rewake", 7)?;
    fs::remove_dir_all(folder.join("lib"))?;
    symlink(&library, folder.join("bin/libckpt.so"))?;
    run(&rewake, None, &words)?.expect_code("beside it", 7)?;
    run(&rewake, Some(Path::new("/nowhere.so")), &words)?.expect_code("a wrong name", 125)?;
    run(&rewake, None, &["./not-there"])?.expect_code("no such program", 127)?;
    run(&rewake, None, &["/"])?.expect_code("no program", 126)
}

/// It is told before it starts; as the image of nothing it is not started.
fn cannot_preload(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let folder = workshop.folder("cannot-preload")?;
    let library = library()?;
    let run = |words: &[&str]| {
        let mut command = workshop.command(["run", "--preload", "--"]);
        command.args(words).current_dir(&folder).env_remove("LD_PRELOAD").env("REWAKE_LIBCKPT", &library);
        command.env("PATH", format!("{}:/usr/bin:/bin", folder.display()));
        process::run(command, &folder, "run")
    };
    fs::write(folder.join("plain.c"), "int main(void) { return 5; }\n")?;
    compile(&folder, "gcc -static -o plain plain.c")?;
    compile(&folder, "gcc -static-pie -o pie plain.c")?;
    compile(&folder, "gcc -o others plain.c")?;
    fs::write(folder.join("script"), format!("#!{}/plain -x\n", folder.display()))?;
    fs::set_permissions(folder.join("script"), fs::Permissions::from_mode(0o755))?;
    chown(folder.join("others"), Some(12_345), None)?;
    fs::set_permissions(folder.join("others"), fs::Permissions::from_mode(0o4755))?;
    let told = [
        ("./plain", "plain is linked statically"),
        ("plain", "plain is linked statically"),
        ("./pie", "pie is linked statically"),
        ("./script", "plain is linked statically"),
        ("./others", "rights that you do not have"),
    ];
    for (program, words) in told {
        let ended = run(&[program])?;
        ended.expect_code(program, 5)?;
        ended.expect_words(program, &["without checkpoints", words, "chkpnt"])?;
        for recover in [&["=recover"][..], &["=", "recover"]] {
            let ended = run(&[&[program], recover].concat())?;
            ended.expect_code("=recover", 125)?;
            ended.expect_words("=recover", &[words])?;
        }
    }
    for program in ["sh", "/bin/sh"] {
        let ended = run(&[program, "-c", "exit 4"])?;
        ended.expect_code(program, 4)?;
        ensure!(ended.errors.is_empty(), "{}", ended.errors);
    }
    Ok(())
}

/// Who asked while it was about to is told; the other program is left alone.
fn becomes_another(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let mut inside = Inside::start(workshop, library, "becomes", "moments section", STORE)?;
    let asking = inside.asking("ckpt")?;
    std::thread::sleep(Duration::from_millis(300));
    inside.subject.go()?;
    let finished = asking.finish(LONG)?;
    finished.expect_code("ckpt", 1)?;
    finished.expect_words("ckpt", &["became another program"])?;
    let status = inside.subject.wait_for_end()?;
    ensure!(status.success(), "the other program ended with {}", process::describe(status));
    ensure!(numbers(&inside.store()).is_empty(), "there is an image");
    Ok(())
}

fn all_ways(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let lines = format!("{STORE}interval 1s\nkeep 3\n");
    let inside = Inside::start(workshop, library, "all-ways", "moments here", &lines)?;
    let begun = std::time::Instant::now();
    let mut answers = 0;
    while begun.elapsed() < Duration::from_millis(3500) {
        inside.ckpt(&[])?.expect_code("ckpt", 0)?;
        kill(34, inside.subject.pid())?;
        answers += 1;
    }
    inside.saved()?;
    let made = numbers(&inside.store());
    ensure!(made.last().is_some_and(|last| *last > 2 * answers), "{made:?} after {answers} answers");
    ensure!(inside.errors().is_empty(), "{}", inside.errors());
    inside.recovers()
}
