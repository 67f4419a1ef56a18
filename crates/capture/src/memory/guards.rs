//! Guard regions (`MADV_GUARD_INSTALL`): they look like memory, hold nothing, and cannot be read.

use rewake_image::records::{Extent, Vma, vma};
use rewake_linux::addr::RemoteAddr;
use rewake_linux::pagemap::{PageMap, Query, Run};
use rewake_linux::proc::Proc;

use crate::error::{During, Result};

/// Notes the guard regions of every mapping. Kernels that cannot tell have none (before 6.13), or show them as pages that are
/// swapped out (before 6.15), and then reading them fails by name.
///
/// # Errors
/// When the kernel does not let us ask.
pub(super) fn note(proc: &Proc, vmas: &mut [Vma]) -> Result<()> {
    let pid = proc.id();
    let (Some(first), Some(last)) = (vmas.first(), vmas.last()) else { return Ok(()) };
    let range = RemoteAddr::new(first.start)..RemoteAddr::new(last.end);
    let mut map = PageMap::of(proc).during("open", pid, "pagemap")?;
    if !map.knows_guards() {
        return Ok(());
    }
    let runs = map.scan(range, Query::GUARD).during("scan pages", pid, "guard regions")?;
    cut(&runs, vmas);
    Ok(())
}

/// Gives each mapping its own part of the runs; both are in order of address.
fn cut(runs: &[Run], vmas: &mut [Vma]) {
    let kernels = [vma::Backing::Vdso, vma::Backing::Vvar, vma::Backing::VvarVclock].map(i32::from);
    for vma in vmas.iter_mut().filter(|vma| !kernels.contains(&vma.backing)) {
        let first = runs.partition_point(|run| run.end().get() <= vma.start);
        for run in runs[first..].iter().take_while(|run| run.start.get() < vma.end) {
            let start = run.start.get().max(vma.start);
            let length = run.end().get().min(vma.end) - start;
            vma.guards.push(Extent { address: start, length, stream_offset: 0 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_where_mappings_meet() {
        let vma = |start, end| Vma { start, end, ..Vma::default() };
        let run = |start, len| Run { start: RemoteAddr::new(start), len };
        let mut vmas = [vma(0x1000, 0x4000), vma(0x4000, 0x6000), vma(0x8000, 0x9000)];
        cut(&[run(0x1000, 0x1000), run(0x3000, 0x2000), run(0x5000, 0x1000)], &mut vmas);
        let guards = |vma: &Vma| vma.guards.iter().map(|one| (one.address, one.length)).collect::<Vec<_>>();
        assert_eq!(guards(&vmas[0]), [(0x1000, 0x1000), (0x3000, 0x1000)]);
        assert_eq!(guards(&vmas[1]), [(0x4000, 0x1000), (0x5000, 0x1000)]);
        assert_eq!(guards(&vmas[2]), []);
    }
}
