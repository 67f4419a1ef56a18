//! Huge pages (hugetlb) and a file system of them, for the time of a test. Where they cannot be had the program itself skips and says why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const NUMBER: &str = "/proc/sys/vm/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
/// What a program and its resumed self take at most.
const WANTED: u64 = 8;

/// Given back when dropped.
#[derive(Debug)]
pub(crate) struct HugePages {
    before: Option<u64>,
    mounted: Option<PathBuf>,
}

impl HugePages {
    /// Sets pages aside and mounts a file system of them at `folder/huge`, as far as we may.
    pub(crate) fn set_aside(folder: &Path) -> Self {
        let before =
            number(NUMBER).zip(number(FREE)).filter(|(_, free)| *free < WANTED).map(|(all, free)| {
                // Whether it worked shows when they are used.
                let _ = fs::write(NUMBER, (all + WANTED - free).to_string());
                all
            });
        let place = folder.join("huge");
        let mount = || {
            fs::create_dir(&place).ok()?;
            let mut command = Command::new("mount");
            command.args(["-t", "hugetlbfs", "-o", "pagesize=2M", "none"]).arg(&place).stderr(Stdio::null());
            command.status().ok().filter(std::process::ExitStatus::success)
        };
        let mounted = mount().map(|_| place.clone());
        Self { before, mounted }
    }
}

/// As long as it lives no huge page is free.
#[derive(Debug)]
pub(crate) struct NonePages {
    before: u64,
}

impl NonePages {
    /// Nothing when the number cannot be changed, or others hold some.
    pub(crate) fn until_dropped() -> Option<Self> {
        let before = number(NUMBER)?;
        fs::write(NUMBER, "0").ok()?;
        let none = Self { before };
        (number(FREE)? == 0).then_some(none)
    }
}

impl Drop for NonePages {
    fn drop(&mut self) {
        let _ = fs::write(NUMBER, self.before.to_string());
    }
}

fn number(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(place) = &self.mounted {
            // What stays is cleared with the machine; there is nothing better to do here.
            let _ = fs::remove_file(place.join("file"));
            let _ = Command::new("umount").arg(place).status();
        }
        if let Some(before) = self.before {
            let _ = fs::write(NUMBER, before.to_string());
        }
    }
}
