//! The address space: everything of the seed goes, the image's mappings come, are filled ([`fill`]) and finished ([`finish`]).

mod aio;
mod fill;
mod finish;
mod kernels;
mod shared;

use rewake_image::records::{AddressSpace, Extent, Vma, vma::Backing};
use rewake_linux::addr::{PAGE_SIZE, RemoteAddr, page_up};
use rewake_linux::program::{Accept, Sysno};

use super::{Planner, Site, TASK_SIZE, args};
use crate::contents::PERMISSIONS;
use crate::error::RestoreError;

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
    pub(super) fn memory(&mut self) -> Result<(), RestoreError> {
        let process = self.process;
        let memory = process.memory.as_ref().ok_or_else(|| RestoreError::Unsupported {
            pid: process.pid,
            object: "memory".into(),
            reason: "the image has none".into(),
        })?;
        self.clear_out();
        self.specials(memory)?;
        self.shared_memory(memory)?;
        self.mappings(memory)?;
        self.fill(&memory.pages, 0);
        self.contexts(memory);
        self.guards(memory);
        self.protect(memory);
        self.finish_contents();
        Ok(())
    }

    /// The seed's own mappings go, but for the stage and, moved aside, what only the kernel can make.
    fn clear_out(&mut self) {
        let Self { program, leader, site, .. } = self;
        let mut aside = site.aside;
        for special in &site.specials {
            let args = args![special.start, special.len, special.len, MOVE, aside];
            let call = program.call(*leader, Sysno::mremap, args).accept(Accept::Exactly(aside.get()));
            call.note(format!("{:?} aside", special.kind));
            aside = aside + special.len;
        }
        let stage = site.stage.get();
        program.call(*leader, Sysno::munmap, args![0, stage]).note("all below the stage");
        let behind = aside.get();
        program.call(*leader, Sysno::munmap, args![behind, TASK_SIZE - behind]).note("all behind it");
    }

    /// Files made anew get their modes, and memfds their seals, when they are open and mapped: some of both forbid that. Modes come
    /// first, since a seal may forbid to change them, and brings others with it where the file may be run.
    fn finish_contents(&mut self) {
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

    fn mappings(&mut self, memory: &AddressSpace) -> Result<(), RestoreError> {
        let mut open: Option<u32> = None;
        for vma in &memory.vmas {
            let filled = is_filled(&memory.pages, vma);
            match vma.backing() {
                Backing::Anonymous => self.map(vma, filled, libc::MAP_ANONYMOUS, -1),
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
                    self.map(vma, filled, 0, 0);
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

    fn map(&mut self, vma: &Vma, filled: bool, kind: i32, fd: i32) {
        // A file of hugetlbfs has huge pages anyway.
        let huge = if kind & libc::MAP_ANONYMOUS == 0 { 0 } else { huge_flags(vma.huge_page_shift) };
        let sharing = if vma.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let grows = if vma.grows_down { libc::MAP_GROWSDOWN } else { 0 };
        let reserve = if vma.no_reserve { libc::MAP_NORESERVE } else { 0 };
        let flags = libc::MAP_FIXED_NOREPLACE | sharing | grows | reserve | kind | huge;
        let protection = if filled { READ_WRITE } else { vma.protection };
        let args = args![vma.start, vma.end - vma.start, protection, flags, fd, vma.offset];
        let call = self.program.call(self.leader, Sysno::mmap, args);
        call.accept(Accept::Exactly(vma.start)).note(describe(vma));
        self.policy(vma, vma.start);
        self.advise(vma);
    }
}

impl Planner<'_> {
    /// Where nothing can be put: the image's mappings, and those of the restore.
    fn taken(&self, memory: &AddressSpace) -> Vec<(u64, u64)> {
        let vmas = memory.vmas.iter().map(|vma| (vma.start, vma.end));
        vmas.chain([self.site.taken()]).chain(self.kernels).collect()
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
