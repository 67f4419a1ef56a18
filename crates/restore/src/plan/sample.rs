//! A host to plan for without one, for tests and fuzz targets.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use rewake_image::Image;
use rewake_image::records::vma::Backing;
use rewake_linux::addr::RemoteAddr;
use rewake_linux::seed::OwnRseq;

use crate::credentials::Identity;
use crate::ipc::Origin;
use crate::removed::{Place, Places};
use crate::sockets::{Place as SocketPlace, Sockets, Stale};

use super::{Plan, Site, Special, check, free_gap, plan};

const PAGE: u64 = rewake_linux::addr::PAGE_SIZE;
/// Where images that are made up have no mappings.
pub(super) const STAGE: u64 = 0x4000_0000_0000;

impl Site {
    /// A host with everything, and a stage of 16 pages in the middle of the address space.
    #[must_use]
    pub fn sample() -> Self {
        let special = |kind, start, pages| Special { kind, start: RemoteAddr::new(start), len: pages * PAGE };
        Self {
            stage: RemoteAddr::new(STAGE),
            stage_len: 16 * PAGE,
            aside: RemoteAddr::new(STAGE + 16 * PAGE),
            specials: vec![
                special(Backing::Vvar, 0x7fff_0000_0000, 4),
                special(Backing::VvarVclock, 0x7fff_0000_4000, 2),
                special(Backing::Vdso, 0x7fff_0000_6000, 2),
            ],
            vdso: None,
            fd_base: 64,
            parent: 100,
            limits: vec![(1024, u64::MAX); 16],
            rseq: Some(OwnRseq { address: RemoteAddr::new(0x7ffe_0000_0000), signature: 0x5305_3053 }),
            identity: Identity { uids: [1000; 4], gids: [1000; 4], ..Identity::default() },
            inside: false,
            new_session: false,
            timer_ids: true,
            hands: 2,
            same_boot: true,
            own_group: Some(3_999_999),
            spare_ids: (4_000_000..4_000_064).collect(),
            clocks: BTreeMap::from([(libc::CLOCK_MONOTONIC, 1_000_000_000_000)]),
            prepared: BTreeMap::new(),
            streams: BTreeMap::new(),
            removed: Places::default(),
            sockets: Sockets::default(),
            login_uid: Some(u32::MAX),
            ipc: Origin::default(),
            own: false,
        }
    }
}

impl Plan {
    /// Plans as `resume` does, for a host that has what the image needs: twice, for size and place, then checked by the model. `None` for
    /// an image that is refused, else whether all rules were kept.
    #[must_use]
    pub fn sample(image: &Image) -> Option<Result<Self, String>> {
        let mut site = site_for(image)?;
        let first = plan(image, &site).ok()?;
        let length = first.program.assembled_size();
        let vmas = image.memories().flat_map(|memory| &memory.vmas);
        let taken = vmas.map(|vma| (vma.start, vma.end)).collect();
        let aside: u64 = site.specials.iter().map(|special| special.len).sum();
        let stage = free_gap(taken, length + aside)?;
        (site.stage, site.stage_len) = (RemoteAddr::new(stage), length);
        site.aside = RemoteAddr::new(stage + length);
        Some(placed(image, &site, length))
    }
}

fn placed(image: &Image, site: &Site, length: u64) -> Result<Plan, String> {
    let plan = plan(image, site).map_err(|error| format!("planned in one place only: {error}"))?;
    if plan.program.assembled_size() != length {
        return Err("another size in another place".to_owned());
    }
    check::check(&plan, site).map_err(|violation| violation.to_string())?;
    Ok(plan)
}

/// A host whose kernel's own mappings are as large as the image's. `resume` refuses an image that has one of them twice.
pub(super) fn site_for(image: &Image) -> Option<Site> {
    let memory = image.root().memory.as_ref()?;
    let mut site = Site::sample();
    let numbers = image.processes.iter().filter_map(|process| process.descriptors.last());
    let highest = numbers.map(|descriptor| descriptor.fd).max().unwrap_or(0);
    site.fd_base = site.fd_base.max(highest.checked_add(1)?);
    let mut specials = Vec::new();
    for special in &site.specials {
        let mut same = memory.vmas.iter().filter(|vma| vma.backing() == special.kind);
        let Some(vma) = same.next() else { continue };
        // Nobody's are larger.
        if same.next().is_some() || vma.length() > 64 * PAGE {
            return None;
        }
        specials.push(Special { len: vma.length(), ..*special });
    }
    site.specials = specials;
    // Another kernel's is as likely as any.
    site.vdso = Some(memory.vdso.clone()).filter(|vdso| !vdso.is_empty());
    // What `resume` prepares: contents of files, each at a descriptor.
    site.prepared =
        image.file_contents.iter().map(|content| content.id).zip(site.first_prepared()..).collect();
    // Of every second socket something is left.
    let left =
        |id: u32| id.is_multiple_of(2).then_some(Stale { mode: 0o755, uid: 0, gid: 0, times: [(0, 0); 2] });
    let named = image.unix_names.iter().filter(|name| name.file.is_some());
    site.sockets.places = named
        .map(|name| (name.id, SocketPlace::Real { folder: 0, before: None, stale: left(name.id) }))
        .collect();
    let folder = File::open("/").ok()?;
    site.removed.folders = vec![Arc::new(folder.into())];
    for file in &image.removed_files {
        let around = file.parent.and_then(|parent| site.removed.by_id.get(&parent));
        let mut names = around.map_or_else(|| vec![b"around".to_vec()], |folder| folder.names.clone());
        names.push(file.id.to_string().into_bytes());
        let path = [b"/".as_slice(), &names.join(&b'/')].concat();
        site.removed.by_id.insert(file.id, Place { path, outside: 0, names });
    }
    Some(site)
}
