//! Positions in files that the kernel makes up as they are read. To go to one, it makes up all that is before it and keeps the rest of that
//! line for the next read: so they are set when there is nothing of the restore left to be told of.

use std::io;

use rewake_image::Image;
use rewake_image::records::open_file;
use rewake_linux::attributes;
use rustix::fs::SeekFrom;

use crate::error::RestoreError;
use crate::run::Seed;

/// Sets them, through duplicates of the new process's descriptors.
///
/// # Errors
/// Where the kernel does not go to a position.
pub(super) fn set(image: &Image, seed: &Seed<'_>) -> Result<(), RestoreError> {
    for file in &image.open_files {
        let Some(open_file::Kind::KernelFile(kernel)) = &file.kind else { continue };
        let mut descriptors = image
            .processes
            .iter()
            .flat_map(|process| process.descriptors.iter().map(move |descriptor| (process.pid, descriptor)));
        let holder = descriptors.find(|(_, descriptor)| descriptor.file == file.id);
        if kernel.position != 0
            && let Some((process, descriptor)) = holder
        {
            let pid = seed.outer(process);
            go_to(pid, descriptor.fd, kernel.position).map_err(|source| RestoreError::System {
                operation: "lseek",
                pid,
                object: format!("position in {}", String::from_utf8_lossy(&kernel.path)),
                source,
            })?;
        }
    }
    Ok(())
}

fn go_to(pid: i32, fd: i32, position: u64) -> io::Result<()> {
    let file = attributes::duplicate(pid, fd)?;
    let there = rustix::fs::seek(file, SeekFrom::Start(position))?;
    if there == position { Ok(()) } else { Err(io::Error::other(format!("it went to {there}"))) }
}
