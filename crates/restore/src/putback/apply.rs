//! Changing a file into what it was at the capture.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use rewake_image::records::FileContent;

use super::error::PutBackError;
use super::examine::Seen;
use super::file;
use super::journal::Entry;
use super::saved::Saved;

/// Puts a file back. What it is now is as was `seen`; gives what it was left as.
///
/// # Errors
/// When it changed meanwhile, and what the operating system refuses; it may be half done then.
pub fn apply(
    entry: &Entry,
    seen: Option<Seen>,
    content: &FileContent,
    saved: &mut Saved<'_>,
) -> Result<Seen, PutBackError> {
    let path = entry.path.as_path();
    let failed = |operation| PutBackError::io::<io::Error>(operation, path);
    let file = match seen {
        None => file::create(path).map_err(failed("create"))?,
        Some(seen) => {
            let moving = || PutBackError::Moving { path: path.to_owned() };
            let file = file::open(path, true).map_err(failed("open"))?.ok_or_else(moving)?;
            if Seen::of(&file.metadata().map_err(failed("stat"))?) != seen {
                return Err(moving());
            }
            file
        }
    };
    let now = file.metadata().map_err(failed("stat"))?.len();
    if now > entry.new.size {
        file.set_len(entry.new.size).map_err(failed("truncate"))?;
    }
    let mut bytes = Vec::new();
    for chunk in entry.chunks.iter().filter(|chunk| chunk.new_len > 0) {
        bytes.resize(usize::try_from(chunk.new_len).unwrap_or_default(), 0);
        saved.read(content, chunk.offset, &mut bytes)?;
        file::write_at(&file, &bytes, chunk.offset).map_err(failed("write"))?;
    }
    finish(&file, entry, content).map_err(failed("put back"))?;
    Ok(Seen::of(&file.metadata().map_err(failed("stat"))?))
}

fn finish(file: &File, entry: &Entry, content: &FileContent) -> io::Result<()> {
    let facts = file.metadata()?;
    if facts.len() != entry.new.size {
        file.set_len(entry.new.size)?;
    }
    if entry.old.is_none() && (facts.uid(), facts.gid()) != (content.uid, content.gid) {
        std::os::unix::fs::fchown(file, Some(content.uid), Some(content.gid))?;
    }
    file::set_mode(file, entry.new.mode)?;
    file::set_time(file, &entry.new)?;
    file.sync_all()?;
    if entry.old.is_none() {
        file::sync_folder(&entry.path)?;
    }
    Ok(())
}
