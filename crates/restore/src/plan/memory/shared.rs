//! Shared anonymous memory.

use std::collections::BTreeMap;

use rewake_image::records::{AddressSpace, SharedMemory, Vma, vma::Backing};
use rewake_linux::addr::PAGE_SIZE;
use rewake_linux::program::{Accept, Sysno};

use super::super::{Planner, args};
use super::{MOVE, READ_WRITE, describe, free_gap, huge_flags};
use crate::error::RestoreError;

impl Planner<'_> {
    /// Each object is mapped whole in a free place and filled; its mappings are made from there, and the place is left.
    pub(super) fn shared_memory(&mut self, memory: &AddressSpace) -> Result<(), RestoreError> {
        let objects = &self.image.shared_memory;
        let mut mappings: BTreeMap<u32, Vec<&Vma>> = BTreeMap::new();
        for vma in memory.vmas.iter().filter(|vma| vma.backing() == Backing::SharedMemory) {
            mappings.entry(vma.object).or_default().push(vma);
        }
        let workshop = self.workshop(memory, objects)?;
        for object in objects {
            let mappings = mappings.get(&object.id).map_or(&[][..], Vec::as_slice);
            self.shared_object(object, workshop, mappings)?;
        }
        Ok(())
    }

    fn shared_object(
        &mut self,
        object: &SharedMemory,
        workshop: u64,
        mappings: &[&Vma],
    ) -> Result<(), RestoreError> {
        let huge = huge_flags(object.huge_page_shift);
        // Ordinary pages are counted as they come; huge ones are set aside unless the program did without.
        let reserved = huge != 0 && mappings.iter().any(|vma| !vma.no_reserve);
        let reserve = if reserved { 0 } else { libc::MAP_NORESERVE };
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | reserve | huge;
        let (note, size) = (format!("shared memory {}", object.id), mapped_size(object));
        let args = args![workshop, size, READ_WRITE, flags, -1, 0];
        let call = self.program.call(self.leader, Sysno::mmap, args);
        call.accept(Accept::Exactly(workshop)).note(note.clone());
        for vma in mappings {
            self.policy(vma, workshop + vma.offset);
        }
        self.fill(&object.pages, workshop);
        self.check_apart(object, mappings)?;
        for vma in mappings {
            let (from, len) = (workshop + vma.offset, vma.end - vma.start);
            // From a length of 0 mremap maps the same object once more; huge pages it only moves.
            let old_len = if huge == 0 { 0 } else { len };
            let args = args![from, old_len, len, MOVE, vma.start];
            let call = self.program.call(self.leader, Sysno::mremap, args);
            call.accept(Accept::Exactly(vma.start)).note(format!("{note}, {}", describe(vma)));
            if vma.protection != READ_WRITE {
                let args = args![vma.start, len, vma.protection];
                self.program.call(self.leader, Sysno::mprotect, args).note(describe(vma));
            }
            self.advise(vma);
        }
        self.program.call(self.leader, Sysno::munmap, args![workshop, size]).note(note);
        Ok(())
    }

    /// Huge pages can be moved to one place only.
    fn check_apart(&self, object: &SharedMemory, mappings: &[&Vma]) -> Result<(), RestoreError> {
        let mut parts: Vec<(u64, u64)> =
            mappings.iter().map(|vma| (vma.offset, vma.offset + (vma.end - vma.start))).collect();
        parts.sort_unstable();
        let apart = parts.windows(2).all(|pair| pair[0].1 <= pair[1].0);
        if object.huge_page_shift == 0 || apart {
            return Ok(());
        }
        Err(RestoreError::Unsupported {
            pid: self.process.pid,
            object: format!("shared memory {} of huge pages", object.id),
            reason: "parts of it are mapped more than once".into(),
        })
    }

    /// A free place for the largest of the objects, as aligned as the largest of their pages.
    fn workshop(&self, memory: &AddressSpace, objects: &[SharedMemory]) -> Result<u64, RestoreError> {
        let len = objects.iter().map(mapped_size).max().unwrap_or(PAGE_SIZE);
        let align = objects.iter().map(page_size).max().unwrap_or(PAGE_SIZE);
        let gap = free_gap(self.taken(memory), len.saturating_add(align - PAGE_SIZE));
        gap.map(|gap| gap.next_multiple_of(align)).ok_or_else(|| RestoreError::Unsupported {
            pid: self.process.pid,
            object: "shared memory".into(),
            reason: format!("no free address range of {len} bytes to build it in"),
        })
    }
}

/// Bytes of a page of the object.
fn page_size(object: &SharedMemory) -> u64 {
    1u64.checked_shl(object.huge_page_shift).filter(|size| *size > 1).unwrap_or(PAGE_SIZE)
}

/// Whole pages of its own.
fn mapped_size(object: &SharedMemory) -> u64 {
    object.size.max(1).next_multiple_of(page_size(object))
}
