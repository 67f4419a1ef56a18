//! The vdso of another kernel. A program knows where its functions are, and keeps that: in its C library's tables, in its auxiliary
//! vector. So the old code stays where it was, as memory of the program's own, and each function begins with a jump to the function of
//! the same name in this kernel's vdso, which lies elsewhere with its data. Where this kernel's has none, it begins with the system
//! call that it stands for.

use std::collections::BTreeMap;

/// `jmp *0(%rip)`, and the address behind it.
const JUMP: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
/// The longest that a function begins with.
const JUMP_LEN: usize = JUMP.len() + 8;
/// `mov $number, %eax`, then `syscall; ret`.
const MOV_EAX: u8 = 0xb8;
const SYSCALL_RET: [u8; 3] = [0x0f, 0x05, 0xc3];
/// `mov $-ENOSYS, %rax; ret`.
const NOTHING: [u8; 8] = [0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff, 0xff, 0xc3];

/// Functions and the calls they stand for.
const CALLS: &[(&[u8], i64)] = &[
    (b"__vdso_clock_gettime", libc::SYS_clock_gettime),
    (b"__vdso_gettimeofday", libc::SYS_gettimeofday),
    (b"__vdso_time", libc::SYS_time),
    (b"__vdso_clock_getres", libc::SYS_clock_getres),
    (b"__vdso_getcpu", libc::SYS_getcpu),
    (RANDOM, libc::SYS_getrandom),
];
/// Its state lies in the program's memory, and each kernel has its own idea of it: other kernels' is never led to.
const RANDOM: &[u8] = b"__vdso_getrandom";

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const SYMBOL_LEN: usize = 24;
const HEADER_LEN: usize = 56;
const STT_FUNC: u64 = 2;

/// The old code, its functions leading to those of this kernel's vdso.
///
/// # Errors
/// Why that cannot be done.
pub fn redirected(old: &[u8], own: &[u8], own_address: u64) -> Result<Vec<u8>, String> {
    let wanted = functions(old).ok_or("the image's is not understood")?;
    let offered = functions(own).ok_or("this kernel's is not understood")?;
    let mut code = old.to_vec();
    let mut begun = 0;
    // Several names may have one address; the one that begins with underscores is put in last, and stays.
    let by_offset: BTreeMap<usize, &Vec<u8>> =
        wanted.iter().rev().map(|(name, offset)| (*offset, name)).collect();
    for (offset, name) in by_offset {
        let target = offered.get(name).filter(|_| name != RANDOM);
        let entry = match target.and_then(|target| u64::try_from(*target).ok()) {
            Some(target) => {
                let address = own_address.checked_add(target).ok_or("this kernel's is not understood")?;
                [&JUMP[..], &address.to_le_bytes()].concat()
            }
            None => call(name),
        };
        // The next one may not begin within.
        let end = offset.checked_add(JUMP_LEN).filter(|end| offset >= begun && *end <= code.len());
        let end = end.ok_or_else(|| format!("no room for a jump in {}", String::from_utf8_lossy(name)))?;
        code[offset..offset + entry.len()].copy_from_slice(&entry);
        begun = end;
    }
    Ok(code)
}

/// The system call that a function stands for; what is none is not there.
fn call(name: &[u8]) -> Vec<u8> {
    let Some((_, number)) = CALLS.iter().find(|(known, _)| *known == name) else { return NOTHING.to_vec() };
    let number = i32::try_from(*number).unwrap_or(-1);
    [&[MOV_EAX][..], &number.to_le_bytes(), &SYSCALL_RET].concat()
}

/// Functions by name, and where they begin in the file.
fn functions(file: &[u8]) -> Option<BTreeMap<Vec<u8>, usize>> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let headers = headers(file)?;
    let load = headers.iter().find(|header| header.kind == PT_LOAD && header.offset == 0)?;
    let dynamic = headers.iter().find(|header| header.kind == PT_DYNAMIC)?;
    let place = |tag| place_of(file, dynamic, tag).and_then(|address| address.checked_sub(load.address));
    let symbols = usize::try_from(place(DT_SYMTAB)?).ok()?;
    let strings = usize::try_from(place(DT_STRTAB)?).ok()?;
    // The strings lie behind the symbols, in every vdso there is.
    let table = file.get(symbols..strings)?;
    let mut functions = BTreeMap::new();
    for symbol in table.chunks_exact(SYMBOL_LEN) {
        let (kind, section) = (number(symbol, 4, 1)? & 15, number(symbol, 6, 2)?);
        if kind != STT_FUNC || section == 0 {
            continue;
        }
        let name = file.get(strings..)?.get(usize::try_from(number(symbol, 0, 4)?).ok()?..)?;
        let name = name.split(|byte| *byte == 0).next()?;
        let offset = number(symbol, 8, 8)?.checked_sub(load.address)?;
        functions.insert(name.to_vec(), usize::try_from(offset).ok()?);
    }
    (!functions.is_empty()).then_some(functions)
}

struct Header {
    kind: u64,
    offset: u64,
    address: u64,
    len: u64,
}

fn headers(file: &[u8]) -> Option<Vec<Header>> {
    let at = usize::try_from(number(file, 32, 8)?).ok()?;
    let count = usize::try_from(number(file, 56, 2)?).ok()?;
    let table = file.get(at..)?.chunks_exact(HEADER_LEN).take(count);
    let header = |bytes: &[u8]| {
        let word = |at| number(bytes, at, 8);
        Some(Header { kind: number(bytes, 0, 4)?, offset: word(8)?, address: word(16)?, len: word(32)? })
    };
    table.map(header).collect()
}

/// The value of an entry of the dynamic section.
fn place_of(file: &[u8], dynamic: &Header, tag: u64) -> Option<u64> {
    let begin = usize::try_from(dynamic.offset).ok()?;
    let end = begin.checked_add(usize::try_from(dynamic.len).ok()?)?;
    let mut entries = file.get(begin..end)?.chunks_exact(16);
    number(entries.find(|entry| number(entry, 0, 8) == Some(tag))?, 8, 8)
}

/// A little-endian number of `len` bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
pub(crate) mod tests {
    use rewake_linux::memory::ProcessMemory;
    use rewake_linux::proc::{MappingKind, Proc};

    use super::*;

    /// That of the kernel that the tests run under.
    pub(crate) fn own() -> Vec<u8> {
        let proc = Proc::own().expect("ourselves");
        let maps = proc.maps().expect("mappings");
        let vdso = maps.iter().find(|one| one.kind() == MappingKind::Vdso).expect("a vdso");
        let mut bytes = vec![0; usize::try_from(vdso.length()).expect("a few pages")];
        let memory = ProcessMemory::open(proc.id()).expect("our memory");
        memory.read_exact_at(vdso.start, &mut bytes).expect("readable");
        bytes
    }

    #[test]
    fn functions_lead_to_those_of_the_same_name() {
        let vdso = own();
        let functions = functions(&vdso).expect("functions");
        let clock = functions[&b"__vdso_clock_gettime"[..]];
        assert!(functions.len() > 4 && clock > 0);
        let code = redirected(&vdso, &vdso, 0x7000_0000_0000).expect("a bridge");
        assert_eq!(code.len(), vdso.len());
        assert_eq!(code[clock..clock + 6], JUMP);
        let address = number(&code, clock + 6, 8).expect("an address");
        assert_eq!(address, 0x7000_0000_0000 + u64::try_from(clock).expect("an offset"));
        let changed = code.iter().zip(&vdso).filter(|(new, old)| new != old).count();
        let starts: std::collections::BTreeSet<_> = functions.values().collect();
        assert!(changed <= starts.len() * JUMP_LEN, "nothing else is changed");
    }

    #[test]
    fn a_function_that_this_kernel_does_not_have_is_a_system_call() {
        let mut own = own();
        let getcpu = functions(&own).expect("functions")[&b"__vdso_getcpu"[..]];
        let old = own.clone();
        let mut rename = |name: &[u8]| {
            let at = own.windows(name.len()).position(|part| part == name).expect("the name");
            own[at + name.len() - 2] = b'x';
        };
        rename(b"__vdso_getcpu\0");
        let code = redirected(&old, &own, 0).expect("a bridge");
        assert_eq!(code[getcpu..getcpu + 8], [0xb8, 0x35, 0x01, 0, 0, 0x0f, 0x05, 0xc3]);
        assert_eq!(call(b"__vdso_sgx_enter_enclave"), NOTHING);
    }

    #[test]
    fn nonsense_is_not_understood() {
        let vdso = own();
        assert_eq!(functions(b"no program"), None);
        for at in 0..1024.min(vdso.len()) {
            let mut broken = vdso.clone();
            broken[at] = !broken[at];
            // Whatever comes out: nothing panics.
            let _ = redirected(&broken, &vdso, u64::MAX);
            let _ = redirected(&vdso[..at], &vdso, 0);
        }
    }
}
