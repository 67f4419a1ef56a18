//! `/proc/PID/maps` and `/proc/PID/smaps`: the mappings of a process.
//!
//! Both start each mapping with the same line; smaps adds, among counts that are not needed here, the `VmFlags` that tell how the
//! mapping was advised, locked and made. The kernel walks all page tables to count for smaps, so it takes longer for large processes.

use std::fs::File;

use rustix::fs::OFlags;

use super::text::{ParseError, next_line, take_byte, take_digits, take_hex, words};
use super::{FileStat, Link, Proc, ProcError};
use crate::addr::RemoteAddr;

/// One mapping of an address space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First byte.
    pub start: RemoteAddr,
    /// Behind the last byte.
    pub end: RemoteAddr,
    /// `PROT_READ`, `PROT_WRITE`, `PROT_EXEC` bits.
    pub protection: u32,
    /// Made with `MAP_SHARED`.
    pub shared: bool,
    /// Offset into the file, in bytes; 0 for anonymous memory.
    pub offset: u64,
    /// Device of the file, as `dev_t`; 0 without file. Some file systems (btrfs, overlayfs) show another one to `stat`.
    pub device: u64,
    /// Inode of the file; 0 without file.
    pub inode: u64,
    /// Path or bracketed name, line feeds unescaped and without ` (deleted)`; empty for plain anonymous memory.
    ///
    /// A backslash is not escaped by the kernel, so a path that itself holds the four characters `\012` comes out wrong;
    /// [`Proc::mapped_file`] gives the exact one.
    pub name: Vec<u8>,
    /// Whether the kernel appended ` (deleted)`. A file can be *named* like that: [`Proc::mapped_file`] finds out.
    pub deleted: bool,
    /// Flags from smaps; none set when parsed from maps.
    pub flags: VmFlags,
    /// Bytes of a page of this mapping, from smaps: more than usual for hugetlb only. 0 when parsed from maps.
    pub page_size: u64,
}

/// What a mapping is, judged by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappingKind<'a> {
    /// Private memory without file or name.
    Anonymous,
    /// `[heap]`: memory below the program break.
    Heap,
    /// `[stack]`: the stack the kernel made for the first thread.
    Stack,
    /// `[vdso]`: code the kernel shares.
    Vdso,
    /// `[vvar]`: data of the vdso.
    Vvar,
    /// `[vvar_vclock]`: clock pages of the vdso, a mapping of its own since Linux 6.13.
    VvarVclock,
    /// `[vsyscall]`: the legacy page at a fixed address of every process.
    Vsyscall,
    /// `[anon:NAME]`: private anonymous memory named with `PR_SET_VMA_ANON_NAME`.
    NamedAnonymous(&'a [u8]),
    /// `[anon_shmem:NAME]`: shared anonymous memory named with `PR_SET_VMA_ANON_NAME`.
    NamedShared(&'a [u8]),
    /// `/dev/zero (deleted)`: shared anonymous memory.
    SharedAnonymous,
    /// `/memfd:NAME (deleted)`: memory made by `memfd_create`.
    Memfd(&'a [u8]),
    /// `/SYSVkkkkkkkk (deleted)`: a System V shared memory segment and its key.
    SystemV(&'a [u8]),
    /// `anon_inode:...` or another object without a path (`socket:[1]`, `/[aio]`, an unknown `[name]`).
    Special(&'a [u8]),
    /// A file with a path.
    File(&'a [u8]),
}

impl Mapping {
    /// Length in bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.end.get() - self.start.get()
    }

    /// What the mapping is, judged by its name and by whether it has an inode.
    #[must_use]
    pub fn kind(&self) -> MappingKind<'_> {
        let name = self.name.as_slice();
        match name {
            b"" => MappingKind::Anonymous,
            b"[heap]" => MappingKind::Heap,
            b"[stack]" => MappingKind::Stack,
            b"[vdso]" => MappingKind::Vdso,
            b"[vvar]" => MappingKind::Vvar,
            b"[vvar_vclock]" => MappingKind::VvarVclock,
            b"[vsyscall]" => MappingKind::Vsyscall,
            _ => self.kind_by_prefix(name),
        }
    }

    fn kind_by_prefix<'a>(&self, name: &'a [u8]) -> MappingKind<'a> {
        let bracketed = |prefix: &[u8]| name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(b"]"));
        if let Some(name) = bracketed(b"[anon:") {
            return MappingKind::NamedAnonymous(name);
        }
        if let Some(name) = bracketed(b"[anon_shmem:") {
            return MappingKind::NamedShared(name);
        }
        if name == b"/dev/zero" && self.deleted && self.shared {
            return MappingKind::SharedAnonymous;
        }
        if let (true, Some(name)) = (self.deleted, name.strip_prefix(b"/memfd:")) {
            return MappingKind::Memfd(name);
        }
        if let (true, Some(key)) = (self.deleted, name.strip_prefix(b"/SYSV")) {
            return MappingKind::SystemV(key);
        }
        if name.starts_with(b"/") && !name.starts_with(b"/[") {
            return MappingKind::File(name);
        }
        MappingKind::Special(name)
    }

    /// Whether private pages that are not of the process's own content come from a file: restoring maps that file again.
    #[must_use]
    pub fn has_file(&self) -> bool {
        matches!(self.kind(), MappingKind::File(_))
    }

    /// The name of the mapping's link in `map_files`.
    fn map_file(&self) -> String {
        format!("map_files/{:x}-{:x}", self.start.get(), self.end.get())
    }
}

/// The two-letter flags of the `VmFlags` line of smaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VmFlags(u64);

/// Every flag with its name in smaps. The place in this table is the bit in [`VmFlags`].
const FLAG_NAMES: [&[u8; 2]; 40] = [
    b"rd", b"wr", b"ex", b"sh", b"mr", b"mw", b"me", b"ms", b"gd", b"pf", b"lo", b"io", b"sr", b"rr", b"dc",
    b"de", b"ac", b"nr", b"ht", b"sf", b"ar", b"wf", b"dd", b"sd", b"mm", b"hg", b"nh", b"mg", b"um", b"uw",
    b"ui", b"ss", b"sl", b"bt", b"mt", b"dp", b"lf", b"nl", b"gu", b"??",
];

/// The last place of the table stands for flags that are not in it.
const UNKNOWN: u64 = 1 << (FLAG_NAMES.len() - 1);

/// Makes a constant and its bit from a name in [`FLAG_NAMES`].
macro_rules! vm_flags {
    ($($(#[$doc:meta])* $constant:ident = $name:literal;)*) => {
        impl VmFlags {
            $($(#[$doc])* pub const $constant: Self = Self::named($name);)*
        }
    };
}

vm_flags! {
    /// `gd`: the stack grows down (`MAP_GROWSDOWN`).
    GROWS_DOWN = b"gd";
    /// `pf`: raw page frames, not memory.
    PFN_MAP = b"pf";
    /// `lo`: locked (`mlock`).
    LOCKED = b"lo";
    /// `lf`: locked as pages are touched (`MLOCK_ONFAULT`); comes with `lo`.
    LOCK_ON_FAULT = b"lf";
    /// `io`: memory of a device.
    IO = b"io";
    /// `sr`: `MADV_SEQUENTIAL`.
    SEQUENTIAL = b"sr";
    /// `rr`: `MADV_RANDOM`.
    RANDOM = b"rr";
    /// `dc`: `MADV_DONTFORK`.
    DONT_FORK = b"dc";
    /// `de`: cannot be grown by mremap.
    DONT_EXPAND = b"de";
    /// `ac`: counted against the limit of committed memory.
    ACCOUNTED = b"ac";
    /// `nr`: `MAP_NORESERVE`.
    NO_RESERVE = b"nr";
    /// `ht`: huge pages of hugetlbfs.
    HUGETLB = b"ht";
    /// `sf`: synchronous page faults (`MAP_SYNC`).
    SYNC = b"sf";
    /// `wf`: `MADV_WIPEONFORK`.
    WIPE_ON_FORK = b"wf";
    /// `dd`: `MADV_DONTDUMP`.
    DONT_DUMP = b"dd";
    /// `sd`: tracked by soft-dirty bits.
    SOFT_DIRTY = b"sd";
    /// `mm`: mixed map.
    MIXED_MAP = b"mm";
    /// `hg`: `MADV_HUGEPAGE`.
    HUGE_PAGE = b"hg";
    /// `nh`: `MADV_NOHUGEPAGE`.
    NO_HUGE_PAGE = b"nh";
    /// `mg`: `MADV_MERGEABLE`.
    MERGEABLE = b"mg";
    /// `um`: missing pages are handled by userfaultfd.
    UFFD_MISSING = b"um";
    /// `uw`: write protection is handled by userfaultfd.
    UFFD_WRITE_PROTECT = b"uw";
    /// `ui`: minor faults are handled by userfaultfd.
    UFFD_MINOR = b"ui";
    /// `ss`: shadow stack of the processor.
    SHADOW_STACK = b"ss";
    /// `sl`: sealed (`mseal`).
    SEALED = b"sl";
    /// `dp`: dropped under memory pressure (`MAP_DROPPABLE`).
    DROPPABLE = b"dp";
    /// `gu`: may hold guard regions (`MADV_GUARD_INSTALL`); shown since Linux 6.19 only.
    MAYBE_GUARD = b"gu";
    /// `mw`: may be made writable.
    MAY_WRITE = b"mw";
    /// `me`: may be made executable.
    MAY_EXEC = b"me";
    /// `ms`: may be shared: a shared mapping of a file opened for reading and writing.
    MAY_SHARE = b"ms";
}

impl VmFlags {
    /// The flag of a table entry. Evaluated at compile time; a name missing from the table does not compile.
    const fn named(name: &[u8; 2]) -> Self {
        let mut place = 0;
        while place < FLAG_NAMES.len() {
            if FLAG_NAMES[place][0] == name[0] && FLAG_NAMES[place][1] == name[1] {
                return Self(1 << place);
            }
            place += 1;
        }
        panic!("a flag that is in the table")
    }

    /// Parses what follows `VmFlags:`. Protection keys (`k0`..) and other unknown names set [`VmFlags::has_unknown`].
    fn parse(text: &[u8]) -> Self {
        let mut bits = 0;
        for word in words(text) {
            let place = FLAG_NAMES.iter().position(|name| name.as_slice() == word);
            bits |= place.map_or(UNKNOWN, |place| 1 << place);
        }
        Self(bits)
    }

    /// Whether all flags of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether a flag was shown that this table does not know.
    #[must_use]
    pub const fn has_unknown(self) -> bool {
        self.0 & UNKNOWN != 0
    }

    /// Both sets of flags.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Names of the flags set, as in smaps; `??` stands for unknown ones.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        FLAG_NAMES
            .iter()
            .enumerate()
            .filter(move |(place, _)| self.0 & (1 << place) != 0)
            .map(|(_, name)| std::str::from_utf8(name.as_slice()).expect("names are ASCII"))
    }
}

/// Parses `/proc/PID/maps`.
///
/// # Errors
/// When a line is not as Linux writes it, or mappings are not in order.
pub fn parse_maps(text: &[u8]) -> Result<Vec<Mapping>, ParseError> {
    // About a hundred bytes a line; a guess too low only costs a reallocation.
    let mut mappings = Vec::with_capacity(text.len() / 100);
    let mut rest = text;
    while let Some(line) = next_line(&mut rest) {
        push(&mut mappings, header(line)?)?;
    }
    Ok(mappings)
}

/// Parses `/proc/PID/smaps`.
///
/// # Errors
/// When a line is not as Linux writes it, mappings are not in order, or a mapping has no `VmFlags`.
pub fn parse_smaps(text: &[u8]) -> Result<Vec<Mapping>, ParseError> {
    let mut mappings = Vec::with_capacity(text.len() / 700);
    let mut rest = text;
    while let Some(line) = next_line(&mut rest) {
        let mut mapping = header(line)?;
        mapping.flags = loop {
            let Some(line) = next_line(&mut rest) else {
                return Err(ParseError(format!("no VmFlags of the mapping at {}", mapping.start)));
            };
            if let Some(flags) = line.strip_prefix(b"VmFlags:") {
                break VmFlags::parse(flags);
            }
            if let Some(size) = line.strip_prefix(b"KernelPageSize:") {
                let kilobytes = take_digits(&mut size.trim_ascii_start(), 10, "page size")?;
                mapping.page_size = kilobytes.saturating_mul(1024);
            }
        };
        push(&mut mappings, mapping)?;
    }
    Ok(mappings)
}

/// Keeps the promise that mappings come in order and do not overlap, also when the table changed between two reads.
fn push(mappings: &mut Vec<Mapping>, mapping: Mapping) -> Result<(), ParseError> {
    let after = mappings.last().map_or(RemoteAddr::new(0), |last| last.end);
    if mapping.start < after || mapping.end <= mapping.start {
        return Err(ParseError(format!("mapping {}-{} out of order", mapping.start, mapping.end)));
    }
    mappings.push(mapping);
    Ok(())
}

/// `start-end perms offset major:minor inode   name`
fn header(line: &[u8]) -> Result<Mapping, ParseError> {
    let mut rest = line;
    let start =
        take_hex(&mut rest, "start of a mapping").map_err(|_| ParseError::expected("a mapping", line))?;
    take_byte(&mut rest, b'-')?;
    let end = take_hex(&mut rest, "end of a mapping")?;
    take_byte(&mut rest, b' ')?;
    let (protection, shared) = permissions(&mut rest)?;
    take_byte(&mut rest, b' ')?;
    let offset = take_hex(&mut rest, "offset of a mapping")?;
    take_byte(&mut rest, b' ')?;
    let device = take_device(&mut rest)?;
    take_byte(&mut rest, b' ')?;
    let inode = take_digits(&mut rest, 10, "inode of a mapping")?;
    // Only spaces of the padding are taken off in front: a path starts with '/', a name with '['.
    let name = rest.trim_ascii_start();
    let (name, deleted) = match name.strip_suffix(b" (deleted)") {
        Some(name) => (name, true),
        None => (name, false),
    };
    Ok(Mapping {
        start: RemoteAddr::new(start),
        end: RemoteAddr::new(end),
        protection,
        shared,
        offset,
        device,
        inode,
        name: unescape(name),
        deleted,
        flags: VmFlags::default(),
        page_size: 0,
    })
}

/// `rwxp` or `rwxs`, dashes for what is not allowed.
fn permissions(rest: &mut &[u8]) -> Result<(u32, bool), ParseError> {
    let Some((&[read, write, execute, sharing], after)) = rest.split_first_chunk() else {
        return Err(ParseError::expected("permissions", rest));
    };
    let bit = |byte, letter, bit: i32| match byte {
        b'-' => Ok(0),
        _ if byte == letter => Ok(bit.cast_unsigned()),
        _ => Err(ParseError::expected("permissions", rest)),
    };
    let protection = bit(read, b'r', libc::PROT_READ)?
        | bit(write, b'w', libc::PROT_WRITE)?
        | bit(execute, b'x', libc::PROT_EXEC)?;
    let shared = match sharing {
        b's' => true,
        b'p' => false,
        _ => return Err(ParseError::expected("permissions", rest)),
    };
    *rest = after;
    Ok((protection, shared))
}

/// `major:minor` in hexadecimal, as `dev_t`.
pub(super) fn take_device(rest: &mut &[u8]) -> Result<u64, ParseError> {
    let part = |rest: &mut &[u8]| {
        let value = take_hex(rest, "device")?;
        u32::try_from(value).map_err(|_| ParseError(format!("device number {value:#x} too large")))
    };
    let major = part(rest)?;
    take_byte(rest, b':')?;
    let minor = part(rest)?;
    Ok(rustix::fs::makedev(major, minor))
}

/// Puts back the line feeds, the only bytes that the kernel escapes here.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some(place) = rest.iter().position(|&byte| byte == b'\\') {
        let (before, escaped) = rest.split_at(place);
        plain.extend_from_slice(before);
        let (byte, after) = match escaped.strip_prefix(b"\\012") {
            Some(after) => (b'\n', after),
            None => (b'\\', &escaped[1..]),
        };
        plain.push(byte);
        rest = after;
    }
    plain.extend_from_slice(rest);
    plain
}

/// How often a table of mappings is read that makes no sense.
const READINGS: u32 = 10;

impl Proc {
    /// The mappings from `maps`, in order of address, without flags.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn maps(&self) -> Result<Vec<Mapping>, ProcError> {
        self.parsed("maps", parse_maps)
    }

    /// The mappings from `smaps`, in order of address, with flags. The kernel's share of the time grows with resident memory.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn smaps(&self) -> Result<Vec<Mapping>, ProcError> {
        self.parsed("smaps", parse_smaps)
    }

    /// While a process changes its mappings the kernel may tell of some twice: then it is asked again.
    fn parsed(
        &self,
        file: &str,
        parse: impl Fn(&[u8]) -> Result<Vec<Mapping>, ParseError>,
    ) -> Result<Vec<Mapping>, ProcError> {
        for _ in 1..READINGS {
            if let Ok(mappings) = parse(&self.read(file)?) {
                return Ok(mappings);
            }
        }
        parse(&self.read(file)?).map_err(self.malformed(file))
    }

    /// The file behind a mapping, by the kernel's own link `map_files/START-END`: exact path, whether it is deleted, stat.
    ///
    /// Following the link takes `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN` in the first user namespace; without them the file is
    /// looked up by the path that the link shows and must have the mapping's inode.
    ///
    /// # Errors
    /// [`ProcError::Denied`] when neither way leads to the file; otherwise as [`ProcError`] tells apart.
    pub fn mapped_file(&self, mapping: &Mapping) -> Result<Link, ProcError> {
        let file = mapping.map_file();
        match self.link(&file) {
            Err(error) if error.is_denied() => {
                let target = self.link_text(&file)?;
                match FileStat::of_path(&target) {
                    // The device is not compared: some file systems show another one in maps than to stat.
                    Ok(stat) if stat.inode == mapping.inode => {
                        Ok(Link { target, deleted: false, reachable: true, stat })
                    }
                    _ => Err(error),
                }
            }
            result => result,
        }
    }

    /// Opens the file behind a mapping anew: also shared anonymous memory, memfds and deleted files.
    ///
    /// # Errors
    /// [`ProcError::Denied`] without `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN` in the first user namespace.
    pub fn open_mapped_file(&self, mapping: &Mapping, flags: OFlags) -> Result<File, ProcError> {
        self.open_file(&mapping.map_file(), flags)
    }
}

#[cfg(test)]
#[path = "maps_tests.rs"]
mod tests;
