//! A model of what a program does to the address space, walked before any program runs and by the property tests.
//!
//! It holds that a program never touches memory it has given away or not yet made, never maps over something, never unmaps what
//! it runs from, and leaves nothing of the seed.

use std::collections::{BTreeMap, VecDeque};

use rewake_linux::program::{Action, Call, CallRef, Program, Sysno, TrackRef, Value};

use super::{Plan, Site, TASK_SIZE};

const WRITE: u64 = libc::PROT_WRITE.cast_unsigned() as u64;
const FIXED: u64 = libc::MAP_FIXED.cast_unsigned() as u64;
const NOREPLACE: u64 = libc::MAP_FIXED_NOREPLACE.cast_unsigned() as u64;
const PR_SET_VMA: u64 = 0x5356_4d41;
const GUARD_INSTALL: u64 = 102;

/// An entry that breaks the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {track}.{index} {line}: {reason}")]
pub struct Violation {
    /// The track.
    pub track: usize,
    /// The entry's place there.
    pub index: usize,
    /// The entry, as in a listing.
    pub line: String,
    /// What is wrong.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    end: u64,
    writable: bool,
    /// The seed's own, from before the program.
    seed: bool,
    /// A guard region: nothing can be read or written.
    guard: bool,
    /// Nothing may be done to the mapping any more.
    sealed: bool,
}

impl Range {
    const fn new(end: u64, writable: bool) -> Self {
        Self { end, writable, seed: false, guard: false, sealed: false }
    }

    const fn allows(&self, writing: bool) -> bool {
        !self.seed && (!writing || self.writable && !self.guard)
    }
}

/// Mapped ranges by start; they do not overlap.
#[derive(Clone, Debug, Default)]
struct Model {
    ranges: BTreeMap<u64, Range>,
}

impl Model {
    fn new(site: &Site) -> Self {
        let mut model = Self::default();
        let aside: u64 = site.specials.iter().map(|special| special.len).sum();
        let seed = |end| Range { seed: true, ..Range::new(end, true) };
        let stage_end = site.stage.get() + site.stage_len;
        model.ranges.insert(0, seed(site.stage.get()));
        model.ranges.insert(site.stage.get(), Range::new(stage_end, true));
        model.ranges.insert(site.aside.get() + aside, seed(TASK_SIZE));
        model
    }

    /// Cuts ranges so that none crosses `at`.
    fn split(&mut self, at: u64) {
        if let Some((_, range)) = self.ranges.range_mut(..at).next_back()
            && range.end > at
        {
            let rest = *range;
            range.end = at;
            self.ranges.insert(at, rest);
        }
    }

    fn remove(&mut self, start: u64, end: u64) {
        self.split(start);
        self.split(end);
        let inside: Vec<u64> = self.ranges.range(start..end).map(|(at, _)| *at).collect();
        for at in inside {
            self.ranges.remove(&at);
        }
    }

    fn is_free(&self, start: u64, end: u64) -> bool {
        self.ranges.range(..end).next_back().is_none_or(|(_, range)| range.end <= start)
    }

    /// Whether all of it is mapped (and writable).
    fn covers(&self, start: u64, end: u64, writable: bool) -> bool {
        let mut at = start;
        while at < end {
            match self.ranges.range(..=at).next_back() {
                Some((_, range)) if range.end > at && range.allows(writable) => at = range.end,
                _ => return false,
            }
        }
        true
    }

    fn change(&mut self, start: u64, end: u64, change: impl Fn(&mut Range)) {
        self.split(start);
        self.split(end);
        self.ranges.range_mut(start..end).for_each(|(_, range)| change(range));
    }

    /// Sealed mappings stay as they are.
    fn may_change(&self, start: u64, end: u64) -> Result<(), String> {
        let before = self.ranges.range(..end).next_back();
        let inside = self.ranges.range(start..end);
        let overlapping = inside.chain(before).filter(|(_, range)| range.end > start);
        match overlapping.map(|(_, range)| range).find(|range| range.sealed) {
            Some(_) => Err(format!("changes sealed memory in {start:#x}-{end:#x}")),
            None => Ok(()),
        }
    }
}

/// Walks the plan's tracks: each process in a memory of its own, which begins as that of whoever makes it. Up to the meeting of all that
/// are born, one that shares its maker's memory is walked where it is made: only later does anybody give away what others are born with.
///
/// # Errors
/// The first entry that breaks the rules.
pub fn check(plan: &Plan, site: &Site) -> Result<(), Violation> {
    let mut walk = Walk { plan, site, processes: VecDeque::new() };
    walk.processes.push_back((plan.leader, Model::new(site)));
    while let Some((leader, mut model)) = walk.processes.pop_front() {
        let mut tracks = VecDeque::from([(leader, 0)]);
        walk.up_to_birth(&mut model, &mut tracks)?;
        while let Some((track, from)) = tracks.pop_front() {
            walk.on(&mut model, track, from, &mut tracks)?;
        }
        if let Some((start, _)) = model.ranges.iter().find(|(_, range)| range.seed && plan.goes_on(leader)) {
            let reason = format!("memory of the seed is left at {start:#x}");
            return Err(Violation { track: leader.index(), index: 0, line: "end".into(), reason });
        }
    }
    Ok(())
}

struct Walk<'a> {
    plan: &'a Plan,
    site: &'a Site,
    /// Those that are born with a memory of their own.
    processes: VecDeque<(TrackRef, Model)>,
}

impl Walk<'_> {
    /// Walks the first of the tracks, and in their places those made on the way that share its memory, until they meet. All of them are
    /// in `tracks` then, with where they stand.
    fn up_to_birth(
        &mut self,
        model: &mut Model,
        tracks: &mut VecDeque<(TrackRef, usize)>,
    ) -> Result<(), Violation> {
        let mut underway: Vec<(TrackRef, usize)> = tracks.drain(..).collect();
        while let Some((track, index)) = underway.pop() {
            let call = self.plan.program.tracks()[track.index()].calls.get(index);
            let Some(call) = call.filter(|call| self.plan.born.is_some() && !self.is_meeting(call)) else {
                tracks.push_front((track, index));
                continue;
            };
            underway.push((track, index + 1));
            underway.extend(self.step(model, track, index, call)?.map(|child| (child, 0)));
        }
        Ok(())
    }

    fn is_meeting(&self, call: &Call) -> bool {
        let born = self.plan.born.map(|(word, _)| Value::Data(word));
        call.action == Action::Barrier && call.args.first().copied() == born
    }

    /// Walks the rest of a track.
    fn on(
        &mut self,
        model: &mut Model,
        track: TrackRef,
        from: usize,
        tracks: &mut VecDeque<(TrackRef, usize)>,
    ) -> Result<(), Violation> {
        let plan = self.plan;
        for (index, call) in plan.program.tracks()[track.index()].calls.iter().enumerate().skip(from) {
            match self.step(model, track, index, call)? {
                Some(child) if self.is_waited_for(CallRef { track, index }) => {
                    self.on(model, child, 0, tracks)?
                }
                made => tracks.extend(made.map(|child| (child, 0))),
            }
        }
        Ok(())
    }

    /// Whether who is made by this entry has ended before its maker does much else.
    fn is_waited_for(&self, made: CallRef) -> bool {
        let calls = &self.plan.program.tracks()[made.track.index()].calls;
        let waits = |call: &Call| call.action == Action::Call(Sysno::wait4);
        calls.iter().any(|call| waits(call) && call.args.first() == Some(&Value::Result(made)))
    }

    /// One entry; who is made by it in the same memory.
    fn step(
        &mut self,
        model: &mut Model,
        track: TrackRef,
        index: usize,
        call: &Call,
    ) -> Result<Option<TrackRef>, Violation> {
        let stage = (self.site.stage.get(), self.site.stage.get() + self.site.stage_len);
        let step = Step { program: &self.plan.program, call, stage };
        step.walk(model).map_err(|reason| Violation {
            track: track.index(),
            index,
            line: self.plan.program.line(call),
            reason,
        })?;
        match call.action {
            Action::Thread(child) => return Ok(Some(child)),
            Action::Spawn(child) if step.shares_memory() => return Ok(Some(child)),
            Action::Spawn(child) => self.processes.push_back((child, model.clone())),
            _ => {}
        }
        Ok(None)
    }
}

struct Step<'a> {
    program: &'a Program,
    call: &'a Call,
    stage: (u64, u64),
}

impl Step<'_> {
    fn constant(&self, index: usize) -> u64 {
        match self.call.args.get(index) {
            Some(Value::Const(value)) => *value,
            _ => 0,
        }
    }

    /// Of a clone: whether the new one lives in the same memory (CLONE_VM).
    fn shares_memory(&self) -> bool {
        const CLONE_VM: u64 = 0x100;
        let Some(Value::Data(data)) = self.call.args.first() else { return false };
        let flags = self.program.data()[data.offset..].first_chunk::<8>();
        flags.is_some_and(|flags| u64::from_le_bytes(*flags) & CLONE_VM != 0)
    }

    fn walk(&self, model: &mut Model) -> Result<(), String> {
        let Action::Call(nr) = self.call.action else { return Ok(()) };
        let (first, second) = (self.constant(0), self.constant(1));
        match nr {
            Sysno::munmap => {
                let end = first.checked_add(second).ok_or("wraps around")?;
                if first < self.stage.1 && self.stage.0 < end {
                    return Err("unmaps what it runs from".into());
                }
                model.may_change(first, end)?;
                model.remove(first, end);
                Ok(())
            }
            Sysno::mmap => self.mmap(model),
            Sysno::shmat => {
                let end = second.checked_add(self.constant(3)).filter(|end| *end <= TASK_SIZE);
                let end = end.ok_or("leaves the address space")?;
                if end == second || !model.is_free(second, end) {
                    return Err("attaches over a mapping".into());
                }
                let read_only = self.constant(2) & u64::from(libc::SHM_RDONLY.cast_unsigned()) != 0;
                model.ranges.insert(second, Range::new(end, !read_only));
                Ok(())
            }
            Sysno::mremap => self.mremap(model),
            Sysno::preadv => {
                self.parts().into_iter().try_for_each(|(start, len)| used(model, start, len, true))
            }
            Sysno::mprotect => {
                used(model, first, second, false)?;
                model.may_change(first, first + second)?;
                let writable = self.constant(2) & WRITE != 0;
                model.change(first, first + second, |range| range.writable = writable);
                Ok(())
            }
            Sysno::madvise => {
                used(model, first, second, false)?;
                model.may_change(first, first + second)?;
                if self.constant(2) == GUARD_INSTALL {
                    model.change(first, first + second, |range| range.guard = true);
                }
                Ok(())
            }
            Sysno::mseal => {
                used(model, first, second, false)?;
                model.change(first, first + second, |range| range.sealed = true);
                Ok(())
            }
            Sysno::mlock2 | Sysno::mbind => {
                used(model, first, second, false)?;
                model.may_change(first, first + second)
            }
            Sysno::prctl if first == PR_SET_VMA => used(model, self.constant(2), self.constant(3), false),
            // Registered here, written by the kernel when the thread next goes to user mode.
            Sysno::rseq if self.constant(2) == 0 => used(model, first, second, true),
            // Where the kernel writes the rest when a sleep is interrupted.
            Sysno::nanosleep if second != 0 => used(model, second, 16, true),
            Sysno::clock_nanosleep if self.constant(3) != 0 => used(model, self.constant(3), 16, true),
            _ => Ok(()),
        }
    }

    fn mmap(&self, model: &mut Model) -> Result<(), String> {
        let (start, len, flags) = (self.constant(0), self.constant(1), self.constant(3));
        let end = start.checked_add(len).filter(|end| *end <= TASK_SIZE).ok_or("leaves the address space")?;
        if flags & (FIXED | NOREPLACE) != NOREPLACE {
            return Err("might replace a mapping".into());
        }
        if len == 0 || !model.is_free(start, end) {
            return Err("maps over a mapping".into());
        }
        model.ranges.insert(start, Range::new(end, self.constant(2) & WRITE != 0));
        Ok(())
    }

    fn mremap(&self, model: &mut Model) -> Result<(), String> {
        let [old, old_len, len] = [0, 1, 2].map(|index| self.constant(index));
        let new = self.constant(4);
        let end = new.checked_add(len).filter(|end| *end <= TASK_SIZE).ok_or("leaves the address space")?;
        if len == 0 || !model.is_free(new, end) {
            return Err("moves over a mapping".into());
        }
        if let Some(Value::Word(_)) = self.call.args.first() {
            // Made just now by the kernel, where it liked, and nowhere else known.
            model.ranges.insert(new, Range::new(end, true));
            return Ok(());
        }
        // What the seed itself brought may be moved; a length of 0 maps a shared object once more.
        let seeds =
            model.ranges.range(..=old).next_back().is_some_and(|(_, range)| range.seed && range.end > old);
        if !seeds {
            used(model, old, len, false)?;
        }
        model.may_change(old, old.saturating_add(old_len))?;
        if old_len != 0 {
            model.remove(old, old + old_len);
        }
        model.ranges.insert(new, Range::new(end, true));
        Ok(())
    }

    /// The `iovec`s of a read.
    fn parts(&self) -> Vec<(u64, u64)> {
        let Some(Value::Data(data)) = self.call.args.get(1) else { return Vec::new() };
        let bytes = &self.program.data()[data.offset..data.offset + data.len];
        let word = |bytes: &[u8]| bytes.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        bytes.chunks_exact(16).map(|part| (word(part), word(&part[8..]))).collect()
    }
}

fn used(model: &Model, start: u64, len: u64, writable: bool) -> Result<(), String> {
    let end = start.checked_add(len).ok_or("wraps around")?;
    if model.covers(start, end, writable) {
        return Ok(());
    }
    let how = if writable { "not there to be written" } else { "not there" };
    Err(format!("memory {start:#x}-{end:#x} is {how}"))
}
