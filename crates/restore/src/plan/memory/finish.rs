//! What makes mappings what they were beside their content: policy and advice before they are filled, guards, protection and locks
//! afterwards, seals at the very end.

use rewake_image::records::{AddressSpace, Vma, vma::Backing};
use rewake_linux::program::{Accept, Sysno, Value};

use super::super::{Planner, args};
use super::{READ_WRITE, describe, is_filled};

const MLOCK_ONFAULT: i32 = 1;
/// MADV_DONTFORK and MADV_WIPEONFORK.
const ABOUT_CHILDREN: [u32; 2] = [10, 18];
const MADV_GUARD_INSTALL: i32 = 102;
/// "Where the thread runs": what a kernel without policies does as well.
const MPOL_LOCAL: u32 = 4;
const PR_SET_VMA: i32 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: i32 = 0;

impl Planner<'_> {
    /// Gives the pages that will be filled their nodes: those of a mapping that lies at `start` for now.
    pub(super) fn policy(&mut self, vma: &Vma, start: u64) {
        if vma.memory_policy == 0 {
            return;
        }
        let (nodes, bits) = if vma.memory_policy_nodes.is_empty() {
            (Value::from(0), 0)
        } else {
            let mut bytes = vma.memory_policy_nodes.clone();
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            // The kernel counts one more than there are.
            let bits = u64::try_from(bytes.len() * 8 + 1).expect("checked");
            (self.program.bytes(&bytes).into(), bits)
        };
        let args = args![start, vma.end - vma.start, vma.memory_policy, nodes, bits, 0];
        let missing = vma.memory_policy == MPOL_LOCAL;
        let accept = if missing { Accept::SuccessOr(libc::ENOSYS) } else { Accept::Success };
        let call = self.program.call(self.leader, Sysno::mbind, args).accept(accept);
        call.note(format!("memory policy, {}", describe(vma)));
    }

    /// Advice and name; what is about children when all are born, the rest before anything is filled.
    pub(super) fn advise(&mut self, vma: &Vma, about_children: bool) {
        let len = vma.end - vma.start;
        for advice in vma.advice.iter().filter(|advice| ABOUT_CHILDREN.contains(advice) == about_children) {
            let call = self.program.call(self.leader, Sysno::madvise, args![vma.start, len, *advice]);
            // What a kernel was built without it calls invalid; the program's memory is the same.
            call.accept(Accept::SuccessOr(libc::EINVAL)).note(format!("advice, {}", describe(vma)));
        }
        if !vma.name.is_empty() && !about_children {
            let name = self.program.string(&vma.name);
            let args = args![PR_SET_VMA, PR_SET_VMA_ANON_NAME, vma.start, len, name];
            self.program
                .call(self.leader, Sysno::prctl, args)
                .accept(Accept::SuccessOr(libc::EINVAL))
                .note("name");
        }
    }

    /// Guard regions: behind them nothing is filled any more.
    pub(super) fn guards(&mut self, memory: &AddressSpace) {
        for vma in &memory.vmas {
            for guard in &vma.guards {
                let args = args![guard.address, guard.length, MADV_GUARD_INSTALL];
                let call = self.program.call(self.leader, Sysno::madvise, args);
                call.note(format!("guard at {:#x}, {}", guard.address, describe(vma)));
            }
        }
    }

    pub(super) fn protect(&mut self, memory: &AddressSpace) {
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
                // Where there is no access there is nothing to bring in, but the mapping is marked as locked.
                let closed = vma.protection == 0 || !vma.guards.is_empty();
                let accept = if closed { Accept::SuccessOr(libc::ENOMEM) } else { Accept::Success };
                call.accept(accept).note(format!("lock, {}", describe(vma)));
            }
        }
    }

    /// After this nothing is done to a sealed mapping any more, in this program or after it.
    pub(in crate::plan) fn seal(&mut self) {
        for vma in self.process.memory.iter().flat_map(|memory| &memory.vmas) {
            let kernels = matches!(vma.backing(), Backing::Vdso | Backing::Vvar | Backing::VvarVclock);
            if vma.sealed && !kernels {
                let args = args![vma.start, vma.end - vma.start, 0];
                let call = self.program.call(self.leader, Sysno::mseal, args);
                call.note(format!("seal, {}", describe(vma)));
            }
        }
    }
}
