//! Private pages. Those that processes have had in common since one became two are stored once: the kernel tells their frames to those
//! who may know, and to everybody which pages are nobody else's; the content of the others is compared by its hash.

use std::collections::HashMap;
use std::ops::Range;

use rewake_image::records::{Extent, Vma};
use rewake_linux::addr::{PAGE_SIZE, RemoteAddr};
use rewake_linux::memory::ProcessMemory;
use rewake_linux::pagemap::{Frame, PageMap, Query, Run};
use rewake_linux::proc::Proc;

use super::earlier::{Earlier, Piece, TABLE};
use super::{Place, Plan};
use crate::error::{CaptureError, During, Result};
use crate::memory::{Content, Space};

/// A thread looks at no less than this; and there are not more.
const SHARE: u64 = 128 << 20;
const MOST_THREADS: u64 = 4;
/// Bytes whose frames are asked for at once.
const WINDOW: u64 = 64 << 20;

/// Pages stored already that others may have too: where they lie in the stream.
#[derive(Debug)]
pub(super) struct Common {
    /// There is more than one process.
    wanted: bool,
    by_frame: HashMap<u64, u64>,
    by_content: HashMap<[u8; 32], u64>,
}

impl Common {
    /// For so many processes.
    pub(super) fn of(processes: usize) -> Self {
        Self { wanted: processes > 1, by_frame: HashMap::new(), by_content: HashMap::new() }
    }
}

/// Those that hold something.
fn look(pid: i32, map: &mut PageMap, run: &Run, runs: &mut Vec<Run>) -> Result<()> {
    let found = map.scan_into(run.start..run.end(), Query::ANONYMOUS, runs);
    found.during("scan pages", pid, format!("page at {}", run.start))
}

/// See [`Earlier::pieces`]: of a large mapping by several threads, as the process stands still meanwhile.
fn pieces(
    proc: &Proc,
    map: &mut PageMap,
    range: Range<u64>,
    earlier: &Earlier,
) -> Result<Option<Vec<Piece>>> {
    let pid = proc.id();
    let shares = shares(&range, std::thread::available_parallelism().map_or(1, usize::from));
    if shares.len() == 1 {
        return earlier.pieces(map, range, &mut |map, run, runs| look(pid, map, run, runs));
    }
    let share = |range: Range<u64>| {
        let mut map = PageMap::of(proc).during("open", pid, "pagemap")?;
        earlier.pieces(&mut map, range, &mut |map, run, runs| look(pid, map, run, runs))
    };
    let found: Result<Vec<_>> = std::thread::scope(|scope| {
        let threads: Vec<_> = shares.into_iter().map(|range| scope.spawn(|| share(range))).collect();
        let panicked = || CaptureError::failed("scan pages", pid, "mapping", "a thread panicked");
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(panicked()))).collect()
    });
    // Where one tells nothing, none does.
    Ok(found?.into_iter().collect::<Option<Vec<_>>>().map(|all| all.concat()))
}

/// Parts of a mapping for so many threads, none of them small, whole tables of pages each.
fn shares(range: &Range<u64>, threads: usize) -> Vec<Range<u64>> {
    let most = u64::try_from(threads).unwrap_or(1).min(MOST_THREADS);
    let count = ((range.end - range.start) / SHARE).clamp(1, most);
    let step = ((range.end - range.start) / count).next_multiple_of(TABLE);
    let cuts: Vec<u64> = (1..count).map(|n| (range.start + n * step) & !(TABLE - 1)).collect();
    let starts = std::iter::once(range.start).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain(std::iter::once(range.end));
    starts.zip(ends).map(|(start, end)| start..end).collect()
}

/// The pages of one process on their way into the plan.
struct Carrier<'a> {
    pid: i32,
    plan: &'a mut Plan,
    common: &'a mut Common,
    memory: Option<ProcessMemory>,
    extents: Vec<Extent>,
    /// The next page is the first one of its mapping, which no extent crosses.
    begins: bool,
    /// These pages must be read before the process goes on.
    urgent: bool,
}

impl Plan {
    /// Adds the private pages of a process; those that were copied earlier and are the same are there already.
    pub(super) fn add_space(
        &mut self,
        proc: &Proc,
        space: &Space,
        earlier: Option<&Earlier>,
        common: &mut Common,
    ) -> Result<()> {
        let pid = proc.id();
        let mut map = PageMap::of(proc).during("open", pid, "pagemap")?;
        let mut carrier = Carrier {
            pid,
            plan: self,
            common,
            memory: None,
            extents: Vec::new(),
            begins: true,
            urgent: false,
        };
        let mut runs: Vec<Run> = Vec::new();
        // What follows one another is asked for in one go.
        for vmas in private(space) {
            if let Some(earlier) = earlier {
                for vma in vmas {
                    carrier.add_rest(proc, &mut map, vma, earlier)?;
                }
                continue;
            }
            let (Some(first), Some(last)) = (vmas.first(), vmas.last()) else { continue };
            let range = RemoteAddr::new(first.start)..RemoteAddr::new(last.end);
            runs.clear();
            map.scan_into(range.clone(), Query::ANONYMOUS, &mut runs).during(
                "scan pages",
                pid,
                format!("mappings at {}", range.start),
            )?;
            let parts = cut(vmas, &runs).into_iter();
            for (vma, start, len) in parts.flat_map(|part| kept(&space.excluded, part)) {
                // Huge pages of hugetlb are never shared page by page.
                carrier.begins = true;
                carrier.urgent = is_not_copied(vma);
                if carrier.common.wanted && vma.huge_page_shift == 0 {
                    carrier.add_compared(&mut map, start, len)?;
                } else {
                    carrier.add_own(start, len);
                }
            }
        }
        let extents = carrier.extents;
        self.private.push(extents);
        Ok(())
    }
}

impl Carrier<'_> {
    /// Pages that are the process's own.
    fn add_own(&mut self, start: u64, len: u64) {
        let stream = self.plan.total;
        let place = Place::Memory(self.pid, RemoteAddr::new(start));
        self.plan.push_source(len, place, self.urgent);
        self.note(start, len, stream);
    }

    /// The pages of a mapping, as far as they were not copied earlier or were written to since.
    fn add_rest(&mut self, proc: &Proc, map: &mut PageMap, vma: &Vma, earlier: &Earlier) -> Result<()> {
        self.begins = true;
        let pieces =
            if vma.huge_page_shift == 0 { pieces(proc, map, vma.start..vma.end, earlier)? } else { None };
        let Some(pieces) = pieces else {
            let mut runs = Vec::new();
            let all = Run { start: RemoteAddr::new(vma.start), len: vma.end - vma.start };
            look(self.pid, map, &all, &mut runs)?;
            runs.iter().for_each(|run| self.add_own(run.start.get(), run.len));
            return Ok(());
        };
        for Piece { start, len, stream } in pieces {
            match stream {
                Some(stream) => self.note(start, len, stream),
                None => self.add_own(start, len),
            }
        }
        Ok(())
    }

    fn note(&mut self, address: u64, length: u64, stream_offset: u64) {
        if let Some(last) = self.extents.last_mut()
            && last.address + last.length == address
            && last.stream_offset + last.length == stream_offset
            && !self.begins
        {
            last.length += length;
            return;
        }
        self.extents.push(Extent { address, length, stream_offset });
        self.begins = false;
    }

    /// Pages some of which other processes may have too.
    fn add_compared(&mut self, map: &mut PageMap, start: u64, len: u64) -> Result<()> {
        let mut at = start;
        while at < start + len {
            let end = (at + WINDOW).min(start + len);
            let frames = map.frames(RemoteAddr::new(at)..RemoteAddr::new(end)).during(
                "read frames",
                self.pid,
                format!("mapping at {at:#x}"),
            )?;
            for frame in frames {
                match self.known(frame, at)? {
                    Some(stream) => self.note(at, PAGE_SIZE, stream),
                    None => self.add_own(at, PAGE_SIZE),
                }
                at += PAGE_SIZE;
            }
            // The kernel tells of whole address spaces.
            if at < end {
                return Err(CaptureError::failed(
                    "read frames",
                    self.pid,
                    "mapping",
                    "the list is too short",
                ));
            }
        }
        Ok(())
    }

    /// Where the page at `address` lies in the stream, if it does; else it is known from now on, as the next one.
    fn known(&mut self, frame: Frame, address: u64) -> Result<Option<u64>> {
        let next = self.plan.total;
        let known = match frame {
            Frame::Own => return Ok(None),
            Frame::Shared(frame) => *self.common.by_frame.entry(frame).or_insert(next),
            Frame::Hidden => {
                let content = self.content(address)?;
                *self.common.by_content.entry(content).or_insert(next)
            }
        };
        Ok((known != next).then_some(known))
    }

    fn content(&mut self, address: u64) -> Result<[u8; 32]> {
        let pid = self.pid;
        let memory = match self.memory.take() {
            Some(memory) => memory,
            None => ProcessMemory::open(pid)
                .map_err(|error| CaptureError::failed("open", pid, "memory", error.source))?,
        };
        let mut page = [0; 4096];
        let read = memory.read_exact_at(RemoteAddr::new(address), &mut page);
        self.memory = Some(memory);
        read.map_err(|error| {
            CaptureError::failed("read", pid, format!("page at {address:#x}"), error.source)
        })?;
        Ok(*blake3::hash(&page).as_bytes())
    }
}

/// Whether a fork does not have this memory as it was, or might have to go without.
fn is_not_copied(vma: &Vma) -> bool {
    let advice = [libc::MADV_DONTFORK, libc::MADV_WIPEONFORK].map(i32::unsigned_abs);
    vma.huge_page_shift != 0 || vma.advice.iter().any(|one| advice.contains(one))
}

/// Private mappings, together where one begins at the end of the other.
fn private(space: &Space) -> Vec<&[Vma]> {
    let (vmas, contents) = (&space.vmas, &space.contents);
    let is_private = |at: usize| contents.get(at) == Some(&Content::Private);
    let mut groups = Vec::new();
    let mut begin = 0;
    for end in 1..=vmas.len() {
        let goes_on = is_private(end - 1) && is_private(end) && vmas[end - 1].end == vmas[end].start;
        if goes_on {
            continue;
        }
        if is_private(begin) {
            groups.push(&vmas[begin..end]);
        }
        begin = end;
    }
    groups
}

/// The parts of runs that lie in each of the mappings; both are in order of address.
fn cut<'a>(vmas: &'a [Vma], runs: &[Run]) -> Vec<(&'a Vma, u64, u64)> {
    let mut parts = Vec::with_capacity(runs.len());
    let mut vmas = vmas.iter().peekable();
    for run in runs {
        let (mut at, end) = (run.start.get(), run.end().get());
        while at < end {
            while vmas.next_if(|vma| vma.end <= at).is_some() {}
            let Some(vma) = vmas.peek().filter(|vma| vma.start < end) else { break };
            let start = at.max(vma.start);
            let length = vma.end.min(end) - start;
            parts.push((*vma, start, length));
            at = start + length;
        }
    }
    parts
}

/// What is left of a part without what need not be kept: whole pages that carry the advice as well.
fn kept<'a>(excluded: &[Range<u64>], (vma, start, len): (&'a Vma, u64, u64)) -> Vec<(&'a Vma, u64, u64)> {
    let advised = vma.advice.contains(&libc::MADV_DONTDUMP.cast_unsigned());
    if excluded.is_empty() || !advised {
        return vec![(vma, start, len)];
    }
    let page = PAGE_SIZE.max(1 << vma.huge_page_shift);
    let mut parts = Vec::new();
    let (mut at, end) = (start, start + len);
    for range in excluded {
        // Pages are counted from the beginning of their mapping.
        let from = vma.start + range.start.max(vma.start).saturating_sub(vma.start).next_multiple_of(page);
        let to = vma.start + range.end.min(vma.end).saturating_sub(vma.start) / page * page;
        let (from, to) = (from.max(at), to.min(end));
        if from < to {
            parts.push((vma, at, from - at));
            at = to;
        }
    }
    parts.push((vma, at, end - at));
    parts.retain(|(_, _, len)| *len > 0);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vma(start: u64, end: u64) -> Vma {
        Vma { start, end, ..Vma::default() }
    }

    #[test]
    fn large_mappings_are_shared_out_by_whole_tables() {
        let (start, end) = (0x7f00_0000_1000, 0x7f00_0000_1000 + 5 * SHARE + 0x3000);
        let parts = shares(&(start..end), 3);
        assert_eq!((parts.len(), parts[0].start, parts[2].end), (3, start, end));
        let meet = |pair: &[Range<u64>]| pair[0].end == pair[1].start && pair[0].end.is_multiple_of(TABLE);
        assert!(parts.windows(2).all(meet) && parts.iter().all(|part| part.start < part.end));
        assert_eq!(shares(&(start..start + SHARE), 8).len(), 1);
        assert_eq!(shares(&(start..end), 64).len(), 4);
    }

    #[test]
    fn runs_are_cut_where_mappings_meet() {
        let run = |start, len| Run { start: RemoteAddr::new(start), len };
        let vmas = [vma(0x1000, 0x4000), vma(0x4000, 0x6000), vma(0x8000, 0x9000)];
        let parts = cut(&vmas, &[run(0x2000, 0x3000), run(0x5000, 0x1000), run(0x8000, 0x1000)]);
        let parts: Vec<_> = parts.into_iter().map(|(_, start, len)| (start, len)).collect();
        assert_eq!(parts, [(0x2000, 0x2000), (0x4000, 0x1000), (0x5000, 0x1000), (0x8000, 0x1000)]);
    }

    #[test]
    fn what_a_fork_does_not_have_is_known() {
        let advised = |advice: i32| Vma { advice: vec![advice.unsigned_abs()], ..Vma::default() };
        assert!(is_not_copied(&advised(libc::MADV_DONTFORK)));
        assert!(is_not_copied(&advised(libc::MADV_WIPEONFORK)));
        assert!(is_not_copied(&Vma { huge_page_shift: 21, ..Vma::default() }));
        assert!(!is_not_copied(&advised(libc::MADV_HUGEPAGE)));
    }

    #[test]
    fn private_mappings_that_touch_are_asked_for_together() {
        let space = Space {
            contents: [Content::Private, Content::Private, Content::None, Content::Private].repeat(2),
            vmas: [1, 2, 3, 4, 6, 7, 8, 9].map(|at| vma(at << 12, (at + 1) << 12)).to_vec(),
            ..Space::default()
        };
        let groups: Vec<_> = private(&space).iter().map(|vmas| (vmas[0].start, vmas.len())).collect();
        assert_eq!(groups, [(0x1000, 2), (0x4000, 1), (0x6000, 2), (0x9000, 1)]);
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "one range is meant")]
    fn what_need_not_be_kept_is_left_out_where_it_is_advised() {
        let mut vma = vma(0x1000, 0x9000);
        let excluded = [0..0x2000, 0x3000..0x4000, 0x4800..0x6000, 0x8000..0xf000];
        let all = [(0x1000, 0x8000)];
        let parts = |vma: &Vma, excluded: &[Range<u64>]| -> Vec<_> {
            let parts = kept(excluded, (vma, 0x1000, 0x8000)).into_iter();
            parts.map(|(_, start, len)| (start, len)).collect()
        };
        assert_eq!(parts(&vma, &excluded), all);
        vma.advice = vec![libc::MADV_DONTDUMP.cast_unsigned()];
        assert_eq!(parts(&vma, &[]), all);
        assert_eq!(parts(&vma, &excluded), [(0x2000, 0x1000), (0x4000, 0x1000), (0x6000, 0x2000)]);
        assert_eq!(parts(&vma, &[0..0x10000]), []);
        vma.huge_page_shift = 13;
        assert_eq!(parts(&vma, &excluded), [(0x1000, 0x8000)]);
        assert_eq!(parts(&vma, &[0x2000..0x6000]), [(0x1000, 0x2000), (0x5000, 0x4000)]);
    }
}
