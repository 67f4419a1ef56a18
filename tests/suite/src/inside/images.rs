//! Images that are damaged, false, or being removed, and stores that are none: `=recover` ends with 125 and says why, files of the program
//! are as they were; and never do two lives of one program write to the same files.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::Bench;
use crate::edit;
use crate::process::{self, Finished, PATIENCE, Running};
use crate::random::Random;
use crate::report::Report;
use crate::subject::{Inside, Subject};

/// How often an image is damaged.
const DAMAGES: u64 = 60;
/// Recoveries during which images are removed.
const REMOVALS: u32 = 30;
/// How far apart two recoveries are started, in milliseconds.
const APART: &[u64] = &[0, 1, 3, 10, 300];
/// Nobody's.
const STRANGER: u32 = 12_345;

/// A store that is not as it should be: how it is made so from one with one image, and what is said then. Without words it does no harm.
struct Odd {
    what: &'static str,
    make: fn(&Path) -> Result<()>,
    words: &'static [&'static str],
}

const ODD: &[Odd] = &[
    Odd {
        what: "no store",
        make: |store| Ok(fs::remove_dir_all(store)?),
        words: &["no such file", "ckpt PID"],
    },
    Odd { what: "an empty store", make: emptied, words: &["no complete image", "ckpt PID"] },
    Odd {
        what: "a store of unfinished images",
        make: |store| {
            fs::rename(store.join("1"), store.join(".1.tmp-0123456789abcdef"))?;
            Ok(fs::remove_file(store.join("latest"))?)
        },
        words: &["no complete image", "ckpt PID"],
    },
    Odd { what: "latest leads nowhere", make: |store| linked(store, "9"), words: &[] },
    Odd { what: "latest leads to itself", make: |store| linked(store, "latest"), words: &[] },
    Odd { what: "latest leads outside", make: |store| linked(store, "/etc"), words: &[] },
    Odd {
        what: "latest leads outside, and there is nothing else",
        make: |store| {
            let elsewhere = store.with_file_name("elsewhere");
            let _none_yet = fs::remove_dir_all(&elsewhere);
            fs::rename(store.join("1"), &elsewhere)?;
            linked(store, "../elsewhere")
        },
        words: &["no complete image"],
    },
    Odd {
        what: "the file of records is a pipe",
        make: |store| {
            fs::remove_file(store.join("1/records"))?;
            let made = Command::new("mkfifo").arg(store.join("1/records")).status()?;
            ensure!(made.success(), "mkfifo");
            Ok(())
        },
        words: &["image 1 is damaged", "no regular file"],
    },
    Odd {
        what: "the file of pages is a link",
        make: |store| {
            fs::remove_file(store.join("1/pages"))?;
            Ok(symlink("/dev/zero", store.join("1/pages"))?)
        },
        words: &["image 1 is damaged", "symbolic link"],
    },
    Odd {
        what: "an image that everybody may write",
        make: |store| Ok(fs::set_permissions(store.join("1"), fs::Permissions::from_mode(0o777))?),
        words: &["others may write it"],
    },
    Odd {
        what: "an image of somebody else's",
        make: |store| {
            for name in ["1", "1/records", "1/pages"] {
                fs::set_permissions(store.join(name), fs::Permissions::from_mode(0o755))?;
                chown(store.join(name), Some(STRANGER), None)?;
            }
            Ok(())
        },
        words: &["belongs to user 12345"],
    },
    Odd {
        what: "an image of a later format",
        make: |store| edit::format_version(&store.join("1"), 99),
        words: &["image 1 is damaged", "99"],
    },
];

fn emptied(store: &Path) -> Result<()> {
    fs::remove_dir_all(store)?;
    Ok(fs::create_dir(store)?)
}

fn linked(store: &Path, target: &str) -> Result<()> {
    fs::remove_file(store.join("latest"))?;
    Ok(symlink(target, store.join("latest"))?)
}

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    report.test(&format!("=recover refuses each of {DAMAGES} damaged images"), || damaged(bench));
    report.test("=recover with a store that is none, or whose images are", || odd(bench));
    report
        .test("=recover takes an earlier image where the latest is damaged, and says so", || earlier(bench));
    report.test("=recover with more words than it knows", || more_words(bench));
    report.measured("=recover while images are made and removed", || removed(bench));
    report.test("two recoveries of one image", || twice(bench));
}

/// A program that has made an image and is gone.
struct Gone {
    inside: Inside,
    subject: Subject,
    /// A copy of its store, to be put back.
    whole: PathBuf,
}

impl Gone {
    fn new(bench: &Bench<'_>, name: &str) -> Result<Self> {
        let program = bench.workshop.compile("endure", &[])?;
        let (inside, mut subject) = bench.start(name, &program, &["printf"])?;
        inside.save(&mut subject)?;
        process::signal(subject.pid(), Signal::KILL);
        subject.wait_for_end()?;
        let whole = subject.folder.join("whole");
        copied(inside.store(), &whole)?;
        Ok(Self { inside, subject, whole })
    }

    fn put_back(&self) -> Result<()> {
        let _may_be_gone = fs::remove_dir_all(self.inside.store());
        copied(&self.whole, self.inside.store())
    }

    fn command(&self, bench: &Bench<'_>, words: &[&str]) -> Command {
        let mut command = self.inside.command(bench.workshop);
        command.args(words).current_dir(&self.subject.folder);
        command
    }

    fn recover(&self, bench: &Bench<'_>, words: &[&str]) -> Result<Finished> {
        process::run(self.command(bench, words), &self.subject.folder, "recover")
    }

    /// It ends with 125 and these words, says no more than a few lines, and leaves files of the program as they are.
    fn refused(&self, bench: &Bench<'_>, arguments: &[&str], words: &[&str]) -> Result<()> {
        let files = || ["lines", "program.out"].map(|name| fs::read(self.subject.folder.join(name)).ok());
        let before = files();
        let ended = self.recover(bench, arguments)?;
        ended.expect_code("=recover", 125)?;
        ended.expect_words("=recover", words)?;
        ensure!(ended.errors.starts_with("libckpt: "), "it said '{}'", ended.errors.trim());
        ensure!(ended.errors.lines().count() <= 3, "it said much: {}", ended.errors);
        ensure!(files() == before, "files of the program were changed");
        process::nothing_left(&[], PATIENCE)
    }
}

/// With owners and rights.
fn copied(from: &Path, to: &Path) -> Result<()> {
    let done = Command::new("cp").arg("-a").args([from, to]).status().context("cp")?;
    ensure!(done.success(), "copying {}", from.display());
    Ok(())
}

/// One bit, some bytes, or the end.
fn damage(random: &mut Random, path: &Path) -> Result<String> {
    let mut bytes = fs::read(path)?;
    let at = usize::try_from(random.below(bytes.len().try_into()?))?;
    let how = random.below(4);
    match how {
        0 => bytes.truncate(at),
        1 => bytes[at..].iter_mut().take(64).for_each(|byte| *byte = !*byte),
        _ => bytes[at] ^= 1 << random.below(8),
    }
    fs::write(path, bytes)?;
    Ok(format!("{} at {at}, in way {how}", path.display()))
}

fn damaged(bench: &Bench<'_>) -> Result<()> {
    let gone = Gone::new(bench, "damaged")?;
    // What would be put back, were the image whole.
    fs::write(gone.subject.folder.join("lines"), "of another day\n")?;
    let mut random = Random::new(2);
    for turn in 0..DAMAGES {
        let name = if turn % 2 == 0 { "records" } else { "pages" };
        let where_and_how = damage(&mut random, &gone.inside.store().join("1").join(name))?;
        gone.refused(bench, &["=recover"], &["damaged|checksum|truncated|bytes"])
            .with_context(|| where_and_how.clone())?;
        let left = fs::read_dir(gone.inside.store().join("1"))?.count();
        ensure!(left == 2, "{where_and_how}: {left} files in the image");
        gone.put_back()?;
    }
    passes(bench, &gone)
}

fn passes(bench: &Bench<'_>, gone: &Gone) -> Result<()> {
    gone.inside.recover_and_pass(&gone.subject, bench.workshop).context("whole again")
}

fn odd(bench: &Bench<'_>) -> Result<()> {
    let gone = Gone::new(bench, "odd")?;
    for odd in ODD {
        (odd.make)(gone.inside.store()).context(odd.what)?;
        if odd.words.is_empty() {
            passes(bench, &gone).context(odd.what)?;
            gone.subject.rewind()?;
        } else {
            gone.refused(bench, &["=recover"], odd.words).context(odd.what)?;
        }
        gone.put_back()?;
    }
    passes(bench, &gone)
}

fn earlier(bench: &Bench<'_>) -> Result<()> {
    let gone = Gone::new(bench, "earlier")?;
    copied(&gone.inside.store().join("1"), &gone.inside.store().join("2"))?;
    linked(gone.inside.store(), "2")?;
    fs::write(gone.inside.store().join("2/records"), "none")?;
    let recovering = Running::start(gone.command(bench, &["=recover"]), &gone.subject.folder, "recover")?;
    std::thread::sleep(Duration::from_millis(40));
    gone.subject.go()?;
    let finished = recovering.finish(PATIENCE)?;
    finished.expect_words("=recover", &["store/2 is damaged", "recovering", "store/1"])?;
    gone.subject.expect_pass(finished.status, &finished.errors)
}

fn more_words(bench: &Bench<'_>) -> Result<()> {
    let gone = Gone::new(bench, "words")?;
    gone.refused(bench, &["=recover", "=recover"], &["nothing to recover in \"=recover\""])?;
    gone.refused(bench, &["=recover", ""], &["nothing to recover"])?;
    gone.refused(bench, &["=recover", "store", "input.dat"], &["no more than a folder", "input.dat"])?;
    gone.refused(bench, &["=", "recover", "store", "input.dat"], &["no more than a folder", "input.dat"])?;
    passes(bench, &gone)
}

/// Images come and go all the time, and one is kept; who recovers one meanwhile does so, or says why not.
fn removed(bench: &Bench<'_>) -> Result<String> {
    let mut gone = Gone::new(bench, "removed")?;
    let over = AtomicBool::new(false);
    let (store, whole) = (gone.inside.store().to_owned(), gone.whole.join("1"));
    std::thread::scope(|scope| {
        let renewing = scope.spawn(|| renewed(&store, &whole, &over));
        let outcome = recovered_meanwhile(bench, &mut gone);
        over.store(true, Ordering::Relaxed);
        renewing.join().expect("a thread panicked")?;
        outcome
    })
}

fn renewed(store: &Path, whole: &Path, over: &AtomicBool) -> Result<()> {
    for number in 1u64.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let (old, new) = (store.join(number.to_string()), store.join((number + 1).to_string()));
        copied(whole, &store.join(".new"))?;
        fs::rename(store.join(".new"), &new)?;
        symlink(new.file_name().unwrap_or_default(), store.join(".latest"))?;
        fs::rename(store.join(".latest"), store.join("latest"))?;
        for name in ["records", "pages"] {
            fs::remove_file(old.join(name))?;
        }
        // A recovery may have something in there.
        let _mostly_empty = fs::remove_dir_all(old);
    }
    Ok(())
}

fn recovered_meanwhile(bench: &Bench<'_>, gone: &mut Gone) -> Result<String> {
    let mut recovered = 0;
    for turn in 0..REMOVALS {
        gone.inside.begin_again(&mut gone.subject, bench.workshop)?;
        let (inside, subject) = (&gone.inside, &mut gone.subject);
        process::await_some(PATIENCE, || (!subject.lives() || inside.catches(subject)).then_some(()));
        if gone.subject.lives() {
            recovered += 1;
            process::signal(gone.subject.pid(), Signal::KILL);
            gone.subject.wait_for_end()?;
            continue;
        }
        let status = gone.subject.wait_for_end()?;
        let said = fs::read_to_string(gone.subject.folder.join("recover.err")).unwrap_or_default();
        let why = status.code() == Some(125) && said.contains("libckpt: ");
        ensure!(why, "turn {turn}: {} '{}'", process::describe(status), said.trim());
    }
    Ok(format!("{recovered} of {REMOVALS} recovered"))
}

fn twice(bench: &Bench<'_>) -> Result<()> {
    for apart in APART {
        let gone = Gone::new(bench, &format!("twice {apart}"))?;
        let start =
            |label: &str| Running::start(gone.command(bench, &["=recover"]), &gone.subject.folder, label);
        let mut first = start("first")?;
        std::thread::sleep(Duration::from_millis(*apart));
        let mut second = start("second")?;
        let one_ended = || {
            let mut both = [&mut first, &mut second].into_iter();
            both.any(|one| !matches!(one.child.try_wait(), Ok(None))).then_some(())
        };
        process::await_some(PATIENCE, one_ended).context("none was refused")?;
        gone.subject.go()?;
        let ended = [first.finish(PATIENCE)?, second.finish(PATIENCE)?];
        let refused = ended.iter().position(|one| one.status.code() == Some(125));
        let Some(refused) = refused else { bail!("{apart} ms apart: both were recovered") };
        ended[refused].expect_words("the other one", &["of this program too", "end that process"])?;
        let other = &ended[1 - refused];
        gone.subject.expect_pass(other.status, &other.errors).with_context(|| format!("{apart} ms apart"))?;
    }
    Ok(())
}
