//! The address space: everything of the seed goes, the image's mappings come, are filled ([`fill`]) and finished ([`finish`]).

mod aio;
mod fill;
mod finish;
mod inherit;
mod kernels;
mod shared;

use std::ops::Range;

use rewake_image::records::{AddressSpace, Extent, Vma, vma::Backing};
use rewake_linux::addr::{PAGE_SIZE, RemoteAddr, page_up};
use rewake_linux::program::{Accept, Sysno};

use super::{Planner, Site, TASK_SIZE, args};
use crate::contents::PERMISSIONS;
use crate::error::RestoreError;

use super::family::Inherited;
use inherit::Kept;
pub(super) use shared::Zone;

const PROT_WRITE: u32 = libc::PROT_WRITE.cast_unsigned();
const READ_WRITE: u32 = (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned();
const MOVE: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;

/// A mapping that the kernel made and that can only be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    /// VDSO, VVAR or VVAR_VCLOCK.
    pub kind: Backing,
    /// Where the seed has it.
    pub start: RemoteAddr,
    /// Bytes.
    pub len: u64,
}

impl Planner<'_> {
    /// Builds the address space, up to what others may inherit of it; tells where the kernel's own mappings are.
    pub(super) fn memory(
        &mut self,
        memory: &AddressSpace,
        inherited: Option<&Inherited<'_>>,
    ) -> Result<Vec<Special>, RestoreError> {
        let zone = self.zone.clone();
        let kept = inherited.map_or_else(Kept::default, |inherited| Kept::of(inherited.memory, memory));
        let there = inherited.map_or(&self.site.specials, |inherited| &inherited.specials);
        let stays = inherited.is_some() && self.site.vdso.is_none();
        let (moved, mut specials): (Vec<Special>, Vec<Special>) =
            there.iter().partition(|special| !(stays && is_in_place(special, memory)));
        self.clear_out(&moved, &specials, &kept, inherited.is_none());
        specials.extend(self.specials(&moved, &specials, memory)?);
        if inherited.is_none() {
            self.shared_objects(&zone);
        }
        self.shared_mappings(memory, &zone, false)?;
        self.mappings(memory, &kept)?;
        for range in &kept.surplus {
            let args = args![range.start, range.end - range.start, libc::MADV_DONTNEED];
            self.program.call(self.leader, Sysno::madvise, args).note("pages that only the parent has");
        }
        let missing = kept.missing(&memory.pages);
        // Those that are born work side by side as it is.
        if inherited.is_none() {
            self.fill_by_many(&missing)
        } else {
            self.fill(&missing, 0)
        }
        self.contexts(memory);
        Ok(specials)
    }

    /// What nobody inherits, or must not.
    pub(super) fn finish_memory(&mut self, memory: &AddressSpace) -> Result<(), RestoreError> {
        let zone = self.zone.clone();
        self.shared_mappings(memory, &zone, true)?;
        if zone.len != 0 {
            let args = args![zone.start, zone.len];
            self.program.call(self.leader, Sysno::munmap, args).note("where shared memory was made");
        }
        for vma in &memory.vmas {
            self.advise(vma, true);
        }
        self.guards(memory);
        self.protect(memory);
        Ok(())
    }

    /// What was there goes, but for the stage, what is kept and, moved aside where it has to, what only the kernel can make.
    fn clear_out(&mut self, moved: &[Special], in_place: &[Special], kept: &Kept, is_seed: bool) {
        let Self { program, leader, site, zone, .. } = self;
        let mut aside = site.aside;
        for special in moved {
            let args = args![special.start, special.len, special.len, MOVE, aside];
            let call = program.call(*leader, Sysno::mremap, args).accept(Accept::Exactly(aside.get()));
            call.note(format!("{:?} aside", special.kind));
            aside = aside + special.len;
        }
        let mut stay = kept.ranges.clone();
        stay.push(site.stage.get()..aside.get());
        stay.extend(in_place.iter().map(|one| one.start.get()..one.start.get() + one.len));
        if !is_seed && zone.len != 0 {
            stay.push(zone.start..zone.start + zone.len);
        }
        stay.sort_unstable_by_key(|range| range.start);
        let mut from = 0;
        for range in stay.into_iter().chain(std::iter::once(TASK_SIZE..TASK_SIZE)) {
            if from < range.start {
                let call = program.call(*leader, Sysno::munmap, args![from, range.start - from]);
                call.note(format!("all from {from:#x} to {:#x}", range.start));
            }
            from = range.end;
        }
    }

    /// Files made anew get their modes, and memfds their seals, when they are open, and mapped by all: some of both forbid that. Modes come
    /// first, since a seal may forbid to change them, and brings others with it where the file may be run.
    pub(super) fn finish_contents(&mut self) {
        for content in &self.image.file_contents {
            let Some(prepared) = self.site.prepared.get(&content.id) else { continue };
            if let Some(identity) = &content.identity {
                let args = args![*prepared, identity.mode & PERMISSIONS];
                let call = self.program.call(self.leader, Sysno::fchmod, args);
                // That of another user has it already.
                call.accept(Accept::SuccessOr(libc::EPERM)).note(format!("mode of content {}", content.id));
            }
            if content.seals != 0 {
                let args = args![*prepared, libc::F_ADD_SEALS, content.seals];
                let call = self.program.call(self.leader, Sysno::fcntl, args);
                // One made without the right to be sealed has this seal already.
                call.accept(Accept::SuccessOr(libc::EPERM)).note(format!("seals of content {}", content.id));
            }
        }
    }

    fn mappings(&mut self, memory: &AddressSpace, kept: &Kept) -> Result<(), RestoreError> {
        let mut open: Option<u32> = None;
        for vma in &memory.vmas {
            let filled = is_filled(&memory.pages, vma);
            let parts = kept.unmapped(vma.start..vma.end);
            match vma.backing() {
                _ if parts.is_empty() => {}
                Backing::Anonymous => {
                    parts.iter().for_each(|part| self.map(vma, part, filled, libc::MAP_ANONYMOUS, -1));
                }
                Backing::File => {
                    if open != Some(vma.object) {
                        if open.is_some() {
                            self.program.call(self.leader, Sysno::close, args![0]);
                        }
                        let file = &self.image.mapped_files[usize::try_from(vma.object).expect("checked")];
                        let identity = file.identity.as_ref().ok_or_else(|| RestoreError::Unsupported {
                            pid: self.process.pid,
                            object: describe(vma),
                            reason: "mapped from a file without a path".into(),
                        })?;
                        let flags = i32::try_from(file.flags).unwrap_or(libc::O_RDONLY);
                        self.open_mapped(file, identity, flags & libc::O_ACCMODE);
                        open = Some(vma.object);
                    }
                    parts.iter().for_each(|part| self.map(vma, part, filled, 0, 0));
                }
                Backing::Aio => self.reserve(vma),
                Backing::SharedMemory | Backing::Vdso | Backing::Vvar | Backing::VvarVclock => {}
            }
        }
        if open.is_some() {
            self.program.call(self.leader, Sysno::close, args![0]);
        }
        Ok(())
    }

    /// Maps a part of a mapping, mostly all of it.
    fn map(&mut self, vma: &Vma, part: &Range<u64>, filled: bool, kind: i32, fd: i32) {
        // A file of hugetlbfs has huge pages anyway.
        let huge = if kind & libc::MAP_ANONYMOUS == 0 { 0 } else { huge_flags(vma.huge_page_shift) };
        let sharing = if vma.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let grows = if vma.grows_down { libc::MAP_GROWSDOWN } else { 0 };
        let reserve = if vma.no_reserve { libc::MAP_NORESERVE } else { 0 };
        let flags = libc::MAP_FIXED_NOREPLACE | sharing | grows | reserve | kind | huge;
        let protection = if filled { READ_WRITE } else { vma.protection };
        let offset =
            if kind & libc::MAP_ANONYMOUS == 0 { vma.offset + (part.start - vma.start) } else { vma.offset };
        let args = args![part.start, part.end - part.start, protection, flags, fd, offset];
        let call = self.program.call(self.leader, Sysno::mmap, args);
        call.accept(Accept::Exactly(part.start)).note(describe(vma));
        let part = Vma { start: part.start, end: part.end, ..vma.clone() };
        self.policy(&part, part.start);
        self.advise(&part, false);
    }
}

/// Whether one of the kernel's mappings lies where the image has it.
fn is_in_place(special: &Special, memory: &AddressSpace) -> bool {
    let same = |vma: &Vma| vma.start == special.start.get() && vma.length() == special.len;
    memory.vmas.iter().any(|vma| vma.backing() == special.kind && same(vma))
}

impl Planner<'_> {
    /// Where nothing can be put: the image's mappings, and those of the restore.
    fn taken(&self, memory: &AddressSpace) -> Vec<(u64, u64)> {
        let vmas = memory.vmas.iter().map(|vma| (vma.start, vma.end));
        let zone = (self.zone.start, self.zone.start + self.zone.len);
        vmas.chain([self.site.taken(), zone]).chain(self.kernels).collect()
    }
}

impl Site {
    /// The range that the stage and what was moved aside take.
    fn taken(&self) -> (u64, u64) {
        let aside: u64 = self.specials.iter().map(|special| special.len).sum();
        (self.stage.get(), self.aside.get() + aside)
    }
}

/// Private pages of the image within a mapping? The extents are in order of address.
fn is_filled(pages: &[Extent], vma: &Vma) -> bool {
    if !matches!(vma.backing(), Backing::Anonymous | Backing::File) {
        return false;
    }
    let next = pages.partition_point(|extent| extent.address < vma.start);
    pages.get(next).is_some_and(|extent| extent.address < vma.end)
}

/// Flags of shmget(2) that ask for huge pages of 2 to this power bytes.
pub(super) const fn huge_segment(shift: u32) -> i32 {
    const SHM_HUGETLB: i32 = 0o4000;
    const SHM_HUGE_SHIFT: u32 = 26;
    if shift == 0 { 0 } else { SHM_HUGETLB | shift.cast_signed() << SHM_HUGE_SHIFT }
}

/// Flags of mmap(2) that ask for huge pages of 2 to this power bytes.
fn huge_flags(shift: u32) -> i32 {
    const MAP_HUGE_SHIFT: u32 = 26;
    match i32::try_from(shift) {
        Ok(shift) if shift > 0 => libc::MAP_HUGETLB | shift << MAP_HUGE_SHIFT,
        _ => 0,
    }
}

fn describe(vma: &Vma) -> String {
    let bit = |bit: u32, letter: char| if vma.protection & bit == 0 { '-' } else { letter };
    let (read, write, exec) = (bit(1, 'r'), bit(PROT_WRITE, 'w'), bit(4, 'x'));
    let sharing = if vma.shared { 's' } else { 'p' };
    format!("mapping {:#x}-{:#x} {read}{write}{exec}{sharing}", vma.start, vma.end)
}

/// The lowest free range of `len` bytes from 4 GiB up, with a page left free on both sides.
#[must_use]
pub fn free_gap(taken: Vec<(u64, u64)>, len: u64) -> Option<u64> {
    const LOWEST: u64 = 1 << 32;
    free_gap_above(LOWEST, taken, len)
}

fn free_gap_above(lowest: u64, mut taken: Vec<(u64, u64)>, len: u64) -> Option<u64> {
    taken.sort_unstable();
    let mut at = lowest;
    for (start, end) in taken {
        if at.checked_add(len + 2 * PAGE_SIZE)? <= start {
            break;
        }
        at = at.max(page_up(end));
    }
    (at.checked_add(len + 2 * PAGE_SIZE)? <= TASK_SIZE).then_some(at + PAGE_SIZE)
}
