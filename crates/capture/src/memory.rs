//! Mappings: from `/proc/PID/smaps` to records, and what of them is read.
//!
//! The same survey serves preflight (for its findings) and the frozen target (for its records).

use std::collections::HashMap;

use rewake_image::records::{MappedFile, Vma, vma};
use rewake_linux::addr::RemoteAddr;
use rewake_linux::proc::{self, FileStat, Link, Mapping, MappingKind, Proc, VmFlags};
use rustix::fs::OFlags;

use crate::contents::{self, Contents, Source};
use crate::error::{During, Result};
use crate::files::identity;
use crate::findings::Findings;

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

/// A shared anonymous object and where the target maps it.
#[derive(Clone, Debug)]
pub(crate) struct SharedObject {
    /// As the records number it.
    pub(crate) id: u32,
    /// End of the furthest mapping, in bytes of the object.
    pub(crate) mapped_end: u64,
    /// One mapping, to open the object through.
    pub(crate) mapping: Mapping,
    inode: (u64, u64),
}

/// The target's address space.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// In order of address.
    pub(crate) vmas: Vec<Vma>,
    /// For each mapping, what is read of it.
    pub(crate) contents: Vec<Content>,
    /// Mapped files, as [`Vma::object`] counts them.
    pub(crate) files: Vec<MappedFile>,
    /// Shared anonymous memory.
    pub(crate) shared: Vec<SharedObject>,
    /// The vdso's addresses.
    pub(crate) vdso: Option<(RemoteAddr, u64)>,
    /// Places in `files` by path, device and inode.
    known: HashMap<(Vec<u8>, u64, u64), usize>,
}

/// Looks at every mapping of the target.
///
/// # Errors
/// When the target is gone or may not be looked at; what cannot be captured goes to `findings`.
pub(crate) fn survey(proc: &Proc, contents: &mut Contents, findings: &mut Findings) -> Result<Memory> {
    let mut memory = Memory::default();
    let text = proc.read("smaps").during("read smaps", proc.id(), "mappings")?;
    if uses_protection_keys(&text) {
        findings.add(
            "protection keys",
            "memory with protection keys (pkey_mprotect) is not supported yet",
            LATER,
        );
    }
    for mapping in proc::parse_smaps(&text).during("read smaps", proc.id(), "mappings")? {
        if mapping.kind() == MappingKind::Vsyscall {
            continue;
        }
        match memory.add(proc, &mapping, contents) {
            Ok(()) => {}
            // A running target maps and unmaps: preflight looks at what is still there.
            Err(_) if is_gone(proc, &mapping) => {}
            Err((reason, remedy)) => findings.add(name(&mapping), reason, remedy),
        }
    }
    for object in memory.shared.iter().filter(|object| mapped_elsewhere(proc.id(), object.inode)) {
        let reason = "another process maps this shared memory too";
        findings.add(
            name(&object.mapping),
            reason,
            "end the other process first, or capture the program before it starts one",
        );
    }
    for object in &memory.shared {
        let denied =
            || proc.open_mapped_file(&object.mapping, OFlags::RDONLY).is_err_and(|error| error.is_denied());
        if memory.has_unmapped_parts(object) && denied() {
            let reason = "parts of this shared memory are mapped nowhere, and this user may not read them";
            let remedy = "run the command as root, or with the capability CAP_CHECKPOINT_RESTORE";
            findings.add(name(&object.mapping), reason, remedy);
        }
    }
    Ok(memory)
}

/// Mappings with a memory policy of their own. Costs as much as reading smaps: asked before the freeze only.
pub(crate) fn check_policies(proc: &Proc, findings: &mut Findings) {
    // There is no such file in a kernel without NUMA.
    let Ok(text) = proc.read("numa_maps") else { return };
    for (address, policy) in policies(&text) {
        let reason = format!("a memory policy (set_mempolicy or mbind: {policy}) is not supported yet");
        findings.add(format!("mapping {address}"), reason, "run the program without it (without numactl)");
    }
}

/// The first few mappings of `numa_maps` whose policy is not the default, and it.
fn policies(numa_maps: &[u8]) -> Vec<(String, String)> {
    const NAMED: usize = 3;
    let mut found = Vec::new();
    for line in numa_maps.split(|byte| *byte == b'\n') {
        let mut words = line.split(|byte| *byte == b' ').map(String::from_utf8_lossy);
        if let (Some(address), Some(policy)) = (words.next(), words.next())
            && policy != "default"
            // The same as the default of a thread without a policy, and others are refused; OpenBLAS asks for it.
            && policy != "local"
        {
            found.push((address.into_owned(), policy.into_owned()));
        }
        if found.len() == NAMED {
            break;
        }
    }
    found
}

/// Whether a mapping has another protection key than 0; processors without keys have no such lines.
fn uses_protection_keys(smaps: &[u8]) -> bool {
    const LINE: &[u8] = b"ProtectionKey:";
    let first_mapping = &smaps[..smaps.len().min(4096)];
    first_mapping.windows(LINE.len()).any(|part| part == LINE)
        && smaps
            .split(|byte| *byte == b'\n')
            .filter_map(|line| line.strip_prefix(LINE))
            .any(|key| key.trim_ascii() != b"0")
}

/// Whether a mapping is no longer there.
fn is_gone(proc: &Proc, mapping: &Mapping) -> bool {
    let same = |other: &Mapping| {
        (other.start, other.end, &other.name) == (mapping.start, mapping.end, &mapping.name)
    };
    proc.maps().is_ok_and(|mappings| !mappings.iter().any(same))
}

/// Whether another process, as far as we may look, maps a shared memory object.
fn mapped_elsewhere(pid: i32, inode: (u64, u64)) -> bool {
    let others = proc::processes().unwrap_or_default().into_iter().filter(|&other| other != pid);
    others.filter_map(|other| Proc::open(other).and_then(|other| other.maps()).ok()).any(|mappings| {
        mappings.iter().any(|mapping| mapping.shared && (mapping.device, mapping.inode) == inode)
    })
}

type Refusal = (String, &'static str);

const LATER: &str = "capture the program at a time when it does not use this";

/// For messages: `mapping 0x1000-0x2000 /lib/x.so`.
fn name(mapping: &Mapping) -> String {
    let suffix = if mapping.deleted { " (deleted)" } else { "" };
    format!("mapping {}-{} {}{suffix}", mapping.start, mapping.end, String::from_utf8_lossy(&mapping.name))
}

/// Ways to be mapped that are not supported.
fn refused_flags(flags: VmFlags) -> Option<&'static str> {
    const REFUSED: &[(VmFlags, &str)] = &[
        (VmFlags::HUGETLB, "huge pages (hugetlb)"),
        (VmFlags::UFFD_MISSING, "memory served by userfaultfd"),
        (VmFlags::UFFD_WRITE_PROTECT, "memory served by userfaultfd"),
        (VmFlags::UFFD_MINOR, "memory served by userfaultfd"),
        (VmFlags::SEALED, "sealed memory (mseal)"),
        (VmFlags::SHADOW_STACK, "shadow stacks"),
        (VmFlags::SYNC, "synchronous mappings (MAP_SYNC)"),
    ];
    REFUSED.iter().find(|(flag, _)| flags.contains(*flag)).map(|(_, what)| *what)
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
    /// Adds one mapping.
    fn add(&mut self, proc: &Proc, mapping: &Mapping, contents: &mut Contents) -> Result<(), Refusal> {
        let flags = mapping.flags;
        if let Some(what) = refused_flags(flags) {
            return Err((format!("{what} are not supported yet"), LATER));
        }
        let (backing, object, content) = self.backing(proc, mapping, contents)?;
        let special = matches!(backing, vma::Backing::Vdso | vma::Backing::Vvar | vma::Backing::VvarVclock);
        let name = match mapping.kind() {
            MappingKind::NamedAnonymous(name) | MappingKind::NamedShared(name) => name.to_vec(),
            _ => Vec::new(),
        };
        self.vmas.push(Vma {
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
            ..Vma::default()
        });
        // The kernel may drop such pages at any time; and random numbers must not come twice, which is what they are for.
        let content = if flags.contains(VmFlags::DROPPABLE) { Content::None } else { content };
        self.contents.push(content);
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
            MappingKind::Vdso => {
                self.vdso = Some((mapping.start, mapping.length()));
                Ok((vma::Backing::Vdso, 0, Content::None))
            }
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
            MappingKind::SharedAnonymous | MappingKind::NamedShared(_) if mapping.shared => {
                let at = self.shared_object(mapping);
                Ok((vma::Backing::SharedMemory, self.shared[at].id, Content::Shared(at)))
            }
            MappingKind::SystemV(_) => refuse("System V shared memory is not supported yet"),
            MappingKind::File(b"/secretmem") if mapping.deleted => {
                refuse("secret memory (memfd_secret) is not supported")
            }
            MappingKind::File(_) | MappingKind::Memfd(_) => self.file(proc, mapping, contents),
            MappingKind::Special(name) if name.starts_with(b"/[aio]") => {
                refuse("asynchronous I/O contexts (io_setup) are not supported yet")
            }
            MappingKind::Special(name) if name.starts_with(b"anon_inode:[io_uring]") => {
                refuse("io_uring is not supported yet")
            }
            _ => refuse("memory of this kind is not supported yet"),
        }
    }

    fn shared_object(&mut self, mapping: &Mapping) -> usize {
        let inode = (mapping.device, mapping.inode);
        let end = mapping.offset + mapping.length();
        if let Some(at) = self.shared.iter().position(|object| object.inode == inode) {
            self.shared[at].mapped_end = self.shared[at].mapped_end.max(end);
            return at;
        }
        let at = self.shared.len();
        let id = u32::try_from(at).expect("fewer objects than mappings");
        self.shared.push(SharedObject { id, mapped_end: end, mapping: mapping.clone(), inode });
        at
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
            self.files[at].flags |= flags;
            return Ok((vma::Backing::File, u32::try_from(at).expect("few files"), content));
        }
        let link = link(proc, mapping)?;
        if link.stat.file_type() != libc::S_IFREG {
            return Err(("memory of a device is not supported".to_owned(), LATER));
        }
        let stored = stored(mapping, &link, writes, contents)?;
        let at = self.files.len();
        self.files.push(MappedFile { identity: Some(identity(&link)), flags, content: stored });
        if !mapping.deleted {
            self.known.insert(key, at);
        }
        Ok((vma::Backing::File, u32::try_from(at).expect("few files"), content))
    }
}

/// The id of a mapped file's content, if it goes into the image.
fn stored(
    mapping: &Mapping,
    link: &Link,
    writes: bool,
    contents: &mut Contents,
) -> Result<Option<u32>, Refusal> {
    let source = Source::Mapping(mapping.clone());
    if let MappingKind::Memfd(name) = mapping.kind() {
        return Ok(Some(contents.memfd(link, name, source)));
    }
    if link.reachable {
        return Ok(contents.named(link, source, writes, contents::MAPPED));
    }
    if !link.deleted {
        let reason = "the mapped file cannot be found under its name".to_owned();
        return Err((reason, "make it reachable under that name"));
    }
    if link.stat.links > 0 {
        let reason = "the mapped file lives on under another name (a hard link) that cannot be found";
        return Err((reason.to_owned(), "put a link to it back under its old name: ln OTHER-NAME OLD-NAME"));
    }
    Ok(Some(contents.unlinked(link, source, writes)))
}

/// The file behind a mapping, by the kernel's own link where that is permitted, else by the name shown.
fn link(proc: &Proc, mapping: &Mapping) -> Result<Link, Refusal> {
    match proc.mapped_file(mapping) {
        Ok(mut link) => {
            link.find_other_name(&[]);
            return Ok(link);
        }
        Err(error) if error.is_denied() => {}
        Err(error) => return Err((error.to_string(), "try again")),
    }
    let unreachable = |_| {
        ("the mapped file cannot be found under its name".to_owned(), "make it reachable under that name")
    };
    let stat = FileStat::from_stat(&rustix::fs::stat(&mapping.name[..]).map_err(unreachable)?);
    Ok(Link { target: mapping.name.clone(), deleted: mapping.deleted, reachable: !mapping.deleted, stat })
}

impl Memory {
    /// Whether a shared object has bytes before the end of its furthest mapping that no mapping shows.
    fn has_unmapped_parts(&self, object: &SharedObject) -> bool {
        let mapped: u64 = self.mapped_parts(object).iter().map(|(_, _, len)| len).sum();
        mapped < object.mapped_end
    }

    /// The parts of a shared object that the target maps: address, offset and length, by offset and each byte once.
    pub(crate) fn mapped_parts(&self, object: &SharedObject) -> Vec<(RemoteAddr, u64, u64)> {
        let mut parts: Vec<(u64, u64, u64)> = self
            .vmas
            .iter()
            .filter(|vma| vma.backing == i32::from(vma::Backing::SharedMemory) && vma.object == object.id)
            .map(|vma| (vma.offset, vma.start, vma.end - vma.start))
            .collect();
        parts.sort_unstable();
        let mut end = 0u64;
        let mut apart = Vec::with_capacity(parts.len());
        for (offset, start, len) in parts {
            let skip = end.saturating_sub(offset).min(len);
            if skip < len {
                apart.push((RemoteAddr::new(start + skip), offset + skip, len - skip));
                end = offset + len;
            }
        }
        apart
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_shared_object_is_read_once() {
        let mapping =
            rewake_linux::proc::parse_maps(b"1000-9000 rw-s 00000000 00:01 5 /dev/zero (deleted)\n")
                .unwrap()
                .remove(0);
        let mut memory = Memory::default();
        let at = memory.shared_object(&mapping);
        for (start, end, offset) in [(0x1000, 0x4000, 0x1000), (0x5000, 0x9000, 0), (0xa000, 0xb000, 0x2000)]
        {
            memory.vmas.push(Vma {
                start,
                end,
                offset,
                backing: vma::Backing::SharedMemory.into(),
                ..Vma::default()
            });
        }
        let parts: Vec<_> = memory
            .mapped_parts(&memory.shared[at])
            .into_iter()
            .map(|(start, offset, len)| (start.get(), offset, len))
            .collect();
        assert_eq!(parts, [(0x5000, 0, 0x4000)]);
        assert!(memory.has_unmapped_parts(&memory.shared[at]));
        memory.shared[at].mapped_end = 0x4000;
        assert!(!memory.has_unmapped_parts(&memory.shared[at]));
    }

    #[test]
    fn policies_are_seen() {
        let text = b"6000 local\n7000 default anon=1 N0=1\n8000 bind:0 anon=1\n9000 interleave:0-1\n";
        assert_eq!(
            policies(text),
            [("8000".into(), "bind:0".into()), ("9000".into(), "interleave:0-1".into())]
        );
        assert!(policies(b"7000 default\n").is_empty());
    }

    #[test]
    fn protection_keys_are_seen() {
        let smaps =
            |key: &str| format!("1000-2000 rw-p 0 00:00 0\nProtectionKey:         {key}\nVmFlags: rd wr\n");
        assert!(!uses_protection_keys(smaps("0").as_bytes()));
        assert!(uses_protection_keys((smaps("0") + &smaps("1")).as_bytes()));
        assert!(!uses_protection_keys(b"1000-2000 rw-p 0 00:00 0\nVmFlags: rd wr\n"));
    }

    #[test]
    fn our_own_memory_is_understood() {
        let proc = Proc::own().unwrap();
        let mut findings = Findings::new(proc.id());
        let memory = survey(&proc, &mut Contents::default(), &mut findings).unwrap();
        assert_eq!(findings.into_obstacles(), []);
        assert_eq!(memory.vmas.len(), memory.contents.len());
        assert!(memory.vmas.is_sorted_by_key(|vma| vma.start));
        assert!(memory.vdso.is_some());
        let exe = std::env::current_exe().unwrap();
        let exe = exe.as_os_str().as_encoded_bytes();
        let mine = memory.files.iter().filter(|file| file.identity.as_ref().is_some_and(|it| it.path == exe));
        assert_eq!(mine.count(), 1, "one record for all mappings of a file");
    }
}
