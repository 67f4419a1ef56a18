//! Pages carried to the stream while the target still ran (pre-copy), and which of them still are what they were.
//!
//! In rounds: what was written since the last one is write-protected and copied, in that order, so that a write in between is found by
//! the next round. When the target stands still, a page that is protected yet is as it was copied; all others are carried now. Whatever
//! happens to mappings meanwhile (munmap, mremap, fork, execve) takes the protection away, and so errs on the safe side.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rewake_image::PageWriter;
use rewake_image::pages::BLOCK_SIZE_U64;
use rewake_linux::addr::RemoteAddr;
use rewake_linux::pagemap::{PageMap, Run};
use rewake_linux::proc::{Mapping, Proc, ProcError, VmFlags, parse_smaps};
use rustix::fs::OFlags;

use super::{Place, Plan};
use crate::error::{During, Result};
use crate::watch::{MOST_MAPPINGS, Watch, is_trackable};

/// Bytes that are write-protected in one go: the target waits for its memory map as long.
const SLICE: u64 = 16 << 20;
/// A round that finds no more than this is the last one: as much is copied in a few milliseconds.
const LITTLE: u64 = 2 << 20;
/// More rounds than this are not made.
const ROUNDS: u32 = 8;
/// A round that leaves more than this part of what it copied, in eighths, to the next one gains nothing.
const GAIN: u64 = 6;
/// What one table of pages maps. Where there is none, kernels before 7.2 do not say that the pages are not what they were.
pub(super) const TABLE: u64 = 2 << 20;

/// The pages of one process that were copied while it ran.
#[derive(Debug)]
pub(crate) struct Earlier {
    pid: i32,
    watch: Watch,
    /// By address: length and place in the stream. No two overlap.
    copied: BTreeMap<u64, (u64, u64)>,
    /// Where the stream goes on.
    stream: u64,
    /// What the kernel told of the mappings after the last round.
    mappings: Option<Mappings>,
    /// And that was relied on.
    relied: AtomicBool,
}

/// The mappings of a process that runs, without and with their flags. To read those takes the kernel milliseconds for each gigabyte.
#[derive(Debug)]
struct Mappings {
    maps: Vec<u8>,
    smaps: Vec<u8>,
}

impl Mappings {
    /// `None` when they have changed meanwhile.
    fn read(proc: &Proc) -> std::result::Result<Option<Self>, ProcError> {
        let maps = proc.read("maps")?;
        let smaps = proc.read("smaps")?;
        Ok((proc.read("maps")? == maps).then_some(Self { maps, smaps }))
    }
}

/// Appends the runs of pages within a run that hold something.
pub(super) type LookAt<'a> = &'a mut dyn FnMut(&mut PageMap, &Run, &mut Vec<Run>) -> Result<()>;

/// A part of a mapping, and where it lies in the stream if it was copied earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) stream: Option<u64>,
}

/// Whether nothing but the process itself, by its page tables, writes to the memory of this process: devices that write past them, as
/// those of files without a cache (O_DIRECT) and of asynchronous I/O do, are not noticed.
pub(crate) fn can_be_tracked(proc: &Proc) -> bool {
    let direct = |fd: i32| {
        // What uses one that is closed meanwhile is over when the target stands still for the first time, before anything is copied.
        proc.fdinfo(fd).is_ok_and(|info| info.flags & OFlags::DIRECT.bits() != 0)
    };
    let Ok(fds) = proc.fds() else { return false };
    let Ok(maps) = proc.maps() else { return false };
    maps.len() <= MOST_MAPPINGS / 2
        && !fds.iter().any(|fd| direct(fd.fd))
        && !maps.iter().any(|mapping| mapping.name == b"/[aio]")
}

impl Earlier {
    /// Nothing copied yet; what will be goes into the stream from there on, where a block begins.
    pub(crate) fn new(pid: i32, watch: Watch, stream: u64) -> Self {
        Self { pid, watch, copied: BTreeMap::new(), stream, mappings: None, relied: AtomicBool::new(false) }
    }

    /// Whose pages.
    pub(crate) const fn pid(&self) -> i32 {
        self.pid
    }

    /// Where the stream goes on.
    pub(crate) const fn stream(&self) -> u64 {
        self.stream
    }

    /// Copies, until so little is left that the target can stand still for it, or more rounds gain nothing. Bytes of the last round.
    ///
    /// # Errors
    /// When the image cannot be written, or the target is gone.
    pub(crate) fn rounds(&mut self, writer: &PageWriter, progress: &mut dyn FnMut(u64)) -> Result<u64> {
        let mut before = u64::MAX;
        for round in 1..=ROUNDS {
            let begin = Instant::now();
            let bytes = self.round(writer, progress)?;
            tracing::debug!(pid = self.pid, round, bytes, elapsed = ?begin.elapsed(), "copied while it runs");
            if bytes <= LITTLE || bytes > before / 8 * GAIN {
                return Ok(bytes);
            }
            before = bytes;
        }
        Ok(before)
    }

    /// Looks at the mappings with their flags, while the target runs yet.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn look_at_mappings(&mut self) -> Result<()> {
        let proc = Proc::open_living(self.pid).during("open", self.pid, "process")?;
        self.mappings = Mappings::read(&proc).during("read smaps", self.pid, "mappings")?;
        Ok(())
    }

    /// What `smaps` told then, if there are the same mappings yet. That their flags are the same must be asked afterwards, of
    /// [`Earlier::flags_are_the_same`].
    ///
    /// # Errors
    /// When the target is gone.
    pub(crate) fn mappings(&self, proc: &Proc) -> Result<Option<&[u8]>> {
        let Some(Mappings { maps, smaps }) = &self.mappings else { return Ok(None) };
        let now = proc.read("maps").during("read maps", self.pid, "mappings")?;
        let same = now == *maps;
        self.relied.store(same, Ordering::Relaxed);
        Ok(same.then_some(smaps))
    }

    /// Whether all memory has the flags now that it had before the target stood still: then it had them in between. Nobody changes them
    /// twice in such a moment, nor gives back what he has just changed them of. Mappings may have become one with others.
    ///
    /// # Errors
    /// When the target is gone.
    pub(crate) fn flags_are_the_same(&self) -> Result<bool> {
        let pid = self.pid;
        let Some(Mappings { smaps, .. }) =
            self.mappings.as_ref().filter(|_| self.relied.load(Ordering::Relaxed))
        else {
            return Ok(true);
        };
        let parse = |text: &[u8]| parse_smaps(text).during("read smaps", pid, "mappings");
        let proc = Proc::open_living(pid).during("open", pid, "process")?;
        let now = parse(&proc.read("smaps").during("read smaps", pid, "mappings")?)?;
        Ok(parse(smaps)?.iter().all(|mapping| has_flags_of(&now, mapping)))
    }

    fn round(&mut self, writer: &PageWriter, progress: &mut dyn FnMut(u64)) -> Result<u64> {
        let pid = self.pid;
        let proc = Proc::open_living(pid).during("open", pid, "process")?;
        if !self.watch.renew().unwrap_or(false) {
            tracing::debug!(pid, "memory is not watched any more");
            return Ok(0);
        }
        let mut map = PageMap::of(&proc).during("open", pid, "pagemap")?;
        let mut plan = Plan { total: self.stream, begin: self.stream, running: true, ..Plan::default() };
        let mut runs: Vec<Run> = Vec::new();
        for range in trackable(&proc)? {
            for slice in slices(&range) {
                runs.clear();
                if map.take_written(slice.clone(), &mut runs).is_err() {
                    // It cannot be watched, or was unmapped or mapped anew meanwhile: it is copied when the target stands still. Pages may
                    // be protected that we were not told of.
                    self.forget(slice.start.get()..slice.end.get());
                    continue;
                }
                for run in &runs {
                    self.note(run.start.get(), run.len, plan.total);
                    plan.push(run.len, Place::Memory(pid, run.start));
                }
            }
        }
        let bytes = plan.total - self.stream;
        if bytes > 0 {
            // The next round begins with a block of its own.
            plan.total = plan.total.next_multiple_of(BLOCK_SIZE_U64);
            writer.reserve(plan.total).map_err(|error| crate::commit::image_error("write", pid, error))?;
            plan.write(pid, writer, progress)?;
            self.stream = plan.total;
            plan.take_gone().into_iter().for_each(|range| self.forget(range));
        }
        Ok(bytes)
    }

    /// From now on these bytes are there in the stream, and nowhere else.
    fn note(&mut self, start: u64, len: u64, stream: u64) {
        self.forget(start..start + len);
        self.copied.insert(start, (len, stream));
    }

    fn forget(&mut self, range: Range<u64>) {
        let first =
            self.copied.range(..range.start).next_back().filter(|(at, (len, _))| **at + *len > range.start);
        let first = first.map_or(range.start, |(at, _)| *at);
        let those: Vec<_> = self.copied.range(first..range.end).map(|(at, part)| (*at, *part)).collect();
        for (at, (len, stream)) in those {
            self.copied.remove(&at);
            if at < range.start {
                self.copied.insert(at, (range.start - at, stream));
            }
            if at + len > range.end {
                self.copied.insert(range.end, (at + len - range.end, stream + (range.end - at)));
            }
        }
    }

    /// The parts of a private mapping that hold something, in order: those that are still as they were copied, and those that must be
    /// copied yet. `None` when the mapping is not tracked.
    pub(super) fn pieces(
        &self,
        map: &mut PageMap,
        range: Range<u64>,
        now: LookAt<'_>,
    ) -> Result<Option<Vec<Piece>>> {
        let all = RemoteAddr::new(range.start)..RemoteAddr::new(range.end);
        let Some(written) = map.written(all).during("scan pages", self.pid, "mapping")? else {
            return Ok(None);
        };
        let mut pieces = Pieces { found: Vec::new(), runs: Vec::new(), map, now };
        let mut at = range.start;
        for run in &written {
            self.add_protected(at..run.start.get(), &range, &mut pieces)?;
            pieces.look(run.start.get()..run.end().get())?;
            at = run.end().get();
        }
        self.add_protected(at..range.end, &range, &mut pieces)?;
        Ok(Some(pieces.found))
    }

    /// Those that the kernel does not call written, in a mapping: protected, or emptied by the table.
    fn add_protected(
        &self,
        range: Range<u64>,
        mapping: &Range<u64>,
        pieces: &mut Pieces<'_, '_>,
    ) -> Result<()> {
        let mut begin = range.start;
        for table in (range.start & !(TABLE - 1)..range.end).step_by(tables(1)) {
            let part = table.max(mapping.start)..(table + TABLE).min(mapping.end);
            // A table some of whose pages the kernel calls written is there.
            if part.start < range.start || part.end > range.end || !self.has_some(&part) {
                continue;
            }
            let first = RemoteAddr::new(part.start);
            if !pieces.map.has_page(first).during("scan pages", self.pid, "mapping")? {
                self.add_copied(begin..part.start, pieces)?;
                pieces.look(part.clone())?;
                begin = part.end;
            }
        }
        self.add_copied(begin..range.end, pieces)
    }

    /// Whether anything there was copied.
    fn has_some(&self, range: &Range<u64>) -> bool {
        self.copied.range(..range.end).next_back().is_some_and(|(at, (len, _))| at + len > range.start)
    }

    /// Those that are as they were copied. What was not is looked at: nobody answers for it.
    fn add_copied(&self, range: Range<u64>, pieces: &mut Pieces<'_, '_>) -> Result<()> {
        let before = self.copied.range(..range.start).next_back();
        let mut done = range.start;
        for (at, (len, stream)) in before.into_iter().chain(self.copied.range(range.clone())) {
            let (start, end) = ((*at).max(range.start), (at + len).min(range.end));
            if start < end {
                pieces.look(done..start)?;
                pieces.found.push(Piece { start, len: end - start, stream: Some(stream + (start - at)) });
                done = end;
            }
        }
        pieces.look(done..range.end)
    }
}

/// Pieces as they are found, in order.
struct Pieces<'a, 'b> {
    found: Vec<Piece>,
    runs: Vec<Run>,
    map: &'a mut PageMap,
    now: LookAt<'b>,
}

impl Pieces<'_, '_> {
    /// Those that hold something now.
    fn look(&mut self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.runs.clear();
        let run = Run { start: RemoteAddr::new(range.start), len: range.end - range.start };
        (self.now)(self.map, &run, &mut self.runs)?;
        let pieces = self.runs.iter().map(|run| Piece { start: run.start.get(), len: run.len, stream: None });
        self.found.extend(pieces);
        Ok(())
    }
}

/// Whether what is left of a mapping has its flags, but for being watched. What has another protection or another file now tells nothing.
fn has_flags_of(now: &[Mapping], before: &Mapping) -> bool {
    let flags = |one: &Mapping| one.flags.union(VmFlags::UFFD_WRITE_PROTECT);
    let first = now.partition_point(|one| one.end <= before.start);
    let there = now[first..].iter().take_while(|one| one.start < before.end);
    there
        .filter(|one| {
            (one.protection, one.shared, &one.name) == (before.protection, before.shared, &before.name)
        })
        .all(|one| (flags(one), one.page_size) == (flags(before), before.page_size))
}

/// Private mappings of ordinary memory.
fn trackable(proc: &Proc) -> Result<Vec<Range<RemoteAddr>>> {
    let maps = proc.maps().during("read maps", proc.id(), "process")?;
    let those = maps.iter().filter(|mapping| is_trackable(mapping));
    Ok(those.map(|mapping| mapping.start..mapping.end).collect())
}

fn slices(range: &Range<RemoteAddr>) -> impl Iterator<Item = Range<RemoteAddr>> + use<> {
    let (start, end) = (range.start.get(), range.end.get());
    (start..end)
        .step_by(tables(SLICE / TABLE))
        .map(move |at| RemoteAddr::new(at)..RemoteAddr::new(end.min(at + SLICE)))
}

/// Bytes of so many tables.
fn tables(count: u64) -> usize {
    usize::try_from(count * TABLE).unwrap_or(usize::MAX)
}
