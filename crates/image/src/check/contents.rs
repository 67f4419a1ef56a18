//! Whether contents of files make sense, and whether those who refer to them find them.

use std::collections::HashSet;

use super::files::identity;
use super::memory::extents;
use super::{ascending, ensure, invalid};
use crate::records::file_content::Kind;
use crate::records::{Extent, FileContent, open_file};
use crate::{Image, ImageError, PAGE_SIZE};

/// `NAME_MAX` less `memfd:`.
const MAX_MEMFD_NAME: usize = 249;
/// F_SEAL_SEAL, SHRINK, GROW, WRITE, FUTURE_WRITE, EXEC.
const SEALS: u32 = 0x3f;
/// 64 KiB to 16 GiB, and none.
const HUGE_PAGES: std::ops::RangeInclusive<u32> = 16..=34;

pub(super) fn check(image: &Image) -> Result<(), ImageError> {
    ascending(image.file_contents.iter().map(|content| content.id), "FileContent", "id")?;
    image.file_contents.iter().try_for_each(content)?;
    let known: HashSet<u32> = image.file_contents.iter().map(|content| content.id).collect();
    let open = image.open_files.iter().filter_map(|file| match &file.kind {
        Some(open_file::Kind::Regular(regular)) => regular.content,
        _ => None,
    });
    let exe = image.memories().filter_map(|memory| memory.exe.as_ref()?.content);
    let mapped = image.mapped_files.iter().filter_map(|file| file.content);
    for id in open.chain(exe).chain(mapped) {
        ensure!(known.contains(&id), "FileContent", "content {id} is referred to and not there");
    }
    Ok(())
}

fn content(content: &FileContent) -> Result<(), ImageError> {
    let record = &format!("FileContent {}", content.id);
    let Some(is) = &content.identity else { return Err(invalid(record, "no identity".to_owned())) };
    match Kind::try_from(content.kind) {
        Ok(Kind::Named | Kind::Unlinked) => identity(Some(is), record)?,
        Ok(Kind::Memfd) => {
            let fits = is.path.len() <= MAX_MEMFD_NAME && !is.path.contains(&0);
            ensure!(fits, record, "a memfd named {:?} is impossible", String::from_utf8_lossy(&is.path));
        }
        Err(_) => return Err(invalid(record, format!("unknown kind {}", content.kind))),
    }
    let shift = content.huge_page_shift;
    ensure!(
        shift == 0 || HUGE_PAGES.contains(&shift),
        record,
        "huge pages of 2^{shift} bytes are impossible"
    );
    ensure!(content.seals & !SEALS == 0, record, "unknown seals {:#x}", content.seals);
    extents(&content.pages, record)?;
    let size = is.size.checked_next_multiple_of(PAGE_SIZE).filter(|size| i64::try_from(*size).is_ok());
    let Some(size) = size else {
        return Err(invalid(record, format!("a size of {} bytes is impossible", is.size)));
    };
    let page = 1u64.checked_shl(shift).unwrap_or(1);
    let whole = |number: u64| number.is_multiple_of(page);
    ensure!(
        whole(is.size) && content.pages.iter().all(|extent| whole(extent.address) && whole(extent.length)),
        record,
        "its content is not whole huge pages of {page} bytes"
    );
    let end = content.pages.last().and_then(Extent::end).unwrap_or(0);
    ensure!(end <= size, record, "pages up to {end:#x} in a file of {size:#x} bytes");
    Ok(())
}
