//! Locks that the target holds through its descriptors.

use rewake_image::records::{FileLock, file_lock};
use rewake_linux::proc::{Lock, LockKind};
use rustix::fs::OFlags;

use super::Seen;
use crate::findings::{Findings, Refusal};

/// Whose a lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// A process's, on a file by device and inode.
    ByProcess(i32, (u64, u64)),
    /// An open file description's, by its first descriptor.
    ByFile(usize),
}

/// Records of all locks, each once, through a descriptor that may set it again.
pub(super) fn survey(seen: &[Seen], firsts: &[usize], findings: &mut Findings) -> Vec<(i32, FileLock)> {
    let mut known: Vec<(Held, i32, FileLock)> = Vec::new();
    for (one, &first) in seen.iter().zip(firsts) {
        for lock in &one.info.locks {
            let kind = match lock.kind {
                LockKind::Posix => file_lock::Type::Posix,
                LockKind::Flock => file_lock::Type::Flock,
                LockKind::Ofd => file_lock::Type::Ofd,
                LockKind::Lease if lock.breaking => {
                    let reason = "another program waits for this lease to be given up";
                    let remedy = "let the program answer first, then try again";
                    findings.refuse(one.name(), Refusal::passing(reason, remedy));
                    continue;
                }
                LockKind::Lease => file_lock::Type::Lease,
                LockKind::Other => {
                    findings.add(
                        one.name(),
                        "locks of this kind are not supported",
                        "capture the program at a time when it does not hold this",
                    );
                    continue;
                }
            };
            if kind == file_lock::Type::Posix && lock.write && !one.writes() {
                // The same lock is listed at a descriptor that may write, or could not be set again.
                continue;
            }
            let record = record(one.fd, kind, lock);
            // POSIX locks belong to process and file, all others to the open file description.
            let held = if kind == file_lock::Type::Posix {
                Held::ByProcess(one.pid, one.inode())
            } else {
                Held::ByFile(first)
            };
            let same = known
                .iter()
                .any(|(other, _, lock)| *other == held && FileLock { fd: record.fd, ..*lock } == record);
            if !same {
                known.push((held, one.pid, record));
            }
        }
    }
    known.into_iter().map(|(_, pid, lock)| (pid, lock)).collect()
}

/// Refuses a file whose content is wanted and that can be read by nobody: its lease ends when it is opened, and its descriptor only writes.
pub(super) fn check_readable(one: &Seen, findings: &mut Findings) {
    let leased = one.info.locks.iter().any(|lock| lock.kind == LockKind::Lease && lock.write);
    if leased && one.flags() & OFlags::ACCMODE == OFlags::WRONLY {
        findings.add(
            one.name(),
            "to read it for the image would break the program's lease on it, and the program has it open for writing only",
            "let the program give the lease up first; a file that has a name can be left out (--files 0)",
        );
    }
}

fn record(fd: i32, kind: file_lock::Type, lock: &Lock) -> FileLock {
    FileLock { fd, r#type: kind.into(), write: lock.write, start: lock.start, length: lock.length }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rewake_linux::proc::{FdInfo, FileStat, Link};

    fn seen(fd: i32, flags: u32, locks: Vec<Lock>) -> Seen {
        let stat = FileStat {
            device: 1,
            inode: 2,
            mode: libc::S_IFREG,
            rdev: 0,
            size: 10,
            links: 1,
            uid: 0,
            gid: 0,
            mtime_s: 0,
            mtime_ns: 0,
        };
        let link = Link { target: b"/x".to_vec(), deleted: false, reachable: true, stat };
        Seen { pid: 1, fd, link, info: FdInfo { flags, locks, ..FdInfo::default() }, in_flight: false }
    }

    fn lock(kind: LockKind, start: u64) -> Lock {
        Lock { kind, write: true, breaking: false, pid: 1, device: 1, inode: 2, start, length: 5 }
    }

    #[test]
    fn each_lock_once_through_a_descriptor_that_may_set_it() {
        let posix = || vec![lock(LockKind::Posix, 0), lock(LockKind::Posix, 7)];
        let (read_only, both) = (libc::O_RDONLY.cast_unsigned(), libc::O_RDWR.cast_unsigned());
        let all = [seen(3, read_only, posix()), seen(4, both, posix()), seen(5, both, posix())];
        let mut findings = Findings::new(1);
        let locks = survey(&all, &[0, 1, 2], &mut findings);
        assert_eq!(locks.iter().map(|(_, lock)| (lock.fd, lock.start)).collect::<Vec<_>>(), [(4, 0), (4, 7)]);
        assert!(findings.into_obstacles().is_empty());
    }

    #[test]
    fn others_belong_to_the_open_file_and_leases_to_be_broken_are_refused() {
        let flock = || vec![lock(LockKind::Flock, 0), lock(LockKind::Ofd, 4)];
        let broken = Lock { breaking: true, ..lock(LockKind::Lease, 0) };
        let all = [seen(3, 0, flock()), seen(4, 0, flock()), seen(5, 0, vec![broken])];
        let mut findings = Findings::new(1);
        let locks = survey(&all, &[0, 0, 2], &mut findings);
        assert_eq!(locks.iter().map(|(_, lock)| (lock.fd, lock.start)).collect::<Vec<_>>(), [(3, 0), (3, 4)]);
        assert_eq!(findings.into_obstacles()[0].object, "descriptor 5: /x");
    }
}
