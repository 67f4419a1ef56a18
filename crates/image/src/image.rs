//! An image's records as one value: decoded from the file `records`, encoded into it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use prost::Message;
use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::container::{self, Frame, MANDATORY, UnknownRecord, Writer};
use crate::header::MAX_RECORDS_LENGTH;
use crate::records::{
    AddressSpace, FileContent, Manifest, MappedFile, MessageQueue, OpenFile, PageStream, Pipe, PosixQueue,
    Process, RecordKind, RemovedFile, SeccompFilter, SemaphoreSet, SharedMemory, UnixName, UnixSocket,
};
use crate::{ImageError, RECORDS_FILE, check, wire};

/// Everything in an image but the pages.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Where and how it was made.
    pub manifest: Manifest,
    /// The processes: the root of the tree first, each after its parent.
    pub processes: Vec<Process>,
    /// Files behind mappings; `Vma.object` is a place in here.
    pub mapped_files: Vec<MappedFile>,
    /// Shared anonymous memory; `Vma.object` is an id.
    pub shared_memory: Vec<SharedMemory>,
    /// Open file descriptions; `Descriptor.file` is an id.
    pub open_files: Vec<OpenFile>,
    /// Pipes inside the tree.
    pub pipes: Vec<Pipe>,
    /// Content of files; [`OpenFile`] and [`MappedFile`] refer to it by id.
    pub file_contents: Vec<FileContent>,
    /// Seccomp filters; `Thread.seccomp_filters` are ids.
    pub seccomp_filters: Vec<SeccompFilter>,
    /// Folders and fifos that have no name any more.
    pub removed_files: Vec<RemovedFile>,
    /// System V semaphores.
    pub semaphore_sets: Vec<SemaphoreSet>,
    /// System V message queues.
    pub message_queues: Vec<MessageQueue>,
    /// POSIX message queues.
    pub posix_queues: Vec<PosixQueue>,
    /// Unix sockets; [`OpenFile`] refers to them by id.
    pub unix_sockets: Vec<UnixSocket>,
    /// Their addresses.
    pub unix_names: Vec<UnixName>,
    /// How the file `pages` is cut up.
    pub stream: PageStream,
    /// Optional records that this version does not know, in their order. They are written again as they were.
    pub unknown: Vec<UnknownRecord>,
}

impl Image {
    /// The root of the tree.
    ///
    /// # Panics
    /// When there is no process: what was read or is written has one.
    #[must_use]
    pub fn root(&self) -> &Process {
        self.processes.first().expect("an image has a process")
    }

    /// The process that has this id.
    #[must_use]
    pub fn process(&self, pid: i32) -> Option<&Process> {
        self.processes.iter().find(|process| process.pid == pid)
    }

    /// The address spaces.
    pub fn memories(&self) -> impl Iterator<Item = &AddressSpace> {
        self.processes.iter().filter_map(|process| process.memory.as_ref())
    }

    /// Threads of all processes.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        self.processes.iter().map(|process| process.threads.len()).sum()
    }

    /// Reads and checks the records of the image in the directory `dir`. The pages are left alone: see
    /// [`PageReader`](crate::PageReader) and [`verify`](crate::verify()).
    ///
    /// # Errors
    /// Any [`ImageError`], naming the image.
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        Self::open_at(open_directory(dir)?, dir)
    }

    /// The same in a directory that is open already, whatever has its name `dir` by now.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn open_at(directory: impl AsFd, dir: &Path) -> Result<Self, ImageError> {
        let bytes = read_records_at(directory, dir)?;
        Self::decode(&bytes).map_err(|error| error.in_image(dir))
    }

    /// Decodes and checks the content of a file `records`.
    ///
    /// # Errors
    /// Any [`ImageError`] but [`ImageError::Io`].
    pub fn decode(file: &[u8]) -> Result<Self, ImageError> {
        let image = Self::decode_unchecked(file)?;
        image.check()?;
        Ok(image)
    }

    /// The records as they are, whether they make sense or not.
    pub(crate) fn decode_unchecked(file: &[u8]) -> Result<Self, ImageError> {
        let mut records = Records::default();
        for frame in container::frames(file)? {
            records.add(&frame)?;
        }
        records.into_image()
    }

    /// Checks the records and encodes them as the content of a file `records`.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] when the records contradict themselves or one another: nothing that could not be read again is
    /// ever written.
    pub fn encode(&self) -> Result<Vec<u8>, ImageError> {
        self.check()?;
        let bytes = self.encode_unchecked();
        if u64::try_from(bytes.len()).is_ok_and(|length| length <= MAX_RECORDS_LENGTH) {
            Ok(bytes)
        } else {
            let detail = format!("{} bytes, at most {MAX_RECORDS_LENGTH} can be read again", bytes.len());
            Err(ImageError::Invalid { record: RECORDS_FILE.to_owned(), detail })
        }
    }

    /// The records as they are, whether they make sense or not.
    pub(crate) fn encode_unchecked(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        put(&mut writer, RecordKind::Manifest, &self.manifest);
        put_all(&mut writer, RecordKind::Process, &self.processes);
        put_all(&mut writer, RecordKind::MappedFile, &self.mapped_files);
        put_all(&mut writer, RecordKind::SharedMemory, &self.shared_memory);
        put_all(&mut writer, RecordKind::OpenFile, &self.open_files);
        put_all(&mut writer, RecordKind::Pipe, &self.pipes);
        put_all(&mut writer, RecordKind::FileContent, &self.file_contents);
        put_all(&mut writer, RecordKind::SeccompFilter, &self.seccomp_filters);
        put_all(&mut writer, RecordKind::RemovedFile, &self.removed_files);
        put_all(&mut writer, RecordKind::SemaphoreSet, &self.semaphore_sets);
        put_all(&mut writer, RecordKind::MessageQueue, &self.message_queues);
        put_all(&mut writer, RecordKind::PosixQueue, &self.posix_queues);
        put_all(&mut writer, RecordKind::UnixSocket, &self.unix_sockets);
        put_all(&mut writer, RecordKind::UnixName, &self.unix_names);
        put(&mut writer, RecordKind::PageStream, &self.stream);
        for record in &self.unknown {
            writer.frame(record.kind, record.flags, |bytes| bytes.extend_from_slice(&record.payload));
        }
        writer.finish()
    }

    /// Checks that the records make sense, one by one and together; see [`crate::check`].
    ///
    /// # Errors
    /// [`ImageError::Invalid`] with the first thing that makes none.
    pub fn check(&self) -> Result<(), ImageError> {
        check::image(self)
    }
}

fn put(writer: &mut Writer, kind: RecordKind, message: &impl Message) {
    writer.frame(kind.number(), MANDATORY, |bytes| {
        message.encode(bytes).expect("a vector has room for every message");
    });
}

fn put_all(writer: &mut Writer, kind: RecordKind, messages: &[impl Message]) {
    for message in messages {
        put(writer, kind, message);
    }
}

/// The records of a file, sorted by kind.
#[derive(Default)]
struct Records {
    manifest: Vec<Manifest>,
    processes: Vec<Process>,
    mapped_files: Vec<MappedFile>,
    shared_memory: Vec<SharedMemory>,
    open_files: Vec<OpenFile>,
    pipes: Vec<Pipe>,
    file_contents: Vec<FileContent>,
    seccomp_filters: Vec<SeccompFilter>,
    removed_files: Vec<RemovedFile>,
    semaphore_sets: Vec<SemaphoreSet>,
    message_queues: Vec<MessageQueue>,
    posix_queues: Vec<PosixQueue>,
    unix_sockets: Vec<UnixSocket>,
    unix_names: Vec<UnixName>,
    stream: Vec<PageStream>,
    unknown: Vec<UnknownRecord>,
}

impl Records {
    fn add(&mut self, frame: &Frame<'_>) -> Result<(), ImageError> {
        match RecordKind::from_number(frame.kind) {
            Some(RecordKind::Manifest) => push(&mut self.manifest, RecordKind::Manifest, frame),
            Some(RecordKind::Process) => push(&mut self.processes, RecordKind::Process, frame),
            Some(RecordKind::MappedFile) => push(&mut self.mapped_files, RecordKind::MappedFile, frame),
            Some(RecordKind::SharedMemory) => push(&mut self.shared_memory, RecordKind::SharedMemory, frame),
            Some(RecordKind::OpenFile) => push(&mut self.open_files, RecordKind::OpenFile, frame),
            Some(RecordKind::Pipe) => push(&mut self.pipes, RecordKind::Pipe, frame),
            Some(RecordKind::FileContent) => push(&mut self.file_contents, RecordKind::FileContent, frame),
            Some(RecordKind::SeccompFilter) => {
                push(&mut self.seccomp_filters, RecordKind::SeccompFilter, frame)
            }
            Some(RecordKind::RemovedFile) => push(&mut self.removed_files, RecordKind::RemovedFile, frame),
            Some(RecordKind::SemaphoreSet) => push(&mut self.semaphore_sets, RecordKind::SemaphoreSet, frame),
            Some(RecordKind::MessageQueue) => push(&mut self.message_queues, RecordKind::MessageQueue, frame),
            Some(RecordKind::PosixQueue) => push(&mut self.posix_queues, RecordKind::PosixQueue, frame),
            Some(RecordKind::UnixSocket) => push(&mut self.unix_sockets, RecordKind::UnixSocket, frame),
            Some(RecordKind::UnixName) => push(&mut self.unix_names, RecordKind::UnixName, frame),
            Some(RecordKind::PageStream) => push(&mut self.stream, RecordKind::PageStream, frame),
            None if frame.flags & MANDATORY != 0 => {
                Err(ImageError::UnknownMandatory { kind: frame.kind, offset: frame.offset })
            }
            None => {
                let payload = frame.payload.to_vec();
                self.unknown.push(UnknownRecord { kind: frame.kind, flags: frame.flags, payload });
                Ok(())
            }
        }
    }

    fn into_image(self) -> Result<Image, ImageError> {
        Ok(Image {
            manifest: only(self.manifest, RecordKind::Manifest)?,
            processes: some(self.processes, RecordKind::Process)?,
            mapped_files: self.mapped_files,
            shared_memory: self.shared_memory,
            open_files: self.open_files,
            pipes: self.pipes,
            file_contents: self.file_contents,
            seccomp_filters: self.seccomp_filters,
            removed_files: self.removed_files,
            semaphore_sets: self.semaphore_sets,
            message_queues: self.message_queues,
            posix_queues: self.posix_queues,
            unix_sockets: self.unix_sockets,
            unix_names: self.unix_names,
            stream: only(self.stream, RecordKind::PageStream)?,
            unknown: self.unknown,
        })
    }
}

fn push<M: Message + Default>(
    records: &mut Vec<M>,
    kind: RecordKind,
    frame: &Frame<'_>,
) -> Result<(), ImageError> {
    wire::check_counts(kind, frame.payload)?;
    let kind = kind.name();
    let message = M::decode(frame.payload).map_err(|source| ImageError::Undecodable {
        kind,
        offset: frame.offset,
        source,
    })?;
    records.push(message);
    Ok(())
}

fn only<M>(records: Vec<M>, kind: RecordKind) -> Result<M, ImageError> {
    let count = records.len();
    let mut records = records.into_iter();
    match (records.next(), count) {
        (Some(record), 1) => Ok(record),
        _ => Err(ImageError::Count { kind: kind.name(), count }),
    }
}

fn some<M>(records: Vec<M>, kind: RecordKind) -> Result<Vec<M>, ImageError> {
    if records.is_empty() { Err(ImageError::Count { kind: kind.name(), count: 0 }) } else { Ok(records) }
}

/// The bytes of the file `records` in `dir`, as many as the file has and no more than [`MAX_RECORDS_LENGTH`].
pub(crate) fn read_records(dir: &Path) -> Result<Vec<u8>, ImageError> {
    read_records_at(open_directory(dir)?, dir)
}

fn read_records_at(directory: impl AsFd, dir: &Path) -> Result<Vec<u8>, ImageError> {
    let (mut file, length) = open_regular(directory, dir, RECORDS_FILE)?;
    if length > MAX_RECORDS_LENGTH {
        let detail =
            format!("the file `records` has {length} bytes, at most {MAX_RECORDS_LENGTH} are possible");
        return Err(ImageError::NotAnImage { detail }.in_image(dir));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    let path = dir.join(RECORDS_FILE);
    file.by_ref().take(length).read_to_end(&mut bytes).map_err(ImageError::io("read", &path))?;
    Ok(bytes)
}

/// Opens the directory of an image, for [`Image::open_at`] and [`PageReader::open_at`](crate::PageReader::open_at): what is opened
/// there and looked at is of one directory, even if another one gets its name meanwhile.
///
/// # Errors
/// [`ImageError::NotAnImage`] when it is none, [`ImageError::Io`] when it is not there or closed to us.
pub fn open_directory(dir: &Path) -> Result<OwnedFd, ImageError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, dir, flags, Mode::empty()) {
        Ok(directory) => Ok(directory),
        Err(rustix::io::Errno::NOTDIR) => {
            Err(ImageError::NotAnImage { detail: "not a directory".to_owned() }.in_image(dir))
        }
        Err(source) => Err(ImageError::io("open", dir)(source)),
    }
}

/// Opens a regular file of an image for reading, without following a link or waiting for anything, and gives its length.
pub(crate) fn open_regular(directory: impl AsFd, dir: &Path, name: &str) -> Result<(File, u64), ImageError> {
    let path = dir.join(name);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => {
            return Err(ImageError::NotAnImage { detail: format!("it has no file `{name}`") }.in_image(dir));
        }
        Err(rustix::io::Errno::LOOP) => {
            return Err(
                ImageError::NotAnImage { detail: format!("`{name}` is a symbolic link") }.in_image(dir)
            );
        }
        Err(source) => return Err(ImageError::io("open", &path)(source)),
    };
    let status = rustix::fs::fstat(&file).map_err(ImageError::io("fstat", &path))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(ImageError::NotAnImage { detail: format!("`{name}` is no regular file") }.in_image(dir));
    }
    Ok((file, u64::try_from(status.st_size).unwrap_or(0)))
}
