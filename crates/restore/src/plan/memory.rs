//! The address space: everything of the seed goes, the image's mappings come and are filled.

use std::collections::BTreeMap;

use rewake_image::records::{AddressSpace, Extent, SharedMemory, Vma, vma::Backing};
use rewake_linux::addr::{PAGE_SIZE, RemoteAddr, page_up};
use rewake_linux::program::{Accept, Sysno};

use super::{Planner, Site, TASK_SIZE, args};
use crate::error::RestoreError;

const PROT_WRITE: u32 = libc::PROT_WRITE.cast_unsigned();
const READ_WRITE: u32 = (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned();
const MOVE: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
const MLOCK_ONFAULT: i32 = 1;
const PR_SET_VMA: i32 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: i32 = 0;
/// Parts of memory that one call fills at most: UIO_MAXIOV, and bytes well under the 2 GiB that a read can transfer.
const BATCH_PARTS: usize = 1024;
const BATCH_BYTES: u64 = 256 << 20;

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
        self.protect(memory);
        self.seal_files();
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

    fn specials(&mut self, memory: &AddressSpace) -> Result<(), RestoreError> {
        let mut aside = self.site.aside;
        for special in &self.site.specials {
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

    /// Each object is mapped whole in a free place and filled; its mappings are made from there (`mremap` from a length of 0
    /// maps the same object once more), and the place is left.
    fn shared_memory(&mut self, memory: &AddressSpace) -> Result<(), RestoreError> {
        let objects = &self.image.shared_memory;
        let mut mappings: BTreeMap<u32, Vec<&Vma>> = BTreeMap::new();
        for vma in memory.vmas.iter().filter(|vma| vma.backing() == Backing::SharedMemory) {
            mappings.entry(vma.object).or_default().push(vma);
        }
        let workshop = self.workshop(memory, objects)?;
        for object in objects {
            let flags =
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
            let (note, size) = (format!("shared memory {}", object.id), mapped_size(object));
            let args = args![workshop, size, READ_WRITE, flags, -1, 0];
            let call = self.program.call(self.leader, Sysno::mmap, args);
            call.accept(Accept::Exactly(workshop)).note(note.clone());
            self.fill(&object.pages, workshop);
            for vma in mappings.get(&object.id).into_iter().flatten() {
                let (from, len) = (workshop + vma.offset, vma.end - vma.start);
                let call =
                    self.program.call(self.leader, Sysno::mremap, args![from, 0, len, MOVE, vma.start]);
                call.accept(Accept::Exactly(vma.start)).note(format!("{note}, {}", describe(vma)));
                if vma.protection != READ_WRITE {
                    let args = args![vma.start, len, vma.protection];
                    self.program.call(self.leader, Sysno::mprotect, args).note(describe(vma));
                }
                self.advise(vma);
            }
            self.program.call(self.leader, Sysno::munmap, args![workshop, size]).note(note);
        }
        Ok(())
    }

    /// Memfds are sealed when their mappings are there: some seals forbid to make them.
    fn seal_files(&mut self) {
        for content in self.image.file_contents.iter().filter(|content| content.seals != 0) {
            if let Some(prepared) = self.site.prepared.get(&content.id) {
                let args = args![*prepared, libc::F_ADD_SEALS, content.seals];
                let call = self.program.call(self.leader, Sysno::fcntl, args);
                // One made without the right to be sealed has this seal already.
                call.accept(Accept::SuccessOr(libc::EPERM)).note(format!("seals of content {}", content.id));
            }
        }
    }

    /// A free place for the largest of the objects.
    fn workshop(&self, memory: &AddressSpace, objects: &[SharedMemory]) -> Result<u64, RestoreError> {
        let len = objects.iter().map(mapped_size).max().unwrap_or(PAGE_SIZE);
        let mut taken: Vec<(u64, u64)> = memory.vmas.iter().map(|vma| (vma.start, vma.end)).collect();
        taken.push(self.site.taken());
        free_gap(taken, len).ok_or_else(|| RestoreError::Unsupported {
            pid: self.process.pid,
            object: "shared memory".into(),
            reason: format!("no free address range of {len} bytes to build it in"),
        })
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

    fn map(&mut self, vma: &Vma, filled: bool, kind: i32, fd: i32) {
        let sharing = if vma.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let grows = if vma.grows_down { libc::MAP_GROWSDOWN } else { 0 };
        let reserve = if vma.no_reserve { libc::MAP_NORESERVE } else { 0 };
        let flags = libc::MAP_FIXED_NOREPLACE | sharing | grows | reserve | kind;
        let protection = if filled { READ_WRITE } else { vma.protection };
        let args = args![vma.start, vma.end - vma.start, protection, flags, fd, vma.offset];
        let call = self.program.call(self.leader, Sysno::mmap, args);
        call.accept(Accept::Exactly(vma.start)).note(describe(vma));
        self.advise(vma);
    }

    fn advise(&mut self, vma: &Vma) {
        let len = vma.end - vma.start;
        for advice in &vma.advice {
            let call = self.program.call(self.leader, Sysno::madvise, args![vma.start, len, *advice]);
            // What a kernel was built without it calls invalid; the program's memory is the same.
            call.accept(Accept::SuccessOr(libc::EINVAL)).note(format!("advice, {}", describe(vma)));
        }
        if !vma.name.is_empty() {
            let name = self.program.string(&vma.name);
            let args = args![PR_SET_VMA, PR_SET_VMA_ANON_NAME, vma.start, len, name];
            self.program
                .call(self.leader, Sysno::prctl, args)
                .accept(Accept::SuccessOr(libc::EINVAL))
                .note("name");
        }
    }

    /// Reads runs of the page stream, which lie one behind the other there, in as few calls as may be.
    fn fill(&mut self, extents: &[Extent], base: u64) {
        let mut batch: Vec<u64> = Vec::new();
        let (mut begin, mut bytes) = (0, 0);
        for extent in extents {
            let mut done = 0;
            while done < extent.length {
                let contiguous = extent.stream_offset + done == begin + bytes;
                if !contiguous || batch.len() == 2 * BATCH_PARTS || bytes >= BATCH_BYTES {
                    self.read(&batch, begin, bytes);
                    batch.clear();
                    (begin, bytes) = (extent.stream_offset + done, 0);
                }
                let part = (extent.length - done).min(BATCH_BYTES - bytes);
                batch.extend([base + extent.address + done, part]);
                bytes += part;
                done += part;
            }
        }
        self.read(&batch, begin, bytes);
    }

    fn read(&mut self, batch: &[u64], from: u64, bytes: u64) {
        if batch.is_empty() {
            return;
        }
        let parts = self.program.words(batch);
        let count = u64::try_from(batch.len() / 2).expect("a batch is small");
        let args = args![self.site.pages(), parts, count, from, 0];
        let call = self.program.call(self.leader, Sysno::preadv, args).accept(Accept::Exactly(bytes));
        call.note(format!("memory at {:#x} in {count} parts", batch[0]));
    }

    fn protect(&mut self, memory: &AddressSpace) {
        for vma in &memory.vmas {
            let len = vma.end - vma.start;
            if vma.protection != READ_WRITE && is_filled(&memory.pages, vma) {
                let call =
                    self.program.call(self.leader, Sysno::mprotect, args![vma.start, len, vma.protection]);
                call.note(describe(vma));
            }
            if vma.locked {
                let flags = if vma.lock_on_fault { MLOCK_ONFAULT } else { 0 };
                let call = self.program.call(self.leader, Sysno::mlock2, args![vma.start, len, flags]);
                // Without access there is nothing to bring in, but the mapping is marked as locked.
                let accept =
                    if vma.protection == 0 { Accept::SuccessOr(libc::ENOMEM) } else { Accept::Success };
                call.accept(accept).note(format!("lock, {}", describe(vma)));
            }
        }
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

fn mapped_size(object: &SharedMemory) -> u64 {
    page_up(object.size.max(1))
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
