//! What an image holds, as data to print: for `rewake show`, also as JSON.

mod sockets;

use std::path::Path;

use serde::Serialize;

use crate::records::open_file::Kind;
use crate::records::page_stream::Compression;
use crate::records::vma::Backing;
use crate::records::{OpenFile, Process, Vma, path_of};
use crate::{Image, ImageError, PageReader};

/// Everything worth showing about an image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// Version of the program that made it.
    pub tool_version: String,
    /// Version of the image's format.
    pub format_version: u32,
    /// When, in nanoseconds since 1970.
    pub created_unix_ns: u64,
    /// Where.
    pub host: HostDescription,
    /// What it takes to wake it.
    pub cpu: CpuDescription,
    /// 0 to 3: whose content is in the image besides memory.
    pub file_level: u32,
    /// `none`, `lz4` or `zstd`.
    pub compression: &'static str,
    /// Bytes of the file `records`; 0 when only records in memory are described.
    pub records_bytes: u64,
    /// Bytes of the file `pages`.
    pub pages_bytes: u64,
    /// Bytes of memory in the image, decompressed.
    pub stored_bytes: u64,
    /// The processes, the root of the tree first.
    pub processes: Vec<ProcessDescription>,
    /// Bytes of shared memory in the image, decompressed.
    pub shared_bytes: u64,
    /// System V objects: segments, sets of semaphores, queues.
    pub ipc: Vec<IpcDescription>,
}

/// A System V object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IpcDescription {
    /// `segment`, `semaphores` or `queue`.
    pub kind: &'static str,
    /// As ipcs(1) shows it.
    pub id: i32,
    /// 0: private.
    pub key: u32,
    /// Its owner.
    pub uid: u32,
    /// Its permissions.
    pub mode: u32,
    /// What is in it: bytes, semaphores, messages.
    pub amount: u64,
}

/// The host an image was made on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostDescription {
    /// Its name.
    pub hostname: String,
    /// As of uname -r.
    pub kernel_release: String,
    /// As of uname -m.
    pub architecture: String,
}

/// What the program may have chosen code by.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CpuDescription {
    /// As in /proc/cpuinfo.
    pub vendor: String,
    /// As in /proc/cpuinfo.
    pub model: String,
    /// Names as in /proc/cpuinfo; the host that wakes the image needs them all.
    pub features: Vec<String>,
    /// State components, as bits.
    pub xcr0: u64,
    /// Bytes of registers saved per thread.
    pub xsave_size: u32,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProcessDescription {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub ppid: i32,
    /// Path of the executable.
    pub exe: String,
    /// Arguments, separated by spaces.
    pub command: String,
    /// Working directory.
    pub cwd: String,
    /// How it ended, as wait(2) tells it, if it has and nobody has waited for it yet.
    pub exit_status: Option<i32>,
    /// Threads in order of id.
    pub threads: Vec<ThreadDescription>,
    /// Memory by kind; kinds that there are none of are left out.
    pub memory: Vec<MemoryDescription>,
    /// Descriptors in order of number.
    pub files: Vec<FileDescription>,
}

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThreadDescription {
    /// Its id.
    pub tid: i32,
    /// Its name.
    pub name: String,
}

/// What mappings are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// Private memory without a file that is neither stack nor heap.
    Anonymous,
    /// What brk(2) manages.
    Heap,
    /// The main thread's stack, and other mappings that grow down.
    Stack,
    /// Files mapped privately: programs and libraries.
    PrivateFile,
    /// Files mapped shared: the content is in the file.
    SharedFile,
    /// Shared memory without a file.
    Shared,
    /// vdso and vvar, which the kernel provides.
    Kernel,
}

impl MemoryKind {
    /// For people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Heap => "heap",
            Self::Stack => "stack",
            Self::PrivateFile => "private file",
            Self::SharedFile => "shared file",
            Self::Shared => "shared memory",
            Self::Kernel => "kernel",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Anonymous => 0,
            Self::Heap => 1,
            Self::Stack => 2,
            Self::PrivateFile => 3,
            Self::SharedFile => 4,
            Self::Shared => 5,
            Self::Kernel => 6,
        }
    }

    const ALL: [Self; 7] = [
        Self::Anonymous,
        Self::Heap,
        Self::Stack,
        Self::PrivateFile,
        Self::SharedFile,
        Self::Shared,
        Self::Kernel,
    ];
}

/// All mappings of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryDescription {
    /// Which kind.
    pub kind: MemoryKind,
    /// How many there are.
    pub mappings: u64,
    /// Bytes of address space.
    pub mapped_bytes: u64,
    /// Bytes of private memory whose content is in the image, decompressed.
    pub stored_bytes: u64,
}

/// A descriptor and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileDescription {
    /// Its number.
    pub fd: i32,
    /// `file`, `directory`, `device`, `pipe` or `outside`.
    pub kind: &'static str,
    /// Path or description.
    pub name: String,
    /// `r`, `w` or `rw`.
    pub access: &'static str,
    /// Where the next byte is read or written, for files and directories.
    pub position: Option<u64>,
}

/// Describes the image in the directory `dir`, whose pages are not read.
///
/// # Errors
/// As [`Image::open`] and [`PageReader::open`].
pub fn describe(dir: &Path) -> Result<Description, ImageError> {
    let bytes = crate::image::read_records(dir)?;
    let image = Image::decode(&bytes).map_err(|error| error.in_image(dir))?;
    PageReader::open(dir, &image.stream)?;
    let mut description = Description::of(&image);
    description.records_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    Ok(description)
}

impl Description {
    /// Describes records in memory.
    #[must_use]
    pub fn of(image: &Image) -> Self {
        let host = image.manifest.host.clone().unwrap_or_default();
        let cpu = image.manifest.cpu.clone().unwrap_or_default();
        Self {
            tool_version: image.manifest.tool_version.clone(),
            format_version: crate::header::FORMAT_VERSION,
            created_unix_ns: image.manifest.created_unix_ns,
            host: HostDescription {
                hostname: host.hostname,
                kernel_release: host.kernel_release,
                architecture: host.architecture,
            },
            cpu: CpuDescription {
                vendor: cpu.vendor,
                model: cpu.model,
                features: cpu.features,
                xcr0: cpu.xcr0,
                xsave_size: cpu.xsave_size,
            },
            file_level: image.manifest.file_level,
            compression: compression_name(image.stream.compression()),
            records_bytes: 0,
            pages_bytes: image.stream.file_length,
            stored_bytes: image.stream.stream_length,
            processes: image.processes.iter().map(|one| process(image, one)).collect(),
            shared_bytes: shared_bytes(image),
            ipc: crate::ipc::objects(image).map(|object| object.describe()).collect(),
        }
    }

    /// Address space of all kinds, in bytes.
    #[must_use]
    pub fn mapped_bytes(&self) -> u64 {
        let memory = self.processes.iter().flat_map(|process| &process.memory);
        memory.map(|memory| memory.mapped_bytes).sum()
    }
}

/// The name of a compression, as on the command line.
#[must_use]
pub const fn compression_name(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    }
}

/// A command line as one string: its zero bytes become spaces.
#[must_use]
pub fn command(cmdline: &[u8]) -> String {
    let end = cmdline.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let spaced: Vec<u8> = cmdline[..end].iter().map(|byte| if *byte == 0 { b' ' } else { *byte }).collect();
    text(&spaced)
}

/// Bytes for people: what is no UTF-8 is replaced.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Shared memory is nobody's own.
fn shared_bytes(image: &Image) -> u64 {
    image.shared_memory.iter().flat_map(|object| &object.pages).map(|extent| extent.length).sum()
}

fn process(image: &Image, process: &Process) -> ProcessDescription {
    let threads = process
        .threads
        .iter()
        .map(|thread| ThreadDescription { tid: thread.tid, name: text(&thread.comm) })
        .collect();
    ProcessDescription {
        pid: process.pid,
        ppid: process.ppid,
        exe: path_of(&process.exe).display().to_string(),
        command: command(&process.cmdline),
        cwd: path_of(&process.cwd).display().to_string(),
        threads,
        exit_status: process.exit_status,
        memory: memory(process),
        files: files(image, process),
    }
}

/// The kind of a mapping. The heap is what overlaps the range that brk(2) manages.
fn kind(vma: &Vma, process: &Process) -> MemoryKind {
    let fields = process.memory.as_ref().and_then(|memory| memory.fields).unwrap_or_default();
    match (Backing::try_from(vma.backing), vma.shared) {
        (Ok(Backing::File), false) => MemoryKind::PrivateFile,
        (Ok(Backing::File), true) => MemoryKind::SharedFile,
        (Ok(Backing::SharedMemory), _) => MemoryKind::Shared,
        (Ok(Backing::Vdso | Backing::Vvar | Backing::VvarVclock | Backing::Aio), _) => MemoryKind::Kernel,
        _ if vma.grows_down || (vma.start..vma.end).contains(&fields.start_stack) => MemoryKind::Stack,
        _ if vma.start < fields.brk && fields.start_brk < vma.end => MemoryKind::Heap,
        _ => MemoryKind::Anonymous,
    }
}

fn memory(process: &Process) -> Vec<MemoryDescription> {
    let mut kinds =
        MemoryKind::ALL.map(|kind| MemoryDescription { kind, mappings: 0, mapped_bytes: 0, stored_bytes: 0 });
    let Some(memory) = &process.memory else {
        return Vec::new();
    };
    let mut pages = memory.pages.iter().peekable();
    for vma in &memory.vmas {
        let entry = &mut kinds[kind(vma, process).index()];
        entry.mappings += 1;
        entry.mapped_bytes += vma.length();
        while let Some(extent) = pages.next_if(|extent| extent.address < vma.end) {
            entry.stored_bytes += extent.length;
        }
    }
    kinds.into_iter().filter(|kind| kind.mappings > 0 || kind.stored_bytes > 0).collect()
}

fn files(image: &Image, process: &Process) -> Vec<FileDescription> {
    let find = |id| image.open_files.binary_search_by_key(&id, |file| file.id).ok();
    let descriptors = process.descriptors.iter();
    descriptors
        .filter_map(|descriptor| Some(file(image, descriptor.fd, &image.open_files[find(descriptor.file)?])))
        .collect()
}

/// The name of a POSIX message queue.
fn queue(image: &Image, id: u32) -> String {
    let queue = image.posix_queues.iter().find(|queue| queue.id == id);
    let identity = queue.and_then(|queue| queue.identity.as_ref());
    identity.map_or_else(String::new, |identity| text(&identity.path))
}

fn file(image: &Image, fd: i32, file: &OpenFile) -> FileDescription {
    let path =
        || file.identity().map(|identity| identity.as_path().display().to_string()).unwrap_or_default();
    let (kind, name, position) = match &file.kind {
        Some(Kind::Regular(regular)) => ("file", path(), Some(regular.position)),
        Some(Kind::Directory(directory)) => ("directory", path(), Some(directory.position)),
        Some(Kind::Device(device)) => ("device", text(&device.path), None),
        Some(Kind::Pipe(end)) => ("pipe", format!("pipe {}", end.pipe), None),
        Some(Kind::Outside(outside)) => ("outside", text(&outside.description), None),
        Some(Kind::Eventfd(eventfd)) => ("eventfd", format!("count {}", eventfd.count), None),
        Some(Kind::Timerfd(timer)) => ("timerfd", format!("clock {}", timer.clock), None),
        Some(Kind::Signalfd(signals)) => ("signalfd", format!("signals {:#x}", signals.mask), None),
        Some(Kind::Epoll(epoll)) => ("epoll", format!("{} watched", epoll.watches.len()), None),
        Some(Kind::Inotify(inotify)) => ("inotify", format!("{} watched", inotify.watches.len()), None),
        Some(Kind::Fanotify(fanotify)) => ("fanotify", format!("{} marks", fanotify.marks.len()), None),
        Some(Kind::KernelFile(file)) => ("kernel", text(&file.path), Some(file.position)),
        Some(Kind::Socket(end)) => ("socket", sockets::describe(image, end.socket), None),
        Some(Kind::PosixQueue(end)) => ("queue", queue(image, end.queue), None),
        Some(Kind::Netlink(_)) => ("socket", "netlink".to_owned(), None),
        Some(Kind::Pidfd(pidfd)) if pidfd.id == 0 => ("pidfd", "of a process that is gone".to_owned(), None),
        Some(Kind::Pidfd(pidfd)) => ("pidfd", format!("of {}", pidfd.id), None),
        Some(Kind::Symlink(link)) => ("link", text(&link.path), None),
        None => ("unknown", String::new(), None),
    };
    // O_ACCMODE
    let access = match file.flags & 3 {
        0 => "r",
        1 => "w",
        _ => "rw",
    };
    FileDescription { fd, kind, name, access, position }
}
