//! What the library says, to whom and how often; and that it holds where little is as usual: daemons, files of programs that are renamed or
//! replaced while they run, no descriptors, no `/proc`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::Bench;
use super::shells::shell;
use crate::process::{self, Finished, PATIENCE, Running};
use crate::random::Random;
use crate::report::{Report, Skip};

/// How often a program is killed in the midst of a checkpoint, and the longest time before, in microseconds.
const DEATHS: u64 = 40;
const LONGEST: u64 = 40_000;

/// Lines for a shell that end with 0 if all is well, the program, and what is then said on standard error.
struct Case {
    what: &'static str,
    program: &'static str,
    lines: &'static str,
    says: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        what: "checkpoints at intervals that a child stands in the way of: it is said once",
        program: "moments",
        lines: "(sleep 4.5; touch go) & CKPT_INTERVAL=1 $P go child; [ $(grep -c 'has a child' shell.err) = 1 ]",
        says: &["has a child, process"],
    },
    Case {
        what: "what is kept when a value is wrong",
        program: "library/lines",
        lines: "mkdir home; echo keep 5 > home/.ckptrc; echo keep many > .ckptrc; HOME=$PWD/home $P x; [ $? = 1 ]",
        says: &["line 1", "'many' is no value of keep", "it stays 5"],
    },
    Case {
        what: "variables that are almost ours",
        program: "library/lines",
        lines: "CKPT_DIR=x CKPT_PATH=y CKPT_MAXSHM=3 CKPT_FREQ=4 $P x; [ $(grep -c '' shell.err) = 1 ]",
        says: &["CKPT_DIR in the environment", "no such setting", "'directory'"],
    },
    Case {
        what: "=recover and the name of what is no store",
        program: "library/lines",
        lines: "$P x; $P =recover .; $P =recover $F; $P =recover ''; $P =recover nowhere; [ $? = 125 ] && ! grep -q 'make a checkpoint first' shell.err",
        says: &[
            "in \".\": there is no image in that folder",
            "library-lines\": that is no folder|that is no folder",
            "in \"\": that is no name",
            "in \"nowhere\": no such file",
            "name an image or a folder of images, or leave it out",
        ],
    },
    Case {
        what: "a first checkpoint that fails leaves no folder",
        program: "moments",
        lines: "env LD_PRELOAD=$L $F go child & await '[ -s pid ]'; kill -34 $!; await 'grep -q child shell.err'; sleep 0.2; touch go; wait; [ ! -e .rewake ]",
        says: &["has a child, process"],
    },
    Case {
        what: "a program whose file is renamed keeps its store, and is recovered under its name again",
        program: "moments",
        lines: "cp $F job; P=\"env LD_PRELOAD=$L CKPT_DIRECTORY=stores/%n REWAKE_OTHER_IDS=1 ./job\"; $P go early > out & await 'grep -qs READY out'; mv job old; kill -34 $!; await '[ -e stores/job/latest ]'; kill -9 $!; cp old job; touch go; $P =recover >> out; grep -q PASS out && [ ! -e stores/old ]",
        says: &[],
    },
    Case {
        what: "a program whose file is replaced by the same build while it runs",
        program: "moments",
        lines: "cp $F job; P=\"env LD_PRELOAD=$L REWAKE_OTHER_IDS=1 ./job\"; $P go early > out & await 'grep -q READY out'; cp job new; mv new job; kill -34 $!; await '[ -e .rewake/job/latest ]'; kill -9 $!; touch go; $P =recover >> out; grep -q PASS out",
        says: &[],
    },
    Case {
        what: "a daemon",
        program: "moments",
        lines: "$P go daemon > out; await '[ -s pid ]'; await 'grep -q READY out'; kill -34 $(cat pid); await '[ -e store/latest ]'; kill -9 $(cat pid); touch go; $P =recover >> out; grep -q PASS out",
        says: &[],
    },
    Case {
        what: "no free descriptor",
        program: "moments",
        lines: "ulimit -n 40; $P go lacks descriptors | grep PASS",
        says: &[],
    },
    Case {
        what: "a signal that comes in the midst of a checkpoint ends a wait",
        program: "moments",
        lines: "CKPT_KEEP=2 $P go waits | grep PASS",
        says: &[],
    },
    Case {
        what: "a program that lives again removes its own images, and no other's",
        program: "moments",
        lines: "export CKPT_KEEP=1; start() { $P go early > $1 & await \"grep -q READY $1\"; kill -34 $!; await \"[ -e store/$2 ]\"; kill -9 $!; }; start a 1; start b 2; $P =recover store/1 > c & await 'grep -q SigCgt:.*2........$ /proc/$!/status'; kill -34 $!; await '[ -e store/3 -a ! -e store/1 ]'; sleep 0.1; kill -9 $!; [ -e store/2 ]",
        says: &[],
    },
];

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    for case in CASES {
        report.test(case.what, || carried_out(bench, case).map(drop));
    }
    report.test("no /proc", || no_proc(bench));
    report.test("ckpt of a child is answered", || child(bench));
    report.test("a checkpoint's whole time is no shorter than its pause", || times(bench));
    report.measured("who dies during a checkpoint is said to have ended", || deaths(bench));
    report.test("nothing in the library takes memory to find its thread-local words", || {
        words_of_threads(bench)
    });
}

fn carried_out(bench: &Bench<'_>, case: &Case) -> Result<Finished> {
    let (finished, _) = shell(bench, case.program, case.what, case.lines)?;
    finished.expect_code(case.what, 0)?;
    finished.expect_words(case.what, case.says)?;
    Ok(finished)
}

fn no_proc(bench: &Bench<'_>) -> Result<()> {
    let mut trial = bench.workshop.program("unshare".as_ref());
    trial.args(["-Urm", "mount", "-t", "tmpfs", "none", "/proc"]);
    if !trial.output().is_ok_and(|output| output.status.success()) {
        return Err(Skip("a user may not mount here".into()).into());
    }
    let lines = "unshare -Urm sh -c \"mount -t tmpfs none /proc; $P go lacks /proc\" | grep PASS";
    carried_out(bench, &Case { what: "no proc", program: "moments", lines, says: &[] }).map(drop)
}

fn child(bench: &Bench<'_>) -> Result<()> {
    let program = bench.workshop.compile("moments", &[])?;
    let folder = bench.workshop.folder("ckpt of a child")?;
    let inside = crate::subject::Inside::new(&bench.library, &program, &folder);
    let mut command = inside.command(bench.workshop);
    command.args(["go", "child"]).current_dir(&folder);
    let running = Running::start(command, &folder, "program")?;
    let id = process::await_some(PATIENCE, || std::fs::read_to_string(folder.join("pid")).ok());
    let id = id.context("no child")?;
    let ended = process::run(bench.workshop.command(["ckpt", id.trim()]), &folder, "ckpt")?;
    std::fs::write(folder.join("go"), "")?;
    ended.expect_code("ckpt", 1)?;
    ended.expect_words("ckpt", &["is a child of process", "chkpnt"])?;
    running.finish(PATIENCE)?.expect_code("the program", 0)
}

fn times(bench: &Bench<'_>) -> Result<()> {
    let program = bench.workshop.compile("moments", &[])?;
    let (inside, mut subject) = bench.start("times", &program, &["early"])?;
    for _ in 0..10 {
        let mut command = bench.workshop.command(["ckpt", &subject.pid().to_string()]);
        command.arg("--json");
        let said = process::run(command, &subject.folder, "ckpt")?;
        said.expect_code("ckpt", 0)?;
        let number = |key: &str| {
            let rest =
                said.output.split(&format!("\"{key}\":")).nth(1).with_context(|| said.output.clone())?;
            let digits: String =
                rest.trim().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
            digits.parse::<f64>().with_context(|| said.output.clone())
        };
        let (paused, total) = (number("paused_ms")?, number("total_ms")?);
        ensure!(paused > 0.0 && total >= paused, "{total} ms, of which {paused} ms paused");
    }
    inside.live_on(&mut subject, bench.workshop)?;
    subject.pass()
}

fn deaths(bench: &Bench<'_>) -> Result<String> {
    let program = bench.workshop.compile("endure", &[])?;
    let mut random = Random::new(11);
    let mut hits = 0;
    for death in 0..DEATHS {
        let (_, mut subject) = bench.start("deaths", &program, &["malloc"])?;
        let asking = Running::start(
            bench.workshop.command(["ckpt", &subject.pid().to_string()]),
            &subject.folder,
            "ckpt",
        )?;
        std::thread::sleep(Duration::from_micros(2000 + random.below(LONGEST)));
        process::signal(subject.pid(), Signal::KILL);
        subject.wait_for_end()?;
        let ended = asking.finish(PATIENCE)?;
        match ended.status.code() {
            Some(0) => {}
            Some(1) => {
                hits += 1;
                ended
                    .expect_words(&format!("death {death}"), &["ended|no such process|is gone|no process"])?;
            }
            _ => bail!("death {death}: {} {}", process::describe(ended.status), ended.errors),
        }
        process::nothing_left(&[], PATIENCE)?;
    }
    Ok(format!("{hits} of {DEATHS} came before the image was made"))
}

/// The loader's function for that may call malloc.
fn words_of_threads(bench: &Bench<'_>) -> Result<()> {
    let table = |options: &[&str], file: &Path| {
        let output = Command::new("readelf").args(options).arg(file).output();
        let output = output.map_err(|_| Skip("readelf is not installed".into()))?;
        anyhow::Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let symbols = table(&["-W", "--dyn-syms"], &bench.library)?;
    ensure!(symbols.contains("ckpt_here"), "no table: {symbols}");
    ensure!(!symbols.contains("__tls_get_addr"), "the loader is asked for thread-local words");
    ensure!(table(&["-W", "-d"], &bench.library)?.contains("STATIC_TLS"), "they may be anywhere");
    Ok(())
}
