//! The sample with every kind of record and field that came to the format after its golden image was made.

use super::{ANONYMOUS, PID, TID, image};
use crate::records::message_queue::Message;
use crate::records::open_file::Kind;
use crate::records::posix_queue::Message as PosixMessage;
use crate::records::vma::Backing;
use crate::records::{
    AioContext, Descriptor, Epoll, EpollWatch, EventFd, Extent, Fanotify, FanotifyMark, FileContent,
    FileIdentity, Inotify, InotifyWatch, IpcObject, KernelFile, MessageQueue, NetlinkSocket, OpenFile, Pidfd,
    Pipe, PipeEnd, PosixNotification, PosixQueue, PosixQueueEnd, PosixTimer, RegularFile, RemovedFile,
    SeccompFilter, Segment, SemaphoreSet, SemaphoreUndo, SharedMemory, SignalFd, SpeculationControl, Symlink,
    TimerFd, Vma, file_content,
};
use crate::{Image, PAGE_SIZE, hostile};

/// `SECCOMP_RET_ALLOW` as the one instruction of a filter.
const ALLOW: [u8; 8] = [6, 0, 0, 0, 0, 0, 0xff, 0x7f];
const GUARDED: u64 = ANONYMOUS + 0x100 * PAGE_SIZE;
const RING: u64 = GUARDED + 0x100 * PAGE_SIZE;
const SECOND: u64 = 1_000_000_000;

/// The records. Their page stream is all zeros, not compressed.
#[must_use]
pub fn everything() -> Image {
    let mut image = image();
    contents(&mut image);
    files(&mut image);
    removed(&mut image);
    super::sockets::add(&mut image);
    process(&mut image);
    memory(&mut image);
    ipc(&mut image);
    let mut image = hostile::with_fitting_stream(image);
    let length = usize::try_from(image.stream.stream_length).expect("a small sample");
    image.stream.checksums = vec![hostile::checksum(&vec![0; length])];
    image
}

fn contents(image: &mut Image) {
    let content = |id, kind: file_content::Kind, path: &str| FileContent {
        id,
        kind: kind.into(),
        identity: Some(FileIdentity {
            path: path.into(),
            size: 2 * PAGE_SIZE + 100,
            mode: 0o100_600,
            ..FileIdentity::default()
        }),
        uid: 1000,
        gid: 1000,
        pages: vec![Extent { address: PAGE_SIZE, length: 2 * PAGE_SIZE, stream_offset: 0 }],
        written: true,
        ..FileContent::default()
    };
    image.file_contents = vec![
        content(1, file_content::Kind::Named, "/home/user/data"),
        content(2, file_content::Kind::Unlinked, "/home/user/gone"),
        FileContent { seals: 0xf, ..content(3, file_content::Kind::Memfd, "buffer") },
    ];
    image.seccomp_filters = vec![SeccompFilter { id: 1, flags: 0, instructions: ALLOW.to_vec() }];
}

fn files(image: &mut Image) {
    let identity = image.file_contents.iter().map(|content| content.identity.clone());
    let regular = identity.zip(1..).map(|(identity, content)| {
        Kind::Regular(RegularFile { identity, position: 7, content: Some(content) })
    });
    let watched = image.mapped_files[0].identity.clone();
    let others = [
        Kind::Eventfd(EventFd { count: 3, semaphore: true }),
        Kind::Timerfd(TimerFd {
            clock: 1,
            ticks: 2,
            remaining_ns: SECOND,
            interval_ns: SECOND,
            ..TimerFd::default()
        }),
        Kind::Signalfd(SignalFd { mask: 1 << 9 }),
        Kind::Epoll(Epoll { watches: vec![EpollWatch { fd: 4, events: 1, data: 99, file: 5 }], ready: true }),
        Kind::Inotify(Inotify {
            watches: vec![InotifyWatch {
                wd: 1,
                mask: 0x100,
                identity: watched.clone(),
                ..InotifyWatch::default()
            }],
        }),
        Kind::Fanotify(Fanotify {
            marks: vec![FanotifyMark { mask: 1, identity: watched, ..FanotifyMark::default() }],
            ..Fanotify::default()
        }),
        Kind::KernelFile(KernelFile { path: b"/proc/self/status".to_vec(), position: 10 }),
        Kind::Pidfd(Pidfd { id: TID, ..Pidfd::default() }),
        Kind::Pidfd(Pidfd { gone: 7, exit_status: 0x700, ..Pidfd::default() }),
        Kind::Symlink(Symlink { path: b"/home/user/link".to_vec(), target: b"data".to_vec() }),
    ];
    let next = u32::try_from(image.open_files.len()).expect("few") + 1;
    for (kind, id) in regular.chain(others).zip(next..) {
        let fd = i32::try_from(id).expect("few") - 1;
        image.open_files.push(OpenFile { id, flags: 2, kind: Some(kind), ..OpenFile::default() });
        image.processes[0].descriptors.push(Descriptor { fd, file: id, close_on_exec: false });
    }
}

/// A removed folder in another one, as working folder and open; and a removed fifo.
fn removed(image: &mut Image) {
    let file = |id, path: &str, mode, parent| RemovedFile {
        id,
        identity: Some(FileIdentity { path: path.into(), mode, ..FileIdentity::default() }),
        uid: 1000,
        gid: 1000,
        parent,
    };
    image.removed_files = vec![
        file(0, "/home/user/gone", 0o040_700, None),
        file(1, "/home/user/gone/inside", 0o041_777, Some(0)),
        file(2, "/home/user/fifo", 0o010_600, None),
    ];
    image.processes[0].cwd_removed = Some(1);
    let directory = image.open_files.iter_mut().find_map(|file| match &mut file.kind {
        Some(Kind::Directory(directory)) => Some(directory),
        _ => None,
    });
    directory.expect("a folder in the sample").removed = Some(0);
    image.pipes.push(Pipe {
        id: 9,
        capacity: 65_536,
        content: b"waits".to_vec(),
        fifo: image.removed_files[2].identity.clone(),
        removed: Some(2),
        ..Pipe::default()
    });
    let id = image.open_files.last().map_or(0, |file| file.id) + 1;
    let fd = image.processes[0].descriptors.last().map_or(0, |descriptor| descriptor.fd) + 1;
    let end = PipeEnd { pipe: 9, awaits_writer: true, ..PipeEnd::default() };
    let kind = Some(Kind::Pipe(end));
    image.open_files.push(OpenFile { id, flags: 0o4000, kind, ..OpenFile::default() });
    image.processes[0].descriptors.push(Descriptor { fd, file: id, close_on_exec: false });
}

fn process(image: &mut Image) {
    let process = &mut image.processes[0];
    process.posix_timers = vec![PosixTimer {
        id: 3,
        clock: 1,
        notify: 4,
        signal: 34,
        thread: TID,
        value: 17,
        interval_ns: SECOND,
        remaining_ns: SECOND,
        overrun: 2,
    }];
    process.stopped_by = Some(19);
    process.stop_told = true;
    process.lock_future = 2;
    process.oom_score_adj = Some(100);
    process.coredump_filter = Some(0x33);
    let own = process.credentials.clone();
    for thread in &mut process.threads {
        thread.seccomp_mode = 2;
        thread.seccomp_filters = vec![1];
        thread.speculation = vec![SpeculationControl { kind: 0, value: 4 }];
        thread.credentials = (thread.tid != PID).then(|| own.clone()).flatten();
    }
}

fn memory(image: &mut Image) {
    let Some(memory) = &mut image.processes[0].memory else { return };
    let vma = Vma {
        start: GUARDED,
        end: GUARDED + 8 * PAGE_SIZE,
        protection: 3,
        backing: Backing::Anonymous.into(),
        sealed: true,
        guards: vec![Extent { address: GUARDED + PAGE_SIZE, length: PAGE_SIZE, stream_offset: 0 }],
        ..Vma::default()
    };
    let ring = Vma {
        start: RING,
        end: RING + PAGE_SIZE,
        protection: 3,
        shared: true,
        backing: Backing::Aio.into(),
        ..Vma::default()
    };
    for vma in [vma, ring] {
        let place = memory.vmas.partition_point(|other| other.start < vma.start);
        memory.vmas.insert(place, vma);
    }
    // Two events not read, one at the ring's end and one at its beginning.
    let header = [0u32, 127, 126, 1, 0xa10a_10a1, 1, 0, 32];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(3 * 32, 0x55);
    let context = AioContext { address: RING, length: PAGE_SIZE, events: 127, ring: bytes };
    image.processes[0].aio_contexts = vec![context];
}

/// A segment attached for reading only, and one that nobody has attached; semaphores, one of them to be given back; a queue.
fn ipc(image: &mut Image) {
    let object = |id, key| {
        Some(IpcObject {
            id,
            key,
            uid: 1000,
            gid: 1000,
            creator_uid: 1000,
            creator_gid: 1000,
            mode: 0o600,
            changed_s: 1_700_000_000,
        })
    };
    let segment = |id, object, removed| SharedMemory {
        id,
        size: 4 * PAGE_SIZE,
        pages: vec![Extent { address: PAGE_SIZE, length: PAGE_SIZE, stream_offset: 0 }],
        segment: Some(Segment { object, size: 3 * PAGE_SIZE + 1, removed, locked: false }),
        ..SharedMemory::default()
    };
    image.shared_memory.push(segment(7, object(3, 0), true));
    image.shared_memory.push(segment(8, object(32_772, 0x5151), false));
    image.semaphore_sets = vec![SemaphoreSet {
        object: object(0, -5),
        values: vec![3, 0, 32_767],
        pids: vec![PID, 0, 0],
        operated: true,
    }];
    image.message_queues = vec![MessageQueue {
        object: object(1, 0),
        max_bytes: 16_384,
        messages: vec![
            Message { r#type: 1, content: b"first".to_vec() },
            Message { r#type: i64::MAX, content: Vec::new() },
        ],
    }];
    posix_queue(image);
    let undo = SemaphoreUndo { set: 0, semaphores: vec![0, 2], adjustments: vec![1, -32_768] };
    image.processes[0].semaphore_undo = vec![undo];
    let Some(memory) = &mut image.processes[0].memory else { return };
    let start = RING + 0x100 * PAGE_SIZE;
    let vma = Vma {
        start,
        end: start + 4 * PAGE_SIZE,
        protection: 1,
        shared: true,
        backing: Backing::SharedMemory.into(),
        object: 7,
        attached_read_only: true,
        ..Vma::default()
    };
    let place = memory.vmas.partition_point(|other| other.start < vma.start);
    memory.vmas.insert(place, vma);
}

/// A message queue of which a thread is told by way of a netlink socket.
fn posix_queue(image: &mut Image) {
    let message = |priority, content: &[u8]| PosixMessage { priority, content: content.to_vec() };
    let path = b"/queue".to_vec();
    let identity = Some(FileIdentity { path, mode: 0o100_600, ..FileIdentity::default() });
    image.posix_queues = vec![PosixQueue {
        id: 4,
        identity,
        uid: 1000,
        gid: 1000,
        removed: true,
        max_messages: 10,
        message_size: 100,
        messages: vec![message(9, b"first"), message(0, b"")],
        notification: None,
    }];
    let id = image.open_files.last().map_or(0, |file| file.id) + 1;
    let fd = image.processes[0].descriptors.last().map_or(0, |descriptor| descriptor.fd) + 1;
    let kind = Some(Kind::PosixQueue(PosixQueueEnd { queue: 4 }));
    image.open_files.push(OpenFile { id, flags: 0o4002, kind, ..OpenFile::default() });
    image.processes[0].descriptors.push(Descriptor { fd, file: id, close_on_exec: true });
    let kind = Some(Kind::Netlink(NetlinkSocket { r#type: 3 }));
    image.open_files.push(OpenFile { id: id + 1, flags: 2, kind, ..OpenFile::default() });
    image.processes[0].descriptors.push(Descriptor { fd: fd + 1, file: id + 1, close_on_exec: true });
    image.posix_queues[0].notification = Some(PosixNotification {
        pid: image.processes[0].pid,
        fd,
        notify: 2,
        signal: 0,
        value: 0,
        socket: fd + 1,
        cookie: vec![7; 32],
    });
}
