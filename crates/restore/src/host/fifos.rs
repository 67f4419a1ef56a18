//! Named pipes that the program had open, all for itself: they must still be what they were, and nobody may sit in them, who would get
//! what the program wrote before.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use rewake_image::Image;
use rewake_image::records::FileIdentity;
use rewake_linux::proc::{Proc, holders};

/// What is wrong with them; `the_same`: they must be the very same inodes.
pub(super) fn changed(image: &Image, the_same: bool) -> Vec<String> {
    let named = image.pipes.iter().filter(|pipe| pipe.removed.is_none());
    // Without a capacity none of its ends is open.
    named.filter_map(|pipe| one(pipe.fifo.as_ref()?, the_same, pipe.capacity != 0)).collect()
}

fn one(identity: &FileIdentity, the_same: bool, open: bool) -> Option<String> {
    let path = identity.as_path();
    let now = match fs::metadata(path) {
        Ok(now) => now,
        Err(error) => return Some(format!("the fifo {} cannot be used: {error}", path.display())),
    };
    if !now.file_type().is_fifo() {
        return Some(format!("{} is no fifo any more", path.display()));
    }
    let inode = (now.dev(), now.ino());
    if the_same && inode != (identity.device, identity.inode) {
        return Some(format!("the fifo {} was replaced by another one since", path.display()));
    }
    if !open {
        return None;
    }
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let holder = *holders(&HashSet::from([inode]), |pid| pid == own).get(&inode)?;
    let name = Proc::open(holder).and_then(|holder| holder.comm()).unwrap_or_default();
    let name = String::from_utf8_lossy(&name).into_owned();
    Some(format!(
        "process {holder} ({name}) has the fifo {} open, which was the program's alone: end it first",
        path.display()
    ))
}
