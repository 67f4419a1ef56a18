//! Which memory is read, where it comes to lie in the page stream.

mod carry;
mod earlier;
mod files;
mod private;

use std::fs::File;
use std::ops::Range;
use std::sync::Mutex;

use rewake_image::records::{Extent, FileContent, SharedMemory};
use rewake_linux::addr::{PAGE_SIZE, RemoteAddr, page_up};
use rewake_linux::hugetlb;
use rewake_linux::pagemap;
use rewake_linux::proc::Proc;
use rustix::fs::OFlags;

use crate::contents::{Contents, Opened};
use crate::error::{During, Result};
use crate::ipc;
use crate::ipc::contents::Segments;
use crate::memory::{MappedPart, Memory, SharedObject};

pub(crate) use carry::Part;
pub(crate) use earlier::{Earlier, can_be_tracked};
pub(crate) use files::{Candidates, EarlierFiles};
use files::{Unchanged, Writers};
use private::Common;

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
    /// Where this plan's part of the stream begins, with a block: what is before was carried earlier.
    begin: u64,
    /// What was carried earlier and is not what it was any more.
    pub(crate) spare: Vec<Extent>,
    /// The target runs: what cannot be read has gone meanwhile.
    running: bool,
    /// Addresses of private memory that had gone so: what lies in the stream for it is nobody's.
    gone: Mutex<Vec<Range<u64>>>,
    sources: Vec<Source>,
    objects: Vec<Object>,
    /// The bytes from `begin` on, when they were read in advance.
    held: Option<Vec<u8>>,
}

/// A file that is read from.
#[derive(Debug)]
struct Object {
    file: File,
    /// What is read behind this is zero: the rest of its last page.
    size: u64,
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
    (earlier, files): (Option<&Earlier>, Option<&EarlierFiles>),
) -> Result<Plan> {
    let begin = earlier.map_or(0, Earlier::stream).max(files.map_or(0, EarlierFiles::stream));
    let mut plan = Plan { total: begin, begin, ..Plan::default() };
    let mut common = Common::of(procs.len());
    for (proc, space) in procs.iter().zip(&memory.spaces) {
        plan.add_space(proc, space, earlier.filter(|earlier| earlier.pid() == proc.id()), &mut common)?;
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
    let writers = files.map_or_else(|| Ok(Writers::default()), |_| Writers::of(procs))?;
    for (record, opened) in contents.open()? {
        match opened {
            Opened::File(file) => {
                let unchanged = files.and_then(|files| files.unchanged(&record, &file, &writers));
                let Unchanged { pages, rest } = unchanged.unwrap_or_default();
                plan.add_content(root, FileContent { pages, ..record }, file, (true, rest))?;
            }
            Opened::Held(file) => plan.add_content(root, record, file, (false, 0))?,
            Opened::Mappings => plan.add_shown(root, memory, record)?,
        }
    }
    if begin > 0 {
        plan.spare = plan.unused();
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

    /// Adds the content of a file from an offset on, without its holes; those are told by moving its position, or found by reading.
    fn add_content(
        &mut self,
        pid: i32,
        mut record: FileContent,
        file: File,
        (may_move, from): (bool, u64),
    ) -> Result<()> {
        let size = record.identity.as_ref().map_or(0, |identity| identity.size);
        let place = self.objects.len();
        let mut end = 0;
        let runs = match record.huge_page_shift {
            0 if may_move => pagemap::data_runs(&file, from..size),
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

    /// The parts of what was carried earlier that are in no extent.
    fn unused(&self) -> Vec<Extent> {
        let contents = self.contents.iter().flat_map(|content| &content.pages);
        let private =
            self.private.iter().flatten().chain(contents).map(|extent| (extent.stream_offset, extent.length));
        let mut used: Vec<(u64, u64)> = private.filter(|(stream, _)| *stream < self.begin).collect();
        used.sort_unstable();
        let mut unused = Vec::new();
        let mut at = 0;
        for (stream, length) in used.into_iter().chain([(self.begin, 0)]) {
            if stream > at {
                unused.push(Extent { address: 0, length: stream - at, stream_offset: at });
            }
            at = stream + length;
        }
        unused
    }

    /// Bytes that are to be read yet.
    pub(crate) fn rest(&self) -> u64 {
        self.total - self.begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
