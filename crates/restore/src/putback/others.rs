//! Who else has a file open for writing. This process may, as its standard streams: those are the program's in a moment. So may those who
//! wait for it, a shell and what started that, where they have the same stream which the program goes on with, or one of theirs that
//! only adds to the file.

use std::fs::File;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rewake_linux::lease::{Writers, writers};
use rewake_linux::proc::{Proc, processes};
use rustix::fs::{Stat, fstat};

use super::error::PutBackError;
use crate::streams::{Streams, is_same, ours_and_parents};

/// A process that is dying keeps its files for a moment.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);
/// Standard input, output, error.
const STREAMS: Range<i32> = 0..3;
/// No more names than a line holds.
const NAMED: usize = 4;
/// There a server answers, which may not hand out leases at all.
const NFS: i64 = 0x6969;
const ACCESS: u32 = libc::O_ACCMODE.cast_unsigned();
const WRITABLE: u32 = libc::PROT_WRITE.cast_unsigned();
const APPENDS: u32 = libc::O_APPEND.cast_unsigned();
const PATH_ONLY: u32 = libc::O_PATH.cast_unsigned();

/// Refuses a file that anybody has open or mapped for writing; `file` is open for reading.
///
/// Leases tell; where there are none (or the file is not ours), `/proc` tells as much as we may see there.
///
/// # Errors
/// [`PutBackError::Busy`] with who it is.
pub fn refuse_writers(path: &Path, file: &File, streams: &Streams) -> Result<(), PutBackError> {
    let started = Instant::now();
    loop {
        let Some(who) = look(path, file, streams)? else { return Ok(()) };
        if started.elapsed() > PATIENCE {
            return Err(PutBackError::Busy { path: path.to_owned(), who });
        }
        std::thread::sleep(PAUSE);
    }
}

fn look(path: &Path, file: &File, streams: &Streams) -> Result<Option<String>, PutBackError> {
    let told = writers(file).map_err(PutBackError::io("fcntl", path))?;
    if told == Writers::None {
        return Ok(None);
    }
    let wanted = fstat(file).map_err(PutBackError::io("stat", path))?;
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let all = processes().unwrap_or_default().into_iter();
    let waiting = ours_and_parents();
    let taken_over = |pid: i32, fd: i32| {
        let mut streams = streams.values().filter(|stream| !stream.goes_on);
        streams.any(|stream| is_same(stream.number.cast_signed(), pid, fd))
    };
    let but = |pid: i32, fd: i32, appends: bool| {
        if pid == own {
            STREAMS.contains(&fd)
        } else {
            waiting.contains(&pid) && (appends && STREAMS.contains(&fd) || taken_over(pid, fd))
        }
    };
    let found: Vec<String> = all.filter_map(|pid| writes(pid, path, &wanted, &but)).collect();
    if !found.is_empty() {
        let more = if found.len() > NAMED { " and others" } else { "" };
        return Ok(Some(found[..found.len().min(NAMED)].join(", ") + more));
    }
    let network = rustix::fs::fstatfs(file).is_ok_and(|facts| facts.f_type == NFS);
    let harmless = |pid: i32| writes(pid, path, &wanted, &|_, _, _| false).is_some();
    let hidden = told == Writers::Some && !network && !waiting.iter().any(|pid| harmless(*pid));
    Ok(hidden.then(|| "a process that cannot be seen from here".to_owned()))
}

/// Whether a descriptor of a process does no harm: its number, and whether it only adds to the file.
type Harmless<'a> = dyn Fn(i32, i32, bool) -> bool + 'a;

/// Pid and name of a process that has the file open or mapped for writing, not counting these descriptors. What cannot be seen is
/// passed over.
fn writes(pid: i32, path: &Path, wanted: &Stat, but: &Harmless<'_>) -> Option<String> {
    let process = Proc::open(pid).ok()?;
    let opened = process.fds().unwrap_or_default().into_iter().any(|fd| {
        (fd.link.stat.device, fd.link.stat.inode) == (wanted.st_dev, wanted.st_ino)
            && process.fdinfo(fd.fd).is_ok_and(|info| {
                let writes = info.flags & ACCESS != 0 && info.flags & PATH_ONLY == 0;
                writes && !but(pid, fd.fd, info.flags & APPENDS != 0)
            })
    });
    let mapped = || {
        process.maps().unwrap_or_default().iter().any(|mapping| {
            // Some file systems show `stat` another device.
            let same = mapping.device == wanted.st_dev || mapping.name == path.as_os_str().as_bytes();
            mapping.shared && mapping.protection & WRITABLE != 0 && mapping.inode == wanted.st_ino && same
        })
    };
    if !opened && !mapped() {
        return None;
    }
    let name = process.comm().unwrap_or_default();
    Some(format!("process {pid} ({})", String::from_utf8_lossy(&name).trim()))
}
