//! What only the kernel can make, the vdso and its data: to where the image had them; or, under a kernel that has others, to a free
//! place, with the image's own vdso leading there.

use rewake_image::records::{AddressSpace, Thread, Vma, vma::Backing};
use rewake_linux::addr::{PAGE_SIZE, RemoteAddr};
use rewake_linux::program::{Accept, Sysno};

use super::super::{Planner, args};
use super::{MOVE, READ_WRITE, Special, free_gap, free_gap_above};
use crate::error::RestoreError;
use crate::vdso;

const KINDS: [Backing; 3] = [Backing::Vdso, Backing::Vvar, Backing::VvarVclock];
/// Place of the instruction pointer in a thread's registers.
const RIP: usize = 16;

impl Planner<'_> {
    /// Places those that were moved aside; the others are where the image had them. Tells where they are then.
    pub(super) fn specials(
        &mut self,
        moved: &[Special],
        in_place: &[Special],
        memory: &AddressSpace,
    ) -> Result<Vec<Special>, RestoreError> {
        let kernels: Vec<&Vma> = memory.vmas.iter().filter(|vma| KINDS.contains(&vma.backing())).collect();
        if let Some(kind) = KINDS.iter().find(|kind| of_kind(&kernels, **kind).count() > 1) {
            return Err(self.refuse(*kind, "the program has it more than once"));
        }
        match (&self.site.vdso, of_kind(&kernels, Backing::Vdso).next()) {
            (Some(own), Some(vdso)) => self.another_kernels(moved, memory, vdso, own),
            _ => self.back(moved, in_place, &kernels),
        }
    }

    /// To where the image had them.
    fn back(
        &mut self,
        moved: &[Special],
        in_place: &[Special],
        kernels: &[&Vma],
    ) -> Result<Vec<Special>, RestoreError> {
        let missing = |kind| !moved.iter().chain(in_place).any(|special| special.kind == kind);
        let mut placed = Vec::new();
        if let Some(vma) = kernels.iter().find(|vma| missing(vma.backing())) {
            return Err(self.refuse(vma.backing(), "this kernel gives no such mapping"));
        }
        let mut aside = self.site.aside;
        for special in moved {
            let wanted = of_kind(kernels, special.kind).next();
            if let Some(vma) = wanted {
                if vma.length() != special.len {
                    return Err(self.refuse(special.kind, "this kernel's has another size"));
                }
                let args = args![aside, special.len, special.len, MOVE, vma.start];
                let call = self.program.call(self.leader, Sysno::mremap, args);
                call.accept(Accept::Exactly(vma.start)).note(format!("{:?}", special.kind));
                placed.push(Special { start: RemoteAddr::new(vma.start), ..*special });
            } else {
                let call = self.program.call(self.leader, Sysno::munmap, args![aside, special.len]);
                call.note(format!("{:?} was not there", special.kind));
            }
            aside = aside + special.len;
        }
        Ok(placed)
    }

    /// To a free place, as far from one another as they were; the image's own vdso becomes ordinary memory.
    fn another_kernels(
        &mut self,
        moved: &[Special],
        memory: &AddressSpace,
        vdso: &Vma,
        own: &[u8],
    ) -> Result<Vec<Special>, RestoreError> {
        let inside = |thread: &&Thread| {
            thread.registers.get(RIP).is_some_and(|rip| (vdso.start..vdso.end).contains(rip))
        };
        if let Some(thread) = self.process.threads.iter().find(inside) {
            let reason =
                format!("this kernel's is another one, and thread {} was captured inside", thread.tid);
            return Err(self.refuse(Backing::Vdso, &reason));
        }
        if memory.vdso.is_empty() {
            let reason = "this kernel's is another one, and the image does not hold its own";
            return Err(self.refuse(Backing::Vdso, reason));
        }
        let start = moved.iter().map(|special| special.start).min().unwrap_or_default();
        let end = moved.iter().map(|special| special.start + special.len).max().unwrap_or_default();
        let len = end.get() - start.get();
        let place = self.place(memory, len)?;
        self.kernels = Some((place, place + len));
        let (mut aside, mut address) = (self.site.aside, 0);
        let mut placed = Vec::new();
        for special in moved {
            let to = place + (special.start.get() - start.get());
            if special.kind == Backing::Vdso {
                address = to;
            }
            let args = args![aside, special.len, special.len, MOVE, to];
            let call = self.program.call(self.leader, Sysno::mremap, args);
            call.accept(Accept::Exactly(to)).note(format!("{:?} of this kernel", special.kind));
            placed.push(Special { start: RemoteAddr::new(to), ..*special });
            aside = aside + special.len;
        }
        let code = vdso::redirected(&memory.vdso, own, address).map_err(|reason| {
            let reason = format!("this kernel's is another one, and the program cannot use it: {reason}");
            self.refuse(Backing::Vdso, &reason)
        })?;
        self.put(vdso, &code);
        Ok(placed)
    }

    /// Above the stack, where nothing grows; else anywhere.
    fn place(&self, memory: &AddressSpace, len: u64) -> Result<u64, RestoreError> {
        let taken = self.taken(memory);
        let stack = memory.fields.map_or(0, |fields| fields.start_stack) & !(PAGE_SIZE - 1);
        let above = free_gap_above(stack, taken.clone(), len).filter(|_| stack > 0);
        above.or_else(|| free_gap(taken, len)).ok_or_else(|| {
            self.refuse(Backing::Vdso, &format!("no free address range of {len} bytes for this kernel's"))
        })
    }

    /// Memory with this content, by way of a file in memory.
    fn put(&mut self, vma: &Vma, code: &[u8]) {
        let note = "vdso of another kernel";
        let (leader, program) = (self.leader, &mut self.program);
        let (bytes, name) = (program.bytes(code), program.string(b"vdso"));
        let len = u64::try_from(code.len()).unwrap_or(u64::MAX);
        let args = args![name, libc::MFD_CLOEXEC];
        program.call(leader, Sysno::memfd_create, args).accept(Accept::Exactly(0)).note(note);
        let call = program.call(leader, Sysno::pwrite64, args![0, bytes, len, 0]);
        call.accept(Accept::Exactly(len)).note(note);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let call =
            program.call(leader, Sysno::mmap, args![vma.start, vma.length(), READ_WRITE, flags, -1, 0]);
        call.accept(Accept::Exactly(vma.start)).note(note);
        let part = program.words(&[vma.start, len]);
        let call = program.call(leader, Sysno::preadv, args![0, part, 1, 0, 0]);
        call.accept(Accept::Exactly(len)).note(note);
        program.call(leader, Sysno::close, args![0]);
        let args = args![vma.start, vma.length(), vma.protection];
        program.call(leader, Sysno::mprotect, args).note(note);
    }

    fn refuse(&self, kind: Backing, reason: &str) -> RestoreError {
        RestoreError::Unsupported {
            pid: self.process.pid,
            object: format!("{kind:?}"),
            reason: format!("{reason}; resume under the kernel of the capture"),
        }
    }
}

fn of_kind<'a>(kernels: &'a [&'a Vma], kind: Backing) -> impl Iterator<Item = &'a Vma> {
    kernels.iter().copied().filter(move |vma| vma.backing() == kind)
}
