//! `/proc/PID/fd`: the open descriptors.

use super::{Link, Proc, ProcError};

/// An open descriptor and where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fd {
    /// Number.
    pub fd: i32,
    /// What it leads to, with `stat`.
    pub link: Link,
}

impl Proc {
    /// Numbers of the open descriptors, in ascending order.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn fd_numbers(&self) -> Result<Vec<i32>, ProcError> {
        self.numbered("fd")
    }

    /// The open descriptors in order of number, with their links. One closed meanwhile is left out.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn fds(&self) -> Result<Vec<Fd>, ProcError> {
        let mut fds = Vec::new();
        for fd in self.fd_numbers()? {
            match self.link(&format!("fd/{fd}")) {
                Ok(link) => fds.push(Fd { fd, link }),
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(fds)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn our_own() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "12345").unwrap();
        let expected = file.as_file().metadata().unwrap();
        let fds = Proc::own().unwrap().fds().unwrap();
        assert!(fds.is_sorted_by_key(|fd| fd.fd));
        let found = fds.iter().find(|fd| fd.fd == file.as_raw_fd()).unwrap();
        let stat = found.link.stat;
        assert_eq!((stat.device, stat.inode, stat.size), (expected.dev(), expected.ino(), 5));
        assert_eq!((stat.mtime_s, i64::from(stat.mtime_ns)), (expected.mtime(), expected.mtime_nsec()));
        assert_eq!((stat.mode, stat.rdev), (expected.mode(), expected.rdev()));
    }
}
