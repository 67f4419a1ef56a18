//! A small valid image with something of everything, to test planners, printers and the format itself with.
//!
//! The golden image of format 1 is this very image, so what stands here never changes: new fields of the format stand in
//! [`everything`].

mod everything;
mod sockets;

use std::path::Path;

use crate::records::open_file::Kind;
use crate::records::page_stream::Compression;
use crate::records::vma::Backing;
use crate::records::{
    AddressSpace, AlternateStack, Cpu, Credentials, Descriptor, Device, Directory, Extent, FileIdentity,
    FileLock, Host, IntervalTimer, Limit, Manifest, MappedFile, MmFields, OpenFile, OutsideStream,
    PageStream, PendingSignal, Pipe, PipeEnd, Process, RegularFile, RestartableSequence, Scheduling,
    SharedMemory, SignalAction, Thread, UNLIMITED, Vma, XsaveComponent, file_lock,
};
use crate::{Image, ImageError, PageWriter, PendingImage};

pub use everything::everything;

/// Id of the process, and of its first thread.
pub const PID: i32 = 4711;
/// Id of the other thread.
pub const TID: i32 = 4712;

const PAGE: u64 = crate::PAGE_SIZE;
const CODE: u64 = 0x55d0_0000_0000;
const HEAP: u64 = 0x55d0_1000_0000;
const ANONYMOUS: u64 = 0x7f00_0000_0000;
const SHARED: u64 = 0x7f00_1000_0000;
const STACK: u64 = 0x7ffc_0000_0000;
const VVAR: u64 = 0x7ffc_8000_0000;

/// The records. Their page stream is [`pages`], not compressed.
#[must_use]
pub fn image() -> Image {
    let bytes = pages();
    Image {
        manifest: manifest(),
        processes: vec![process()],
        mapped_files: vec![MappedFile {
            identity: Some(identity("/usr/bin/program")),
            ..MappedFile::default()
        }],
        shared_memory: vec![SharedMemory {
            id: 1,
            size: 2 * PAGE,
            pages: vec![extent(PAGE, 1, 5)],
            ..SharedMemory::default()
        }],
        open_files: open_files(),
        pipes: vec![Pipe { id: 1, capacity: 65_536, content: b"in the pipe".to_vec(), ..Pipe::default() }],
        file_contents: Vec::new(),
        seccomp_filters: Vec::new(),
        removed_files: Vec::new(),
        semaphore_sets: Vec::new(),
        message_queues: Vec::new(),
        posix_queues: Vec::new(),
        unix_sockets: Vec::new(),
        unix_names: Vec::new(),
        stream: PageStream {
            spare: Vec::new(),
            compression: Compression::None.into(),
            block_size: 1 << 20,
            stream_length: 6 * PAGE,
            file_length: 6 * PAGE,
            checksums: vec![crc32c::crc32c(&bytes)],
            stored_lengths: Vec::new(),
        },
        unknown: Vec::new(),
    }
}

/// The page stream of [`image`]: six pages.
#[must_use]
pub fn pages() -> Vec<u8> {
    (1..=6u8).flat_map(|page| [page; 4096]).collect()
}

/// Writes [`image`] as the image directory `target`, compressed as wanted.
///
/// # Errors
/// As those of writing an image.
pub fn write(target: &Path, compression: Compression) -> Result<Image, ImageError> {
    let pending = PendingImage::create(target)?;
    let writer = PageWriter::create(&pending, compression)?;
    writer.block(0, &pages())?;
    let image = Image { stream: writer.finish()?, ..image() };
    pending.write_records(&image)?;
    pending.commit()?;
    Ok(image)
}

fn manifest() -> Manifest {
    Manifest {
        tool_version: "0.1.0".to_owned(),
        created_unix_ns: 1_700_000_000_123_456_789,
        host: Some(Host {
            hostname: "host".to_owned(),
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            boot_id: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
            kernel_release: "6.1.0".to_owned(),
            architecture: "x86_64".to_owned(),
        }),
        cpu: Some(Cpu {
            vendor: "GenuineIntel".to_owned(),
            model: "Some CPU".to_owned(),
            features: ["avx", "avx2", "sse2"].map(str::to_owned).to_vec(),
            xcr0: 7,
            xsave_size: 832,
            components: vec![XsaveComponent { index: 2, offset: 576, size: 256 }],
        }),
        root_pid: PID,
        page_size: 4096,
        file_level: 1,
        uid: 1000,
        ..Manifest::default()
    }
}

fn process() -> Process {
    Process {
        pid: PID,
        ppid: 1,
        pgid: PID,
        sid: 1,
        exe: b"/usr/bin/program".to_vec(),
        comm: b"program".to_vec(),
        cmdline: b"program\0--fast\0".to_vec(),
        umask: 0o022,
        cwd: b"/home/user".to_vec(),
        root: b"/".to_vec(),
        personality: 0,
        limits: vec![Limit { resource: 7, soft: 1024, hard: UNLIMITED }],
        interval_timers: vec![IntervalTimer { which: 0, interval_us: 10_000, remaining_us: 5_000 }],
        dumpable: true,
        child_subreaper: false,
        thp_disabled: false,
        credentials: Some(Credentials {
            uids: vec![1000; 4],
            gids: vec![1000; 4],
            groups: vec![27, 1000],
            cap_bounding: 0x1ff_ffff_ffff,
            ..Credentials::default()
        }),
        actions: vec![SignalAction {
            signal: 10,
            handler: CODE + 16,
            flags: 0x0400_0000,
            restorer: CODE,
            mask: 2,
        }],
        pending: vec![pending_signal(12)],
        threads: vec![thread(PID, b"program"), thread(TID, b"worker")],
        descriptors: (0..6)
            .map(|fd| Descriptor { fd, file: descriptor_file(fd), close_on_exec: fd == 3 })
            .collect(),
        locks: vec![FileLock {
            fd: 3,
            r#type: file_lock::Type::Posix.into(),
            write: true,
            start: 0,
            length: 10,
        }],
        memory: Some(memory()),
        membarrier: 1,
        ..Process::default()
    }
}

/// Descriptors 0 to 5 are the files 1 to 6.
fn descriptor_file(fd: i32) -> u32 {
    u32::try_from(fd + 1).expect("small and positive")
}

fn thread(tid: i32, comm: &[u8]) -> Thread {
    let mut xstate = vec![0; 832];
    xstate[512] = 7; // XSTATE_BV
    Thread {
        tid,
        comm: comm.to_vec(),
        registers: (0..27).map(|word| word * 0x1111).collect(),
        xstate,
        signal_mask: 1 << 9,
        alternate_stack: Some(AlternateStack { address: ANONYMOUS, size: 8192, flags: 0 }),
        pending: vec![pending_signal(10)],
        rseq: Some(RestartableSequence {
            address: ANONYMOUS + 0x20,
            size: 32,
            signature: 0x5305_3053,
            flags: 0,
        }),
        robust_list: ANONYMOUS + 0x100,
        robust_list_len: 24,
        clear_child_tid: ANONYMOUS + 0x200,
        parent_death_signal: 0,
        timer_slack_ns: 50_000,
        scheduling: Some(Scheduling::default()),
        affinity: vec![3],
        io_priority: 0,
        securebits: 0,
        ..Thread::default()
    }
}

fn pending_signal(signal: u8) -> PendingSignal {
    let mut siginfo = vec![0; 128];
    siginfo[0] = signal;
    PendingSignal { siginfo }
}

fn memory() -> AddressSpace {
    AddressSpace {
        fields: Some(MmFields {
            start_code: CODE,
            end_code: CODE + PAGE,
            start_data: CODE + 2 * PAGE,
            end_data: CODE + 3 * PAGE,
            start_brk: HEAP,
            brk: HEAP + 2 * PAGE,
            start_stack: STACK + 3 * PAGE,
            arg_start: STACK + 3 * PAGE + 0x100,
            arg_end: STACK + 3 * PAGE + 0x110,
            env_start: STACK + 3 * PAGE + 0x110,
            env_end: STACK + 3 * PAGE + 0x200,
        }),
        auxv: vec![0; 16],
        vmas: vmas(),
        pages: vec![
            extent(CODE + 2 * PAGE, 1, 0),
            extent(HEAP, 2, 1),
            extent(ANONYMOUS + PAGE, 1, 3),
            extent(STACK + 3 * PAGE, 1, 4),
        ],
        exe: Some(MappedFile { identity: Some(identity("/usr/bin/program")), ..MappedFile::default() }),
        vdso_crc: 0x1234_5678,
        ..AddressSpace::default()
    }
}

fn vmas() -> Vec<Vma> {
    let vma = |start, pages, protection, backing: Backing| Vma {
        start,
        end: start + pages * PAGE,
        protection,
        backing: backing.into(),
        ..Vma::default()
    };
    vec![
        vma(CODE, 1, 5, Backing::File),
        Vma { offset: 2 * PAGE, ..vma(CODE + 2 * PAGE, 1, 3, Backing::File) },
        vma(HEAP, 2, 3, Backing::Anonymous),
        Vma { name: b"arena".to_vec(), advice: vec![14], ..vma(ANONYMOUS, 4, 3, Backing::Anonymous) },
        Vma { shared: true, object: 1, ..vma(SHARED, 2, 3, Backing::SharedMemory) },
        Vma { grows_down: true, ..vma(STACK, 4, 3, Backing::Anonymous) },
        vma(VVAR, 4, 1, Backing::Vvar),
        vma(VVAR + 4 * PAGE, 2, 5, Backing::Vdso),
    ]
}

/// That many pages at an address, from that page of the stream on.
const fn extent(address: u64, pages: u64, stream_page: u64) -> Extent {
    Extent { address, length: pages * PAGE, stream_offset: stream_page * PAGE }
}

fn identity(path: &str) -> FileIdentity {
    FileIdentity {
        path: path.as_bytes().to_vec(),
        device: 0x801,
        inode: 42,
        size: 12_345,
        mtime_s: 1_600_000_000,
        mtime_ns: 5,
        mode: 0o100_644,
        ..FileIdentity::default()
    }
}

fn open_files() -> Vec<OpenFile> {
    let outside = OutsideStream { description: b"/dev/pts/3".to_vec(), standard_stream: 0 };
    let regular =
        RegularFile { identity: Some(identity("/home/user/data")), position: 100, ..RegularFile::default() };
    let directory = Directory { identity: Some(identity("/home/user")), ..Directory::default() };
    let kinds = [
        (2, Kind::Outside(outside)),
        (1, Kind::Device(Device { path: b"/dev/null".to_vec(), rdev: 0x103 })),
        (2, Kind::Regular(regular)),
        (0, Kind::Directory(directory)),
        (0, Kind::Pipe(PipeEnd { pipe: 1, write: false, ..PipeEnd::default() })),
        (1, Kind::Pipe(PipeEnd { pipe: 1, write: true, ..PipeEnd::default() })),
    ];
    let file = |(id, (flags, kind))| OpenFile { id, flags, kind: Some(kind), ..OpenFile::default() };
    (1..).zip(kinds).map(file).collect()
}
