//! Which memory is read, where it comes to lie in the page stream, and the threads that carry it there.

mod private;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use rewake_image::pages::{BLOCK_SIZE, BLOCK_SIZE_U64, block_count};
use rewake_image::records::{Extent, FileContent, SharedMemory};
use rewake_image::{AlignedBuffer, PageWriter};
use rewake_linux::addr::{PAGE_SIZE, RemoteAddr, page_up};
use rewake_linux::hugetlb;
use rewake_linux::memory::ProcessMemory;
use rewake_linux::pagemap;
use rewake_linux::proc::Proc;
use rustix::fs::OFlags;

use crate::contents::{Contents, Opened};
use crate::error::{CaptureError, During, Result};
use crate::ipc;
use crate::ipc::contents::Segments;
use crate::memory::{MappedPart, Memory, SharedObject};

use private::Common;

/// Threads that read memory and write blocks.
const WORKERS: usize = 2;

/// Shared objects and files that are kept open, if the others can be read in another way.
const MOST_OPEN: usize = 256;

/// Everything that goes into the page stream, in order.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Private pages of each process that has memory of its own, for the address spaces' records.
    pub(crate) private: Vec<Vec<Extent>>,
    /// Records of shared memory objects.
    pub(crate) shared: Vec<SharedMemory>,
    /// Records of contents of files.
    pub(crate) contents: Vec<FileContent>,
    /// Length of the stream, in bytes.
    pub(crate) total: u64,
    sources: Vec<Source>,
    objects: Vec<Object>,
}

/// A file that is read from.
#[derive(Debug)]
struct Object {
    file: File,
    /// What is read behind this is zero: the rest of its last page.
    size: u64,
}

/// What of the stream is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    All,
    /// Blocks with something in them that must be read before the target goes on.
    Urgent,
    /// The others.
    Rest,
}

/// A run of the stream and where its bytes are.
#[derive(Clone, Copy, Debug)]
struct Source {
    stream: u64,
    len: u64,
    place: Place,
    /// Others write it too, or copies of the process do not have it: to be read before it goes on.
    urgent: bool,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// In the address space of a process.
    Memory(i32, RemoteAddr),
    /// In a shared memory object: its place in [`Plan::objects`], and the offset there.
    Object(usize, u64),
}

/// Finds out what must be read. The target stands still; `procs` are the processes of the address spaces.
///
/// # Errors
/// When the kernel does not tell.
pub(crate) fn plan(
    procs: &[Proc],
    memory: &Memory,
    contents: &Contents,
    segments: &mut Segments<'_>,
) -> Result<Plan> {
    let mut plan = Plan::default();
    let mut common = Common::of(procs.len());
    for (proc, space) in procs.iter().zip(&memory.spaces) {
        plan.add_space(proc, space, &mut common)?;
    }
    let parts = memory.mapped_parts();
    let root = procs.first().map_or(0, Proc::id);
    for object in &memory.shared {
        match object.segment.and_then(|id| segments.take(id)) {
            Some((found, file)) => {
                let record = ipc::contents::record(object.id, found);
                let record = SharedMemory { huge_page_shift: object.huge_page_shift, ..record };
                plan.add_segment(root, record, file)?;
            }
            None => plan.add_object(parts.of(object), object)?,
        }
    }
    for (record, object) in plan.shared.iter_mut().zip(&memory.shared) {
        record.segment = object.segment.and_then(|id| segments.segment(id));
        record.size = record.size.max(record.segment.map_or(0, |segment| page_up(segment.size)));
    }
    let next = u32::try_from(memory.shared.len()).expect("fewer objects than mappings");
    for ((found, file), id) in segments.rest().into_iter().zip(next..) {
        plan.add_segment(root, ipc::contents::record(id, found), file)?;
    }
    for (record, opened) in contents.open()? {
        match opened {
            Opened::File(file) => plan.add_content(root, record, file, true)?,
            Opened::Held(file) => plan.add_content(root, record, file, false)?,
            Opened::Mappings => plan.add_shown(root, memory, record)?,
        }
    }
    Ok(plan)
}

/// Where the target has this run of a shared object mapped, if it has all of it.
fn mapped(parts: &[MappedPart], run: &Range<u64>) -> Option<Vec<(i32, RemoteAddr, u64)>> {
    let mut places = Vec::new();
    let mut at = run.start;
    let first = parts.partition_point(|part| part.offset + part.len <= run.start);
    for part in &parts[first..] {
        if at >= run.end || part.offset > at {
            break;
        }
        let skip = at - part.offset;
        let len = (part.len - skip).min(run.end - at);
        places.push((part.pid, part.address + skip, len));
        at += len;
    }
    (at >= run.end).then_some(places)
}

impl Plan {
    fn push(&mut self, len: u64, place: Place) {
        self.push_source(len, place, true);
    }

    fn push_source(&mut self, len: u64, place: Place, urgent: bool) {
        // Neighbours in memory are read as one.
        if let (Some(last), Place::Memory(pid, address)) = (self.sources.last_mut(), place)
            && let Place::Memory(other, before) = last.place
            && (other, before + last.len, last.urgent) == (pid, address, urgent)
        {
            last.len += len;
        } else {
            self.sources.push(Source { stream: self.total, len, place, urgent });
        }
        self.total += len;
    }

    /// Adds a shared memory object: by its file where that can be opened, else through the target's own mappings.
    fn add_object(&mut self, parts: &[MappedPart], object: &SharedObject) -> Result<()> {
        let pid = object.pid;
        let proc = Proc::open_living(pid).during("open", pid, "process")?;
        let name = format!("shared memory at {}", object.mapping.start);
        let mut record = SharedMemory {
            id: object.id,
            size: page_up(object.mapped_end),
            huge_page_shift: object.huge_page_shift,
            ..SharedMemory::default()
        };
        match proc.open_mapped_file(&object.mapping, OFlags::RDONLY) {
            Ok(file) => {
                let size = page_up(file.metadata().during("stat", pid, &name)?.len());
                record.size = record.size.max(size);
                let runs = pagemap::data_runs(&file, 0..size).during("find data", pid, &name)?;
                let mut stream_offset = self.total;
                for run in &runs {
                    let length = run.end - run.start;
                    record.pages.push(Extent { address: run.start, length, stream_offset });
                    stream_offset += length;
                }
                // A process may have more of them than we may have open files.
                let many = self.objects.len() >= MOST_OPEN;
                match runs.iter().map(|run| mapped(parts, run)).collect::<Option<Vec<_>>>().filter(|_| many) {
                    Some(places) => {
                        for (pid, address, len) in places.into_iter().flatten() {
                            self.push(len, Place::Memory(pid, address));
                        }
                    }
                    None => {
                        let place = self.objects.len();
                        for run in runs {
                            self.push(run.end - run.start, Place::Object(place, run.start));
                        }
                        self.objects.push(Object { file, size });
                    }
                }
            }
            Err(error) if error.is_denied() => {
                for &MappedPart { pid, address, offset, len } in parts {
                    record.pages.push(Extent { address: offset, length: len, stream_offset: self.total });
                    self.push(len, Place::Memory(pid, address));
                }
            }
            Err(error) => return Err(error).during("open", pid, name),
        }
        self.shared.push(record);
        Ok(())
    }

    /// Adds the content of a file as far as the target's mappings show it.
    fn add_shown(&mut self, root: i32, memory: &Memory, mut record: FileContent) -> Result<()> {
        let (parts, size) =
            memory.shown(record.id).during("scan pages", root, format!("content {}", record.id))?;
        for MappedPart { pid, address, offset, len } in parts {
            record.pages.push(Extent { address: offset, length: len, stream_offset: self.total });
            self.push(len, Place::Memory(pid, address));
        }
        if let Some(identity) = &mut record.identity {
            identity.size = size;
        }
        self.contents.push(record);
        Ok(())
    }

    /// Adds a System V segment by a copy of it.
    fn add_segment(&mut self, pid: i32, mut record: SharedMemory, file: File) -> Result<()> {
        let place = self.objects.len();
        let runs = pagemap::data_runs(&file, 0..record.size);
        for run in runs.during("find data", pid, format!("shared memory {}", record.id))? {
            let length = run.end - run.start;
            record.pages.push(Extent { address: run.start, length, stream_offset: self.total });
            self.push(length, Place::Object(place, run.start));
        }
        self.objects.push(Object { file, size: record.size });
        self.shared.push(record);
        Ok(())
    }

    /// Adds the content of a file, without its holes; those are told by moving its position, or found by reading.
    fn add_content(&mut self, pid: i32, mut record: FileContent, file: File, may_move: bool) -> Result<()> {
        let size = record.identity.as_ref().map_or(0, |identity| identity.size);
        let place = self.objects.len();
        let mut end = 0;
        let runs = match record.huge_page_shift {
            0 if may_move => pagemap::data_runs(&file, 0..size),
            shift => hugetlb::data_runs(&file, shift.max(PAGE_SIZE.trailing_zeros())),
        };
        for run in runs.during("find data", pid, format!("content {}", record.id))? {
            // File systems with blocks smaller than a page may tell of parts of pages.
            let (start, stop) = ((run.start & !(PAGE_SIZE - 1)).max(end), page_up(run.end));
            if stop > start {
                let length = stop - start;
                record.pages.push(Extent { address: start, length, stream_offset: self.total });
                self.push(length, Place::Object(place, start));
                end = stop;
            }
        }
        self.objects.push(Object { file, size });
        self.contents.push(record);
        Ok(())
    }

    /// Bytes `stream..stream + into.len()` of the stream.
    fn read(&self, memories: &mut Memories, mut stream: u64, mut into: &mut [u8]) -> Result<()> {
        let mut at = self.sources.partition_point(|source| source.stream + source.len <= stream);
        while !into.is_empty() {
            let source = self.sources[at];
            let skip = stream - source.stream;
            let len = usize::try_from(source.len - skip).unwrap_or(usize::MAX).min(into.len());
            let (part, rest) = into.split_at_mut(len);
            match source.place {
                Place::Memory(pid, address) => {
                    memories
                        .of(pid)?
                        .read_exact_at(address + skip, part)
                        .map_err(|error| unreadable(pid, address + skip, len, error.source))?;
                }
                Place::Object(object, offset) => {
                    self.objects[object].read(part, offset + skip).during(
                        "read",
                        memories.root,
                        format!("file or shared memory, {len} bytes at offset {:#x}", offset + skip),
                    )?;
                }
            }
            into = rest;
            stream += u64::try_from(len).expect("a length fits into 64 bits");
            at += 1;
        }
        Ok(())
    }

    /// Reads all memory and hands it to `writer`, from two threads; `progress` hears the bytes done so far, in this thread.
    ///
    /// # Errors
    /// The first failure of a read or a write.
    pub(crate) fn write(&self, pid: i32, writer: &PageWriter, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let (done, news) = mpsc::channel();
        std::thread::scope(|scope| {
            let workers = WORKERS.min(usize::try_from(block_count(self.total)).unwrap_or(WORKERS));
            for _ in 0..workers {
                let (done, next, stop) = (done.clone(), &next, &stop);
                scope.spawn(move || {
                    let result = self.work(pid, writer, next, stop, &done);
                    if result.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    let _front_gone = done.send(result.map(|()| 0));
                });
            }
            drop(done);
            let mut written = 0;
            let mut first_error = Ok(());
            for news in news {
                match news {
                    Ok(bytes) => {
                        written += bytes;
                        progress(written);
                    }
                    Err(error) if first_error.is_ok() => first_error = Err(error),
                    Err(_) => {}
                }
            }
            first_error
        })
    }

    /// The same from this thread alone, where there can be no other: all, only what must be read before the target goes on, or the rest,
    /// from the snapshot of its memory.
    ///
    /// # Errors
    /// The first failure of a read or a write.
    pub(crate) fn write_alone(&self, pid: i32, writer: &PageWriter, part: Part) -> Result<()> {
        let mut memories = Memories { root: pid, open: HashMap::new(), snapshot: part == Part::Rest };
        let mut buffer = AlignedBuffer::new(BLOCK_SIZE);
        for index in 0..block_count(self.total) {
            if part == Part::All || (part == Part::Urgent) == self.is_urgent(index) {
                self.carry(&mut memories, writer, index, &mut buffer)?;
            }
        }
        Ok(())
    }

    /// Whether there is anything in a block that must be read before the target goes on.
    fn is_urgent(&self, index: u64) -> bool {
        let start = index * BLOCK_SIZE_U64;
        let first = self.sources.partition_point(|source| source.stream + source.len <= start);
        let within = self.sources[first..].iter().take_while(|source| source.stream < start + BLOCK_SIZE_U64);
        within.into_iter().any(|source| source.urgent)
    }

    /// Reads one block and hands it to `writer`; its length.
    fn carry(
        &self,
        memories: &mut Memories,
        writer: &PageWriter,
        index: u64,
        buffer: &mut AlignedBuffer,
    ) -> Result<u64> {
        let start = index * BLOCK_SIZE_U64;
        let len = BLOCK_SIZE_U64.min(self.total - start);
        let block = &mut buffer.as_mut_slice()[..usize::try_from(len).expect("a block fits into memory")];
        self.read(memories, start, block)?;
        let pid = memories.root;
        writer.block(index, block).map_err(|error| crate::commit::image_error("write", pid, error))?;
        Ok(len)
    }

    fn work(
        &self,
        pid: i32,
        writer: &PageWriter,
        next: &AtomicU64,
        stop: &AtomicBool,
        done: &mpsc::Sender<Result<u64>>,
    ) -> Result<()> {
        let mut memories = Memories { root: pid, open: HashMap::new(), snapshot: false };
        let mut buffer = AlignedBuffer::new(BLOCK_SIZE);
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= block_count(self.total) {
                break;
            }
            let len = self.carry(&mut memories, writer, index, &mut buffer)?;
            let _front_gone = done.send(Ok(len));
        }
        Ok(())
    }
}

/// The memories of processes, each opened when it is first read.
struct Memories {
    root: i32,
    open: HashMap<i32, ProcessMemory>,
    /// As they were when there were copies made of them.
    snapshot: bool,
}

impl Memories {
    fn of(&mut self, pid: i32) -> Result<&ProcessMemory> {
        let open = if self.snapshot { ProcessMemory::snapshot } else { ProcessMemory::open };
        Ok(match self.open.entry(pid) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(
                open(pid).map_err(|error| CaptureError::failed("open", pid, "memory", error.source))?,
            ),
        })
    }
}

impl Object {
    fn read(&self, into: &mut [u8], offset: u64) -> std::io::Result<()> {
        let there = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (file, rest) = into.split_at_mut(there.min(into.len()));
        self.file.read_exact_at(file, offset)?;
        rest.fill(0);
        Ok(())
    }
}

fn unreadable(pid: i32, address: RemoteAddr, len: usize, source: std::io::Error) -> CaptureError {
    CaptureError::failed("read", pid, format!("memory, {len} bytes at {address}"), source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(sources: &[&[u8]]) -> (Plan, Memories) {
        let mut plan = Plan::default();
        let root = rustix::process::getpid().as_raw_nonzero().get();
        for source in sources {
            let address = u64::try_from(source.as_ptr().addr()).unwrap();
            plan.push(u64::try_from(source.len()).unwrap(), Place::Memory(root, RemoteAddr::new(address)));
        }
        (plan, Memories { root, open: HashMap::new(), snapshot: false })
    }

    #[test]
    fn blocks_cut_across_runs() {
        let (a, b, c) = (vec![1u8; 5000], vec![2u8; 3], vec![3u8; 9000]);
        let (plan, mut memories) = own(&[&a, &b, &c]);
        let whole = [a.as_slice(), &b, &c].concat();
        for (start, len) in [(0, 14003), (0, 1), (4999, 2), (5000, 3), (5001, 9002), (14002, 1)] {
            let mut part = vec![0; len];
            plan.read(&mut memories, u64::try_from(start).unwrap(), &mut part).unwrap();
            assert!(part == whole[start..start + len], "{len} bytes at {start}");
        }
    }

    #[test]
    fn runs_of_objects_are_found_where_they_are_mapped() {
        let part =
            |address, offset, len| MappedPart { pid: 1, address: RemoteAddr::new(address), offset, len };
        let parts = [part(0x9000, 0, 0x2000), part(0x5000, 0x2000, 0x1000), part(0x1000, 0x4000, 0x1000)];
        let found =
            |run| mapped(&parts, &run).map(|all| all.iter().map(|(_, at, len)| (at.get(), *len)).collect());
        let expected: Vec<(u64, u64)> = vec![(0xa000, 0x1000), (0x5000, 0x1000)];
        assert_eq!(found(0x1000..0x3000), Some(expected));
        assert_eq!(found(0x4000..0x5000), Some(vec![(0x1000, 0x1000)]));
        for lacking in [0x1000..0x4000, 0x3000..0x4000, 0x4000..0x6000] {
            assert_eq!(found(lacking), None);
        }
    }

    #[test]
    fn memory_that_cannot_be_read_is_named() {
        let (mut plan, mut memories) = own(&[]);
        plan.push(4096, Place::Memory(memories.root, RemoteAddr::new(0x1000)));
        let error = plan.read(&mut memories, 0, &mut [0; 4096]).unwrap_err();
        assert!(error.to_string().contains("memory, 4096 bytes at 0x1000"), "{error}");
    }
}
