//! Memory that is left: how much more a process may take before the kernel ends it, or another, by the limits of its control groups.

use std::fs;
use std::path::{Path, PathBuf};

/// Where control groups are found: of version 2, of both versions side by side, and of version 1.
const UNIFIED: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const MEMORY: &str = "/sys/fs/cgroup/memory";
/// Files of a group: its limit, what is used of it, and the line in its statistics that says what could be given back at once.
const VERSION_2: [&str; 3] = ["memory.max", "memory.current", "inactive_file "];
const VERSION_1: [&str; 3] = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "];
const PAGE: u64 = 4096;

/// Bytes of memory that a process may take yet, by the limits of its control groups and of those above, and by what the machine has.
/// `None` where nobody tells. What the kernel can give back at once (files that are not in use) counts as free.
#[must_use]
pub fn memory_left(pid: i32) -> Option<u64> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let machine = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    least(&groups).into_iter().chain(kilobytes(&machine, "MemAvailable:")).min()
}

/// Bytes of memory that are a process's alone and would be there twice if it were copied and then changed everything.
#[must_use]
pub fn anonymous_memory(pid: i32) -> Option<u64> {
    kilobytes(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "RssAnon:")
}

/// Bytes, of a line in which the kernel tells kilobytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

/// The least that is left in any of the groups of a process, in bytes.
fn least(groups: &str) -> Option<u64> {
    groups.lines().flat_map(folders).filter_map(|(folder, files)| left_in(&folder, files)).min()
}

/// The folders of a group and of those above it. Within a container the names may be those outside: what is not there has no limit.
fn folders(line: &str) -> Vec<(PathBuf, [&'static str; 3])> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let (roots, files): (&[&str], _) = match controllers {
        "" => (&UNIFIED, VERSION_2),
        _ if controllers.split(',').any(|one| one == "memory") => (&[MEMORY], VERSION_1),
        _ => return Vec::new(),
    };
    let below = Path::new(path.trim_start_matches('/'));
    let each = |root: &&str| {
        let root = PathBuf::from(root);
        below.ancestors().map(move |one| (root.join(one), files)).collect::<Vec<_>>()
    };
    roots.iter().flat_map(each).collect()
}

fn left_in(folder: &Path, [limit, usage, given_back]: [&str; 3]) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(folder.join(name));
    let statistics = read("memory.stat").unwrap_or_default();
    left(&read(limit).ok()?, &read(usage).ok()?, &statistics, given_back)
}

/// What is left of a limit, in bytes; `None` if there is no limit.
fn left(limit: &str, usage: &str, statistics: &str, given_back: &str) -> Option<u64> {
    let (limit, usage): (u64, u64) = (limit.trim().parse().ok()?, usage.trim().parse().ok()?);
    let value = statistics.lines().find_map(|line| line.strip_prefix(given_back)?.trim().parse().ok());
    // Version 1 says the largest number there is, in whole pages.
    let none = limit >= i64::MAX.cast_unsigned() - PAGE;
    (!none).then(|| limit.saturating_sub(usage.saturating_sub(value.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_the_limit_without_what_stays() {
        let statistics = "anon 100\ninactive_file 300\n";
        assert_eq!(left("1000\n", "900\n", statistics, "inactive_file "), Some(400));
        assert_eq!(left("1000\n", "900\n", "", "inactive_file "), Some(100));
        assert_eq!(left("1000\n", "2000\n", "", "inactive_file "), Some(0));
        assert_eq!(left("max\n", "900\n", statistics, "inactive_file "), None);
        assert_eq!(left("9223372036854771712\n", "900\n", "", "total_inactive_file "), None);
    }

    #[test]
    fn groups_above_count_as_well() {
        let paths = |line: &str| -> Vec<String> {
            folders(line).iter().map(|(folder, _)| folder.display().to_string()).collect()
        };
        let memory = ["/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory/"];
        assert_eq!(paths("4:memory:/a/b"), memory);
        assert_eq!(paths("0::/a").len(), 4);
        assert_eq!(paths("0::/a")[0], "/sys/fs/cgroup/a");
        assert!(paths("5:devices:/a").is_empty() && paths("nothing").is_empty());
    }

    #[test]
    fn a_process_knows_its_own() {
        assert_eq!(kilobytes("VmRSS:\t  20 kB\nRssAnon:\t     12 kB\n", "RssAnon:"), Some(12 * 1024));
        assert_eq!(kilobytes("VmRSS:\t  20 kB\n", "RssAnon:"), None);
        assert!(anonymous_memory(std::process::id().cast_signed()).is_some_and(|bytes| bytes > 4096));
        assert!(memory_left(std::process::id().cast_signed()).is_some_and(|bytes| bytes > 4096));
    }
}
