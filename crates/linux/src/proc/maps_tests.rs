//! Tests of the parsers of maps and smaps.

use std::fmt::Write;
use std::time::Instant;

use super::*;

const READ_WRITE: u32 = libc::PROT_READ.cast_unsigned() | libc::PROT_WRITE.cast_unsigned();

/// One line of maps.
fn one(line: &str) -> Mapping {
    let mut mappings = parse_maps(format!("{line}\n").as_bytes()).unwrap();
    assert_eq!(mappings.len(), 1);
    mappings.remove(0)
}

#[test]
fn a_line() {
    let mapping =
        one("564d710b8000-564d710ba000 r-xp 00002000 fe:01 247282                     /usr/bin/head");
    assert_eq!(mapping.start.get(), 0x564d_710b_8000);
    assert_eq!((mapping.length(), mapping.offset, mapping.inode), (0x2000, 0x2000, 247_282));
    assert_eq!(mapping.device, libc::makedev(0xfe, 1));
    assert_eq!(mapping.protection, (libc::PROT_READ | libc::PROT_EXEC).cast_unsigned());
    assert!(!mapping.shared && !mapping.deleted);
    assert_eq!(mapping.kind(), MappingKind::File(b"/usr/bin/head"));
    let mapping = one("7f0000000000-7f0000001000 -w-s 00000000 00:01 5 /dev/zero (deleted)");
    assert_eq!(mapping.protection, libc::PROT_WRITE.cast_unsigned());
    assert!(mapping.shared && mapping.deleted);
}

#[test]
fn kinds() {
    let kinds = [
        ("", MappingKind::Anonymous),
        ("[heap]", MappingKind::Heap),
        ("[stack]", MappingKind::Stack),
        ("[vdso]", MappingKind::Vdso),
        ("[vvar]", MappingKind::Vvar),
        ("[vvar_vclock]", MappingKind::VvarVclock),
        ("[anon:my name]", MappingKind::NamedAnonymous(b"my name")),
        ("[anon_shmem:x]", MappingKind::NamedShared(b"x")),
        ("/dev/zero (deleted)", MappingKind::SharedAnonymous),
        ("/memfd:a b (deleted)", MappingKind::Memfd(b"a b")),
        ("/SYSV0000002a (deleted)", MappingKind::SystemV(b"0000002a")),
        ("anon_inode:[perf_event]", MappingKind::Special(b"anon_inode:[perf_event]")),
        ("socket:[12]", MappingKind::Special(b"socket:[12]")),
        ("/[aio] (deleted)", MappingKind::Special(b"/[aio]")),
        ("[uprobes]", MappingKind::Special(b"[uprobes]")),
        ("/a\\012b\\x", MappingKind::File(b"/a\nb\\x")),
        ("/tmp/a  b (deleted)", MappingKind::File(b"/tmp/a  b")),
    ];
    for (name, kind) in kinds {
        let mapping = one(&format!("1000-2000 rw-s 00000000 00:00 0                          {name}"));
        assert_eq!(mapping.kind(), kind, "{name}");
    }
    let vsyscall = one("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]");
    assert_eq!(vsyscall.kind(), MappingKind::Vsyscall);
    // A private mapping of a deleted file called /dev/zero is not shared anonymous memory.
    let private = one("1000-2000 rw-p 00000000 00:00 0 /dev/zero (deleted)");
    assert_eq!(private.kind(), MappingKind::File(b"/dev/zero"));
}

#[test]
fn flags() {
    let text = b"1000-2000 rw-p 00000000 00:00 0 \nSize:                  4 kB\nVmFlags: rd wr mr mw me gd lo lf ac nr sl \n\
        2000-3000 rw-p 00000000 00:00 0 [heap]\nSize:                  4 kB\nVmFlags: rd zz k0\n";
    let mappings = parse_smaps(text).unwrap();
    let flags = mappings[0].flags;
    for flag in
        [VmFlags::GROWS_DOWN, VmFlags::LOCKED, VmFlags::LOCK_ON_FAULT, VmFlags::NO_RESERVE, VmFlags::SEALED]
    {
        assert!(flags.contains(flag));
    }
    assert!(!flags.contains(VmFlags::DONT_FORK) && !flags.has_unknown());
    assert_eq!(flags.names().collect::<Vec<_>>().join(" "), "rd wr mr mw me gd lo ac nr sl lf".to_owned());
    assert!(mappings[1].flags.has_unknown());
    assert_eq!(mappings[1].protection, READ_WRITE);
}

#[test]
fn hostile_text() {
    for text in [
        "x",
        "\n",
        "1000",
        "1000-",
        "1000-2000 rw",
        "1000-2000 rwxq 0 0:0 0",
        "1000-2000 zw-p 0 0:0 0",
        "1000-2000 rw-p 0 0:0",
        "2000-1000 rw-p 0 0:0 0",
        "2000-3000 rw-p 0 0:0 0\n1000-2000 rw-p 0 0:0 0",
        "11112222333344445-2000 rw-p 0 0:0 0",
        "1000-2000 rw-p 0 100000000:0 0",
        "1000-2000 rw-p 0 0:0 99999999999999999999999",
    ] {
        assert!(parse_maps(text.as_bytes()).is_err(), "{text}");
    }
    assert!(parse_smaps(b"1000-2000 rw-p 0 0:0 0\nSize: 4 kB\n").is_err());
    assert_eq!(parse_maps(b"").unwrap(), []);
}

#[test]
fn our_own() {
    let proc = Proc::own().unwrap();
    let smaps = proc.smaps().unwrap();
    assert!(smaps.iter().any(|mapping| mapping.kind() == MappingKind::Stack
        && mapping.flags.contains(VmFlags::GROWS_DOWN)
        && mapping.protection == READ_WRITE));
    assert!(smaps.iter().any(|mapping| mapping.kind() == MappingKind::Heap));
    assert!(smaps.iter().any(|mapping| mapping.kind() == MappingKind::Vdso));
    assert!(smaps.iter().all(|mapping| !mapping.flags.has_unknown()), "flags of this kernel are all known");
    let exe = proc.exe().unwrap();
    let mapping = smaps.iter().find(|mapping| mapping.name == exe.target).unwrap();
    assert_eq!(mapping.inode, exe.stat.inode);
    assert!(
        proc.maps().unwrap().iter().any(|found| found.name == exe.target && found.start == mapping.start)
    );
    match proc.mapped_file(mapping) {
        Ok(link) => assert!(link.stat.same_file(&exe.stat) && link.target == exe.target),
        Err(error) => assert!(error.is_denied(), "{error}"),
    }
}

#[test]
fn sixty_thousand_mappings() {
    let entry = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let fields = &entry[entry.find('\n').unwrap() + 1..entry.find("VmFlags").unwrap()];
    let (mut maps, mut smaps) = (String::new(), String::new());
    for number in 0..60_000u64 {
        let start = 0x7000_0000_0000 + number * 0x2000;
        let line = format!(
            "{start:x}-{:x} rw-p 00000000 fe:00 247282                     /usr/lib/libx.so\n",
            start + 0x1000
        );
        maps.push_str(&line);
        writeln!(smaps, "{line}{fields}VmFlags: rd wr mr mw me ac ").unwrap();
    }
    for (text, parse) in [(maps, parse_maps as fn(&[u8]) -> _), (smaps, parse_smaps)] {
        let began = Instant::now();
        let mappings = parse(text.as_bytes()).unwrap();
        let took = began.elapsed();
        assert_eq!(mappings.len(), 60_000);
        println!("{} bytes in {took:?}", text.len());
        // Well under 200 ms when optimised; a debug build on a busy machine gets more time.
        let allowed = if cfg!(debug_assertions) { 3000 } else { 200 };
        assert!(took.as_millis() < allowed, "{took:?}");
    }
}
