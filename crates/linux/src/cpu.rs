//! Facts about the processor that a program may have built on: instruction sets and the layout of saved registers.
//!
//! # Safety
//! The unsafe blocks execute `xgetbv`, which reads a register of the processor and touches no memory.

#![allow(unsafe_code, reason = "an instruction without a safe wrapper, see Safety above")]

use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::io;

/// Extensions that a program may have chosen its code by, as `/proc/cpuinfo` names them. Others (bugs, frequencies, features of the
/// supervisor) are of no concern to a program.
#[rustfmt::skip]
pub const ISA_FEATURES: &[&str] = &[
    "fpu", "tsc", "cx8", "cmov", "mmx", "fxsr", "sse", "sse2", "syscall", "mmxext", "rdtscp", "lm",
    "3dnowext", "3dnow", "pni", "pclmulqdq", "ssse3", "fma", "cx16", "sse4_1", "sse4_2", "movbe", "popcnt",
    "aes", "xsave", "avx", "f16c", "rdrand", "lahf_lm", "abm", "sse4a", "misalignsse", "3dnowprefetch", "xop",
    "fma4", "tbm", "mwaitx", "fsgsbase", "bmi1", "hle", "avx2", "bmi2", "erms", "rtm", "mpx", "avx512f",
    "avx512dq", "rdseed", "adx", "avx512ifma", "clflush", "clflushopt", "clwb", "avx512pf", "avx512er",
    "avx512cd", "sha_ni", "avx512bw", "avx512vl", "xsaveopt", "xsavec", "xgetbv1", "xsaves", "sha512", "sm3",
    "sm4", "avx_vnni", "avx512_bf16", "cmpccxadd", "fzrm", "fsrs", "fsrc", "avx_ifma", "clzero", "rdpru",
    "wbnoinvd", "avx512vbmi", "pku", "ospke", "waitpkg", "avx512_vbmi2", "gfni", "vaes", "vpclmulqdq",
    "avx512_vnni", "avx512_bitalg", "avx512_vpopcntdq", "rdpid", "cldemote", "movdiri", "movdir64b", "enqcmd",
    "avx512_4vnniw", "avx512_4fmaps", "fsrm", "avx512_vp2intersect", "serialize", "tsxldtrk", "user_shstk",
    "amx_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_fp16", "amx_complex", "avx_vnni_int8",
    "avx_ne_convert", "avx_vnni_int16", "prefetchi", "apx", "aeskle", "widekl", "lwp",
];

/// Where a state component lies in the standard (not compacted) xsave area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XsaveComponent {
    /// Number of the component, the bit in XCR0; 2 is AVX.
    pub index: u32,
    /// Offset from the start of the area, in bytes.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
}

/// Facts about the processor we run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// `GenuineIntel`, `AuthenticAMD`...
    pub vendor: String,
    /// Name of the model, for people.
    pub model: String,
    /// Those of [`ISA_FEATURES`] that the processor has and the kernel allows, sorted.
    pub features: Vec<String>,
    /// State components that the kernel enabled for programs (XCR0); 0 without xsave.
    pub xcr0: u64,
    /// Bytes of the standard xsave area for all of XCR0; 512 (fxsave) without xsave.
    pub xsave_size: u32,
    /// Components of XCR0 behind the legacy area and the header (index 2 and above), in order of index.
    pub components: Vec<XsaveComponent>,
}

impl Cpu {
    /// Asks the processor and the kernel.
    ///
    /// # Errors
    /// When `/proc/cpuinfo` cannot be read.
    pub fn here() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/cpuinfo")?;
        let mut cpu = Self::parse(&text);
        if cpu.features.iter().any(|feature| feature == "xsave") {
            cpu.ask_xsave();
        }
        Ok(cpu)
    }

    /// Vendor, model and features of the first processor in `/proc/cpuinfo`.
    fn parse(text: &str) -> Self {
        let field = |key: &str| {
            let mut fields = text.lines().filter_map(|line| line.split_once(':'));
            fields.find(|(name, _)| name.trim() == key).map_or("", |(_, value)| value.trim())
        };
        let mut features: Vec<String> = field("flags")
            .split_ascii_whitespace()
            .filter(|flag| ISA_FEATURES.contains(flag))
            .map(str::to_owned)
            .collect();
        features.sort_unstable();
        Self {
            vendor: field("vendor_id").to_owned(),
            model: field("model name").to_owned(),
            features,
            xcr0: 0,
            xsave_size: 512,
            components: Vec::new(),
        }
    }

    /// Fills in the xsave layout from leaf 0xD.
    fn ask_xsave(&mut self) {
        self.xcr0 = xcr0();
        // EBX is the size for what XCR0 enables now, ECX for what the processor could.
        self.xsave_size = __cpuid_count(0xd, 0).ebx;
        for index in (2..63).filter(|index| self.xcr0 & (1 << index) != 0) {
            let leaf = __cpuid_count(0xd, index);
            self.components.push(XsaveComponent { index, offset: leaf.ebx, size: leaf.eax });
        }
    }
}

/// XCR0. Only called when the kernel announces xsave, which it does after it enabled the instruction.
fn xcr0() -> u64 {
    #[target_feature(enable = "xsave")]
    fn read() -> u64 {
        // SAFETY: register 0 always exists where xgetbv does, and the attribute above promises that.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: our caller saw `xsave` in /proc/cpuinfo, so the processor has the instruction and CR4.OSXSAVE is set.
    unsafe { read() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample() {
        let cpu = Cpu::parse(
            "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: A: B\nflags\t\t: sse2 apic avx bmi1\n\nprocessor\t: 1\nvendor_id\t: X\n",
        );
        assert_eq!((cpu.vendor.as_str(), cpu.model.as_str()), ("GenuineIntel", "A: B"));
        assert_eq!(cpu.features, ["avx", "bmi1", "sse2"]);
    }

    #[test]
    fn here() {
        let cpu = Cpu::here().unwrap();
        for (name, has) in [
            ("sse2", std::is_x86_feature_detected!("sse2")),
            ("avx2", std::is_x86_feature_detected!("avx2")),
            ("avx512f", std::is_x86_feature_detected!("avx512f")),
            ("sha_ni", std::is_x86_feature_detected!("sha")),
        ] {
            assert_eq!(cpu.features.iter().any(|feature| feature == name), has, "{name}");
        }
        if cpu.xcr0 != 0 {
            assert_eq!(cpu.xcr0 & 3, 3, "x87 and sse are always on");
            let end = cpu.components.iter().map(|part| part.offset + part.size).max().unwrap_or(576);
            assert_eq!(cpu.xsave_size, end.max(576));
            let avx = cpu.components.iter().find(|part| part.index == 2);
            assert!(avx.is_none_or(|avx| (avx.offset, avx.size) == (576, 256)));
        }
    }

    #[test]
    fn names_are_not_repeated() {
        let mut names = ISA_FEATURES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ISA_FEATURES.len());
    }
}
