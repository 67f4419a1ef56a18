//! The memory of a plan on its way to the stream: read from where it is, by two threads or by this one alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, mpsc};

use rewake_image::pages::{BLOCK_SIZE, BLOCK_SIZE_U64, block_count};
use rewake_image::{AlignedBuffer, PageWriter};
use rewake_linux::addr::RemoteAddr;
use rewake_linux::memory::ProcessMemory;

use super::{Object, Place, Plan};
use crate::error::{CaptureError, During, Result};

/// Threads that read memory and write blocks.
const WORKERS: usize = 2;

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

impl Plan {
    /// Reads all of it now, so that the target need not stand still while it is written. `room` is memory that was touched before.
    ///
    /// # Errors
    /// The first failure of a read.
    pub(crate) fn hold(&mut self, pid: i32, mut room: Vec<u8>) -> Result<()> {
        let mut memories = Memories { root: pid, open: HashMap::new(), snapshot: false };
        room.resize(usize::try_from(self.rest()).expect("it was found to fit into memory"), 0);
        self.read(&mut memories, self.begin, &mut room)?;
        self.held = Some(room);
        Ok(())
    }

    /// A block of it, read from where it is. `root` is the process whose memory it may be.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn read_block(&self, root: i32, index: u64, into: &mut [u8]) -> Result<()> {
        let mut memories = Memories { root, open: HashMap::new(), snapshot: false };
        self.read(&mut memories, index * BLOCK_SIZE_U64, into)
    }

    /// Bytes `stream..stream + into.len()` of the stream.
    fn read(&self, memories: &mut Memories, mut stream: u64, mut into: &mut [u8]) -> Result<()> {
        if let Some(held) = &self.held {
            let from = usize::try_from(stream - self.begin).expect("it lies in memory");
            into.copy_from_slice(&held[from..from + into.len()]);
            return Ok(());
        }
        let mut at = self.sources.partition_point(|source| source.stream + source.len <= stream);
        while !into.is_empty() {
            let Some(&source) = self.sources.get(at) else {
                into.fill(0);
                break;
            };
            let skip = stream - source.stream;
            let len = usize::try_from(source.len - skip).unwrap_or(usize::MAX).min(into.len());
            let (part, rest) = into.split_at_mut(len);
            match source.place {
                Place::Memory(pid, address) => {
                    let (memory, address) = (memories.of(pid)?, address + skip);
                    if self.running {
                        self.note_gone(&memory.read_there_at(address, part));
                    } else {
                        let read = memory.read_exact_at(address, part);
                        read.map_err(|error| unreadable(pid, address, len, error.source))?;
                    }
                }
                Place::Object(object, offset) => {
                    let read = self.objects[object].read(part, offset + skip);
                    // One that is cut off meanwhile is not what it was, and shows it.
                    let is_cut = |error: &std::io::Error| error.kind() == ErrorKind::UnexpectedEof;
                    if !(self.running && read.as_ref().is_err_and(is_cut)) {
                        read.during(
                            "read",
                            memories.root,
                            format!("file or shared memory, {len} bytes at offset {:#x}", offset + skip),
                        )?;
                    }
                }
            }
            into = rest;
            stream += u64::try_from(len).expect("a length fits into 64 bits");
            at += 1;
        }
        Ok(())
    }

    fn note_gone(&self, ranges: &[Range<RemoteAddr>]) {
        if !ranges.is_empty() {
            let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
            gone.extend(ranges.iter().map(|range| range.start.get()..range.end.get()));
        }
    }

    /// See [`Plan::gone`].
    pub(super) fn take_gone(&mut self) -> Vec<Range<u64>> {
        std::mem::take(self.gone.get_mut().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads all memory and hands it to `writer`, from two threads; `progress` hears the bytes done so far, in this thread.
    ///
    /// # Errors
    /// The first failure of a read or a write.
    pub(crate) fn write(&self, pid: i32, writer: &PageWriter, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let (next, stop) = (AtomicU64::new(self.begin / BLOCK_SIZE_U64), AtomicBool::new(false));
        let (done, news) = mpsc::channel();
        std::thread::scope(|scope| {
            let workers = WORKERS.min(usize::try_from(block_count(self.rest())).unwrap_or(WORKERS));
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
    fn memory_that_has_gone_from_a_running_target_is_nobodys() {
        let page = vec![5u8; 4096];
        let (mut plan, mut memories) = own(&[&page]);
        plan.push(8192, Place::Memory(memories.root, RemoteAddr::new(0x1000)));
        let first = plan.sources[0].place;
        plan.push(4096, first);
        plan.running = true;
        let mut read = vec![1; 4 * 4096];
        plan.read(&mut memories, 0, &mut read).unwrap();
        assert!(read == [vec![5; 4096], vec![0; 8192], vec![5; 4096]].concat());
        let gone = plan.take_gone();
        assert_eq!((gone.len(), &gone[0]), (1, &(0x1000..0x3000)));
        assert_eq!(plan.take_gone(), []);
    }

    #[test]
    fn memory_that_cannot_be_read_is_named() {
        let (mut plan, mut memories) = own(&[]);
        plan.push(4096, Place::Memory(memories.root, RemoteAddr::new(0x1000)));
        let error = plan.read(&mut memories, 0, &mut [0; 4096]).unwrap_err();
        assert!(error.to_string().contains("memory, 4096 bytes at 0x1000"), "{error}");
    }
}
