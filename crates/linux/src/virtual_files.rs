//! File systems whose files the kernel makes up as they are read: they hold nothing that could be kept, and are opened again by name.

use rustix::fd::AsFd;

/// A file system that is no storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Virtual {
    /// `/proc`.
    Proc,
    /// `/sys`.
    Sys,
    /// Control groups, of both versions, and resctrl.
    Cgroup,
    /// Tracing.
    Trace,
    /// Others, by name, whose files keep state of their own for each opening.
    Other(&'static str),
}

const KINDS: &[(i64, Virtual)] = &[
    (0x9fa0, Virtual::Proc),
    (0x6265_6572, Virtual::Sys),
    (0x0027_e0eb, Virtual::Cgroup),
    (0x6367_7270, Virtual::Cgroup),
    (0x0765_5821, Virtual::Cgroup),
    (0x7472_6163, Virtual::Trace),
    (0x6462_6720, Virtual::Other("debugfs")),
    (0x7363_6673, Virtual::Other("securityfs")),
    (0xcafe_4a11, Virtual::Other("bpf")),
    (0x6265_6570, Virtual::Other("configfs")),
    (0xf97c_ff8c, Virtual::Other("selinuxfs")),
    (0x1980_0202, Virtual::Other("POSIX message queues")),
];

impl Virtual {
    /// What kind of file system an open file (`O_PATH` will do) is on; `None` for storage.
    #[must_use]
    pub fn of(file: impl AsFd) -> Option<Self> {
        let kind = rustix::fs::fstatfs(file).ok()?.f_type;
        KINDS.iter().find(|(magic, _)| *magic == kind).map(|(_, found)| *found)
    }

    /// For messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proc => "/proc",
            Self::Sys => "/sys",
            Self::Cgroup => "cgroup",
            Self::Trace => "tracefs",
            Self::Other(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_told_from_storage() {
        let of = |path| Virtual::of(std::fs::File::open(path).unwrap());
        assert_eq!(of("/proc/self/stat"), Some(Virtual::Proc));
        assert_eq!(of("/sys/kernel"), Some(Virtual::Sys));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Virtual::of(file), None);
    }
}
