//! Standard streams of this process that lead to a file which the program was writing to as the same stream: it goes on with that very open
//! file. A shell that waits for us and has it too (`(./prog || ./prog =recover) > log`) writes on behind what the program writes.
//!
//! Where others than those who wait for us write to the same open file (runs side by side that share a log), the file is not put back:
//! their lines would be lost. So is none that ends before what the program had written, nor one in which it was not at the end.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rewake_image::Image;
use rewake_image::records::file_content::Kind as ContentKind;
use rewake_image::records::{FileIdentity, OpenFile, open_file};
use rewake_linux::inside::COPY;
use rewake_linux::kcmp;
use rewake_linux::proc::{Proc, processes};
use rustix::fs::SeekFrom;

use crate::putback::decide::Decisions;

const ACCESS: u32 = libc::O_ACCMODE.cast_unsigned();
const APPENDS: u32 = libc::O_APPEND.cast_unsigned();
/// Flags that say how the file was opened, not what may be done with it.
const OPENING: u32 =
    (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY | libc::O_CLOEXEC).cast_unsigned();
/// No chain of parents is as long.
const MOST_PARENTS: usize = 1 << 16;

/// A standard stream that the program takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Its number.
    pub number: u32,
    /// Others write to it: the file is left as it is, and the program writes on where they are.
    pub goes_on: bool,
    /// All that is written is added at the end.
    pub appends: bool,
}

/// By the id of the open file in the image.
pub type Streams = BTreeMap<u32, Stream>;

/// Finds them. Files that are to go on are not put back any more.
#[must_use]
pub fn own(image: &Image, decisions: &mut Decisions) -> Streams {
    let mut streams = Streams::new();
    for number in 0..=2u32 {
        let Some((file, content)) = written_as(image, number) else { continue };
        if streams.contains_key(&file.id) || content.is_some_and(|id| decisions.private.contains(&id)) {
            continue;
        }
        let own = std::process::id().cast_signed();
        let fd = number.cast_signed();
        let taken = |stream: &Stream| is_same(fd, own, stream.number.cast_signed());
        if !leads_to(fd, file) || streams.values().any(taken) {
            continue;
        }
        let goes_on = is_shared_with_strangers(fd);
        if goes_on && !(is_output(image, file, content) && still_has_all(fd, file)) {
            continue;
        }
        if goes_on {
            decisions.put_back.retain(|id| content != Some(*id));
        }
        streams.insert(file.id, Stream { number, goes_on, appends: file.flags & APPENDS != 0 });
    }
    streams
}

/// What becomes of lines that were written since the image was made, for people.
#[must_use]
pub fn notes(image: &Image, streams: &Streams, decisions: &Decisions) -> Vec<String> {
    let note = |(id, stream): (&u32, &Stream)| {
        let file = image.open_files.iter().find(|file| file.id == *id)?;
        let Some(open_file::Kind::Regular(regular)) = &file.kind else { return None };
        let identity = regular.identity.as_ref()?;
        let facts = rustix::fs::stat(format!("/proc/self/fd/{}", stream.number)).ok()?;
        let more = u64::try_from(facts.st_size).ok()?.checked_sub(identity.size).filter(|more| *more > 0)?;
        let path = identity.as_path().display();
        if stream.goes_on {
            return Some(format!(
                "{path} is open elsewhere too: nothing is taken back there, so what the program wrote after its checkpoint will be there twice"
            ));
        }
        let goes = regular.content.is_some_and(|id| decisions.put_back.contains(&id));
        goes.then(|| {
            format!("{path} is as it was at the checkpoint: {more} bytes written after it are taken back")
        })
    };
    streams.iter().filter_map(note).collect()
}

/// Whether our standard error is a file that the program has open, or has the content of.
#[must_use]
pub fn stderr_is_the_programs(image: &Image) -> bool {
    let Ok(ours) = rustix::fs::fstat(io::stderr()) else { return true };
    let opened = image.open_files.iter().filter_map(|file| match file.kind.as_ref()? {
        open_file::Kind::Regular(regular) => regular.identity.as_ref(),
        _ => None,
    });
    let stored = image.file_contents.iter().filter_map(|content| content.identity.as_ref());
    let is_ours = |identity: &FileIdentity| {
        // It may have been on another file system then, or another host.
        std::fs::metadata(identity.as_path())
            .is_ok_and(|named| (named.dev(), named.ino()) == (ours.st_dev, ours.st_ino))
    };
    opened.chain(stored).any(is_ours)
}

/// Which of ours the program writes to as its own, whoever else does.
#[must_use]
pub fn common(image: &Image) -> Vec<i32> {
    let is_common = |number: &u32| {
        written_as(image, *number).is_some_and(|(file, _)| leads_to(number.cast_signed(), file))
    };
    (0..=2u32).filter(is_common).map(u32::cast_signed).collect()
}

/// The file under a name that the program writes to as this stream, and the id of its saved content.
fn written_as(image: &Image, number: u32) -> Option<(&OpenFile, Option<u32>)> {
    let descriptors = &image.root().descriptors;
    let descriptor = descriptors.iter().find(|descriptor| descriptor.fd == number.cast_signed())?;
    let file = image.open_files.iter().find(|file| file.id == descriptor.file)?;
    let open_file::Kind::Regular(regular) = file.kind.as_ref()? else { return None };
    let content = regular.content.and_then(|id| image.file_contents.iter().find(|content| content.id == id));
    let named = content.is_none_or(|content| content.kind() == ContentKind::Named);
    (named && file.flags & ACCESS != 0).then_some((file, regular.content))
}

/// Whether our stream is the same file, opened in the same way.
fn leads_to(fd: i32, file: &OpenFile) -> bool {
    let Some(open_file::Kind::Regular(regular)) = &file.kind else { return false };
    let path = regular.identity.as_ref().map_or(Path::new(""), FileIdentity::as_path);
    let (Ok(named), Ok(ours)) = (std::fs::metadata(path), std::fs::metadata(format!("/proc/self/fd/{fd}")))
    else {
        return false;
    };
    let flags = Proc::own().and_then(|own| own.fdinfo(fd)).map(|info| info.flags);
    (named.dev(), named.ino()) == (ours.dev(), ours.ino())
        && flags.is_ok_and(|flags| flags & !OPENING == file.flags & !OPENING)
}

/// Whether the program has it for nothing but writing, and nowhere else.
fn is_output(image: &Image, file: &OpenFile, content: Option<u32>) -> bool {
    let only = file.flags & ACCESS == libc::O_WRONLY.cast_unsigned();
    let others = image.open_files.iter().filter(|other| other.id != file.id);
    let elsewhere = others.filter_map(|other| match &other.kind {
        Some(open_file::Kind::Regular(regular)) => regular.content,
        _ => None,
    });
    let mapped = image.mapped_files.iter().filter_map(|mapped| mapped.content);
    only && !elsewhere.chain(mapped).any(|id| Some(id) == content)
}

/// Whether the program wrote at the end of it, and all that was there then still is, as far as its length tells.
fn still_has_all(fd: i32, file: &OpenFile) -> bool {
    let Some(open_file::Kind::Regular(regular)) = &file.kind else { return false };
    let Some(size) = regular.identity.as_ref().map(|identity| identity.size) else { return false };
    let len = std::fs::metadata(format!("/proc/self/fd/{fd}")).map_or(0, |facts| facts.len());
    (file.flags & APPENDS != 0 || regular.position == size) && len >= size
}

/// Whether somebody has this stream who does not wait for us, nor writes an image.
fn is_shared_with_strangers(fd: i32) -> bool {
    let known = ours_and_parents();
    let copies =
        |pid: &i32| Proc::open(*pid).and_then(|process| process.comm()).is_ok_and(|name| is_copy(&name));
    let others = processes().unwrap_or_default().into_iter().filter(|pid| !known.contains(pid));
    let mut strangers = others.filter(|pid| !copies(pid));
    let Ok(ours) = rustix::fs::stat(format!("/proc/self/fd/{fd}")) else { return false };
    strangers.any(|pid| {
        let fds = Proc::open(pid).and_then(|process| process.fds()).unwrap_or_default();
        fds.into_iter().any(|other| {
            (other.link.stat.device, other.link.stat.inode) == (ours.st_dev, ours.st_ino)
                && is_same(fd, pid, other.fd)
        })
    })
}

/// Whether a process of this name writes an image of its own memory: it has what the program had open, and writes nothing to it.
fn is_copy(name: &[u8]) -> bool {
    name.trim_ascii_end() == COPY.to_bytes()
}

/// This process, its parent, and so on.
pub fn ours_and_parents() -> Vec<i32> {
    let mut all = vec![std::process::id().cast_signed()];
    while all.len() < MOST_PARENTS
        && let Some(last) = all.last()
        && let Ok(stat) = Proc::open(*last).and_then(|process| process.stat())
        && stat.ppid > 0
        && !all.contains(&stat.ppid)
    {
        all.push(stat.ppid);
    }
    all
}

/// Whether a descriptor of a process and ours are one and the same open file. Where nobody may compare (in containers), what the kernel
/// shows of both has to do.
#[must_use]
pub fn is_same(own_fd: i32, pid: i32, fd: i32) -> bool {
    let own = std::process::id().cast_signed();
    match kcmp::same_file(own, own_fd, pid, fd) {
        Ok(order) => order.is_eq(),
        Err(_) => {
            let info = |pid, fd| Proc::open(pid).and_then(|process| process.fdinfo(fd));
            let (Ok(ours), Ok(theirs)) = (info(own, own_fd), info(pid, fd)) else { return false };
            let ways = [&ours, &theirs].map(|info| (info.position, info.flags & !OPENING, info.mount));
            ways[0] == ways[1]
        }
    }
}

/// Where streams stood that the program would move: they are put back there when it does not come to life.
#[derive(Debug)]
pub struct Positions(Vec<(u32, u64)>);

impl Positions {
    /// Notes them.
    #[must_use]
    pub fn of(streams: &Streams) -> Self {
        let moved = streams.values().filter(|stream| !stream.goes_on && !stream.appends);
        let position = |stream: &Stream| Some((stream.number, seek(stream.number, SeekFrom::Current(0))?));
        Self(moved.filter_map(position).collect())
    }

    /// Puts them back.
    pub fn put_back(&self) {
        for (number, position) in &self.0 {
            // One that cannot be moved has not been moved.
            let _moved = seek(*number, SeekFrom::Start(*position));
        }
    }
}

fn seek(number: u32, to: SeekFrom) -> Option<u64> {
    match number {
        0 => rustix::fs::seek(io::stdin(), to).ok(),
        1 => rustix::fs::seek(io::stdout(), to).ok(),
        _ => rustix::fs::seek(io::stderr(), to).ok(),
    }
}
