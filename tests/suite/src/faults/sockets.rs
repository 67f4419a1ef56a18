//! Files of unix sockets that a resume replaces: should it fail, they are as they were.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use rewake_image::Image;
use rewake_image::records::SocketOption;

use super::refusals::{fails, start};
use crate::edit;
use crate::process;
use crate::report::Report;
use crate::subject::{PASSED, Subject, save_command};
use crate::workshop::Workshop;

const SOON: Duration = Duration::from_secs(5);
/// `SO_RCVTIMEO`, and a time that no kernel takes: more microseconds than a second has.
const TIMEOUT: u32 = 20;
const IMPOSSIBLE: [i64; 2] = [1, 5_000_000];

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    for variant in ["listeners", "gone", "family"] {
        report.test(&format!("a resume that fails puts back files of sockets: {variant}"), || {
            failed_resume(workshop, variant)
        });
    }
    report.test("datagrams to another program that is not there at the resume", || nobody_there(workshop));
    report.test("datagrams to another program: somebody else has its name at the resume", || {
        somebody_else(workshop)
    });
    report.test("unix socket is refused by name: an answer from another program's abstract name", || {
        let subject = start(workshop, "sockets-stranger", "unix_outside", &["stranger"])?;
        let image = subject.image();
        fails(workshop, subject, &image, &["a datagram waits in it from @rewake-outside-"])?;
        process::nothing_left(&[], SOON)
    });
}

/// The other program of a subject, which is captured, ends.
fn captured_alone(workshop: &Workshop, variant: &str) -> Result<Subject> {
    let mut subject = start(workshop, &format!("outside-{variant}"), "unix_outside", &[variant])?;
    let save = save_command(workshop, subject.pid(), &subject.image());
    let saved = process::run(save, &subject.folder, "save")?;
    saved.expect_code("save", 0)?;
    saved.expect_words("save", &["a socket of another program"])?;
    subject.end();
    UnixDatagram::unbound()?.send_to(b"quit", subject.folder.join("log")).context("the other program")?;
    process::nothing_left(&[], SOON)?;
    Ok(subject)
}

fn nobody_there(workshop: &Workshop) -> Result<()> {
    let subject = captured_alone(workshop, "nowhere")?;
    let name = subject.folder.join("log");
    for remedy in ["start the program that has this address", "--outside-sockets dead-end"] {
        let resumed = subject.resume(workshop)?;
        resumed.expect_code("resume", 125)?;
        resumed.expect_words("resume", &[&name.display().to_string()])?;
        resumed.expect_words("resume", &["of another program", remedy])?;
        process::nothing_left(&[], SOON)?;
        // Now there is no file either.
        let _ = fs::rename(&name, subject.folder.join("aside"));
    }
    fs::rename(subject.folder.join("aside"), &name)?;
    subject.resume_and_pass(workshop, &["--outside-sockets", "dead-end"])
}

fn somebody_else(workshop: &Workshop) -> Result<()> {
    let subject = captured_alone(workshop, "other")?;
    let name = subject.folder.join("log");
    fs::remove_file(&name)?;
    let other = UnixDatagram::bind(&name)?;
    other.set_read_timeout(Some(SOON))?;
    subject.go()?;
    let resumed = subject.resume(workshop)?;
    resumed.expect_code("resume", 0)?;
    resumed.expect_words("resume", &["connected again to", &name.display().to_string()])?;
    ensure!(subject.said() == PASSED, "the program said {}", subject.said());
    let mut text = [0; 20];
    let length = other.recv(&mut text).context("what the program sent")?;
    ensure!(&text[..length] == b"after", "it sent {:?}", &text[..length]);
    process::nothing_left(&[], SOON)
}

/// All that is to be seen of a file, but for the number of its inode.
type Seen = (String, u32, u32, u32, i64, i64);

/// The files of sockets in a folder and below.
fn sockets(folder: &Path) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let (path, about) = (entry.path(), entry.metadata()?);
        if about.is_dir() && !path.ends_with("image") {
            seen.extend(sockets(&path)?);
        } else if about.file_type().is_socket() {
            let name = path.display().to_string();
            seen.push((name, about.mode(), about.uid(), about.gid(), about.mtime(), about.mtime_nsec()));
        }
    }
    seen.sort();
    Ok(seen)
}

/// The last socket gets a time-out that it cannot have: by then all have been made.
fn spoil(image: &mut Image) {
    let open = |file: &rewake_image::records::OpenFile| match &file.kind {
        Some(rewake_image::records::open_file::Kind::Socket(end)) => Some(end.socket),
        _ => None,
    };
    let last = image.open_files.iter().filter_map(open).max();
    let value = IMPOSSIBLE.iter().flat_map(|part| part.to_le_bytes()).collect();
    if let Some(socket) = image.unix_sockets.iter_mut().find(|socket| Some(socket.id) == last) {
        socket.options.push(SocketOption { option: TIMEOUT, value });
    }
}

fn unspoil(image: &mut Image) {
    for socket in &mut image.unix_sockets {
        socket.options.retain(|option| option.option != TIMEOUT);
    }
}

fn failed_resume(workshop: &Workshop, variant: &str) -> Result<()> {
    let mut subject = start(workshop, &format!("sockets-{variant}"), "unix_names", &[variant])?;
    subject.save_and_kill(workshop)?;
    let all = sockets(&subject.folder)?;
    ensure!(!all.is_empty(), "the program has no socket with a file");
    // Not what the program would make itself.
    let first = Path::new(&all[0].0);
    let mode = fs::metadata(first)?.permissions().mode();
    fs::set_permissions(first, fs::Permissions::from_mode(0o640)).context("another mode")?;
    if rustix::process::geteuid().is_root() {
        chown(first, Some(7), Some(8)).context("another owner")?;
    }
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 2 },
        last_modification: rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 },
    };
    rustix::fs::utimensat(rustix::fs::CWD, first, &times, rustix::fs::AtFlags::empty())?;
    let before = sockets(&subject.folder)?;
    ensure!(before != all && fs::metadata(first)?.modified()? > long_ago, "the file cannot be changed");
    edit::image(&subject.image(), spoil)?;
    let resumed = subject.resume(workshop)?;
    resumed.expect_code("resume", 125)?;
    resumed.expect_words("resume", &["option 20 of a unix socket"])?;
    process::nothing_left(&[], SOON)?;
    let after = sockets(&subject.folder)?;
    ensure!(after == before, "files of sockets: {before:?} before, {after:?} after");
    edit::image(&subject.image(), unspoil)?;
    fs::set_permissions(first, fs::Permissions::from_mode(mode))?;
    subject.resume_and_pass(workshop, &[])
}
