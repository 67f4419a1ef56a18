//! Shared anonymous memory: objects that any number of mappings refer to.

use std::collections::{BTreeMap, HashMap};

use rewake_image::records::vma;
use rewake_linux::addr::RemoteAddr;
use rewake_linux::proc::{self, Mapping, Proc};

use super::Memory;
use crate::{ipc, kin};

/// No device, but where the ids of System V segments count.
const SEGMENTS: u64 = u64::MAX;

/// A shared anonymous object and where the target maps it.
#[derive(Clone, Debug)]
pub(crate) struct SharedObject {
    /// As the records number it.
    pub(crate) id: u32,
    /// A process that maps it.
    pub(crate) pid: i32,
    /// End of the furthest mapping, in bytes of the object.
    pub(crate) mapped_end: u64,
    /// One mapping of that process, to open the object through.
    pub(crate) mapping: Mapping,
    /// Huge pages of 2 to this power bytes; 0: ordinary ones.
    pub(crate) huge_page_shift: u32,
    /// Id of the System V segment that it is.
    pub(crate) segment: Option<i32>,
}

/// Objects by device and inode.
pub(super) type Known = HashMap<(u64, u64), usize>;

/// A part of a shared object as the target maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MappedPart {
    /// Whose memory.
    pub(crate) pid: i32,
    /// Where it is mapped.
    pub(crate) address: RemoteAddr,
    /// Where it lies in the object.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u64,
}

/// The parts of shared objects that the target maps, by object: by offset, each byte once, without what guard regions hide.
#[derive(Debug, Default)]
pub(crate) struct MappedParts(HashMap<u32, Vec<MappedPart>>);

impl MappedParts {
    /// Those of one object.
    pub(crate) fn of(&self, object: &SharedObject) -> &[MappedPart] {
        self.0.get(&object.id).map_or(&[], Vec::as_slice)
    }

    /// Whether a shared object has bytes before the end of its furthest mapping that no mapping shows.
    pub(crate) fn lacks_some(&self, object: &SharedObject) -> bool {
        let mapped: u64 = self.of(object).iter().map(|part| part.len).sum();
        mapped < object.mapped_end
    }
}

impl Memory {
    /// The object behind a mapping: its place in [`Memory::shared`].
    pub(super) fn shared_object(&mut self, pid: i32, mapping: &Mapping, huge_page_shift: u32) -> usize {
        let end = mapping.offset + mapping.length();
        let segment = ipc::segment_of(mapping);
        // Ids of segments are no inodes of others, and who else has them attached is asked for by their ids.
        let device = if segment.is_some() { SEGMENTS } else { mapping.device };
        let at = *self.known_objects.entry((device, mapping.inode)).or_insert(self.shared.len());
        if let Some(object) = self.shared.get_mut(at) {
            object.mapped_end = object.mapped_end.max(end);
            return at;
        }
        let id = u32::try_from(at).expect("fewer objects than mappings");
        let mapping = mapping.clone();
        self.shared.push(SharedObject { id, pid, mapped_end: end, mapping, huge_page_shift, segment });
        at
    }

    /// How many mappings there are of each System V segment.
    pub(crate) fn attachments(&self) -> BTreeMap<i32, u64> {
        let mut counts = BTreeMap::new();
        let vmas = self.spaces.iter().flat_map(|space| &space.vmas);
        for vma in vmas.filter(|vma| vma.backing() == vma::Backing::SharedMemory) {
            let object = self.shared.iter().find(|object| object.id == vma.object);
            if let Some(id) = object.and_then(|object| object.segment) {
                *counts.entry(id).or_default() += 1;
            }
        }
        counts
    }

    /// The parts of its shared objects that the target maps.
    pub(crate) fn mapped_parts(&self) -> MappedParts {
        let mut parts: HashMap<u32, Vec<MappedPart>> = HashMap::new();
        let all = self.spaces.iter().flat_map(|space| space.vmas.iter().map(|vma| (space.pid, vma)));
        for (pid, vma) in all.filter(|(_, vma)| vma.backing == i32::from(vma::Backing::SharedMemory)) {
            let visible = parts.entry(vma.object).or_default();
            let mut at = vma.start;
            let guards = vma.guards.iter().map(|guard| (guard.address, guard.address + guard.length));
            for (start, end) in guards.chain([(vma.end, vma.end)]) {
                let (address, offset) = (RemoteAddr::new(at), vma.offset + (at - vma.start));
                visible.push(MappedPart { pid, address, offset, len: start - at });
                at = end;
            }
        }
        MappedParts(parts.into_iter().map(|(object, parts)| (object, apart(parts))).collect())
    }
}

/// By offset, without what others show already.
pub(super) fn apart(mut parts: Vec<MappedPart>) -> Vec<MappedPart> {
    parts.sort_unstable_by_key(|part| (part.offset, part.pid, part.address));
    let mut end = 0u64;
    let mut apart = Vec::with_capacity(parts.len());
    for MappedPart { pid, address, offset, len } in parts {
        let skip = end.saturating_sub(offset).min(len);
        if skip < len {
            apart.push(MappedPart { pid, address: address + skip, offset: offset + skip, len: len - skip });
            end = offset + len;
        }
    }
    apart
}

/// Places of objects that a process outside of the family, as far as we may look, maps too.
pub(super) fn mapped_elsewhere(family: &[i32], objects: &Known) -> Vec<usize> {
    if objects.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for other in proc::processes().unwrap_or_default().into_iter().filter(|other| !family.contains(other)) {
        let maps = Proc::open_living(other).and_then(|other| other.maps()).unwrap_or_default();
        let shared = maps.iter().filter(|mapping| mapping.shared);
        let known = shared.filter_map(|mapping| objects.get(&(mapping.device, mapping.inode)).copied());
        let known: Vec<usize> = known.filter(|object| !found.contains(object)).collect();
        if !known.is_empty() && kin::is_outsider(family, other) {
            found.extend(known);
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use rewake_image::records::{Extent, Vma};

    use super::*;

    fn memory() -> (Memory, usize) {
        let mapping =
            rewake_linux::proc::parse_maps(b"1000-9000 rw-s 00000000 00:01 5 /dev/zero (deleted)\n")
                .unwrap()
                .remove(0);
        let mut memory = Memory {
            spaces: vec![super::super::Space { pid: 1, ..Default::default() }],
            ..Memory::default()
        };
        let at = memory.shared_object(1, &mapping, 0);
        assert_eq!(memory.shared_object(1, &mapping, 0), at, "one object");
        (memory, at)
    }

    fn vma(start: u64, end: u64, offset: u64) -> Vma {
        Vma { start, end, offset, backing: vma::Backing::SharedMemory.into(), ..Vma::default() }
    }

    fn plain(parts: &[MappedPart]) -> Vec<(u64, u64, u64)> {
        parts.iter().map(|part| (part.address.get(), part.offset, part.len)).collect()
    }

    #[test]
    fn every_byte_of_a_shared_object_is_read_once() {
        let (mut memory, at) = memory();
        for (start, end, offset) in [(0x1000, 0x4000, 0x1000), (0x5000, 0x9000, 0), (0xa000, 0xb000, 0x2000)]
        {
            memory.spaces[0].vmas.push(vma(start, end, offset));
        }
        let parts = memory.mapped_parts();
        assert_eq!(plain(parts.of(&memory.shared[at])), [(0x5000, 0, 0x4000)]);
        assert!(parts.lacks_some(&memory.shared[at]));
        memory.shared[at].mapped_end = 0x4000;
        assert!(!parts.lacks_some(&memory.shared[at]));
    }

    #[test]
    fn what_a_guard_hides_is_not_read_through_it() {
        let (mut memory, at) = memory();
        let mut hidden = vma(0x1000, 0x9000, 0);
        hidden.guards = vec![Extent { address: 0x3000, length: 0x1000, stream_offset: 0 }];
        memory.spaces[0].vmas.push(hidden);
        let parts = memory.mapped_parts();
        assert_eq!(plain(parts.of(&memory.shared[at])), [(0x1000, 0, 0x2000), (0x4000, 0x3000, 0x5000)]);
        assert!(parts.lacks_some(&memory.shared[at]));
    }
}
