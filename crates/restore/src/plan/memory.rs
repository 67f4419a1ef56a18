//! The address space: everything of the seed goes, the image's mappings come, are filled ([`fill`]) and finished ([`finish`]).

mod fill;
mod finish;
mod inherit;
mod shared;

use std::ops::Range;

use rewake_image::records::{AddressSpace, Extent, Vma, vma::Backing};
use rewake_linux::addr::{PAGE_SIZE, RemoteAddr, page_up};
use rewake_linux::program::{Accept, Sysno};

use super::{Planner, Site, TASK_SIZE, args};
use crate::error::RestoreError;

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
    /// Builds the address space, up to what others may inherit of it.
    pub(super) fn memory(
        &mut self,
        memory: &AddressSpace,
        inherited: Option<&AddressSpace>,
        is_root: bool,
    ) -> Result<(), RestoreError> {
        let zone = self.zone.clone();
        let kept = inherited.map_or_else(Kept::default, |inherited| Kept::of(inherited, memory));
        let there = inherited.map_or_else(|| self.site.specials.clone(), specials_of);
        self.clear_out(&there, memory, &kept, &zone, inherited.is_none());
        self.specials(&there, memory)?;
        if is_root {
            self.shared_objects(&zone);
        }
        self.shared_mappings(memory, &zone, false)?;
        self.mappings(memory, &kept)?;
        for range in &kept.surplus {
            let args = args![range.start, range.end - range.start, libc::MADV_DONTNEED];
            self.program.call(self.leader, Sysno::madvise, args).note("pages that only the parent has");
        }
        self.fill(&kept.missing(&memory.pages), 0);
        Ok(())
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
    fn clear_out(
        &mut self,
        there: &[Special],
        memory: &AddressSpace,
        kept: &Kept,
        zone: &Zone,
        is_seed: bool,
    ) {
        let Self { program, leader, site, .. } = self;
        let mut aside = site.aside;
        let mut stay = kept.ranges.clone();
        for special in there {
            if place_of(special, memory) == Some(special.start.get()) && !is_seed {
                stay.push(special.start.get()..special.start.get() + special.len);
                continue;
            }
            let args = args![special.start, special.len, special.len, MOVE, aside];
            let call = program.call(*leader, Sysno::mremap, args).accept(Accept::Exactly(aside.get()));
            call.note(format!("{:?} aside", special.kind));
            aside = aside + special.len;
        }
        stay.push(site.stage.get()..aside.get());
        if !is_seed && zone.len != 0 {
            stay.push(zone.start..zone.start + zone.len);
        }
        stay.sort_unstable_by_key(|range| range.start);
        let mut from = 0;
        for range in stay.into_iter().chain([TASK_SIZE..TASK_SIZE]) {
            if from < range.start {
                let call = program.call(*leader, Sysno::munmap, args![from, range.start - from]);
                call.note(format!("all from {from:#x} to {:#x}", range.start));
            }
            from = range.end;
        }
    }

    fn specials(&mut self, there: &[Special], memory: &AddressSpace) -> Result<(), RestoreError> {
        let mut aside = self.site.aside;
        let is_seed = self.is_root();
        for special in there {
            let wanted = memory.vmas.iter().find(|vma| vma.backing() == special.kind);
            if let Some(vma) = wanted {
                if vma.end - vma.start != special.len {
                    return Err(RestoreError::Unsupported {
                        pid: self.process.pid,
                        object: format!("{:?}", special.kind),
                        reason: "this kernel's has another size; resume under the kernel of the capture"
                            .into(),
                    });
                }
                if vma.start == special.start.get() && !is_seed {
                    continue;
                }
                let args = args![aside, special.len, special.len, MOVE, vma.start];
                let call = self.program.call(self.leader, Sysno::mremap, args);
                call.accept(Accept::Exactly(vma.start)).note(format!("{:?}", special.kind));
            } else {
                let call = self.program.call(self.leader, Sysno::munmap, args![aside, special.len]);
                call.note(format!("{:?} was not there", special.kind));
            }
            aside = aside + special.len;
        }
        Ok(())
    }

    /// Memfds are sealed when their mappings are there: some seals forbid to make them.
    pub(super) fn seal_files(&mut self) {
        for content in self.image.file_contents.iter().filter(|content| content.seals != 0) {
            if let Some(prepared) = self.site.prepared.get(&content.id) {
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
                Backing::SharedMemory
                | Backing::Vdso
                | Backing::Vvar
                | Backing::VvarVclock
                | Backing::Aio => {}
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

/// What only the kernel can make, where a process has it.
fn specials_of(memory: &AddressSpace) -> Vec<Special> {
    let kinds = [Backing::Vdso, Backing::Vvar, Backing::VvarVclock];
    let special = |vma: &Vma| Special {
        kind: vma.backing(),
        start: RemoteAddr::new(vma.start),
        len: vma.end - vma.start,
    };
    memory.vmas.iter().filter(|vma| kinds.contains(&vma.backing())).map(special).collect()
}

fn place_of(special: &Special, memory: &AddressSpace) -> Option<u64> {
    memory.vmas.iter().find(|vma| vma.backing() == special.kind).map(|vma| vma.start)
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
pub fn free_gap(mut taken: Vec<(u64, u64)>, len: u64) -> Option<u64> {
    const LOWEST: u64 = 1 << 32;
    taken.sort_unstable();
    let mut at = LOWEST;
    for (start, end) in taken {
        if at.checked_add(len + 2 * PAGE_SIZE)? <= start {
            break;
        }
        at = at.max(page_up(end));
    }
    (at.checked_add(len + 2 * PAGE_SIZE)? <= TASK_SIZE).then_some(at + PAGE_SIZE)
}
