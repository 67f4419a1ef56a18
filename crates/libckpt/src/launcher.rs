//! Programs that do nothing but start others (`nice ./prog =recover`, the `env` of a script's first line): where the library is preloaded it
//! is in these as well, but the wish is not theirs.
//!
//! They are known by name. Of all others it is the program's own wish: the worst is then that there is nothing to recover, and not that
//! something begins anew that somebody wanted back.

use std::path::Path;

/// File names, in order.
const LAUNCHERS: [&str; 40] = [
    "catchsegv",
    "chroot",
    "chrt",
    "doas",
    "env",
    "flock",
    "gdb",
    "ionice",
    "ltrace",
    "mpiexec",
    "mpiexec.hydra",
    "mpirun",
    "nice",
    "nohup",
    "nsenter",
    "numactl",
    "orterun",
    "perf",
    "prlimit",
    "prterun",
    "prun",
    "rr",
    "runcon",
    "runuser",
    "script",
    "setarch",
    "setpriv",
    "setsid",
    "srun",
    "ssh",
    "stdbuf",
    "strace",
    "sudo",
    "systemd-run",
    "taskset",
    "time",
    "timeout",
    "unshare",
    "valgrind",
    "xargs",
];

/// Whether this process is one of them.
pub fn is_this() -> bool {
    std::fs::read_link("/proc/self/exe").is_ok_and(|file| is_launcher(&file))
}

fn is_launcher(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| LAUNCHERS.binary_search(&name).is_ok())
}

#[cfg(test)]
mod tests {
    use super::{LAUNCHERS, is_launcher};

    #[test]
    fn launchers_are_told_from_programs() {
        assert!(LAUNCHERS.is_sorted());
        for (file, expected) in [
            ("/usr/bin/nice", true),
            ("/bin/env", true),
            ("/usr/bin/python3", false),
            ("/home/nice/sort", false),
            ("/", false),
        ] {
            assert_eq!(is_launcher(file.as_ref()), expected, "{file}");
        }
    }
}
