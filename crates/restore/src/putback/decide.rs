//! What to do about each file that the image refers to. Pure: how the files are now is told by the caller.
//!
//! | file | unchanged | changed: `error` | changed: `restore` | `as-is` |
//! |---|---|---|---|---|
//! | written by the program, content in the image | as it is | refused | put back | as it is |
//! | only read by it, content in the image | as it is | saved content, privately | saved content, privately | as it is; gone: saved content |
//! | content not in the image | as it is | refused | refused | as it is |

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rewake_image::Image;
use rewake_image::records::file_content::Kind;
use rewake_image::records::vma::Backing;
use rewake_image::records::{FileContent, FileIdentity, open_file};

use crate::OnChanged;

const ACCESS: u32 = libc::O_ACCMODE.cast_unsigned();
const WRITABLE: u32 = libc::PROT_WRITE.cast_unsigned();

/// How a file is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Now {
    /// As far as inode, size and time of change tell.
    Same,
    /// How it differs.
    Changed(String),
    /// Why there is nothing to open.
    Unusable(String),
}

/// What stands in the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remedies {
    /// A file could be put back.
    pub restore: bool,
    /// Files could be taken as they are.
    pub as_is: bool,
    /// The content is not in the image, made at this level.
    pub not_stored: bool,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decisions {
    /// Ids of contents whose files are put back.
    pub put_back: BTreeSet<u32>,
    /// Ids of contents that the program gets privately, their files being left alone.
    pub private: BTreeSet<u32>,
    /// Ids of contents whose files look as they did, though that says little: the program had them mapped, and writing to memory
    /// changes no time. They are compared, byte by byte.
    pub compare: BTreeSet<u32>,
    /// Differences that forbid the resume.
    pub refused: Vec<String>,
    /// What can be done about them.
    pub remedies: Remedies,
}

/// A file that something in the image refers to.
struct Reference<'a> {
    identity: &'a FileIdentity,
    content: Option<u32>,
    written: bool,
}

/// Decides about all files.
pub fn decide(image: &Image, on_changed: OnChanged, look: &mut dyn FnMut(&FileIdentity) -> Now) -> Decisions {
    let contents: BTreeMap<u32, &FileContent> =
        image.file_contents.iter().map(|content| (content.id, content)).collect();
    let mapped = mapped_writable(image);
    let mut decisions = Decisions::default();
    // A file that is also open for writing has its content in the image by that.
    let named = image.file_contents.iter().filter(|content| content.kind() == Kind::Named && content.written);
    let by_path: BTreeMap<&[u8], &FileContent> =
        named.filter_map(|content| Some((content.identity.as_ref()?.path.as_slice(), content))).collect();
    let mut known: BTreeMap<(PathBuf, Option<u32>), bool> = BTreeMap::new();
    for reference in references(image) {
        let content = reference.content.and_then(|id| contents.get(&id).copied());
        let content = content.or_else(|| by_path.get(reference.identity.path.as_slice()).copied());
        if content.is_some_and(|content| content.kind() != Kind::Named) {
            // It lives in the image alone: there is nothing to compare it with.
            continue;
        }
        let identity = content.and_then(|content| content.identity.as_ref()).unwrap_or(reference.identity);
        let written = content.map_or(reference.written, |content| content.written);
        let key = (identity.as_path().to_owned(), content.map(|content| content.id));
        // The same file again; a worse case (it is written after all) is looked at again.
        if known.get(&key).is_some_and(|before| *before || !written) {
            continue;
        }
        known.insert(key, written);
        let id = content.map(|content| content.id);
        let suspicious = id.filter(|id| written && mapped.contains(id));
        one(&mut decisions, on_changed, identity.as_path(), (id, written, suspicious), look(identity));
    }
    decisions
}

fn one(
    decisions: &mut Decisions,
    on_changed: OnChanged,
    path: &Path,
    (content, written, suspicious): (Option<u32>, bool, Option<u32>),
    now: Now,
) {
    let (how, usable) = match now {
        Now::Same => {
            decisions.compare.extend(suspicious.filter(|_| on_changed != OnChanged::AsIs));
            return;
        }
        Now::Changed(_) if on_changed == OnChanged::AsIs => return,
        Now::Changed(how) => (how, true),
        Now::Unusable(how) => (how, false),
    };
    match content {
        Some(id) if !written => {
            decisions.private.insert(id);
            return;
        }
        Some(id) if on_changed == OnChanged::Restore => {
            decisions.put_back.insert(id);
            return;
        }
        Some(_) => decisions.remedies.restore = true,
        None => decisions.remedies.not_stored = true,
    }
    decisions.remedies.as_is |= usable;
    let line = format!("{} {how}", path.display());
    if !decisions.refused.contains(&line) {
        decisions.refused.push(line);
    }
}

impl Decisions {
    /// One of those compared was found to differ.
    pub fn differs(&mut self, content: &FileContent, on_changed: OnChanged) {
        if on_changed == OnChanged::Restore {
            self.put_back.insert(content.id);
            return;
        }
        let path = content.identity.as_ref().map_or(Path::new(""), FileIdentity::as_path);
        self.refused.push(format!("{} changed since: written through memory", path.display()));
        self.remedies.restore = true;
        self.remedies.as_is = true;
    }
}

impl Decisions {
    /// The files whose content the program gets for itself.
    #[must_use]
    pub fn private_paths(&self, image: &Image) -> Vec<PathBuf> {
        let contents = image.file_contents.iter().filter(|content| self.private.contains(&content.id));
        contents.filter_map(|content| Some(content.identity.as_ref()?.as_path().to_owned())).collect()
    }
}

fn references(image: &Image) -> Vec<Reference<'_>> {
    let open = image.open_files.iter().filter_map(|file| match file.kind.as_ref()? {
        open_file::Kind::Regular(regular) => Some(Reference {
            identity: regular.identity.as_ref()?,
            content: regular.content,
            written: file.flags & ACCESS != 0,
        }),
        _ => None,
    });
    let written = |index: usize| {
        vmas(image).any(|vma| vma.shared && vma.protection & WRITABLE != 0 && is_of(vma, index))
    };
    let mapped = image.mapped_files.iter().enumerate().filter_map(|(index, file)| {
        Some(Reference { identity: file.identity.as_ref()?, content: file.content, written: written(index) })
    });
    let exe = image.memories().filter_map(|memory| memory.exe.as_ref());
    let exe = exe.filter_map(|file| {
        Some(Reference { identity: file.identity.as_ref()?, content: file.content, written: false })
    });
    open.chain(mapped).chain(exe).collect()
}

fn vmas(image: &Image) -> impl Iterator<Item = &rewake_image::records::Vma> {
    image.memories().flat_map(|memory| &memory.vmas)
}

fn is_of(vma: &rewake_image::records::Vma, index: usize) -> bool {
    vma.backing() == Backing::File && usize::try_from(vma.object).is_ok_and(|object| object == index)
}

/// Contents of files that the program has mapped shared: it may write to them at any time.
fn mapped_writable(image: &Image) -> BTreeSet<u32> {
    let files = vmas(image).filter(|vma| vma.shared && vma.backing() == Backing::File);
    let files = files.filter_map(|vma| image.mapped_files.get(usize::try_from(vma.object).ok()?));
    files.filter_map(|file| file.content).collect()
}
