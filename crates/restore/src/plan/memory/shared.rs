//! Shared anonymous memory.

use std::collections::BTreeMap;

use rewake_image::Image;
use rewake_image::ipc::Ipc;
use rewake_image::records::{AddressSpace, Segment, SharedMemory, Vma, vma::Backing};
use rewake_linux::addr::PAGE_SIZE;
use rewake_linux::program::{Accept, Sysno};
use rewake_linux::sysv::Kind;

use super::super::{Planner, Site, args};
use super::{MOVE, READ_WRITE, describe, free_gap, huge_flags};
use crate::error::RestoreError;

/// Where shared memory is made, and stays until all are born: a place that nobody has anything at.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Zone {
    pub(super) start: u64,
    /// 0: there is no shared memory.
    pub(super) len: u64,
    /// By object.
    places: BTreeMap<u32, u64>,
    /// Where segments are attached once more, for reading only.
    read_only: BTreeMap<u32, u64>,
}

impl Zone {
    /// The zone for all objects of an image, each as aligned as its pages.
    pub(in super::super) fn of(image: &Image, site: &Site) -> Result<Self, RestoreError> {
        let objects = &image.shared_memory;
        let vmas = || image.memories().flat_map(|memory| &memory.vmas);
        let (mut len, mut places, mut read_only) = (0u64, BTreeMap::new(), BTreeMap::new());
        for object in objects {
            let mut reserve = || {
                let place = len.checked_next_multiple_of(page_size(object)).unwrap_or(u64::MAX);
                len = place.saturating_add(mapped_size(object));
                place
            };
            places.insert(object.id, reserve());
            if vmas().any(|vma| vma.attached_read_only && is_of(vma, object)) {
                read_only.insert(object.id, reserve());
            }
        }
        if objects.is_empty() {
            return Ok(Self::default());
        }
        let align = objects.iter().map(page_size).max().unwrap_or(PAGE_SIZE);
        let mut taken: Vec<(u64, u64)> = vmas().map(|vma| (vma.start, vma.end)).collect();
        taken.push(site.taken());
        let gap = free_gap(taken, len.saturating_add(align - PAGE_SIZE));
        let start = gap.map(|gap| gap.next_multiple_of(align)).ok_or_else(|| RestoreError::Unsupported {
            pid: image.root().pid,
            object: "shared memory".into(),
            reason: format!("no free address range of {len} bytes to build it in"),
        })?;
        places.values_mut().chain(read_only.values_mut()).for_each(|place| *place += start);
        Ok(Self { start, len, places, read_only })
    }
}

impl Planner<'_> {
    /// Makes all objects, with their content.
    pub(super) fn shared_objects(&mut self, zone: &Zone) {
        let image = self.image;
        for object in &image.shared_memory {
            let Some(&place) = zone.places.get(&object.id) else { continue };
            let vmas = image.memories().flat_map(|memory| &memory.vmas);
            let mappings: Vec<&Vma> = vmas.filter(|vma| is_of(vma, object)).collect();
            let huge = huge_flags(object.huge_page_shift);
            // Ordinary pages are counted as they come; huge ones are set aside unless the program did without.
            let reserved = huge != 0 && mappings.iter().any(|vma| !vma.no_reserve);
            let reserve = if reserved { 0 } else { libc::MAP_NORESERVE };
            if let Some(segment) = &object.segment {
                self.attach_segment(object, segment, place, zone.read_only.get(&object.id).copied());
                continue;
            }
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | reserve | huge;
            let args = args![place, mapped_size(object), READ_WRITE, flags, -1, 0];
            let call = self.program.call(self.leader, Sysno::mmap, args);
            call.accept(Accept::Exactly(place)).note(format!("shared memory {}", object.id));
            for vma in mappings {
                self.policy(vma, place + vma.offset);
            }
            self.fill(&object.pages, place);
        }
    }

    /// Attaches a segment, fills it, and says of it what can be said from now on. The last argument tells people, and the model of the
    /// address space, its length; to the kernel it says nothing.
    fn attach_segment(
        &mut self,
        object: &SharedMemory,
        segment: &Segment,
        place: u64,
        read_only: Option<u64>,
    ) {
        let (leader, length) = (self.leader, mapped_size(object));
        let (id, name) = (segment.object.map_or(0, |object| object.id), Ipc::Segment(segment).name());
        let args = args![id, place, 0, length];
        let call = self.program.call(leader, Sysno::shmat, args);
        call.accept(Accept::Exactly(place)).note(name.clone());
        if self.site.ipc.existing.contains_key(&(Kind::Segment, id)) {
            let args = args![place, length, libc::MADV_REMOVE];
            self.program.call(leader, Sysno::madvise, args).note(format!("what is left in {name}"));
        }
        self.fill(&object.pages, place);
        if let Some(place) = read_only {
            let call = self.program.call(leader, Sysno::shmat, args![id, place, libc::SHM_RDONLY, length]);
            call.accept(Accept::Exactly(place)).note(format!("{name}, read-only"));
        }
        self.settle_segment(object);
    }

    /// Maps the objects where the process has them; those of huge pages when all are born, since they only move.
    pub(super) fn shared_mappings(
        &mut self,
        memory: &AddressSpace,
        zone: &Zone,
        huge: bool,
    ) -> Result<(), RestoreError> {
        let image = self.image;
        for object in image.shared_memory.iter().filter(|object| (object.huge_page_shift != 0) == huge) {
            if !zone.places.contains_key(&object.id) {
                continue;
            }
            let mappings: Vec<&Vma> = memory.vmas.iter().filter(|vma| is_of(vma, object)).collect();
            self.check_apart(object, &mappings)?;
            for vma in mappings {
                let place = zone.read_only.get(&object.id).copied().filter(|_| vma.attached_read_only);
                let (from, len) =
                    (place.unwrap_or(zone.places[&object.id]) + vma.offset, vma.end - vma.start);
                let writable = place.is_none();
                // From a length of 0 mremap maps the same object once more; huge pages it only moves.
                let old_len = if object.huge_page_shift == 0 { 0 } else { len };
                let args = args![from, old_len, len, MOVE, vma.start];
                let call = self.program.call(self.leader, Sysno::mremap, args);
                let note = format!("shared memory {}, {}", object.id, describe(vma));
                call.accept(Accept::Exactly(vma.start)).note(note);
                let made = if writable { READ_WRITE } else { libc::PROT_READ.cast_unsigned() };
                if vma.protection != made {
                    let args = args![vma.start, len, vma.protection];
                    self.program.call(self.leader, Sysno::mprotect, args).note(describe(vma));
                }
                self.advise(vma, false);
            }
        }
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
}

fn is_of(vma: &Vma, object: &SharedMemory) -> bool {
    vma.backing() == Backing::SharedMemory && vma.object == object.id
}

/// Bytes of a page of the object.
fn page_size(object: &SharedMemory) -> u64 {
    1u64.checked_shl(object.huge_page_shift).filter(|size| *size > 1).unwrap_or(PAGE_SIZE)
}

/// Whole pages of its own.
fn mapped_size(object: &SharedMemory) -> u64 {
    object.size.max(1).next_multiple_of(page_size(object))
}
