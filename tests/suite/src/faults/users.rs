//! An ordinary user: saves without any right, is told what waking takes, and wakes with a binary that was given just that.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rewake_image::Image;
use rewake_image::records::{Credentials, FileIdentity, open_file};
use rustix::fs::{OFlags, XattrFlags};

use crate::edit;
use crate::process::{self, PATIENCE, Running};
use crate::report::{Report, Skip};
use crate::subject::Subject;
use crate::workshop::Workshop;

/// `struct vfs_cap_data`, revision 2: effective from the start; permitted, the lower and the upper half: CAP_CHECKPOINT_RESTORE, 40.
const CHOOSES_IDS: [u32; 5] = [0x0200_0001, 0, 0, 1 << (40 - 32), 0];
/// The same and CAP_DAC_READ_SEARCH, 2: such a binary may read everything, and whoever calls it may not.
const READS_EVERYTHING: [u32; 5] = [0x0200_0001, 1 << 2, 0, 1 << (40 - 32), 0];
const SOON: Duration = Duration::from_secs(5);

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test("an ordinary user saves, and wakes if the binary may choose ids", || ordinary_user(workshop));
    report.test("an ordinary user's program, its library upgraded while it runs", || upgraded(workshop));
    report.test("an ordinary user's nameless file that he may not open for writing again", || {
        read_only_file(workshop)
    });
    for kind in ["leased", "shut"] {
        report
            .test(&format!("--files 1: a file that cannot be opened beside its descriptor: {kind}"), || {
                held_file(workshop, kind)
            });
    }
    report.test(
        "a leased file that only its lease's holder may read is refused by name, and the lease lasts",
        || {
            unreadable(workshop, "writes-only", "1", "open for writing only")?;
            unreadable(workshop, "mapped", "3", "would break a lease")
        },
    );
    report.test("a removed semaphore, and a folder beside it that the user may not look into", || {
        shut_folder(workshop)
    });
    report.test("a hostile image gives nobody what only the binary may", || hostile(workshop, CHOOSES_IDS));
    report.test("nor one what the binary may besides choosing ids", || {
        hostile(workshop, READS_EVERYTHING)?;
        linked(workshop)
    });
}

/// What an image may be edited to ask for, and words of its refusal.
type Wish = (&'static str, fn(&mut Image), &'static [&'static str]);

const ALL_CAPABILITIES: u64 = 0x1ff_ffff_ffff;

/// Each is refused by a binary with a file capability, invoked by a user without any right; nothing is left, nothing was opened.
const WISHES: [Wish; 8] = [
    ("to be root", |image| ids(image, 0), &["user ids"]),
    ("to be in the group of root", |image| credentials(image).gids = vec![0; 4], &["group ids"]),
    ("to be in root's other groups", |image| credentials(image).groups = vec![0], &["groups"]),
    (
        "permitted and effective capabilities",
        |image| {
            let credentials = credentials(image);
            (credentials.cap_permitted, credentials.cap_effective) = (ALL_CAPABILITIES, ALL_CAPABILITIES);
        },
        &["permitted capabilities"],
    ),
    (
        "the binary's own capability",
        |image| credentials(image).cap_permitted = 1 << 40,
        &["permitted capabilities"],
    ),
    (
        "inheritable and ambient ones",
        |image| {
            let credentials = credentials(image);
            (credentials.cap_inheritable, credentials.cap_ambient) = (1 << 40, 1 << 40);
        },
        &["capabilities"],
    ),
    ("a secret file to read", |image| open_instead(image, OFlags::RDONLY), &["shadow"]),
    ("a secret file to write", |image| open_instead(image, OFlags::RDWR), &["shadow"]),
];

fn credentials(image: &mut Image) -> &mut Credentials {
    image.processes[0].credentials.get_or_insert_default()
}

fn ids(image: &mut Image, id: u32) {
    credentials(image).uids = vec![id; 4];
}

/// The first file that the program has open is another one now, and just what it was.
fn open_instead(image: &mut Image, flags: OFlags) {
    const SECRET: &str = "/etc/shadow";
    let now = fs::metadata(SECRET).expect("every system has one");
    for file in &mut image.open_files {
        if let Some(open_file::Kind::Regular(regular)) = &mut file.kind {
            file.flags = flags.bits();
            (regular.content, regular.position) = (None, 0);
            regular.identity = Some(FileIdentity {
                path: SECRET.into(),
                device: now.dev(),
                inode: now.ino(),
                size: now.len(),
                mtime_s: now.mtime(),
                mtime_ns: u32::try_from(now.mtime_nsec()).unwrap_or_default(),
                mode: now.mode(),
                ..FileIdentity::default()
            });
        }
    }
}

/// Nothing but the mappings has the old library any more, and it was where the user may make nothing.
fn upgraded(workshop: &Workshop) -> Result<()> {
    let user = workshop.as_user()?;
    let compile = |options: &[&str]| user.compile("answer", &[&["-shared", "-fPIC"], options].concat());
    let (ours, other) = (compile(&[])?, compile(&["-DANSWER=7"])?);
    let folder = user.folder("library-of-root")?;
    let library = folder.join("lib").join("libanswer.so");
    fs::create_dir(folder.join("lib"))?;
    fs::copy(&ours, &library)?;
    let program = user.compile("mem_dlopen", &[])?;
    let mut subject = Subject::start_in(&user, &program, &[&library.display().to_string()], folder)?;
    fs::copy(&other, subject.folder.join("lib/new"))?;
    fs::rename(subject.folder.join("lib/new"), &library)?;
    subject.save_and_kill(&user)?;
    subject.resume_and_pass(&user, &[])?;
    process::nothing_left(&[], SOON)
}

/// The binary may choose ids, and nothing else: a mode is in its way as in the user's.
fn read_only_file(workshop: &Workshop) -> Result<()> {
    let user = workshop.as_user()?;
    let capable = capable_binary(&user, CHOOSES_IDS)?;
    let program = user.compile("file_unlinked", &[])?;
    for kind in ["read-only", "mapped"] {
        let mut subject = Subject::start_in(&user, &program, &[kind], user.folder("nameless-file")?)?;
        subject.save_and_kill(&user)?;
        let resumed = Running::start(resume_with(&user, &capable, &subject), &subject.folder, "resume")?;
        subject.go()?;
        let finished = resumed.finish(PATIENCE).context(kind)?;
        subject.expect_pass(finished.status, &finished.errors).context(kind)?;
        process::nothing_left(&[], SOON)?;
    }
    Ok(())
}

/// Its content goes in, and the target has its lease and its position yet.
fn held_file(workshop: &Workshop, kind: &str) -> Result<()> {
    let user = workshop.as_user()?;
    let program = user.compile("held_files", &[])?;
    let mut subject = Subject::start_in(&user, &program, &[kind], user.folder("held-file")?)?;
    let save = |subject: &Subject, options: &[&str]| -> Result<()> {
        let mut command = user.command(["save", "--files", "1", "-p"]);
        command.arg(subject.pid().to_string()).arg("-d").arg(subject.image()).args(options);
        let saved = process::run(command, &subject.folder, "save")?;
        saved.expect_code("save", 0)?;
        let image = Image::open(&subject.image()).context("the image")?;
        let paths = image.file_contents.iter().filter_map(|content| content.identity.as_ref());
        ensure!(paths.filter(|file| file.path.ends_with(b"/held")).count() == 1, "its content is not stored");
        Ok(())
    };
    if kind == "leased" {
        save(&subject, &[])?;
        fs::remove_dir_all(subject.image()).context("removing the image")?;
        save(&subject, &["--kill"])?;
        subject.expect_killed()?;
        subject.resume_and_pass(&user, &[])?;
    } else {
        save(&subject, &[])?;
        subject.pass()?;
    }
    process::nothing_left(&[], SOON)
}

fn unreadable(workshop: &Workshop, kind: &str, level: &str, words: &str) -> Result<()> {
    let user = workshop.as_user()?;
    let program = user.compile("held_files", &[])?;
    let mut subject = Subject::start_in(&user, &program, &[kind], user.folder("held-file")?)?;
    let begun = Instant::now();
    let mut command = user.command(["save", "--files", level, "-p"]);
    command.arg(subject.pid().to_string()).arg("-d").arg(subject.image());
    let refused = process::run(command, &subject.folder, "save")?;
    refused.expect_code("save", 1)?;
    refused.expect_words("save", &[words, "give the lease up first"])?;
    ensure!(begun.elapsed() < SOON, "refused after {:?}", begun.elapsed());
    subject.pass()?;
    process::nothing_left(&[], SOON)
}

/// A folder of somebody else's in `/dev/shm`, while the test lasts.
struct Shut(PathBuf);

impl Drop for Shut {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn shut_folder(workshop: &Workshop) -> Result<()> {
    let user = workshop.as_user()?;
    let shut = Shut(PathBuf::from(format!("/dev/shm/rewake-test-shut-{}", std::process::id())));
    fs::create_dir(&shut.0).context("a folder in /dev/shm")?;
    fs::set_permissions(&shut.0, fs::Permissions::from_mode(0o700))?;
    let program = user.compile("posix_ipc", &[])?;
    let mut subject =
        Subject::start_in(&user, &program, &["sem-unlinked"], user.folder("removed-semaphore")?)?;
    subject.save_and_kill(&user)?;
    subject.resume_and_pass(&user, &[])?;
    process::nothing_left(&[], SOON)
}

fn hostile(workshop: &Workshop, capabilities: [u32; 5]) -> Result<()> {
    let user = workshop.as_user()?;
    let capable = capable_binary(&user, capabilities)?;
    let program = user.compile("busy", &[])?;
    let mut subject = Subject::start_in(&user, &program, &["1"], user.folder("hostile-image")?)?;
    subject.save_and_kill(&user)?;
    let records = subject.image().join("records");
    let honest = fs::read(&records)?;
    let secret = fs::read("/etc/shadow")?;
    for (wish, change, words) in WISHES {
        edit::image(&subject.image(), change)?;
        let finished = process::run(resume_with(&user, &capable, &subject), &subject.folder, "resume")?;
        finished.expect_code("resume", 125).with_context(|| wish.to_owned())?;
        finished.expect_words("resume", words).with_context(|| wish.to_owned())?;
        process::nothing_left(&[], SOON).with_context(|| wish.to_owned())?;
        fs::write(&records, &honest)?;
    }
    ensure!(fs::read("/etc/shadow")? == secret, "the secret file was changed");
    let resumed = Running::start(resume_with(&user, &capable, &subject), &subject.folder, "resume")?;
    subject.go()?;
    let finished = resumed.finish(PATIENCE).context("the honest image")?;
    subject.expect_pass(finished.status, &finished.errors).context("the honest image")
}

/// Since the capture the user has put a link to a secret of root's in the place of his own file.
fn linked(workshop: &Workshop) -> Result<()> {
    let user = workshop.as_user()?;
    let capable = capable_binary(&user, READS_EVERYTHING)?;
    let program = user.compile("mem_file_private", &[])?;
    let mut subject = Subject::start_in(&user, &program, &[], user.folder("linked-secret")?)?;
    subject.save_and_kill(&user)?;
    let (mapped, secret) = (subject.folder.join("private.dat"), subject.folder.join("secret"));
    fs::write(&secret, vec![b's'; 1 << 20])?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    fs::remove_file(&mapped)?;
    symlink(&secret, &mapped)?;
    let mut command = resume_with(&user, &capable, &subject);
    command.args(["--on-changed", "as-is"]);
    let refused = process::run(command, &subject.folder, "resume")?;
    refused.expect_code("resume", 125)?;
    refused.expect_words("resume", &["private.dat", "Permission denied"])?;
    process::nothing_left(&[], SOON)
}

/// A copy of the binary, the user's, that may choose process ids.
fn capable_binary(user: &Workshop, capabilities: [u32; 5]) -> Result<PathBuf> {
    let account = user.account().context("the workshop is a user's")?;
    let capable = account.home().join("capable");
    fs::copy(user.rewake(), &capable).context("copying the binary")?;
    let capability: Vec<u8> = capabilities.iter().flat_map(|word| word.to_le_bytes()).collect();
    rustix::fs::setxattr(&capable, "security.capability", &capability, XattrFlags::empty())
        .map_err(|errno| Skip(format!("file capabilities cannot be set here: {errno}")))?;
    Ok(capable)
}

fn resume_with(user: &Workshop, binary: &std::path::Path, subject: &Subject) -> Command {
    let mut command = user.program(binary);
    command.args(["resume", "-d"]).arg(subject.image()).current_dir(&subject.folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn ordinary_user(workshop: &Workshop) -> Result<()> {
    let user = workshop.as_user()?;
    let owner = user.account().context("the workshop is a user's")?.id();
    let capable = capable_binary(&user, CHOOSES_IDS)?;
    let program = user.compile("threads", &[])?;
    let mut subject = Subject::start_in(&user, &program, &["3"], user.folder("capable-resume")?)?;
    let pid = subject.pid();
    ensure!(fs::metadata(format!("/proc/{pid}"))?.uid() == owner, "the program is not the user's");
    subject.save_and_kill(&user)?;
    ensure!(fs::metadata(subject.image())?.uid() == owner, "the image is not the user's");

    let mut command = subject.resume_command(&user);
    command.args(["--pids", "same"]);
    let refused = process::run(command, &subject.folder, "resume")?;
    refused.expect_code("resume without the right", 125)?;
    refused
        .expect_words("resume without the right", &["choosing it is not permitted", "remedy", "setcap"])?;

    let command = resume_with(&user, &capable, &subject);
    let resumed = Running::start(command, &subject.folder, "resume")?;
    let has_none = process::await_some(SOON, || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let none = |set: &str| status.contains(&format!("{set}:\t0000000000000000\n"));
        (status.contains("TracerPid:\t0\n") && none("CapPrm") && none("CapEff")).then_some(())
    });
    subject.go()?;
    let finished = resumed.finish(PATIENCE).context("resume")?;
    subject.expect_pass(finished.status, &finished.errors)?;
    ensure!(has_none.is_some(), "the program was given capabilities of the binary");
    process::nothing_left(&[], SOON)
}
