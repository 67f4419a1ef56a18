//! Mappings: from `/proc/PID/smaps` to records, and what of them is read.
//!
//! The same survey serves preflight (for its findings) and the frozen target (for its records).

pub(crate) mod aio;
mod guards;
mod hidden;
mod shared;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use rewake_image::build_id;
use rewake_image::records::{MappedFile, Vma, vma};
use rewake_linux::addr::RemoteAddr;
use rewake_linux::proc::{self, FileStat, Link, Mapping, MappingKind, Proc, VmFlags};
use rewake_linux::twin;
use rustix::fs::OFlags;

use crate::contents::{self, Contents, Source, Way};
use crate::error::{During, Result};
use crate::files::identity;
use crate::findings::Findings;
use crate::ipc;
use crate::pages::Earlier;

pub(crate) use self::shared::{MappedPart, SharedObject};

/// Where content is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing of it belongs to the image.
    None,
    /// Pages that are the process's own.
    Private,
    /// A shared memory object, by its place in [`Memory::shared`].
    Shared(usize),
}

/// The address space of a process.
#[derive(Debug, Default)]
pub(crate) struct Space {
    /// The process.
    pub(crate) pid: i32,
    /// In order of address.
    pub(crate) vmas: Vec<Vma>,
    /// For each mapping, what is read of it.
    pub(crate) contents: Vec<Content>,
    /// The vdso's addresses.
    pub(crate) vdso: Option<(RemoteAddr, u64)>,
    /// Addresses that need not be kept, in order.
    pub(crate) excluded: Vec<Range<u64>>,
}

/// The memory of all processes of the target.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// One for each process that has its own.
    pub(crate) spaces: Vec<Space>,
    /// Mapped files, as [`Vma::object`] counts them.
    pub(crate) files: Vec<MappedFile>,
    /// Shared anonymous memory.
    pub(crate) shared: Vec<SharedObject>,
    /// Places in `files` by path, device and inode.
    known: HashMap<(Vec<u8>, u64, u64), usize>,
    known_objects: shared::Known,
    /// The process whose memory is write-protected for us.
    tracked: Option<i32>,
    /// Mappings shared of files without a name, whose content goes into the image, by device and inode.
    nameless: (shared::Known, Vec<Mapping>),
}

/// Looks at every mapping of the target's processes; `family` are all of them, also those that share their memory with one of these.
/// Writes to the memory of `tracked` are told to us, and its mappings may be known.
///
/// # Errors
/// When the target is gone or may not be looked at; what cannot be captured goes to `findings`.
pub(crate) fn survey(
    procs: &[Proc],
    family: &[i32],
    tracked: Option<&Earlier>,
    contents: &mut Contents,
    findings: &mut Findings,
) -> Result<Memory> {
    let mut memory = Memory { tracked: tracked.map(Earlier::pid), ..Memory::default() };
    for proc in procs {
        findings.turn_to(proc.id());
        let known = tracked.filter(|earlier| earlier.pid() == proc.id());
        let known = known.map(|earlier| earlier.mappings(proc)).transpose()?.flatten();
        let text = match known {
            Some(known) => Cow::Borrowed(known),
            None => proc.read("smaps").during("read smaps", proc.id(), "mappings")?.into(),
        };
        let space = memory.space(proc, &text, contents, findings)?;
        memory.spaces.push(space);
    }
    check_shared(family, &memory, findings);
    Ok(memory)
}

/// Adds the memory policies that the target itself told, by where the mappings begin.
pub(crate) fn add_policies(vmas: &mut [Vma], policies: Vec<Vma>) {
    for policy in policies {
        if let Ok(at) = vmas.binary_search_by_key(&policy.start, |vma| vma.start) {
            vmas[at].memory_policy = policy.memory_policy;
            vmas[at].memory_policy_nodes = policy.memory_policy_nodes;
        }
    }
}

/// Shared anonymous memory that would not come back whole.
fn check_shared(family: &[i32], memory: &Memory, findings: &mut Findings) {
    for object in shared::mapped_elsewhere(family, &memory.known_objects) {
        findings.turn_to(memory.shared[object].pid);
        findings.add(
            name(&memory.shared[object].mapping),
            "another process maps this shared memory too",
            "end the other process first, or capture the program before it starts one",
        );
    }
    for at in shared::mapped_elsewhere(family, &memory.nameless.0) {
        findings.add(
            name(&memory.nameless.1[at]),
            "another process maps this file without a name too",
            "end the other process first, or capture the program before it starts one",
        );
    }
    let parts = memory.mapped_parts();
    // A segment can be attached for a moment.
    let anonymous = memory.shared.iter().filter(|object| object.segment.is_none());
    for object in anonymous.filter(|object| parts.lacks_some(object)) {
        let opened = Proc::open_living(object.pid)
            .and_then(|proc| proc.open_mapped_file(&object.mapping, OFlags::RDONLY));
        if opened.is_err_and(|error| error.is_denied()) {
            let reason = "parts of this shared memory are mapped nowhere, and this user may not read them";
            let remedy = "run the command as root, or with the capability CAP_CHECKPOINT_RESTORE";
            findings.turn_to(object.pid);
            findings.add(name(&object.mapping), reason, remedy);
        }
    }
}

/// Whether a mapping has a protection key that the program gave it; processors without keys have no such lines. Memory that can only be
/// executed has one of the kernel's, and will again.
fn uses_protection_keys(smaps: &[u8]) -> bool {
    const LINE: &[u8] = b"ProtectionKey:";
    const ONLY_EXECUTED: &[u8] = b"--x";
    let first_mapping = &smaps[..smaps.len().min(4096)];
    if !first_mapping.windows(LINE.len()).any(|part| part == LINE) {
        return false;
    }
    let mut kernels = false;
    for line in smaps.split(|byte| *byte == b'\n') {
        if let Some(key) = line.strip_prefix(LINE) {
            if key.trim_ascii() != b"0" && !kernels {
                return true;
            }
        } else if line.first().is_some_and(|first| first.is_ascii_hexdigit() && !first.is_ascii_uppercase()) {
            // The first line of a mapping: only there an address comes first.
            let rights = line.split(|byte| *byte == b' ').nth(1);
            kernels = rights.is_some_and(|rights| rights.starts_with(ONLY_EXECUTED));
        }
    }
    false
}

/// Whether a mapping is no longer there.
fn is_gone(proc: &Proc, mapping: &Mapping) -> bool {
    let same = |other: &Mapping| {
        (other.start, other.end, &other.name) == (mapping.start, mapping.end, &mapping.name)
    };
    proc.maps().is_ok_and(|mappings| !mappings.iter().any(same))
}

type Refusal = (String, &'static str);

const LATER: &str = "capture the program at a time when it does not use this";

/// For messages: `mapping 0x1000-0x2000 /lib/x.so`.
fn name(mapping: &Mapping) -> String {
    let suffix = if mapping.deleted { " (deleted)" } else { "" };
    format!("mapping {}-{} {}{suffix}", mapping.start, mapping.end, String::from_utf8_lossy(&mapping.name))
}

/// Ways to be mapped that are not supported.
fn refused_flags(flags: VmFlags, ours: bool) -> Option<&'static str> {
    const REFUSED: &[(VmFlags, &str)] = &[
        (VmFlags::UFFD_MISSING, "memory served by userfaultfd"),
        (VmFlags::UFFD_WRITE_PROTECT, "memory served by userfaultfd"),
        (VmFlags::UFFD_MINOR, "memory served by userfaultfd"),
        (VmFlags::SHADOW_STACK, "shadow stacks"),
        (VmFlags::SYNC, "synchronous mappings (MAP_SYNC)"),
    ];
    let counts = |flag: VmFlags| !(ours && flag == VmFlags::UFFD_WRITE_PROTECT);
    REFUSED.iter().find(|(flag, _)| flags.contains(*flag) && counts(*flag)).map(|(_, what)| *what)
}

/// Huge pages (hugetlb) of 2 to this power bytes; 0: ordinary ones.
fn huge_page_shift(mapping: &Mapping) -> u32 {
    if mapping.flags.contains(VmFlags::HUGETLB) { mapping.page_size.trailing_zeros() } else { 0 }
}

/// The madvise(2) numbers that bring a mapping's flags back.
fn advice(flags: VmFlags) -> Vec<u32> {
    const ADVICE: &[(VmFlags, i32)] = &[
        (VmFlags::HUGE_PAGE, libc::MADV_HUGEPAGE),
        (VmFlags::NO_HUGE_PAGE, libc::MADV_NOHUGEPAGE),
        (VmFlags::DONT_DUMP, libc::MADV_DONTDUMP),
        (VmFlags::DONT_FORK, libc::MADV_DONTFORK),
        (VmFlags::WIPE_ON_FORK, libc::MADV_WIPEONFORK),
        (VmFlags::MERGEABLE, libc::MADV_MERGEABLE),
        (VmFlags::SEQUENTIAL, libc::MADV_SEQUENTIAL),
        (VmFlags::RANDOM, libc::MADV_RANDOM),
    ];
    ADVICE
        .iter()
        .filter(|(flag, _)| flags.contains(*flag))
        .map(|(_, advice)| advice.cast_unsigned())
        .collect()
}

impl Memory {
    /// Looks at the mappings of one process.
    fn space(
        &mut self,
        proc: &Proc,
        smaps: &[u8],
        contents: &mut Contents,
        findings: &mut Findings,
    ) -> Result<Space> {
        let mut space = Space { pid: proc.id(), ..Space::default() };
        if uses_protection_keys(smaps) {
            findings.add(
                "protection keys",
                "memory with protection keys (pkey_mprotect) is not supported yet",
                LATER,
            );
        }
        for mapping in proc::parse_smaps(smaps).during("read smaps", proc.id(), "mappings")? {
            if mapping.kind() == MappingKind::Vsyscall || twin::hides_mapping(proc.id(), mapping.start.get())
            {
                continue;
            }
            match self.add(&mut space, proc, &mapping, contents) {
                Ok(()) => {}
                // A running target maps and unmaps: preflight looks at what is still there.
                Err(_) if is_gone(proc, &mapping) => {}
                Err((reason, remedy)) => findings.add(name(&mapping), reason, remedy),
            }
        }
        guards::note(proc, &mut space.vmas)?;
        Ok(space)
    }

    /// Adds one mapping.
    fn add(
        &mut self,
        space: &mut Space,
        proc: &Proc,
        mapping: &Mapping,
        contents: &mut Contents,
    ) -> Result<(), Refusal> {
        let flags = mapping.flags;
        if let Some(what) = refused_flags(flags, self.tracked == Some(proc.id())) {
            return Err((format!("{what} are not supported yet"), LATER));
        }
        let (backing, object, content) = self.backing(proc, mapping, contents)?;
        let special = matches!(backing, vma::Backing::Vdso | vma::Backing::Vvar | vma::Backing::VvarVclock);
        let name = match mapping.kind() {
            MappingKind::NamedAnonymous(name) | MappingKind::NamedShared(name) => name.to_vec(),
            _ => Vec::new(),
        };
        if backing == vma::Backing::Vdso {
            space.vdso = Some((mapping.start, mapping.length()));
        }
        space.vmas.push(Vma {
            start: mapping.start.get(),
            end: mapping.end.get(),
            protection: mapping.protection,
            shared: mapping.shared,
            grows_down: flags.contains(VmFlags::GROWS_DOWN),
            backing: backing.into(),
            offset: if backing == vma::Backing::Anonymous { 0 } else { mapping.offset },
            object,
            advice: if special { Vec::new() } else { advice(flags) },
            locked: flags.contains(VmFlags::LOCKED),
            lock_on_fault: flags.contains(VmFlags::LOCK_ON_FAULT),
            no_reserve: flags.contains(VmFlags::NO_RESERVE),
            name,
            huge_page_shift: huge_page_shift(mapping),
            attached_read_only: ipc::segment_of(mapping).is_some() && !flags.contains(VmFlags::MAY_WRITE),
            sealed: flags.contains(VmFlags::SEALED) && !special,
            ..Vma::default()
        });
        // The kernel may drop such pages at any time; and random numbers must not come twice, which is what they are for.
        let content = if flags.contains(VmFlags::DROPPABLE) { Content::None } else { content };
        space.contents.push(content);
        Ok(())
    }

    fn backing(
        &mut self,
        proc: &Proc,
        mapping: &Mapping,
        contents: &mut Contents,
    ) -> Result<(vma::Backing, u32, Content), Refusal> {
        let refuse = |reason: &str| Err((reason.to_owned(), LATER));
        match mapping.kind() {
            MappingKind::Vdso => Ok((vma::Backing::Vdso, 0, Content::None)),
            MappingKind::Vvar => Ok((vma::Backing::Vvar, 0, Content::None)),
            MappingKind::VvarVclock => Ok((vma::Backing::VvarVclock, 0, Content::None)),
            _ if mapping.flags.contains(VmFlags::PFN_MAP) || mapping.flags.contains(VmFlags::IO) => {
                refuse("memory of a device is not supported")
            }
            MappingKind::Anonymous
            | MappingKind::Heap
            | MappingKind::Stack
            | MappingKind::NamedAnonymous(_)
                if !mapping.shared =>
            {
                Ok((vma::Backing::Anonymous, 0, Content::Private))
            }
            MappingKind::File(b"/dev/zero") if !mapping.shared && !mapping.deleted => {
                Ok((vma::Backing::Anonymous, 0, Content::Private))
            }
            // Huge pages without a file have a name of the kernel's.
            MappingKind::File(b"/anon_hugepage") if mapping.deleted && !mapping.shared => {
                Ok((vma::Backing::Anonymous, 0, Content::Private))
            }
            MappingKind::File(b"/anon_hugepage") if mapping.deleted => {
                let at = self.shared_object(proc.id(), mapping, huge_page_shift(mapping));
                Ok((vma::Backing::SharedMemory, self.shared[at].id, Content::Shared(at)))
            }
            MappingKind::SharedAnonymous | MappingKind::NamedShared(_) if mapping.shared => {
                let at = self.shared_object(proc.id(), mapping, 0);
                Ok((vma::Backing::SharedMemory, self.shared[at].id, Content::Shared(at)))
            }
            MappingKind::SystemV(_) => {
                let at = self.shared_object(proc.id(), mapping, huge_page_shift(mapping));
                Ok((vma::Backing::SharedMemory, self.shared[at].id, Content::Shared(at)))
            }
            MappingKind::File(b"/secretmem") if mapping.deleted => {
                refuse("secret memory (memfd_secret) is not supported")
            }
            MappingKind::File(_) | MappingKind::Memfd(_) => self.file(proc, mapping, contents),
            MappingKind::Special(name) if name.starts_with(b"/[aio]") => {
                aio::check(proc, mapping)?;
                Ok((vma::Backing::Aio, 0, Content::None))
            }
            MappingKind::Special(name) if name.starts_with(b"anon_inode:[io_uring]") => {
                refuse("io_uring is not supported yet")
            }
            _ => refuse("memory of this kind is not supported yet"),
        }
    }

    fn file(
        &mut self,
        proc: &Proc,
        mapping: &Mapping,
        contents: &mut Contents,
    ) -> Result<(vma::Backing, u32, Content), Refusal> {
        let content = if mapping.shared { Content::None } else { Content::Private };
        let writes = mapping.shared && mapping.flags.contains(VmFlags::MAY_WRITE);
        let flags = if writes { OFlags::RDWR } else { OFlags::RDONLY }.bits();
        let key = (mapping.name.clone(), mapping.device, mapping.inode);
        if let (Some(&at), false) = (self.known.get(&key), mapping.deleted) {
            // The first mapping that can be written through may make its content one to be kept.
            if writes && self.files[at].flags & flags != flags {
                self.files[at].content = stored(mapping, link(proc, mapping, contents)?, writes, contents)?;
                self.files[at].flags |= flags;
            }
            note_build(&mut self.files[at], mapping);
            return Ok((vma::Backing::File, u32::try_from(at).expect("few files"), content));
        }
        let (link, source) = link(proc, mapping, contents)?;
        if link.stat.file_type() != libc::S_IFREG {
            return Err(("memory of a device is not supported".to_owned(), LATER));
        }
        if matches!(source.way, Way::Shown) {
            hidden::check(mapping)?;
        }
        if mapping.shared && !link.reachable {
            self.nameless.0.insert((mapping.device, mapping.inode), self.nameless.1.len());
            self.nameless.1.push(mapping.clone());
        }
        let identity = identity(&link);
        let stored = stored(mapping, (link, source), writes, contents)?;
        let at = self.files.len();
        self.files.push(MappedFile { identity: Some(identity), flags, content: stored });
        if !mapping.deleted {
            note_build(&mut self.files[at], mapping);
            self.known.insert(key, at);
        }
        Ok((vma::Backing::File, u32::try_from(at).expect("few files"), content))
    }
}

/// Notes of what is mapped to be executed which build it is.
fn note_build(file: &mut MappedFile, mapping: &Mapping) {
    if let Some(identity) = file.identity.as_mut()
        && mapping.protection & libc::PROT_EXEC.cast_unsigned() != 0
        && identity.build_id.is_empty()
    {
        identity.build_id = build_id::of_same(identity.as_path(), (identity.device, identity.inode));
    }
}

/// The id of a mapped file's content, if it goes into the image.
fn stored(
    mapping: &Mapping,
    (link, source): (Link, Source),
    writes: bool,
    contents: &mut Contents,
) -> Result<Option<u32>, Refusal> {
    if let MappingKind::Memfd(name) = mapping.kind() {
        return Ok(Some(contents.memfd(&link, name, source)));
    }
    if link.reachable {
        return Ok(contents.named(&link, source, writes, contents::MAPPED));
    }
    if !link.deleted {
        let reason = "the mapped file cannot be found under its name".to_owned();
        return Err((reason, "make it reachable under that name"));
    }
    if link.stat.links > 0 {
        let reason = "the mapped file lives on under another name (a hard link) that cannot be found";
        return Err((reason.to_owned(), "put a link to it back under its old name: ln OTHER-NAME OLD-NAME"));
    }
    Ok(Some(contents.unlinked(&link, source, writes)))
}

/// The file behind a mapping, by the kernel's own link where that is permitted, else by a descriptor of it or by the name shown; and
/// from what its content is read.
fn link(proc: &Proc, mapping: &Mapping, contents: &Contents) -> Result<(Link, Source), Refusal> {
    let source = || Source::mapping(proc.id(), mapping.clone());
    match proc.mapped_file(mapping) {
        Ok(mut link) => {
            link.find_other_name(&[]);
            return Ok((link, source()));
        }
        Err(error) if error.is_denied() => {}
        Err(error) => return Err((error.to_string(), "try again")),
    }
    if let Some((holder, fd)) = contents.descriptor(mapping.device, mapping.inode)
        && let Ok(link) = Proc::open_living(holder).and_then(|holder| holder.link(&format!("fd/{fd}")))
    {
        return Ok((link, source()));
    }
    if mapping.deleted && !contents.has_unlinked(&mapping.name) {
        return Ok(hidden::link(proc.id(), mapping));
    }
    let unreachable = |_| {
        ("the mapped file cannot be found under its name".to_owned(), "make it reachable under that name")
    };
    let stat = FileStat::from_stat(&rustix::fs::stat(&mapping.name[..]).map_err(unreachable)?);
    let (deleted, reachable) = (mapping.deleted, !mapping.deleted);
    Ok((Link { target: mapping.name.clone(), deleted, reachable, stat }, source()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protection_keys_are_seen() {
        let smaps =
            |key: &str| format!("1000-2000 rw-p 0 00:00 0\nProtectionKey:         {key}\nVmFlags: rd wr\n");
        assert!(!uses_protection_keys(smaps("0").as_bytes()));
        assert!(uses_protection_keys((smaps("0") + &smaps("1")).as_bytes()));
        assert!(!uses_protection_keys(b"1000-2000 rw-p 0 00:00 0\nVmFlags: rd wr\n"));
        let executed = smaps("1").replace("rw-p", "--xp");
        assert!(!uses_protection_keys(executed.as_bytes()));
        assert!(uses_protection_keys((executed + &smaps("1")).as_bytes()));
    }

    #[test]
    fn our_own_memory_is_understood() {
        let proc = Proc::own().unwrap();
        let mut findings = Findings::new(proc.id());
        let own = [proc.id()];
        let memory = survey(&[proc], &own, None, &mut Contents::default(), &mut findings).unwrap();
        assert_eq!(findings.into_obstacles(), []);
        let space = &memory.spaces[0];
        assert_eq!(space.vmas.len(), space.contents.len());
        assert!(space.vmas.is_sorted_by_key(|vma| vma.start));
        assert!(space.vdso.is_some());
        let exe = std::env::current_exe().unwrap();
        let exe = exe.as_os_str().as_encoded_bytes();
        let mine = memory.files.iter().filter(|file| file.identity.as_ref().is_some_and(|it| it.path == exe));
        assert_eq!(mine.count(), 1, "one record for all mappings of a file");
    }
}
