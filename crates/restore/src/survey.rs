//! What a plan has to know of the process that will run it: this one, since the seed is its clone.

use std::io;

use rewake_image::Image;
use rewake_image::records::vma::Backing;
use rewake_linux::addr::RemoteAddr;
use rewake_linux::proc::{MappingKind, Proc, ProcError};
use rewake_linux::seed;

use crate::Options;
use crate::error::RestoreError;
use crate::plan::{Plan, Site, Special, check, free_gap, plan};

/// Descriptors below this are left to the image and to ourselves in any case.
const LOWEST_FD_BASE: i32 = 64;
/// Far above what any kernel's fs.nr_open allows in practice, and far from the end of the numbers.
const HIGHEST_FD: i32 = 1 << 28;

/// Plans the image's restore for a seed cloned from this process, and checks the plan.
///
/// # Errors
/// What cannot be planned, by name.
pub fn plan_here(image: &Image, options: &Options) -> Result<(Plan, Site), RestoreError> {
    let mut site = survey(image, options)?;
    // A first time for the size, a second time with the place.
    let len = plan(image, &site)?.program.assembled_size();
    let own = Proc::own().and_then(|own| own.maps()).map_err(|source| proc_error(image, source))?;
    let memory = image.process.memory.iter().flat_map(|memory| &memory.vmas);
    let taken = own.iter().map(|mapping| (mapping.start.get(), mapping.end.get()));
    let taken = taken.chain(memory.map(|vma| (vma.start, vma.end))).collect();
    let aside: u64 = site.specials.iter().map(|special| special.len).sum();
    let stage = free_gap(taken, len + aside).ok_or_else(|| RestoreError::Unsupported {
        pid: image.process.pid,
        object: "memory".into(),
        reason: format!("no free address range of {len} bytes for the program of the restore"),
    })?;
    (site.stage, site.stage_len, site.aside) = (RemoteAddr::new(stage), len, RemoteAddr::new(stage + len));
    let plan = plan(image, &site)?;
    assert!(plan.program.assembled_size() == len, "a plan's size does not depend on its place");
    check::check(&plan, &site).map_err(|violation| RestoreError::Unsupported {
        pid: image.process.pid,
        object: "plan".into(),
        reason: violation.to_string(),
    })?;
    Ok((plan, site))
}

fn survey(image: &Image, options: &Options) -> Result<Site, RestoreError> {
    let own = Proc::own().map_err(|source| proc_error(image, source))?;
    let maps = own.maps().map_err(|source| proc_error(image, source))?;
    let specials = maps.iter().filter_map(|mapping| {
        let kind = match mapping.kind() {
            MappingKind::Vdso => Backing::Vdso,
            MappingKind::Vvar => Backing::Vvar,
            MappingKind::VvarVclock => Backing::VvarVclock,
            _ => return None,
        };
        Some(Special { kind, start: mapping.start, len: mapping.end.get() - mapping.start.get() })
    });
    let specials = specials.collect();
    let limits = own.limits().map_err(|source| proc_error(image, source))?;
    let own_fds = own.fd_numbers().map_err(|source| proc_error(image, source))?;
    let fds = image.process.descriptors.iter().map(|descriptor| descriptor.fd).chain(own_fds);
    let highest = fds.max().unwrap_or(0);
    if highest >= HIGHEST_FD {
        return Err(RestoreError::Unsupported {
            pid: image.process.pid,
            object: format!("descriptor {highest}"),
            reason: format!("no process has descriptors of {HIGHEST_FD} and above"),
        });
    }
    let fd_base = (highest + 1).max(LOWEST_FD_BASE);
    Ok(Site {
        stage: RemoteAddr::new(1 << 32),
        stage_len: 4096,
        aside: RemoteAddr::new((1 << 32) + 4096),
        specials,
        fd_base,
        parent: i32::try_from(std::process::id()).unwrap_or_default(),
        limits: limits.iter().map(|limit| (limit.soft, limit.hard)).collect(),
        rseq: seed::own_rseq(),
        new_session: options.new_session,
    })
}

fn proc_error(image: &Image, source: ProcError) -> RestoreError {
    RestoreError::System {
        operation: "survey",
        pid: image.process.pid,
        object: "resume itself".into(),
        source: io::Error::other(source),
    }
}
