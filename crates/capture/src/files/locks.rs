//! Locks that the target holds through its descriptors.

use rewake_image::records::{FileLock, file_lock};
use rewake_linux::proc::{Lock, LockKind};

use super::Seen;
use crate::findings::Findings;

/// Records of all locks, each once, through a descriptor that may set it again.
pub(super) fn survey(seen: &[Seen], firsts: &[i32], findings: &mut Findings) -> Vec<FileLock> {
    let mut known: Vec<((u64, u64), i32, FileLock)> = Vec::new();
    for (one, &first) in seen.iter().zip(firsts) {
        for lock in &one.info.locks {
            let kind = match lock.kind {
                LockKind::Posix => file_lock::Type::Posix,
                LockKind::Flock => file_lock::Type::Flock,
                _ => {
                    findings.add(
                        one.name(),
                        format!("{:?} locks are not supported yet", lock.kind),
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
            // POSIX locks belong to process and file, flock to the open file description.
            let owner = if kind == file_lock::Type::Flock { first } else { -1 };
            let same = known.iter().any(|(inode, other, lock)| {
                (*inode, *other) == (one.inode(), owner) && FileLock { fd: record.fd, ..*lock } == record
            });
            if !same {
                known.push((one.inode(), owner, record));
            }
        }
    }
    known.into_iter().map(|(.., lock)| lock).collect()
}

fn record(fd: i32, kind: file_lock::Type, lock: &Lock) -> FileLock {
    FileLock { fd, r#type: kind.into(), write: lock.write, start: lock.start, length: lock.length }
}
