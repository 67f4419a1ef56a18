//! Files that the kernel makes up: those that do not tell of the new process must be there, and whoever called us must be allowed to
//! open them.

use rewake_image::Image;
use rewake_image::check::told_of;
use rewake_image::records::{open_file, path_of};
use rewake_linux::virtual_files::Virtual;
use rustix::fs::{Mode, OFlags};

use crate::putback::InvokersRights;

/// What open(2) is asked for: how the file is accessed, and whether links are followed.
const ASKED: OFlags = OFlags::ACCMODE.union(OFlags::PATH).union(OFlags::NOFOLLOW).union(OFlags::DIRECTORY);

/// What cannot be opened, in words.
pub(super) fn missing(image: &Image) -> Vec<String> {
    let others = image.open_files.iter().filter_map(|file| match &file.kind {
        Some(open_file::Kind::KernelFile(kernel)) if told_of(&kernel.path)[0].is_none() => {
            Some((&kernel.path, file.flags))
        }
        _ => None,
    });
    let others: Vec<_> = others.collect();
    if others.is_empty() {
        return Vec::new();
    }
    let rights = match InvokersRights::assume() {
        Ok(rights) => rights,
        Err(error) => return vec![error.to_string()],
    };
    let missing = others.into_iter().filter_map(|(path, flags)| {
        let name = path_of(path).display();
        let flags = OFlags::from_bits_retain(flags) & ASKED | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::open(&path[..], flags, Mode::empty()) {
            Ok(file) if Virtual::of(&file).is_some_and(|system| !matches!(system, Virtual::Other(_))) => None,
            Ok(_) => Some(format!("{name} is no file of the kernel's here")),
            Err(error) => Some(format!("{name} cannot be used: {error}")),
        }
    });
    let missing = missing.collect();
    drop(rights);
    missing
}
