//! Where images go and where they are found: a folder for each program, in the working folder unless somebody says otherwise.

use std::path::{Path, PathBuf};

/// Folder of all stores.
const FOLDER: &str = ".rewake";

/// The store of the program that this process runs.
#[must_use]
pub fn of_this_program() -> PathBuf {
    if let Some(directory) = crate::settings::directory() {
        return directory;
    }
    let exe = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let name = exe.file_name().map_or_else(|| "program".into(), std::ffi::OsStr::to_os_string);
    Path::new(FOLDER).join(name)
}

/// Where the next image of a store goes: numbers count up.
///
/// # Errors
/// When the store cannot be read.
pub fn next(store: &Path) -> std::io::Result<PathBuf> {
    use rustix::fs::{Dir, Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut last = 0u64;
    // Not by std: the C library's opendir takes memory of the program's.
    for entry in Dir::new(rustix::fs::open(store, flags, Mode::empty())?)? {
        let number = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok());
        last = last.max(number.unwrap_or(0));
    }
    Ok(store.join((last + 1).to_string()))
}

/// Makes `latest` lead to an image.
///
/// # Errors
/// The kernel's.
pub fn point_to(store: &Path, image: &Path) -> std::io::Result<()> {
    let Some(name) = image.file_name() else { return Ok(()) };
    let new = store.join(format!(".latest-{}", std::process::id()));
    rustix::fs::symlink(name, &new)?;
    rustix::fs::rename(&new, store.join(rewake_image::store::LATEST))?;
    Ok(())
}
