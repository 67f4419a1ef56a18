//! A store: a folder of images, with a link `latest` to one of them.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use crate::describe::command;
use crate::{FILES, Image, ImageError, PageReader, RECORDS_FILE, dir};

/// Name of the link to the image that a store's owner made last.
pub const LATEST: &str = "latest";

/// An image in a store, complete or not.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StoredImage {
    /// Name of its directory in the store.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// Whether `latest` leads to it.
    pub latest: bool,
    /// What it is.
    #[serde(flatten)]
    pub state: ImageState,
}

/// Whether an image can be resumed, as far as its records tell.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ImageState {
    /// The records are whole and the file `pages` has the right length. Its content has not been looked at.
    Complete(ImageFacts),
    /// It cannot be resumed.
    Broken {
        /// Why not.
        reason: String,
    },
}

/// What a list of images shows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImageFacts {
    /// When it was made, in nanoseconds since 1970.
    pub created_unix_ns: u64,
    /// The process.
    pub pid: i32,
    /// Path of the executable.
    pub exe: String,
    /// Arguments, separated by spaces.
    pub command: String,
    /// How many threads.
    pub threads: usize,
    /// Bytes of the image's files.
    pub bytes: u64,
    /// Bytes of memory in it, decompressed.
    pub memory_bytes: u64,
}

impl StoredImage {
    /// What is known about it, if it is complete.
    #[must_use]
    pub const fn facts(&self) -> Option<&ImageFacts> {
        match &self.state {
            ImageState::Complete(facts) => Some(facts),
            ImageState::Broken { .. } => None,
        }
    }
}

/// Whether a directory looks like an image, complete or not, rather than a store: it has a file of an image.
#[must_use]
pub fn is_image(dir: &Path) -> bool {
    FILES.iter().any(|name| dir.join(name).symlink_metadata().is_ok())
}

/// The images in a store: broken ones first, then complete ones from the oldest to the newest. Temporary directories of runs, other
/// files and directories without a file of an image are no images. A directory that is an image itself is listed alone.
///
/// # Errors
/// [`ImageError::Io`] when the store cannot be read.
pub fn list(store: &Path) -> Result<Vec<StoredImage>, ImageError> {
    if is_image(store) {
        let name = store.file_name().unwrap_or(store.as_os_str());
        return Ok(vec![StoredImage {
            name: name.to_string_lossy().into_owned(),
            path: store.to_owned(),
            latest: false,
            state: look(store),
        }]);
    }
    let latest = latest_link(store);
    let mut images = Vec::new();
    for entry in std::fs::read_dir(store).map_err(ImageError::io("open", store))? {
        let entry = entry.map_err(ImageError::io("read", store))?;
        let (name, path) = (entry.file_name(), entry.path());
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_directory && !dir::is_temporary(&name) && is_image(&path) {
            let latest = latest.as_deref() == Some(name.as_os_str());
            let name = name.to_string_lossy().into_owned();
            images.push(StoredImage { name, state: look(&path), path, latest });
        }
    }
    images.sort_by(|a, b| {
        let key = |image: &StoredImage| image.facts().map(|facts| facts.created_unix_ns);
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
    Ok(images)
}

/// The latest complete image of a store: the one that the link `latest` leads to, if it is complete, else the newest.
///
/// # Errors
/// [`ImageError::NoCompleteImage`], or [`ImageError::Io`].
pub fn latest(store: &Path) -> Result<PathBuf, ImageError> {
    // There may be many images: only where this one does not do are the others looked at.
    if let Some(linked) = linked(store)
        && matches!(look(&linked), ImageState::Complete(_))
    {
        return Ok(linked);
    }
    let images = list(store)?;
    let complete = || images.iter().rev().filter(|image| image.facts().is_some());
    let found = complete().find(|image| image.latest).or_else(|| complete().next());
    match found {
        Some(image) => Ok(image.path.clone()),
        None => Err(ImageError::NoCompleteImage { store: store.to_owned() }),
    }
}

/// What `-d` means: the image itself, or the latest complete one of a store.
///
/// # Errors
/// As [`latest`].
pub fn resolve(path: &Path) -> Result<PathBuf, ImageError> {
    if is_image(path) { Ok(path.to_owned()) } else { latest(path) }
}

/// The image in the store that the link `latest` leads to, complete or not, if there is one.
#[must_use]
pub fn linked(store: &Path) -> Option<PathBuf> {
    let name = latest_link(store).filter(|name| !dir::is_temporary(name))?;
    let path = store.join(name);
    (path.symlink_metadata().is_ok_and(|data| data.is_dir()) && is_image(&path)).then_some(path)
}

/// Why an image cannot be resumed, as far as its records tell.
#[must_use]
pub fn broken(image: &Path) -> Option<String> {
    match look(image) {
        ImageState::Complete(_) => None,
        ImageState::Broken { reason } => Some(reason),
    }
}

/// The name in the store that the link leads to; a link to elsewhere does not count.
fn latest_link(store: &Path) -> Option<std::ffi::OsString> {
    let target = std::fs::read_link(store.join(LATEST)).ok()?;
    let mut parts = target.components().filter(|part| *part != Component::CurDir);
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => Some(OsStr::to_owned(name)),
        _ => None,
    }
}

fn look(dir: &Path) -> ImageState {
    let facts = Image::open(dir).and_then(|image| {
        PageReader::open(dir, &image.stream)?;
        Ok(facts(dir, &image))
    });
    match facts {
        Ok(facts) => ImageState::Complete(facts),
        Err(ImageError::In { source, .. }) => ImageState::Broken { reason: source.to_string() },
        Err(error) => ImageState::Broken { reason: error.to_string() },
    }
}

fn facts(dir: &Path, image: &Image) -> ImageFacts {
    let records = std::fs::metadata(dir.join(RECORDS_FILE)).map_or(0, |data| data.len());
    let process = image.root();
    ImageFacts {
        created_unix_ns: image.manifest.created_unix_ns,
        pid: process.pid,
        exe: crate::records::path_of(&process.exe).display().to_string(),
        command: command(&process.cmdline),
        threads: image.thread_count(),
        bytes: records + image.stream.file_length,
        memory_bytes: image.stream.stream_length,
    }
}
