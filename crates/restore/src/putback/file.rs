//! The files themselves: opened by name without being led astray, looked at, given sizes and times.

use std::fs::{File, Metadata, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rewake_linux::hugetlb;
use rustix::fs::{FallocateFlags, Timespec, Timestamps, UTIME_OMIT};

use super::journal::State;

const PERMISSIONS: u32 = 0o7777;

/// Opens a regular file, to read or to change it. A link in its place is not followed, a pipe not waited for; `None` if there is
/// nothing.
///
/// # Errors
/// What open(2) says, or that it is no regular file.
pub fn open(path: &Path, write: bool) -> io::Result<Option<File>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = match File::options().read(true).write(write).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(io::Error::other("it is a symbolic link now"));
        }
        Err(error) => return Err(error),
    };
    if file.metadata()?.is_file() {
        Ok(Some(file))
    } else {
        Err(io::Error::other("it is no regular file now"))
    }
}

/// Makes a file that is not there yet, for us alone.
///
/// # Errors
/// What open(2) says.
pub fn create(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NOCTTY;
    File::options().read(true).write(true).create_new(true).mode(0o600).custom_flags(flags).open(path)
}

/// Size, time of change and mode.
#[must_use]
pub fn state(facts: &Metadata) -> State {
    State {
        size: facts.len(),
        mtime_s: facts.mtime(),
        mtime_ns: u32::try_from(facts.mtime_nsec()).unwrap_or(0),
        mode: facts.mode() & PERMISSIONS,
    }
}

/// Sets the time of last change, and no other.
///
/// # Errors
/// What utimensat(2) says; it is for owners only.
pub fn set_time(file: &File, state: &State) -> io::Result<()> {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let time = Timespec { tv_sec: state.mtime_s, tv_nsec: state.mtime_ns.into() };
    Ok(rustix::fs::futimens(file, &Timestamps { last_access: omit, last_modification: time })?)
}

/// Sets the mode, where it is another one.
///
/// # Errors
/// What fchmod(2) says.
pub fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    if file.metadata()?.mode() & PERMISSIONS == mode {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(mode))
}

/// Where the file has data from `offset` on; where holes cannot be told, everything is data.
///
/// # Errors
/// What lseek(2) says.
pub fn next_data(file: &File, offset: u64, size: u64) -> io::Result<Option<u64>> {
    if offset >= size {
        return Ok(None);
    }
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(next) => Ok(Some(next).filter(|next| *next < size)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(rustix::io::Errno::INVAL) => Ok(Some(offset)),
        Err(error) => Err(error.into()),
    }
}

/// Reads as much as there is, up to the length of the buffer.
///
/// # Errors
/// What pread(2) says.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    struct At<'a>(&'a File, u64);
    impl Read for At<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = std::os::unix::fs::FileExt::read_at(self.0, buffer, self.1)?;
            self.1 += u64::try_from(count).map_err(io::Error::other)?;
            Ok(count)
        }
    }
    let mut done = 0;
    let mut at = At(file, offset);
    while done < buffer.len() {
        match at.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes; what is all zeros becomes a hole where the file system can make one, so that sparse files stay sparse.
///
/// # Errors
/// What pwrite(2) says.
pub fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let shift = hugetlb::page_shift(file)?;
    if shift != 0 {
        return hugetlb::write_at(file, shift, offset, bytes);
    }
    let length = u64::try_from(bytes.len()).map_err(io::Error::other)?;
    let end = offset.saturating_add(length);
    if bytes.iter().all(|byte| *byte == 0) && end <= file.metadata()?.len() {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(file, flags, offset, length).is_ok() {
            return Ok(());
        }
    }
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Waits until the folder of a file is on the disk.
///
/// # Errors
/// What fsync(2) says.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
