//! Whether files that have no name any more make sense, and whether those who refer to them find them.

use std::collections::BTreeMap;

use super::files::identity;
use super::{ascending, ensure};
use crate::records::RemovedFile;
use crate::records::open_file::Kind;
use crate::{Image, ImageError};

/// Each is a descriptor of the restore for a moment.
const MOST: usize = 1 << 16;
/// `S_IFMT`, and what there may be of it: a folder, a fifo.
const KIND: u32 = 0o170_000;
const KINDS: [u32; 2] = [0o040_000, 0o010_000];

pub(super) fn check(image: &Image) -> Result<(), ImageError> {
    let count = image.removed_files.len();
    ensure!(count <= MOST, "RemovedFile", "{count} of them, at most {MOST} are possible");
    ascending(image.removed_files.iter().map(|file| file.id), "RemovedFile", "id")?;
    let mut folders: BTreeMap<u32, bool> = BTreeMap::new();
    for file in &image.removed_files {
        one(file, &folders)?;
        folders.insert(file.id, file.is_folder());
    }
    for (record, id, folder) in references(image) {
        let found = folders.get(&id);
        ensure!(found.is_some(), record, "refers to removed file {id}, which is not there");
        ensure!(found == Some(&folder), record, "removed file {id} is of another kind");
    }
    Ok(())
}

fn one(file: &RemovedFile, before: &BTreeMap<u32, bool>) -> Result<(), ImageError> {
    let record = &format!("RemovedFile {}", file.id);
    identity(file.identity.as_ref(), record)?;
    let mode = file.identity.as_ref().map_or(0, |identity| identity.mode);
    ensure!(KINDS.contains(&(mode & KIND)), record, "mode {mode:o} is of no folder and no fifo");
    let name = file.name();
    let possible = !name.is_empty() && name != b"." && name != b"..";
    ensure!(possible, record, "its name {:?} is impossible", String::from_utf8_lossy(name));
    if let Some(parent) = file.parent {
        ensure!(
            before.get(&parent) == Some(&true),
            record,
            "it was in {parent}, which is no folder before it"
        );
    }
    Ok(())
}

/// Who refers to which, and whether that must be a folder.
fn references(image: &Image) -> impl Iterator<Item = (&'static str, u32, bool)> {
    let folders = image.processes.iter().flat_map(|process| {
        let threads = process.threads.iter().filter_map(|thread| thread.own_fs.as_ref()?.cwd_removed);
        process.cwd_removed.into_iter().chain(threads).map(|id| ("Process", id, true))
    });
    let open = image.open_files.iter().filter_map(|file| match &file.kind {
        Some(Kind::Directory(directory)) => Some(("OpenFile", directory.removed?, true)),
        _ => None,
    });
    let fifos = image.pipes.iter().filter_map(|pipe| Some(("Pipe", pipe.removed?, false)));
    folders.chain(open).chain(fifos)
}
