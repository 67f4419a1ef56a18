//! What is set in `.ckptrc` and in the environment, end to end; and what is wrong in there.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Inside, Library, close, kill, numbers};
use crate::process;
use crate::report::Report;
use crate::workshop::Workshop;

const LONG: Duration = Duration::from_secs(20);
const MEBIBYTE: u64 = 1 << 20;
/// The store of these tests, and a word on every checkpoint.
const STORE: &str = "directory store\nverbose on\n";

/// Programs that wait: checkpoints at intervals must not be seen by them.
const WAITS: &[&str] =
    &["blocked nanosleep", "blocked poll_timeout", "blocked cond_timed", "blocked epoll_timeout", "threads"];
/// Memory that a copy of a process does not have as it was, or that others write.
const MEMORIES: &[&str] = &[
    "busy 24",
    "mem_advice dontfork",
    "mem_advice wipeonfork",
    "mem_shared_anon",
    "mem_file_shared",
    "mem_private",
    "holes",
    "tls",
    "mem_dlopen",
    "threads",
    "memfd",
];

/// Lines that say nothing, and words of what is said about them.
const WRONG: &[(&str, &[&str])] = &[
    ("directori x", &["line 2", "no setting 'directori'", "store_files_level"]),
    ("keep many", &["line 2", "'many' is no value of keep", "it stays all"]),
    ("interval 3 weeks", &["line 2", "no value of interval"]),
    ("store_files_level 4", &["line 2", "0, 1, 2 or 3"]),
    ("signal 9", &["line 2", "34 to 64"]),
    ("compress rar", &["line 2", "zstd, lz4 or none"]),
    ("mode both", &["line 2", "stop or fork"]),
    ("verbose perhaps", &["line 2", "on or off"]),
    ("verb\0ose on", &["line 2", "no setting 'verb?ose'"]),
    ("directory a\0b", &["line 2", "no value of directory", "zero bytes"]),
];

pub(super) fn run(workshop: &Workshop, report: &mut Report, library: Library<'_>) {
    let mut test = |name: &str, test: &dyn Fn() -> Result<()>| {
        report.test(&format!("libckpt: {name}"), test);
    };
    test("every setting of .ckptrc is obeyed", &|| obeyed(workshop, library));
    test("the environment wins over the folder, the folder over the home", &|| order(workshop, library));
    for method in ["zstd", "lz4", "none"] {
        test(&format!("images compressed with {method}"), &|| compressed(workshop, library, method));
    }
    test("old images go, the latest never does", &|| kept(workshop, library));
    for call in WAITS {
        test(&format!("checkpoints at intervals are not seen: {call}"), &|| {
            at_intervals(workshop, library, call)
        });
    }
    test("checkpoints at intervals go on in another life", &|| another_life(workshop, library));
    for call in MEMORIES {
        test(&format!("mode fork: {call}"), &|| forked(workshop, library, call));
    }
    test("mode fork: the program goes on while its memory is written", &|| goes_on(workshop, library));
    test("another signal than 34", &|| other_signal(workshop, library));
    test("checkpointing off", &|| off(workshop, library));
    for (line, words) in WRONG {
        let shown = line.escape_default();
        test(&format!("wrong in .ckptrc: {shown}"), &|| wrong(workshop, library, line, words));
    }
    test(".ckptrc that is a folder", &|| {
        odd(workshop, library, "folder", &|path| Ok(fs::create_dir(path)?), &["left aside"])
    });
    test(".ckptrc that is huge", &|| {
        let huge = |path: &Path| Ok(fs::write(path, "verbose on\n".repeat(100_000))?);
        odd(workshop, library, "huge", &huge, &["left aside", "longer than"])
    });
    test(".ckptrc that cannot be read", &|| {
        let user = workshop.as_user()?;
        let closed = |path: &Path| {
            fs::write(path, "verbose on\n")?;
            close(path)
        };
        odd(&user, library, "unreadable", &closed, &["left aside: Permission denied"])
    });
    test(".ckptrc that everybody may write", &|| {
        let open = |path: &Path| {
            fs::write(path, "verbose on\n")?;
            let status = Command::new("chmod").arg("666").arg(path).status()?;
            ensure!(status.success(), "chmod failed");
            Ok(())
        };
        odd(workshop, library, "open", &open, &["left aside", "only its owner may write"])
    });
}

fn obeyed(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let lines = format!("# settings of this test\n\n{STORE}store_files_level 3\n");
    let inside = Inside::start(workshop, library, "obeyed", "threads", &lines)?;
    kill(34, inside.subject.pid())?;
    inside.await_images(1, LONG)?;
    // It is said when all is done.
    process::await_some(LONG, || inside.errors().ends_with('\n').then_some(()));
    let said = inside.errors();
    ensure!(said.lines().count() == 1, "one line a checkpoint, not: {said}");
    ensure!(said.contains("libckpt: saved") && said.contains("store/1"), "{said}");
    let size: u64 = fs::metadata(inside.store().join("1/pages"))?.len();
    ensure!(size > 2 * MEBIBYTE, "content of libraries is in there: {size} bytes");
    inside.recovers()
}

fn order(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let inside = Inside::start_with(
        workshop,
        library,
        "order",
        "threads",
        &[("CKPT_KEEP", "1"), ("CKPT_VERBOSE", "nonsense")],
        |folder| {
            fs::create_dir(folder.join("home"))?;
            fs::write(
                folder.join("home/.ckptrc"),
                "keep all\nverbose on\ndirectory elsewhere\nhome_only 1\n",
            )?;
            Ok(fs::write(folder.join(".ckptrc"), "directory store\nkeep 3\n")?)
        },
    )?;
    inside.saved()?;
    inside.saved()?;
    ensure!(numbers(&inside.store()) == [2], "keep 1 of the environment: {:?}", numbers(&inside.store()));
    let said = inside.errors();
    ensure!(said.contains("no setting 'home_only'") && said.contains("home/.ckptrc, line 4"), "{said}");
    ensure!(said.contains("CKPT_VERBOSE in the environment") && said.contains("libckpt: saved"), "{said}");
    inside.recovers()
}

fn compressed(workshop: &Workshop, library: Library<'_>, method: &str) -> Result<()> {
    let lines = format!("{STORE}compress {method}\n");
    let inside = Inside::start(workshop, library, &format!("compress-{method}"), "busy 32", &lines)?;
    for _ in 0..3 {
        inside.saved()?;
    }
    let mut show = workshop.command(["show", "--json"]);
    show.arg(inside.store());
    let shown = process::run(show, &inside.folder, "show")?;
    ensure!(shown.output.contains(&format!("\"compression\":\"{method}\"")), "{}", shown.output);
    inside.recovers()
}

fn kept(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let inside = Inside::start(workshop, library, "kept", "threads", &format!("{STORE}keep 2\n"))?;
    for at in 1..=4u64 {
        inside.saved()?;
        let expected: Vec<u64> = (at.saturating_sub(1).max(1)..=at).collect();
        ensure!(numbers(&inside.store()) == expected, "{:?} after {at}", numbers(&inside.store()));
        ensure!(fs::read_link(inside.store().join("latest"))? == Path::new(&at.to_string()), "latest");
    }
    // One that is torn does not count, and is nobody's to remove.
    fs::write(inside.store().join("4/pages"), b"torn")?;
    let finished = inside.ckpt(&[])?;
    finished.expect_code("ckpt", 0)?;
    ensure!(numbers(&inside.store()) == [3, 4, 5], "{:?}", numbers(&inside.store()));
    inside.recovers()
}

fn at_intervals(workshop: &Workshop, library: Library<'_>, call: &str) -> Result<()> {
    let name = format!("interval-{call}");
    let mut inside = Inside::start(workshop, library, &name, call, &format!("{STORE}interval 1s\nkeep 3\n"))?;
    let pid = inside.subject.pid();
    let timers = fs::read_to_string(format!("/proc/{pid}/timers")).context("timers")?;
    ensure!(timers.contains("signal: 34/"), "there is no timer of ours: {timers}");
    inside.await_images(2, LONG)?;
    let mut show = workshop.command(["show", "--json"]);
    show.arg(inside.store());
    let shown = process::run(show, &inside.folder, "show")?;
    ensure!(!shown.output.contains("\"signal\":34"), "our timer is in the image: {}", shown.output);
    inside.subject.pass().context("left running")?;
    inside.subject.rewind()?;
    inside.recovers()
}

fn another_life(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let mut inside =
        Inside::start(workshop, library, "another-life", "busy", &format!("{STORE}interval 1s\n"))?;
    inside.await_images(2, LONG)?;
    inside.subject.end();
    let before = numbers(&inside.store()).len();
    let mut command =
        super::command(workshop, &inside.library, &inside.folder, &inside.settings, &inside.program);
    command.arg("=recover").current_dir(&inside.folder);
    let recovered = process::Running::start(command, &inside.folder, "recover")?;
    let grown = inside.await_images(before + 2, LONG);
    inside.subject.go()?;
    let finished = recovered.finish(process::PATIENCE).context("=recover")?;
    grown?;
    inside.subject.expect_pass(finished.status, "").context("=recover")
}

fn forked(workshop: &Workshop, library: Library<'_>, call: &str) -> Result<()> {
    let name = format!("fork-{call}");
    let inside = Inside::start(workshop, library, &name, call, &format!("{STORE}mode fork\n"))?;
    inside.saved()?;
    inside.saved()?;
    inside.recovers()
}

/// What `--json` says of a number.
fn number(told: &str, name: &str) -> Result<f64> {
    let rest = told.split_once(&format!("\"{name}\":")).map(|(_, rest)| rest).context("the number")?;
    Ok(rest.split([',', '}']).next().unwrap_or_default().trim().parse()?)
}

fn goes_on(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    // Compression takes its time: the program stands still for it, or it does not.
    let pause = |mode: &str| -> Result<(f64, f64)> {
        let lines = format!("{STORE}compress zstd\nmode {mode}\n");
        let mut inside = Inside::start(workshop, library, &format!("pause-{mode}"), "busy 256", &lines)?;
        let finished = inside.ckpt(&["--json"])?;
        finished.expect_code("ckpt", 0)?;
        inside.subject.pass()?;
        Ok((number(&finished.output, "paused_ms")?, number(&finished.output, "total_ms")?))
    };
    let (stopped, forked) = (pause("stop")?, pause("fork")?);
    println!(
        "         paused {:.0} ms of {:.0} (stop), {:.0} ms of {:.0} (fork)",
        stopped.0, stopped.1, forked.0, forked.1
    );
    ensure!(stopped.0 > stopped.1 / 3.0, "mode stop pauses while it writes");
    ensure!(forked.0 < forked.1 / 2.0, "mode fork does not");
    Ok(())
}

fn other_signal(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let inside = Inside::start(workshop, library, "signal", "threads", &format!("{STORE}signal 40\n"))?;
    let status = fs::read_to_string(format!("/proc/{}/status", inside.subject.pid()))?;
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).context("SigCgt")?;
    let caught = u64::from_str_radix(caught.trim(), 16)?;
    ensure!(caught >> 39 & 1 == 1 && caught >> 33 & 1 == 0, "caught: {caught:x}");
    kill(40, inside.subject.pid())?;
    inside.await_images(1, LONG)?;
    inside.saved()?;
    inside.recovers()
}

fn off(workshop: &Workshop, library: Library<'_>) -> Result<()> {
    let inside = Inside::start(
        workshop,
        library,
        "off",
        "blocked nanosleep",
        "directory store\ncheckpointing off\ninterval 1s\n",
    )?;
    kill(34, inside.subject.pid())?;
    std::thread::sleep(Duration::from_millis(300));
    let store = inside.store();
    inside.refused(&store, &["checkpointing is off", "checkpointing on"])
}

fn wrong(workshop: &Workshop, library: Library<'_>, line: &str, words: &[&str]) -> Result<()> {
    let inside = Inside::start(
        workshop,
        library,
        "wrong",
        "threads",
        &format!("verbose off\n{line}\ndirectory store\n"),
    )?;
    let said = inside.errors();
    ensure!(said.lines().count() == 1 && said.contains(".ckptrc"), "one line, not: {said}");
    for word in words {
        ensure!(said.contains(word), "{said} does not say {word}");
    }
    inside.saved()?;
    ensure!(inside.errors() == said, "verbose is off: {}", inside.errors());
    inside.recovers()
}

/// A `.ckptrc` that is none is told of and left aside; the program runs, with the defaults.
fn odd(
    workshop: &Workshop,
    library: Library<'_>,
    name: &str,
    make: &dyn Fn(&Path) -> Result<()>,
    words: &[&str],
) -> Result<()> {
    let settings = [("CKPT_DIRECTORY", "store")];
    let prepare = |folder: &Path| make(&folder.join(".ckptrc"));
    let inside = Inside::start_with(workshop, library, name, "threads", &settings, prepare)?;
    let said = inside.errors();
    ensure!(said.lines().count() == 1 && said.contains(".ckptrc"), "one line, not: {said}");
    for word in words {
        ensure!(said.contains(word), "{said} does not say {word}");
    }
    inside.saved()?;
    ensure!(inside.errors() == said, "verbose is off: {}", inside.errors());
    inside.recovers()
}
