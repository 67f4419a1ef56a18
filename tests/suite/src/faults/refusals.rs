//! Checkpoints that cannot be: full disks, closed folders, impossible targets. All end with exit code 1, say why,
//! leave no image, and the target goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process;
use crate::report::{Report, Skip};
use crate::subject::{Subject, save_command};
use crate::workshop::Workshop;

const SOON: Duration = Duration::from_secs(5);
/// What may pass by itself is waited for, but not for long.
const REFUSED_WITHIN: Duration = Duration::from_secs(4);

/// Standard streams that no stream of `resume` can take the place of, and a word of the refusal.
const STANDARD_INPUT: &[(&str, &[&str])] = &[
    ("socket-at-0", &["listens for connections"]),
    ("datagrams-at-0", &["socket of a kind"]),
    ("ptmx-at-0", &["ptmx"]),
];

/// Kinds of state that a resumed program would not have, and a word of the refusal. Those that need no special rights.
const SETTINGS: &[(&str, &[&str])] = &[
    ("sharer", &["shares its memory"]),
    ("memory-file", &["another process maps this file without a name"]),
    ("ldt", &["local descriptor table"]),
    ("keyring", &["keyring"]),
    ("secret", &["memfd_secret"]),
    ("aio", &["io_getevents"]),
    ("permission", &["permission to open files"]),
    ("queued", &["bytes of events are queued"]),
    ("other-process", &["tells of another process"]),
    ("ended-thread", &["which has ended"]),
];

/// What is told of messages of a queue in a way that cannot be found out, queues that cannot be looked at; and words of the refusal.
const QUEUES: &[(&[&str], &[&str])] = &[
    (&["notify-refused", "9"], &["by signal 9, whose value cannot be found out"]),
    (&["notify-refused", "0"], &["by which of its netlink sockets is not known"]),
    (&["in-flight", "alone"], &["nobody has this message queue open"]),
    (&["notify-waits"], &["waits already", "when the program has taken its signals"]),
];

/// Unix sockets that lead outside or hold what nobody can read, and words of the refusal.
const UNIX_SOCKETS: &[(&str, &[&str])] = &[
    ("unix-outside", &["its other side belongs to process", "outside of the captured tree"]),
    ("unix-shared", &["which is outside of the captured tree, has it too"]),
    ("unix-waiting", &["a connection from outside of the captured tree waits"]),
    ("unix-early", &["has not accepted the connection yet"]),
    ("unix-early-closed", &["whose other side was closed already"]),
    ("unix-oob", &["MSG_OOB"]),
    ("unix-pidfd", &["SO_PASSPIDFD"]),
    ("unix-pidfd-sent", &["in a message that was not received yet"]),
];

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test("full disk", || full_disk(workshop));
    report.test("unwritable folder: read-only mount", || read_only_mount(workshop));
    report.test("unwritable folder: below a file", || below_a_file(workshop));
    report.test("folder that is not there", || missing_folder(workshop));
    report.test("image folder that exists", || existing_image(workshop));
    report.test("what a child holds is refused by name", || refused(workshop, "child-socket", &["socket"]));
    report.test("a child that traces another one is refused by name", || {
        refused(workshop, "traced", &["traced by process"])
    });
    report.test("a pidfd of somebody outside is refused by name", || {
        refused_program(
            workshop,
            "tree_pidfd",
            "outside",
            &["it refers to process", "outside the captured tree"],
        )
    });
    report.test("network socket is refused by name", || refused(workshop, "socket", &["socket"]));
    for (kind, words) in STANDARD_INPUT {
        report.test(
            &format!("standard input that is no stream from outside is refused by name: {kind}"),
            || refused(workshop, kind, words),
        );
    }
    for (kind, words) in UNIX_SOCKETS {
        report.test(&format!("unix socket is refused by name: {kind}"), || refused(workshop, kind, words));
    }
    for (kind, words) in SETTINGS {
        report.test(&format!("setting that would be lost is refused by name: {kind}"), || {
            refused(workshop, kind, words)
        });
    }
    report.test("watch of what nothing leads to is refused by name", || {
        refused_program(workshop, "file_epoll", "lost", &["watches a file"])
    });
    for (arguments, words) in QUEUES {
        report.test(&format!("what a message queue has is refused by name: {}", arguments.join(" ")), || {
            let subject = start(workshop, &format!("refused-{}", arguments.join("-")), "mqueue", arguments)?;
            let image = subject.image();
            fails(workshop, subject, &image, words)
        });
    }
    report.test("no such pid", || no_such_pid(workshop));
    report.test("its own parent is refused", || {
        let folder = workshop.folder("own-parent")?;
        refuses_pid(workshop, &folder, std::process::id(), &[])
    });
    report.test("itself is refused", || itself(workshop));
    report.test("kernel thread is refused", || kernel_thread(workshop));
    report.test("zombie is refused", || zombie(workshop));
    report.test("wrong usage ends with 2", || {
        let folder = workshop.folder("usage")?;
        process::run(workshop.command(["save", "--no-such-option"]), &folder, "save")?.expect_code("save", 2)
    });
}

pub(super) fn start(workshop: &Workshop, name: &str, program: &str, arguments: &[&str]) -> Result<Subject> {
    Subject::start(&workshop.compile(program, &[])?, arguments, workshop.folder(name)?)
}

/// The checkpoint into `image` fails as it should; the target passes its check afterwards.
pub(super) fn fails(workshop: &Workshop, mut subject: Subject, image: &Path, words: &[&str]) -> Result<()> {
    let begun = Instant::now();
    let ended = process::run(save_command(workshop, subject.pid(), image), &subject.folder, "save")?;
    ended.expect_code("save", 1)?;
    ensure!(begun.elapsed() < REFUSED_WITHIN, "refused after {:?}", begun.elapsed());
    if !words.is_empty() {
        ended.expect_words("save", words)?;
    }
    ensure!(!ended.errors.trim().is_empty(), "save failed without a word");
    subject.pass().context("the target after the refusal")?;
    process::nothing_left(&[], SOON)
}

fn no_entries(folder: &Path) -> Result<()> {
    let left: Vec<_> = fs::read_dir(folder)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.is_empty(), "left in {}: {left:?}", folder.display());
    Ok(())
}

/// A mount that ends with the test.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    pub(super) fn new(arguments: &[&str], place: &Path) -> Result<Self> {
        let mounted = Command::new("mount").args(arguments).arg(place).stderr(Stdio::null()).status();
        match mounted {
            Ok(status) if status.success() => Ok(Mounted(place.to_path_buf())),
            _ => Err(Skip("not permitted to mount here".to_owned()).into()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A mount that stays is cleared with the machine; there is nothing better to do here.
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn full_disk(workshop: &Workshop) -> Result<()> {
    let subject = start(workshop, "full-disk", "busy", &["32"])?;
    let place = subject.folder.join("small");
    fs::create_dir(&place)?;
    let _mounted = Mounted::new(&["-t", "tmpfs", "-o", "size=4m", "tmpfs"], &place)?;
    fails(workshop, subject, &place.join("image"), &["space"])?;
    no_entries(&place)
}

fn read_only_mount(workshop: &Workshop) -> Result<()> {
    let subject = start(workshop, "read-only", "busy", &[])?;
    let place = subject.folder.join("closed");
    fs::create_dir(&place)?;
    let _mounted = Mounted::new(&["-t", "tmpfs", "-o", "ro", "tmpfs"], &place)?;
    fails(workshop, subject, &place.join("image"), &["read-only"])?;
    no_entries(&place)
}

fn below_a_file(workshop: &Workshop) -> Result<()> {
    let subject = start(workshop, "below-a-file", "busy", &[])?;
    let file = subject.folder.join("file");
    fs::write(&file, "")?;
    fails(workshop, subject, &file.join("image"), &["directory|folder"])
}

fn missing_folder(workshop: &Workshop) -> Result<()> {
    let subject = start(workshop, "missing-folder", "busy", &[])?;
    let folder = subject.folder.join("nowhere");
    fails(workshop, subject, &folder.join("image"), &["there is no folder|no such file"])?;
    ensure!(!folder.exists(), "the missing folder was made");
    Ok(())
}

fn existing_image(workshop: &Workshop) -> Result<()> {
    let subject = start(workshop, "existing", "busy", &[])?;
    let image = subject.image();
    fs::create_dir(&image)?;
    fs::write(image.join("precious"), "precious")?;
    fails(workshop, subject, &image, &["exist"])?;
    ensure!(fs::read_to_string(image.join("precious"))? == "precious", "what was there is gone");
    Ok(())
}

fn refused(workshop: &Workshop, kind: &str, words: &[&str]) -> Result<()> {
    refused_program(workshop, "refused", kind, words)
}

fn refused_program(workshop: &Workshop, program: &str, kind: &str, words: &[&str]) -> Result<()> {
    let subject = start(workshop, &format!("refused-{program}-{kind}"), program, &[kind])?;
    let image = subject.image();
    fails(workshop, subject, &image, words)?;
    ensure!(!image.exists(), "an image is left");
    Ok(())
}

fn refuses_pid(workshop: &Workshop, folder: &Path, pid: u32, words: &[&str]) -> Result<()> {
    let image = folder.join("image");
    let ended = process::run(save_command(workshop, pid, &image), folder, "save")?;
    ended.expect_code("save", 1)?;
    ended.expect_words("save", &[&[pid.to_string().as_str()], words].concat())?;
    ensure!(!image.exists(), "an image is left");
    process::nothing_left(&[pid], SOON)
}

fn no_such_pid(workshop: &Workshop) -> Result<()> {
    let folder = workshop.folder("no-such-pid")?;
    let mut brief = Command::new("true").spawn().context("starting true")?;
    let pid = brief.id();
    brief.wait()?;
    refuses_pid(workshop, &folder, pid, &[])
}

fn itself(workshop: &Workshop) -> Result<()> {
    let folder = workshop.folder("itself")?;
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" save -p $$ -d \"$1\""]).arg(&workshop.rewake).arg(folder.join("image"));
    let ended = process::run(command, &folder, "save")?;
    ended.expect_code("save", 1)?;
    ensure!(!folder.join("image").exists(), "an image is left");
    process::nothing_left(&[], SOON)
}

fn kernel_thread(workshop: &Workshop) -> Result<()> {
    let folder = workshop.folder("kernel-thread")?;
    let name = fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if name.trim() != "kthreadd" {
        return Err(Skip("kernel threads cannot be seen from here".to_owned()).into());
    }
    refuses_pid(workshop, &folder, 2, &["kernel"])
}

fn zombie(workshop: &Workshop) -> Result<()> {
    let folder = workshop.folder("zombie")?;
    let mut child = Command::new("true").spawn().context("starting true")?;
    let dead = process::await_some(SOON, || process::glimpse(child.id()).filter(|seen| seen.state == 'Z'));
    ensure!(dead.is_some(), "true does not end");
    let result = refuses_pid(workshop, &folder, child.id(), &["it has ended (a zombie"]);
    child.wait()?;
    result
}
