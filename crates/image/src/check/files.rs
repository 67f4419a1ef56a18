//! Whether files, descriptors, pipes and locks make sense and lead to one another.

use std::collections::HashSet;

use super::{ascending, ensure, invalid, path, special};
use crate::records::open_file::Kind;
use crate::records::{FileIdentity, OpenFile, Process, file_lock};
use crate::{Image, ImageError, build_id};

/// Standard input, output, error.
const STANDARD_STREAMS: u32 = 3;
/// Devices that can be opened again as if nothing had been: null, zero, full, random, urandom, and /dev/tty. With others an image
/// could have disks opened.
const DEVICES: [u64; 6] = [0x103, 0x105, 0x107, 0x108, 0x109, 0x500];
const NANOSECONDS: u32 = 1_000_000_000;

pub(super) fn check(image: &Image) -> Result<(), ImageError> {
    for (index, file) in image.mapped_files.iter().enumerate().filter(|(_, file)| file.content.is_none()) {
        identity(file.identity.as_ref(), &format!("MappedFile {index}"))?;
    }
    ascending(image.pipes.iter().map(|pipe| pipe.id), "Pipe", "id")?;
    image.pipes.iter().try_for_each(special::pipe)?;
    let pipes: HashSet<u32> = image.pipes.iter().map(|pipe| pipe.id).collect();
    let queues: HashSet<u32> = image.posix_queues.iter().map(|queue| queue.id).collect();
    ascending(image.open_files.iter().map(|file| file.id), "OpenFile", "id")?;
    for file in &image.open_files {
        open_file(file, &pipes, &queues)?;
    }
    special::references(image)?;
    let files: HashSet<u32> = image.open_files.iter().map(|file| file.id).collect();
    image.processes.iter().try_for_each(|process| descriptors(image, process, &files))
}

pub(super) fn identity(identity: Option<&FileIdentity>, record: &str) -> Result<(), ImageError> {
    let Some(identity) = identity else {
        return Err(invalid(record, "no identity".to_owned()));
    };
    path(&identity.path, record, "path")?;
    ensure!(identity.mtime_ns < NANOSECONDS, record, "{} nanoseconds in a time", identity.mtime_ns);
    let id = identity.build_id.len();
    ensure!(id <= build_id::LONGEST, record, "a build id of {id} bytes");
    Ok(())
}

fn open_file(file: &OpenFile, pipes: &HashSet<u32>, queues: &HashSet<u32>) -> Result<(), ImageError> {
    let record = &format!("OpenFile {}", file.id);
    match &file.kind {
        None => Err(invalid(record, "of unknown kind".to_owned())),
        Some(Kind::Regular(regular)) => {
            position(regular.position, record)?;
            match regular.content {
                // The content says what it was; a memfd has no path.
                Some(_) => Ok(()),
                None => identity(regular.identity.as_ref(), record),
            }
        }
        Some(
            kind @ (Kind::Eventfd(_)
            | Kind::Timerfd(_)
            | Kind::Signalfd(_)
            | Kind::Epoll(_)
            | Kind::Inotify(_)
            | Kind::Fanotify(_)
            | Kind::KernelFile(_)
            | Kind::Pidfd(_)
            | Kind::Netlink(_)
            | Kind::Symlink(_)),
        ) => special::check(kind, record),
        // Where it leads is checked with the sockets.
        Some(Kind::Socket(_)) => Ok(()),
        Some(Kind::PosixQueue(end)) => {
            let found = queues.contains(&end.queue);
            ensure!(found, record, "refers to queue {}, which is not there", end.queue);
            Ok(())
        }
        Some(Kind::Directory(directory)) => identity(directory.identity.as_ref(), record),
        Some(Kind::Device(device)) => {
            path(&device.path, record, "path")?;
            let rdev = device.rdev;
            ensure!(DEVICES.contains(&rdev), record, "no device {}:{} is ever saved", rdev >> 8, rdev & 0xff);
            Ok(())
        }
        Some(Kind::Pipe(end)) => {
            ensure!(pipes.contains(&end.pipe), record, "refers to pipe {}, which is not there", end.pipe);
            ensure!(!(end.write && end.awaits_writer), record, "a writing end that waits for a writer");
            Ok(())
        }
        Some(Kind::Outside(outside)) => {
            let stream = outside.standard_stream;
            ensure!(stream < STANDARD_STREAMS, record, "there is no standard stream {stream}");
            ensure!(!outside.description.contains(&0), record, "its description has a zero byte in it");
            Ok(())
        }
    }
}

/// Offsets are signed in Linux.
fn position(position: u64, record: &str) -> Result<(), ImageError> {
    ensure!(i64::try_from(position).is_ok(), record, "position {position} is impossible");
    Ok(())
}

fn descriptors(image: &Image, process: &Process, files: &HashSet<u32>) -> Result<(), ImageError> {
    ascending(process.descriptors.iter().map(|descriptor| descriptor.fd), "Process", "descriptor")?;
    for descriptor in &process.descriptors {
        let (fd, file) = (descriptor.fd, descriptor.file);
        ensure!(fd >= 0, "Process", "descriptor {fd} is impossible");
        ensure!(
            files.contains(&file),
            "Process",
            "descriptor {fd} refers to file {file}, which is not there"
        );
    }
    // Locks are a process's own, even where the descriptors are not.
    let owner = process.descriptors_of.and_then(|owner| image.process(owner)).unwrap_or(process);
    let open: HashSet<i32> = owner.descriptors.iter().map(|descriptor| descriptor.fd).collect();
    for lock in &process.locks {
        let fd = lock.fd;
        ensure!(open.contains(&fd), "Process", "lock through descriptor {fd}, which is not open");
        let known = file_lock::Type::try_from(lock.r#type).is_ok();
        ensure!(known, "Process", "lock of unknown type {}", lock.r#type);
        position(lock.start, "Process")?;
        position(lock.length, "Process")?;
    }
    Ok(())
}
