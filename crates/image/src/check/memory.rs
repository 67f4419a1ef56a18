//! Whether mappings, extents and shared memory make sense and fit together.

use std::collections::HashMap;

use super::files::identity;
use super::{ascending, ensure, invalid};
use crate::records::vma::Backing;
use crate::records::{AddressSpace, Extent, MmFields, Process, SharedMemory, Vma};
use crate::{Image, ImageError, PAGE_SIZE};

/// The first address that a program cannot have memory at. The kernel's vsyscall page above it is never stored.
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// Most mappings of a process, well above what kernels are set to allow.
pub const MAX_VMAS: usize = 1 << 20;

/// PROT_READ, PROT_WRITE and PROT_EXEC.
const PROTECTIONS: u32 = 7;
/// PROT_WRITE.
const WRITABLE: u32 = 2;
/// ANON_VMA_NAME_MAX_LEN without the zero.
const MAX_NAME: usize = 79;
/// Advice of madvise(2) that a mapping keeps: random, sequential, (not) to forks, merging, huge pages or not, no dump, wiped on fork.
/// Other advice does something once, up to taking memory away from the whole host.
const ADVICE: [u32; 8] = [1, 2, 10, 12, 14, 15, 16, 18];
/// Bytes of an auxiliary vector's entry, and a bound on all of them.
const AUXV_ENTRY: usize = 16;
const MAX_AUXV: usize = 4096;

/// Mode and flags of mbind(2): MPOL_WEIGHTED_INTERLEAVE is the last, then static and relative nodes, and balancing.
const MPOL_LAST: u32 = 6;
const MPOL_FLAGS: u32 = 7 << 13;
/// Bytes of a vdso: far more than any has.
const MAX_VDSO: u64 = 1 << 20;
/// Bytes of a set of nodes.
const MAX_NODES: usize = 128;

const RECORD: &str = "Process";

pub(super) fn check(image: &Image) -> Result<(), ImageError> {
    let objects = objects(&image.shared_memory)?;
    image.memories().try_for_each(|memory| address_space(memory, image.mapped_files.len(), &objects))?;
    stream(image)
}

fn address_space(
    memory: &AddressSpace,
    files: usize,
    objects: &HashMap<u32, &SharedMemory>,
) -> Result<(), ImageError> {
    fields(memory.fields.as_ref())?;
    let auxv = memory.auxv.len();
    let whole = auxv.is_multiple_of(AUXV_ENTRY) && auxv <= MAX_AUXV;
    ensure!(whole, RECORD, "an auxiliary vector of {auxv} bytes is impossible");
    identity(memory.exe.as_ref().and_then(|exe| exe.identity.as_ref()), "Process, exe")?;
    vmas(memory, files, objects)?;
    owned_extents(memory)?;
    vdso(memory)
}

/// Checks that what the kernel writes for a thread, its restartable sequences, is memory that can be written.
pub(super) fn registrations(image: &Image, process: &Process) -> Result<(), ImageError> {
    let owner = process.memory_of.and_then(|owner| image.process(owner)).unwrap_or(process);
    let vmas = owner.memory.as_ref().map_or(&[][..], |memory| &memory.vmas);
    for thread in &process.threads {
        let Some(rseq) = thread.rseq.filter(|rseq| rseq.address != 0) else { continue };
        let next = vmas.partition_point(|vma| vma.end <= rseq.address);
        let end = rseq.address.checked_add(rseq.size.into());
        let fits = vmas.get(next).is_some_and(|vma| {
            vma.start <= rseq.address
                && end.is_some_and(|end| end <= vma.end)
                && vma.protection & WRITABLE != 0
        });
        let (tid, address) = (thread.tid, rseq.address);
        ensure!(
            fits,
            RECORD,
            "restartable sequences of thread {tid} at {address:#x}, where nothing can be written"
        );
    }
    Ok(())
}

fn fields(fields: Option<&MmFields>) -> Result<(), ImageError> {
    let Some(fields) = fields else {
        return Err(invalid(RECORD, "no fields of the address space".to_owned()));
    };
    let ranges = [
        ("code", fields.start_code, fields.end_code),
        ("data", fields.start_data, fields.end_data),
        ("brk", fields.start_brk, fields.brk),
        ("stack", fields.start_stack, fields.start_stack),
        ("arguments", fields.arg_start, fields.arg_end),
        ("environment", fields.env_start, fields.env_end),
    ];
    for (name, start, end) in ranges {
        ensure!(start <= end && end <= TASK_SIZE, RECORD, "{name} from {start:#x} to {end:#x} is impossible");
    }
    Ok(())
}

/// The shared memory objects by id.
fn objects(objects: &[SharedMemory]) -> Result<HashMap<u32, &SharedMemory>, ImageError> {
    ascending(objects.iter().map(|object| object.id), "SharedMemory", "id")?;
    for object in objects {
        let record = &format!("SharedMemory {}", object.id);
        let size =
            object.size.checked_next_multiple_of(PAGE_SIZE).filter(|size| i64::try_from(*size).is_ok());
        let Some(size) = size else {
            return Err(invalid(record, format!("a size of {} bytes is impossible", object.size)));
        };
        ensure!(
            is_huge_page(object.huge_page_shift),
            record,
            "huge pages of 2^{} bytes are impossible",
            object.huge_page_shift
        );
        extents(&object.pages, record)?;
        let end = object.pages.last().and_then(Extent::end).unwrap_or(0);
        ensure!(end <= size, record, "pages up to {end:#x} in an object of {size:#x} bytes");
    }
    Ok(objects.iter().map(|object| (object.id, object)).collect())
}

fn vmas(
    memory: &AddressSpace,
    files: usize,
    objects: &HashMap<u32, &SharedMemory>,
) -> Result<(), ImageError> {
    let count = memory.vmas.len();
    ensure!(count <= MAX_VMAS, RECORD, "{count} mappings, at most {MAX_VMAS} are possible");
    let mut end = 0;
    for (index, vma) in memory.vmas.iter().enumerate() {
        let record = || format!("Process, mapping {index} ({:#x}-{:#x})", vma.start, vma.end);
        let aligned = [vma.start, vma.end, vma.offset].iter().all(|number| number.is_multiple_of(PAGE_SIZE));
        ensure!(aligned, record(), "not page-aligned (offset {:#x})", vma.offset);
        ensure!(vma.start < vma.end, record(), "empty");
        ensure!(vma.end <= TASK_SIZE, record(), "above the end of the address space, {TASK_SIZE:#x}");
        ensure!(end <= vma.start, record(), "begins below the end of the one before, {end:#x}");
        end = vma.end;
        one_vma(vma, files, objects).map_err(|detail| invalid(record(), detail))?;
    }
    Ok(())
}

/// What can be said about a mapping alone.
fn one_vma(vma: &Vma, files: usize, objects: &HashMap<u32, &SharedMemory>) -> Result<(), String> {
    let Ok(backing) = Backing::try_from(vma.backing) else {
        return Err(format!("unknown backing {}", vma.backing));
    };
    let leads_somewhere = match backing {
        Backing::File => usize::try_from(vma.object).is_ok_and(|object| object < files),
        Backing::SharedMemory => objects.contains_key(&vma.object),
        Backing::Anonymous | Backing::Vdso | Backing::Vvar | Backing::VvarVclock | Backing::Aio => true,
    };
    if !leads_somewhere {
        return Err(format!("refers to object {}, which is not there", vma.object));
    }
    if vma.shared && backing == Backing::Anonymous {
        return Err("shared, but refers to no shared memory".to_owned());
    }
    let offset_end = vma.offset.checked_add(vma.length());
    if offset_end.is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(format!("offset {:#x} is impossible", vma.offset));
    }
    let object = objects.get(&vma.object).filter(|_| backing == Backing::SharedMemory);
    if let (Some(size), Some(end)) = (object.map(|object| object.size), offset_end)
        && end > size.next_multiple_of(PAGE_SIZE)
    {
        return Err(format!("maps up to {end:#x} of an object of {size:#x} bytes"));
    }
    if let Some(advice) = vma.advice.iter().find(|advice| !ADVICE.contains(advice)) {
        return Err(format!("advice {advice} is none that mappings keep"));
    }
    if vma.protection & !PROTECTIONS != 0 {
        return Err(format!("protection {:#x} is impossible", vma.protection));
    }
    if vma.name.len() > MAX_NAME || vma.name.contains(&0) {
        return Err(format!("name {:?} is impossible", String::from_utf8_lossy(&vma.name)));
    }
    huge_pages(vma, backing, objects)?;
    guards(vma)?;
    policy(vma)
}

/// Whether there may be huge pages of 2 to this power bytes; 0 are none. Processors have 64 KiB to 16 GiB.
pub(super) const fn is_huge_page(shift: u32) -> bool {
    shift == 0 || shift >= 16 && shift <= 34
}

fn huge_pages(vma: &Vma, backing: Backing, objects: &HashMap<u32, &SharedMemory>) -> Result<(), String> {
    let shift = vma.huge_page_shift;
    if backing == Backing::SharedMemory
        && objects.get(&vma.object).is_none_or(|object| object.huge_page_shift != shift)
    {
        return Err(format!("huge pages of 2^{shift} bytes, but its shared memory has others"));
    }
    if shift == 0 {
        return Ok(());
    }
    let has_memory = matches!(backing, Backing::Anonymous | Backing::File | Backing::SharedMemory);
    if !is_huge_page(shift) || !has_memory {
        return Err(format!("huge pages of 2^{shift} bytes are impossible"));
    }
    let size = 1u64 << shift;
    if [vma.start, vma.end, vma.offset].iter().any(|number| !number.is_multiple_of(size)) {
        return Err(format!("not aligned to its huge pages of {size} bytes"));
    }
    Ok(())
}

/// Guard regions are whole pages within the mapping, in order.
fn guards(vma: &Vma) -> Result<(), String> {
    extents(&vma.guards, "guard regions").map_err(|error| error.to_string())?;
    let first = vma.guards.first().map_or(vma.start, |guard| guard.address);
    let end = vma.guards.last().and_then(Extent::end).unwrap_or(vma.end);
    if first < vma.start || end > vma.end {
        return Err("a guard region lies outside".to_owned());
    }
    Ok(())
}

fn policy(vma: &Vma) -> Result<(), String> {
    let (mode, nodes) = (vma.memory_policy & !MPOL_FLAGS, vma.memory_policy_nodes.len());
    if mode > MPOL_LAST || nodes > MAX_NODES {
        return Err(format!(
            "memory policy {:#x} with {nodes} bytes of nodes is impossible",
            vma.memory_policy
        ));
    }
    Ok(())
}

/// The vdso's content, where it is kept, is that of its mapping.
fn vdso(memory: &AddressSpace) -> Result<(), ImageError> {
    let len = u64::try_from(memory.vdso.len()).unwrap_or(u64::MAX);
    let mut mapped = memory.vmas.iter().filter(|vma| vma.backing() == Backing::Vdso);
    let fits = len <= MAX_VDSO && mapped.any(|vma| vma.length() == len);
    ensure!(len == 0 || fits, RECORD, "a vdso of {len} bytes, which is mapped with another size");
    Ok(())
}

/// Checks that extents are whole pages, in order, apart from one another.
pub(super) fn extents(extents: &[Extent], record: &str) -> Result<(), ImageError> {
    let mut last = 0;
    for extent in extents {
        let (address, length) = (extent.address, extent.length);
        let numbers = [address, length, extent.stream_offset];
        let whole = length > 0 && numbers.iter().all(|number| number.is_multiple_of(PAGE_SIZE));
        ensure!(
            whole,
            record,
            "extent {address:#x}+{length:#x} at {:#x} is not whole pages",
            extent.stream_offset
        );
        ensure!(
            last <= address,
            record,
            "extent {address:#x} begins below {last:#x}, the end of the one before"
        );
        let Some(end) = extent.end() else {
            return Err(invalid(record, format!("extent {address:#x}+{length:#x} is too long")));
        };
        last = end;
    }
    Ok(())
}

/// Checks that each extent of the process lies in one private mapping.
fn owned_extents(memory: &AddressSpace) -> Result<(), ImageError> {
    extents(&memory.pages, RECORD)?;
    let mut vmas = memory.vmas.iter().peekable();
    for extent in &memory.pages {
        let end = extent.end().unwrap_or(u64::MAX);
        while vmas.next_if(|vma| vma.end <= extent.address).is_some() {}
        let owner = vmas.peek().filter(|vma| vma.start <= extent.address && end <= vma.end);
        let hidden = owner.is_some_and(|vma| {
            let first = vma.guards.partition_point(|guard| guard.end() <= Some(extent.address));
            vma.guards.get(first).is_some_and(|guard| guard.address < end)
        });
        ensure!(!hidden, RECORD, "extent {:#x}+{:#x} lies in a guard region", extent.address, extent.length);
        ensure!(
            owner.is_some_and(|vma| vma.may_own_pages()),
            RECORD,
            "extent {:#x}+{:#x} does not lie in one private mapping",
            extent.address,
            extent.length
        );
    }
    Ok(())
}

/// Checks that the extents of all objects together are the page stream. Only private memory of several processes may be the same part
/// of it: what they have had in common since one became two.
fn stream(image: &Image) -> Result<(), ImageError> {
    let private = image.memories().flat_map(|memory| &memory.pages);
    let shared = image.shared_memory.iter().flat_map(|object| &object.pages);
    let files = image.file_contents.iter().flat_map(|content| &content.pages);
    let once = shared
        .chain(files)
        .chain(&image.stream.spare)
        .map(|extent| (extent.stream_offset, extent.length, true));
    let often = private.map(|extent| (extent.stream_offset, extent.length, image.processes.len() < 2));
    let mut runs: Vec<(u64, u64, bool)> = once.chain(often).collect();
    runs.sort_unstable();
    let (mut end, mut whole) = (0, false);
    for (offset, length, once) in runs {
        let joins = offset == end || offset < end && !once && !whole;
        ensure!(joins, "PageStream", "an extent begins at {offset:#x}, {end:#x} expected");
        let stop = offset.saturating_add(length);
        if stop > end {
            (end, whole) = (stop, once);
        }
    }
    let length = image.stream.stream_length;
    ensure!(end == length, "PageStream", "extents have {end:#x} bytes, the stream has {length:#x}");
    Ok(())
}
