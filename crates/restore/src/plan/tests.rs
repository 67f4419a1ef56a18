//! Plans without any process: the listing of a sample image, and on random address spaces the model that holds that a program never
//! touches memory it has given away or not yet made.

use proptest::prelude::*;
use rewake_image::births::model;
use rewake_image::records::{Extent, Process, SharedMemory, Vma, vma::Backing};
use rewake_image::{Births, Image, hostile, sample};
use rewake_linux::addr::RemoteAddr;
use rewake_linux::program::{Accept, Action, Call, Program, Sysno};

use super::sample::{STAGE, site_for};
use super::{Plan, Site, check, plan};
use crate::vdso::tests as vdso;

const PAGE: u64 = 4096;

/// The site of a host whose special mappings are as large as the sample's.
fn sample_site(image: &Image) -> Site {
    let mut site = Site::sample();
    let memory = image.processes[0].memory.as_ref().expect("memory");
    site.specials.retain_mut(|special| match memory.vmas.iter().find(|vma| vma.backing() == special.kind) {
        Some(vma) => {
            special.len = vma.end - vma.start;
            true
        }
        None => false,
    });
    site
}

#[test]
fn the_sample_image_is_planned_as_it_was() {
    let image = sample::image();
    let site = sample_site(&image);
    let plan = plan(&image, &site).expect("a plan");
    assert_eq!(check::check(&plan, &site), Ok(()));
    insta::assert_snapshot!(plan.program.listing());
}

/// Whoever may move folders meanwhile must not lead the program elsewhere.
#[test]
fn what_is_made_for_a_moment_is_one_name_in_a_folder_that_is_open() {
    let image = sample::everything();
    let site = site_for(&image).expect("a site");
    let plan = plan(&image, &site).expect("a plan");
    let calls = plan.program.tracks().iter().flat_map(|track| &track.calls);
    let makes = [Sysno::mkdirat, Sysno::mknodat, Sysno::unlinkat];
    // What comes into a file system of its own is found by nobody.
    let is_private = |call: &&Call| plan.program.line(call).contains("(-100, ");
    let of_made = calls.filter(|call| !is_private(call)).filter(|call| match call.action {
        Action::Call(nr) => makes.contains(&nr) || nr == Sysno::openat && is_made(&plan, &call.note),
        _ => false,
    });
    let lines: Vec<String> = of_made.map(|call| plan.program.line(call)).collect();
    // Three removed ones and two folders around them: made, opened, removed; and what is left of a socket.
    assert_eq!(lines.len(), 16, "{lines:#?}");
    for line in lines {
        let (_, args) = line.split_once('(').expect("arguments");
        let mut args = args.split(", ");
        let folder: i32 = args.next().and_then(|arg| arg.parse().ok()).expect("a descriptor");
        assert!(folder >= site.first_folder(), "{line}");
        assert!(args.next().is_some_and(|name| !name.contains('/')), "{line}");
    }
}

fn is_made(plan: &Plan, note: &str) -> bool {
    plan.made.iter().any(|made| made.path == note.as_bytes())
}

#[test]
fn an_image_with_everything_has_a_plan() {
    let plan = Plan::sample(&sample::everything()).expect("no refusal").expect("all rules kept");
    assert!(plan.program.assembled_size() > 0);
}

#[test]
fn a_vdso_of_another_size_is_refused_by_name() {
    let image = sample::image();
    let mut site = sample_site(&image);
    site.specials[0].len += PAGE;
    let error = plan(&image, &site).expect_err("another kernel's");
    assert!(error.to_string().contains("another size"), "{error}");
}

#[test]
fn the_vdso_of_another_kernel_leads_to_this_ones() {
    let mut image = sample::image();
    let own = vdso::own();
    let memory = image.processes[0].memory.as_mut().expect("memory");
    let at = memory.vmas.iter_mut().find(|vma| vma.backing() == Backing::Vdso).expect("a vdso");
    at.end = at.start + u64::try_from(own.len()).expect("a few pages");
    let old = at.start;
    memory.vdso = own.clone();
    // This kernel has no second data page, and more of the first.
    let mut site = Site { vdso: Some(own), ..Site::sample() };
    site.specials.remove(1);
    site.specials[1].start = site.specials[0].start + site.specials[0].len;
    let plan = planned(&image, &mut site);
    assert_eq!(check::check(&plan, &site), Ok(()));
    let listing = plan.program.listing();
    assert!(listing.contains("Vdso of this kernel") && listing.contains(&format!("{old:#x}")), "{listing}");
    image.processes[0].memory.as_mut().expect("memory").vdso.clear();
    let error = super::plan(&image, &site).expect_err("the old one's content is missing");
    assert!(error.to_string().contains("does not hold its own"), "{error}");
}

/// A random mapping: gap before it and length in pages, protection, kind, and which of its pages have content.
type Shape = (u64, u64, u32, u8, Vec<bool>);

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let content = prop::collection::vec(any::<bool>(), 1..40);
    prop::collection::vec((0..40u64, 1..40u64, 0..8u32, 0..5u8, content), 1..30)
}

/// An image whose mappings have these shapes, one behind the other.
fn image(shapes: &[Shape]) -> Image {
    let mut image = sample::image();
    let memory = image.processes[0].memory.as_mut().expect("memory");
    memory.vmas.clear();
    memory.pages.clear();
    image.shared_memory.clear();
    let (mut at, mut stream) = (0x1_0000_0000, 0);
    for (gap, pages, protection, kind, content) in shapes {
        let start = at + gap * PAGE;
        let end = start + pages * PAGE;
        at = end;
        let mut vma = Vma { start, end, protection: *protection, ..Vma::default() };
        match kind {
            0 | 1 => vma.grows_down = *kind == 1,
            2 => vma.backing = Backing::File.into(),
            3 => (vma.backing, vma.shared) = (Backing::File.into(), true),
            _ => {
                let id = u32::try_from(image.shared_memory.len()).expect("few") + 1;
                (vma.backing, vma.shared, vma.object) = (Backing::SharedMemory.into(), true, id);
                let length = pages * PAGE;
                let pages = vec![Extent { address: 0, length, stream_offset: stream }];
                stream += length;
                image.shared_memory.push(SharedMemory { id, size: length, pages, ..SharedMemory::default() });
            }
        }
        if !vma.shared {
            for (page, _) in (0..*pages).zip(content).filter(|(_, has)| **has) {
                memory.pages.push(Extent {
                    address: start + page * PAGE,
                    length: PAGE,
                    stream_offset: stream,
                });
                stream += PAGE;
            }
        }
        memory.vmas.push(vma);
    }
    // Registrations of the sample's threads point into mappings that are not there.
    for thread in &mut image.processes[0].threads {
        thread.rseq = None;
    }
    image
}

fn planned(image: &Image, site: &mut Site) -> Plan {
    let len = plan(image, site).expect("a plan").program.assembled_size();
    (site.stage_len, site.aside) = (len, RemoteAddr::new(STAGE + len));
    plan(image, site).expect("a plan")
}

/// All of them read something, nothing twice, and the leader looks whether each of them did.
#[test]
fn large_memory_is_filled_by_several_hands() {
    const LENGTH: u64 = 256 << 20;
    let mut image = image(&[(0, LENGTH / PAGE, 1, 0, Vec::new())]);
    let memory = image.processes[0].memory.as_mut().expect("memory");
    memory.pages = vec![Extent { address: memory.vmas[0].start, length: LENGTH, stream_offset: 0 }];
    for own in [false, true] {
        let mut site = Site { own, ..Site::sample() };
        let plan = planned(&image, &mut site);
        assert_eq!(check::check(&plan, &site), Ok(()));
        let reads = |call: &&Call| call.action == Action::Call(Sysno::preadv);
        let bytes = |call: &Call| match call.accept {
            Accept::Exactly(bytes) => bytes,
            _ => 0,
        };
        let tracks = plan.program.tracks().iter();
        let read: Vec<u64> = tracks
            .map(|track| track.calls.iter().filter(reads).map(bytes).sum())
            .filter(|bytes| *bytes != 0)
            .collect();
        assert_eq!((read.len(), read.iter().sum()), (1 + site.hands, LENGTH), "{read:?}");
        let looks = plan.program.listing().matches("the work of a helper").count();
        assert_eq!(looks, site.hands);
    }
}

proptest! {
    #[test]
    fn memory_is_made_before_it_is_touched_and_never_after_it_is_given_away(shapes in shapes()) {
        let mut site = Site::sample();
        let plan = planned(&image(&shapes), &mut site);
        prop_assert_eq!(check::check(&plan, &site), Ok(()));
    }

    /// The model is worth something: without any one of the entries that make memory it objects, if the memory is used.
    #[test]
    fn the_model_objects_when_an_entry_is_missing(shapes in shapes(), pick in any::<prop::sample::Index>()) {
        let mut site = Site::sample();
        let image = image(&shapes);
        let filled = !image.processes[0].memory.as_ref().expect("memory").pages.is_empty();
        prop_assume!(filled);
        let plan = planned(&image, &mut site);
        let leader = &plan.program.tracks()[0];
        let used = |at: &usize| {
            let call = &leader.calls[*at];
            let next = leader.calls[at + 1..].iter().any(|later| later.note == call.note && later.action != call.action);
            call.action == rewake_linux::program::Action::Call(Sysno::mmap) && next
        };
        let makers: Vec<usize> = (0..leader.calls.len()).filter(used).collect();
        prop_assume!(!makers.is_empty());
        let broken = plan_without(&plan, makers[pick.index(makers.len())]);
        prop_assert!(check::check(&broken, &site).is_err());
    }
}

/// An image of everything with fields changed at random: whatever makes sense is planned by the rules, or refused.
fn hostile_images() -> impl Strategy<Value = Image> {
    (prop::collection::vec(any::<u64>(), 1..4), any::<bool>()).prop_map(|(seeds, everything)| {
        let mut image = if everything { sample::everything() } else { sample::image() };
        for seed in seeds {
            let changed = hostile::mutate(&image.encode().expect("it makes sense"), seed);
            if let Ok(changed) = Image::decode(&changed) {
                image = changed;
            }
        }
        image
    })
}

proptest! {
    #[test]
    fn hostile_images_are_planned_by_the_rules_or_refused(image in hostile_images()) {
        if let Some(plan) = Plan::sample(&image) {
            plan.map_err(TestCaseError::fail)?;
        }
    }
}

/// The sample's process, once for each of a tree that chance made.
fn family(seed: u64, rare: bool) -> Image {
    let mut image = sample::image();
    let mut template = image.processes[0].clone();
    template.threads.truncate(1);
    let tree = model::history(seed, rare).into_iter();
    image.processes = tree
        .map(|one| {
            if one.exit_status.is_some() {
                return one;
            }
            let mut process = Process {
                pid: one.pid,
                ppid: one.ppid,
                pgid: one.pgid,
                sid: one.sid,
                exit_signal: one.exit_signal,
                outside_group: one.outside_group,
                outside_session: one.outside_session,
                child_subreaper: one.child_subreaper,
                memory_of: one.memory_of,
                descriptors_of: one.descriptors_of,
                folders_of: one.folders_of,
                actions_of: one.actions_of,
                locks: Vec::new(),
                ..template.clone()
            };
            process.threads[0].tid = one.pid;
            if one.memory_of.is_some() {
                process.memory = None;
            }
            if one.descriptors_of.is_some() {
                process.descriptors.clear();
            }
            if one.actions_of.is_some() {
                process.actions.clear();
            }
            process
        })
        .collect();
    image.manifest.root_pid = image.processes[0].pid;
    image
}

/// No image is written that cannot be woken: whether its processes can be made is what the check asks, and all that it lets through
/// have a plan.
#[test]
fn trees_are_refused_by_the_check_and_never_by_the_plan() {
    let mut refused = 0;
    for seed in 0..120 {
        let image = family(seed, seed % 2 == 1);
        let checked = image.check();
        assert_eq!(checked.is_ok(), Births::plan(&image.processes).is_ok(), "seed {seed}: {checked:?}");
        match (checked, Plan::sample(&image)) {
            (Ok(()), Some(Ok(_))) => {}
            (Err(_), None) => refused += 1,
            (checked, planned) => {
                panic!("seed {seed}: {checked:?}, but {:?}", planned.map(|one| one.map(drop)))
            }
        }
    }
    assert!(refused < 30, "{refused} are refused");
}

/// The same plan without one entry of the leader.
fn plan_without(plan: &Plan, index: usize) -> Plan {
    let mut broken = plan.clone();
    broken.program.remove(broken.leader, index);
    broken
}

fn check_calls(
    build: impl FnOnce(&mut Program, rewake_linux::program::TrackRef),
) -> Result<(), check::Violation> {
    let image = image(&[]);
    let site = Site::sample();
    let mut plan = plan(&image, &site).expect("a plan");
    build(&mut plan.program, plan.leader);
    check::check(&plan, &site)
}

#[test]
fn the_model_knows_the_rules() {
    let reason = |result: Result<(), check::Violation>| result.expect_err("against the rules").reason;
    let unmap = check_calls(|program, leader| {
        program.call(leader, Sysno::munmap, args![STAGE + PAGE, PAGE]);
    });
    assert_eq!(reason(unmap), "unmaps what it runs from");
    let replace = check_calls(|program, leader| {
        program.call(leader, Sysno::mmap, args![PAGE, PAGE, 3, libc::MAP_FIXED | libc::MAP_PRIVATE, -1, 0]);
    });
    assert_eq!(reason(replace), "might replace a mapping");
    let over = check_calls(|program, leader| {
        let flags = libc::MAP_FIXED_NOREPLACE | libc::MAP_PRIVATE;
        program.call(leader, Sysno::mmap, args![STAGE, PAGE, 3, flags, -1, 0]);
    });
    assert_eq!(reason(over), "maps over a mapping");
    let nowhere = check_calls(|program, leader| {
        let parts = program.words(&[0x1000, PAGE]);
        program.call(leader, Sysno::preadv, args![3, parts, 1, 0, 0]);
    });
    assert!(reason(nowhere).contains("not there to be written"));
    let read_only = check_calls(|program, leader| {
        let flags = libc::MAP_FIXED_NOREPLACE | libc::MAP_PRIVATE;
        program.call(leader, Sysno::mmap, args![0x1_0000, PAGE, 1, flags, -1, 0]);
        let parts = program.words(&[0x1_0000, PAGE]);
        program.call(leader, Sysno::preadv, args![3, parts, 1, 0, 0]);
    });
    assert!(reason(read_only).contains("not there to be written"));
}

#[test]
fn a_seed_must_not_keep_its_own_memory() {
    let image = image(&[]);
    let mut site = Site::sample();
    let plan = planned(&image, &mut site);
    let unmap =
        plan.program.tracks()[0].calls.iter().position(|call| call.note.starts_with("all from 0x0 to "));
    let broken = plan_without(&plan, unmap.expect("the entry"));
    let violation = check::check(&broken, &site).expect_err("the seed's memory is left");
    assert!(violation.reason.contains("seed"), "{violation}");
}

#[test]
fn nothing_is_done_to_sealed_memory_and_nothing_is_filled_behind_a_guard() {
    let map = |program: &mut Program, leader| {
        let flags = libc::MAP_FIXED_NOREPLACE | libc::MAP_PRIVATE;
        program.call(leader, Sysno::mmap, args![0x1_0000, 4 * PAGE, 3, flags, -1, 0]);
    };
    let reason = |result: Result<(), check::Violation>| result.expect_err("against the rules").reason;
    let guarded = check_calls(|program, leader| {
        map(program, leader);
        program.call(leader, Sysno::madvise, args![0x1_0000 + PAGE, PAGE, 102]);
        let parts = program.words(&[0x1_0000, 2 * PAGE]);
        program.call(leader, Sysno::preadv, args![3, parts, 1, 0, 0]);
    });
    assert!(reason(guarded).contains("not there to be written"));
    for call in [Sysno::munmap, Sysno::mprotect, Sysno::madvise] {
        let sealed = check_calls(|program, leader| {
            map(program, leader);
            program.call(leader, Sysno::mseal, args![0x1_0000 + PAGE, PAGE, 0]);
            program.call(leader, call, args![0x1_0000, 2 * PAGE, 0]);
        });
        assert!(reason(sealed).contains("changes sealed memory"), "{call:?}");
    }
}

#[test]
fn what_mappings_are_beside_their_content_is_planned_in_order() {
    let mut image = sample::image();
    let memory = image.processes[0].memory.as_mut().expect("memory");
    let vma = memory.vmas.iter_mut().find(|vma| vma.backing() == Backing::Anonymous).expect("one");
    (vma.sealed, vma.memory_policy, vma.memory_policy_nodes) = (true, 2, vec![1]);
    vma.guards = vec![Extent { address: vma.end - PAGE, length: PAGE, stream_offset: 0 }];
    let site = sample_site(&image);
    let plan = plan(&image, &site).expect("a plan");
    assert_eq!(check::check(&plan, &site), Ok(()));
    let listing = plan.program.listing();
    let places = ["mbind(", "in 4 parts", "guard at", "mseal("].map(|what| listing.find(what).expect(what));
    assert!(places.is_sorted(), "{listing}");
}

#[test]
fn contexts_of_asynchronous_io_are_made_moved_and_filled_in_their_place() {
    let image = sample::everything();
    let ring = image.processes[0].aio_contexts[0].address;
    let plan = Plan::sample(&image).expect("not refused").expect("by the rules");
    let listing = plan.program.listing();
    let lines: Vec<&str> = listing.lines().collect();
    let place = |what: String| lines.iter().position(|line| line.contains(&what)).expect(&what);
    let places = [
        place(format!("mmap({ring:#x}, 4096, 0")),
        place("io_setup(1, ".to_owned()),
        place(format!("munmap({ring:#x}")),
        place("mremap(*&[".to_owned()),
        place(format!("io_getevents({ring:#x}, 31, 31")),
        place(format!("io_submit({ring:#x}, 2")),
        place(format!("# events, context {ring:#x}")),
    ];
    assert!(places.is_sorted(), "{listing}");
    assert!(lines[place(format!("# events, context {ring:#x}"))].contains(", 2, 0, 0) = 64"), "{listing}");
}
